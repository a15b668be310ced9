"""The fused step: one row of a solver's table, applied to a batch in a single launch.

Table row: skip, w0, w1, c_in, then K state, H data and M noise coefficients.

    D  = skip x + w0 out0 + w1 out1            (clamped to `clip` if given)
    x' = sum_k A_k x_{i-k} + sum_h B_h D_{i-h} + sum_m C_m z_m
    x_in = c_in x'                             (cast to `next_dtype`)

Sums run from left to right in this order; each product and each sum is rounded on its own, in
float32 (float64 if x is float64), so every path gives the same bits. An earlier state, an earlier
data prediction or a noise whose coefficient is exactly 0 does not take part, whatever its memory
holds; x and the network's outputs always do, so that their NaNs show.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch, philox
from .dispatch import as_sample_ids, as_seed, check_batch
from .noise import tag_of

SKIP, W0, W1, C_IN, HEAD = 0, 1, 2, 3, 4  # columns of the table; HEAD is where the states begin

Coefficient = float | Tensor


class LinearStep(NamedTuple):
    """What a step returns: the state x', the data prediction D, the next network input."""

    x: Tensor
    data: Tensor | None
    x_in: Tensor | None


def compute_dtype(x: Tensor) -> torch.dtype:
    """Arithmetic is float64 for float64 states and float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def coefficients(
    table: Tensor, row: Tensor, dim: int, dtype: torch.dtype, on_host: bool
) -> list[Coefficient]:
    """The row's columns: floats for one row in host memory, else tensors [B or 1, 1, ...]."""
    rows = table.index_select(0, row)
    if on_host and row.numel() == 1 and table.device.type == "cpu":
        return list(rows[0].tolist())  # reads host memory: no scalar is fetched from a device
    return list(rows.to(dtype).view(-1, rows.shape[1], *[1] * (dim - 1)).unbind(1))


def present(c: Coefficient, v: Tensor) -> Tensor | None:
    """c v, where an entry of v whose coefficient is 0 counts as 0 (None if all of them do)."""
    if isinstance(c, float):
        return v * c if c != 0.0 else None
    return torch.where(c != 0, v, 0.0) * c


def total(terms: Sequence[Tensor | None]) -> Tensor:
    """Sum from left to right, in the memory of the first term."""
    first, *rest = [t for t in terms if t is not None]
    for term in rest:
        first.add_(term)
    return first


def data_prediction(
    x: Tensor, outs: Sequence[Tensor], c: Sequence[Coefficient], limits: tuple[float, float] | None
) -> Tensor:
    """D = skip x + w0 out0 + w1 out1, clamped; all operands are in the compute dtype."""
    if len(outs) == 1 and isinstance(c[W0], float) and (c[SKIP], c[W0]) == (0.0, 1.0):
        data = outs[0]
    else:
        data = total([present(c[SKIP], x), *(o * c[W0 + j] for j, o in enumerate(outs))])
    return data if limits is None else data.clamp(*limits)


def reference(
    x: Tensor,
    outs: Sequence[Tensor],
    states: Sequence[Tensor],
    data: Sequence[Tensor],
    table: Tensor,
    row: Tensor,
    draws: Tensor | None,
    seed: Tensor | None,
    sample_ids: Tensor | None,
    tag: int,
    keep_data: bool,
    next_dtype: torch.dtype | None,
    limits: Sequence[float] | None,
) -> list[Tensor]:
    """[x'] then [D] if keep_data, then [x_in] if next_dtype; shapes and dtypes as `linear_step`."""
    dtype = compute_dtype(x)
    xs, ds, os = ([v.to(dtype).contiguous() for v in vs] for vs in ((x, *states), data, outs))
    c = coefficients(table, row, x.dim(), dtype, on_host=True)
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
                terms.append(z.to(dtype) * scale)
    new = total(terms)
    result = [new.to(x.dtype)]
    if keep_data:
        result.append((d.clone() if d is outs[0] else d).to(x.dtype))
    if next_dtype is not None:
        result.append((new * c[C_IN]).to(next_dtype))
    return result


