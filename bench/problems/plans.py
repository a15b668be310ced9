"""A configuration on a grid of a given cost: what will be called, where it starts and ends.

A plan is made before anything runs. It knows the number of network calls that the scheme declares,
and its first and last ratio sigma/alpha, which are what the reference is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser, Process
from ...models.checkpoint import from_code
from ...models.guidance.rule import calls_of
from ...solvers import (
    GaussianPreconditioned,
    Grid,
    Sampler,
    Solver,
    SpectralTable,
    Tableau,
    equidistributed,
    get,
    read,
)
from ...solvers.sampling.budget import largest
from ...solvers.tables import grids as grid_rules
from .problem import Problem, from_unit, ratio_at, to_unit


class Unavailable(Exception):
    """This configuration cannot run here; the message says why. It becomes a row, not a crash."""


@dataclass(frozen=True, eq=False)
class Plan:
    """calls: network evaluations as declared. start, end: ratios sigma/alpha of first and last
    node (end 0: a clean sample). run(model, w, seed): from states w at `start` to w at `end`.
    tableau: of a solver of ours."""

    calls: int
    start: float
    end: float
    stochastic: bool
    run: Callable[[Denoiser, Tensor, int], Tensor]
    tableau: Tableau | None = None


class Config(Protocol):
    """One curve of the plot: a solver with its settings."""

    @property
    def library(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def grid(self) -> str: ...
    def plan(self, problem: Problem, nfe: int) -> Plan:
        """The plan with the most evaluations of the model <= nfe, its `calls`. Raises Unavailable
        where there is none."""
        ...


def planned(config: Config, problem: Problem, nfe: int) -> Plan:
    """The plan with the most network calls <= nfe; guidance may make several an evaluation.

    Raises Unavailable where there is none.
    """
    each = calls_of(problem.model.net)
    if nfe < each:
        raise Unavailable(f"one evaluation makes {each} network calls, not within {nfe}")
    plan = config.plan(problem, nfe // each)
    return replace(plan, calls=plan.calls * each)


@dataclass(frozen=True)
class Ours:
    """A registered solver, or one of the user's (`solver_of`), on a named grid, or on `MEASURED`.
    final: see `solvers.grids.times`."""

    name: str
    grid: str = "log_snr"
    final: str = "t_min"
    library: str = "undiffuse"
    given: Solver | None = None

    @property
    def solver(self) -> Solver:
        return solver_of(self.name) if self.given is None else self.given

    def plan(self, problem: Problem, nfe: int) -> Plan:
        grid, process = laid(problem, self.grid), problem.process
        try:
            tableau = largest(self.solver, problem.model, grid, self.final, nfe)
        except (ValueError, NotImplementedError) as error:
            raise Unavailable(str(error)) from error
        return _plan(process, tableau)

    def coefficients(self, problem: Problem) -> str:
        """A hash of its table on eight steps: a solver that was edited is another."""
        grid = "log_snr" if self.grid == MEASURED else self.grid
        model = problem.model
        try:
            t = grid_rules.times(grid, model.process, 8, self.final, model.t_min)
            made = content(self.solver.tableau(model.process, t))
        except (ValueError, NotImplementedError) as error:
            made = str(error)
        return hashlib.sha256(made.encode()).hexdigest()[:8]


@lru_cache(maxsize=256)
def solver_of(name: str) -> Solver:
    """The solver that is registered under the name, or that package.module:name or file.py:name
    makes when it is called (a class of solvers, or a function).

    Raises ValueError, naming the nearest, for an unknown name, and what the code raises.
    """
    made = from_code(name)
    if made is None:
        return get(name)
    if not isinstance(made, Solver):
        raise InvalidType(f"{name} must make an undiffuse Solver; got {type(made).__name__}")
    return made


def content(tableau: Tableau) -> str:
    """The coefficients to nine digits, without names."""
    columns = (tableau.times, tableau.state, tableau.data, tableau.noise)
    return repr([[f"{v:.9g}" for v in c.flatten().tolist()] for c in columns])


TUNED = "undiffuse tune"
"""Stands in the library's place for tables that were fitted to the problem itself."""


@dataclass(frozen=True)
class Tuned:
    """What a file or folder of tables holds, as `undiffuse tune` writes it: for every cost the table
    with the most calls of those that were tuned to the problem, or to none by name. A statistics
    file is the preconditioned integrator, on the grid log_snr."""

    path: str
    digest: str
    library: str = TUNED
    grid: str = "its own"

    @classmethod
    def of(cls, path: str) -> Tuned:
        """Raises ValueError for a folder without tables."""
        files = _tables(path)
        if not files:
            raise InvalidValue(
                f"no JSON of a table in {path}: run `undiffuse tune --out {path}` first"
            )
        return cls(path, hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:8])

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def final(self) -> str:
        return self.digest  # in the cell's key: other tables are other cells

    def plan(self, problem: Problem, nfe: int) -> Plan:
        process, model = problem.process, problem.model
        found = {}
        for file in _tables(self.path):
            if tuned_to(file) not in (None, problem.name):
                continue
            made = read(file, process)
            if isinstance(made, GaussianPreconditioned):
                pure = float(process.alpha(process.t_max)) == 0  # which is left without a call
                t = grid_rules.times("log_snr", process, nfe + pure, "t_min", model.t_min)
                try:
                    made = made.tableau(process, t)
                except ValueError as error:
                    raise Unavailable(str(error)) from error
            found[made.nfe] = made
        fits = [n for n in found if n <= nfe]
        if not fits:
            raise Unavailable(
                f"its tables for {problem.name} make {', '.join(map(str, sorted(found)))} calls"
                if found
                else f"it has no table for {problem.name}"
            )
        return _plan(process, found[max(fits)])


def _tables(path: str) -> list[Path]:
    """The files of a folder of tables, or the file itself."""
    return sorted(Path(path).rglob("learned-*.json")) if Path(path).is_dir() else [Path(path)]


def tuned_to(file: Path) -> str | None:
    """The problem a table was tuned to, as it says itself. Raises ValueError for no table at all."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        name: str | None = record.get("notes", {}).get("problem")
    except (ValueError, AttributeError) as error:
        raise InvalidValue(f"{file} holds no table: {error}") from error
    return name


def _plan(process: Process, tableau: Tableau | SpectralTable) -> Plan:
    """How a table is run, from its grid's first time to its last."""
    t0, t1 = float(tableau.grid[0]), float(tableau.grid[-1])
    end = 0.0 if t1 == process.t_clean else ratio_at(process, t1)

    def run(model: Denoiser, w: Tensor, seed: int) -> Tensor:
        sampler = Sampler(model, tableau, dtype=torch.float64, device=w.device)
        x = sampler.finish(sampler.init(w.shape, seed, x_init=from_unit(process, w, t0)))
        return to_unit(process, x, t1) if end > 0 else x

    plain = tableau if isinstance(tableau, Tableau) else None
    return Plan(tableau.nfe, ratio_at(process, t0), end, tableau.stochastic, run, plain)


MEASURED = "equidistributed"
"""A grid's name here: laid by a pilot run on the problem, whose calls are not charged to the rows."""
PILOT = 32  # samples, of other noise than the problem's


@lru_cache(maxsize=16)
def laid(problem: Problem, grid: str) -> str | Grid:
    """The grid of that name for this problem."""
    if grid != MEASURED:
        return grid
    shape = (PILOT, *problem.start.shape[1:])
    return equidistributed(problem.model, shape, seed=problem.seed + 1)
