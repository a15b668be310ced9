"""Events of a data set that is opened but not read; formats.py makes them from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
