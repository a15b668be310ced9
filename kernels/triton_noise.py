# mypy: ignore-errors
# (triton's language is compiled from the source of these functions, not typed Python)
"""The device side of noise format v1: the Triton twin of philox.py, bit by bit in exact mode.

One row of a [Q, 4] tile is one Philox call, so values do not depend on the block size and wide
loads survive any length. Products are formed in 64 bits: one multiply gives both halves.
"""

import numpy as np
import torch
import triton
import triton.language as tl

from . import dispatch, philox
from .triton_launch import block_of, launch_options, noise_mode, packed

EXACT = tl.constexpr(0)  # noise modes: integers, +, * and a correctly rounded square root;
NVIDIA = tl.constexpr(1)  # hardware lg2, sqrt, sin and cos
AMD = tl.constexpr(2)  # the same on AMD, whose sine counts in revolutions
EXACT_NVIDIA = tl.constexpr(3)  # exact to the bit; the square root without cases that do not occur
NORMAL = tl.constexpr(0)  # kinds, in the order of noise.KINDS
UNIFORM = tl.constexpr(1)

M0 = tl.constexpr(philox.MULTIPLIERS[0])
M1 = tl.constexpr(philox.MULTIPLIERS[1])
W0 = tl.constexpr(philox.WEYL[0])
W1 = tl.constexpr(philox.WEYL[1])
L0, L1, L2, L3, L4, L5, L6, L7 = (tl.constexpr(c) for c in philox.LOG_POLY)
S0, S1, S2, S3 = (tl.constexpr(c) for c in philox.SIN_POLY)
C0, C1, C2, C3 = (tl.constexpr(c) for c in philox.COS_POLY)
MINUS_2_LN_2 = tl.constexpr(philox.MINUS_2_LN_2)
# 2^-23 of it for exponents that stand where a float has them
MINUS_2_LN_2_BINADE = tl.constexpr(float(np.float32(philox.MINUS_2_LN_2)) * 2.0**-23)
BINADE = tl.constexpr(philox.ONE_BITS - philox.SQRT_HALF_BITS - (159 << 23))
TURN = tl.constexpr(2 * 3.141592653589793 * 2.0**-32)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds; uint32 in, uint32 out."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * M0
        p1 = c2.to(tl.uint64) * M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = k0 + W0
        k1 = k1 + W1
    return c0, c1, c2, c3


@triton.jit
def squared_radius_exact(word):
    """philox.squared_radius to the bit, its integers in fewer operations."""
    above = (word.to(tl.float32) + 0.5).to(tl.int32, bitcast=True)
    binade = (above + BINADE) & -0x800000  # the exponent, 32 less than above's, in place
    mantissa = (above - binade - 0x10000000).to(tl.float32, bitcast=True)
    near_one = (2 * word + 1).to(tl.int32, bitcast=True).to(tl.float32) * 1.1641532182693481e-10
    f = tl.where(word >= 0xC0000000, near_one, mantissa - 1.0)
    q = f * L7 + L6
    q = q * f + L5
    q = q * f + L4
    q = q * f + L3
    q = q * f + L2
    q = q * f + L1
    q = q * f + L0
    return binade.to(tl.float32) * MINUS_2_LN_2_BINADE + f * (f * q - 2.0)


@triton.jit
def sin_cos_exact(word):
    """philox.sin_cos to the bit: the residual is what lies below the word's first two bits, signed,
    and the signs go straight into the sign bits."""
    turned = word + 0x20000000  # its first two bits are the quadrant
    y = (4 * word + 2).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10  # 2^-31
    square = y * y
    s = square * S3 + S2
    s = s * square + S1
    s = y * (s * square + S0)
    c = square * C3 + C2
    c = c * square + C1
    c = c * square + C0
    swap = (turned & 0x40000000) != 0
    sine = tl.where(swap, c, s).to(tl.uint32, bitcast=True) ^ (turned & 0x80000000)
    cosine = tl.where(swap, s, c).to(tl.uint32, bitcast=True) ^ ((word + 0x60000000) & 0x80000000)
    return sine.to(tl.float32, bitcast=True), cosine.to(tl.float32, bitcast=True)


