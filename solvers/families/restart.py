"""Schemes that go back up in noise: Restart, and multistep sampling of consistency models."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from ...kernels.errors import InvalidValue
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau, from_rows
from .composed import chain
from .heun import Heun
from .runge_kutta import check_share


@dataclass(frozen=True)
class Restart(Solver):
    """Restart sampling (Xu et al. 2023, algorithm 1): noise up, integrate down again, K times.

        x_up = alpha_up/alpha x + sqrt(sigma_up^2 - (alpha_up/alpha)^2 sigma^2) z

    inner: the deterministic solver of every leg. intervals: (low, high, K) in sigma/alpha; when
    the grid first reaches `low`, noise takes the sample back to the last node at most `high` and
    the grid's own nodes between are stepped through again, K times. An interval that holds fewer
    than two nodes is passed over. The law is the inner solver's, to its order.
    Raises ValueError for a stochastic inner solver or intervals that are not low < high, K >= 1.
    """

    inner: Solver = field(default_factory=Heun)
    intervals: tuple[tuple[float, float, int], ...] = ((0.06, 0.3, 2), (0.5, 2.0, 1))

    def __post_init__(self) -> None:
        for low, high, count in self.intervals:
            if not (0 < low < high and count >= 1):
                raise InvalidValue(
                    f"an interval must be (low, high, K) with 0 < low < high and K >= 1; "
                    f"got {(low, high, count)}"
                )
        if self.inner.stochastic:
            raise InvalidValue(f"inner must be a deterministic solver; got {self.inner}")

    @property
    def order(self) -> float:
        return self.inner.order

    @property
    def weak_order(self) -> float:
        return self.inner.weak_order

    @property
    def stochastic(self) -> bool:
        return True

    def rows(self, path: Path) -> Tableau:
        ratio = torch.exp(-path.lam)
        segments, lifts, at = [], [], 0
        for low, high, count in sorted(self.intervals, reverse=True):
            inside = ((ratio >= low) & (ratio <= high)).nonzero().flatten().tolist()
            if len(inside) < 2 or (top := inside[0]) >= (bottom := inside[-1]) or bottom <= at:
                continue
            segments.append(self._leg(path, at, bottom))
            for _ in range(count):
                lifts.append((bottom, top))
                segments.append(self._leg(path, top, bottom))
            at = bottom
            lifts.append((bottom, bottom))
        if at < len(path.t) - 1:
            segments.append(self._leg(path, at, len(path.t) - 1))
        joined = chain(segments, [self._lift(path, *pair) for pair in lifts])
        return replace(
            joined, grid=path.t, name=f"restart({segments[0].name})",
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip

    def _leg(self, path: Path, a: int, b: int) -> Tableau:
        return self.inner.rows(Path.of(path.process, path.t[a : b + 1]))

    def _lift(self, path: Path, low: int, high: int) -> tuple[float, float]:
        if low == high:
            return 1.0, 0.0
        scale = float(path.alpha[high] / path.alpha[low])
        return scale, math.sqrt(
            float(path.sigma[high]) ** 2 - (scale * float(path.sigma[low])) ** 2
        )


@dataclass(frozen=True)
class Consistency(Solver):
    """Multistep sampling of a consistency model, whose D is the flow's end point, not a mean.

    gamma = 1 is Song et al. 2023, algorithm 1, and LCM: x_s = alpha_s D + sigma_s z. gamma < 1 is
    TCD (Zheng et al. 2024, algorithm 4): denoise to s' of sigma(s')/alpha(s') = (1 - gamma) times
    that of s, then noise up; gamma = 0 is DDIM's step. gamma = 1 is exact in law for an exact
    consistency function at any number of steps; an ordinary denoiser does not converge (order 0).
    Raises ValueError for gamma outside [0, 1].
    """

    gamma: float = 1.0

    order: ClassVar[float] = 0.0
    weak_order: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_share(self.gamma, "gamma")

    def rows(self, path: Path) -> Tableau:
        alpha, sigma = path.alpha[1:], path.sigma[1:]
        kept = (1 - self.gamma) * sigma  # what is still of eps
        ratio = kept / path.sigma[:-1]
        return from_rows(
            "lcm" if self.gamma == 1 else "tcd", path.t, path.t[:-1],
            [ratio], [alpha - ratio * path.alpha[:-1]],
            [torch.sqrt(sigma.square() - kept.square())],
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


SOLVERS: dict[str, Solver] = {
    "restart": Restart(),
    "lcm": Consistency(),
    "tcd": Consistency(0.3),
}
