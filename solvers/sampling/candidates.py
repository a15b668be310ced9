"""What a pilot tries: solvers, spacings, starts and ends, the likeliest first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser
from ...models.statistics import KINDS, Statistics
from ..families.composed import SparedStart
from ..families.preconditioned import GaussianPreconditioned
from ..families.registry import get, names
from ..tables.grids import Blend, Grid, named, times
from ..tables.solver import Solver
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau
from .budget import in_steps, largest

Table = Tableau | SpectralTable

SOLVERS = (
    "ipndm-2",
    "zeab-2",
    "ipndm-3",
    "unipc-2-noise",
    "zeab-3",
    "unipc-3-noise",
    "dpmpp-2m",
    "ddim",
)
"""Looked at on every blend."""
BLENDS = (0.5, 0.3, 0.7, 0.15, 0.85, 0.0, 1.0)
"""Shares of a grid that are equal steps of lambda, the likeliest first."""
PEERS = (
    ("unipc-2", "uniform"),
    ("dpmpp-2m", "uniform"),
    ("dpmpp-2m", "karras"),
    ("deis-3", "uniform"),
    ("unipc-3-noise", "log_snr"),
    ("heun", "karras"),
    ("lms-4", "karras"),
)
"""What diffusers and k-diffusion do where nothing is chosen, and their own best settings."""
SPACINGS = (
    "karras",
    "log_snr",
    "uniform",
    "quadratic",
    "cosine",
    "laplace",
    "laplace-wide",
    "shifted",
    "beta",
)
"""Grids that are tried with what was best on blends."""
NOISY = 30.0
"""sigma/alpha at t_max from which the first call may be spared: x there is noise to 3 %."""
SPARE = 20
"""Calls from which sparing the first is not tried."""
NOISIEST = 1e3
"""sigma/alpha from which on a grid whose first call is spared lays no node."""
FULL = 256
"""Components of an event up to which its whole covariance is used."""
FIRST_RATIOS = (None, 32.0, 16.0, 8.0, 4.0)
"""sigma/alpha of the first call of tables that know the data's mean and covariance."""


@dataclass(frozen=True)
class Candidate:
    """A solver on a grid, with its first call spared or not, and its end.

    solver: a name, or a solver.
    grid: a name, or a `Grid`.
    spared: whether the first step is taken without a call, on a grid of one step more.
    final: 't_min', 'denoise', or None for the solver's own.
    """

    solver: str | Solver | GaussianPreconditioned
    grid: str | Grid
    spared: bool = False
    final: str | None = "t_min"

    @classmethod
    def blended(
        cls, solver: str, w: float, spared: bool = False, final: str | None = "t_min"
    ) -> Candidate:
        """On a blend of equal steps of lambda, a share of w, and equal steps of the clock."""
        return cls(solver, Blend(w, NOISIEST if spared else None), spared, final)

    def table(self, model: Denoiser, nfe: int) -> Table:
        """Its table of nfe calls, or of less where it makes several a step.

        Raises ValueError where there is none.
        """
        solver = get(self.solver)
        grid = named(self.grid) if isinstance(self.grid, str) else self.grid
        if isinstance(solver, GaussianPreconditioned):
            return self._of_calls(solver, grid, model, nfe)
        solver = SparedStart(solver) if self.spared else solver
        if self.final is not None:
            made = in_steps(solver, model, grid, self.final, nfe + self.spared)
            if made.nfe == nfe:
                return made
        return largest(solver, model, grid, self.final, nfe)

    def _of_calls(
        self, solver: GaussianPreconditioned, grid: Grid, model: Denoiser, nfe: int
    ) -> Table:
        """On the grid with as many nodes below the first call as it has calls."""
        for steps in range(nfe, 3 * nfe + 8):
            t = times(grid, model.process, steps, self.final or "t_min", model.t_min)
            try:
                made = solver.tableau(model.process, t)
            except ValueError:  # too few nodes below its start
                continue
            if made.nfe >= nfe:
                break
        if made.nfe != nfe:
            raise InvalidValue(f"{self} makes {nfe} calls on no number of steps")
        return made

    def __str__(self) -> str:
        first = ", first call spared" if self.spared else ""
        end = "" if self.final is None else f", final={self.final!r}"
        grid = self.grid
        if isinstance(grid, Blend):
            grid = f"blend {grid.w:g}"
        elif isinstance(grid, Grid):
            grid = type(grid).__name__.lower()
        solver = self.solver
        if isinstance(solver, GaussianPreconditioned):
            start = "" if solver.start is None else f" from {solver.start:g}"
            solver = f"gaussian-{solver.points}{start}"
        return f"{solver} on {grid}{first}{end}"


def on_blends(model: Denoiser, nfe: int, final: str | None = None) -> Iterator[Candidate]:
    """The usual solvers on every blend."""
    noisy = math.exp(-float(model.process.log_snr(model.process.t_max))) > NOISY
    for blend in BLENDS:
        for solver in SOLVERS:
            for spared in (True, False) if noisy and nfe < SPARE else (False,):
                for end in ("t_min", "denoise") if final is None else (final,):
                    yield Candidate.blended(solver, blend, spared, end)


def of_others(final: str | None = None) -> Iterator[Candidate]:
    """The default, and what other libraries do."""
    yield Candidate("relay", "blend", final=final)
    for solver, grid in PEERS:
        yield Candidate(solver, grid, final="denoise" if final is None else final)
        if final is None and grid == "log_snr":
            yield Candidate(solver, grid)


def of_all_families(best: Sequence[Candidate]) -> Iterator[Candidate]:
    """Every other registered solver that draws no noise, where the best are."""
    for name in names(aliases=False):
        if name in SOLVERS or name == "relay" or name.endswith("-afs") or get(name).stochastic:
            continue
        for one in best:
            yield replace(one, solver=name)


def on_all_grids(
    best: Sequence[Candidate], measured: Sequence[Grid], final: str | None = None
) -> Iterator[Candidate]:
    """The best on every other spacing, those that were measured on the network first."""
    every: list[str | Grid] = [*measured, *SPACINGS]
    for grid in every:
        for one in best:
            for end in ("t_min", "denoise") if final is None else (final,):
                yield replace(one, grid=grid, final=end)


def of_statistics(known: Mapping[str, Statistics], final: str | None) -> Iterator[Candidate]:
    """What integrates the linear flow of the data's mean and covariance exactly."""
    for stats in known.values():
        for start in FIRST_RATIOS:
            for grid in ("log_snr", "blend"):
                for points in (2, 1, 3):
                    solver = GaussianPreconditioned(stats, points, start)
                    yield Candidate(solver, grid, final=final or "t_min")


def statistics_of(data: Tensor, event: Sequence[int]) -> dict[str, Statistics]:
    """Statistics of data [M, *event] by kind. Raises ValueError for another shape."""
    if not isinstance(data, Tensor) or tuple(data.shape[1:]) != tuple(event) or len(data) < 2:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise InvalidValue(f"data must be events [M, {', '.join(map(str, event))}]; got {got}")
    d = math.prod(event)
    kinds = [kind for kind in KINDS if d <= FULL or kind != "full"]
    found = {}
    for kind in kinds:
        try:
            found[kind] = Statistics.of(data, kind)
        except ValueError:  # a basis of pictures, where the data are none
            continue
    return found
