"""Explicit multistep methods: Adams-Bashforth in three forms of the prediction and four clocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.errors import InvalidValue
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .multistep_engine import CLOCKS, FORMS, Weights, body, multistep, weights


@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth with the exact weights of the grid at hand; each step integrates

        x_t = a x_s + int_s^t m(lambda) P(lambda) dlambda

    with P the polynomial in `clock` through the last `points` predictions (see `multistep`).
    form, clock: 'noise', 'sigma' is LMS (k-diffusion) and the rho-AB of DEIS; 'noise', 'lambda'
    is DEIS in log rho and multistep DPM-Solver (Zhang & Chen 2023, 15; Lu et al. 2022); 'noise',
    't' is DEIS's t-AB; 'data', 'lambda' the exponential method DPM-Solver++ stands on; 'velocity',
    'flow' is Adams-Bashforth on x/(alpha + sigma), regular also at alpha = 0.
    The first steps use the points there are. Order: points.
    Raises ValueError for an unknown form or clock, or points outside 1..6.
    """

    points: int = 3
    form: str = "noise"
    clock: str = "lambda"
    name: str = "adams"

    def __post_init__(self) -> None:
        check_points(self.points)
        if self.form not in FORMS:
            raise InvalidValue(f"form must be one of {', '.join(FORMS)}; got {self.form!r}")
        if self.clock not in CLOCKS:
            raise InvalidValue(f"clock must be one of {', '.join(CLOCKS)}; got {self.clock!r}")

    @property
    def order(self) -> float:
        return float(self.points)

    @property
    def weak_order(self) -> float:
        return float(self.points)

    def rows(self, path: Path) -> Tableau:
        rule = weights(body(path), self.points, self.form, self.clock)
        return multistep(
            f"{self.name}-{self.points}", path, self.form, rule,
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


FIXED = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights for equal steps."""


@dataclass(frozen=True)
class IPNDM(Solver):
    """Improved PNDM: Adams-Bashforth on sigma/alpha with the weights of equal steps, whatever the
    grid (Liu et al. 2022, 12, with lower-order first steps; Zhang & Chen 2023, iPNDM).

        x_t/alpha_t = x_s/alpha_s + (sigma_t/alpha_t - sigma_s/alpha_s) sum_h w_h eps_{i-h}

    Order `points` where sigma/alpha falls in equal steps; on other smooth grids the weights are
    off by O(h) and the order is 2 for every points >= 2. Raises ValueError outside 1..4.
    """

    points: int = 4

    def __post_init__(self) -> None:
        check_points(self.points, 4)

    @property
    def order(self) -> float:
        return float(min(self.points, 2))

    @property
    def weak_order(self) -> float:
        return self.order

    def rows(self, path: Path) -> Tableau:
        inner = body(path)
        n = len(inner.t) - 1
        w = torch.zeros(n, self.points, dtype=torch.float64)
        start = 0 if bool(torch.isfinite(inner.lam[0])) else 1
        for i in range(min(n, start + self.points)):
            row = FIXED[max(0, min(self.points - 1, i - start))]
            w[i:, : len(row)] = torch.tensor(row, dtype=torch.float64)
        one_step = weights(inner, 1, "noise")
        rule = Weights(one_step.carry, one_step.points * w, one_step.noise)
        return multistep(
            f"ipndm-{self.points}", path, "noise", rule,
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


def check_points(points: int, most: int = 6) -> None:
    """Raises ValueError unless 1 <= points <= most."""
    if points != int(points) or not 1 <= points <= most:
        raise InvalidValue(f"points must be a whole number in 1..{most}; got {points}")


SOLVERS: dict[str, Solver] = {
    **{f"lms-{k}": Adams(k, "noise", "sigma", "lms") for k in (2, 3, 4)},
    **{f"deis-{k}": Adams(k, "noise", "lambda", "deis") for k in (2, 3, 4)},
    **{f"deis-tab-{k}": Adams(k, "noise", "t", "deis-tab") for k in (2, 3, 4)},
    **{f"zeab-{k}": Adams(k, "noise", "lambda", "zeab") for k in (2, 3, 4)},
    **{f"xeab-{k}": Adams(k, "data", "lambda", "xeab") for k in (2, 3, 4)},
    **{f"vab-{k}": Adams(k, "velocity", "flow", "vab") for k in (2, 3, 4)},
    **{f"ipndm-{k}": IPNDM(k) for k in (2, 3, 4)},
    **{f"ipndm-v-{k}": Adams(k, "noise", "sigma", "ipndm-v") for k in (2, 3, 4)},
}
