"""Orthonormal bases Q in which a covariance is diagonal, or nearly so: u = Q^T v and back.

A matrix for small events; the cosine transform for pictures, whose statistics hardly change when
they are shifted; and, where only a few directions matter, their columns completed to a basis by
Householder reflections, so that no d x d matrix is ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

Parts = tuple[Tensor, ...]


class Basis(Protocol):
    """An orthogonal map of vectors [B, d]; a record of plain numbers and lists describes it.

    parts: the float64 matrices that the map multiplies by. A loop on a device hands `into` and
    `back` its own copies of them, in its own type, so that nothing is moved between two calls.
    """

    @property
    def parts(self) -> Parts: ...

    def into(self, v: Tensor, parts: Parts | None = None) -> Tensor:
        """Q^T v, [B, d] in v's type."""
        ...

    def back(self, u: Tensor, parts: Parts | None = None) -> Tensor:
        """Q u, [B, d] in u's type."""
        ...

    def record(self) -> dict[str, Any]:
        """What `from_record` reads."""
        ...


def placed(basis: Basis, like: Tensor, parts: Parts | None = None) -> Parts:
    """The basis's parts on the device and in the type of a tensor, unless they are given."""
    return tuple(p.to(like) for p in basis.parts) if parts is None else parts


@dataclass(frozen=True)
class Unit:
    """The components' own basis, Q = I."""

    parts: ClassVar[Parts] = ()

    def into(self, v: Tensor, parts: Parts | None = None) -> Tensor:
        return v

    def back(self, u: Tensor, parts: Parts | None = None) -> Tensor:
        return u

    def record(self) -> dict[str, Any]:
        return {"kind": "unit"}


@dataclass(frozen=True, eq=False)
class Columns:
    """Q given as a matrix [d, d] with orthonormal columns."""

    q: Tensor

    @property
    def parts(self) -> Parts:
        return (self.q,)

    def into(self, v: Tensor, parts: Parts | None = None) -> Tensor:
        (q,) = placed(self, v, parts)
        return v @ q

    def back(self, u: Tensor, parts: Parts | None = None) -> Tensor:
        (q,) = placed(self, u, parts)
        return u @ q.T

    def record(self) -> dict[str, Any]:
        return {"kind": "columns", "q": self.q.tolist()}


@dataclass(frozen=True, eq=False)
class Leading:
    """A basis whose first r columns are those of q [d, r], up to sign; the others are whatever
    completes it. Costs 2 d r a vector (compact WY form, Schreiber & Van Loan 1989)."""

    q: Tensor

    @cached_property
    def parts(self) -> Parts:
        """V [d, r] and T [r, r] with Q = I - V T V^T."""
        a, tau = torch.geqrf(self.q)
        v = torch.tril(a, -1)
        v.diagonal().fill_(1.0)
        return v, torch.linalg.inv(torch.triu(v.T @ v, 1) + torch.diag(1 / tau))

    def into(self, v: Tensor, parts: Parts | None = None) -> Tensor:
        w, t = placed(self, v, parts)
        return v - ((v @ w) @ t) @ w.T

    def back(self, u: Tensor, parts: Parts | None = None) -> Tensor:
        w, t = placed(self, u, parts)
        return u - ((u @ w) @ t.T) @ w.T

    def record(self) -> dict[str, Any]:
        return {"kind": "leading", "q": self.q.tolist()}


@dataclass(frozen=True)
class Cosine:
    """The orthonormal DCT-II over all axes of an event but the first (its only one, if so)."""

    shape: tuple[int, ...]

    @cached_property
    def parts(self) -> Parts:
        """One matrix an axis, see `cosines`."""
        return tuple(cosines(n) for n in self.shape[min(1, len(self.shape) - 1) :])

    def into(self, v: Tensor, parts: Parts | None = None) -> Tensor:
        return self._transform(v, [c.T for c in placed(self, v, parts)])

    def back(self, u: Tensor, parts: Parts | None = None) -> Tensor:
        return self._transform(u, placed(self, u, parts))

    def _transform(self, v: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        x = v.reshape(len(v), *self.shape)
        for axis, c in zip(range(x.ndim - len(matrices), x.ndim), matrices, strict=True):
            x = (x.movedim(axis, -1) @ c).movedim(-1, axis)
        return x.reshape(v.shape)

    def record(self) -> dict[str, Any]:
        return {"kind": "cosine", "shape": list(self.shape)}


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II of length n as a matrix [n, n], a row a frequency."""
    k, j = torch.arange(n).double()[:, None], torch.arange(n).double()
    c = math.sqrt(2 / n) * torch.cos(math.pi * k * (2 * j + 1) / (2 * n))
    c[0] /= math.sqrt(2)
    return c


def from_record(record: dict[str, Any]) -> Basis:
    """Inverse of `record`. Raises ValueError for a kind that does not exist."""
    kind = record.get("kind")
    if kind == "unit":
        return Unit()
    if kind == "cosine":
        return Cosine(tuple(int(n) for n in record["shape"]))
    if kind in ("columns", "leading"):
        q = torch.tensor(record["q"], dtype=torch.float64)
        return Columns(q) if kind == "columns" else Leading(q)
    raise ValueError(f"basis must be unit, columns, leading or cosine; got {kind!r}")
