"""The items of a data set as a network is asked about them, read a few at a time.

Bytes are integers on levels; floats are a density's, unless a dequantisation is chosen, which says
that they lie on the levels that the network was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models.checkpoint import Checkpoint
from ..models.dequantize import Levels
from ..models.formats import stream
from ..models.sources import Source
from ..solvers.bases import Columns
from ..solvers.spectral import Statistics
from . import heldout

LOOK = 32  # items that are held at a time while they are only looked at
WIDEST = 1024  # components up to which a full covariance is taken
LAW = 16384  # items of which it is taken, evenly spread


@dataclass(frozen=True, eq=False)
class Items:
    """Items of `source` in a network's range. levels: where they lie, by a convention; None: floats.
    own: half the distance of the levels that the network was trained on, by which floats may exceed
    its range; None: of a network of continuous data, any may come."""

    source: Source
    range: tuple[float, float]
    levels: Levels | None
    own: float | None

    @classmethod
    def of(
        cls, trained: Checkpoint, data: str | Path | None, convention: str, on_levels: bool
    ) -> Items:
        """Of the data set that `stream` takes; None: what the network's training held out.

        on_levels: floats are on the levels that the network was trained on, if it was on any.
        Raises ValueError for another event shape, and levels under a network of continuous data.
        """
        source = heldout.unseen(trained) if data is None else stream(data)
        if source.event_shape != trained.event_shape:
            raise ValueError(
                f"data must hold items of shape {trained.event_shape}, which the network was "
                f"trained on; {source.name} holds {source.event_shape}"
            )
        if source.levels and not trained.spacing:
            raise ValueError(
                f"the network was trained on continuous data, in which the {source.levels} levels of "
                f"{source.name} have no place: hand in floats as it was trained on"
            )
        count = source.levels or (_count(trained) if on_levels else 0)
        levels = Levels(count, trained.data_range, convention) if count else None
        return cls(source, trained.data_range, levels, 0.5 * trained.spacing or None)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Items [n, *event]: the integers of the levels, or floats in dtype.

        Raises ValueError for what lies outside the range or between two levels.
        """
        x = self.source.read(index)
        where = f"{self.source.name}, items {index[0]} to {index[-1]}"
        if not x.is_floating_point():
            return x
        lo, hi = self.range
        if self.levels is not None:
            ends = Levels(self.levels.count, self.range)
            try:
                place = (ends.centres(x.double()) - lo) / ends.spacing
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            return place.round().to(torch.uint8 if ends.count <= 256 else torch.int32)
        if self.own is not None:
            least, most = float(x.min()), float(x.max())
            if least < lo - 1.01 * self.own or most > hi + 1.01 * self.own:
                raise ValueError(
                    f"data must lie in the network's range {lo:g} to {hi:g}; {where} hold "
                    f"{least:g} to {most:g}: bring them there, or hand in bytes"
                )
        return x.to(dtype)

    def placed(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What `read` gave as floats in the network's range."""
        return x if self.levels is None else self.levels.centres(x, dtype)

    def digests(self, count: int, dtype: torch.dtype) -> Iterator[str]:
        """A mark of the content of each of the first items; raises what `read` raises."""
        for first in range(0, count, LOOK):
            for x in self.read(range(first, min(first + LOOK, count)), dtype):
                yield hashlib.sha256(x.numpy().tobytes()).hexdigest()[:12]

    def law(self) -> Statistics | None:
        """The Gaussian of the data and of the noise inside a level: mean, and full covariance up to
        WIDEST components, else its diagonal; of up to LAW items. None of fewer than two items."""
        n, d = min(LAW, len(self)), self.source.read([0]).numel()
        if n < 2:
            return None
        index = [i * len(self) // n for i in range(n)]
        shift = self._flat(index[:LOOK]).mean(0)
        one = torch.zeros(d, dtype=torch.float64)
        two = torch.zeros(d, d, dtype=torch.float64) if d <= WIDEST else torch.zeros_like(one)
        for first in range(0, n, LOOK):
            x = self._flat(index[first : first + LOOK]) - shift
            one += x.sum(0)
            two += x.T @ x if two.ndim == 2 else x.square().sum(0)
        mean = one / n
        width = 0.0 if self.levels is None else self.levels.spacing**2 / 12
        if two.ndim == 1:
            spread = (two / n - mean.square()).clamp(min=0.0)
            return Statistics(shift + mean, spread + width)
        values, vectors = torch.linalg.eigh(two / n - torch.outer(mean, mean))
        return Statistics(shift + mean, values.clamp(min=0.0) + width, Columns(vectors))

    def _flat(self, index: Sequence[int]) -> Tensor:
        x = self.read(index, torch.float64)
        return self.placed(x, torch.float64).flatten(1)


def mismatch(items: Items, trained: Checkpoint) -> str | None:
    """A sentence where data lie on other levels than the network was trained on."""
    own, given = _count(trained), items.levels.count if items.levels else 0
    if not given or given == own:
        return None
    return (
        f"note: the network was trained on {own} levels and {items.source.name} has {given}: "
        "bits/dim count the data's"
    )


def _count(trained: Checkpoint) -> int:
    """How many levels the network's data had, 0: they were continuous."""
    lo, hi = trained.data_range
    return round((hi - lo) / trained.spacing) + 1 if trained.spacing else 0
