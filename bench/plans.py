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

from ..models import Denoiser, Process
from ..models.guided import calls_of
from ..solvers import (
    GaussianPreconditioned,
    Grid,
    Sampler,
    Solver,
    SpectralTable,
    Tableau,
    equidistributed,
    get,
    names,
    read,
)
from ..solvers import grids as grid_rules
from .problems import Problem, from_unit, ratio_at, to_unit


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
    """A registered solver on a named grid, or on `MEASURED`. final: see `solvers.grids.times`."""

    name: str
    grid: str = "log_snr"
    final: str = "t_min"
    library: str = "undiffuse"

    def plan(self, problem: Problem, nfe: int) -> Plan:
        solver, process = get(self.name), problem.process
        try:
            tableau = largest(solver, problem.model, laid(problem, self.grid), self.final, nfe)
        except (ValueError, NotImplementedError) as error:
            raise Unavailable(str(error)) from error
        return _plan(process, tableau)


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
            raise ValueError(f"no JSON of a table in {path}: run `undiffuse tune --out {path}` first")
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
    record = json.loads(file.read_text(encoding="utf-8"))
    try:
        name: str | None = record.get("notes", {}).get("problem")
    except AttributeError as error:
        raise ValueError(f"{file} holds no table: {error}") from error
    return name


def _plan(process: Process, tableau: Tableau | SpectralTable) -> Plan:
    """How a table is run, from its grid's first time to its last."""
    t0, t1 = float(tableau.grid[0]), float(tableau.grid[-1])
    end = 0.0 if t1 == process.t_clean else ratio_at(process, t1)

    def run(model: Denoiser, w: Tensor, seed: int) -> Tensor:
        sampler = Sampler(model, tableau, dtype=torch.float64, device=w.device)
        state = sampler.init(w.shape, seed, x_init=from_unit(process, w, t0))
        while not state.done:
            out = model.net(state.x_in, state.t_in, **model.cond)
            state = sampler.tell(state, out)
        return to_unit(process, state.x, t1) if end > 0 else state.x

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


def largest(solver: Solver, model: Denoiser, grid: str | Grid, final: str, nfe: int) -> Tableau:
    """The tableau with the most steps whose network evaluations are at most nfe.

    Raises Unavailable if one step already costs more, and what the solver raises for a bad grid.
    """

    def tableau(steps: int) -> Tableau:
        t = grid_rules.times(grid, model.process, steps, final, model.t_min)
        return solver.tableau(model.process, t)

    low, high = 0, nfe + 2  # low fits (or is nothing), high is too many, though one call be spared
    best = None
    while high - low > 1:
        middle = (low + high) // 2
        made = _or_none(tableau, middle) if middle > 1 else tableau(middle)
        if made is not None and made.nfe <= nfe:
            low, best = middle, made
        elif made is None and best is None:
            low = middle  # too few steps for this scheme (a history, a leading grid): look above
        else:
            high = middle
    if best is None:
        raise Unavailable(f"one step costs more than {nfe} network evaluations on grid {grid!r}")
    return best


def _or_none(tableau: Callable[[int], Tableau], steps: int) -> Tableau | None:
    try:
        return tableau(steps)
    except ValueError:
        return None


COMMON = (
    "relay", "ddim", "heun", "dpmpp-2m", "dpmpp-3m-compat", "unipc-3", "unipc-3-noise", "vab-4",
    "ipndm-3", "ipndm-2-afs", "ddpm", "dpmpp-2m-sde",
)  # fmt: skip
"""Looked at first: the default, then what people type."""


def default_solvers(process: Process, limit: int = 12) -> list[str]:
    """The common ones, then of each other family its member of the highest declared order.

    Families are classes of solvers; deterministic and stochastic members count apart. Left out of
    them: stages (at few calls, what follows from one call a step is ahead), tables that the process
    does not have, and those that another name has already ('euler-ancestral' is 'ddpm').
    """
    t = grid_rules.times("log_snr", process, 8, "t_min")
    tables: dict[str, str] = {}
    families: dict[tuple[str, bool], list[tuple[float, str]]] = {}
    for name in [n for n in COMMON if n in names()] + [n for n in names() if n not in COMMON]:
        solver = get(name)
        try:
            tableau = solver.tableau(process, t)
        except (ValueError, NotImplementedError):
            continue
        if tables.setdefault(_content(tableau), name) != name:
            continue
        if tableau.nfe > len(t) - 1 and name not in COMMON:
            continue
        order = solver.weak_order if tableau.stochastic else solver.order
        family = families.setdefault((type(solver).__name__, tableau.stochastic), [])
        family.append((-float(order or 0.0), name))
    chosen = [n for n in COMMON if n in tables.values()]
    for members in families.values():
        if not any(name in chosen for _, name in members):
            chosen.append(min(members)[1])
    return chosen[:limit]


def _content(tableau: Tableau) -> str:
    """The coefficients to nine digits, without names."""
    columns = (tableau.times, tableau.state, tableau.data, tableau.noise)
    return repr([[f"{v:.9g}" for v in c.flatten().tolist()] for c in columns])


def ours(solvers: list[str], grids: list[str], final: str = "t_min") -> list[Config]:
    """Every solver on every grid, and every file or folder of tables among them on its own. Raises
    ValueError, naming the nearest, for unknown names."""
    files = [
        name for name in solvers
        if name.endswith(".json") or (Path(name).is_dir() and name not in names())
    ]  # fmt: skip
    solvers = [name for name in solvers if name not in files]
    for name in solvers:
        get(name)
    for name in grids:
        if name != MEASURED:
            grid_rules.named(name)
    if final not in grid_rules.FINALS:
        known = ", ".join(map(repr, grid_rules.FINALS))
        raise ValueError(f"final must be one of {known}; got {final!r}")
    return [*(Ours(s, g, final) for s in solvers for g in grids), *map(Tuned.of, files)]
