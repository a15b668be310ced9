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
    reusing,
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
    **reusing.SOLVERS,
    **relay.SOLVERS,
}


ALIASES = {
    "euler": "ddim",
    "dpmpp-1m": "ddim",
    "ddpm": "euler-ancestral",
    "edm": "heun",
    "dpm-solver-2": "dpm-2",
    "unip-2": "dpmpp-2m",
    "xeab-3": "dpmpp-3m",
    **{f"zeab-{k}": f"deis-{k}" for k in (2, 3, 4)},
    **{f"ipndm-v-{k}": f"lms-{k}" for k in (2, 3, 4)},
}
"""Names whose tables are another's, up to rounding: alias -> the name that stands for both."""


def names(aliases: bool = True) -> list[str]:
    """Registered names, sorted; aliases=False leaves out those whose tables another name has."""
    return sorted(name for name in SOLVERS if aliases or name not in ALIASES)


def get(name: str | S) -> Solver | S:
    """The solver of that name; one that is given is handed back.

    name: a registered name, or a solver.
    Raises ValueError with the nearest known name otherwise.
    """
    if isinstance(name, Solver | GaussianPreconditioned):
        return name
    return lookup("solver", name, SOLVERS)
