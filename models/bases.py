"""Orthonormal bases Q in which a covariance is diagonal, or nearly so: u = Q^T v and back.

A matrix for small events; the cosine transform for pictures, whose statistics hardly change when
they are shifted; and, where only a few directions matter, their columns completed to a basis by
Householder reflections, so that no d x d matrix is ever formed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels.errors import InvalidValue


class Basis(Protocol):
    """An orthogonal map of vectors [B, d]; a record of plain numbers and lists describes it."""

    def into(self, v: Tensor) -> Tensor:
        """Q^T v, [B, d] in v's type."""
        ...

    def back(self, u: Tensor) -> Tensor:
        """Q u, [B, d] in u's type."""
        ...

    def to(self, device: Any, dtype: torch.dtype) -> Basis:
        """The same with its numbers there already, for a loop that must copy none."""
        ...

    def record(self) -> dict[str, Any]:
        """What `from_record` reads."""
        ...


@dataclass(frozen=True)
class Unit:
    """The components' own basis, Q = I."""

    def into(self, v: Tensor) -> Tensor:
        return v

    def back(self, u: Tensor) -> Tensor:
        return u

    def to(self, device: Any, dtype: torch.dtype) -> Unit:
        return self

    def record(self) -> dict[str, Any]:
        return {"kind": "unit"}


@dataclass(frozen=True, eq=False)
class Columns:
    """Q given as a matrix [d, d] with orthonormal columns."""

    q: Tensor = field(repr=False)

    def into(self, v: Tensor) -> Tensor:
        return v @ self.q.to(v)

    def back(self, u: Tensor) -> Tensor:
        return u @ self.q.to(u).T

    def to(self, device: Any, dtype: torch.dtype) -> Columns:
        return Columns(self.q.to(device, dtype))

    def record(self) -> dict[str, Any]:
        return {"kind": "columns", "q": self.q.tolist()}


@dataclass(frozen=True, eq=False)
class Leading:
    """A basis whose first r columns are those of q [d, r], up to sign; the others are whatever
    completes it. Costs 2 d r a vector (compact WY form, Schreiber & Van Loan 1989)."""

    q: Tensor = field(repr=False)

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """V [d, r] and T [r, r] with Q = I - V T V^T."""
        a, tau = torch.geqrf(self.q)
        v = torch.tril(a, -1)
        v.diagonal().fill_(1.0)
        return v, torch.linalg.inv(torch.triu(v.T @ v, 1) + torch.diag(1 / tau))

    def into(self, v: Tensor) -> Tensor:
        w, t = (f.to(v) for f in self.factors)
        return v - ((v @ w) @ t) @ w.T

    def back(self, u: Tensor) -> Tensor:
        w, t = (f.to(u) for f in self.factors)
        return u - ((u @ w) @ t.T) @ w.T

    def to(self, device: Any, dtype: torch.dtype) -> Leading:
        made = Leading(self.q.to(device, dtype))
        made.__dict__["factors"] = tuple(f.to(device, dtype) for f in self.factors)
        return made

    def record(self) -> dict[str, Any]:
        return {"kind": "leading", "q": self.q.tolist()}


@dataclass(frozen=True)
class Cosine:
    """The orthonormal DCT-II over all axes of an event but the first (its only one, if so)."""

    shape: tuple[int, ...]

    @cached_property
    def matrices(self) -> dict[int, Tensor]:
        """The transform of every axis, by its place in a batch."""
        first = min(2, len(self.shape))
        return {i: cosines(self.shape[i - 1]) for i in range(first, len(self.shape) + 1)}

    def into(self, v: Tensor) -> Tensor:
        return self._transform(v, forward=True)

    def back(self, u: Tensor) -> Tensor:
        return self._transform(u, forward=False)

    def _transform(self, v: Tensor, forward: bool) -> Tensor:
        x = v.reshape(v.shape[0], *self.shape)
        for axis, matrix in self.matrices.items():
            c = matrix.to(v)
            x = (x.movedim(axis, -1) @ (c.T if forward else c)).movedim(-1, axis)
        return x.reshape(v.shape)

    def to(self, device: Any, dtype: torch.dtype) -> Cosine:
        made = Cosine(self.shape)
        made.__dict__["matrices"] = {i: c.to(device, dtype) for i, c in self.matrices.items()}
        return made

    def record(self) -> dict[str, Any]:
        return {"kind": "cosine", "shape": list(self.shape)}


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II of length n as a matrix [n, n], a row a frequency."""
    k, j = torch.arange(n, device="cpu").double()[:, None], torch.arange(n, device="cpu").double()
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
        q = torch.tensor(record["q"], dtype=torch.float64, device="cpu")
        return Columns(q) if kind == "columns" else Leading(q)
    raise InvalidValue(f"basis must be unit, columns, leading or cosine; got {kind!r}")
