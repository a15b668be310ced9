"""Events of a data set that is opened but not read; formats.py makes them from files."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidValue

Fetch = Callable[[int, int], Tensor]


@dataclass(frozen=True, eq=False)
class Source:
    """N events of one shape, not yet read.

    shape: (N, *event).
    levels: the events are integers 0 ... levels - 1, or floats where it is 0.
    fetch(a, b): events a ... b - 1 as they are stored.
    labels(): int64 [N], or None.
    """

    name: str
    shape: tuple[int, ...]
    levels: int
    fetch: Fetch
    labels: Callable[[], Tensor | None] = lambda: None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self.shape[1:]

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, index: Sequence[int]) -> Tensor:
        """Events [n, *event] of these indices, neighbours in one piece.

        Raises ValueError for floats that are not finite, and for what turns out to be damaged.
        """
        x = torch.cat([self.fetch(a, b) for a, b in _runs(index)])
        if x.is_floating_point() and not bool((finite := torch.isfinite(x)).all()):
            first = index[int((~finite).flatten(1).any(1).nonzero()[0])]
            raise InvalidValue(
                f"{self.name} must be finite; {int((~finite).sum())} entries are not, the first of "
                f"them in item {first}"
            )
        return x

    def scaled(self, index: Sequence[int], lo: float = -1.0, hi: float = 1.0) -> Tensor:
        """Events [n, *event] float32: levels laid on [lo, hi], floats as they are."""
        x = self.read(index)
        if not self.levels:
            return x.float()
        return x.float() * ((hi - lo) / (self.levels - 1)) + lo

    def subset(self, index: Sequence[int]) -> Source:
        """The events of these indices alone, with their labels."""

        def labels() -> Tensor | None:
            found = self.labels()
            return None if found is None else found[torch.as_tensor(index)]

        return Source(
            self.name,
            (len(index), *self.event_shape),
            self.levels,
            lambda a, b: torch.cat([self.fetch(*run) for run in _runs(index[a:b])]),
            labels,
        )


def _runs(index: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the stretches of neighbours."""
    if isinstance(index, range) and index.step == 1:
        yield index.start, index.stop
        return
    start = 0
    for i in range(1, len(index) + 1):
        if i == len(index) or index[i] != index[i - 1] + 1:
            yield index[start], index[i - 1] + 1
            start = i


def described(
    name: str,
    shape: tuple[int, ...],
    kind: np.dtype[Any] | torch.dtype,
    fetch: Fetch,
    labels: Callable[[], Tensor | None] = lambda: None,
) -> Source:
    """Bytes as 256 levels, floats as they are; raises ValueError for everything else."""
    if len(shape) < 2 or not all(shape):
        raise InvalidValue(f"{name} must be [N, ...] with N >= 1 events; got shape {tuple(shape)}")
    stored = kind == torch.uint8 if isinstance(kind, torch.dtype) else kind == np.uint8
    floats = kind.is_floating_point if isinstance(kind, torch.dtype) else kind.kind == "f"
    if not (stored or floats):
        raise InvalidValue(
            f"{name} must hold floats or bytes (uint8); got {kind}, whose range is not known: "
            "bring it to floats yourself"
        )
    return Source(name, tuple(shape), 256 if stored else 0, fetch, labels)


DATA_NAMES = ("x", "data", "images", "image", "x_train", "samples", "arr_0")
LABEL_NAMES = ("y", "labels", "label", "cond.label", "targets", "y_train", "arr_1")


def choose(entries: Iterable[str], path: Path) -> str:
    """The one entry of a file, or the one with a customary name."""
    names = list(entries)
    lower = {k.lower(): k for k in names}
    found = next((lower[k] for k in DATA_NAMES if k in lower), None)
    if found is None and len(names) == 1:
        found = names[0]
    if found is None:
        raise InvalidValue(
            f"{path} must hold one tensor, or one called {', '.join(DATA_NAMES)}; "
            f"got {', '.join(names) or 'none'}"
        )
    return found


def label_of(entries: Iterable[str]) -> str | None:
    """The entry that holds the labels, if one is called so."""
    lower = {k.lower(): k for k in entries}
    return next((lower[k] for k in LABEL_NAMES if k in lower), None)


def joined(name: str, sources: Sequence[Source]) -> Source:
    """Sources one after the other, as one.

    Raises ValueError where their events differ in shape or levels. Labels are theirs where all have
    some.
    """
    first = sources[0]
    for other in sources:
        if (other.event_shape, other.levels) != (first.event_shape, first.levels):
            raise InvalidValue(
                f"the parts of {name} must hold one kind of event; {first.name} holds "
                f"{first.event_shape} of {first.levels or 'no'} levels, {other.name} "
                f"{other.event_shape} of {other.levels or 'no'}"
            )
    starts = [0, *itertools.accumulate(map(len, sources))]

    def fetch(a: int, b: int) -> Tensor:
        parts = []
        while a < b:
            i = bisect.bisect_right(starts, a) - 1
            end = min(b, starts[i + 1])
            parts.append(sources[i].fetch(a - starts[i], end - starts[i]))
            a = end
        return torch.cat(parts)

    def labels() -> Tensor | None:
        found = [source.labels() for source in sources]
        known = [part for part in found if part is not None]
        return torch.cat(known) if len(known) == len(found) else None

    return Source(name, (starts[-1], *first.event_shape), first.levels, fetch, labels)
