"""Who does the units of a job: this process, a pool of processes, those of torchrun, or Ray.

A unit's result depends on the unit alone, so all of them give the same. None of them plans: a pool
hands out what is next, torchrun's processes walk the units from different places and skip what is
done or claimed, and Ray places tasks where it has room. What a killed process was at is done again.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ...kernels.errors import InvalidValue, RunFailure, no_such
from ...models.progress import Bar, bar
from ..arguments import whole
from .ledger import Ledger, Record, named
from .processes import leave_with_parent, rank, world_size

U = TypeVar("U")
R = TypeVar("R")
ENGINES = ("local", "torchrun", "ray")
BREAKS = 3
"""Pools in a row that may break before one of them has finished a unit."""


class Work(ABC):
    """A job in units: pickled to whoever does a part of it.

    folder: where its results go, the same for all processes.
    job: a name for its ledger.
    gpus: that a process of it takes.
    """

    folder: Path
    job: str = "units"
    gpus: float = 0

    @abstractmethod
    def units(self) -> list[range]:
        """Ranges of ids, each to be done once. They depend on what was asked for, never on who
        asks."""

    @abstractmethod
    def make(self, unit: range) -> Record:
        """Do one unit, write its files, and return what is to be remembered of it."""

    @property
    def ledger(self) -> Ledger:
        """What is done of it."""
        return Ledger(self.folder, self.job)


def perform(
    work: Work,
    *,
    workers: int = 1,
    engine: str | None = None,
    progress: bool = False,
    label: str = "",
    told: Callable[[Bar, range], None] | None = None,
) -> None:
    """Do all units of a job that are not done.

    workers: processes of the local pool, or the most tasks of Ray at a time; 1 is this process
        (of Ray: as many as it has room for).
    engine: 'local', 'torchrun' or 'ray'; None: torchrun where that has started this process.

    told: called with the bar for each unit that is found done, once its record is there.

    Raises ValueError for an engine or a number that does not fit, RunFailure where workers are
    killed again and again; what `make` raises ends the run, and what is done is kept.
    """
    engine = engine_of(engine, workers)
    units = work.units()
    first = rank() * len(units) // world_size() if engine == "torchrun" else 0
    order = units[first:] + units[:first]
    ledger = work.ledger
    todo = [unit for unit in order if unit not in ledger]
    if progress and rank() == 0 and len(todo) < len(units) and told is None:
        of, come = (sum(map(len, some)) for some in (units, todo))
        by = "already" if world_size() > 1 else "from an earlier run"  # or by the others of this
        print(f"{label}: {of - come} of {of} are there {by}, {come} to come", file=sys.stderr)
    with bar(progress and rank() == 0) as shown:
        shown.total(sum(map(len, todo)))
        shown.say(label)
        for wait in (False, True):  # what another process has claimed is waited for in the end
            left = []
            attempt = partial(_attempt, work, wait)
            done_by = each(attempt, todo, workers=workers, engine=engine, gpus=work.gpus)
            for unit, done in done_by:
                if done:
                    shown.advance(len(unit))
                    if told is not None:
                        told(shown, unit)
                else:
                    left.append(unit)
            todo = left


def engine_of(engine: str | None, workers: int) -> str:
    """The engine that was asked for, or that is at hand."""
    whole("workers", workers, 1)
    if engine is None:
        engine = "torchrun" if world_size() > 1 else "local"
    if engine not in ENGINES:
        raise no_such("engine", engine, ENGINES)
    if world_size() > 1 and (engine != "torchrun" or workers > 1):
        raise InvalidValue(
            f"torchrun started {world_size()} processes: leave workers at 1 and engine out; "
            f"got workers={workers}, engine={engine!r}"
        )
    return engine


def each(
    function: Callable[[U], R],
    units: Sequence[U],
    *,
    workers: int = 1,
    engine: str = "local",
    gpus: float = 0,
) -> Iterator[tuple[U, R]]:
    """(unit, function(unit)) of every unit, as they are ready.

    function: handed once to each process.
    gpus: that a task of Ray's takes.
    """
    if engine == "ray":
        from .by_ray import by_ray

        yield from by_ray(function, units, workers, gpus)
    elif engine == "torchrun" or workers == 1 or len(units) < 2:
        for unit in units:
            yield unit, function(unit)
    else:
        yield from _pooled(function, units, workers)


def _attempt(work: Work, wait: bool, unit: range) -> bool:
    """Whether the unit is done now; it is not where another process is at it and nobody waits."""
    ledger = work.ledger
    if unit in ledger:
        return True
    with ledger.claim(named(unit), wait) as mine:
        if not mine:
            return False
        if unit not in ledger:
            ledger.put(unit, work.make(unit))
    return True


# --- a pool of processes --------------------------------------------------------------------------


def _pooled(function: Callable[[U], R], units: Sequence[U], workers: int) -> Iterator[tuple[U, R]]:
    """By a pool; one that breaks, since a process of it was killed, is followed by another."""
    packed = packed_for_workers(function)
    context = multiprocessing.get_context("spawn")  # fork would copy a running thread pool
    left, broken = list(units), 0
    while left:
        pool = ProcessPoolExecutor(min(workers, len(left)), context, _enter, (packed,))
        try:
            jobs = {pool.submit(_do, unit): unit for unit in left}
            for job in as_completed(jobs):
                result = job.result()
                left.remove(jobs[job])
                broken = 0
                yield jobs[job], result
        except BrokenExecutor:
            broken += 1
            if broken == BREAKS:
                raise RunFailure(
                    "a worker was killed again and again; what is done is kept, and the same "
                    f"command goes on (fewer workers than {workers} need less memory)"
                ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def packed_for_workers(function: Callable[..., Any]) -> bytes:
    """The function as bytes. Raises ValueError for a model that no other process can have."""
    try:
        return pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidValue(
            "other processes must get the model: give a checkpoint's path or file.py:function, or "
            f"a network that pickles; got {error}"
        ) from None


_own: dict[str, Any] = {}


def _enter(packed: bytes) -> None:
    leave_with_parent()
    _own["function"] = pickle.loads(packed)


def _do(unit: Any) -> Any:
    return _own["function"](unit)
