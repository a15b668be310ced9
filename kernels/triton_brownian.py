# mypy: ignore-errors
# (triton's language is compiled from the source of these functions, not typed Python)
"""The Triton twin of brownian.py: sum_j c_j z_j with every z_j drawn where it is added."""

import math

import torch
import triton
import triton.language as tl

from . import dispatch
from .triton_launch import block_of, launch_options, noise_mode, packed
from .triton_noise import box_muller, interleave, per_sample, stream_words, tile


@triton.jit(do_not_specialize=["size", "quads", "total", "terms"])
def weighted_kernel(
    out,
    seed,
    ids,
    coefficients,
    draws,
    size,
    quads,
    total,
    terms,
    TAG: tl.constexpr,
    MODE: tl.constexpr,
    SEEDS: tl.constexpr,
    ROWS: tl.constexpr,
    Q: tl.constexpr,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    b, c0, offset, mask, inside = tile(size, quads, Q, FLAT, ALIGNED, total)
    key = per_sample(seed, b, inside, SEEDS, FLAT)
    sample = b.to(tl.int64) if ids is None else per_sample(ids, b, inside, 1, FLAT)
    at = b * terms if ROWS else 0
    # joined lanes carried through a loop would cross shared memory in every round
    zero = (c0 * 0).to(tl.float32)
    s0, s1, s2, s3 = zero, zero, zero, zero
    for j in range(terms):
        if FLAT and ROWS:
            c = tl.load(coefficients + at + j, mask=inside, other=0.0)
            draw = tl.load(draws + at + j, mask=inside, other=0)
        else:
            c = tl.load(coefficients + at + j)
            draw = tl.load(draws + at + j)
        w0, w1, w2, w3 = stream_words(c0, sample, draw, TAG, key)
        z0, z1 = box_muller(w0, w1, MODE)
        z2, z3 = box_muller(w2, w3, MODE)
        s0 += c * z0
        s1 += c * z1
        s2 += c * z2
        s3 += c * z3
    tl.store(out + offset, interleave(s0, s1, s2, s3), mask=mask)


def weighted_noise(seed, sample_ids, shape, coefficients, draws, tag):
    """The operator `undiffuse::weighted_noise` on a GPU (or in the interpreter)."""
    out = torch.empty(list(shape), dtype=torch.float32, device=seed.device)
    if out.numel():
        batch, size = shape[0], math.prod(shape[1:])
        block = block_of(batch, size, 4)  # the four sums live in registers all along
        seed, sample_ids, coefficients, draws = packed(seed, sample_ids, coefficients, draws)
        with dispatch.device_guard(out):
            weighted_kernel[block.grid](
                out,
                seed,
                sample_ids,
                coefficients,
                draws,
                size,
                block.quads,
                block.total,
                draws.shape[1],
                TAG=tag,
                MODE=noise_mode(),
                SEEDS=int(seed.numel() > 1),
                ROWS=int(len(draws) > 1),
                **block.switches,
                **launch_options(),
            )
    return out
