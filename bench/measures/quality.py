"""What is measured of a finished run, each with its interval and the floor of exact samples.

    error            per-sample RMSE to the reference trajectory / data std (deterministic solvers)
    log_density_gap  E log p under the samples less under exact ones, nats a dimension
    sw2              sliced Wasserstein-2 to exact samples / data std
    w2, w1           Wasserstein by an exact assignment, at most OT_POINTS a side / data std
    energy, mmd2     energy distance / data std; squared MMD, Gaussian kernels, median bandwidths
    kl, reverse_kl   KL(samples || exact), KL(exact || samples), nats: the exact density for p, the
                     nearest neighbour's for the samples (Kozachenko & Leonenko; d <= 4)
    js               Jensen-Shannon divergence, nats, by the same densities
    fisher           Fisher divergence a dimension x data variance, to the exact score, both laws
                     blurred by the distance to the BLUR_NEIGHBOUR-th neighbour (d <= 16)
    modes            total variation between the shares of the modes and their weights
    frechet, kid     of features (metrics.py): Frechet distance; polynomial MMD, squared, unbiased
    precision, recall  share of the samples inside the data's 3-neighbour balls, and the other way
    weak_error       largest error of a mean or a deviation / deviation on one Gaussian, exact: from
                     the table, without sampling

Exact samples come from the law; for a trained network from real data, at the run's noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...solvers import Tableau
from ...solvers.arguments import lookup
from ...solvers.intervals import Estimate, mean_interval
from ..problems.problem import (
    Inapplicable,
    Problem,
    Reference,
    data_prediction,
    exact_draw,
    exact_log_density,
    from_unit,
    log_density,
    signal,
    time_at,
)
from . import metrics
from .claims import weak_error
from .metrics import apply_features

OT_POINTS = 512
"""Most points a side of an exact assignment (it costs their cube)."""
KNN_DIM, BLUR_DIM = 4, 16
"""Highest dimension in which a nearest neighbour's density is right to a tenth of a nat, and in
which a kernel estimate with as many neighbours still sees anything."""
BLUR_NEIGHBOUR = 16
"""Its distance among exact samples is the blur of the Fisher divergence."""


@lru_cache(maxsize=64)
def exact_points(problem: Problem, featured: bool, ratio: float, n: int, seed: int) -> Tensor:
    """`exact_draw` as distances take it: flat, or its features; [n, k]."""
    return points(problem, exact_draw(problem, ratio, n, seed), featured)


def points(problem: Problem, x: Tensor, featured: bool) -> Tensor:
    """Samples on the data's scale as rows: their components, or the problem's features."""
    return apply_features(problem.features if featured else None, x)


@lru_cache(maxsize=64)
def blur_of(problem: Problem, ratio: float, n: int) -> float:
    """Distance to the BLUR_NEIGHBOUR-th neighbour among n exact samples, the median."""
    y = exact_points(problem, False, ratio, n, 2 * problem.seed + 76)
    near = torch.cdist(y, y).kthvalue(min(BLUR_NEIGHBOUR + 1, len(y)), dim=1).values
    return float(near.median())


@dataclass(frozen=True, eq=False)
class Run:
    """w: final states [B, *event], at ratio sigma/alpha. reference: for trajectories. tableau: of a
    solver of ours."""

    problem: Problem
    w: Tensor
    ratio: float
    reference: Reference | None = None
    tableau: Tableau | None = None


@dataclass(frozen=True)
class Measure:
    """field: its name in the records. title: for tables, with its unit. meaning: in a sentence, for
    readers who do not know it. evaluate: of a run.

    kinds: of solvers it is shown for: 'ode', 'sde' or both.
    signed: best is 0, and an estimate may fall below it.
    share: 1 is best.
    distance: of two sets [n, k]; featured: in the problem's features.
    """

    field: str
    title: str
    meaning: str
    evaluate: Callable[[Run], Estimate]
    kinds: tuple[str, ...] = ("ode", "sde")
    signed: bool = False
    share: bool = False
    distance: Callable[[Tensor, Tensor], float] | None = None
    featured: bool = False
    in_std: bool = False

    def off(self, value: float) -> float:
        """How far the value is from the best there is, which is 0."""
        return abs(value) if self.signed else abs(1 - value) if self.share else value

    def away(self, e: Estimate) -> Estimate:
        """`off` with its interval; a signed measure's reaches 0 where the value's holds 0."""
        ends = sorted((self.off(e.lo), self.off(e.hi)))
        return Estimate(
            self.off(e.value), 0.0 if self.signed and e.lo <= 0 <= e.hi else ends[0], ends[1]
        )


FLOOR_SEED, FLOOR_REPEATS = 10_000, 8


def floor(problem: Problem, m: Measure, n: int) -> Estimate:
    """What the measure says of n exact samples at the end of the grid: mean, least, largest.

    Raises Inapplicable for one that exact samples do not have.
    """
    r, values = problem.r_min, []
    for seed in range(FLOOR_SEED, FLOOR_SEED + 2 * FLOOR_REPEATS, 2):
        if m.distance is not None:
            two = (exact_points(problem, m.featured, r, n, s) for s in (seed, seed + 1))
            values.append(m.distance(*two) / (problem.std if m.in_std else 1.0))
        else:
            exact = exact_draw(problem, r, n, seed) / math.hypot(1.0, r)
            values.append(m.evaluate(Run(problem, exact, r)).value)
    return Estimate(sum(values) / len(values), min(values), max(values))


# --- the measures -------------------------------------------------------------------------------


def _error(run: Run) -> Estimate:
    return mean_interval(errors(run))


def errors(run: Run) -> Tensor:
    """Each sample's RMSE to the reference / data std, [B]."""
    if run.reference is None:
        raise Inapplicable("samples without a start have no trajectory")
    exact = signal(run.reference.at(run.ratio), run.ratio)
    return metrics.per_sample_rmse(signal(run.w, run.ratio), exact) / run.problem.std


