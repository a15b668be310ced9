"""A solver's rows as a pipeline walks them: timesteps, steps, and where a walk may begin."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..kernels.errors import InvalidType, InvalidValue
from ..models import Denoiser
from ..models.processes import Flow
from ..solvers import GaussianPreconditioned, Sampler, Solver, SpectralTable, Tableau, grids
from ..solvers.adaptive.pairs import PAIRS
from ..solvers.families import tuned
from ..solvers.families.registry import get
from ..solvers.tables.spectral import Frame
from .spacing import Nodes, told_at

SolverLike = str | Path | Solver | GaussianPreconditioned | Tableau | SpectralTable
GridLike = str | grids.Grid | Sequence[float] | None


def solver_of(
    given: SolverLike, model: Denoiser
) -> Solver | GaussianPreconditioned | Tableau | SpectralTable:
    """The solver of a registered name, of a file that `tune` or `statistics` wrote, or itself.

    Raises ValueError for one that a pipeline's loop cannot step, saying why.
    """
    if isinstance(given, Solver | GaussianPreconditioned | Tableau | SpectralTable):
        return given
    if isinstance(given, type) and issubclass(given, Solver | GaussianPreconditioned):
        raise InvalidType(f"solver must be a name, a file or an object; got the class {given!r}")
    if not isinstance(given, str | os.PathLike):
        raise InvalidType(f"solver must be a name, a file or an object; got {given!r:.80}")
    name = os.fspath(given)
    if name.endswith(tuned.FILES) or os.sep in name:
        return tuned.read(name, model.process)
    if name in PAIRS or name.startswith("adaptive"):
        raise InvalidValue(
            f"solver {name!r} chooses its steps by their error, so a pipeline cannot step it: use "
            "one of fixed steps, e.g. 'dpmpp-2m' or 'dopri5-fixed'"
        )
    if name.startswith("gaussian"):
        raise InvalidValue(
            f"solver {name!r} needs statistics of the data: hand in the JSON file that `undiffuse "
            "statistics` wrote, or ud.solvers.GaussianPreconditioned(statistics)"
        )
    return get(name)


class Walk(NamedTuple):
    """A sampler, the row of the run at which its own row 0 is, and its normals.

    draws: of each row, the index of each column's normal, or None where its coefficient is 0.
    """

    sampler: Sampler
    offset: int
    draws: list[list[int | None]]


class Run:
    """The table of one `set_timesteps`, and samplers that walk it from a row on.

    table: without an entry: the state of row 0 is the first that the network sees.
    told: what the network is told at each row.
    timesteps: the same on the device, integers where all are.
    times: the process's times of the rows, and where the run ends.
    steps: intervals of the grid.
    order: rows a step where all steps but the last have as many, else 1.
    start: standard deviation of the first state.
    spectral: between states and components, of a table over components; else None.
    alpha: of each row and of the end, by which the pipeline's states x/alpha are multiplied; None
        where its states are x.
    """

    def __init__(
        self,
        model: Denoiser,
        solver: Solver | GaussianPreconditioned | Tableau | SpectralTable,
        nodes: Nodes,
        device: torch.device,
        name: str,
        ratio: bool = False,
    ) -> None:
        self.model, self.solver, self.name = model, solver, name
        nodes = _within(nodes, model)
        if isinstance(solver, Tableau | SpectralTable):
            table = solver
        else:
            table = solver.tableau(model.process, nodes.times)
        self.start = self._start(table, nodes)
        self.table = _entered(table)
        self.grid = nodes.times.tolist()
        self.steps = len(self.grid) - 1
        self.times: list[float] = table.times.tolist()
        exact = model.network_time(table.times)
        told = torch.tensor(
            told_at(nodes, exact, self.times, name), dtype=torch.float64, device="cpu"
        )
        whole = nodes.whole and bool((told == told.round()).all())
        self.timesteps = told.to(torch.int64 if whole else torch.float32).to(device)
        self.told: list[float] = self.timesteps.tolist()
        self.scales: list[float] = model.network_scale(table.times).tolist()
        self.alpha: list[float] | None = None
        if ratio:
            self.alpha = model.process.alpha(torch.cat([table.times, nodes.times[-1:]])).tolist()
            self.start /= self.alpha[0]
            self.scales = self.alpha
        self.order = self._order()
        self.stochastic = bool(table.stochastic)
        self.spectral: Frame | None = None
        if isinstance(table, SpectralTable):
            self.spectral = table.frame(model, torch.device("cpu"), torch.float32)
        self._walks: dict[Any, Walk] = {}

    def _start(self, table: Tableau | SpectralTable, nodes: Nodes) -> float:
        """The deviation of the first state; raises where a pipeline could not provide it."""
        process = self.model.process
        first = table.grid[:1]
        start = nodes.start
        if start is None:
            start = float(torch.hypot(process.alpha(first), process.sigma(first)))
        if isinstance(table, SpectralTable):
            if bool(((table.entry - 1).abs() > 1e-9).any()):
                raise InvalidValue(
                    f"{self.name} moves the state before its first call, component by component, "
                    "where no pipeline asks its scheduler: use one that calls at its first node, "
                    "e.g. GaussianPreconditioned(statistics, start=None)"
                )
            return start
        if table.entry == (1.0, 0.0):
            return start
        if isinstance(process, Flow):
            raise InvalidValue(
                f"{self.name} changes the state before its first call, but pipelines of flows "
                "start from noise of deviation 1 as it is: use another solver, e.g. 'heun'"
            )
        a, c = table.entry
        return math.hypot(a * start, c)

    def _order(self) -> int:
        rows = -(-len(self.times) // self.steps)
        nodes = self.grid[: len(self.times[::rows])]
        even = all(t >= node for t, node in zip(self.times[::rows], nodes, strict=True))
        below = zip(self.times[::rows], self.grid[1:], strict=False)
        return rows if even and all(t > node for t, node in below) else 1

    def walk(self, row: int, device: torch.device, dtype: torch.dtype) -> Walk:
        """What goes through the rows from `row` on.

        Raises ValueError unless `row` begins a step from which the solver can start.
        """
        key = row, device, dtype
        if key not in self._walks:
            whole = looks_back(self.table, row)
            table = self.rest(row) if whole else self.table
            sampler = Sampler(self.model, table, dtype=dtype, device=device)
            pairs = zip(table.noise.tolist(), table.draws.tolist(), strict=True)
            draws = [
                [d if c else None for c, d in zip(scales, rows, strict=True)]
                for scales, rows in pairs
            ]
            self._walks[key] = Walk(sampler, row if whole else 0, draws)
        return self._walks[key]

    def rest(self, row: int) -> Tableau | SpectralTable:
        """The table of a run that begins at a later row, without the history that it would have.

        The rows from there on themselves serve where none looks back; this is for all others.
        """
        refuse = InvalidValue(
            f"a run of {self.name} cannot begin at timestep {row} of {len(self.times)}, which does "
            f"not begin one of its steps: begin at a multiple of scheduler.order={self.order}, or "
            "use a solver with one call a step"
        )
        if isinstance(self.solver, Tableau | SpectralTable):
            raise InvalidValue(
                f"{self.name} is a table whose rows look back, and cannot begin at its timestep "
                f"{row}: name a solver for img2img and for parts of a run"
            )
        if not 0 < row < len(self.times):
            raise refuse
        near = max(i for i, t in enumerate(self.grid) if t >= self.times[row])
        for node in (near, near + 1):
            if node >= self.steps:
                continue
            try:
                made = self.solver.tableau(self.model.process, self.grid[node:])
            except InvalidValue:
                continue
            if made.times.tolist() == self.times[row:]:
                return _entered(made)
        raise refuse


def looks_back(table: Tableau | SpectralTable, row: int) -> bool:
    """Whether a row from `row` on takes states or predictions from before it."""
    return any(
        bool((m[i, i - row + 1 :] != 0).any())
        for i in range(row, table.nfe if row else 0)
        for m in (table.state, table.data)
    )


def _entered(table: Tableau | SpectralTable) -> Tableau | SpectralTable:
    """The table without its entry."""
    return replace(table, entry=(1.0, 0.0)) if isinstance(table, Tableau) else table


def _within(nodes: Nodes, model: Denoiser) -> Nodes:
    """The nodes with an end that was rounded past the process's own moved back to it."""
    times = grids.checked(nodes.times, model.process, model.process.t_clean)
    moved = dict(zip(nodes.times.tolist(), times.tolist(), strict=True))
    return nodes._replace(times=times, told={moved[t]: told for t, told in nodes.told.items()})
