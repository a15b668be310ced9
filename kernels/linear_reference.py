"""The fused step: one row of a solver's table, applied to a batch in a single launch.

Table row: skip, w0, w1, c_in, then K state, H data and M noise coefficients.

    D  = skip x + w0 out0 + w1 out1            (clamped to `clip` if given; Inf turns NaN)
    x' = sum_k A_k x_{i-k} + sum_h B_h D_{i-h} + sum_m C_m z_m
    x_in = c_in x'                             (cast to `next_dtype`)

The coefficients may differ from element to element of a sample (a spectral table): then the table
has a third dimension, as long as a sample.

A learned variance v scales the first noise by 2^(R (v + 1)/2), R the table's last column.

Sums run from left to right in this order; each product and each sum is rounded on its own, in
float32 (float64 if x is float64), so every path gives the same bits. An earlier state, an earlier
data prediction or a noise whose coefficient is exactly 0 does not take part, whatever its memory
holds; x and the network's outputs always do, so that their NaNs show.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import philox

SKIP, W0, W1, C_IN, HEAD = 0, 1, 2, 3, 4  # columns of the table; HEAD is where the states begin

Coefficient = float | Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Arithmetic is float64 for float64 states and float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def coefficients(
    table: Tensor, row: Tensor, shape: Sequence[int], dtype: torch.dtype, on_host: bool
) -> list[Coefficient]:
    """The row's columns for x of this shape: floats for one row in host memory, else tensors
    [B or 1, 1, ...], or [B or 1, ...] of a sample's shape for a table with three dimensions."""
    rows = table.index_select(0, row)
    if on_host and row.numel() == 1 and table.dim() == 2 and table.device.type == "cpu":
        return list(rows[0].tolist())  # reads host memory: no scalar is fetched from a device
    each = shape[1:] if table.dim() == 3 else [1] * (len(shape) - 1)
    return list(rows.to(dtype).reshape(-1, rows.shape[1], *each).unbind(1))


def present(c: Coefficient, v: Tensor) -> Tensor | None:
    """c v, where an entry of v whose coefficient is 0 counts as 0 (None if all of them do)."""
    if isinstance(c, float):
        return v * c if c != 0.0 else None
    return torch.where(c != 0, v, 0.0) * c


def total(terms: Sequence[Tensor | None]) -> Tensor:
    """Sum from left to right, in the memory of the first term (a tracer's is not written to)."""
    first, *rest = [t for t in terms if t is not None]
    for term in rest:
        first = first.add_(term) if type(first) is Tensor else first + term
    return first


def spread(variance: Tensor, ratio: Coefficient) -> Tensor:
    """2^(R (v + 1)/2): from the smallest standard deviation at v = -1 to the largest at v = 1."""
    return torch.exp2((variance * 0.5 + 0.5) * ratio)


def data_prediction(
    x: Tensor, outs: Sequence[Tensor], c: Sequence[Coefficient], limits: tuple[float, float] | None
) -> Tensor:
    """D = skip x + w0 out0 + w1 out1, clamped; all operands are in the compute dtype."""
    if len(outs) == 1 and isinstance(c[W0], float) and (c[SKIP], c[W0]) == (0.0, 1.0):
        data = outs[0]
    else:
        data = total([present(c[SKIP], x), *(o * c[W0 + j] for j, o in enumerate(outs))])
    # 0 D is NaN where D is infinite: clamping must not hide a network that failed
    return data if limits is None else data.clamp(*limits) + 0.0 * data


def reference(
    x: Tensor,
    outs: Sequence[Tensor],
    states: Sequence[Tensor],
    data: Sequence[Tensor],
    variance: Tensor | None,
    table: Tensor,
    row: Tensor,
    draws: Tensor | None,
    seed: Tensor | None,
    sample_ids: Tensor | None,
    tag: int,
    keep_data: bool,
    next_dtype: torch.dtype | None,
    limits: Sequence[float] | None,
    on_host: bool = True,
) -> list[Tensor]:
    """[x'] then [D] if keep_data, then [x_in] if next_dtype; shapes and dtypes as `linear_step`.

    on_host: False leaves the table's numbers in tensors, as a tracer needs them.
    """
    dtype = compute_dtype(x)
    xs, ds, os = ([v.to(dtype).contiguous() for v in vs] for vs in ((x, *states), data, outs))
    c = coefficients(table, row, x.shape, dtype, on_host)
    d = data_prediction(xs[0], os, c, None if limits is None else (limits[0], limits[1]))
    data0 = HEAD + len(xs)
    noise0 = data0 + 1 + len(ds)
    terms: list[Tensor | None] = [xs[0] * c[HEAD]]
    terms += [present(c[HEAD + k], v) for k, v in enumerate(xs[1:], 1)]
    terms.append(d * c[data0])
    terms += [present(c[data0 + 1 + h], v) for h, v in enumerate(ds)]
    if draws is not None and seed is not None:
        drawn = draws.index_select(0, row)
        for m in range(drawn.shape[1]):
            scale = c[noise0 + m]
            if isinstance(scale, Tensor) or scale != 0.0:
                streams = philox.stream_table(len(x), seed, sample_ids, drawn[:, m], tag)
                z = philox.draw("normal", math.prod(x.shape[1:]), streams).view(x.shape)
                z = z.to(dtype) * scale
                if variance is not None and m == 0:
                    z = z * spread(variance.to(dtype), c[-1])
                terms.append(z)
    new = total(terms)
    result = [new.to(x.dtype)]
    if keep_data:
        result.append((d.clone() if d is outs[0] else d).to(x.dtype))
    if next_dtype is not None:
        result.append((new * c[C_IN]).to(next_dtype))
    return result


def fake(x: Tensor, *others: Any) -> list[Tensor]:
    """What `reference` returns, without its numbers."""
    keep_data, next_dtype, _ = others[-3:]
    result = [torch.empty_like(x, memory_format=torch.contiguous_format)]
    if keep_data:
        result.append(torch.empty_like(result[0]))
    if next_dtype is not None:
        result.append(torch.empty_like(result[0], dtype=next_dtype))
    return result
