"""Data sets by name or path, as one float32 tensor of events, and their held-out split.

    load("digits")                        the 1,797 UCI digits, [N, 1, 8, 8] in [-1, 1]
    load("x.npz"), load("folder/"), ...   whatever `formats.stream` opens, read whole

Integers are taken as quantised and brought to [-1, 1]; floats are left as they are. `spacing` is
the distance of neighbouring levels, which dequantisation and bits/dim need; 0 where the data are
continuous.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from .formats import stream
from .sources import Source


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory.

    x: events [N, *event] float32.
    range: (lo, hi) of their numbers.
    spacing: distance of their levels, 0 for continuous data.
    labels: int64 [N], or None.
    name: of the set.
    """

    x: Tensor
    range: tuple[float, float]
    spacing: float = 0.0
    labels: Tensor | None = None
    name: str = "data"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Data:
        labels = None if self.labels is None else self.labels[index]
        return Data(self.x[index], self.range, self.spacing, labels, self.name)

    def to_range(self, lo: float, hi: float) -> Data:
        """Data with levels brought to [lo, hi]; data without, whose range is only what was seen,
        as they are."""
        if not self.spacing or self.range == (lo, hi):
            return self
        scale = (hi - lo) / (self.range[1] - self.range[0])
        x = (self.x - self.range[0]) * scale + lo
        return Data(x, (lo, hi), self.spacing * scale, self.labels, self.name)

    def split(self, held_out: float = 0.2, seed: int = 0) -> tuple[Data, Data]:
        """(training part, held-out part), see `split_indices`."""
        train, held = split_indices(len(self), held_out, seed)
        return self[train], self[held]


def split_indices(n: int, held_out: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(training, held-out) indices of n events, int64, disjoint, each in rising order.

    The round(held_out n) events whose SHA-256 of "seed:index" is least are held out: the split
    depends on no library's generator, so a recorded (held_out, seed) stays good for ever.
    Raises ValueError unless 0 <= held_out < 1 and an event is left to train on.
    """
    if not 0 <= held_out < 1:
        raise InvalidValue(f"held_out must lie in [0, 1), the fraction held out; got {held_out}")
    count = round(held_out * n)
    if n - count < 1:
        raise InvalidValue(f"held_out={held_out} of {n} events leaves none to train on")
    order = sorted(range(n), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    held, train = sorted(order[:count]), sorted(order[count:])
    a, b = (torch.tensor(v, dtype=torch.int64, device="cpu") for v in (train, held))
    return a, b


def split(x: Tensor, held_out: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(training part, held-out part) of x [N, ...], see `split_indices`."""
    train, held = split_indices(len(x), held_out, seed)
    return x[train], x[held]


def load(spec: str | Path | Tensor | Source | Data) -> Data:
    """The whole of the data set `spec`: 'digits', a path (see formats.py), a tensor or a source.

    Raises what `stream` raises, and ValueError for labels that do not fit.
    """
    if isinstance(spec, Data):
        return spec
    source = spec if isinstance(spec, Source) else stream(spec)
    x, labels = source.read(range(len(source))), source.labels()
    if labels is not None and (labels.shape != x.shape[:1] or labels.is_floating_point()):
        raise InvalidValue(
            f"labels of {source.name} must be {len(x)} integers; "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    labels = None if labels is None else labels.long()
    if not source.levels:
        x = x.float()
        return Data(x, (float(x.min()), float(x.max())), 0.0, labels, source.name)
    half = (source.levels - 1) / 2
    return Data(x.float() / half - 1, (-1.0, 1.0), 1 / half, labels, source.name)
