# mypy: ignore-errors
# (triton's language is compiled from the source of these functions, not typed Python)
"""The Triton twin of linear_reference.py: one launch for a table row, its noise drawn on chip."""

import torch
import triton
import triton.language as tl

from . import dispatch
from .linear_reference import C_IN as _C_IN
from .linear_reference import HEAD as _HEAD
from .triton_launch import block_of, launch_options, noise_mode, packed
from .triton_noise import normals, per_sample, tile

C_IN = tl.constexpr(_C_IN)
HEAD = tl.constexpr(_HEAD)


@triton.jit
def column(table, at, j, inside, ROWS: tl.constexpr, FLAT: tl.constexpr):
    """Column j of the row(s) beginning at `at`: a scalar, or [Q, 1] when rows differ in a tile."""
    if FLAT and ROWS:
        value = tl.load(table + at + j, mask=inside, other=0.0)[:, None]
    else:
        value = tl.load(table + at + j)
    return value


@triton.jit
def nonzero(c):
    """c != 0 as a tile: the interpreter mistypes the comparison of a scalar when it broadcasts."""
    return (c + tl.zeros((1, 1), tl.float32)) != 0.0


@triton.jit
def taken(pointer, offset, mask, c):
    """c v in float32; where c is 0 the memory is not even read."""
    return c * tl.load(pointer + offset, mask=mask & nonzero(c), other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["size", "quads", "total", "low", "high"])
def linear_kernel(
    x, outs, states, data, variance, table, row, draws, seed, ids, results, size, quads, total, low, high,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, DRAWS: tl.constexpr, TAG: tl.constexpr,
    KEEP: tl.constexpr, CLIP: tl.constexpr, MODE: tl.constexpr, SEEDS: tl.constexpr,
    Q: tl.constexpr, FLAT: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    b, c0, offset, mask, inside = tile(size, quads, Q, FLAT, ALIGNED, total)
    index = per_sample(row, b, inside, ROWS, FLAT)
    at = index * COLUMNS

    v = tl.load(x + offset, mask=mask).to(tl.float32)
    d = column(table, at, 0, inside, ROWS, FLAT) * v
    for j in tl.static_range(len(outs)):
        w = column(table, at, 1 + j, inside, ROWS, FLAT)
        d += w * tl.load(outs[j] + offset, mask=mask).to(tl.float32)
    if CLIP:
        clamped = tl.minimum(tl.maximum(d, low), high)
        d = clamped + d * 0.0  # NaN where D is NaN or infinite: clamping must not hide a failure

    new = column(table, at, HEAD, inside, ROWS, FLAT) * v
    for k in tl.static_range(len(states)):
        c = column(table, at, HEAD + 1 + k, inside, ROWS, FLAT)
        new += taken(states[k], offset, mask, c)
    new += column(table, at, HEAD + 1 + len(states), inside, ROWS, FLAT) * d
    for h in tl.static_range(len(data)):
        c = column(table, at, HEAD + 2 + len(states) + h, inside, ROWS, FLAT)
        new += taken(data[h], offset, mask, c)
    if DRAWS > 0:
        key = per_sample(seed, b, inside, SEEDS, FLAT)
        sample = b.to(tl.int64) if ids is None else per_sample(ids, b, inside, 1, FLAT)
        for m in tl.static_range(DRAWS):
            c = column(table, at, HEAD + 2 + len(states) + len(data) + m, inside, ROWS, FLAT)
            if FLAT and ROWS:
                draw = tl.load(draws + index * DRAWS + m, mask=inside, other=0)
            else:
                draw = tl.load(draws + index * DRAWS + m)
            z = c * normals(c0, sample, draw, TAG, key, MODE)
            if m == 0 and variance is not None:
                v = tl.load(variance + offset, mask=mask).to(tl.float32)
                ratio = column(table, at, COLUMNS - 1, inside, ROWS, FLAT)
                z = z * tl.exp2((v * 0.5 + 0.5) * ratio)
            new += z

    tl.store(results[0] + offset, new, mask=mask)
    if KEEP:
        tl.store(results[1] + offset, d, mask=mask)
    if len(results) > 1 + KEEP:
        x_in = new * column(table, at, C_IN, inside, ROWS, FLAT)
        tl.store(results[1 + KEEP] + offset, x_in, mask=mask)


def linear_step(
    x, outs, states, data, variance, table, row, draws, seed, sample_ids, tag, keep_data,
    next_dtype, limits,
):  # fmt: skip
    """The operator `undiffuse::linear_step` on a GPU (or in the interpreter)."""
    results = [torch.empty_like(x, memory_format=torch.contiguous_format)]
    if keep_data:
        results.append(torch.empty_like(results[0]))
    if next_dtype is not None:
        results.append(torch.empty_like(results[0], dtype=next_dtype))
    if not x.numel():
        return results
    tensors = 1 + len(outs) + len(states) + len(data) + len(results)
    block = block_of(x.shape[0], x[0].numel(), tensors)
    low, high = limits or (0.0, 0.0)
    operands = (packed(*group) for group in (outs, states, data))
    x, variance, table, row, draws, seed, sample_ids = packed(
        x, variance, table, row, draws, seed, sample_ids
    )
    with dispatch.device_guard(x):
        linear_kernel[block.grid](
            x, *operands, variance, table, row, draws, seed, sample_ids, tuple(results),
            x[0].numel(), block.quads, block.total, float(low), float(high),
            COLUMNS=table.shape[1], ROWS=int(row.numel() > 1),
            DRAWS=0 if draws is None else draws.shape[1], TAG=tag, KEEP=keep_data,
            CLIP=limits is not None, MODE=noise_mode(),
            SEEDS=int(seed is not None and seed.numel() > 1),
            **block.switches, **launch_options(),
        )  # fmt: skip
    return results
