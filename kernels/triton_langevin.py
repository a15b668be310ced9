# mypy: ignore-errors
# (triton's language is compiled from the source of these functions, not typed Python)
"""The Triton twin of langevin.py: the noise is drawn twice and never stored.

A sample of up to ONE_LAUNCH elements is one program's: norms and update in one launch. Larger
ones take three: partial sums of squares by a fixed partition, the step sizes, then the update.
|z|^2 of a Box-Muller pair is -2 ln u of its radius, so the first needs no sine, cosine or root.
"""

import torch
import triton
import triton.language as tl

from . import dispatch
from .triton_launch import GRID_Y, launch_options, noise_mode, packed
from .triton_noise import normals, per_sample, squared_radius, stream_words

ONE_LAUNCH = 4096
PARTS = 256  # at most so many partial sums per sample, whatever its size
TILE, QUADS = 1024, 512  # counters a program takes at once in the first and the last launch


@triton.jit
def squared_noise(c0, sample, draw, TAG: tl.constexpr, key, left, MODE, ALIGNED: tl.constexpr):
    """Sum of z^2 over the tile's elements; left [Q]: how many of each four exist."""
    if ALIGNED:
        w0, _, w2, _ = stream_words(c0, sample, draw, TAG, key)
        squares = squared_radius(w0, MODE) + squared_radius(w2, MODE)
        total = tl.sum(tl.where(left > 0, squares, 0.0), 0)
    else:
        z = normals(c0, sample, draw, TAG, key, MODE)
        lane = tl.arange(0, 4)
        z = tl.where(lane[None, :] < left[:, None], z, 0.0)
        total = tl.sum(tl.sum(z * z, 1), 0)
    return total


@triton.jit
def step_size(gain, zz, ss):
    """gain |z|^2 / |s|^2, and 0 where the score is."""
    return tl.where(ss > 0.0, tl.div_rn(gain * zz, tl.where(ss > 0.0, ss, 1.0)), 0.0)


