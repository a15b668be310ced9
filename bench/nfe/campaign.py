"""The cells of a benchmark, each a solver at a cost: prepared, run, counted and measured.

A cell's numbers depend on its key alone, so workers, and the processes of torchrun, give what one
process gives; they only share the reference, which is on disk. Results are appended by the parent
as they arrive. `torchrun --nproc-per-node 2 -m undiffuse bench ...` gives each process its RANK and
WORLD_SIZE, which are read here: every process measures its share, the first one writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.errors import InvalidValue, RunFailure
from ...models.checkpoint import Checkpoint, load, load_default
from ...models.data.sets import load as load_data
from ...models.dequantize import dequantised
from ...models.named_targets import get as get_target
from ...models.progress import Bar
from ...solvers.likelihood.items import held_out
from ...solvers.sampling.tuning import network_name
from ...solvers.store import Record, Store, made_by, ratio_of
from ...solvers.work.engines import each, engine_of
from ...solvers.work.processes import rank, world_size
from ..measures.extractors import extractor
from ..measures.metrics import Features, apply_features
from ..measures.quality import DEFAULT, Measure, Run, chosen, errors
from ..problems import problem as problems
from ..problems.plans import Config, Ours, Plan, Unavailable, high_water, plan_of
from ..problems.problem import (
    FINER,
    TOLERANCES,
    Inapplicable,
    Problem,
    Reference,
    cached,
    data_prediction,
)


@dataclass(frozen=True, eq=False)
class Cell:
    """A configuration with a cost. nfe: the most network calls it may make."""

    problem: Problem
    config: Config
    nfe: int
    measures: tuple[Measure, ...] = DEFAULT

    @cached_property
    def key(self) -> str:
        """Everything that determines the numbers, as text."""
        p, c = self.problem, self.config
        made = c.coefficients(p) if isinstance(c, Ours) else ""
        asked = sorted(f"{m.field}:{'/'.join(m.kinds)}" for m in self.measures)
        run = [p.name, p.fingerprint, c.library, c.name, c.grid, self._final, self.nfe, p.seed]
        return json.dumps([*run, " ".join(asked), made, made_by(c.library)])

    @property
    def _final(self) -> str | None:
        return getattr(self.config, "final", None)

    def head(self) -> Record:
        """The columns that say which cell this is."""
        c = self.config
        return {
            "key": self.key,
            "problem": self.problem.name,
            "library": c.library,
            "solver": c.name,
            "grid": c.grid,
            "final": self._final,
            "nfe_asked": self.nfe,
            "batch": len(self.problem.start),
            "seed": self.problem.seed,
            "network": self.problem.identity,
            "versions": made_by(c.library),
        }


class WrongCost(RunFailure):
    """A solver called the network more, or less, often than it declares."""


def run_cell(cell: Cell, plan: Plan, reference: Reference) -> tuple[Record, float]:
    """The cell's record and the seconds the solver took, its warm-up aside. Failures become a
    record that says so."""
    head = {
        **cell.head(),
        "nfe": plan.calls,
        "start": plan.start,
        "end": plan.end,
        "stochastic": plan.stochastic,
    }
    began, w = time.perf_counter(), reference.at(plan.start)
    try:
        # SciPy's states are NumPy's; for the others this is the warm-up, too
        held = None if cell.config.library == "scipy" else high_water(cell.problem, plan, w)
        began = time.perf_counter()
        w = integrate(cell.problem, plan, w)
    except Exception as error:  # noqa: BLE001 a peer may raise anything; the row names it
        message = f"{type(error).__name__}: {error}"
        return {**head, "status": "failed", "message": message}, time.perf_counter() - began
    seconds = time.perf_counter() - began
    if not bool(torch.isfinite(w).all()):
        bad = int((~torch.isfinite(w.flatten(1)).all(1)).sum())
        message = f"diverged: {bad} of {len(w)} samples are not finite"
        return {**head, "status": "failed", "message": message}, seconds
    found = measured(cell.problem, plan, w.cpu(), reference, cell.measures)
    return {**head, "status": "ok", "memory": held, **found}, seconds


def integrate(problem: Problem, plan: Plan, w: Tensor) -> Tensor:
    """Run the plan and hold it to its declared cost. Raises WrongCost."""
    model, counter = problem.counted()
    with torch.no_grad():
        out = plan.run(model, w, problem.seed)
    if counter.calls != plan.calls:
        raise WrongCost(f"made {counter.calls} network calls where its table declares {plan.calls}")
    return out


def unavailable(cell: Cell, error: Unavailable) -> Record:
    """The row of a configuration that cannot run."""
    return {**cell.head(), "status": "unavailable", "message": str(error)}


def measured(
    problem: Problem, plan: Plan, w: Tensor, reference: Reference, measures: Sequence[Measure]
) -> dict[str, Any]:
    """Every number of a finished run with its interval; what does not apply is left out, and why
    is said under 'left_out'."""
    out: dict[str, Any] = {}
    why: dict[str, str] = {}
    kind = "sde" if plan.stochastic else "ode"
    seen = Run(problem, w, plan.end, reference, plan.tableau)
    for m in measures:
        if kind not in m.kinds:
            continue
        try:
            value, lo, hi = m.evaluate(seen)
        except Inapplicable as error:
            why[m.field] = str(error)
            continue
        out |= {m.field: value, f"{m.field}_lo": lo, f"{m.field}_hi": hi}
        if m.field == "error":
            each = errors(seen)
            out |= {"error_median": float(each.median()), "error_max": float(each.max())}
            out["reference_error"] = reference.error
    return out | ({"left_out": why} if why else {})


def clean(problem: Problem, w: Tensor, ratio: float) -> Tensor:
    """The picture of a state: itself at 0, its data prediction otherwise."""
    with torch.no_grad():
        return w if ratio == 0.0 else data_prediction(problem.model, w, ratio)


LEVELS = {"small": range(3, len(TOLERANCES) - 1), "narrow": range(1, 4), "large": range(2)}
"""Of the reference: a large problem's tightest is minutes of work, and the rounding of a network in
float32 is not far below."""


@dataclass(frozen=True)
class Spec:
    """What a problem is built from, in any process: an exact target by name, or a checkpoint, by
    its path or itself (None: the network that ships). features: see metrics.py."""

    batch: int
    seed: int
    target: str | None = None
    checkpoint: str | Checkpoint | None = None
    device: str | None = None
    data: Tensor | str | None = None
    features: str | Features | None = None

    def trained(self) -> Checkpoint:
        """The checkpoint of a spec without a target."""
        if isinstance(self.checkpoint, Checkpoint):
            return self.checkpoint
        if self.checkpoint is None:
            return load_default(self.device)
        return load(self.checkpoint, self.device)

    def held(self) -> Tensor:
        """Real data of the network's kind [M, *event]: those given, as they are or as a data set to
        be read into the network's range, or its own held-out part."""
        if isinstance(self.data, str):
            trained = self.trained()
            x = load_data(self.data).to_range(*trained.data_range).x
            if tuple(x.shape[1:]) != tuple(trained.event_shape):
                raise InvalidValue(
                    f"data {self.data!r} hold events of shape {tuple(x.shape[1:])}, the network's "
                    f"have {tuple(trained.event_shape)}"
                )
            return x
        return held_out(self.trained()) if self.data is None else self.data

    def build(self) -> Problem:
        """Raises what targets, checkpoints, features and `problems` raise for what does not fit."""
        problem, seen = self._plain(), self.features
        if seen is None:
            return problem
        if isinstance(seen, str):
            seen = extractor(seen)
        apply_features(seen, problem.start[:2])  # what does not fit is refused before anything runs
        return replace(problem, features=seen)

    def _plain(self) -> Problem:
        if self.target is not None:
            return problems.exact(get_target(self.target), self.batch, self.seed)
        trained = self.trained()
        about = f"a trained network, {trained.denoiser.process}"
        data = dequantised(self.held(), trained.spacing, self.seed)
        at = self.checkpoint
        name = "network" if isinstance(at, Checkpoint) else network_name(at)
        return problems.network(name, about, trained.denoiser, data, self.batch, self.seed)


