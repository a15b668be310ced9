"""One cell of the benchmark: a configuration at one cost, run, counted and measured."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..kernels import normal
from . import metrics
from .plans import Config, Plan, Unavailable
from .problems import Problem, data_prediction, from_unit, signal, time_at
from .reference import Reference
from .store import Record

EXACT_DRAWS = 2048
"""Exact samples behind the mean log density."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A configuration with a cost. nfe: the most network calls it may make."""

    problem: Problem
    config: Config
    nfe: int

    @property
    def key(self) -> str:
        """Everything that determines the numbers, as text."""
        p, c = self.problem, self.config
        final = getattr(c, "final", "")
        return json.dumps(
            [p.name, p.fingerprint, c.library, c.name, c.grid, final, self.nfe, p.seed]
        )

    def head(self) -> Record:
        """The columns that say which cell this is."""
        c = self.config
        return {
            "key": self.key,
            "problem": self.problem.name,
            "library": c.library,
            "solver": c.name,
            "grid": c.grid,
            "final": getattr(c, "final", None),
            "nfe_asked": self.nfe,
            "batch": len(self.problem.start),
            "seed": self.problem.seed,
        }


class WrongCost(RuntimeError):
    """A solver called the network more, or less, often than it declares."""


def run(cell: Cell, plan: Plan, reference: Reference) -> tuple[Record, float]:
    """The cell's record and the seconds the solver took. Failures become a record that says so."""
    head = {**cell.head(), "nfe": plan.calls, "start": plan.start, "end": plan.end,
            "stochastic": plan.stochastic}  # fmt: skip
    began = time.perf_counter()
    try:
        w = integrate(cell.problem, plan, reference.at(plan.start))
    except Exception as error:  # noqa: BLE001 a peer may raise anything; the row names it
        message = f"{type(error).__name__}: {error}"
        return {**head, "status": "failed", "message": message}, time.perf_counter() - began
    seconds = time.perf_counter() - began
    if not bool(torch.isfinite(w).all()):
        bad = int((~torch.isfinite(w.flatten(1)).all(1)).sum())
        message = f"diverged: {bad} of {len(w)} samples are not finite"
        return {**head, "status": "failed", "message": message}, seconds
    return {**head, "status": "ok", **measure(cell.problem, plan, w, reference)}, seconds


def integrate(problem: Problem, plan: Plan, w: Tensor) -> Tensor:
    """Run the plan and hold it to its declared cost. Raises WrongCost."""
    model, counter = problem.counted()
    with torch.no_grad():
        out = plan.run(model, w, problem.seed)
    if counter.calls != plan.calls:
        raise WrongCost(
            f"made {counter.calls} network calls where its table declares {plan.calls}"
        )
    return out


def unavailable(cell: Cell, error: Unavailable) -> Record:
    """The row of a configuration that cannot run."""
    return {**cell.head(), "status": "unavailable", "message": str(error)}


def measure(problem: Problem, plan: Plan, w: Tensor, reference: Reference) -> dict[str, Any]:
    """Every number of a finished run, with its interval."""
    out: dict[str, Any] = {}
    x = signal(w, plan.end)
    if not plan.stochastic:
        exact = signal(reference.at(plan.end), plan.end)
        error = metrics.per_sample_rmse(x, exact) / problem.std
        out |= _named("error", metrics.mean_interval(error))
        out["error_median"] = float(error.median())
        out["error_max"] = float(error.max())
        out["reference_error"] = reference.error
    elif problem.law is not None or problem.data is not None:
        y = exact_draw(problem, plan.end, len(x), 2 * problem.seed + 76)
        found = metrics.jackknife(metrics.sliced_wasserstein, x, y)
        out |= _named("sw2", metrics.Estimate(*(v / problem.std for v in found)))
    if problem.law is not None:
        exact_mean = _exact_log_density(problem, plan.end)
        log_p = _log_density(problem, w, plan.end)
        out |= _named("log_density_gap", metrics.log_density_gap(log_p, exact_mean, w[0].numel()))
    return out


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
        raise ValueError(f"problem {problem.name!r} has neither a law nor data to draw from")
    g = torch.Generator().manual_seed(seed // 2)
    order = torch.randperm(len(problem.data), generator=g)
    return problem.data[order[seed % 2 :: 2][:n]]


@lru_cache(maxsize=64)
def _exact_log_density(problem: Problem, ratio: float) -> Tensor:
    """log p of exact samples at this ratio, [EXACT_DRAWS]."""
    x = exact_draw(problem, ratio, EXACT_DRAWS, 2 * problem.seed + 77)
    return _log_density(problem, x / math.hypot(1.0, ratio), ratio)


def _log_density(problem: Problem, w: Tensor, ratio: float) -> Tensor:
    """log p of the states w [B, *event] at their noise level, nats, [B]."""
    if problem.law is None:
        raise ValueError(f"problem {problem.name!r} has no density")
    if ratio == 0.0:
        return problem.law.log_prob(w)
    t = time_at(problem.process, ratio)
    return problem.law.log_prob(from_unit(problem.process, w, t), t, problem.process)


def distance_floor(problem: Problem, n: int) -> metrics.Estimate:
    """Sliced W2 of two exact sets of n samples, in the problem's unit; (mean, least, largest)."""
    found = metrics.floor(
        metrics.sliced_wasserstein,
        lambda count, seed: exact_draw(problem, problem.r_min, count, seed),
        n, n,
    )  # fmt: skip
    return metrics.Estimate(*(v / problem.std for v in found))


def clean(problem: Problem, w: Tensor, ratio: float) -> Tensor:
    """The picture of a state: itself at 0, its data prediction otherwise."""
    with torch.no_grad():
        return w if ratio == 0.0 else data_prediction(problem.model, w, ratio)


def _named(name: str, e: metrics.Estimate) -> dict[str, float]:
    return {name: e.value, f"{name}_lo": e.lo, f"{name}_hi": e.hi}
