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
from ...kernels.shapes import as_float64
from ...models import Process
from ..arguments import finite, lookup, whole

__all__ = [
    "GRIDS",
    "Beta",
    "Blend",
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


GRIDS: dict[str, Grid] = {}
"""Grids by the name that users type; each class enters itself below."""


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless `value` is a number from low to high."""
    if not low <= finite(name, value) <= high:
        raise InvalidValue(f"{name} must lie in [{low:g}, {high:g}]; got {value:g}")


def _unit(n: int) -> Tensor:
    """0 .. 1 in n nodes; a single node sits at the noise end."""
    return (
        torch.linspace(0, 1, n, dtype=torch.float64, device="cpu")
        if n > 1
        else torch.zeros(1, dtype=torch.float64, device="cpu")
    )


@dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps of t (score_sde)."""

    reaches_zero: ClassVar[bool] = True

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        return t_max + _unit(n) * (t_min - t_max)


GRIDS["uniform"] = Uniform()


@dataclass(frozen=True)
class Quadratic(Grid):
    """Equal steps of sqrt(t) (Song et al. 2021a, DDIM; DPM-Solver's 'time_quadratic')."""

    reaches_zero: ClassVar[bool] = True

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        a, b = math.sqrt(t_max), math.sqrt(t_min)
        return (a + _unit(n) * (b - a)).square()


GRIDS["quadratic"] = Quadratic()


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
    """Equal steps of lambda = log alpha/sigma (Lu et al. 2022); k-diffusion's 'exponential'.

    rho: with another than 1, equal steps of u in log(sigma/alpha) = end + (1 - u)^rho (start -
        end), k-diffusion's 'polyexponential'; 0.1 to 10. diffusers' Lu grid is rho = 1.
    Raises ValueError for another rho.
    """

    rho: float = 1.0

    def __post_init__(self) -> None:
        check_range("rho", self.rho, 0.1, 10)

    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        if self.rho != 1:
            u = 1 - (1 - u).pow(self.rho)
        return start + u * (end - start)


GRIDS["log_snr"] = GRIDS["exponential"] = LogSNR()


@dataclass(frozen=True)
class Karras(RatioGrid):
    """Equal steps of (sigma/alpha)^(1/rho) (Karras et al. 2022, 5).

    rho: 0.1 to 1000; beyond either end the powers lose their digits. Large rho tends to `LogSNR`.
    Raises ValueError for another rho.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        check_range("rho", self.rho, 0.1, 1000)

    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        a, b = math.exp(start / self.rho), math.exp(end / self.rho)
        return self.rho * torch.log(a + u * (b - a))


GRIDS["karras"] = Karras()


@dataclass(frozen=True)
class Cosine(RatioGrid):
    """Equal steps of the angle arctan(sigma/alpha) (Nichol & Dhariwal 2021, for any process)."""

    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        a, b = math.atan(math.exp(start)), math.atan(math.exp(end))
        return torch.log(torch.tan(a + u * (b - a)))


GRIDS["cosine"] = Cosine()


@dataclass(frozen=True)
class Laplace(RatioGrid):
    """Equal steps of the distribution function of lambda ~ Laplace(mu, b), cut to the range at
    hand (Hang et al. 2024): nodes crowd around lambda = mu. The defaults are fitted to nothing but
    the two exact targets of the benchmark, where they suit `vab-4` and `ipndm-3`.

    mu: the lambda around which they crowd, -20 to 20.
    b: width of the crowd in lambda, 0.01 to 1000.
    Raises ValueError for another value.
    """

    mu: float = 0.7
    b: float = 2.5

    def __post_init__(self) -> None:
        check_range("mu", self.mu, -20, 20)
        check_range("b", self.b, 0.01, 1000)

    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        ends = (torch.tensor([-start, -end], dtype=torch.float64, device="cpu") - self.mu) / self.b
        a, c = (0.5 - 0.5 * torch.sign(ends) * torch.expm1(-ends.abs()) - 0.5).tolist()
        mass = a + u * (c - a)  # the distribution function less 1/2
        return -self.mu + self.b * torch.sign(mass) * torch.log1p(-2 * mass.abs())


GRIDS["laplace"] = Laplace()
GRIDS["laplace-wide"] = Laplace(0.0, 5.0)


FEW = 11
"""Steps up to which a run is short: none is to be spent where noise is pure."""
FEWEST = 8
"""Nodes up to which a `Blend` may have a share of its own: of six steps, one of them spared."""
PURE = 1e3
"""sigma/alpha that is pure noise to a short run, and on a grid that has no first ratio."""


@dataclass(frozen=True)
class Blend(Grid):
    """Nodes whose density is w that of equal steps of lambda and 1 - w that of equal steps of t.

    Networks are accurate where they were trained, for the most part uniformly in t; solvers err by
    the step of lambda. A share of either holds on schedules of any range: w = 1 is `LogSNR`, w = 0
    `Uniform`. The clock is `Process.clock`, t of most processes.

    w: in [0, 1]; default 0.6.
    pure: sigma/alpha from which on noise counts as pure and lambda lays no nodes, > 0; default:
        1000 where alpha(t_max) = 0 or the nodes are those of a short run, at most `FEW` steps.
    short: w of at most `FEWEST` nodes, in [0, 1]; default: w.
    Raises ValueError for other values.
    """

    w: float = 0.6
    pure: float | None = None
    short: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.w <= 1:
            raise InvalidValue(f"w must lie in [0, 1]; got {self.w}")
        if self.short is not None and not 0 <= self.short <= 1:
            raise InvalidValue(f"short must lie in [0, 1]; got {self.short}")
        if self.pure is not None and not self.pure > 0:
            raise InvalidValue(f"pure must be a ratio > 0; got {self.pure}")

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        ends = torch.tensor([t_max, t_min], dtype=torch.float64, device="cpu")
        first, last = process.log_snr(ends).tolist()
        if self.pure is not None or first == -math.inf or n <= FEW + 2:
            first = max(first, -math.log(self.pure or PURE))
        fine = torch.linspace(0, 1, 4097, dtype=torch.float64, device="cpu")
        by_lam = process.inverse_log_snr(first + fine * (last - first))
        t = torch.cat([t_max + fine * (t_min - t_max), by_lam]).clamp(t_min, t_max)
        t = torch.from_numpy(np.unique(t.numpy())[::-1].copy())  # falling
        w = self.w if self.short is None or n > FEWEST else self.short
        mass = w * (process.log_snr(t).clamp(min=first) - first) / (last - first)
        clock = process.clock(t)
        mass = mass + (1 - w) * (clock[0] - clock) / (clock[0] - clock[-1])
        found = np.interp(_unit(n).numpy(), mass.numpy(), t.numpy())
        return _with_ends(torch.from_numpy(found), t_max, t_min)


GRIDS["blend"] = Blend(short=0.45)  # used where no grid is named


@dataclass(frozen=True)
class Shifted(Grid):
    """Equal steps of s0, where s = sigma/(alpha + sigma) = mu s0/(1 + (mu - 1) s0).

    Stable Diffusion 3's shift (Esser et al. 2024, 23), on any process: mu > 1 spends more nodes
    on noise; mu = 1 is uniform in the flow's time.

    mu: the shift, 0.001 to 1000.
    Raises ValueError for another mu.
    """

    mu: float = 3.0

    reaches_zero: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("mu", self.mu, 0.001, 1000)

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        s = torch.sigmoid(
            -process.log_snr(torch.tensor([t_max, t_min], dtype=torch.float64, device="cpu"))
        )
        a, b = (s / (self.mu - (self.mu - 1) * s)).tolist()
        s0 = a + _unit(n) * (b - a)
        t = process.inverse_log_snr(-torch.logit(self.mu * s0 / (1 + (self.mu - 1) * s0)))
        return _with_ends(t, t_max, t_min)


GRIDS["shifted"] = Shifted()


@dataclass(frozen=True)
class Beta(Grid):
    """Equal steps of the distribution function of t ~ Beta(a, b) on [t_min, t_max] (Lee et al.
    2024, with a = b = 0.6): nodes crowd at both ends.

    a, b: the distribution's parameters, 0.1 to 10.
    Raises ValueError for another value.
    """

    a: float = 0.6
    b: float = 0.6

    reaches_zero: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("a", self.a, 0.1, 10)
        check_range("b", self.b, 0.1, 10)

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        goal = 1 - _unit(n)
        low, high = torch.zeros_like(goal), torch.ones_like(goal)
        for _ in range(60):  # bisection: the distribution function has no closed inverse
            middle = 0.5 * (low + high)
            below = beta_cdf(middle, self.a, self.b) < goal
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return _with_ends(t_min + (t_max - t_min) * high, t_max, t_min)


GRIDS["beta"] = Beta()


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

    Step j = 0, 1, ... is at t = (j + 1)/train_steps.

    spacing: 'linspace', 'leading' or 'trailing' (Lin et al. 2024, table 2).
    train_steps: of the network; None takes the process's own table, or 1000.
    offset: steps by which 'leading' begins later, diffusers' `steps_offset`.
    Raises ValueError for another spacing, numbers that are no steps, or an offset of another
    spacing.
    """

    spacing: str = "trailing"
    train_steps: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        if self.spacing not in ("linspace", "leading", "trailing"):
            raise InvalidValue(
                f"spacing must be 'linspace', 'leading' or 'trailing'; got {self.spacing!r}"
            )
        if self.train_steps is not None:
            whole("train_steps", self.train_steps)
        if whole("offset", self.offset, 0) and self.spacing != "leading":
            raise InvalidValue(f"offset is for spacing 'leading'; got {self.spacing!r}")

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        if t_max != 1:
            raise InvalidValue(
                f"grid {self.spacing!r} counts the steps of a network of discrete time on t in "
                f"(0, 1]; {process} has t_max={t_max:g}: use 'karras' or 'log_snr'"
            )
        count = self.train_steps or len(getattr(process, "betas", ())) or 1000
        if n > count:
            raise InvalidValue(f"steps must be at most the network's {count} steps; got {n}")
        k = torch.arange(n, dtype=torch.float64, device="cpu")
        if self.spacing == "linspace":
            index = (count - 1) * (1 - _unit(n))
        elif self.spacing == "leading":
            index = (n - 1 - k) * (count // n) + self.offset
            if self.offset > count // n + count % n - 1:
                raise InvalidValue(
                    f"offset must leave {n} steps within the network's {count}; got {self.offset}"
                )
        else:
            index = count - k * (count / n) - 1
        return (torch.round(index) + 1) / count


GRIDS |= {k: Discrete(k) for k in ("linspace", "leading", "trailing")}


ROUNDED = 1e-3
"""Share of a time by which a rounded end may lie outside: published levels have 3 to 5 digits."""
MOST_STEPS = 100_000
"""More network calls than any run makes; beyond it the tables' own arithmetic fills the memory."""
FINALS = ("denoise", "zero", "t_min")


def times(
    grid: str | Grid | Sequence[float] | Tensor,
    process: Process,
    steps: int | None = 20,
    final: str = "denoise",
    t_min: float | None = None,
) -> Tensor:
    """The times a solver steps through, float64, strictly falling, noise to data.

    grid: a name, a `Grid`, or times of the user's own from at most t_max down to t_min (or to
        `process.t_clean`); with times given, `steps` is not used and `final='denoise'` appends
        the jump. Ends past the process's by the rounding of published levels count as its ends.
    process: whose times they are.
    steps: intervals, the denoising jump included, 1 to MOST_STEPS.
    final: 'denoise', 'zero' or 't_min', how the grid ends; see above.
    t_min: the last time with noise, by default the process's own.
    Raises ValueError or TypeError naming what does not fit.
    """
    if not isinstance(process, Process):
        raise InvalidType(f"process must be a Process, e.g. ud.VP(); got {process!r}")
    if final not in FINALS:
        raise InvalidValue(f"final must be one of {', '.join(map(repr, FINALS))}; got {final!r}")
    t_min = process.t_min if t_min is None else finite("t_min", t_min)
    if not min(0.0, process.t_min) <= t_min < process.t_max:
        raise InvalidValue(
            f"t_min must lie in [{min(0.0, process.t_min):g}, t_max={process.t_max:g}); got "
            f"{t_min:g}"
        )
    if isinstance(grid, str):
        grid = named(grid)
    if not isinstance(grid, Grid):
        return _users(as_times(grid), process, final, t_min)
    steps = whole("steps", steps)
    if steps > MOST_STEPS:
        raise InvalidValue(f"steps must be at most {MOST_STEPS}; got {steps}")
    discrete = isinstance(grid, Discrete)
    laid_to_zero = final == "zero" and grid.reaches_zero and process.t_clean == 0
    jump = final != "t_min" and not laid_to_zero
    end = 0.0 if laid_to_zero else t_min
    t = grid.nodes(process, steps + (not jump), process.t_max, end)
    if not discrete:  # the ends exactly, not to the rounding of a formula
        t[0] = process.t_max
        t[-1] = end if len(t) > 1 else process.t_max
    if jump:
        t = torch.cat([t, t.new_tensor([process.t_clean])])
    return checked(t, process)


def as_times(grid: object) -> Tensor:
    """A sequence of times as float64. Raises TypeError for anything else."""
    try:
        return as_float64(grid)
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
            "final='t_min' returns x at the grid's last time, but the grid ends at "
            f"{float(t[-1]):g}, a denoising jump: leave that time out, or use final='denoise'"
        )
    if final != "t_min" and not clean:
        t = torch.cat([t, t.new_tensor([process.t_clean])])
    return checked(t, process, t_min)


def checked(t: Tensor, process: Process, t_min: float | None = None) -> Tensor:
    """The times, with an end that was rounded past the process's own moved back to it.

    An end is rounded where it lies outside by no more than ROUNDED of itself. Raises ValueError
    unless the times fall strictly within [t_min, t_max], two or more, the last one perhaps t_clean.
    """
    least = process.t_min if t_min is None else t_min
    hint = (
        f"grid must fall strictly from at most t_max={process.t_max:g} to at least "
        f"t_min={least:g} (or end at {process.t_clean:g} for a denoising jump); "
    )
    if t.ndim != 1 or len(t) < 2:
        raise InvalidValue(hint + f"got {t.numel()} node; a step needs two")
    low = len(t) - 2 if float(t[-1]) == process.t_clean else len(t) - 1
    first, last = float(t[0]), float(t[low])
    if first > process.t_max or last < least:
        t = t.clone()
        if process.t_max < first <= process.t_max * (1 + ROUNDED):
            t[0] = process.t_max
        if least > last >= least * (1 - ROUNDED) and low:
            t[low] = least
    if bool(torch.isnan(t).any()) or not bool((t[1:] < t[:-1]).all()):
        i = int((~(t[1:] < t[:-1])).nonzero()[0])
        raise InvalidValue(hint + f"got {float(t[i]):.9g} -> {float(t[i + 1]):.9g} at node {i + 1}")
    for i in (0, low):
        if not least <= float(t[i]) <= process.t_max:
            raise InvalidValue(hint + f"got {float(t[i]):.9g} at node {i}")
    return t


def named(name: str) -> Grid:
    """The grid of that name. Raises ValueError with the nearest known name otherwise."""
    return lookup("grid", name, GRIDS)
