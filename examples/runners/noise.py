"""The normals of docs/noise-format.md in NumPy, bit by bit: float32, no fused multiply-add."""

import numpy as np

LOW = np.uint64(0xFFFFFFFF)
LOG = (
    0.99999983,
    -0.666679,
    0.50003511,
    -0.39924144,
    0.33141016,
    -0.29835953,
    0.28615053,
    -0.17469682,
)
SIN = (0.7853981633974483, -8.07454347e-02, 2.48998973e-03, -3.59390481e-05)
COS = (1.0, -0.30842449, 0.0158504, -0.00031916)


def philox(c, k):
    """Philox4x32-10: four words for each counter (four words) under a key (two words)."""
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = (q >> np.uint64(32)) ^ c[1] ^ k[0], q & LOW, (p >> np.uint64(32)) ^ c[3] ^ k[1], p & LOW
        k = (k[0] + np.uint64(0x9E3779B9)) & LOW, (k[1] + np.uint64(0xBB67AE85)) & LOW
    return c


def horner(coefficients, x):
    total = np.float32(coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + np.float32(c)
    return total


def box_muller(word, angle):
    """Two normals of two words: sqrt(-2 ln u) (sin, cos)(2 pi v), u and v = (word + 1/2) 2^-32."""
    word, angle = word.astype(np.int64), angle.astype(np.int64)
    bits = (word.astype(np.float32) + np.float32(0.5)).view(np.int32) + np.int32(0x004AFB0D)
    exponent = ((bits >> 23) - 159).astype(np.float32)
    mantissa = ((bits & 0x7FFFFF) + 0x3F3504F3).astype(np.int32).view(np.float32)
    near = (2 * word + 1 - 2**33).astype(np.float32) * np.float32(2**-33)
    f = np.where(word >= 3 << 30, near, mantissa - np.float32(1))
    log = f * (f * horner(LOG, f) - np.float32(2))
    radius = np.sqrt(exponent * np.float32(-1.3862943611198906) + log)
    quadrant = (angle + 2**29) >> 30
    y = (2 * (angle - (quadrant << 30)) + 1).astype(np.float32) * np.float32(2**-30)
    s, c = y * horner(SIN, y * y), horner(COS, y * y)
    sine, cosine = np.where(quadrant & 1, c, s), np.where(quadrant & 1, s, c)
    sine = np.where(quadrant & 2, -sine, sine)
    return radius * sine, radius * np.where((quadrant + 1) & 2, -cosine, cosine)


def normal(size, seed, ids, tag, draw):
    """Normals [len(ids), size]: elements 0 to size - 1 of this draw of each sample."""
    ids = np.asarray(ids, np.uint64)[:, None]
    quad = np.arange(-(-size // 4), dtype=np.uint64) + np.zeros_like(ids)
    key = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)
    last = (ids >> np.uint64(32) & np.uint64(0xFFFF)) << np.uint64(16) | np.uint64(tag)
    w = philox((quad, ids & LOW, np.uint64(draw), last), key)
    z = np.stack(box_muller(w[0], w[1]) + box_muller(w[2], w[3]), -1)
    return z.reshape(len(ids), -1)[:, :size].astype(np.float64)
