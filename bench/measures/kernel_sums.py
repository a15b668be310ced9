"""Kernel distances of features that come a batch at a time: KID, CMMD, and kernels of one's own.

The squared distance of two laws under a kernel is E k(x, x') + E k(y, y') - 2 E k(x, y). The last
needs the reference alone, and the first is taken within blocks of ids, so what is held is the
reference and the features of blocks that are not full yet (the block estimate of Zaremba et al.
2013; KID as published is the mean over such blocks of 1,000).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...solvers.arguments import lookup, whole
from ...solvers.intervals import Estimate
from .counted import Counted, rows_of
from .metrics import student

BLOCK = 1000
"""Samples of a block: the subsets of Binkowski et al. 2018."""
ROWS = 1000
"""Rows of a kernel's matrix at a time."""


@dataclass(frozen=True)
class Kernel:
    """of(x [n, k], y [m, k]): the matrix [n, m]. scale: what the distance is quoted in units of."""

    name: str
    of: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0


def _polynomial(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(x: Tensor, y: Tensor) -> Tensor:
    square = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-square.clamp(min=0.0) / (2 * 10.0**2))


KERNELS = {
    "kid": Kernel("kid", _polynomial),
    "cmmd": Kernel("cmmd", _gaussian, 1000.0),
}
"""kid: (x.y/k + 1)^3, Binkowski et al. 2018. cmmd: exp(-|x - y|^2 / (2 10^2)), Jayasumana et al.
2024, times 1,000 as they quote it; their features are CLIP's, of length 1."""


class KernelSums:
    """The unbiased squared distance of features from a reference, by sums over blocks of ids.

    reference: features [m, k], m >= 2, e.g. `FeatureStatistics.kept`.
    kernel: a name in `KERNELS`, or a `Kernel`.
    block: how many ids are a block: id // block. Blocks that stay in part are counted by their
        rows, those of one row are not.

    Raises ValueError for what does not fit.
    """

    def __init__(self, reference: Tensor, kernel: str | Kernel = "kid", block: int = BLOCK) -> None:
        self.kernel = kernel if isinstance(kernel, Kernel) else lookup("kernel", kernel, KERNELS)
        self.block = whole("block", block, 2)
        self.reference = rows_of("reference", reference).double()
        if len(self.reference) < 2:
            raise InvalidValue("reference must hold two features or more; got one")
        self.counted = Counted()
        self._values: dict[int, tuple[int, float]] = {}
        self._parts: dict[int, list[Tensor]] = {}
        self._own = _within(self.kernel, self.reference)

    def update(self, features: Tensor, ids: Tensor | Sequence[int] | None = None) -> None:
        """Count a batch, as `FeatureStatistics.update`."""
        f, where = self.counted.batch(features, ids, self.reference.shape[1])
        f, places = f.double(), where // self.block
        for b in torch.unique(places).tolist():
            self._put(b, [f[places == b]])

    def merge(self, other: KernelSums) -> KernelSums:
        """Count what another process counted; returns self. Raises ValueError where kernel, block
        or reference differ, and for ids that both counted."""
        same = self.kernel == other.kernel and self.block == other.block
        if not (same and torch.equal(self.reference, other.reference)):
            raise InvalidValue("sums to merge must be of one kernel, block and reference")
        self.counted.join(other.counted)
        self._values |= other._values
        for b, parts in other._parts.items():
            self._put(b, parts)
        return self

    def _put(self, b: int, parts: list[Tensor]) -> None:
        held = self._parts.setdefault(b, [])
        held += parts
        if sum(map(len, held)) == self.block:
            self._values[b] = (self.block, self._distance(torch.cat(self._parts.pop(b))))

    def _distance(self, x: Tensor) -> float:
        across = 0.0
        for y in torch.split(self.reference, ROWS):
            across += float(self.kernel.of(x, y).mean()) * len(y) / len(self.reference)
        return self.kernel.scale * (_within(self.kernel, x) + self._own - 2 * across)

    def estimate(self) -> Estimate:
        """The distance, unbiased, so it may fall below 0; its interval is over the blocks, the
        reference held fixed, and NaN of one block.

        Raises ValueError before two samples of a block have come.
        """
        every = dict(self._values)
        for b, parts in self._parts.items():
            x = torch.cat(parts)
            if len(x) > 1:
                every[b] = (len(x), self._distance(x))
        if not every:
            raise InvalidValue("a kernel distance needs two samples of a block or more")
        rows = [every[b] for b in sorted(every)]
        n, values = torch.tensor(rows, dtype=torch.float64, device="cpu").T
        share = n / n.sum()
        value = float(share @ values)
        if len(rows) < 2:
            return Estimate(value, torch.nan, torch.nan)
        off = share.square() @ (values - value).square() * len(rows) / (len(rows) - 1)
        half = student(len(rows) - 1) * float(off.sqrt())
        return Estimate(value, value - half, value + half)


def _within(kernel: Kernel, x: Tensor) -> float:
    """Mean of the kernel over pairs of different rows."""
    total = 0.0
    for first in range(0, len(x), ROWS):
        some = x[first : first + ROWS]
        matrix = kernel.of(some, x)
        total += float(matrix.sum() - matrix.diagonal(first).sum())
    return total / (len(x) * (len(x) - 1))
