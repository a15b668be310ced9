"""Solvers by the names that people type elsewhere."""

from __future__ import annotations

from typing import TypeVar

from ..arguments import lookup
from ..tables.solver import Solver
from . import (
    adams,
    composed,
    exponential,
    heun,
    relay,
    restart,
    runge_kutta,
    singlestep,
    stochastic,
    unipc,
)
from .preconditioned import GaussianPreconditioned

S = TypeVar("S", bound="Solver | GaussianPreconditioned")

SOLVERS: dict[str, Solver] = {
    **exponential.SOLVERS,
    **heun.SOLVERS,
    **stochastic.SOLVERS,
    **adams.SOLVERS,
    **unipc.SOLVERS,
    **runge_kutta.SOLVERS,
    **singlestep.SOLVERS,
    **restart.SOLVERS,
    **composed.SOLVERS,
    **relay.SOLVERS,
}


def names() -> list[str]:
    """Registered names, sorted."""
    return sorted(SOLVERS)


def get(name: str | S) -> Solver | S:
    """The solver of that name; one that is given is handed back. Raises ValueError with the nearest
    known name otherwise."""
    if isinstance(name, Solver | GaussianPreconditioned):
        return name
    return lookup("solver", name, SOLVERS)
