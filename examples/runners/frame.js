// Between samples and the components that a table acts on: u = Q^T (x - alpha m). A table without
// components has m = 0 and Q = I.
"use strict";

// m^T v over an axis of v: n numbers, `stride` apart; m[j][i].
function rotate(v, n, stride, m) {
  const out = v.slice();
  for (let at = 0; at < v.length; at++) {
    const i = Math.floor(at / stride) % n, first = at - i * stride;
    out[at] = 0;
    for (let j = 0; j < n; j++) out[at] += v[first + j * stride] * m(j, i);
  }
  return out;
}

function turned(t, v, into) {
  const [q, w, r] = [t.basis_q, t.basis_w, t.basis_t];
  if (t.basis === "columns") return rotate(v, v.length, 1, (j, i) => (into ? q[j][i] : q[i][j]));
  if (t.basis === "leading") {
    const a = r.map((_, i) => v.reduce((sum, x, j) => sum + x * w[j][i], 0));
    const b = a.map((_, i) => a.reduce((sum, x, j) => sum + x * (into ? r[j][i] : r[i][j]), 0));
    return v.map((x, j) => x - b.reduce((sum, y, i) => sum + y * w[j][i], 0));
  }
  if (t.basis !== "cosine") return v; // DCT-II over all axes but the first, its only one if so
  const shape = t.basis_shape, first = shape.length > 1 ? 1 : 0;
  for (let axis = first, stride = first ? v.length / shape[0] : v.length; axis < shape.length; axis++) {
    const n = shape[axis];
    const c = (k, j) => Math.sqrt((k ? 2 : 1) / n) * Math.cos((Math.PI * k * (2 * j + 1)) / (2 * n));
    v = rotate(v, n, (stride /= n), (j, i) => (into ? c(i, j) : c(j, i)));
  }
  return v;
}

// Of a whole batch: Q^T (v + a m) if into, else Q v + a m.
function turn(t, v, into, a) {
  if (!("basis" in t)) return v;
  const d = t.mean.length, shifted = (x) => x.map((y, j) => y + a * t.mean[j % d]);
  const out = into ? shifted(v) : v.slice();
  for (let b = 0; b < v.length; b += d) out.set(turned(t, out.slice(b, b + d), into), b);
  return into ? out : shifted(out);
}

module.exports = { turn };
