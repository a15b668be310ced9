"""Grids: where in time the network is called.

A grid is a float64 sequence of times that falls strictly from noise to data. `times` lays one out
by name, by object (`Karras(rho=5)`) or takes the user's own sequence, and says how it ends:

    final='denoise'  steps nodes from t_max to t_min, then one denoising jump: x = D(x, t_min)
    final='zero'     the last node is sigma = 0 itself: steps + 1 nodes down to t = 0 for a grid
                     laid in t; one laid in sigma/alpha never gets there and jumps, as above
    final='t_min'    steps + 1 nodes from t_max to t_min; x at t_min is what is returned

A denoising jump is an interval that ends where sigma = 0 (`process.t_clean`), so a grid is just its
times: no flag travels with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Process
from ..arguments import lookup

__all__ = [
    "GRIDS",
    "Beta",
    "Cosine",
    "Discrete",
    "Grid",
    "Karras",
    "Laplace",
    "LogSNR",
    "Quadratic",
    "Shifted",
    "Uniform",
    "times",
]


def __dir__() -> list[str]:
    return __all__


class Grid(ABC):
    """A rule that lays n nodes between t_max and t_min."""

    reaches_zero: ClassVar[bool] = False  # can its last node be at t = 0?

    @abstractmethod
    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        """n times from t_max down to t_min, float64 [n]."""


def _unit(n: int) -> Tensor:
    """0 .. 1 in n nodes; a single node sits at the noise end."""
    return torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1).double()


@dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps of t (score_sde)."""

    reaches_zero: ClassVar[bool] = True

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        return t_max + _unit(n) * (t_min - t_max)


@dataclass(frozen=True)
class Quadratic(Grid):
    """Equal steps of sqrt(t) (Song et al. 2021a, DDIM; DPM-Solver's 'time_quadratic')."""

    reaches_zero: ClassVar[bool] = True

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        a, b = math.sqrt(t_max), math.sqrt(t_min)
        return (a + _unit(n) * (b - a)).square()


class RatioGrid(Grid):
    """Laid in the noise-to-signal ratio sigma/alpha."""

    @abstractmethod
    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        """log(sigma/alpha) at u in [0, 1], given its values at both ends."""

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        start = -process.first_log_snr(t_max)  # of pure noise only the first node, moved to t_max
        end = -float(process.log_snr(t_min))
        return process.inverse_log_snr(-self.log_ratio(_unit(n), start, end))


@dataclass(frozen=True)
class LogSNR(RatioGrid):
    """Equal steps of lambda = log alpha/sigma (Lu et al. 2022); k-diffusion's 'exponential'."""

    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        return start + u * (end - start)


