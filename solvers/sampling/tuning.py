"""Tables and grids that are fitted to a model: what `ud.tune` returns, minimises and chooses from,
and tuning by name, for the commands `tune` and `statistics`.

    a checkpoint or a target -> `ud.tune` at every number of calls -> tuned-N.json

Tuned, read              a result, and what its file holds as a solver
Distance, StateRMS, Features, Classifier: how far a run is from the exact flow
GITS, gits               nodes chosen by dynamic programming over a fine run
Learned                  a learned table that knows the data's mean and covariance
fingerprint              what a network is known by
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser
from ...models.checkpoint import Checkpoint, load, load_default
from ...models.data.sets import load as load_data
from ...models.data.sets import split
from ...models.dequantize import dequantised
from ...models.named_targets import get as get_target
from ...models.networks import InItsOwnType
from ...models.statistics import Statistics
from ..arguments import dtype_of
from ..distances import Classifier, Distance, Features, StateRMS
from ..families.tuned import Learned, read
from ..work.engines import Work, perform
from ..work.ledger import Record
from ..work.processes import rank, threads, world_size
from . import pilot
from .pilot import Tuned
from .pilot_grid import GITS, digest, fingerprint, gits

__all__ = [
    "GITS",
    "Classifier",
    "Distance",
    "Features",
    "Learned",
    "StateRMS",
    "Tuned",
    "fingerprint",
    "gits",
    "read",
]


def __dir__() -> list[str]:
    return __all__


SMALL_EVENT = 256
"""Components of an event up to which a problem is run on hundreds of samples."""
DRAWS = 8192
"""Exact draws that stand for a target's data, and the most events that statistics are taken of."""
BATCH = 8
"""Rows of the shape that is handed to the tuner, which has its own starts."""


def tune(
    out: str | Path,
    *,
    model: str | Path | None = None,
    target: str | None = None,
    nfe: Sequence[int] = (8,),
    final: str | None = None,
    learn: bool = False,
    data: str | Path | None = None,
    starts: int | None = None,
    iterations: int = 400,
    calls: int = pilot.CALLS,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    workers: int = 1,
    engine: str | None = None,
) -> dict[int, float]:
    """`ud.tune` for every number of calls; returns the errors on starts that chose nothing.

    out: the folder; the table of N calls is tuned-N.json in it. One that is there already, of the
        same network and the same settings, is kept and not looked for again.
    model: as `models.checkpoint.load` takes it; None: the digits.
    target: the name of an exact target, in the place of a model.
    nfe: numbers of network calls, each >= 2.
    final, learn, starts, iterations, calls, seed, device, progress: as for `ud.tune`.
    data: what statistics are taken of; None: what the checkpoint was trained on, where it says so.
    workers, engine: who looks, a process for each number of calls; as of `perform`.
    Raises ValueError for bad input.
    """
    out = Path(out)
    for what, value, least in (
        ("starts", starts, 8),
        ("iterations", iterations, 1),
        ("calls", calls, 1),
    ):
        if value is not None and value < least:
            raise InvalidValue(f"{what} must be >= {least}; got {value}")
    if not nfe or min(nfe) < 2:
        raise InvalidValue(f"nfe must be numbers of calls >= 2; got {list(nfe)}")
    if target is not None and model is not None:
        raise InvalidValue(f"give a model or a target, not both; got {model} and {target!r}")
    name, denoiser, event, known = _posed(model, target, data, device)
    shape = (BATCH, *event)
    starts = pilot.starts_for(event) if starts is None else starts
    network = digest(fingerprint(denoiser, shape))
    events = None if known is None else hashlib.sha256(known.numpy().tobytes()).hexdigest()[:16]
    keys = {
        n: json.dumps([network, n, final, learn, starts, iterations, calls, seed, events])
        for n in nfe
    }
    how: dict[str, Any] = {"final": final, "learn": learn, "starts": starts, "calls": calls}
    how |= {"iterations": iterations, "seed": seed, "device": device}
    how["progress"] = progress and rank() == 0
    work = Tunings(out, model, target, data, keys, how)
    work.posed = name, denoiser, event, known
    kept = [n for n in nfe if work.error(n) is not None]
    for unit in work.units():  # a table that was taken away is made again
        work.ledger.forget(unit)
    perform(work, workers=workers, engine=engine)
    errors = {n: float(work.error(n) or 0.0) for n in nfe}
    if rank() == 0:
        for n in kept:
            print(f"{n} calls: kept, error {errors[n]:.3g}: {work.path(n)}")
        print(_lines(model, target, work.path(nfe[-1]), shape))
    if world_size() == 1:
        work.ledger.clear()
    return errors


