"""Units as a data set of Ray's: on the cluster that RAY_ADDRESS names, else on this machine.

    ray.data.range(units).map(function)

Each unit is a block, and Ray Data streams them over the cluster. All machines must see the job's
folder under the same path. A task whose process is killed is started again by Ray, elsewhere where
a machine is lost; what a unit raises ends the run.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from ...kernels.errors import MissingPackage

U = TypeVar("U")
R = TypeVar("R")
BLOCKS = 4096
"""Tasks of one data set at most: of more units several share one."""


def by_ray(
    function: Callable[[U], R], units: Sequence[U], most: int, gpus: float
) -> Iterator[tuple[U, R]]:
    """(unit, function(unit)) of every unit, as they are ready.

    function: kept once in Ray's store, and read once by each of its processes.
    most: tasks at a time; 1: as many as Ray has room for.
    gpus: of a task; each has one processor besides.

    Raises MissingPackage without Ray, and what a unit raised.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackage(
            f"engine 'ray' needs Ray's data sets: pip install 'undiffuse[ray]' ({error})"
        ) from None
    if not units:
        return
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        held = [ray.put(function)]  # in a list: handed over as it is
        one = partial(_do, held, secrets.token_hex(8), list(units))
        rows = ray.data.range(len(units), override_num_blocks=min(len(units), BLOCKS))
        pool = ray.data.TaskPoolStrategy(size=None if most == 1 else most)
        told = rows.map(one, compute=pool, num_cpus=1, num_gpus=gpus or None)
        with _quiet(ray):
            for row in told.iter_rows():
                result, raised = ray.cloudpickle.loads(row["told"])
                if raised is not None:
                    raise raised
                yield units[row["id"]], result
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Without Ray Data's own bars and lines, while the run shows its own."""
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        log.setLevel(level)


_own: dict[str, Any] = {}


def _do(held: list[Any], key: str, units: list[Any], row: dict[str, Any]) -> dict[str, Any]:
    """In a process of Ray's: a unit, by the function that the process read at its first.

    What it raises comes back as a value, so that Ray does not wrap it, nor try again.
    """
    import ray

    if key not in _own:
        _own.clear()
        _own[key] = ray.get(held[0])
    try:
        told = ray.cloudpickle.dumps((_own[key](units[row["id"]]), None))
    except Exception as error:  # noqa: BLE001 whatever a unit raises is raised where it is waited for
        told = ray.cloudpickle.dumps((None, error))
    return {"id": row["id"], "told": told}