def reference_file(store: Store, problem: Problem) -> Path:
    """Where the problem's reference is kept."""
    return store.path.parent / f"reference-{problem.name.replace(' ', '-')}-{problem.seed}.pt"


REFERENCE, SUMMARY, LIKELIHOOD = 60, 40, 40
"""How many cells take as long as a problem's reference, as tables and pictures, and as bits/dim do,
by a run of the networks that ship on two cores."""


def measure(
    spec: Spec,
    todo: list[Cell],
    store: Store,
    shown: Bar,
    workers: int,
    metrics: list[str] | None,
    engine: str | None = None,
) -> Reference:
    """Run the cells of one problem that are not in the store; returns their reference.

    The reference of a large problem holds the starts alone where no cell measures an error to it.

    spec: what the workers build the problem from.
    todo: all cells of the problem, those that are done included.
    store: where records are read and kept.
    shown: the bar; the cells that are not in the store, and a reference, are in its total already.
    workers: processes.
    metrics: names of the cells' measures, for the workers.
    engine: who they are, as of `solvers.work.engines.perform`.
    """
    problem = todo[0].problem
    timings = Store(store.path.parent, "timings.jsonl", store.writes)
    shown.say(f"{problem.name}: tables")
    ready = _prepared(todo, store, shown)
    spans = {c.key: _span(c, ready, store) for c in todo if _runs(c, ready, store)}
    ratios = {start for start, _ in spans.values()}
    if not problem.large or any(m.field == "error" for m in todo[0].measures):
        ratios |= {end for _, end in spans.values()} | {problem.r_min, 0.0}
    further = False  # the first level is counted by the caller
    for level in LEVELS["large" if problem.large else "narrow" if problem.narrow else "small"]:
        shown.say(f"{problem.name}: reference solution")
        file = reference_file(store, problem)
        reference = first_of_all(partial(cached, file, problem, ratios, level))
        shown.total(REFERENCE * further)
        shown.advance(REFERENCE)
        further = True
        due = [c for c in todo if c.key in spans and not _settled(store, c.key, reference)]
        ready |= {c.key: _checked(c) for c in due if c.key not in ready}
        shown.total(sum(c.key in store for c in due))  # those that a finer reference has again
        for record, seconds in _run(spec, due, ready, reference, workers, metrics, engine):
            timings.append({"key": record["key"], "seconds": round(seconds, 4)})
            store.append(record)
            shown.say(f"{problem.name}: {record['library']} {record['solver']}")
            shown.advance()
        if all(_resolved(store[key], reference.error) for key in spans):
            break
    return reference


