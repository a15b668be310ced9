"""Brownian paths as functions: W(s, t) for any two times, nothing stored.

A query is a row of coefficients, like every step: by Lévy's construction W is linear in the
normals of its nodes, so W(s, t) = sum_j c_j z_j, with c_j from the times alone, formed in float64
(no cancellation however close s and t are), and z_j drawn from counters where they are summed.
The same row can go into `linear_step` (purpose "brownian"), and then a step needs no increment.

The path is made of independent increments over the cells between `knots`, each refined by midpoint
splits, `depth` times, down to its leaves. Nodes are numbered as in a heap, over all cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import dispatch, native, philox
from .checks import (
    as_sample_ids,
    as_seed,
    as_shape,
    check_batch,
    check_device,
    check_field,
    check_streams,
    sent,
    whole,
)
from .errors import InvalidType, InvalidValue
from .noise import fake
from .streams import tag_of

CELL = 1 << 31  # draws of the cells' own increments; below it, heap numbers of the splits


def _reference(
    seed: Tensor,
    sample_ids: Tensor | None,
    shape: Sequence[int],
    coefficients: Tensor,
    draws: Tensor,
    tag: int,
) -> Tensor:
    """sum_j c_j z_j, float32 of the shape [B, ...]; coefficients and draws [1 or B, J]."""
    batch, n = shape[0], math.prod(shape[1:])
    out = torch.zeros(batch, n, dtype=torch.float32, device=seed.device)
    for c, draw in zip(coefficients.unbind(1), draws.unbind(1), strict=True):
        z = philox.draw("normal", n, philox.stream_table(batch, seed, sample_ids, draw, tag))
        out += torch.where(c != 0, c, 0.0).view(-1, 1) * z
    return out.view(shape)


def _native(
    seed: Tensor,
    sample_ids: Tensor | None,
    shape: Sequence[int],
    coefficients: Tensor,
    draws: Tensor,
    tag: int,
) -> Tensor | None:
    library = native.library(math.prod(shape) * draws.shape[1])
    if library is None:
        return None
    out = torch.empty(shape[0], math.prod(shape[1:]), dtype=torch.float32, device="cpu")
    rows = max(len(coefficients), len(draws))
    c, draws = (v.expand(rows, -1).contiguous() for v in (coefficients, draws))
    return native.noise(library, out, seed, sample_ids, draws, tag, c=c).view(shape)


def _check(
    seed: Tensor,
    sample_ids: Tensor | None,
    shape: Sequence[int],
    coefficients: Tensor,
    draws: Tensor,
    tag: int,
) -> None:
    if not shape or any(n < 0 for n in shape):
        raise InvalidValue(f"shape must be [B, ...] of sizes that are not negative; got {shape}")
    check_streams(seed, shape[0], seed, sample_ids, tag)
    for name, v, dtype in (
        ("coefficients", coefficients, torch.float32),
        ("draws", draws, torch.int64),
    ):
        if v.dtype != dtype or v.dim() != 2 or len(v) not in (1, shape[0]):
            raise InvalidValue(
                f"{name} must be {dtype} [1, J] or [{shape[0]}, J]; got {v.dtype} {list(v.shape)}"
            )
        check_device(name, v, seed.device)
    if coefficients.shape[1] != draws.shape[1]:
        raise InvalidValue(
            f"coefficients and draws must be of one length J; got {coefficients.shape[1]} and "
            f"{draws.shape[1]}"
        )
    check_field("draws", draws, 32)


_weighted = dispatch.define(
    "weighted_noise",
    "(Tensor seed, Tensor? sample_ids, SymInt[] shape, Tensor coefficients, Tensor draws, int tag) "
    "-> Tensor",
    reference=_reference,
    native=_native,
    triton="triton_brownian:weighted_noise",
    fake=fake,
    check=_check,
)


def _times(name: str, value: object) -> Tensor:
    """Times as float64 on the host."""
    try:
        if isinstance(value, Tensor):
            return value.cpu().to(torch.float64)
        return torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise InvalidType(f"{name} must be a time or times; got {value!r}") from None


@dataclass(frozen=True, eq=False)
class BrownianPath:
    """One Brownian path per sample, W(knots[0]) = 0, of shape [B, ...], in O(1) memory.

    knots: strictly increasing times, at least two; a solver whose grid they are pays one normal an
        increment.
    depth: halvings below each cell, so that a leaf is cell / 2^depth; increments that share a
        leaf's interior have the right law each, but only steps at least a leaf long add up.
    seed, sample_ids, subdraw: as in `normal`; the same ones give the same path on every device, in
        any order of queries and whatever the batch.
    Raises ValueError for knots out of order, and where cells times 2^depth exceeds 2^30.
    Lévy 1948; virtual trees: Li et al. 2020, Jelinčič, Foster & Kidger 2024 (arXiv 2405.06464).
    """

    shape: Sequence[int]
    seed: int | Tensor = 0
    knots: Sequence[float] = (0.0, 1.0)
    depth: int = 12
    sample_ids: Tensor | Sequence[int] | None = None
    subdraw: int = 0
    device: torch.device | str = "cpu"
    _knots: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(as_shape(self.shape)))
        knots = _times("knots", self.knots)
        rising = len(knots) >= 2 and bool((knots.diff() > 0).all())
        if knots.dim() != 1 or not rising or not bool(torch.isfinite(knots).all()):
            raise InvalidValue(f"knots must be two or more strictly increasing times; got {knots}")
        tag_of("brownian", self.subdraw)
        if self._base(len(knots) - 1) + whole("depth", self.depth, 0, 2**16) > 30:
            raise InvalidValue(
                f"cells * 2^depth must not exceed 2^30; got {len(knots) - 1} cells, depth "
                f"{self.depth}"
            )
        object.__setattr__(self, "_knots", knots)

    @staticmethod
    def _base(cells: int) -> int:
        """Level of the heap at which the cells are the nodes."""
        return (cells - 1).bit_length()

    def _streams(self) -> tuple[Tensor, Tensor | None]:
        seed = as_seed(self.seed, self.device)
        check_batch("seed", seed, self.shape[0])
        return seed, as_sample_ids(self.sample_ids, self.shape[0], self.device)

    def increment(self, s: float | Tensor, t: float | Tensor) -> Tensor:
        """W(t) - W(s): float32 [B, ...]; s <= t are times, or tensors [B] with a time per sample.

        Times outside the knots count as their ends. Raises ValueError where s > t.
        """
        coefficients, draws = self.row(s, t)
        seed, ids = self._streams()
        out: Tensor = _weighted(
            seed,
            ids,
            list(self.shape),
            sent(coefficients, seed.device, torch.float32),
            sent(draws, seed.device),
            tag_of("brownian", self.subdraw),
        )
        return out

    def row(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (float64) and draw indices (int64), both [1 or B, J], of W(t) - W(s)."""
        start, stop = (_times(name, v).reshape(-1) for name, v in (("s", s), ("t", t)))
        start, stop = torch.broadcast_to(start, stop.shape), torch.broadcast_to(stop, start.shape)
        check_batch("s and t", start, self.shape[0])
        if bool((start.isnan() | stop.isnan()).any()):
            raise InvalidValue(f"s and t must be numbers; got s={s} and t={t}")
        if bool((start > stop).any()):
            raise InvalidValue(f"s must not exceed t; got s={s} and t={t}")
        low, high = float(self._knots[0]), float(self._knots[-1])
        start, stop = start.clamp(low, high), stop.clamp(low, high)
        columns = [self._cells(start, stop), self._splits(start, stop)]
        coefficients = torch.cat([c for c, _ in columns], 1)
        draws = torch.cat([d.expand_as(c) for c, d in columns], 1)
        used = (coefficients != 0).any(0)
        used[0] |= not bool(used.any())  # s = t: one column, of coefficient 0
        return coefficients[:, used], draws[:, used]

    def _cells(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """The cells' own normals: overlap / width * sqrt(width), where they overlap [s, t]."""
        left, right = self._knots[:-1], self._knots[1:]
        overlap = torch.minimum(stop[:, None], right) - torch.maximum(start[:, None], left)
        return overlap.clamp(min=0.0) / (right - left).sqrt(), CELL + torch.arange(
            len(left), dtype=torch.int64, device="cpu"
        )

    def _splits(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """The split normals on the ways down to s and to t, [R, 2 (depth + 1)]: two a level.

        A split of [a, a + h] adds sqrt(h)/2 z to W at the middle and linearly less to the sides:
        W(s, t) gets sqrt(h)/2 (hat(t) - hat(s)), both hats in one column where the node is shared.
        Below the last level stands the leaf's own bridge.
        """
        counts = 2.0 ** torch.arange(
            self.depth + 1, dtype=torch.float64, device="cpu"
        )  # intervals of a cell
        root = 1 << self._base(len(self._knots) - 1)
        nodes, hats, shares = [], [], []
        for time in (start, stop):
            cell = (torch.searchsorted(self._knots, time, right=True) - 1).clamp(
                max=len(self._knots) - 2
            )
            width = self._knots[cell + 1] - self._knots[cell]
            scaled = ((time - self._knots[cell]) / width)[:, None] * counts
            index = torch.minimum(scaled.floor(), counts - 1)
            inside, h = scaled - index, width[:, None] / counts
            hat = 0.5 * h.sqrt() * (1 - (2 * inside - 1).abs())
            hat[:, -1] = (h * inside * (1 - inside))[:, -1].sqrt()
            nodes.append(((root + cell)[:, None] * counts + index).long())
            hats.append(hat)
            shares.append(scaled[:, -1])
        joint = hats[1] - hats[0]
        # two times in one leaf of width h: the bridge's increment over a share p of it has variance
        # p (1 - p) h, and mean p of the leaf's increment (which the other levels give)
        p = shares[1] - shares[0]
        joint[:, -1] = (h[:, -1] * p * (1 - p)).clamp(min=0.0).sqrt()
        shared = nodes[0] == nodes[1]
        first, second = torch.where(shared, joint, -hats[0]), torch.where(shared, 0.0, hats[1])
        return torch.stack([first, second], 2).flatten(1), torch.stack(nodes, 2).flatten(1)