@dataclass(frozen=True)
class Karras(RatioGrid):
    """Equal steps of (sigma/alpha)^(1/rho) (Karras et al. 2022, 5)."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise InvalidValue(f"rho must be > 0; got {self.rho}")

    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        a, b = math.exp(start / self.rho), math.exp(end / self.rho)
        return self.rho * torch.log(a + u * (b - a))


@dataclass(frozen=True)
class Cosine(RatioGrid):
    """Equal steps of the angle arctan(sigma/alpha) (Nichol & Dhariwal 2021, for any process)."""

    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        a, b = math.atan(math.exp(start)), math.atan(math.exp(end))
        return torch.log(torch.tan(a + u * (b - a)))


@dataclass(frozen=True)
class Laplace(RatioGrid):
    """Equal steps of the distribution function of lambda ~ Laplace(mu, b), cut to the range at
    hand (Hang et al. 2024): nodes crowd around lambda = mu. The defaults are fitted to nothing but
    the two exact targets of the benchmark, where they suit `vab-4` and `ipndm-3`."""

    mu: float = 0.7
    b: float = 2.5

    def __post_init__(self) -> None:
        if not self.b > 0:
            raise InvalidValue(f"b must be > 0; got {self.b}")

    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        ends = (torch.tensor([-start, -end], dtype=torch.float64) - self.mu) / self.b
        a, c = (0.5 - 0.5 * torch.sign(ends) * torch.expm1(-ends.abs()) - 0.5).tolist()
        mass = a + u * (c - a)  # the distribution function less 1/2
        return -self.mu + self.b * torch.sign(mass) * torch.log1p(-2 * mass.abs())


@dataclass(frozen=True)
class Shifted(Grid):
    """Equal steps of s0, where s = sigma/(alpha + sigma) = mu s0/(1 + (mu - 1) s0).

    Stable Diffusion 3's shift (Esser et al. 2024, 23), on any process: mu > 1 spends more nodes
    on noise; mu = 1 is uniform in the flow's time. Raises ValueError unless mu > 0.
    """

    mu: float = 3.0

    reaches_zero: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise InvalidValue(f"mu must be > 0; got {self.mu}")

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        s = torch.sigmoid(-process.log_snr(torch.tensor([t_max, t_min], dtype=torch.float64)))
        a, b = (s / (self.mu - (self.mu - 1) * s)).tolist()
        s0 = a + _unit(n) * (b - a)
        t = process.inverse_log_snr(-torch.logit(self.mu * s0 / (1 + (self.mu - 1) * s0)))
        return _with_ends(t, t_max, t_min)


@dataclass(frozen=True)
class Beta(Grid):
    """Equal steps of the distribution function of t ~ Beta(a, b) on [t_min, t_max] (Lee et al.
    2024, with a = b = 0.6): nodes crowd at both ends. Raises ValueError unless a, b > 0."""

    a: float = 0.6
    b: float = 0.6

    reaches_zero: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.a > 0 and self.b > 0):
            raise InvalidValue(f"a and b must be > 0; got {self.a} and {self.b}")

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        goal = 1 - _unit(n)
        low, high = torch.zeros_like(goal), torch.ones_like(goal)
        for _ in range(60):  # bisection: the distribution function has no closed inverse
            middle = 0.5 * (low + high)
            below = beta_cdf(middle, self.a, self.b) < goal
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return _with_ends(t_min + (t_max - t_min) * high, t_max, t_min)


def beta_cdf(x: Tensor, a: float, b: float) -> Tensor:
    """The regularised incomplete beta function at x in [0, 1], by quadrature in x^a."""
    node, weight = np.polynomial.legendre.leggauss(64)
    y, w = torch.from_numpy(0.5 * (node + 1)), torch.from_numpy(0.5 * weight)

    def part(x: Tensor, a: float, b: float) -> Tensor:
        top = x.pow(a)[..., None]
        return (top * w * (1 - (top * y).pow(1 / a)).pow(b - 1)).sum(-1) / a

    half = x.new_tensor(0.5)
    left, right = part(half, a, b), part(half, b, a)
    low = part(x.clamp(max=0.5), a, b)
    high = left + right - part((1 - x).clamp(max=0.5), b, a)
    return torch.where(x <= 0.5, low, high) / (left + right)


def _with_ends(t: Tensor, t_max: float, t_min: float) -> Tensor:
    """The ends exactly, not to the rounding of an inverse."""
    t[0] = t_max
    if len(t) > 1:
        t[-1] = t_min
    return t


@dataclass(frozen=True)
class Discrete(Grid):
    """Integer steps of a network of discrete time, as diffusers spaces them.

    spacing: 'linspace', 'leading' or 'trailing' (Lin et al. 2024, table 2). Index j of
    `count` is at t = (j + 1)/count; `count` defaults to the process's own table.
    """

    spacing: str = "trailing"
    count: int | None = None

    def __post_init__(self) -> None:
        if self.spacing not in ("linspace", "leading", "trailing"):
            raise InvalidValue(
                f"spacing must be 'linspace', 'leading' or 'trailing'; got {self.spacing!r}"
            )

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        if t_max != 1:
            raise InvalidValue(
                f"grid {self.spacing!r} counts the steps of a network of discrete time on t in "
                f"(0, 1]; {process} has t_max={t_max:g}: use 'karras' or 'log_snr'"
            )
        count = self.count or len(getattr(process, "betas", ())) or 1000
        if n > count:
            raise InvalidValue(f"steps must be at most the network's {count} steps; got {n}")
        k = torch.arange(n, dtype=torch.float64)
        if self.spacing == "linspace":
            index = (count - 1) * (1 - _unit(n))
        elif self.spacing == "leading":
            index = (n - 1 - k) * (count // n)
        else:
            index = count - k * (count / n) - 1
        return (torch.round(index) + 1) / count


FINALS = ("denoise", "zero", "t_min")


GRIDS: dict[str, Grid] = {
    "uniform": Uniform(),
    "quadratic": Quadratic(),
    "log_snr": LogSNR(),
    "exponential": LogSNR(),
    "karras": Karras(),
    "cosine": Cosine(),
    "laplace": Laplace(),
    "laplace-wide": Laplace(0.0, 5.0),
    "beta": Beta(),
    "shifted": Shifted(),
    "linspace": Discrete("linspace"),
    "leading": Discrete("leading"),
    "trailing": Discrete("trailing"),
}
"""Grids by the name that users type; 'laplace-wide' is used where none is named."""


def times(
    grid: str | Grid | Sequence[float] | Tensor,
    process: Process,
    steps: int | None = 20,
    final: str = "denoise",
    t_min: float | None = None,
) -> Tensor:
    """The times a solver steps through, float64, strictly falling, noise to data.

    grid: a name, a `Grid`, or times of the user's own from at most t_max down to t_min (or to
    `process.t_clean`); with times given, `steps` is their number and `final='denoise'` appends
    the jump. t_min: overrides the process's. Raises ValueError naming what does not fit.
    """
    if final not in FINALS:
        raise InvalidValue(f"final must be one of {', '.join(map(repr, FINALS))}; got {final!r}")
    t_min = process.t_min if t_min is None else t_min
    if isinstance(grid, str):
        grid = named(grid)
    if not isinstance(grid, Grid):
        return _users(as_times(grid), process, final, t_min)
    if steps is None or steps != int(steps) or steps < 1:
        raise InvalidValue(f"steps must be a whole number >= 1; got {steps}")
    discrete = isinstance(grid, Discrete)
    laid_to_zero = final == "zero" and grid.reaches_zero and process.t_clean == 0
    jump = final != "t_min" and not laid_to_zero
    end = 0.0 if laid_to_zero else t_min
    t = grid.nodes(process, int(steps) + (not jump), process.t_max, end)
    if not discrete:  # the ends exactly, not to the rounding of a formula
        t[0] = process.t_max
        t[-1] = end if len(t) > 1 else process.t_max
    if jump:
        t = torch.cat([t, t.new_tensor([process.t_clean])])
    check(t, process)
    return t


def as_times(grid: object) -> Tensor:
    """A sequence of times as float64. Raises TypeError for anything else."""
    try:
        return torch.as_tensor(grid, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidType(
            f"grid must be a sequence of times here; got {grid!r}: "
            "lay one out with ud.solvers.times(grid, process, steps)"
        ) from None


def _users(t: Tensor, process: Process, final: str, t_min: float) -> Tensor:
    if t.ndim != 1 or len(t) < 1:
        raise InvalidValue(f"grid must be a sequence of times; got shape {tuple(t.shape)}")
    clean = float(t[-1]) == process.t_clean
    if final == "t_min" and clean:
        raise InvalidValue(
            f"final='t_min' returns x at the grid's last time, but the grid ends at {float(t[-1]):g}, "
            "a denoising jump: leave that time out, or use final='denoise'"
        )
    if final != "t_min" and not clean:
        t = torch.cat([t, t.new_tensor([process.t_clean])])
    check(t, process, t_min)
    return t


def check(t: Tensor, process: Process, t_min: float | None = None) -> None:
    """Raises ValueError unless t falls strictly within [t_min or t_clean, t_max], 2 nodes or more."""
    first, last = float(t[0]), float(t[-1])
    least = process.t_min if t_min is None else t_min
    body = t[:-1] if last == process.t_clean else t
    hint = (
        f"grid must fall strictly from at most t_max={process.t_max:g} to at least "
        f"t_min={least:g} (or end at {process.t_clean:g} for a denoising jump); "
    )
    if len(t) < 2:
        raise InvalidValue(hint + f"got {len(t)} node; a step needs two")
    if bool(torch.isnan(t).any()) or not bool((t[1:] < t[:-1]).all()):
        i = int((~(t[1:] < t[:-1])).nonzero()[0])
        raise InvalidValue(hint + f"got {float(t[i]):g} -> {float(t[i + 1]):g} at node {i + 1}")
    slack = 1e-9
    if first > process.t_max * (1 + slack) or float(body[-1]) < least - slack * abs(least):
        raise InvalidValue(hint + f"got {first:g} -> {last:g}")


def check_count(name: str, value: int | None) -> None:
    """Raises ValueError unless `value` is None or a whole number >= 1."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidValue(f"{name} must be a whole number >= 1; got {value!r}")


def named(name: str) -> Grid:
    """The grid of that name. Raises ValueError with the nearest known name otherwise."""
    return lookup("grid", name, GRIDS)
