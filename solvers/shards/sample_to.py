"""Samples to a folder, in shards: nothing is lost, nothing is drawn twice, any number of processes.

A sample depends on the run's settings and on its id alone, and so does every shard's content. Under
`out` are written

    run.json                        the settings, which every later call must share
    samples-FIRST-LAST.safetensors  the samples FIRST to LAST - 1, as they are drawn
    index.jsonl                     a line a shard: file, first, last, bytes, sha256

and, while the run lasts, `.work/` with a record for each shard that is done. A run that was killed
goes on with the same call; parts of a run may be drawn by several calls (`ids`), at once or not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.files import read_text, usable, write_text
from ...models import Denoiser
from ...models.data.formats import INDEX
from .. import arguments
from ..sampling.sampler import SOLVER, GridLike, SolverLike
from ..work.engines import Work, engine_of, perform
from ..work.ledger import Record, agreed, named
from ..work.processes import own_device, rank
from . import formats
from .drawing import Drawing

SHARD = 1024
SHARD_BYTES = 2**24
ROWS = 32
BATCH = 256
SETTINGS = "run.json"


MANY = 1 << 40
"""Ids of a run too large to be listed, a terabyte of numbers at the least."""


def sample_to(
    out: str | Path,
    model: Denoiser | str | Path,
    shape: Sequence[int],
    n: int,
    solver: SolverLike = SOLVER,
    steps: int | None = None,
    grid: GridLike | None = None,
    seed: int = 0,
    *,
    ids: tuple[int, int] | None = None,
    cond: dict[str, Any] | None = None,
    nfe: int | None = None,
    final: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    parallel: int | None = None,
    tolerance: float | None = None,
    format: str = "safetensors",
    data_range: tuple[float, float] | None = None,
    shard: int | None = None,
    batch: int = BATCH,
    rows: int = ROWS,
    threads: int = 1,
    workers: int = 1,
    engine: str | None = None,
    progress: bool = False,
) -> Shards:
    """Draw samples with ids 0 to n - 1 into shards in a folder; returns what reads them.

    Every process, batch size and order of drawing gives the same bytes: the network is asked about
    blocks of `rows` samples, in which a sample always has the same place. A call with the settings
    of an earlier one goes on where that was killed. Under torchrun, on any number of machines that
    share the folder, all processes draw.

    out: the folder.
    model: a `Denoiser`, or what names a checkpoint: a path, file.py:function, 'digits'.
    shape: of one sample.
    n: samples of the whole run, >= 1.
    solver, steps, nfe, grid, final, seed, dtype, device, parallel, tolerance: as of `sample`; one
        seed for all. solver 'ddpm-learned' draws with the variances of a `VarianceHead`.
    ids: (first, last), to draw only the ids first to last - 1; default: all n.
    cond: conditions of the network; those with rows have n, one for each id.
    format: 'safetensors', 'npz', 'webdataset' or 'png'.
    data_range: of the samples, which 'png' lays its levels on; default: that of a model by name,
        else (-1, 1).
    shard: ids to a shard, whose first ids are multiples of it; default: 1024, or fewer of large
        samples.
    batch: samples in memory at a time, in whole blocks of `rows`; changes no byte, default 256.
    rows: samples that the network is asked about at a time, default 32.
    threads: of a process on the CPU, default 1: more processes rather than more threads.
    workers: processes of this machine, default 1.
    engine: 'local', 'torchrun' or 'ray'; default: torchrun where that has started this process.
    progress: a bar with rate and time left.

    Raises ValueError and TypeError for bad input before any call, also for a folder with a run of
    other settings, ids that overlap those of another shard, and a shard that is not what the index
    says; OSError, with all shards that are done kept, for a disk that is full.
    """
    engine = engine_of(engine, workers)
    drawing = Drawing(
        _model(model), _event(shape), arguments.whole("n", n, 1), solver, steps, grid, nfe, final,
        seed, cond, dtype, own_device(None if device is None else str(device)), parallel,
        tolerance, rows, threads,
    )  # fmt: skip
    arguments.flag("progress", progress)
    arguments.whole("batch", batch, 1)
    shard = _shard(drawing) if shard is None else arguments.whole("shard", shard, 1)
    first, last = _range(ids, n)
    formats.get(format)
    limits = _limits(data_range, drawing)
    if format == "png" and (len(drawing.shape) != 3 or drawing.shape[0] not in (1, 3)):
        raise InvalidValue(
            f"format 'png' needs samples of shape (1 or 3, height, width); got {drawing.shape}"
        )
    drawing.resolve()
    work = Draws(Path(out), drawing, first, last, format, shard, batch, limits)
    usable(work.folder, work.bytes_to_come(), [INDEX, SETTINGS])
    _refuse_overlaps(work)
    settings = {"format": format, "shard": work.shard, **drawing.settings()}
    if format == "png":
        settings["data_range"] = list(limits)
    agreed(work.folder, settings, SETTINGS, [INDEX])
    if rank() == 0:
        _verify(work)
    perform(work, workers=workers, engine=engine, progress=progress, label="sampling")
    _write_index(work)
    return Shards(work.folder)


@dataclass
class Draws(Work):
    """The shards of a run that are asked for."""

    folder: Path
    drawing: Drawing
    first: int
    last: int
    format: str
    shard: int
    batch: int
    data_range: tuple[float, float]
    job = "samples"

    def __post_init__(self) -> None:
        self.gpus = 1 if str(self.drawing.device).startswith("cuda") else 0

    def units(self) -> list[range]:
        """The ids that are asked for, cut at the multiples of `shard`."""
        cuts = range(self.first // self.shard, (self.last - 1) // self.shard + 1)
        return [
            range(max(self.first, k * self.shard), min(self.last, (k + 1) * self.shard))
            for k in cuts
        ]

    def make(self, unit: range) -> Record:
        """Draw and write a shard."""
        x, told, calls = self.drawing.of(unit.start, unit.stop, self.batch)
        kind = formats.get(self.format)
        path = self.folder / f"samples-{unit.start:09d}-{unit.stop:09d}{kind.ending}"
        ids = torch.arange(unit.start, unit.stop, dtype=torch.int64, device="cpu")
        kind.write(path, {"ids": ids, "x": x.contiguous(), **told}, self.data_range)
        return {
            "file": path.name,
            "first": unit.start,
            "last": unit.stop,
            "nfe": calls,
            "bytes": formats.size(path),
            "sha256": formats.sha256(path),
        }

    def bytes_to_come(self) -> int:
        """Of the shards that are not there yet, at least."""
        ids = self.last - self.first
        if ids < MANY:  # beyond, no list of shards: nobody has drawn a part of it worth the count
            ledger = self.ledger
            ids = sum(len(unit) for unit in self.units() if unit not in ledger)
        size = 8 if self.drawing.dtype == torch.float64 else 4
        return 0 if self.format == "png" else ids * (8 + size * math.prod(self.drawing.shape))


class Shards:
    """The shards of a folder, in the order of their ids.

        for part in Shards("out"):
            part["ids"], part["x"]      # and part["cond.label"], ...

    Iterating reads one shard at a time. records: the lines of index.jsonl. Raises ValueError for a
    folder without an index, and, where it reads it, for a shard that is not what the index says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            raise InvalidValue(f"{self.folder} has no {INDEX}: it must be an out of `sample_to`")
        self.records: list[Record] = [json.loads(line) for line in read_text(path).splitlines()]
        self.format: str = json.loads(read_text(self.folder / SETTINGS))["format"]

    def __len__(self) -> int:
        """How many samples there are."""
        return sum(record["last"] - record["first"] for record in self.records)

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}: {len(self)} samples in {len(self.records)} shards)"

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        read = formats.get(self.format).read
        if read is None:
            raise InvalidValue(
                f"format {self.format!r} holds pictures, not the samples: read the files, or draw "
                "as 'safetensors'"
            )
        for record in self.records:
            check(self.folder, record)
            yield read(self.folder / record["file"])

    def first(self, n: int) -> Tensor:
        """The first n samples, or as many as there are."""
        parts: list[Tensor] = []
        for part in self:
            parts.append(part["x"][: n - sum(map(len, parts))])
            if sum(map(len, parts)) == n:
                break
        return torch.cat(parts)


