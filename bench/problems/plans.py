"""A solver on a grid at a cost: which run, what will be called, where it starts and ends.

A plan is made before anything runs. It knows the number of network calls that the scheme declares,
and its first and last ratio sigma/alpha, which are what the reference is asked for.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser, Process
from ...models.checkpoint import from_code
from ...solvers import (
    GaussianPreconditioned,
    Sampler,
    Solver,
    SpectralTable,
    Tableau,
    equidistributed,
    get,
    names,
)
from ...solvers.families.tuned import FILES, read
from ...solvers.sampling.budget import in_steps, largest
from ...solvers.sampling.sampler import GRID, SOLVER
from ...solvers.tables import grids as grid_rules
from ...solvers.tables.grids import Grid
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


def plan_of(config: Config, problem: Problem, nfe: int) -> Plan:
    """The plan with the most network calls <= nfe; guidance may make several an evaluation.

    Raises Unavailable where there is none.
    """
    each = problem.model.calls
    if nfe < each:
        raise Unavailable(f"one evaluation makes {each} network calls, not within {nfe}")
    plan = config.plan(problem, nfe // each)
    if each == 1 or plan.tableau is None:
        return replace(plan, calls=plan.calls * each)
    model, times = problem.model, plan.tableau.times.tolist()  # guidance may stand aside at some
    return replace(plan, calls=sum(model.calls_at(t, model.cond) for t in times))


@dataclass(frozen=True)
class Ours:
    """A registered solver, or one of the user's (`solver_of`), on a named grid, or on `MEASURED`.
    final: see `solvers.grids.times`; None is the solver's own end."""

    name: str
    grid: str = "log_snr"
    final: str | None = "t_min"
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
        return of_table(process, tableau)

    def coefficients(self, problem: Problem) -> str:
        """A hash of its table on eight steps: a solver that was edited is another."""
        grid = "log_snr" if self.grid == MEASURED else self.grid
        model = problem.model
        try:
            table = in_steps(self.solver, model, grid_rules.named(grid), self.final, 8)
            assert isinstance(table, Tableau), "a registered solver fills a plain table"
            made = content(table)
        except (ValueError, NotImplementedError) as error:
            made = str(error)
        return hashlib.sha256(made.encode()).hexdigest()[:8]


DEFAULT = Ours(SOLVER, GRID, None)
"""What a call without a solver runs, to the bit."""


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
    """The coefficients to nine digits, or to 1e-9, without names."""
    columns = (tableau.times, tableau.state, tableau.data, tableau.noise)
    return repr([[f"{round(v, 9) + 0.0:.9g}" for v in c.flatten().tolist()] for c in columns])


TUNED = "undiffuse tune"
"""Stands in the library's place for tables that were fitted to the problem itself."""


@dataclass(frozen=True)
class Tuned:
    """What a file or folder of tables holds, as `undiffuse tune` writes it: for every cost the
    table with the most calls of those that were tuned to the problem, or to none by name. A
    statistics file is the preconditioned integrator, on the grid log_snr."""

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
        return of_table(process, found[max(fits)])


def _tables(path: str) -> list[Path]:
    """The files of a folder of tables, or the file itself."""
    return sorted(Path(path).rglob("tuned-*.json")) if Path(path).is_dir() else [Path(path)]


def tuned_to(file: Path) -> str | None:
    """The problem that a table says it was tuned to. Raises ValueError for what is no table."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        name: str | None = record.get("notes", {}).get("problem")
    except (ValueError, AttributeError) as error:
        raise InvalidValue(f"{file} holds no table: {error}") from error
    return name


def of_table(process: Process, tableau: Tableau | SpectralTable) -> Plan:
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
"""Name of the grid that a pilot run on the problem lays; rows are not charged its calls."""
PILOT = 32  # samples, of other noise than the problem's


@lru_cache(maxsize=16)
def laid(problem: Problem, grid: str) -> Grid:
    """The grid of that name for this problem."""
    if grid != MEASURED:
        return grid_rules.named(grid)
    shape = (PILOT, *problem.start.shape[1:])
    return equidistributed(problem.model, shape, seed=problem.seed + 1)


COMMON = (
    "relay",
    "ddim",
    "heun",
    "dpmpp-2m",
    "dpmpp-3m-compat",
    "unipc-3",
    "unipc-3-noise",
    "vab-4",
    "ipndm-3",
    "ipndm-2-afs",
    "ddpm",
    "dpmpp-2m-sde",
)
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
        if tables.setdefault(content(tableau), name) != name:
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


def ours(
    solvers: Sequence[str | Solver], grids: Sequence[str], final: str | None = None
) -> list[Config]:
    """Every solver on every grid, and every file or folder of tables among them on its own.

    solvers: by name, file.py:name (see `solver_of`), or themselves.
    final: how they end; None: at t_min, and the default as `sample` ends it.
    Raises ValueError, naming the nearest, for unknown names, TypeError for what is no solver.
    """
    files = [s for s in solvers if isinstance(s, str) and _is_table(s)]
    made: list[tuple[str, Solver | None]] = []
    for s in solvers:
        if isinstance(s, Solver):
            made.append((repr(s), s))
        elif s not in files:
            solver_of(s)
            made.append((s, None))
    for name in grids:
        if name != MEASURED:
            grid_rules.named(name)
    if final is not None and final not in grid_rules.FINALS:
        known = ", ".join(map(repr, grid_rules.FINALS))
        raise InvalidValue(f"final must be one of {known}; got {final!r}")
    tables = [
        DEFAULT
        if final is None and solver is None and (name, g) == (DEFAULT.name, DEFAULT.grid)
        else Ours(name, g, final or "t_min", given=solver)
        for name, solver in made
        for g in grids
    ]
    return [*tables, *map(Tuned.of, files)]


def _is_table(name: str) -> bool:
    return name.endswith(FILES) or (Path(name).is_dir() and name not in names())


def high_water(problem: Problem, plan: Plan, w: Tensor) -> float:
    """Most bytes of states alive at once while the plan runs from w, over the bytes of w.

    A state is any tensor of a whole number of batches, a stored path included; tables of the grid
    are not. The network is replaced by one that halves its input, so its own memory is left out;
    what lives inside one operation (a fused step has nothing there) and NumPy's arrays are not
    seen.
    """

    def halved(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x * 0.5

    watch = _Watch(w)
    with torch.no_grad(), watch:
        plan.run(replace(problem.model, net=halved), w, problem.seed)
    return watch.most / (w.numel() * w.element_size())


class _Watch(TorchDispatchMode):
    """Counts the bytes of every storage of states that an operation returns, until it is freed."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.most = 0
        self._batch = w.numel()
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._meet(w)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._meet(leaf)
        return out

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.numel() == 0 or tensor.numel() % self._batch or storage in self._known:
            return
        self._known.add(storage)
        self.live += storage.nbytes()
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.live -= size
