"""How many steps a number of network calls pays for."""

from __future__ import annotations

from ...kernels.errors import InvalidValue
from ...models import Denoiser
from ..families.preconditioned import GaussianPreconditioned
from ..tables import grids
from ..tables.solver import Solver
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau


def largest(
    solver: Solver | GaussianPreconditioned,
    model: Denoiser,
    grid: str | grids.Grid,
    final: str,
    nfe: int,
) -> Tableau | SpectralTable:
    """The solver's table with the most steps that evaluates `model` at most nfe times.

    Raises ValueError if one step costs more, and what the solver raises for a bad grid.
    """

    def tableau(steps: int) -> Tableau | SpectralTable:
        t = grids.times(grid, model.process, steps, final, model.t_min)
        return solver.tableau(model.process, t)

    low, high = 0, nfe + 2  # low fits (or is nothing), high is too many, though one call be spared
    best: Tableau | SpectralTable | None = None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            made = tableau(middle)
        except ValueError:
            if middle == 1:
                raise
            made = None
        if made is not None and made.nfe <= nfe:
            low, best = middle, made
        elif made is None and best is None:
            low = middle  # too few steps for this scheme (a history, a leading grid): look above
        else:
            high = middle
    if best is None:
        if low:
            tableau(low)  # says why it cannot be made
        raise InvalidValue(
            f"nfe={nfe} evaluations do not pay for one step of {solver} on grid {grid!r}: raise nfe"
        )
    return best
