"""Processes by name, for checkpoints and the command line.

A process is entered where its class stands, by `register`; everything that knows processes by name
(the command line, files, `train`, the tests' conformance suite) reads `PROCESSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ...kernels.errors import InvalidType, InvalidValue, no_such
from .process import Process

Make = TypeVar("Make", bound=Callable[..., Process])

PROCESSES: dict[str, Callable[..., Process]] = {}
"""Makers of processes by name; each works without arguments."""
_NAMES: dict[type[Process], str] = {}


def register(name: str, kind: type[Process] | None = None) -> Callable[[Make], Make]:
    """A decorator that enters a class, or a function that makes processes, under a name.

    kind: the class whose processes are written to files under this name. None: the class that is
    decorated; a function is then a maker alone.
    """

    def enter(make: Make) -> Make:
        PROCESSES[name] = make
        written = kind or (make if isinstance(make, type) else None)
        if written is not None:
            _NAMES[written] = name
        return make

    return enter


def make(name: str, **arguments: Any) -> Process:
    """The process of that name. Raises ValueError for an unknown name."""
    if name not in PROCESSES:
        raise no_such("process", name, PROCESSES)
    return PROCESSES[name](**arguments)


def describe() -> str:
    """'name: what it is' for every process, one a line."""
    lines = (
        (name, (make.__doc__ or "").strip().splitlines()[0]) for name, make in PROCESSES.items()
    )
    return "\n".join(f"{name}: {line}" for name, line in lines)


def to_dict(process: Process) -> dict[str, Any]:
    """{'name', 'args'} from which `from_dict` makes an equal process; ready for JSON.

    Raises ValueError for a process whose class is not registered or that holds code.
    """
    if not isinstance(process, Process):
        raise InvalidType(f"process must be a Process; got {type(process).__name__}")
    name = _NAMES.get(type(process))
    if name is None:
        raise InvalidValue(
            f"process {type(process).__name__} has no name in PROCESSES ({', '.join(PROCESSES)})"
        )
    return {"name": name, "args": process.arguments()}


def from_dict(spec: dict[str, Any]) -> Process:
    """The process that `to_dict` described; raises ValueError for an unknown name."""
    return make(spec["name"], **spec["args"])