def check(folder: Path, record: Record) -> None:
    """Raise ValueError for a shard that is not what its record says."""
    path = folder / record["file"]
    found = formats.sha256(path) if path.exists() else "absent"
    if found != record["sha256"]:
        raise InvalidValue(
            f"{path} is not what was written: its sha256 is {found}, the index says "
            f"{record['sha256']}; remove it, and the same call draws it again"
        )


def _verify(work: Draws) -> None:
    """Hold the shards that are done to their records; those that are gone are drawn again.

    A folder that came without its hidden part goes by its index.
    """
    ledger, index = work.ledger, work.folder / INDEX
    if index.is_file() and not ledger.units():
        for line in read_text(index).splitlines():
            record = json.loads(line)
            ledger.put(range(record["first"], record["last"]), record)
    for unit in work.units():
        if unit not in ledger:
            continue
        with ledger.claim(named(unit)):
            record = ledger[unit]
            if not (work.folder / record["file"]).exists():
                ledger.forget(unit)
                continue
            check(work.folder, record)


def _write_index(work: Draws) -> None:
    """All shards that are done by now, whoever drew them."""
    ledger = work.ledger
    with ledger.claim(INDEX):
        lines = [json.dumps(ledger[unit], sort_keys=True) + "\n" for unit in ledger.units()]
        write_text(work.folder / INDEX, "".join(lines))
    ledger.tidy()


