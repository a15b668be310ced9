"""What is measured of a finished run, by name; each with its interval and, for distances, a floor.

    error            per-sample RMSE to the reference trajectory / data std (deterministic solvers)
    log_density_gap  E log p under the samples less under exact ones, nats a dimension
    sw2              sliced Wasserstein-2 to exact samples / data std
    w2, w1           Wasserstein by an exact assignment, at most OT_POINTS a side / data std
    energy, mmd2     energy distance / data std; squared MMD, Gaussian kernels, median bandwidths
    kl, reverse_kl   KL(samples || exact), KL(exact || samples), nats: the exact density for p, the
                     nearest neighbour's for the samples (Kozachenko & Leonenko; d <= 16)
    modes            total variation between the shares of the modes and their weights

Exact samples come from the law; for a trained network from real data, at the run's noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..kernels import normal
from ..solvers.grids import lookup
from . import metrics
from .metrics import Estimate
from .problems import Problem, from_unit, signal, time_at
from .reference import Reference

EXACT_DRAWS = 2048
"""Exact samples behind the mean log density."""
OT_POINTS = 512
"""Most points a side of an exact assignment (it costs their cube)."""
KNN_DIM = 16
"""Highest dimension in which a nearest neighbour says anything about a density."""

Run = tuple[Problem, Tensor, float, Reference]
"""problem, final states w [B, *event], ratio sigma/alpha they are at, the reference."""


class Inapplicable(Exception):
    """The measure does not exist for this problem; the message says why."""


@dataclass(frozen=True)
class Measure:
    """field: its name in the records. title: for tables, with its unit. evaluate: of a run.

    kinds: of solvers it is shown for: 'ode', 'sde' or both. signed: best is 0, not least.
    distance: of two sets, where it has a floor.
    """

    field: str
    title: str
    evaluate: Callable[[Run], Estimate]
    kinds: tuple[str, ...] = ("ode", "sde")
    signed: bool = False
    distance: Callable[[Tensor, Tensor], float] | None = None
    in_std: bool = False


# --- exact samples ------------------------------------------------------------------------------


def exact_draw(problem: Problem, ratio: float, n: int, seed: int) -> Tensor:
    """n exact samples at sigma/alpha = ratio on the data's scale, x/alpha; float64 [n, *event].

    Of the law; or of the real data without replacement, and then fewer if need be: one half of
    them for an even seed, the other for the odd one that follows, so the two share no point.
    """
    x = _clean_draw(problem, n, seed)
    if ratio == 0.0:
        return x
    return x + ratio * normal(x.shape, seed, purpose="user", dtype=torch.float64)


@lru_cache(maxsize=64)
def _clean_draw(problem: Problem, n: int, seed: int) -> Tensor:
    if problem.law is not None:
        return problem.law.sample(n, seed=seed)
    if problem.data is None:
        raise Inapplicable(f"{problem.name} has neither a law nor data to draw from")
    g = torch.Generator().manual_seed(seed // 2)
    order = torch.randperm(len(problem.data), generator=g)
    return problem.data[order[seed % 2 :: 2][:n]]


def floor(problem: Problem, m: Measure, n: int) -> Estimate:
    """The measure of two exact sets of n samples at the end of the grid: mean, least, largest."""
    if m.distance is None:
        raise ValueError(f"{m.field} is no distance between two sets")
    found = metrics.floor(
        m.distance, lambda count, seed: exact_draw(problem, problem.r_min, count, seed), n, n
    )
    return _scaled(found, 1 / problem.std if m.in_std else 1.0)


# --- the measures -------------------------------------------------------------------------------


def _error(run: Run) -> Estimate:
    return metrics.mean_interval(errors(run))


def errors(run: Run) -> Tensor:
    """Each sample's RMSE to the reference / data std, [B]."""
    problem, w, ratio, reference = run
    exact = signal(reference.at(ratio), ratio)
    return metrics.per_sample_rmse(signal(w, ratio), exact) / problem.std


def _against(distance: Callable[[Tensor, Tensor], float], in_std: bool) -> Callable[[Run], Estimate]:
    def evaluate(run: Run) -> Estimate:
        problem, w, ratio, _ = run
        y = exact_draw(problem, ratio, len(w), 2 * problem.seed + 76)
        found = metrics.jackknife(distance, signal(w, ratio), y)
        return _scaled(found, 1 / problem.std if in_std else 1.0)

    return evaluate


def _log_density_gap(run: Run) -> Estimate:
    problem, w, ratio, _ = run
    exact = _exact_log_density(problem, ratio)
    return metrics.log_density_gap(log_density(problem, w, ratio), exact, w[0].numel())


@lru_cache(maxsize=64)
def _exact_log_density(problem: Problem, ratio: float) -> Tensor:
    """log p of exact samples at this ratio, [EXACT_DRAWS]."""
    x = exact_draw(problem, ratio, EXACT_DRAWS, 2 * problem.seed + 77)
    return log_density(problem, x / math.hypot(1.0, ratio), ratio)