def _fake(
    x: Tensor,
    outs: Sequence[Tensor],
    states: Sequence[Tensor],
    data: Sequence[Tensor],
    table: Tensor,
    row: Tensor,
    draws: Tensor | None,
    seed: Tensor | None,
    sample_ids: Tensor | None,
    tag: int,
    keep_data: bool,
    next_dtype: torch.dtype | None,
    limits: Sequence[float] | None,
) -> list[Tensor]:
    result = [torch.empty_like(x, memory_format=torch.contiguous_format)]
    if keep_data:
        result.append(torch.empty_like(result[0]))
    if next_dtype is not None:
        result.append(torch.empty_like(result[0], dtype=next_dtype))
    return result


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, outs, states, data, table, row = inputs[:6]
    ctx.keep_data, ctx.limits, ctx.next = inputs[10], inputs[12], inputs[11] is not None
    ctx.groups = [[v.dtype for v in group] for group in ((x,), outs, states, data)]
    # the step is linear: only the clamp needs to know where it was
    ctx.save_for_backward(table, row, *((x, *outs) if ctx.limits else ()))


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Gradients of x, outs, states and data; table and noise count as constants."""
    table, row, *saved = ctx.saved_tensors
    xs, outs, states, data = ctx.groups
    dtype = torch.float64 if xs[0] == torch.float64 else torch.float32
    known = next(g for g in grads if g is not None)
    g_new, *others = [torch.zeros_like(known) if g is None else g for g in grads]
    c: Any = coefficients(table, row, known.dim(), dtype, on_host=False)
    g = g_new.to(dtype)
    if ctx.next:
        g = g + c[C_IN] * others[-1].to(dtype)
    data0 = HEAD + 1 + len(states)
    g_d = c[data0] * g
    if ctx.keep_data:
        g_d = g_d + others[0].to(dtype)
    if ctx.limits:
        d: Any = data_prediction(saved[0].to(dtype), [o.to(dtype) for o in saved[1:]], c, None)
        g_d = torch.where((d >= ctx.limits[0]) & (d <= ctx.limits[1]), g_d, 0.0)
    g_x = (c[HEAD] * g + c[SKIP] * g_d).to(xs[0])
    g_outs = [(c[W0 + j] * g_d).to(t) for j, t in enumerate(outs)]
    g_states = [(c[HEAD + 1 + k] * g).to(t) for k, t in enumerate(states)]
    g_data = [(c[data0 + 1 + h] * g).to(t) for h, t in enumerate(data)]
    return (g_x, g_outs, g_states, g_data, *[None] * 9)


_linear_step = dispatch.define(
    "linear_step",
    "(Tensor x, Tensor[] outs, Tensor[] states, Tensor[] data, Tensor table, Tensor row, "
    "Tensor? draws, Tensor? seed, Tensor? sample_ids, int tag, bool keep_data, "
    "ScalarType? next_dtype, float[]? limits) -> Tensor[]",
    reference=reference,
    triton="triton_linear:linear_step",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def linear_step(
    x: Tensor,
    out: Tensor | tuple[Tensor, Tensor],
    table: Tensor,
    row: Tensor,
    *,
    states: Sequence[Tensor] = (),
    data: Sequence[Tensor] = (),
    draws: Tensor | None = None,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    keep_data: bool = False,
    next_dtype: torch.dtype | None = None,
    clip: tuple[float, float] | None = None,
    purpose: str = "predictor",
) -> LinearStep:
    """One table row: x' = sum_k A_k x_{i-k} + sum_h B_h D_{i-h} + sum_m C_m z_m.

    D = skip x + w0 out0 + w1 out1, clamped to clip = (low, high) if given; x_in = c_in x'.
    x [B, ...] floating; out: a tensor or a pair (guidance), states (x_{i-1}, ...) and data
    (D_{i-1}, ...): floating, of x's shape and device. table: float32 (float64 for float64 x)
    [rows, 4 + K + H + M] with columns skip, w0, w1, c_in, K = 1 + len(states) of A,
    H = 1 + len(data) of B, M of C. row: int64, one element or [B] (each sample at its own row).
    draws: int64 [rows, M], the draw index of each normal (None: M = 0). seed, sample_ids, purpose:
    as in `normal`.
    Returns (x' in x's dtype, D in x's dtype if keep_data, x_in if next_dtype is given); arithmetic
    is float32 (float64 for float64 x). Differentiable in x, out, states and data.
    Raises ValueError or TypeError for operands that do not fit together.
    """
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    if not 1 <= len(outs) <= 2:
        raise ValueError(f"out must be a tensor or a pair of tensors; got {len(outs)} of them")
    _check_operands(x, outs, states, data)
    columns = HEAD + 2 + len(states) + len(data) + (0 if draws is None else draws.shape[-1])
    _check_table(x, table, row, draws, columns)
    seeds = ids = None
    if draws is not None:
        seeds = as_seed(seed, x.device)
        check_batch("seed", seeds, x.shape[0])
        ids = as_sample_ids(sample_ids, x.shape[0], x.device)
    new, *rest = _linear_step(
        x, outs, states, data, table, row, draws, seeds, ids, tag_of(purpose), keep_data,
        next_dtype, clip,
    )  # fmt: skip
    return LinearStep(
        new, rest[0] if keep_data else None, rest[-1] if next_dtype is not None else None
    )


def _check_operands(
    x: Tensor, outs: Sequence[Tensor], states: Sequence[Tensor], data: Sequence[Tensor]
) -> None:
    if x.dim() < 1 or not x.dtype.is_floating_point:
        raise TypeError(f"x must be floating and [B, ...]; got {x.dtype} {list(x.shape)}")
    for name, group in (("out", outs), ("states", states), ("data", data)):
        for v in group:
            if v.shape != x.shape:
                raise ValueError(
                    f"{name} must have the shape of x, {list(x.shape)}; got {list(v.shape)}"
                )
            if not v.dtype.is_floating_point:
                raise TypeError(f"{name} must be floating; got {v.dtype}")


def _check_table(x: Tensor, table: Tensor, row: Tensor, draws: Tensor | None, columns: int) -> None:
    wanted = compute_dtype(x)
    if table.dtype != wanted:
        raise TypeError(f"table must be {wanted} for x of {x.dtype}; got {table.dtype}")
    if table.dim() != 2 or table.shape[1] != columns:
        raise ValueError(
            f"table must be [rows, {columns}] = skip, w0, w1, c_in and one column per state, data "
            f"prediction and noise; got {list(table.shape)}"
        )
    if row.dtype != torch.int64:
        raise TypeError(f"row must be int64; got {row.dtype}")
    check_batch("row", row, x.shape[0])
    if draws is not None and (draws.dtype != torch.int64 or len(draws) != len(table)):
        raise ValueError(
            f"draws must be int64 [{len(table)}, M], a row for each of the table's; got "
            f"{draws.dtype} {list(draws.shape)}"
        )