def _prepared(todo: list[Cell], store: Store, shown: Bar) -> dict[str, Plan]:
    """The cells that are still to be run, prepared, by key; what cannot run becomes a row."""
    made: dict[str, Plan] = {}
    for cell in todo:
        if cell.key in store and store[cell.key]["status"] != "unavailable":
            continue  # planning may cost network calls, too
        try:
            made[cell.key] = _checked(cell)
        except Unavailable as error:
            record = unavailable(cell, error)
            if cell.key not in store:
                shown.advance()
            if cell.key not in store or store[cell.key] != record:
                store.append(record)
    return made


def _runs(cell: Cell, ready: dict[str, Plan], store: Store) -> bool:
    """Whether the cell has a plan or was run."""
    return cell.key in ready or store[cell.key]["status"] != "unavailable"


def _span(cell: Cell, ready: dict[str, Plan], store: Store) -> tuple[float, float]:
    """sigma/alpha where the cell starts and ends."""
    if cell.key in ready:
        return ready[cell.key].start, ready[cell.key].end
    return ratio_of(store[cell.key], "start"), ratio_of(store[cell.key], "end")


def _checked(cell: Cell) -> Plan:
    """Its plan, if that starts where the model is defined. Raises Unavailable otherwise."""
    problem = cell.problem
    plan = plan_of(cell.config, problem, cell.nfe)
    if plan.start > problem.r_max * (1 + 1e-3):
        raise Unavailable(
            f"starts at sigma/alpha = {plan.start:.4g}, above the model's {problem.r_max:.4g}"
        )
    return plan


