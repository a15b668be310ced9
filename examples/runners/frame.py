"""Between samples and the components that a table acts on: u = Q^T (x - alpha m)."""

import numpy as np


def frame(t):
    """(mean, alpha [N + 2], shift [N], into, back); of a table without components 0 and Q = I."""
    if "basis" not in t:
        n = len(t["times"])
        return 0.0, [0.0] * (n + 2), [0.0] * n, lambda v: v, lambda u: u
    q, w, r = (
        None if t.get(k) is None else np.array(t[k]) for k in ("basis_q", "basis_w", "basis_t")
    )
    turns = {
        "unit": (lambda v: v, lambda u: u),
        "columns": (lambda v: v @ q, lambda u: u @ q.T),
        "leading": (lambda v: v - v @ w @ r @ w.T, lambda u: u - u @ w @ r.T @ w.T),
        "cosine": (lambda v: cosine(v, t, True), lambda u: cosine(u, t, False)),
    }
    return np.array(t["mean"]), t["frame_alpha"], t["frame_shift"], *turns[str(t["basis"])]


def cosine(v, t, forward):
    """The orthonormal DCT-II over all axes of an event but the first (its only one, if so)."""
    shape = [int(n) for n in t["basis_shape"]]
    x = v.reshape(-1, *shape)
    for axis in range(min(2, len(shape)), len(shape) + 1):
        n = shape[axis - 1]
        k, j = np.arange(n)[:, None], np.arange(n)
        c = np.sqrt(2 / n) * np.cos(np.pi * k * (2 * j + 1) / (2 * n))
        c[0] /= np.sqrt(2)
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ (c.T if forward else c), -1, axis)
    return x.reshape(v.shape)