def log_density(problem: Problem, w: Tensor, ratio: float) -> Tensor:
    """log p of the states w [B, *event] at their noise level, nats, [B]."""
    if problem.law is None:
        raise Inapplicable(f"{problem.name} has no density")
    if ratio == 0.0:
        return problem.law.log_prob(w)
    t = time_at(problem.process, ratio)
    return problem.law.log_prob(from_unit(problem.process, w, t), t, problem.process)


def _kl(run: Run) -> Estimate:
    """E_q [log q - log p], q by its own nearest neighbours."""
    problem, w, ratio, _ = run
    x = _on_process_scale(problem, _few_dimensions(w), ratio)
    log_q = metrics.knn_log_density(x, x, exclude_self=True)
    return metrics.mean_interval(log_q - log_density(problem, w, ratio))


def _reverse_kl(run: Run) -> Estimate:
    """E_p [log p - log q], q by the nearest neighbours among the samples."""
    problem, w, ratio, _ = run
    y = exact_draw(problem, ratio, len(w), 2 * problem.seed + 76) / math.hypot(1.0, ratio)
    x, points = (_on_process_scale(problem, _few_dimensions(v), ratio) for v in (w, y))
    log_q = metrics.knn_log_density(points, x)
    return metrics.mean_interval(log_density(problem, y, ratio) - log_q)


def _on_process_scale(problem: Problem, w: Tensor, ratio: float) -> Tensor:
    """The states as the density is of: x at their time, or clean data."""
    return w if ratio == 0.0 else from_unit(problem.process, w, time_at(problem.process, ratio))


def _few_dimensions(w: Tensor) -> Tensor:
    if w[0].numel() > KNN_DIM:
        raise Inapplicable(
            f"nearest neighbours estimate no density in {w[0].numel()} dimensions (at most "
            f"{KNN_DIM}); use log_density_gap or sw2"
        )
    return w


def _modes(run: Run) -> Estimate:
    problem, w, ratio, _ = run
    law = problem.law
    if law is None or len(law.weights) < 2:
        raise Inapplicable(f"{problem.name} has no modes with weights")
    d = (signal(w, ratio).flatten(1)[:, None] - law.means).square().sum(2)
    shares = torch.nn.functional.one_hot(d.argmin(1), len(law.weights)).double()
    value = 0.5 * (shares.mean(0) - law.weights).abs().sum()
    spread = (law.weights * (1 - law.weights) / len(w)).sqrt().sum() / 2
    half = metrics.Z95 * float(spread)
    return Estimate(float(value), max(0.0, float(value) - half), float(value) + half)


def _scaled(e: Estimate, by: float) -> Estimate:
    return Estimate(*(v * by for v in e))


def _distance(
    field: str, title: str, of: Callable[[Tensor, Tensor], float], in_std: bool = True
) -> Measure:
    return Measure(field, title, _against(of, in_std), distance=of, in_std=in_std)


def _capped(p: int) -> Callable[[Tensor, Tensor], float]:
    return lambda x, y: metrics.assignment(x[:OT_POINTS], y[:OT_POINTS], p)


_ALL = (
    Measure("error", "error to the reference trajectory / data std", _error, kinds=("ode",)),
    Measure("log_density_gap", "mean log density gap, nats/dim (0 is right)", _log_density_gap,
            signed=True),
    _distance("sw2", "sliced Wasserstein-2 / data std", metrics.sliced_wasserstein),
    _distance("w2", "Wasserstein-2, exact assignment / data std", _capped(2)),
    _distance("w1", "Wasserstein-1, exact assignment / data std", _capped(1)),
    _distance("energy", "energy distance / data std", metrics.energy_distance),
    _distance("mmd2", "squared MMD, Gaussian kernels", metrics.mmd2, in_std=False),
    Measure("kl", "KL(samples || exact), nats", _kl, signed=True),
    Measure("reverse_kl", "KL(exact || samples), nats", _reverse_kl, signed=True),
    Measure("modes", "total variation of the mode weights", _modes),
)  # fmt: skip
MEASURES: dict[str, Measure] = {m.field: m for m in _ALL}
"""Measures by the name that the command line takes."""

DEFAULT: tuple[Measure, ...] = (
    MEASURES["error"],
    Measure(**{**vars(MEASURES["log_density_gap"]), "kinds": ("sde",)}),
    Measure(**{**vars(MEASURES["sw2"]), "kinds": ("sde",)}),
)
"""Trajectories of deterministic solvers, laws of stochastic ones."""


def chosen(names: Sequence[str] | None) -> tuple[Measure, ...]:
    """Measures by name; None is DEFAULT. Raises ValueError, naming the nearest, otherwise."""
    if names is None:
        return DEFAULT
    return tuple(lookup("metric", name, MEASURES) for name in names)
