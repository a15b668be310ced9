"""Schemes that go back up in noise: Restart, RePaint, and sampling of consistency models."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch

from ...kernels.errors import InvalidValue
from ..arguments import whole
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau, from_rows
from .composed import chain, check_part
from .exponential import DDIM
from .heun import Heun
from .runge_kutta import check_share


class Again(NamedTuple):
    """From node `bottom` noise takes the sample back to node `top`, `repeats` times."""

    top: int
    bottom: int
    repeats: int


def repeated(inner: Solver, path: Path, jumps: list[Again]) -> Tableau:
    """`inner` through the path with these jumps back, in the order of their bottoms.

    x_top = alpha_top/alpha x + sqrt(sigma_top^2 - (alpha_top/alpha)^2 sigma^2) z
    """
    segments, lifts, at = [], [], 0

    def leg(a: int, b: int) -> Tableau:
        return inner.filled(Path.of(path.process, path.t[a : b + 1]))

    for top, bottom, count in jumps:
        scale = float(path.alpha[top] / path.alpha[bottom])
        kept = scale * float(path.sigma[bottom])
        noise = math.sqrt(float(path.sigma[top]) ** 2 - kept**2)
        segments += [leg(at, bottom), *[leg(top, bottom)] * count]
        lifts += [(scale, noise)] * count + [(1.0, 0.0)]
        at = bottom
    if at < len(path.t) - 1:
        segments.append(leg(at, len(path.t) - 1))
    return replace(chain(segments, lifts), grid=path.t)


@dataclass(frozen=True)
class Restart(Solver):
    """Restart sampling (Xu et al. 2023, algorithm 1): noise up, integrate down again, K times.

    When the grid first reaches an interval's end, noise takes the sample back to its start and the
    grid's own nodes between are stepped through again. The law is the inner solver's, to its order.

    inner: the deterministic solver of every leg.
    intervals: (low, high, K) in sigma/alpha with 0 < low < high and K >= 1; from the last node
        above `low` back to the first below `high`. One that holds fewer than two of the grid's
        nodes, or that an earlier one overlaps, is passed over: a short grid has no room for it.
    Raises ValueError for a stochastic inner solver and for other intervals, TypeError for an inner
    solver that is no `Solver`.
    """

    inner: Solver = field(default_factory=Heun)
    intervals: tuple[tuple[float, float, int], ...] = ((0.06, 0.3, 2), (0.5, 2.0, 1))

    def __post_init__(self) -> None:
        check_part("inner", self.inner, stochastic=False)
        for interval in self.intervals:
            low, high, count = interval if len(interval) == 3 else (0, 0, 0)
            if not (0 < low < high < math.inf and count >= 1 and count == int(count)):
                raise InvalidValue(
                    "an interval must be (low, high, K) with 0 < low < high and a whole number "
                    f"K >= 1; got {interval}"
                )

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
        jumps: list[Again] = []
        for low, high, count in sorted(self.intervals, reverse=True):
            inside = ((ratio >= low) & (ratio <= high)).nonzero().flatten().tolist()
            if len(inside) > 1 and inside[-1] > (jumps[-1].bottom if jumps else 0):
                jumps.append(Again(inside[0], inside[-1], count))
        joined = repeated(self.inner, path, jumps)
        return replace(
            joined, name=f"restart({joined.name})", order=self.order, weak_order=self.weak_order
        )


@dataclass(frozen=True)
class RePaint(Solver):
    """The resampling jumps of RePaint (Lugmayr et al. 2022, algorithm 1), for inpainting.

    Whenever a multiple of `jump_length` steps is left to go, noise takes the sample back up by
    `jump_length` steps, which are done again, until they were done `jump_n_sample` times. The
    first of these jumps starts at the grid's end. What is known of the picture is the model's
    matter: `guidance.inpaint`. With an exact score the law is the inner solver's.

    inner: the solver of every leg; the paper's is `DDPM()`, diffusers' default DDIM(eta=0).
    jump_length: steps of the grid that a jump goes back, >= 1.
    jump_n_sample: how often they are done in all, >= 1; 1 makes no jump.
    Raises ValueError for other numbers, TypeError for an inner solver that is no `Solver`.
    """

    inner: Solver = field(default_factory=lambda: DDIM(eta=1.0))
    jump_length: int = 10
    jump_n_sample: int = 10

    def __post_init__(self) -> None:
        check_part("inner", self.inner)
        for name in ("jump_length", "jump_n_sample"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidValue(f"{name} must be a whole number >= 1; got {value!r}")

    @property
    def order(self) -> float:
        return self.inner.order

    @property
    def weak_order(self) -> float:
        return self.inner.weak_order

    def rows(self, path: Path) -> Tableau:
        n, length = len(path.t) - 1, self.jump_length
        bottoms = range(n - (n - 1) // length * length + length, n + 1, length)
        jumps = [Again(b - length, b, self.jump_n_sample - 1) for b in bottoms if b > length]
        joined = repeated(self.inner, path, jumps if self.jump_n_sample > 1 else [])
        return replace(
            joined, name=f"repaint({joined.name})", order=self.order, weak_order=self.weak_order
        )


@dataclass(frozen=True)
class Consistency(Solver):
    """Multistep sampling of a consistency model, whose D is the flow's end point, not a mean.

    gamma = 1 is Song et al. 2023, algorithm 1, and LCM: x_s = alpha_s D + sigma_s z. gamma < 1 is
    TCD (Zheng et al. 2024, algorithm 4): denoise to the time s' = (1 - gamma) s, then noise up,

        x_s = alpha_s/alpha_s' (alpha_s' D + sigma_s' eps)
              + sqrt(sigma_s^2 - (alpha_s sigma_s'/alpha_s')^2) z

    and gamma = 0 is DDIM's step. gamma = 1 is exact in law for an exact consistency function at any
    number of steps; an ordinary denoiser does not converge (order 0).

    gamma: share of time in [0, 1].
    train_steps: of a network of discrete time, whose steps j = 0, 1, ... are at t = (j + 1)/
        train_steps: s' is then the step floor((1 - gamma) j), as in published code. None: any time.
    Raises ValueError for another value.
    """

    gamma: float = 1.0
    train_steps: int | None = None

    order: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_share(self.gamma, "gamma")
        if self.train_steps is not None:
            whole("train_steps", self.train_steps)

    def rows(self, path: Path) -> Tableau:
        alpha, sigma, t = path.alpha[1:], path.sigma[1:], path.t[1:]
        clean = self.gamma == 1 and self.train_steps is None
        if clean:
            kept = torch.zeros_like(sigma)
        else:
            reached = (1 - self.gamma) * t
            if self.train_steps is not None:  # a step is whole to within the rounding of its time
                step = torch.floor((1 - self.gamma) * (t * self.train_steps - 1) + 1e-6)
                reached = (step + 1) / self.train_steps
            kept = alpha * torch.exp(-path.process.log_snr(torch.minimum(reached, t)))
            kept = torch.where(sigma > 0, kept, 0.0)  # what is still of eps
        ratio = kept / path.sigma[:-1]
        return from_rows(
            "lcm" if clean else "tcd",
            path.t,
            path.t[:-1],
            [ratio],
            [alpha - ratio * path.alpha[:-1]],
            [torch.sqrt((sigma.square() - kept.square()).clamp(min=0.0))],
        )


SOLVERS: dict[str, Solver] = {"restart": Restart(), "lcm": Consistency(), "tcd": Consistency(0.3)}