def _refuse_overlaps(work: Draws) -> None:
    """Raise ValueError for ids that lie in a shard that is cut elsewhere."""
    there = work.ledger.units()
    for unit in work.units():
        for other in there:
            if other != unit and unit.start < other.stop and other.start < unit.stop:
                raise InvalidValue(
                    f"ids {unit.start}:{unit.stop} overlap {other.start}:{other.stop}, a shard "
                    f"that {work.folder} has from another run; ask for ids that begin or end with "
                    "it, or name another out"
                )


def _model(model: Any) -> Denoiser | str:
    if isinstance(model, str | Path):
        return str(model)
    found: Denoiser = arguments.denoiser(model)
    return found


def _event(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, str | bytes) or not isinstance(shape, Sequence) or not len(shape):
        raise InvalidType(f"shape must be the sizes of one sample, whole numbers; got {shape!r}")
    return tuple(arguments.whole(f"shape[{i}]", size, 1) for i, size in enumerate(shape))


def _shard(drawing: Drawing) -> int:
    """Ids to a shard of some megabytes, which is not long in the drawing."""
    most = SHARD_BYTES // (4 * math.prod(drawing.shape))
    return min(SHARD, max(drawing.rows, 1 << max(0, most.bit_length() - 1)))


def _range(ids: Any, n: int) -> tuple[int, int]:
    """(first, last) of the ids that are asked for."""
    if ids is None:
        return 0, n
    if not isinstance(ids, tuple | list) or len(ids) != 2 or any(type(i) is not int for i in ids):
        raise InvalidType(f"ids must be two whole numbers, (first, last); got {ids!r}")
    first, last = ids
    if not 0 <= first < last <= n:
        raise InvalidValue(f"ids must be 0 <= first < last <= n={n}; got {first}:{last}")
    return first, last


def _limits(data_range: Any, drawing: Drawing) -> tuple[float, float]:
    if data_range is None:
        return (-1.0, 1.0) if drawing.loaded is None else drawing.loaded.data_range
    lo, hi = (arguments.finite("data_range", v) for v in data_range)
    if not lo < hi:
        raise InvalidValue(f"data_range must be (lo, hi), lo < hi; got {data_range}")
    return lo, hi
