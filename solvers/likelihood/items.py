"""The items of a data set as a network is asked about them, read a few at a time.

Bytes are integers on levels; floats are a density's, unless a dequantisation is chosen, which says
that they lie on the levels that the network was trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models.bases import Columns
from ...models.checkpoint import Checkpoint
from ...models.data.formats import stream
from ...models.data.sets import load, split_indices
from ...models.data.sources import Source
from ...models.dequantize import CHOICES, Levels
from ...models.statistics import Statistics

LOOK = 32  # items that are held at a time while they are only looked at
WIDEST = 1024  # components up to which a full covariance is taken
LAW = 16384  # items of which it is taken, evenly spread


def unseen(checkpoint: Checkpoint) -> Source:
    """The events of the checkpoint's data that its training left out, not yet read.

    Its record's "data" says which, "split" how; a split of None means that it saw none of them.
    Raises ValueError where the checkpoint does not say what it was trained on, FileNotFoundError
    where that is not here, and what `stream` raises.
    """
    record = checkpoint.training
    if "data" not in record or "split" not in record:
        raise InvalidValue(
            "the checkpoint does not say which data it was trained on, and how split: name data "
            "that it never saw (--data), or give Checkpoint(training={'data': ..., 'split': None})"
        )
    try:
        source = stream(record["data"])
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the network was trained on {record['data']!r}, which is not here: name data that it "
            "never saw, or run where they lie"
        ) from None
    if record["split"] is None:
        return source
    held = split_indices(len(source), **record["split"])[1].tolist()
    if not held:
        raise InvalidValue(f"the training left out nothing of {record['data']!r}: name other data")
    return source.subset(held)


def held_out(checkpoint: Checkpoint) -> Tensor:
    """All of `unseen` [M, *event], float32, in the network's range."""
    return load(unseen(checkpoint)).to_range(*checkpoint.data_range).x


class Seen(NamedTuple):
    """A mark of the content of each item, and the least and the largest of their numbers."""

    marks: list[str]
    least: float
    most: float


