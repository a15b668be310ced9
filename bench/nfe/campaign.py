"""Running the cells of a benchmark: planned first, then measured once each, alone or by workers.

A cell's numbers depend on its key alone, so workers, and the processes of torchrun (ranks.py), give
what one process gives; they only share the reference, which is on disk. Results are appended by the
parent as they arrive.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models.checkpoint import Checkpoint, load, load_default
from ...models.data.sets import load as load_data
from ...models.dequantize import dequantised
from ...models.named_targets import get as get_target
from ...models.progress import Bar
from ...solvers.likelihood.items import held_out
from ...solvers.sampling.tune import network_name
from ...solvers.store import Record, Store, ratio_of
from ..measures.quality import Measure, chosen
from ..problems import problem as problems
from ..problems.features import Features, apply
from ..problems.features import load as load_features
from ..problems.plans import Config, Plan, Unavailable, planned
from ..problems.problem import Problem
from ..problems.reference import FINER, TOLERANCES, Reference, cached
from . import cells, ranks
from .cells import Cell

LEVELS = {"small": range(3, len(TOLERANCES) - 1), "narrow": range(1, 4), "large": range(2)}
"""Of the reference: a large problem's tightest is minutes of work, and the rounding of a network in
float32 is not far below."""


@dataclass(frozen=True)
class Spec:
    """What a problem is built from, in any process: an exact target by name, or a checkpoint, by
    its path or itself (None: the network that ships). features: see features.py."""

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
            seen = load_features(seen)
        apply(seen, problem.start[:2])  # what does not fit is refused before anything runs
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


def measure(
    spec: Spec, todo: list[Cell], store: Store, shown: Bar, workers: int, metrics: list[str] | None
) -> Reference:
    """Run the cells (of one problem) that the store has not got; returns the reference they were
    held to, which for a large problem goes no further than the starts if no error to it is asked
    for. metrics: names of the cells' measures, for the workers. The bar knows of the others already."""
    problem = todo[0].problem
    timings = Store(store.path.parent, "timings.jsonl", store.writes)
    planned = _planned(todo, store, shown)
    spans = {c.key: _span(c, planned, store) for c in todo if _runs(c, planned, store)}
    ratios = {start for start, _ in spans.values()}
    if not problem.large or any(m.field == "error" for m in todo[0].measures):
        ratios |= {end for _, end in spans.values()} | {problem.r_min, 0.0}
    for level in LEVELS["large" if problem.large else "narrow" if problem.narrow else "small"]:
        shown.say(f"{problem.name}: reference solution")
        file = reference_file(store, problem)
        reference = ranks.first(partial(cached, file, problem, ratios, level))
        due = [c for c in todo if c.key in spans and not _settled(store, c.key, reference)]
        planned |= {c.key: _plan(c) for c in due if c.key not in planned}
        shown.total(sum(c.key in store for c in due))  # those that a finer reference has again
        for record, seconds in _run(spec, due, planned, reference, workers, metrics):
            timings.append({"key": record["key"], "seconds": round(seconds, 4)})
            store.append(record)
            shown.say(f"{problem.name}: {record['library']} {record['solver']}")
            shown.advance()
        if all(_resolved(store[key], reference.error) for key in spans):
            break
    return reference


def _planned(todo: list[Cell], store: Store, shown: Bar) -> dict[str, Plan]:
    """The plans of cells that are still to be run, by key; what cannot run becomes its row."""
    made: dict[str, Plan] = {}
    for cell in todo:
        if cell.key in store and store[cell.key]["status"] != "unavailable":
            continue  # planning may cost network calls, too
        try:
            made[cell.key] = _plan(cell)
        except Unavailable as error:
            record = cells.unavailable(cell, error)
            if cell.key not in store:
                shown.advance()
            if cell.key not in store or store[cell.key] != record:
                store.append(record)
    return made


def _runs(cell: Cell, planned: dict[str, Plan], store: Store) -> bool:
    """Whether the cell has a plan or was run."""
    return cell.key in planned or store[cell.key]["status"] != "unavailable"


def _span(cell: Cell, planned: dict[str, Plan], store: Store) -> tuple[float, float]:
    """sigma/alpha where the cell starts and ends."""
    if cell.key in planned:
        return planned[cell.key].start, planned[cell.key].end
    return ratio_of(store[cell.key], "start"), ratio_of(store[cell.key], "end")


def _plan(cell: Cell) -> Plan:
    """Its plan, if that starts where the model is defined. Raises Unavailable otherwise."""
    problem = cell.problem
    plan = planned(cell.config, problem, cell.nfe)
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
    planned: dict[str, Plan],
    reference: Reference,
    workers: int,
    metrics: list[str] | None,
) -> Iterator[tuple[Record, float]]:
    """Records and seconds as they are ready."""
    if ranks.size() > 1:
        for cell in due[:1]:
            warm_up(cell.problem)
        for i in range(0, len(due), ranks.size()):
            mine = due[i + ranks.rank() :][:1]
            yield from chain(*ranks.shared([cells.run(c, planned[c.key], reference) for c in mine]))
        return
    if workers == 1 or len(due) < 2:
        for cell in due[:1]:
            warm_up(cell.problem)
        for cell in due:
            yield cells.run(cell, planned[cell.key], reference)
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")  # fork would copy a running thread pool
    with ProcessPoolExecutor(
        workers, context, initializer=_start, initargs=(spec, reference, metrics, threads)
    ) as pool:
        jobs = [pool.submit(_work, cell.config, cell.nfe, cell.key) for cell in due]
        for job in as_completed(jobs):
            yield job.result()


def warm_up(problem: Problem) -> None:
    """One call of the network, which no cell's time then carries."""
    with torch.no_grad():
        problems.data_prediction(problem.model, problem.start, problem.r_min)


_worker: dict[str, Any] = {}


def _start(spec: Spec, reference: Reference, metrics: list[str] | None, threads: int) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    measures: tuple[Measure, ...] = chosen(metrics)
    _worker.update(problem=spec.build(), reference=reference, measures=measures)
    warm_up(_worker["problem"])


def _leave_with_parent() -> None:
    """End this process when the one that started it is killed: nobody else would tell it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(config: Config, nfe: int, key: str) -> tuple[Record, float]:
    problem = _worker["problem"]
    cell = Cell(problem, config, nfe, _worker["measures"])
    if cell.key != key:
        raise InvalidValue(
            f"{problem.name} is another one in every process: what makes it must be the same "
            f"whenever it is called, or workers be 1; {key} became {cell.key}"
        )
    return cells.run(cell, planned(config, problem, nfe), _worker["reference"])
