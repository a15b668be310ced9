"""Sample with an exported table and NumPy alone: python run.py table.json BATCH SIZE SEED

`run` is the whole loop; put your network in the place of `network`.
"""

import json
import sys

import numpy as np
from frame import frame
from noise import normal


def network(x, t):
    """Stands for yours: x [BATCH, *event] is scaled by c_in already, t is as it is told."""
    return 0.3 * np.sin(x) + 0.1 * np.cos(t)


def run(t, net, shape, seed=0, ids=None, x_init=None):
    """Samples of this shape (BATCH, *event); those of `undiffuse.sample` to rounding."""
    ids = range(shape[0]) if ids is None else ids
    mean, alpha, shift, into, back = frame(t)

    def z(tag, draw):
        return normal(int(np.prod(shape[1:])), seed, ids, int(tag), int(draw))

    x = t["start_sigma"] * z(*t["start_stream"]) if x_init is None else x_init.reshape(shape[0], -1)
    if "basis" in t:
        u = into(x - alpha[0] * mean) * np.array(t["entry"])
    else:
        u = t["entry"][0] * x + t["entry"][1] * z(*t["entry_stream"])
    states, datas = [], []  # most recent first
    for i, t_in in enumerate(t["t_in"]):
        x = back(u) + alpha[i + 1] * mean
        out = net((t["c_in"][i] * x).reshape(shape), t_in).reshape(x.shape)
        d = t["skip"][i] * u + t["scale"][i] * into(out + shift[i] * mean)
        d = d if t.get("clip") is None else np.clip(d, *t["clip"])
        states, datas = [u, *states], [d, *datas]
        u = sum(np.array(c) * v for c, v in zip(t["state"][i], states, strict=False))
        u = u + sum(np.array(c) * v for c, v in zip(t["data"][i], datas, strict=False))
        for c, draw in zip(t["noise"][i], t["draws"][i], strict=True):
            u = u + c * z(t["rows_tag"], t["draw0"] + draw)
    return (back(u) + alpha[-1] * mean).reshape(shape)


def load(path):
    """An exported .json or .npz."""
    if not path.endswith(".npz"):
        with open(path) as file:
            return json.load(file)
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays.files}


if __name__ == "__main__":
    table, (batch, size, seed) = load(sys.argv[1]), map(int, sys.argv[2:])
    print("\n".join(f"{v:.17g}" for v in run(table, network, (batch, size), seed).ravel()))
