"""Units as tasks of Ray: on the cluster that RAY_ADDRESS names, else on this machine.

All machines must see the job's folder under the same path. A task whose process is killed is
started again by Ray, elsewhere where a machine is lost; what a task raises ends the run.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ...kernels.errors import MissingPackage

U = TypeVar("U")
R = TypeVar("R")


def by_ray(
    function: Callable[[U], R], units: Sequence[U], most: int, gpus: float
) -> Iterator[tuple[U, R]]:
    """(unit, function(unit)) of every unit, as they are ready.

    function: kept once in Ray's store, and read once by each of its processes.
    most: tasks at a time; 1: as many as Ray has room for.
    gpus: of a task; each has one processor besides.

    Raises MissingPackage without Ray, and what a task raised.
    """
    try:
        import ray
    except ImportError:
        raise MissingPackage(
            "engine 'ray' needs Ray, which is not installed: pip install 'undiffuse[ray]'"
        ) from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(_do)
        held, key = [ray.put(function)], secrets.token_hex(8)  # in a list: handed over as it is
        waiting = list(reversed(units))
        running: dict[Any, U] = {}
        while waiting or running:
            while waiting and (most == 1 or len(running) < most):
                unit = waiting.pop()
                running[task.remote(held, key, unit)] = unit
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                unit = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                yield unit, result
    finally:
        if ours:
            ray.shutdown()


_own: dict[str, Any] = {}


def _do(held: list[Any], key: str, unit: Any) -> Any:
    """In a process of Ray's: a unit, by the function that the process read at its first."""
    import ray

    if key not in _own:
        _own.clear()
        _own[key] = ray.get(held[0])
    return _own[key](unit)