def _against(
    distance: Callable[[Tensor, Tensor], float], in_std: bool, featured: bool
) -> Callable[[Run], Estimate]:
    def evaluate(run: Run) -> Estimate:
        x = points(run.problem, signal(run.w, run.ratio), featured)
        y = exact_points(run.problem, featured, run.ratio, len(x), 2 * run.problem.seed + 76)
        return _scaled(metrics.jackknife(distance, x, y), 1 / run.problem.std if in_std else 1.0)

    return evaluate


def _log_density_gap(run: Run) -> Estimate:
    exact = exact_log_density(run.problem, run.ratio)
    log_p = log_density(run.problem, run.w, run.ratio)
    return metrics.log_density_gap(log_p, exact, run.w[0].numel())


def _kl(run: Run) -> Estimate:
    """E_q [log q - log p], q by its own nearest neighbours."""
    x = _on_process_scale(run, _few_dimensions(run.w))
    log_q = metrics.knn_log_density(x, x, 1, exclude_self=True)
    return mean_interval(log_q - log_density(run.problem, run.w, run.ratio))


def _reverse_kl(run: Run) -> Estimate:
    """E_p [log p - log q], q by the nearest neighbours among the samples."""
    y, log_p = _exact_states(run)
    x = _on_process_scale(run, _few_dimensions(run.w))
    log_q = metrics.knn_log_density(_on_process_scale(run, y), x, 1)
    return mean_interval(log_p - log_q)


def _js(run: Run) -> Estimate:
    y, log_p = _exact_states(run)
    x = _on_process_scale(run, _few_dimensions(run.w))
    return metrics.jensen_shannon(
        x, log_density(run.problem, run.w, run.ratio), _on_process_scale(run, y), log_p
    )


def _exact_states(run: Run) -> tuple[Tensor, Tensor]:
    """As many exact states w as the run has, and their log p."""
    y = exact_draw(run.problem, run.ratio, len(run.w), 2 * run.problem.seed + 76)
    y = y / math.hypot(1.0, run.ratio)
    return y, log_density(run.problem, y, run.ratio)


def _fisher(run: Run) -> Estimate:
    """On the data's scale, x/alpha; the blurred exact law is that of a higher noise level."""
    problem, shape = run.problem, run.w.shape[1:]
    x = signal(_few_dimensions(run.w, BLUR_DIM), run.ratio)
    blur = blur_of(problem, run.ratio, len(x))
    level = math.hypot(run.ratio, blur)

    def score(at: Tensor) -> Tensor:
        w = at.reshape(-1, *shape) / math.hypot(1.0, level)
        return (data_prediction(problem.model, w, level).flatten(1) - at) / level**2

    with torch.no_grad():
        found = metrics.fisher_divergence(x, score, blur)
    return _scaled(found, problem.std**2)


def _weak_error(run: Run) -> Estimate:
    law, table = run.problem.law, run.tableau
    if law is None or len(law.weights) > 1:
        raise Inapplicable(f"{run.problem.name} is not one Gaussian")
    if table is None:
        raise Inapplicable("only a table has an exact law")
    var, basis = torch.linalg.eigh(law.cov)  # a table acts alike on the components of every basis
    value = weak_error(table, run.problem.process, basis.T @ law.mean, var)
    return Estimate(value, value, value)


def _on_process_scale(run: Run, w: Tensor) -> Tensor:
    """States at the run's ratio as the density is of: x at their time, or clean data."""
    process = run.problem.process
    return w if run.ratio == 0.0 else from_unit(process, w, time_at(process, run.ratio))


def _few_dimensions(w: Tensor, most: int = KNN_DIM) -> Tensor:
    if w[0].numel() > most:
        raise Inapplicable(
            f"nearest neighbours estimate no density in {w[0].numel()} dimensions (at most "
            f"{most}); use log_density_gap or sw2"
        )
    return w


