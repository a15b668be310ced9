"""The fused step as one operator: its public wrapper, its gradient and its native CPU path.

linear_reference.py is the formula, triton_linear.py and native.c are its twins.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch, native
from .buffers import WORTH, Spare
from .checks import (
    as_sample_ids,
    as_seed,
    check_float,
    check_limits,
    check_operands,
    check_streams,
    check_table,
)
from .errors import InvalidType, InvalidValue
from .linear_reference import (
    C_IN,
    HEAD,
    SKIP,
    W0,
    coefficients,
    data_prediction,
    fake,
    reference,
)
from .streams import tag_of

_empty_like: Any = torch.empty_like  # of contiguous tensors


class LinearStep(NamedTuple):
    """What a step returns.

    x: the state x'.
    data: the data prediction D; None unless it was asked for.
    x_in: the next network input; None unless it was asked for.
    """

    x: Tensor
    data: Tensor | None
    x_in: Tensor | None


def _native(
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
    spare: Spare | None = None,
) -> list[Tensor] | None:
    """The step by native.c, or None where an operand is not float32 or the library not built."""
    if variance is not None or next_dtype not in (None, torch.float32) or not x.numel():
        return None
    if table.dim() == 3:  # coefficients of each element: PyTorch's loops
        return None
    inputs, single = [], torch.float32
    for v in (x, *outs, *states, *data):
        if v.dtype is not single:
            return None
        inputs.append(v if v.is_contiguous() else v.contiguous())
    library = native.library(x.numel() * (1 if draws is not None else 0))
    if library is None:
        return None
    like = inputs[0]
    fresh = _empty_like if spare is None or like.numel() < WORTH else spare.like
    new = fresh(like)
    d = fresh(like) if keep_data else None
    x_in = fresh(like) if next_dtype is not None else None
    native.linear(
        library,
        inputs,
        (new, d, x_in),
        (len(outs), len(states), len(data)),
        table.contiguous(),
        row.contiguous(),
        None if draws is None else draws.contiguous(),
        None if seed is None else seed.contiguous(),
        None if sample_ids is None else sample_ids.contiguous(),
        tag,
        limits,
    )
    found = [new]
    if d is not None:
        found.append(d)
    if x_in is not None:
        found.append(x_in)
    return found


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, outs, states, data, _, table, row = inputs[:7]
    ctx.keep_data, ctx.limits, ctx.next = inputs[11], inputs[13], inputs[12] is not None
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
    c: Any = coefficients(table, row, known.shape, dtype, on_host=False)
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
    return (g_x, g_outs, g_states, g_data, *[None] * 10)


def _check(
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
) -> None:
    if not 1 <= len(outs) <= 2:
        raise InvalidValue(f"out must be a tensor or a pair of tensors; got {len(outs)} of them")
    learned = () if variance is None else (variance,)
    check_operands(x, out=outs, states=states, data=data, variance=learned)
    noises = 0 if draws is None else draws.shape[-1] if draws.dim() else 1
    if learned and not noises:
        raise InvalidValue("variance scales the first noise, but draws has none")
    columns = HEAD + 2 + len(states) + len(data) + noises + len(learned)
    check_table(x, table, row, draws, columns)
    if draws is not None:
        if seed is None:
            raise InvalidValue("seed must be given where draws are")
        check_streams(x, x.shape[0], seed, sample_ids, tag)
    if limits is not None:
        check_limits(limits)
    if next_dtype is not None:
        check_float("next_dtype", next_dtype)


_linear_step = dispatch.define(
    "linear_step",
    "(Tensor x, Tensor[] outs, Tensor[] states, Tensor[] data, Tensor? variance, Tensor table, "
    "Tensor row, Tensor? draws, Tensor? seed, Tensor? sample_ids, int tag, bool keep_data, "
    "ScalarType? next_dtype, float[]? limits) -> Tensor[]",
    reference=reference,
    triton="triton_linear:linear_step",
    native=_native,
    fake=fake,
    check=_check,
    setup_context=_setup_context,
    backward=_backward,
    decomposition=partial(reference, on_host=False),
)


def linear_step(
    x: Tensor,
    out: Tensor | tuple[Tensor, ...],
    table: Tensor,
    row: Tensor,
    *,
    states: Sequence[Tensor] = (),
    data: Sequence[Tensor] = (),
    variance: Tensor | None = None,
    draws: Tensor | None = None,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    keep_data: bool = False,
    next_dtype: torch.dtype | None = None,
    clip: tuple[float, float] | None = None,
    purpose: str = "predictor",
    subdraw: int = 0,
) -> LinearStep:
    """One table row: x' = sum_k A_k x_{i-k} + sum_h B_h D_{i-h} + sum_m C_m z_m.

    D = skip x + w0 out0 + w1 out1, clamped to clip = (low, high) if given; x_in = c_in x'.

    x: [B, ...], floating.
    out: a tensor or a pair (guidance), of x's shape and device, floating.
    states, data: the past (x_{i-1}, ...) and (D_{i-1}, ...), of x's shape and device, floating.
    table: float32 (float64 for float64 x) [rows, 4 + K + H + M] with columns skip, w0, w1, c_in,
        K = 1 + len(states) of A, H = 1 + len(data) of B, M of C; or [rows, columns, n], where each
        of a sample's n elements has coefficients of its own (a spectral table).
    row: int64, one element or [B] (each sample at its own row).
    draws: int64 [rows, M], the draw index of each normal (None: M = 0).
    seed, sample_ids, purpose, subdraw: as in `normal`.
    variance: a network's v in [-1, 1], of x's shape; then the table has one more, last column R,
        and the first noise is scaled by 2^(R (v + 1)/2).
    Returns (x' in x's dtype, D in x's dtype if keep_data, x_in if next_dtype is given); arithmetic
    is float32 (float64 for float64 x). Differentiable in x, out, states and data;
    table, noise and variance count as constants.
    Raises ValueError or TypeError for operands that do not fit together.
    """
    outs = out if isinstance(out, (tuple, list)) else (out,)
    for name, v in (("x", x), *(("out", v) for v in outs), ("table", table), ("row", row)):
        if not isinstance(v, Tensor):
            raise InvalidType(f"{name} must be a tensor; got {type(v).__name__}")
    limits = None if clip is None else check_limits(clip)
    tag = tag_of(purpose, subdraw)
    seeds = ids = None
    if draws is not None:
        seeds = as_seed(seed, x.device)
        ids = as_sample_ids(sample_ids, x.shape[0], x.device)
    with dispatch.past_autograd(x, *outs, *states, *data):
        new, *rest = _linear_step(
            x,
            outs,
            states,
            data,
            variance,
            table,
            row,
            draws,
            seeds,
            ids,
            tag,
            keep_data,
            next_dtype,
            limits,
        )
    return LinearStep(
        new, rest[0] if keep_data else None, rest[-1] if next_dtype is not None else None
    )


PREDICTOR = tag_of("predictor")
_ON_CPU, _ON_GPU = dispatch.direct(_linear_step)


def trusted_step(
    x: Tensor,
    outs: Sequence[Tensor],
    table: Tensor,
    row: Tensor,
    states: Sequence[Tensor],
    data: Sequence[Tensor],
    draws: Tensor | None,
    seed: Tensor | None,
    sample_ids: Tensor | None,
    keep_data: bool,
    next_dtype: torch.dtype | None,
    clip: tuple[float, float] | None,
    spare: Spare | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`linear_step` of operands that are known to fit together, a plan's: (x', D, x_in).

    Nothing is checked, and what no tracer, transform or gradient has to see goes straight to the
    device's path. The caller vouches for shapes, types, devices and for rows that exist.

    outs: the network's output, or both of a pair.
    seed, sample_ids: int64 [1] or [B] and int64 [B] or None, on x's device; None without draws.
    spare: memory of the run's earlier steps.
    Else as in `linear_step`.
    """
    operands = (
        x,
        outs,
        states,
        data,
        None,
        table,
        row,
        draws,
        seed,
        sample_ids,
        PREDICTOR,
        keep_data,
        next_dtype,
        clip,
    )
    wanted = torch.is_grad_enabled() and any(v.requires_grad for v in (x, *outs, *states, *data))
    if wanted or not dispatch.bare(x, outs[0]):
        with dispatch.past_autograd(x, *outs, *states, *data):
            found = _linear_step(*operands)
    elif x.is_cpu and dispatch.automatic() and (made := _native(*operands, spare)) is not None:
        found = made
    elif x.is_cpu:
        found = _ON_CPU(*operands)
    else:
        found = (_ON_GPU if x.is_cuda else _linear_step)(*operands)
    return (
        found[0],
        found[1] if keep_data else None,
        found[-1] if next_dtype is not None else None,
    )
