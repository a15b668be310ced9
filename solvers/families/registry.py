"""Solvers by the names that people type elsewhere."""

from __future__ import annotations

from typing import TypeVar

from ..tables.grids import lookup
from ..tables.solver import Solver
from ..tables.spectral import GaussianPreconditioned
from . import (
    adams,
    exponential,
    heun,
    pndm,
    relay,
    restart,
    runge_kutta,
    sa_solver,
    singlestep,
    stochastic,
    unipc,
)
from . import composed as transforms

S = TypeVar("S", bound="Solver | GaussianPreconditioned")

SOLVERS: dict[str, Solver] = {
    **exponential.SOLVERS,
    **heun.SOLVERS,
    **stochastic.SOLVERS,
    **adams.SOLVERS,
    **unipc.SOLVERS,
    **runge_kutta.SOLVERS,
    **singlestep.SOLVERS,
    **sa_solver.SOLVERS,
    **restart.SOLVERS,
    **pndm.SOLVERS,
    **transforms.SOLVERS,
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