@triton.jit
def hardware(x, NAME: tl.constexpr):
    """One hardware approximation by its instruction's name."""
    return tl.inline_asm_elementwise(
        NAME + " $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def hardware_amd(x, NAME: tl.constexpr):
    return tl.inline_asm_elementwise(
        NAME + " $0, $1", "=v,v", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def root(squared, MODE: tl.constexpr):
    """The correctly rounded square root of a number from 2^-101 on, as every radius's square is.

    EXACT_NVIDIA: what NVIDIA's compiler makes of sqrt.rn.f32, without the branch for smaller ones.
    """
    if MODE == EXACT:
        radius = tl.sqrt_rn(squared)
    else:
        radius = tl.inline_asm_elementwise(
            """
            {
            .reg .f32 y, s, n, h, e;
            rsqrt.approx.ftz.f32 y, $1;
            mul.ftz.f32 s, $1, y;
            mul.ftz.f32 h, y, 0f3F000000;
            neg.f32 n, s;
            fma.rn.f32 e, n, s, $1;
            fma.rn.f32 $0, e, h, s;
            }
            """,
            "=f,f",
            [squared],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return radius


@triton.jit
def squared_radius(word, MODE: tl.constexpr):
    """-2 ln u of u = (word + 1/2) 2^-32."""
    if MODE == EXACT or MODE == EXACT_NVIDIA:
        squared = squared_radius_exact(word)
    else:
        u = word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
        if MODE == NVIDIA:
            squared = hardware(u, "lg2.approx.ftz.f32") * MINUS_2_LN_2
        else:
            squared = hardware_amd(u, "v_log_f32") * MINUS_2_LN_2
    return squared


@triton.jit
def box_muller(word0, word1, MODE: tl.constexpr):
    """r sin, r cos of two words."""
    squared = squared_radius(word0, MODE)
    if MODE == EXACT or MODE == EXACT_NVIDIA:
        radius = root(squared, MODE)
        sine, cosine = sin_cos_exact(word1)
    else:
        signed = word1.to(tl.int32, bitcast=True).to(tl.float32)
        if MODE == NVIDIA:
            radius = hardware(squared, "sqrt.approx.ftz.f32")
            angle = signed * TURN + TURN / 2
            sine = hardware(angle, "sin.approx.ftz.f32")
            cosine = hardware(angle, "cos.approx.ftz.f32")
        else:
            radius = hardware_amd(squared, "v_sqrt_f32")
            angle = signed * 2.3283064365386963e-10 + 1.1641532182693481e-10
            sine = hardware_amd(angle, "v_sin_f32")
            cosine = hardware_amd(angle, "v_cos_f32")
    return radius * sine, radius * cosine


@triton.jit
def interleave(a, b, c, d):
    """Four lanes [Q] as one tile [Q, 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (a.shape[0], 4))


@triton.jit
def stream_words(c0, sample, draw, TAG: tl.constexpr, seed):
    """The four words of counter c0 [Q] (uint32) in the stream (sample, draw, tag, seed), int64."""
    c1 = sample.to(tl.uint32)
    c3 = (((sample >> 32) & 0xFFFF) << 16).to(tl.uint32) | TAG
    # adding 0 c0 broadcasts the scalars to the tile
    zero = c0 * 0
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    return philox4x32(c0, zero + c1, zero + draw.to(tl.uint32), zero + c3, k0, k1)


@triton.jit
def normals(c0, sample, draw, TAG: tl.constexpr, seed, MODE: tl.constexpr):
    """Standard normals [Q, 4] of counters c0 [Q]."""
    w0, w1, w2, w3 = stream_words(c0, sample, draw, TAG, seed)
    z0, z1 = box_muller(w0, w1, MODE)
    z2, z3 = box_muller(w2, w3, MODE)
    return interleave(z0, z1, z2, z3)


@triton.jit
def tile(size, quads, Q: tl.constexpr, FLAT: tl.constexpr, ALIGNED: tl.constexpr, total):
    """Where this program works: sample b, counter c0 [Q], offsets and mask [Q, 4].

    size elements and quads = ceil(size / 4) counters per sample. FLAT: programs run over all
    samples' counters in one row (small samples), else each stays inside one sample, b a scalar.
    ALIGNED: size = 4 quads, which keeps the accesses 128 bits wide for any length.
    """
    lane = tl.arange(0, 4)
    local = tl.arange(0, Q)
    if FLAT:
        flat = tl.program_id(0).to(total.dtype) * Q + local  # divided in 32 bits where they do
        b = flat // quads
        c0 = flat - b * quads
        inside = flat < total
        first = tl.program_id(0).to(tl.int64) * (Q * 4)
    else:
        b = tl.program_id(1).to(tl.int64)
        start = tl.program_id(0) * Q
        c0 = start + local
        inside = c0 < quads
        first = (b * quads + start) * 4
    if ALIGNED:
        offset = first + (local[:, None] * 4 + lane[None, :])
        mask = inside[:, None] & (lane[None, :] < 4)
    else:
        element = (c0.to(size.dtype) * 4)[:, None] + lane[None, :]  # int64 where size needs it
        mask = inside[:, None] & (element < size)
        row = b[:, None] if FLAT else b
        offset = row.to(tl.int64) * size + element
    return b, c0.to(tl.uint32), offset, mask, inside


@triton.jit
def per_sample(pointer, b, inside, STRIDE: tl.constexpr, FLAT: tl.constexpr):
    """pointer[b] (or the only element when STRIDE is 0)."""
    if STRIDE == 0:
        value = tl.load(pointer)
    elif FLAT:
        value = tl.load(pointer + b, mask=inside, other=0)
    else:
        value = tl.load(pointer + b)
    return value


@triton.jit(do_not_specialize=["size", "quads", "total", "draw", "quad0"])
def noise_kernel(
    out,
    seed,
    ids,
    size,
    quads,
    total,
    draw,
    quad0,
    TAG: tl.constexpr,
    KIND: tl.constexpr,
    MODE: tl.constexpr,
    SEEDS: tl.constexpr,
    Q: tl.constexpr,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    b, c0, offset, mask, inside = tile(size, quads, Q, FLAT, ALIGNED, total)
    key = per_sample(seed, b, inside, SEEDS, FLAT)
    sample = b.to(tl.int64) if ids is None else per_sample(ids, b, inside, 1, FLAT)
    c0 = (c0 + quad0).to(tl.uint32)
    if KIND == NORMAL:
        value = normals(c0, sample, draw, TAG, key, MODE)
    else:
        w0, w1, w2, w3 = stream_words(c0, sample, draw, TAG, key)
        words = interleave(w0, w1, w2, w3)
        if KIND == UNIFORM:
            value = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
        else:
            value = 1.0 - 2.0 * (words >> 31).to(tl.float32)
    tl.store(out + offset, value, mask=mask)


def noise(seed, sample_ids, shape, draw, tag, element0, kind):
    """The operator `undiffuse::noise` on a GPU (or in the interpreter): float32 of the shape."""
    quad0, skip = divmod(element0, 4)
    batch, size = shape[0], 1
    for length in shape[1:]:
        size *= length
    wide = skip + size  # a shard that begins inside a counter draws the lanes before it as well
    out = torch.empty(batch, wide, dtype=torch.float32, device=seed.device)
    if out.numel():
        block = block_of(batch, wide, 1)
        seed, sample_ids = packed(seed, sample_ids)
        with dispatch.device_guard(out):
            noise_kernel[block.grid](
                out,
                seed,
                sample_ids,
                wide,
                block.quads,
                block.total,
                draw,
                quad0,
                TAG=tag,
                KIND=kind,
                MODE=noise_mode(),
                SEEDS=int(seed.numel() > 1),
                **block.switches,
                **launch_options(),
            )
    return out[:, skip:].reshape(shape)
