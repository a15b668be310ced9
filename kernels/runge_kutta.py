"""A Runge-Kutta stage or step, with the scaled norm of its embedded error, in one launch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch
from .checks import as_numbers, check_device, check_operands, check_vector, sent
from .errors import InvalidType, InvalidValue
from .linear_reference import compute_dtype, present, total
from .shapes import wide

BLOCK = 1024


class RungeKuttaStep(NamedTuple):
    """The new state [B, ...] and the error norm [B] (None without error weights)."""

    x: Tensor
    error: Tensor | None


def _reference(
    x: Tensor, stages: Sequence[Tensor], weights: Tensor, dt: Tensor, rtol: float, atol: float
) -> list[Tensor]:
    """[y] for weights [1, S]; [y, error norm [B]] for weights [2, S]; dt [1] or [B]."""
    dtype = compute_dtype(x)
    state, h = x.to(dtype), dt.view(-1, *[1] * (x.dim() - 1))
    sums = []
    # in host memory the weights are read there, and zeros cost nothing
    rows = weights.tolist() if weights.device.type == "cpu" else [r.unbind(0) for r in weights]
    for row in rows:
        terms = [present(w, k.to(dtype)) for w, k in zip(row, stages, strict=True)]
        used = [v for v in terms if v is not None]
        sums.append(h * total(used) if used else torch.zeros_like(state))
    new = state + sums[0]
    if len(sums) == 1:
        return [new.to(x.dtype)]
    scale = torch.maximum(state.abs(), new.abs()) * rtol + atol
    return [new.to(x.dtype), rms(sums[1] / scale).to(dtype)]


def rms(e: Tensor) -> Tensor:
    """Root mean square over all but the first axis, [B], in float64 where the device has it.

    It is summed in blocks of fixed size: a row's sum is the same whatever the number of rows.
    """
    square = e.to(wide(e)).flatten(1).square()
    d = square.shape[1]
    if d > BLOCK:
        square = torch.nn.functional.pad(square, (0, -d % BLOCK)).reshape(len(e), -1, BLOCK).sum(2)
    return (square.sum(1) / d).sqrt()


def _fake(
    x: Tensor, stages: Sequence[Tensor], weights: Tensor, dt: Tensor, rtol: float, atol: float
) -> list[Tensor]:
    new = torch.empty_like(x, memory_format=torch.contiguous_format)
    if weights.shape[0] == 1:
        return [new]
    return [new, x.new_empty(x.shape[0], dtype=compute_dtype(x))]


def _check(
    x: Tensor, stages: Sequence[Tensor], weights: Tensor, dt: Tensor, rtol: float, atol: float
) -> None:
    check_operands(x, stages=stages)
    if weights.dim() != 2 or len(weights) not in (1, 2) or weights.shape[1] != len(stages):
        raise InvalidValue(
            f"weights and error must have one number per stage, {len(stages)}; got "
            f"{list(weights.shape[1:])}"
        )
    if weights.dtype != compute_dtype(x):
        raise InvalidType(f"weights must be {compute_dtype(x)}; got {weights.dtype}")
    check_device("weights", weights, x.device)
    check_vector("dt", dt, compute_dtype(x), x.shape[0], x)


_runge_kutta = dispatch.define(
    "runge_kutta_step",
    "(Tensor x, Tensor[] stages, Tensor weights, Tensor dt, float rtol, float atol) -> Tensor[]",
    reference=_reference,
    triton="triton_runge_kutta:runge_kutta_step",
    fake=_fake,
    check=_check,
)


def runge_kutta_step(
    x: Tensor,
    stages: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    dt: float | Tensor,
    *,
    error: Sequence[float] | Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> RungeKuttaStep:
    """x' = x + dt sum_i b_i k_i, and its error sqrt(mean((err / scale)^2)) of each sample.

    Here err = dt sum_i e_i k_i and scale = atol + rtol max(|x|, |x'|); the mean is over the
    elements of one sample. Arithmetic is float32 (float64 for float64 x). No gradient flows.

    x: [B, ...], floating.
    stages: the k_i, S tensors like x. One whose weights are all 0 is not read.
    weights: b, S numbers or a tensor [S].
    dt: a number or a tensor [B].
    error: e, as weights; None: no error is found.
    rtol, atol: tolerances of the norm.
    Returns x' in x's dtype and the error's norm [B]. Raises ValueError if the numbers of weights
    and stages differ.
    Hairer, Norsett & Wanner, "Solving ODEs I", II.4, eq. 4.11.
    """
    check_operands(x, stages=stages)
    if not stages:
        raise InvalidValue("stages must hold at least one tensor; got none")
    rows = {"weights": weights} if error is None else {"weights": weights, "error": error}
    for name, row in rows.items():
        if len(row) != len(stages):
            raise InvalidValue(f"{name} must have one number per stage, {len(stages)}; got {row}")
    table = torch.stack(as_numbers(len(stages), **rows))
    if error is not None:
        for name, bound in (("rtol", rtol), ("atol", atol)):
            if not 0 <= bound < math.inf:
                raise InvalidValue(f"{name} must be a number >= 0; got {bound!r}")
        if rtol == atol == 0:
            raise InvalidValue("one of rtol and atol must be > 0; got 0 and 0")
    dtype = compute_dtype(x)
    (h,) = as_numbers(x.shape[0], dt=dt)
    result: list[Tensor] = _runge_kutta(
        x, list(stages), sent(table, x.device, dtype), sent(h, x.device, dtype), rtol, atol
    )
    return RungeKuttaStep(result[0], result[1] if error is not None else None)
