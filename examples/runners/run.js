// Sample with an exported table in JavaScript: node run.js table.json BATCH SIZE SEED
// `run` is the whole loop; put your network in the place of `network`.
"use strict";
const { normal } = require("./noise.js");
const { turn } = require("./frame.js");

// Stands for yours: x is scaled by c_in already, t is as it is told.
const network = (x, t) => x.map((v) => 0.3 * Math.sin(v) + 0.1 * Math.cos(t));

// Samples [batch * size] of this seed; those of undiffuse.sample to rounding.
function run(t, net, batch, size, seed) {
  const z = (tag, draw) => normal(batch, size, seed, tag, draw);
  const add = (sum, c, v) => { // a coefficient is a number, or one for each component
    const each = [].concat(c);
    v.forEach((y, j) => (sum[j] += each[j % each.length] * y));
  };
  const alpha = t.frame_alpha || [], shift = t.frame_shift || [], plain = !("basis" in t);
  const x = turn(t, z(...t.start_stream).map((v) => t.start_sigma * v), true, -alpha[0]);
  let u = new Float64Array(batch * size);
  add(u, plain ? t.entry[0] : t.entry, x);
  if (plain) add(u, t.entry[1], z(...t.entry_stream));
  const states = [], datas = []; // most recent first
  t.t_in.forEach((t_in, i) => {
    const x_in = turn(t, u, false, alpha[i + 1]).map((v) => t.c_in[i] * v);
    const d = turn(t, net(x_in, t_in), true, shift[i]).map((v, j) => t.skip[i] * u[j] + t.scale[i] * v);
    states.unshift(u);
    datas.unshift(t.clip ? d.map((v) => Math.min(Math.max(v, t.clip[0]), t.clip[1])) : d);
    u = new Float64Array(batch * size);
    t.state[i].slice(0, i + 1).forEach((c, k) => add(u, c, states[k]));
    t.data[i].slice(0, i + 1).forEach((c, h) => add(u, c, datas[h]));
    t.noise[i].forEach((c, m) => add(u, c, z(t.rows_tag, t.draw0 + t.draws[i][m])));
  });
  return turn(t, u, false, alpha[alpha.length - 1]);
}

module.exports = { run };

if (require.main === module) {
  const [path, batch, size, seed] = process.argv.slice(2);
  const table = JSON.parse(require("fs").readFileSync(path, "utf8"));
  console.log(Array.from(run(table, network, +batch, +size, BigInt(seed))).join("\n"));
}
