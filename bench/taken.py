"""The features of samples, drawn or given, taken in units of ids by any number of processes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..kernels.errors import InvalidValue
from ..kernels.files import atomically
from ..models.data.formats import stream
from ..models.data.sources import Source
from ..solvers.work.engines import Work
from ..solvers.work.ledger import Record, named
from .measures.extractors import extractor
from .measures.metrics import FEATURE_BATCH, Features, apply_features

UNIT = 1024
"""Ids of a unit."""
PIECE_NUMBERS = 2**24
"""Numbers of the samples that are in memory at a time: 64 MB of float32."""


class Samples(Protocol):
    """Where samples come from, by id."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def of(self, first: int, last: int, batch: int) -> tuple[Tensor, Any, int]: ...

    def settings(self) -> dict[str, Any]: ...


@dataclass
class Given:
    """Samples that are there already: a data set as `stream` takes it, levels laid on [lo, hi]."""

    spec: str
    lo: float = -1.0
    hi: float = 1.0

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "source"}

    @cached_property
    def source(self) -> Source:
        """The data, not yet read."""
        return stream(self.spec)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.source.event_shape

    def of(self, first: int, last: int, batch: int) -> tuple[Tensor, dict[str, Tensor], int]:
        """Events first to last - 1; no network is called."""
        parts = batches(self.source, range(first, last), (self.lo, self.hi), batch)
        return torch.cat([x for _, x in parts]), {}, 0

    def settings(self) -> dict[str, Any]:
        """The data by what up to 64 of its events hold."""
        n = len(self.source)
        some = self.source.read(sorted({i * n // 64 for i in range(64)}))
        seen = hashlib.sha256(some.numpy().tobytes()).hexdigest()[:16]
        return {"samples": self.source.name, "n": n, "content": seen, "range": [self.lo, self.hi]}


@dataclass(kw_only=True)
class FeaturesOf(Work):
    """The features of samples, in units that lie on the disk until all are there."""

    folder: Path
    job: str
    samples: Samples
    first: int
    last: int
    features: str | Features | None
    device: str | None
    batch: int

    def __post_init__(self) -> None:
        self.gpus = 1 if str(self.device).startswith("cuda") else 0

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "network"}

    @cached_property
    def network(self) -> Features | None:
        """What takes the features, in this process."""
        return extractor(self.features, self.device)

    def units(self) -> list[range]:
        """The ids, cut at the multiples of UNIT."""
        cuts = range(self.first // UNIT, (self.last - 1) // UNIT + 1)
        return [range(max(self.first, k * UNIT), min(self.last, (k + 1) * UNIT)) for k in cuts]

    def make(self, unit: range) -> Record:
        """Take the features of a unit and write them."""
        found, calls, size = [], 0, self._piece()
        for first in range(unit.start, unit.stop, size):
            last = min(first + size, unit.stop)
            x, _, calls = self.samples.of(first, last, self.batch)
            found.append(apply_features(self.network, x))
        wide = torch.cat(found)
        narrow = wide.float()  # as networks give them: then nothing is lost
        kept = (narrow if torch.equal(narrow.double(), wide) else wide).numpy()
        path = self._file(unit)

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.save(file, kept)

        atomically(path, write)
        return {"nfe": calls, "rows": len(kept), "sha256": _sha256(path)}

    def _piece(self) -> int:
        """Samples that the feature network is given at a time: by their size alone, so that its
        rounding does not depend on who asks."""
        most = PIECE_NUMBERS // math.prod(self.samples.shape)
        return min(FEATURE_BATCH, 1 << max(3, most.bit_length() - 1))

    def _file(self, unit: range) -> Path:
        return self.ledger.home / f"{named(unit)}.npy"

    def read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(features, ids) of unit after unit. Raises ValueError for one that is not what was
        written."""
        ledger = self.ledger
        for unit in self.units():
            path = self._file(unit)
            if not path.is_file() or _sha256(path) != ledger[unit]["sha256"]:
                ledger.forget(unit)
                raise InvalidValue(f"{path} is not what was written: the same call makes it anew")
            yield torch.from_numpy(np.load(path)), torch.arange(unit.start, unit.stop)

    def clear(self) -> None:
        """Remove the features; the records stay, by which other processes see that all is done."""
        for unit in self.units():
            self._file(unit).unlink(missing_ok=True)
        self.ledger.tidy()

    def again(self) -> None:
        """Forget units whose features are gone."""
        for unit in self.units():
            if unit in self.ledger and not self._file(unit).is_file():
                self.ledger.forget(unit)


def batches(
    source: Source, index: Sequence[int], ends: tuple[float, float], batch: int
) -> Iterator[tuple[list[int], Tensor]]:
    """(ids, events) of a data set, levels laid on `ends`, a batch at a time."""
    for first in range(0, len(index), batch):
        some = index[first : first + batch]
        yield list(some), source.scaled(some, *ends)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
