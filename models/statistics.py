"""Mean and covariance of data, in a basis where the covariance is diagonal or nearly so."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.checks import check_dense
from ..kernels.errors import InvalidType, InvalidValue
from ..kernels.files import read_text, write_text
from .bases import Basis, Columns, Cosine, Leading, Unit, from_record

KINDS = ("full", "leading", "cosine", "diagonal", "scalar")
"""Of statistics: what of the covariance is kept."""
RANK = 64
"""Directions of 'leading' statistics, at most."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance Q diag(c) Q^T of data with d components.

    mean: [d] float64.
    variances: c [d] float64, >= 0.
    basis: Q, a `Basis` or a matrix [d, d] with orthonormal columns; None: the components' own.
    Raises ValueError for shapes that do not agree, numbers that are not finite, negative variances
    or columns that are not orthonormal; TypeError for what is no tensor.
    """

    mean: Tensor = field(repr=False)
    variances: Tensor = field(repr=False)
    basis: Basis | Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "variances"):
            value = getattr(self, name)
            check_dense(name, value)
            if not value.is_meta and not bool(torch.isfinite(value).all()):
                raise InvalidValue(f"{name} must be finite; got {value.tolist()[:8]}")
        d = self.mean.numel()
        if self.mean.ndim != 1 or self.variances.shape != (d,):
            raise InvalidValue(
                f"mean and variances must be vectors of one length; got "
                f"{tuple(self.mean.shape)} and {tuple(self.variances.shape)}"
            )
        if isinstance(self.basis, Tensor):
            q = self.basis
            if q.shape != (d, d):
                raise InvalidValue(f"basis must be {(d, d)}; got {tuple(q.shape)}")
            off = (
                float((q.T @ q - torch.eye(d, dtype=q.dtype, device=q.device)).abs().max())
                if d
                else 0.0
            )
            if not off < 1e-3:
                raise InvalidValue(
                    f"basis must have orthonormal columns; Q^T Q is off by {off:.2g}"
                )
        if not bool((self.variances >= 0).all()):
            raise InvalidValue(f"variances must be >= 0; got {float(self.variances.min())}")

    @property
    def q(self) -> Basis:
        """The basis as a map."""
        if isinstance(self.basis, Tensor):
            return Columns(self.basis)
        return self.basis or Unit()

    @classmethod
    def none(cls, d: int) -> Statistics:
        """Nothing known: mean 0, c = 0, and the integrator is DPM-Solver++'s."""
        none = torch.zeros(d, dtype=torch.float64, device="cpu")
        return cls(none, none.clone())

    @classmethod
    def of(cls, data: Tensor, kind: str = "full") -> Statistics:
        """Statistics of data [n, *event].

        kind: 'full' covariance, [d, d]; 'leading': its first RANK directions and one variance for
        the rest; 'cosine': diagonal in the DCT basis of the event's axes; 'diagonal' in its own
        components; or one 'scalar' variance. Raises ValueError for another kind or n < 2.
        """
        if not isinstance(data, Tensor) or data.ndim < 2:
            raise InvalidType(
                f"data must be a tensor [n, *event]; got {getattr(data, 'shape', data)}"
            )
        check_dense("data", data, floating=False, numbers=True)
        if kind not in KINDS:
            raise InvalidValue(f"kind must be one of {', '.join(map(repr, KINDS))}; got {kind!r}")
        if len(data) < 2:
            raise InvalidValue(f"data must hold at least 2 events; got {len(data)}")
        x = data.double().flatten(1)
        mean, centred = x.mean(0), x - x.mean(0)
        if kind == "full":
            values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
            return cls(mean, values.clamp(min=0.0), Columns(vectors))
        if kind == "leading":
            return cls(mean, *_leading(centred))
        basis = Cosine(tuple(data.shape[1:])) if kind == "cosine" else Unit()
        each = basis.into(centred).square().mean(0)
        each = each.mean().expand(len(mean)).clone() if kind == "scalar" else each
        return cls(mean, each, basis)

    def to(self, device: Any, dtype: torch.dtype) -> Statistics:
        """The same on a device and in a type, for a loop that must copy nothing."""
        basis = self.q.to(device, dtype)
        return Statistics(self.mean.to(device, dtype), self.variances.to(device, dtype), basis)

    def posterior(self, v: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(P v, tr P) for P = C (C + s^2)^-1, the Jacobian of E[x | x + s eps] of N(m, C).

        v [n, d] in any dtype, noise: s^2 [n] float64; the answers are [n, d] in v's and [n].
        """
        gain = self.variances.to(noise.device)
        gain = gain / (gain + noise[:, None])
        return self.q.back(gain.to(v.dtype) * self.q.into(v)), gain.sum(1)

    def record(self) -> dict[str, Any]:
        """Plain numbers and lists that `from_record` reads back exactly."""
        return {
            "mean": self.mean.tolist(),
            "variances": self.variances.tolist(),
            "basis": self.q.record(),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Statistics:
        """Inverse of `record`. Raises ValueError for what is none."""
        try:
            mean, c = (
                torch.tensor(record[k], dtype=torch.float64, device="cpu")
                for k in ("mean", "variances")
            )
            return cls(mean, c, from_record(record["basis"]))
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise InvalidValue(f"not a record of statistics: {error!r}") from error

    def save(self, path: str | Path) -> Path:
        """Write the record as JSON; returns the path."""
        return write_text(path, json.dumps(self.record()))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Inverse of `save`. Raises ValueError for another file."""
        text = read_text(path)
        try:
            return cls.from_record(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise InvalidValue(f"{path} does not hold statistics: {error}") from error


def _leading(centred: Tensor) -> tuple[Tensor, Basis]:
    """Variances and basis of the directions that matter; the rest share what is left."""
    n, d = centred.shape
    rank = min(RANK, d - 1, n - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the random projection (Halko et al. 2011)
        _, s, v = torch.svd_lowrank(centred, min(rank + 16, d, n), niter=4)
    values = s[:rank].square() / n
    rest = (centred.square().sum() / n - values.sum()).clamp(min=0.0) / (d - rank)
    return torch.cat([values, rest.expand(d - rank)]), Leading(v[:, :rank].contiguous())