@triton.jit
def span(b, c0, size, ALIGNED: tl.constexpr):
    """Offsets and mask [Q, 4] of counters c0 [Q] in sample b."""
    lane = tl.arange(0, 4)
    element = c0[:, None] * 4 + lane[None, :]
    if ALIGNED:
        mask = (c0 * 4 < size)[:, None] & (lane[None, :] < 4)
        offset = b * (size // 4) * 4 + element
    else:
        mask = element < size
        offset = b * size + element
    return offset, mask


@triton.jit
def block_span(b, size, Q: tl.constexpr, ALIGNED: tl.constexpr):
    """Counters [Q] of this program's block in sample b, where it begins, and offsets from there and
    mask [Q, 4], all but the beginning in 32 bits."""
    start = tl.program_id(0).to(tl.int64) * (Q * 4)
    local = tl.arange(0, Q)
    lane = tl.arange(0, 4)
    offset = local[:, None] * 4 + lane[None, :]
    left = tl.minimum(size - start, Q * 4).to(tl.int32)
    if ALIGNED:
        mask = (local * 4 < left)[:, None] & (lane[None, :] < 4)
        first = b * (size // 4) * 4 + start
    else:
        mask = offset < left
        first = b * size + start
    return (start // 4).to(tl.uint32) + local.to(tl.uint32), first, offset, mask


@triton.jit
def sample_of(batch):
    """The sample of this program in a grid (blocks, <= 65535, rest), or -1 beyond the last."""
    b = tl.program_id(1).to(tl.int64) + tl.program_id(2).to(tl.int64) * 65535
    return tl.where(b < batch, b, -1)


@triton.jit
def updated(x, offset, mask, eps, root, s, z):
    """x + eps s + sqrt(2 eps) z"""
    state = tl.load(x + offset, mask=mask).to(tl.float32)
    return state + eps * s + root * z


@triton.jit(do_not_specialize=["size", "draw"])
def small_kernel(
    x,
    score,
    out,
    gain,
    seed,
    ids,
    size,
    draw,
    TAG: tl.constexpr,
    MODE: tl.constexpr,
    GAINS: tl.constexpr,
    SEEDS: tl.constexpr,
    Q: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    key = per_sample(seed, b, True, SEEDS, False)
    sample = b if ids is None else tl.load(ids + b)
    c0 = tl.arange(0, Q)
    offset, mask = span(b, c0, size, ALIGNED)
    s = tl.load(score + offset, mask=mask, other=0.0).to(tl.float32)
    z = normals(c0.to(tl.uint32), sample, draw, TAG, key, MODE)
    zz = tl.sum(tl.sum(tl.where(mask, z * z, 0.0), 1), 0)
    ss = tl.sum(tl.sum(s * s, 1), 0)
    eps = step_size(tl.load(gain + b * GAINS), zz, ss)
    tl.store(out + offset, updated(x, offset, mask, eps, tl.sqrt_rn(2 * eps), s, z), mask=mask)


@triton.jit(do_not_specialize=["batch", "size", "draw", "tiles", "parts"])
def norm_kernel(
    score,
    partial,
    seed,
    ids,
    batch,
    size,
    draw,
    tiles,
    parts,
    TAG: tl.constexpr,
    MODE: tl.constexpr,
    SEEDS: tl.constexpr,
    Q: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    part, b = tl.program_id(0), sample_of(batch)
    if b < 0:
        return
    key = per_sample(seed, b, True, SEEDS, False)
    sample = b if ids is None else tl.load(ids + b)
    zz = 0.0
    ss = 0.0
    for t in range(tiles):
        c0 = (part * tiles + t).to(tl.int64) * Q + tl.arange(0, Q)
        offset, mask = span(b, c0, size, ALIGNED)
        s = tl.load(score + offset, mask=mask, other=0.0).to(tl.float32)
        ss += tl.sum(tl.sum(s * s, 1), 0)
        zz += squared_noise(c0.to(tl.uint32), sample, draw, TAG, key, size - c0 * 4, MODE, ALIGNED)
    tl.store(partial + (b * parts + part) * 2, zz)
    tl.store(partial + (b * parts + part) * 2 + 1, ss)


@triton.jit(do_not_specialize=["parts"])
def size_kernel(
    partial, gain, out, parts, GAINS: tl.constexpr, PARTIALS: tl.constexpr, BLOCK: tl.constexpr
):
    """eps and sqrt(2 eps) of a sample, once and not in every program of the update."""
    b = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    at = partial + (b * PARTIALS * parts + index) * 2
    zz = tl.sum(tl.load(at, mask=index < parts, other=0.0), 0)
    ss = tl.sum(tl.load(at + 1, mask=index < parts, other=0.0), 0)
    eps = step_size(tl.load(gain + b * GAINS), zz, ss)
    tl.store(out + b * 2, eps)
    tl.store(out + b * 2 + 1, tl.sqrt_rn(2 * eps))


@triton.jit(do_not_specialize=["batch", "size", "draw"])
def update_kernel(
    x,
    score,
    out,
    sizes,
    seed,
    ids,
    batch,
    size,
    draw,
    TAG: tl.constexpr,
    MODE: tl.constexpr,
    SEEDS: tl.constexpr,
    Q: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    b = sample_of(batch)
    if b < 0:
        return
    eps, root = tl.load(sizes + b * 2), tl.load(sizes + b * 2 + 1)
    key = per_sample(seed, b, True, SEEDS, False)
    sample = b if ids is None else tl.load(ids + b)
    c0, first, offset, mask = block_span(b, size, Q, ALIGNED)
    s = tl.load(score + first + offset, mask=mask).to(tl.float32)
    z = normals(c0, sample, draw, TAG, key, MODE)
    new = updated(x + first, offset, mask, eps, root, s, z)
    tl.store(out + first + offset, new, mask=mask)


def langevin_step(x, score, gain, seed, sample_ids, draw, tag, batch_mean):
    """The operator `undiffuse::langevin_step` on a GPU (or in the interpreter)."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    x, score, gain, seed, sample_ids = packed(x, score, gain, seed, sample_ids)
    if not x.numel():
        return out
    batch, size = x.shape[0], x[0].numel()
    common = {
        "TAG": tag,
        "MODE": noise_mode(),
        "SEEDS": int(seed.numel() > 1),
        "ALIGNED": size % 4 == 0,
        **launch_options(),
    }
    gains = int(gain.numel() > 1)
    quads = -(-size // 4)
    with dispatch.device_guard(x):
        if size <= ONE_LAUNCH and not batch_mean:
            q = triton.next_power_of_2(quads)
            common["num_warps"] = max(1, q // 256 * common["num_warps"])
            small_kernel[(batch,)](
                x, score, out, gain, seed, sample_ids, size, draw, GAINS=gains, Q=q, **common
            )
            return out
        tiles = triton.cdiv(triton.cdiv(quads, TILE), PARTS)
        parts = triton.cdiv(quads, TILE * tiles)
        wide = common | {"num_warps": 4 * common["num_warps"]}
        partial = torch.empty(batch, parts, 2, dtype=torch.float32, device=x.device)
        rows = (min(batch, GRID_Y), triton.cdiv(batch, GRID_Y))
        norm_kernel[(parts, *rows)](
            score, partial, seed, sample_ids, batch, size, draw, tiles, parts, Q=TILE, **wide
        )
        if batch_mean:
            partial = partial.sum(1).sqrt().mean(0).square()
            parts = 1
        sizes = torch.empty(batch, 2, dtype=torch.float32, device=x.device)
        size_kernel[(batch,)](
            partial,
            gain,
            sizes,
            parts,
            GAINS=gains,
            PARTIALS=int(not batch_mean),
            BLOCK=triton.next_power_of_2(parts),
            **launch_options(),
        )
        update_kernel[(triton.cdiv(quads, QUADS), *rows)](
            x, score, out, sizes, seed, sample_ids, batch, size, draw, Q=QUADS, **common
        )
    return out
