"""Exponential embedded pairs for `adaptive_ode`: DPM-Solver-12 and -23, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.shapes import column
from ..flow import ScaledFlow
from ..tables.butcher import Matrix
from .pairs import Embedded


@dataclass(frozen=True)
class ExponentialPair(Embedded):
    """DPM-Solver-12 (order 2) and DPM-Solver-23 (order 3), adaptive (Lu et al. 2022, appendix C).

    For the probability flow of y = x/alpha over t = lambda; the field returns P, and over a step h

        form 'noise'  P = eps, dy/dlambda = -e^{-lambda} P, a = 1,     b_1 = -e^{-lambda'} (e^h - 1)
        form 'data'   P = D,   dy/dlambda = P - y,          a = e^-h,  b_1 = 1 - e^{-h}
        order 1  y' = a y + b_1 P_0                                             (embedded in 2)
        order 2  y' = a y + b_1 P_0 + b_1/(2r) (P_1 - P_0)                      (embedded in 3)
        order 3  y' = a y + b_1 P_0 + 3/2 b_2 (P_2 - P_0)

    with b_2 = b_1/h + e^{-lambda'} or 1 - b_1/h, as in `SingleStep`; the middle calls are at
    r = 1/2, or at 1/3 and 2/3. The call at the step's end is the next step's first, so an attempt
    makes `order` calls. Between steps it is the cubic through both ends and slopes.
    Raises ValueError for another order or form.
    """

    order: int = 3
    form: str = "noise"

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise InvalidValue(f"order must be 2 or 3; got {self.order}")
        if self.form not in ("noise", "data"):
            raise InvalidValue(f"form must be 'noise' or 'data'; got {self.form!r}")

    @property
    def c(self) -> Matrix:
        return np.array([0.0, 0.5, 1.0] if self.order == 2 else [0.0, 1 / 3, 2 / 3, 1.0])

    def rule(self, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b_1 and b_2 from t to t + h, float64 [n]."""
        if self.form == "data":
            b1 = -torch.expm1(-h)
            return torch.exp(-h), b1, 1 - b1 / h
        end = torch.exp(-(t + h))
        b1 = -end * torch.expm1(h)
        return torch.ones_like(h), b1, b1 / h + end

    def state(self, i: int, t: Tensor, x: Tensor, h: Tensor, stages: list[Tensor]) -> Tensor:
        a, b1, b2 = self.rule(t, h * float(self.c[i]))
        y = column(a, x) * x + column(b1, x) * stages[0]
        if i == 1:
            return y
        # the share of the latest call, and what its difference from the first weighs
        lean = b1 if self.order == 2 else 2 * b2 if i == 2 else 1.5 * b2
        return y + column(lean, x) * (stages[i - 1] - stages[0])

    def defect(self, t: Tensor, h: Tensor, stages: list[Tensor]) -> Tensor:
        _, b1, b2 = self.rule(t, h)
        one = stages[1] - stages[0]
        if self.order == 2:
            return column(b1, one) * one
        return column(1.5 * b2, one) * (stages[2] - stages[0]) - column(1.5 * b1, one) * one

    def slope(self, t: Tensor, x: Tensor, k: Tensor) -> Tensor:
        return k - x if self.form == "data" else -column(torch.exp(-t), x) * k

    def piece(
        self, t: Tensor, x: Tensor, end: Tensor, h: Tensor, stages: list[Tensor]
    ) -> list[Tensor]:
        first = column(h, x) * self.slope(t, x, stages[0])
        last = column(h, x) * self.slope(t + h, end, stages[-1])
        rise = end - x
        return [x, first, 3 * rise - 2 * first - last, first + last - 2 * rise]

    def field(self, flow: ScaledFlow) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """P of the flow's model at y = x/alpha."""

        def noise(lam: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            return -column(torch.exp(lam), y) * flow.residual(y, lam, rows)

        def data(lam: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            return y + flow.residual(y, lam, rows)

        return noise if self.form == "noise" else data


EXPONENTIAL: dict[str, ExponentialPair] = {
    "dpm-solver-12": ExponentialPair(2),
    "dpm-solver-23": ExponentialPair(3),
    "dpmpp-12": ExponentialPair(2, "data"),
    "dpmpp-23": ExponentialPair(3, "data"),
}
"""Exponential pairs by name."""
