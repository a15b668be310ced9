"""Philox4x32-10 and noise format v1, in torch integer arithmetic: the specification of the noise.

Every random number is a pure function of (seed, sample id, draw index, purpose, element), so the
same sample gets the same noise whatever the batch, its order, the device or the sharding:

    key     = (low, high) 32 bits of the 64-bit seed
    counter = (element // 4, sample id, draw index, purpose | sub-draw << 8 | id_high << 16)
    lane    = element % 4

The normals use integer operations, float32 + and * and a correctly rounded square root only: no
libm, no fused multiply-add. That makes CPU, compiled CPU, Triton's interpreter and GPUs agree in
every bit. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .errors import InvalidType, InvalidValue

LOW32 = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

# Minimax fits (see tests/kernels/test_philox.py for their errors), shared with the Triton twin.
# -2 ln(1 + f) = f (f Q(f) - 2) on [1/sqrt(2) - 1, sqrt(2) - 1]
LOG_POLY = (
    0.99999983, -0.666679, 0.50003511, -0.39924144, 0.33141016, -0.29835953, 0.28615053,
    -0.17469682,
)  # fmt: skip
# sin(pi/4 y) = y S(y^2) and cos(pi/4 y) = C(y^2) on [-1, 1]
SIN_POLY = (math.pi / 4, -8.07454347e-02, 2.48998973e-03, -3.59390481e-05)
COS_POLY = (1.0, -0.30842449, 0.0158504, -0.00031916)
MINUS_2_LN_2 = -2 * math.log(2)
SQRT_HALF_BITS = 0x3F3504F3  # float32 bits of 1/sqrt(2)
ONE_BITS = 0x3F800000

# Counters handled at once on a CPU: the int64 temporaries of a chunk stay in the L2 cache.
CHUNK = 16384

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor], rounds: int = 10) -> Words:
    """Four 32-bit words for each 128-bit counter under a 64-bit key (Philox4x32).

    counter: four, key: two int64 tensors (broadcastable) holding values in [0, 2^32).
    Returns four int64 tensors of the broadcast shape holding values in [0, 2^32).
    """
    if len(counter) != 4 or len(key) != 2:
        raise InvalidValue(
            f"counter must hold four tensors and key two; got {len(counter)} and {len(key)}"
        )
    if any(v.dtype != torch.int64 for v in (*counter, *key)):
        raise InvalidType(
            f"counter and key must be int64; got {[str(v.dtype) for v in (*counter, *key)]}"
        )
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # the 64-bit product wraps into int64 without losing a bit: shift and mask recover both
        # halves
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & LOW32) ^ c1 ^ k0,
            p1 & LOW32,
            ((p0 >> 32) & LOW32) ^ c3 ^ k1,
            p0 & LOW32,
        )
        k0, k1 = (k0 + WEYL[0]) & LOW32, (k1 + WEYL[1]) & LOW32
    return c0, c1, c2, c3


def horner(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """c_0 + c_1 x + c_2 x^2 + ... in float32, each product and sum rounded on its own."""
    total = x * coefficients[-1] + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        total = total * x + c
    return total


def squared_radius(word: Tensor) -> Tensor:
    """-2 ln u for u = (word + 1/2) 2^-32, float32, relative error below 3e-7 for every word."""
    above = word.to(torch.float32) + 0.5
    bits = above.view(torch.int32) + (ONE_BITS - SQRT_HALF_BITS)
    exponent = (bits >> 23) - 159  # bias 127, and the 2^-32 of u
    mantissa = ((bits & 0x7FFFFF) + SQRT_HALF_BITS).view(torch.float32)
    # near u = 1 the distance to 1 is formed in integers: float32(word) no longer resolves it
    near_one = (2 * word + 1 - (1 << 33)).to(torch.float32) * 2.0**-33
    f = torch.where(word >= 3 << 30, near_one, mantissa - 1.0)
    log1p = f * (f * horner(LOG_POLY, f) - 2.0)
    return exponent.to(torch.float32) * MINUS_2_LN_2 + log1p


def sin_cos(word: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of 2 pi (word + 1/2) 2^-32, float32, the angle reduced in integers."""
    quadrant = (word + (1 << 29)) >> 30
    residual = word - (quadrant << 30)  # [-2^29, 2^29): an eighth of a turn to either side
    y = (2 * residual + 1).to(torch.float32) * 2.0**-30
    square = y * y
    s, c = y * horner(SIN_POLY, square), horner(COS_POLY, square)
    swap = (quadrant & 1) == 1
    sine, cosine = torch.where(swap, c, s), torch.where(swap, s, c)
    sine = torch.where((quadrant & 2) == 2, -sine, sine)
    cosine = torch.where(((quadrant + 1) & 2) == 2, -cosine, cosine)
    return sine, cosine


