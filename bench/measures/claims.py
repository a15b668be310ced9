"""What solvers declare, held against algebra.

On N(m, c) data a tableau's output is Gaussian, with a mean and variance that are a product of small
matrices (`gaussian_law`). So its weak error is exact, and the slope of that error between two step
counts is the order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models import Process
from ...solvers import Solver, Tableau, get
from ...solvers.tables.law import gaussian_law, marginal

MEAN = torch.tensor([0.7, -0.4, 1.0], dtype=torch.float64)
VAR = torch.tensor([0.3, 1.7, 0.05], dtype=torch.float64)
LAMBDA = (-1.0, 1.2)
"""The grid runs from this log(alpha/sigma) to this, away from ends where other terms take over."""
SLACK = 0.3
"""How far below its declared order a measured one may lie."""
FLOOR = 1e-11
"""Errors below are rounding; step counts are kept above it."""


@dataclass(frozen=True)
class Claim:
    """declared order, and what was measured (nan: never above rounding; -inf: the law itself is not
    finite); ok: it holds."""

    name: str
    declared: float
    measured: float
    stochastic: bool

    @property
    def ok(self) -> bool:
        return math.isnan(self.measured) or self.measured > self.declared - SLACK

    def sentence(self) -> str:
        """One line for a table."""
        if self.ok:
            return f"{self.name}: order {self.declared:g}, measured {self.measured:.2f}"
        if math.isinf(self.measured):
            return f"{self.name} declares order {self.declared:g} but its law is not finite"
        return (
            f"{self.name} declares order {self.declared:g} but converges at "
            f"{self.measured:.2f} on Gaussian data"
        )


def weak_error(tableau: Tableau, process: Process, mean: Tensor = MEAN, var: Tensor = VAR) -> float:
    """Largest error of the output's means and deviations, over the exact deviations; no sampling.

    mean, var: [d] float64, independent components of the data. Starts on the exact marginal.
    """
    found = gaussian_law(tableau, process, mean, var)
    exact = marginal(process, tableau.grid[-1], mean, var)
    std = exact.var.sqrt()
    off = torch.stack([found.mean - exact.mean, found.var.clamp(min=0).sqrt() - std]) / std
    return float(off.abs().max())


def check(name: str, process: Process, solver: Solver | None = None) -> Claim:
    """Measure the order of a registered solver, or of `solver` under that name.

    Raises what the solver raises for a process it has no table for.
    """
    made = solver if solver is not None else get(name)
    errors: dict[int, float] = {}
    for n in (5, 10, 20, 40, 80, 160):
        tableau = made.tableau(process, _grid(process, n))
        errors[n] = weak_error(tableau, process)
    stochastic = tableau.stochastic
    declared = tableau.weak_order if stochastic else tableau.order
    usable = [(n, e) for n, e in errors.items() if e > FLOOR]
    measured = math.nan
    if not all(map(math.isfinite, errors.values())):
        measured = -math.inf
    elif len(usable) > 1:
        (n0, e0), (n1, e1) = usable[-2:]
        measured = math.log(e0 / e1) / math.log(n1 / n0)
    return Claim(name, float(declared or 0.0), measured, stochastic)


def _grid(process: Process, n: int) -> Tensor:
    """n steps of lambda, neither equal nor symmetric, so that no error cancels by luck.

    The first is split geometrically: a multistep method begins at first order, which in the middle
    of the noise would leave an error of order 2 whatever comes after.
    """
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    u = u + 0.15 * torch.sin(math.pi * u) * u
    fine = u[1] * 4.0 ** -torch.arange(8, 0, -1, dtype=torch.float64)
    u = torch.cat([u[:1], fine, u[1:]])
    return process.inverse_log_snr(LAMBDA[0] + (LAMBDA[1] - LAMBDA[0]) * u)


def broken(solvers: Mapping[str, Solver], process: Process) -> list[Claim]:
    """The claims of the named solvers that do not hold; those without a table here are left out."""
    found = []
    for name, solver in solvers.items():
        try:
            claim = check(name, process, solver)
        except (ValueError, NotImplementedError):
            continue
        if not claim.ok:
            found.append(claim)
    return found