@dataclass(eq=False)
class Tunings(Work):
    """The tables that are looked for, one a number of calls.

    keys: for each number of calls, all that determines its table.
    how: keyword arguments of `ud.tune`.
    """

    folder: Path
    model: str | Path | None
    target: str | None
    data: str | Path | None
    keys: dict[int, str]
    how: dict[str, Any]

    def __post_init__(self) -> None:
        every = json.dumps(sorted(self.keys.values())).encode()
        self.job = f"tune-{hashlib.sha256(every).hexdigest()[:12]}"

    def __getstate__(self) -> dict[str, Any]:
        """Without what each process reads for itself."""
        return {k: v for k, v in vars(self).items() if k != "posed"}

    @cached_property
    def posed(self) -> tuple[str, Denoiser, tuple[int, ...], Tensor | None]:
        """The name, the model, an event's shape and the data, in this process."""
        return _posed(self.model, self.target, self.data, self.how["device"])

    def path(self, n: int) -> Path:
        """Of the table of n calls."""
        return self.folder / f"tuned-{n}.json"

    def error(self, n: int) -> float | None:
        """Of the table that is there, if it is the one that was asked for."""
        notes = _notes(self.path(n))
        return float(notes["error"]) if notes.get("key") == self.keys[n] else None

    def units(self) -> list[range]:
        """A unit for each number of calls whose table is not there."""
        return [range(n, n + 1) for n in self.keys if self.error(n) is None]

    def make(self, unit: range) -> Record:
        """Look for a table and write it."""
        (n,) = unit
        name, denoiser, event, known = self.posed
        with threads(1):
            found = pilot.tune(denoiser, (BATCH, *event), n, data=known, **self.how)
        found.save(self.path(n), key=self.keys[n], problem=name)
        print(found)
        return {"error": float(found.notes()["error"])}


def _notes(path: Path) -> dict[str, Any]:
    """What a file says of its making; nothing where there is none, or it does not read."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8")).get("notes", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _lines(model: str | Path | None, target: str | None, path: Path, shape: tuple[int, ...]) -> str:
    """The Python that runs the table."""
    if target is not None:
        where = [
            "from undiffuse.models.named_targets import get",
            f"law = get({target!r})",
            "model = law.law.denoiser(law.process)",
        ]
    else:
        loaded = "ud.load_default()" if model is None else f"ud.load({str(model)!r})"
        where = [f"model = {loaded}.denoiser"]
    return "\n".join(
        [
            "",
            "import undiffuse as ud",
            *where,
            f"x = ud.sample(model, {shape}, {str(path)!r}, seed=0)",
        ]
    )


def _posed(
    model: str | Path | None, target: str | None, data: str | Path | None, device: Any
) -> tuple[str, Denoiser, tuple[int, ...], Tensor | None]:
    """A name as benchmarks have it, the model, the shape of an event, and data of its kind where
    there are any."""
    if target is not None:
        law = get_target(target)
        exact = law.law.denoiser(law.process)
        return target, exact, tuple(law.law.event_shape), law.law.sample(DRAWS, seed=1)
    loaded = load_default(device) if model is None else load(model, device)
    name = network_name(None if model is None else str(model))
    return name, in_float32(loaded.denoiser), loaded.event_shape, training_data(loaded, data)


def in_float32(model: Denoiser) -> Denoiser:
    """The denoiser for states of float32, whatever type its parameters have."""
    if isinstance(model.net, torch.nn.Module) and dtype_of(model) != torch.float32:
        return model.map(InItsOwnType)
    return model


def network_name(checkpoint: str | None) -> str:
    """What a trained network's problem is called: after its file or function."""
    return "digits network" if checkpoint is None else Path(checkpoint.rpartition(":")[2]).stem


def training_data(loaded: Checkpoint, data: str | Path | None = None) -> Tensor | None:
    """Events [M, *event] in the network's range, with noise of their levels' width.

    loaded: the checkpoint.
    data: where they are read; None: what the checkpoint was trained on, without what it held out.
    Returns None where the checkpoint does not say what that was.
    """
    record = loaded.training
    if data is None and "data" not in record:
        return None
    x = load_data(record["data"] if data is None else data).to_range(*loaded.data_range).x
    if data is None and record.get("split") is not None:
        x = split(x, **record["split"])[0]
    if tuple(x.shape[1:]) != loaded.event_shape:
        raise InvalidValue(
            f"data must be events of shape {loaded.event_shape}; got {tuple(x.shape[1:])}"
        )
    return dequantised(x, loaded.spacing, 0)


def statistics(
    *,
    model: str | Path | None = None,
    data: str | Path | None = None,
    kind: str = "leading",
    out: str | Path | None = None,
) -> Path:
    """Take the mean and covariance of a model's data and write them beside it; returns the file.

    The file is a solver: `sample(..., solver=ud.solvers.tuning.read(file, process))`, or
    `undiffuse sample --solver file`.

    model: as `models.checkpoint.load` takes it; None: the digits.
    data: what the statistics are taken of; None: what the checkpoint was trained on.
    kind: of the covariance, as for `Statistics.of`.
    out: a file, or a folder for statistics.json in it; None: the checkpoint's own path with
        .statistics.json for its ending.
    Raises ValueError where there are no data or no place.
    """
    loaded = load_default() if model is None else load(model)
    known = training_data(loaded, data)
    if known is None:
        raise InvalidValue("the checkpoint does not say what it was trained on: give `data`")
    if out is None:
        if model is None or not Path(model).is_file():
            raise InvalidValue(
                "a network that is no file has no place beside it: give out, --out in the shell"
            )
        out = Path(model).with_suffix(".statistics.json")
    if Path(out).is_dir():
        out = Path(out) / "statistics.json"
    return Statistics.of(known, kind).save(out)