def _settled(store: Store, key: str, reference: Reference) -> bool:
    """Whether the cell is done, and not so accurate that a finer reference could change it."""
    if key not in store or store[key]["status"] == "unavailable":
        return False
    held_to = store[key].get("reference_error", 0.0)
    return bool(_resolved(store[key], held_to) or held_to <= reference.error)


def _resolved(record: Record, reference_error: float) -> bool:
    """Whether the record's error, if it has one, is far above the reference's."""
    return record.get("error") is None or bool(record["error"] >= FINER * reference_error)


# --- alone, or by workers -----------------------------------------------------------------------


def _run(
    spec: Spec,
    due: list[Cell],
    ready: dict[str, Plan],
    reference: Reference,
    workers: int,
    metrics: list[str] | None,
    engine: str | None,
) -> Iterator[tuple[Record, float]]:
    """Records and seconds as they are ready."""
    if world_size() > 1:
        for cell in due[:1]:
            warm_up(cell.problem)
        for i in range(0, len(due), world_size()):
            mine = due[i + rank() :][:1]
            yield from chain(*gathered([run_cell(c, ready[c.key], reference) for c in mine]))
        return
    if engine != "ray" and (workers == 1 or len(due) < 2):
        for cell in due[:1]:
            warm_up(cell.problem)
        for cell in due:
            yield run_cell(cell, ready[cell.key], reference)
        return
    tasks = [(cell.config, cell.nfe, cell.key) for cell in due]
    threads = max(1, torch.get_num_threads() // workers)
    cells = Cells(spec, reference, metrics, threads, tasks)
    engine = engine_of(engine, workers)
    for _, found in each(cells, range(len(due)), workers=workers, engine=engine):
        yield found


def warm_up(problem: Problem) -> None:
    """Call the network once, so that no cell's time holds its first call."""
    with torch.no_grad():
        problems.data_prediction(problem.model, problem.start, problem.r_min)


@dataclass(eq=False)
class Cells:
    """The cells that are due, by their place: what another process needs to run them."""

    spec: Spec
    reference: Reference
    metrics: list[str] | None
    threads: int
    tasks: list[tuple[Config, int, str]]

    def __getstate__(self) -> dict[str, Any]:
        """Without the problem, which each process builds for itself."""
        return {k: v for k, v in vars(self).items() if k != "problem"}

    @cached_property
    def problem(self) -> Problem:
        """The problem, in this process."""
        torch.set_num_threads(self.threads)
        found = self.spec.build()
        warm_up(found)
        return found

    def __call__(self, place: int) -> tuple[Record, float]:
        config, nfe, key = self.tasks[place]
        problem = self.problem
        cell = Cell(problem, config, nfe, chosen(self.metrics))
        if cell.key != key:
            raise InvalidValue(
                f"{problem.name} is another one in every process: what makes it must be the same "
                f"whenever it is called, or workers be 1; {key} became {cell.key}"
            )
        return run_cell(cell, plan_of(config, problem, nfe), self.reference)


T = TypeVar("T")


@contextmanager
def together() -> Iterator[None]:
    """The processes can talk while the block runs."""
    mine = world_size() > 1 and not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo")
    try:
        yield
        if mine:
            dist.barrier()  # nobody leaves while another still listens
    finally:
        if mine:
            dist.destroy_process_group()


def first_of_all(make: Callable[[], T]) -> T:
    """What `make` returns; the first process calls it before the others, which find its files."""
    if world_size() == 1:
        return make()
    made = make() if rank() == 0 else None
    dist.barrier()
    return make() if made is None else made


def gathered(mine: T) -> list[T]:
    """What every process has, in order of rank."""
    if world_size() == 1:
        return [mine]
    held: list[T | None] = [None] * world_size()
    dist.all_gather_object(held, mine)
    return held  # type: ignore[return-value]