def _modes(run: Run) -> Estimate:
    law, w = run.problem.law, run.w
    if law is None or len(law.weights) < 2:
        raise Inapplicable(f"{run.problem.name} has no modes with weights")
    d = (signal(w, run.ratio).flatten(1)[:, None] - law.means).square().sum(2)
    shares = torch.nn.functional.one_hot(d.argmin(1), len(law.weights)).double()
    value = 0.5 * (shares.mean(0) - law.weights).abs().sum()
    spread = (law.weights * (1 - law.weights) / len(w)).sqrt().sum() / 2
    half = metrics.Z95 * float(spread)
    return Estimate(float(value), max(0.0, float(value) - half), float(value) + half)


def _scaled(e: Estimate, by: float) -> Estimate:
    return Estimate(*(v * by for v in e))


def _distance(
    field: str,
    title: str,
    meaning: str,
    of: Callable[[Tensor, Tensor], float],
    in_std: bool = True,
    signed: bool = False,
) -> Measure:
    evaluate = _against(of, in_std, False)
    return Measure(field, title, meaning, evaluate, signed=signed, distance=of, in_std=in_std)


def _featured(
    field: str,
    title: str,
    meaning: str,
    of: Callable[[Tensor, Tensor], float],
    *,
    signed: bool = False,
    share: bool = False,
) -> Measure:
    evaluate = _against(of, False, True)
    return Measure(
        field, title, meaning, evaluate, signed=signed, share=share, distance=of, featured=True
    )


def _capped(p: int) -> Callable[[Tensor, Tensor], float]:
    return lambda x, y: metrics.assignment(x[:OT_POINTS], y[:OT_POINTS], p)


_ALL = (
    Measure(
        "error",
        "error to the reference trajectory / data std",
        "how far a sample ends from where the exact solution of the same equation, from "
        "the same noise, ends: root mean square over its components, in deviations of the "
        "data",
        _error,
        kinds=("ode",),
    ),
    Measure(
        "log_density_gap",
        "mean log density gap, nats/dim (0 is right)",
        "how likely the samples are under the exact law, less how likely exact samples "
        "are: above 0 they keep too close to the modes, below 0 they stray",
        _log_density_gap,
        signed=True,
    ),
    _distance(
        "sw2",
        "sliced Wasserstein-2 / data std",
        "distance of the samples' law from the exact one, mean over many directions in "
        "which both are looked at, in deviations of the data",
        metrics.sliced_wasserstein,
    ),
    _distance(
        "w2",
        "Wasserstein-2, exact assignment / data std",
        "root mean square way from each sample to an exact one, in the best pairing of "
        "the two sets",
        _capped(2),
    ),
    _distance(
        "w1",
        "Wasserstein-1, exact assignment / data std",
        "mean way from each sample to an exact one, in the best pairing of the two sets",
        _capped(1),
    ),
    _distance(
        "energy",
        "energy distance / data std",
        "energy distance of samples and exact samples: 0 for one and the same law",
        metrics.energy_distance,
        signed=True,
    ),
    _distance(
        "mmd2",
        "squared MMD, Gaussian kernels",
        "squared kernel distance of samples and exact samples: 0 for one and the same law",
        metrics.mmd2,
        in_std=False,
        signed=True,
    ),
    Measure(
        "kl",
        "KL(samples || exact), nats",
        "KL divergence of the samples' law from the exact one, nats: large where there "
        "are samples that should not be there",
        _kl,
        signed=True,
    ),
    Measure(
        "reverse_kl",
        "KL(exact || samples), nats",
        "KL divergence of the exact law from the samples', nats: large where samples are missing",
        _reverse_kl,
        signed=True,
    ),
    Measure(
        "js",
        "Jensen-Shannon divergence, nats",
        "Jensen-Shannon divergence: 0 for equal laws, 0.69 nats for laws that never meet",
        _js,
        signed=True,
    ),
    Measure(
        "fisher",
        "Fisher divergence/dim x data variance, blurred",
        "mean squared difference of the two laws' scores, both blurred a little",
        _fisher,
        signed=True,
    ),
    Measure(
        "modes",
        "total variation of the mode weights",
        "share of the samples that would have to change their mode for the right weights",
        _modes,
    ),
    _featured(
        "frechet",
        "Frechet distance of the features",
        "Frechet distance: the features' means and covariances beside those of exact samples",
        metrics.frechet,
    ),
    _featured(
        "kid",
        "kernel distance of the features (KID)",
        "kernel distance of the features from those of exact samples",
        metrics.kid,
        signed=True,
    ),
    _featured(
        "precision",
        "precision (share of samples near data)",
        "share of the samples that lie among exact ones",
        metrics.precision,
        share=True,
    ),
    _featured(
        "recall",
        "recall (share of data near samples)",
        "share of exact samples that lie among the samples",
        metrics.recall,
        share=True,
    ),
    _featured(
        "density",
        "density (data around a sample, 1 is right)",
        "how many neighbourhoods of exact samples a sample lies in, over how many it should",
        metrics.density,
        share=True,
    ),
    _featured(
        "coverage",
        "coverage (share of data with a sample near)",
        "share of exact samples that have a sample in their neighbourhood",
        metrics.coverage,
        share=True,
    ),
    Measure(
        "weak_error",
        "exact weak error / deviation",
        "error of means and deviations, computed from the solver's table without sampling",
        _weak_error,
    ),
)
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
