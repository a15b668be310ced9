"""Solvers by the names that people type elsewhere."""

from __future__ import annotations

from typing import TypeVar

from ...kernels.errors import InvalidValue
from .. import catalogue
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

    name: a registered name, another library's ('DPMSolverMultistepScheduler', 'euler_a', see
        `solvers.catalogue`), or a solver.
    Raises ValueError with the nearest known names otherwise, and for a name that says a grid, too.
    """
    if isinstance(name, Solver | GaussianPreconditioned):
        return name
    found, grid = on_its_grid(name)
    if grid is not None:
        own = next(key for key, value in SOLVERS.items() if value is found)
        raise InvalidValue(
            f"solver {name!r} names a grid, too: say solver={own!r} and grid={grid!r}"
        )
    return found


def on_its_grid(name: str) -> tuple[Solver, str | None]:
    """The solver of a name, and the grid that another library's name says with it, else None.

    Raises ValueError with the nearest known names.
    """
    if isinstance(name, str) and (known := catalogue.ours(name, SOLVERS)) is not None:
        own, grid = known
        return SOLVERS[own], grid
    return lookup("solver", name, SOLVERS), None
