"""One cell of the benchmark: a configuration at one cost, run, counted and measured."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import RunFailure
from ...solvers.store import Record, made_by
from ..measures.quality import DEFAULT, Measure, Run, errors
from ..problems.exact import Inapplicable
from ..problems.memory import high_water
from ..problems.plans import Config, Ours, Plan, Unavailable
from ..problems.problem import Problem, data_prediction
from ..problems.reference import Reference


@dataclass(frozen=True, eq=False)
class Cell:
    """A configuration with a cost. nfe: the most network calls it may make."""

    problem: Problem
    config: Config
    nfe: int
    measures: tuple[Measure, ...] = DEFAULT

    @cached_property
    def key(self) -> str:
        """Everything that determines the numbers, as text."""
        p, c = self.problem, self.config
        made = c.coefficients(p) if isinstance(c, Ours) else ""
        asked = sorted(f"{m.field}:{'/'.join(m.kinds)}" for m in self.measures)
        run = [p.name, p.fingerprint, c.library, c.name, c.grid, self._final, self.nfe, p.seed]
        return json.dumps([*run, " ".join(asked), made, made_by(c.library)])

    @property
    def _final(self) -> str | None:
        return getattr(self.config, "final", None)

    def head(self) -> Record:
        """The columns that say which cell this is."""
        c = self.config
        return {
            "key": self.key,
            "problem": self.problem.name,
            "library": c.library,
            "solver": c.name,
            "grid": c.grid,
            "final": self._final,
            "nfe_asked": self.nfe,
            "batch": len(self.problem.start),
            "seed": self.problem.seed,
            "network": self.problem.identity,
            "versions": made_by(c.library),
        }


class WrongCost(RunFailure):
    """A solver called the network more, or less, often than it declares."""


def run(cell: Cell, plan: Plan, reference: Reference) -> tuple[Record, float]:
    """The cell's record and the seconds the solver took, its warm-up aside. Failures become a record
    that says so."""
    head = {**cell.head(), "nfe": plan.calls, "start": plan.start, "end": plan.end,
            "stochastic": plan.stochastic}  # fmt: skip
    began, w = time.perf_counter(), reference.at(plan.start)
    try:
        # SciPy's states are NumPy's; for the others this is the warm-up, too
        held = None if cell.config.library == "scipy" else high_water(cell.problem, plan, w)
        began = time.perf_counter()
        w = integrate(cell.problem, plan, w)
    except Exception as error:  # noqa: BLE001 a peer may raise anything; the row names it
        message = f"{type(error).__name__}: {error}"
        return {**head, "status": "failed", "message": message}, time.perf_counter() - began
    seconds = time.perf_counter() - began
    if not bool(torch.isfinite(w).all()):
        bad = int((~torch.isfinite(w.flatten(1)).all(1)).sum())
        message = f"diverged: {bad} of {len(w)} samples are not finite"
        return {**head, "status": "failed", "message": message}, seconds
    found = measure(cell.problem, plan, w.cpu(), reference, cell.measures)
    return {**head, "status": "ok", "memory": held, **found}, seconds


def integrate(problem: Problem, plan: Plan, w: Tensor) -> Tensor:
    """Run the plan and hold it to its declared cost. Raises WrongCost."""
    model, counter = problem.counted()
    with torch.no_grad():
        out = plan.run(model, w, problem.seed)
    if counter.calls != plan.calls:
        raise WrongCost(f"made {counter.calls} network calls where its table declares {plan.calls}")
    return out


def unavailable(cell: Cell, error: Unavailable) -> Record:
    """The row of a configuration that cannot run."""
    return {**cell.head(), "status": "unavailable", "message": str(error)}


def measure(
    problem: Problem, plan: Plan, w: Tensor, reference: Reference, measures: Sequence[Measure]
) -> dict[str, Any]:
    """Every number of a finished run with its interval; what does not apply is left out, and why
    is said under 'left_out'."""
    out: dict[str, Any] = {}
    why: dict[str, str] = {}
    kind = "sde" if plan.stochastic else "ode"
    seen = Run(problem, w, plan.end, reference, plan.tableau)
    for m in measures:
        if kind not in m.kinds:
            continue
        try:
            value, lo, hi = m.evaluate(seen)
        except Inapplicable as error:
            why[m.field] = str(error)
            continue
        out |= {m.field: value, f"{m.field}_lo": lo, f"{m.field}_hi": hi}
        if m.field == "error":
            each = errors(seen)
            out |= {"error_median": float(each.median()), "error_max": float(each.max())}
            out["reference_error"] = reference.error
    return out | ({"left_out": why} if why else {})


def clean(problem: Problem, w: Tensor, ratio: float) -> Tensor:
    """The picture of a state: itself at 0, its data prediction otherwise."""
    with torch.no_grad():
        return w if ratio == 0.0 else data_prediction(problem.model, w, ratio)
