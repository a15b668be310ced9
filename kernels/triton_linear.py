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
def column(columns, j, stride, there):
    """Column j of the table: a scalar; [Q, 1] where rows differ in a tile; [Q, 4] per element."""
    if there is None:
        value = tl.load(columns + j * stride)
    else:
        value = tl.load(columns + j * stride, mask=there, other=0.0)
    return value


@triton.jit
def nonzero(c):
    """c != 0 as a tile: the interpreter mistypes the comparison of a scalar when it broadcasts."""
    return (c + tl.zeros((1, 1), tl.float32)) != 0.0


@triton.jit
def taken(pointer, offset, mask, c, EACH: tl.constexpr):
    """c v in float32, 0 where c is, whatever the memory holds; it is not even read where a whole
    row's c is 0 (a mask that differs inside a row would break its loads apart)."""
    if EACH:
        v = tl.load(pointer + offset, mask=mask, other=0.0).to(tl.float32)
        v = tl.where(c != 0.0, v, 0.0)
    else:
        v = tl.load(pointer + offset, mask=mask & nonzero(c), other=0.0).to(tl.float32)
    return c * v


@triton.jit(do_not_specialize=["size", "quads", "total", "low", "high", "length"])
def linear_kernel(
    x,
    outs,
    states,
    data,
    variance,
    table,
    row,
    draws,
    seed,
    ids,
    results,
    size,
    quads,
    total,
    low,
    high,
    length,
    COLUMNS: tl.constexpr,
    EACH: tl.constexpr,
    ROWS: tl.constexpr,
    DRAWS: tl.constexpr,
    TAG: tl.constexpr,
    KEEP: tl.constexpr,
    CLIP: tl.constexpr,
    MODE: tl.constexpr,
    SEEDS: tl.constexpr,
    Q: tl.constexpr,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    b, c0, offset, mask, inside = tile(size, quads, Q, FLAT, ALIGNED, total)
    index = per_sample(row, b, inside, ROWS, FLAT)
    known = (index >= 0) & (index < length)  # of another row nothing is read, and x' is NaN
    index = tl.where(known, index, 0)
    columns, stride, there = table + index * COLUMNS, 1, None
    if FLAT and ROWS:
        columns, there = columns[:, None], inside[:, None]
    if EACH:  # a coefficient for each element of a sample
        stride = quads.to(tl.int64) * 4 if ALIGNED else size.to(tl.int64)
        first = (index * COLUMNS * stride)[:, None] if FLAT and ROWS else index * COLUMNS * stride
        element = (c0.to(tl.int64) * 4)[:, None] + tl.arange(0, 4)[None, :]
        columns, there = table + first + element, mask

    v = tl.load(x + offset, mask=mask).to(tl.float32)
    d = column(columns, 0, stride, there) * v
    for j in tl.static_range(len(outs)):
        w = column(columns, 1 + j, stride, there)
        d += w * tl.load(outs[j] + offset, mask=mask).to(tl.float32)
    if CLIP:
        clamped = tl.minimum(tl.maximum(d, low), high)
        d = clamped + d * 0.0  # NaN where D is NaN or infinite: clamping must not hide a failure

    known = known[:, None] if FLAT and ROWS else known
    new = tl.where(known, column(columns, HEAD, stride, there), float("nan")) * v
    for k in tl.static_range(len(states)):
        c = column(columns, HEAD + 1 + k, stride, there)
        new += taken(states[k], offset, mask, c, EACH)
    new += column(columns, HEAD + 1 + len(states), stride, there) * d
    for h in tl.static_range(len(data)):
        c = column(columns, HEAD + 2 + len(states) + h, stride, there)
        new += taken(data[h], offset, mask, c, EACH)
    if DRAWS > 0:
        key = per_sample(seed, b, inside, SEEDS, FLAT)
        sample = b.to(tl.int64) if ids is None else per_sample(ids, b, inside, 1, FLAT)
        for m in tl.static_range(DRAWS):
            c = column(columns, HEAD + 2 + len(states) + len(data) + m, stride, there)
            if FLAT and ROWS:
                draw = tl.load(draws + index * DRAWS + m, mask=inside, other=0)
            else:
                draw = tl.load(draws + index * DRAWS + m)
            z = c * normals(c0, sample, draw, TAG, key, MODE)
            if m == 0 and variance is not None:
                v = tl.load(variance + offset, mask=mask).to(tl.float32)
                ratio = column(columns, COLUMNS - 1, stride, there)
                z = z * tl.exp2((v * 0.5 + 0.5) * ratio)
            new += z

    tl.store(results[0] + offset, new, mask=mask)
    if KEEP:
        tl.store(results[1] + offset, d, mask=mask)
    if len(results) > 1 + KEEP:
        x_in = new * column(columns, C_IN, stride, there)
        tl.store(results[1 + KEEP] + offset, x_in, mask=mask)


def linear_step(
    x,
    outs,
    states,
    data,
    variance,
    table,
    row,
    draws,
    seed,
    sample_ids,
    tag,
    keep_data,
    next_dtype,
    limits,
):
    """The operator `undiffuse::linear_step` on a GPU (or in the interpreter)."""
    results = [torch.empty_like(x, memory_format=torch.contiguous_format)]
    if keep_data:
        results.append(torch.empty_like(results[0]))
    if next_dtype is not None:
        results.append(torch.empty_like(results[0], dtype=next_dtype))
    if not x.numel():
        return results
    each = table.dim() == 3
    tensors = 1 + len(outs) + len(states) + len(data) + len(results) + each * table.shape[1]
    block = block_of(x.shape[0], x[0].numel(), tensors)
    low, high = limits or (0.0, 0.0)
    operands = (packed(*group) for group in (outs, states, data))
    x, variance, table, row, draws, seed, sample_ids = packed(
        x, variance, table, row, draws, seed, sample_ids
    )
    with dispatch.device_guard(x):
        linear_kernel[block.grid](
            x,
            *operands,
            variance,
            table,
            row,
            draws,
            seed,
            sample_ids,
            tuple(results),
            x[0].numel(),
            block.quads,
            block.total,
            float(low),
            float(high),
            len(table),
            COLUMNS=table.shape[1],
            EACH=each,
            ROWS=int(row.numel() > 1),
            DRAWS=0 if draws is None else draws.shape[1],
            TAG=tag,
            KEEP=keep_data,
            CLIP=limits is not None,
            MODE=noise_mode(),
            SEEDS=int(seed is not None and seed.numel() > 1),
            **block.switches,
            **launch_options(),
        )
    return results