def sqrt_rounded(x: Tensor) -> Tensor:
    """Correctly rounded float32 square root.

    On a CPU by way of float64, for torch.sqrt is off by an ulp on some builds; a GPU's own is
    correctly rounded, and not every device has float64.
    """
    return x.double().sqrt().float() if x.device.type == "cpu" else x.sqrt()


def box_muller(word0: Tensor, word1: Tensor) -> tuple[Tensor, Tensor]:
    """Two float32 normals r (sin, cos) of two words: cuRAND's order, largest magnitude 6.77."""
    radius = sqrt_rounded(squared_radius(word0))
    sine, cosine = sin_cos(word1)
    return radius * sine, radius * cosine


def normal_lanes(words: Words) -> Tensor:
    """Standard normals [..., 4]; lanes (0, 1) come from words (0, 1), lanes (2, 3) from (2, 3)."""
    return torch.stack(box_muller(words[0], words[1]) + box_muller(words[2], words[3]), -1)


def uniform_lanes(words: Words) -> Tensor:
    """Uniforms [..., 4] in the open interval (0, 1): 23 bits and a half-step, exact in float32."""
    return ((torch.stack(words, -1) >> 9).to(torch.float32) + 0.5) * 2.0**-23


def sign_lanes(words: Words) -> Tensor:
    """Random signs [..., 4]: -1 or +1 by the top bit of each word."""
    return 1.0 - 2.0 * (torch.stack(words, -1) >> 31).to(torch.float32)


LANES: dict[str, Callable[[Words], Tensor]] = {
    "normal": normal_lanes,
    "uniform": uniform_lanes,
    "sign": sign_lanes,
}


def counter_lanes(index: Tensor, quads: int, quad0: int, streams: Tensor, kind: str) -> Tensor:
    """Lanes [n, 4] of flat counter numbers: index = sample * quads + element // 4 - quad0.

    streams: int64 [B, 5], the counter's words 1 to 3 and the key's two of each sample.
    """
    sample = torch.div(index, quads, rounding_mode="floor")
    c1, c2, c3, k0, k1 = streams.index_select(0, sample).unbind(1)
    c0 = index - sample * quads + quad0
    return LANES[kind](philox4x32((c0, c1, c2, c3), (k0, k1)))


def draw(kind: str, n: int, streams: Tensor, element0: int = 0) -> Tensor:
    """Elements element0 ... element0 + n - 1 of each stream: float32 [B, n].

    kind: "normal", "uniform" or "sign"; streams as in `counter_lanes`.
    """
    device, batch = streams.device, streams.shape[0]
    quad0, skip = divmod(element0, 4)
    quads = -(-(skip + n) // 4)
    total = quads * batch
    plain = device.type == "cpu" and type(streams) is Tensor  # a tracer's graph is one piece
    chunk = CHUNK if plain else max(total, 1)
    lanes = []
    for start in range(0, max(total, 1), chunk):
        stop = min(start + chunk, total)
        index = torch.arange(start, stop, dtype=torch.int64, device=device)
        lanes.append(counter_lanes(index, quads, quad0, streams, kind))
    out = lanes[0] if len(lanes) == 1 else torch.cat(lanes)
    return out.view(batch, quads * 4)[:, skip : skip + n]


def stream_table(
    batch: int, seed: Tensor, sample_ids: Tensor | None, draws: Tensor | int, tag: int
) -> Tensor:
    """Counter words 1 to 3 and both key words of each sample: int64 [B, 5].

    seed: int64 [1] or [B].
    sample_ids: int64 [B], None = 0 ... B-1.
    draws: int or int64 [1] or [B].
    tag: purpose | sub-draw << 8.
    """
    if sample_ids is None:
        sample_ids = torch.arange(batch, dtype=torch.int64, device=seed.device)
    each = torch.zeros(batch, dtype=torch.int64, device=seed.device)
    columns = (
        sample_ids & LOW32,
        each + (draws & LOW32),
        (((sample_ids >> 32) & 0xFFFF) << 16) | tag,
        each + (seed & LOW32),
        each + ((seed >> 32) & LOW32),
    )
    return torch.stack(columns, 1)