@dataclass(frozen=True, eq=False)
class Items:
    """Items of `source` in a network's range, read a few at a time.

    source: the data, not yet read.
    range: (lo, hi) of what the network takes.
    levels: where the data's levels lie; None: the data are floats.
    stored: levels of a file that holds fewer, spread over its integers: 256 where bytes hold 17
        levels from 0 to 255; None: as many.
    own: half the distance of the levels that the network was trained on, by which floats may exceed
        the range; None: the network was trained on continuous data, and any float may come.
    """

    source: Source
    range: tuple[float, float]
    levels: Levels | None
    own: float | None
    stored: int | None = None

    @classmethod
    def of(
        cls,
        trained: Checkpoint,
        data: str | Path | None,
        convention: str,
        on_levels: bool,
        levels: int | None = None,
    ) -> Items:
        """The items of a data set for a trained network.

        trained: the checkpoint.
        data: what `stream` takes; None: what the network's training held out.
        convention: where levels lie, 'ends' or 'bins'.
        on_levels: whether floats lie on the levels that the network was trained on, if it was on
            any.
        levels: how many levels the data have, spread over the integers of a file that could hold
            more; None: as many as the file can hold.
        Raises ValueError for another event shape, and levels under a network of continuous data.
        """
        source = unseen(trained) if data is None else stream(data)
        if source.event_shape != trained.event_shape:
            same = math.prod(source.event_shape) == math.prod(trained.event_shape)
            raise InvalidValue(
                f"data must hold items of shape {trained.event_shape}, which the network was "
                f"trained on; {source.name} holds {source.event_shape}{': reshape it' * same}"
            )
        if source.levels and not trained.spacing:
            raise InvalidValue(
                f"the network was trained on continuous data, in which the {source.levels} levels "
                f"of {source.name} have no place: hand in floats as it was trained on"
            )
        count = source.levels or (_count(trained) if on_levels else 0)
        if levels is not None and not 2 <= levels <= (count or levels):
            raise InvalidValue(
                f"levels must be from 2 to the {count} that {source.name} can hold; got {levels}"
            )
        stored = source.levels if levels not in (None, source.levels) else None
        count = count if levels is None else levels
        laid = Levels(count, trained.data_range, convention) if count else None
        return cls(source, trained.data_range, laid, 0.5 * trained.spacing or None, stored)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Items [n, *event]: the integers of the levels, or floats in dtype.

        Raises ValueError for what lies outside the range or between two levels.
        """
        x = self.source.read(index)
        where = f"{self.source.name}, items {index[0]} to {index[-1]}"
        if not x.is_floating_point():
            return x if self.stored is None else self._of_fewer(x, where)
        lo, hi = self.range
        if self.levels is not None:
            ends = Levels(self.levels.count, self.range)
            try:
                place = (ends.centres(x.double()) - lo) / ends.spacing
            except ValueError as error:
                raise InvalidValue(f"{where}: {error}") from None
            return place.round().to(torch.uint8 if ends.count <= 256 else torch.int32)
        if self.own is not None:
            least, most = float(x.min()), float(x.max())
            if least < lo - 1.01 * self.own or most > hi + 1.01 * self.own:
                raise InvalidValue(
                    f"data must lie in the network's range {lo:g} to {hi:g}; {where} hold "
                    f"{least:g} to {most:g}: bring them there, or hand in bytes"
                )
        return x.to(dtype)

    def _of_fewer(self, x: Tensor, where: str) -> Tensor:
        """The levels of integers that are spread over more. Raises ValueError between two."""
        assert self.levels is not None and self.stored is not None
        step = (self.stored - 1) / (self.levels.count - 1)
        place = (x.double() / step).round()
        off = (place * step - x).abs()
        if float(off.max()) > 0.5 + 1e-9:  # a level is rounded to the nearest integer
            value = int(x.flatten()[off.flatten().argmax()])
            raise InvalidValue(
                f"{where} hold {value}, between two of {self.levels.count} levels spread over 0 to "
                f"{self.stored - 1}: leave levels out, or say how many there are"
            )
        return place.to(x.dtype)

    def placed(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What `read` gave as floats in the network's range."""
        return x if self.levels is None else self.levels.centres(x, dtype)

    def look(self, count: int, dtype: torch.dtype, advance: Callable[[], None]) -> Seen:
        """Read the first `count` items, a few at a time, and keep a mark of each.

        count: items.
        dtype: of floats.
        advance: called after each item.
        Raises what `read` raises, and ValueError for floats that lie on the levels that the network
        was trained on, where no dequantisation was chosen.
        """
        marks, ends, discrete = [], [], self.levels is None and self.own is not None
        for first in range(0, count, LOOK):
            some = self.read(range(first, min(first + LOOK, count)), dtype)
            ends += [float(some.min()), float(some.max())]
            if discrete and self.own is not None:
                place = (some.double() - self.range[0]) / (2 * self.own)
                discrete = bool(((place - place.round()).abs() < 1e-4).all())
            for x in some:
                marks.append(hashlib.sha256(x.numpy().tobytes()).hexdigest()[:12])
                advance()
        if discrete:
            raise InvalidValue(
                f"all of {self.source.name} lies on the levels that the network was trained on, "
                f"where a density says nothing: choose dequantize={CHOICES}"
            )
        return Seen(marks, min(ends), max(ends))

    def labels(self) -> Tensor:
        """Int64 [N]. Raises ValueError where the data have none, or not one an item."""
        found = self.source.labels()
        if found is None:
            raise InvalidValue(
                f"conditional=True needs labels; {self.source.name} has none: hand in a file with "
                "both, e.g. an .npz with x and y"
            )
        if found.shape != (len(self),) or found.is_floating_point():
            raise InvalidValue(
                f"labels of {self.source.name} must be {len(self)} integers; got {found.dtype} "
                f"{tuple(found.shape)}"
            )
        return found.long()

    def law(self) -> Statistics | None:
        """The Gaussian of at most LAW items, with the noise inside a level; None of fewer than two.

        Its covariance is full up to WIDEST components, else diagonal.
        """
        n, d = min(LAW, len(self)), self.source.read([0]).numel()
        if n < 2:
            return None
        index = [i * len(self) // n for i in range(n)]
        shift = self._flat(index[:LOOK]).mean(0)
        one = torch.zeros(d, dtype=torch.float64, device="cpu")
        two = (
            torch.zeros(d, d, dtype=torch.float64, device="cpu")
            if d <= WIDEST
            else torch.zeros_like(one)
        )
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


def remark(items: Items, trained: Checkpoint, seen: Seen) -> str | None:
    """A sentence where data may not be what the network was trained on: other levels, or floats."""
    (lo, hi), span = trained.data_range, f"{seen.least:g} to {seen.most:g}"
    if items.levels is None:
        return f"note: floats from {span}, as they are; the network's data had {lo:g} to {hi:g}"
    own, given = _count(trained), items.levels.count
    if given == own:
        return None
    return (
        f"note: {items.source.name} is taken as {given} levels, of which {span} occur, and "
        f"bits/dim are of these; the network was trained on {own}"
    )


def _count(trained: Checkpoint) -> int:
    """How many levels the network's data had, 0: they were continuous."""
    lo, hi = trained.data_range
    return round((hi - lo) / trained.spacing) + 1 if trained.spacing else 0
