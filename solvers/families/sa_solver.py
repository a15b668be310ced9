"""Multistep solvers of the whole family of SDEs with the flow's marginals: SA-Solver, ER-SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .adams import check_points
from .multistep_engine import body, constant_noise, multistep, weights


@dataclass(frozen=True)
class SASolver(Solver):
    """SA-Solver (Xue et al. 2023, propositions 4.2 and 4.3, algorithm 1; data prediction, PEC).

        x_t = sigma_t/sigma_s e^{-T} x_s + sigma_t sqrt(1 - e^{-2T}) z
              + alpha_t int (1 + tau^2) e^{-(1 + tau^2)(lambda_t - lambda)} D dlambda,  T = tau^2 h

    with D the polynomial through the last `predictor` predictions; once D is known at the step's
    end the step is redone with the polynomial through `corrector` of them, that one included
    (0: no corrector), with the same normal. tau is `tau` in steps that start at a ratio
    sigma/alpha inside `window`, else 0; the marginals are the same for every tau. The default
    window is the authors' 0.2 < t < 0.8 of linear VP. Law: order 2, since D on a noisy path is
    not smooth; for tau = 0 the predictor's order, one more where the corrector has more points.
    Raises ValueError for numbers of points outside 1..4 (0..5), tau < 0 or an empty window.
    """

    predictor: int = 3
    corrector: int = 4
    tau: float = 1.0
    window: tuple[float, float] = (0.72, 25.0)

    def __post_init__(self) -> None:
        check_points(self.predictor, 4)
        if self.corrector:
            check_points(self.corrector, 5)
        if not self.tau >= 0:
            raise InvalidValue(f"tau must be >= 0; got {self.tau}")
        if not 0 <= self.window[0] < self.window[1]:
            raise InvalidValue(f"window must be (low, high) with low < high; got {self.window}")

    @property
    def order(self) -> float:
        return 1.0 if self.tau else self._smooth_order

    @property
    def weak_order(self) -> float:
        return min(2.0, self._smooth_order) if self.tau else self._smooth_order

    @property
    def _smooth_order(self) -> float:
        return float(max(self.predictor, min(self.corrector, self.predictor + 1)))

    def rows(self, path: Path) -> Tableau:
        inner = body(path)
        decay = constant_noise(self.noise_of(inner))
        predict = weights(inner, self.predictor, decay=decay)
        correct = None
        if self.corrector:
            correct = weights(inner, self.corrector - 1, ahead=True, decay=decay)
        return multistep(
            "sa-solver", path, "data", predict, correct,
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip

    def noise_of(self, path: Path) -> Tensor:
        """tau of every step, [n]."""
        ratio = torch.exp(-path.lam[:-1])
        inside = (ratio >= self.window[0]) & (ratio <= self.window[1])
        return self.tau * inside.double()


@dataclass(frozen=True)
class ERSDE(Solver):
    """Extended reverse-time SDE solvers (Cui et al. 2023, 'ER-SDE-Solver').

    In s = sigma/alpha, with a noise scale phi(s) = s (e^{s^0.3} + 10) (their ER-SDE-5),

        x_t = alpha_t/alpha_s phi(s_t)/phi(s_s) x_s + alpha_t int phi(s_t) phi'(s)/phi(s)^2 D ds
              + alpha_t sqrt(s_t^2 - s_s^2 (phi(s_t)/phi(s_s))^2) z

    and D the polynomial in s through the last `points` predictions, integrated exactly (published
    code stops at the first divided difference in D', which costs an order at three points).
    It is the SDE of tau^2 = s phi'/phi - 1. Law: order 2 at most. Raises ValueError outside 1..3.
    """

    points: int = 3

    order: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_points(self.points, 3)

    @property
    def weak_order(self) -> float:
        return float(min(self.points, 2))

    def rows(self, path: Path) -> Tableau:
        rule = weights(body(path), self.points, clock="sigma", decay=er_decay)
        return multistep(
            f"er-sde-{self.points}", path, "data", rule,
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


def er_decay(path: Path, lam: Tensor) -> tuple[Tensor, Tensor]:
    """A = -log phi(s)/phi(s_s) and its slope in lambda."""

    def log_phi(log_s: Tensor) -> Tensor:
        ten = torch.full_like(log_s, math.log(10.0))
        return log_s + torch.logaddexp(torch.exp(0.3 * log_s), ten)

    bent = torch.exp(-0.3 * lam)
    rate = 1 + 0.3 * bent * torch.sigmoid(bent - math.log(10.0))
    return log_phi(-path.lam[:-1, None]) - log_phi(-lam), rate


SOLVERS: dict[str, Solver] = {
    "sa-solver": SASolver(),
    "sa-solver-2": SASolver(2, 2),
    "sa-solver-ode": SASolver(3, 4, tau=0.0),
    **{f"er-sde-{k}": ERSDE(k) for k in (1, 2, 3)},
}
