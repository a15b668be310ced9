// The normals of docs/noise-format.md in JavaScript, bit by bit: Math.fround rounds every product
// and sum to float32.
"use strict";
const f32 = Math.fround;
const LOG = [0.99999983, -0.666679, 0.50003511, -0.39924144, 0.33141016, -0.29835953, 0.28615053, -0.17469682];
const SIN = [0.7853981633974483, -8.07454347e-2, 2.48998973e-3, -3.59390481e-5];
const COS = [1.0, -0.30842449, 0.0158504, -0.00031916];
const horner = (c, x) => c.map(f32).reduceRight((total, a) => f32(f32(total * x) + a));
const view = new DataView(new ArrayBuffer(4));
const bitsOf = (x) => (view.setFloat32(0, x), view.getUint32(0));
const floatOf = (bits) => (view.setUint32(0, bits), view.getFloat32(0));

// High and low word of a 64-bit product.
function multiply(a, b) {
  const low = (a & 0xffff) * b, high = (a >>> 16) * b; // below 2^48, exact
  const sum = (high % 65536) * 65536 + low; // below 2^49
  return [Math.floor(high / 65536) + Math.floor(sum / 4294967296), sum >>> 0];
}

// Philox4x32-10: four words for a counter (four words) under a key (two words).
function philox(c, k) {
  for (let round = 0; round < 10; round++) {
    const [p1, p0] = multiply(c[0], 0xd2511f53), [q1, q0] = multiply(c[2], 0xcd9e8d57);
    c = [(q1 ^ c[1] ^ k[0]) >>> 0, q0, (p1 ^ c[3] ^ k[1]) >>> 0, p0];
    k = [(k[0] + 0x9e3779b9) >>> 0, (k[1] + 0xbb67ae85) >>> 0];
  }
  return c;
}

// Two normals of two words: sqrt(-2 ln u) (sin, cos)(2 pi v), u and v = (word + 1/2) 2^-32.
function boxMuller(word, angle) {
  const bits = bitsOf(f32(f32(word) + 0.5)) + 0x004afb0d;
  const exponent = (bits >>> 23) - 159;
  const f = word >= 0xc0000000 ? f32(f32(2 * word + 1 - 2 ** 33) * 2 ** -33)
    : f32(floatOf((bits & 0x7fffff) + 0x3f3504f3) - 1);
  const log = f32(f * f32(f32(f * horner(LOG, f)) - 2));
  const radius = f32(Math.sqrt(f32(f32(exponent * f32(-1.3862943611198906)) + log)));
  const quadrant = Math.floor((angle + 2 ** 29) / 2 ** 30);
  const y = f32(f32(2 * (angle - quadrant * 2 ** 30) + 1) * 2 ** -30), y2 = f32(y * y);
  const s = f32(y * horner(SIN, y2)), c = horner(COS, y2);
  const [sine, cosine] = quadrant & 1 ? [c, s] : [s, c];
  return [f32(radius * (quadrant & 2 ? -sine : sine)),
          f32(radius * ((quadrant + 1) & 2 ? -cosine : cosine))];
}

// Normals [batch * size] of samples 0 to batch - 1: elements 0 to size - 1 of this draw of each.
function normal(batch, size, seed, tag, draw) {
  const out = new Float64Array(batch * size), s = BigInt.asUintN(64, BigInt(seed));
  const key = [Number(s & 0xffffffffn), Number(s >> 32n)];
  for (let id = 0; id < batch; id++)
    for (let e = 0; e < size; e += 4) {
      const w = philox([e / 4, id >>> 0, draw, (Math.floor(id / 2 ** 32) * 65536 + tag) >>> 0], key);
      const z = [...boxMuller(w[0], w[1]), ...boxMuller(w[2], w[3])];
      for (let j = 0; j < 4 && e + j < size; j++) out[id * size + e + j] = z[j];
    }
  return out;
}

module.exports = { normal };
