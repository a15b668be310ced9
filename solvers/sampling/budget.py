"""Tables of so many steps, and how many steps a number of network calls pays for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...kernels.errors import InvalidValue
from ...models import Denoiser
from ..arguments import whole
from ..families.preconditioned import GaussianPreconditioned
from ..tables import grids
from ..tables.solver import Solver
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau

BEYOND = 3
"""Steps looked at beyond the first that costs too much: of Restart, 9 steps cost less than 8."""


def in_steps(
    solver: Solver | GaussianPreconditioned,
    model: Denoiser,
    grid: grids.Grid,
    final: str | None,
    steps: int,
) -> Tableau | SpectralTable:
    """The solver's table of so many steps on a grid; final None is the solver's own choice."""
    intervals, end = steps, "denoise"
    if isinstance(solver, Solver):
        solver, intervals, end = solver.on(model.process, steps)
    t = grids.times(grid, model.process, intervals, final or end, model.t_min)
    return solver.tableau(model.process, t)


def as_told(
    model: Denoiser, nfe: int | None, cond: dict[str, Any] | None, batch: int
) -> int | None:
    """nfe as `Sampler` is told it, which sees no conditions and takes guidance for two calls.

    Where the conditions of a run let guidance make one call for both, nfe pays for twice the steps.
    Raises ValueError for an nfe that is no whole number >= 1, or does not pay for one evaluation.
    """
    if nfe is None or model.calls == 1:
        return nfe
    each = model.calls_given(model.given(cond, batch))
    if whole("nfe", nfe) < each:
        raise InvalidValue(
            f"nfe={nfe} does not pay for one step: guidance makes {each} calls in it"
        )
    return nfe // each * model.calls


def largest(
    solver: Solver | GaussianPreconditioned,
    model: Denoiser,
    grid: grids.Grid,
    final: str | None,
    nfe: int,
) -> Tableau | SpectralTable:
    """The solver's table with the most steps that evaluates `model` at most nfe times.

    Raises ValueError if one step costs more, and what the solver raises for a bad grid.
    """

    def tableau(steps: int) -> Tableau | SpectralTable:
        return in_steps(solver, model, grid, final, steps)

    def within(steps: int) -> Tableau | SpectralTable | None:
        """The table of so many steps, where it can be made and is paid for."""
        try:
            made = tableau(steps)
        except ValueError:  # too few steps for this scheme (a history, a leading grid)
            return None
        return made if made.nfe <= nfe else None

    low, high, best = 0, nfe + 2, None  # high is too many, though one call be spared
    while high - low > 1:
        middle = (low + high) // 2
        made = within(middle)
        if made is not None:
            low, best = middle, made
        elif best is None and _refused(tableau, middle):
            low = middle  # look above
        else:
            high = middle
    for steps in range(low + 1, low + 1 + BEYOND if best is not None else 0):
        best = within(steps) or best
    if best is None:
        tableau(low or 1)  # says why it cannot be made
        raise InvalidValue(
            f"nfe={nfe} evaluations do not pay for one step of {solver} on grid {grid!r}: raise nfe"
        )
    return best


def _refused(tableau: Callable[[int], Tableau | SpectralTable], steps: int) -> bool:
    """Whether there is no table of so many steps, whatever it may cost."""
    try:
        tableau(steps)
    except ValueError:
        return True
    return False
