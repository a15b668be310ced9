"""Learned tables: a grid and residual weights fitted to a model's own trajectories.

In the coordinates of `spectral` every step is

    y_{i+1} = y_i + kappa_i sum_h theta[i,h] r_{i-h},
    kappa_i = int dlambda / sqrt(c + e^{-2 lambda})

with theta lower triangular (all history, another row for every step: a bespoke non-stationary
solver, Shaul et al. 2024) and the nodes lambda_i free; `ud.tune` learns both. Without
statistics the result is an ordinary `Tableau`; otherwise a `SpectralTable`. Any sampler runs both.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.files import read_text, write_text
from ...models import Process
from ...models.statistics import Statistics
from ..arguments import finite
from ..tables.files import numbers, parse, read_record
from ..tables.solver import Path
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau
from .preconditioned import GaussianPreconditioned, closed_form, whitened_columns


@dataclass(frozen=True, eq=False)
class Learned:
    """A fitted table: nodes, weights and the statistics that it counts on.

    lam: [n + 1] float64, the nodes, rising.
    theta: [n, n] float64, the residual weights, column h for h steps back; 0 where h > i.
    stats: `Statistics` of the data; `Statistics.none(d)` makes an ordinary table.
    t_start: where the state is handed over; the flow from there to the first node is closed form.
    notes: what is worth knowing of its making, in words and numbers that JSON can hold.
    Raises ValueError for shapes that disagree, nodes that do not rise or numbers that are not
    finite, TypeError for another type.
    """

    lam: Tensor
    theta: Tensor
    stats: Statistics
    t_start: float
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.stats, Statistics):
            raise InvalidType(f"stats must be Statistics; got {self.stats!r}")
        for name in ("lam", "theta"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dtype != torch.float64:
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise InvalidType(f"{name} must be a float64 tensor; got {got}")
        n = len(self.lam) - 1
        if self.lam.ndim != 1 or n < 1 or self.theta.shape != (n, n):
            raise InvalidValue(
                "lam must be [n + 1] and theta [n, n], n >= 1; got "
                f"{tuple(self.lam.shape)} and {tuple(self.theta.shape)}"
            )
        lam, theta = self.lam.detach(), self.theta.detach()
        if not bool(torch.isfinite(lam).all() and (lam[1:] > lam[:-1]).all()):
            raise InvalidValue(f"lam must be finite and rise; got {lam.tolist()[:8]}")
        if not bool(torch.isfinite(theta).all()) or bool(theta.triu(1).any()):
            raise InvalidValue("theta must be finite and 0 above its diagonal: there is no history")
        finite("t_start", self.t_start)

    @property
    def nfe(self) -> int:
        return len(self.theta)

    def tableau(self, process: Process) -> Tableau | SpectralTable:
        """What a sampler runs: an ordinary table if no mean or variance is in it.

        process: of the model that was fitted, or another that covers the nodes and has at least as
            much noise at t_start.
        Raises ValueError for a process that does not.
        """
        table = self.spectral(process)
        if bool(self.stats.mean.any()) or bool(self.stats.variances.any()):
            return table
        none = table.times.new_zeros(self.nfe, 0)
        return (
            Tableau(
                table.times,
                table.state[:, :, 0],
                table.data[:, :, 0],
                none,
                none.long(),
                table.grid,
                (float(table.entry[0]), 0.0),
                table.name,
            )
            .trimmed()
            .of(process)
        )

    def spectral(self, process: Process) -> SpectralTable:
        """The table over components, differentiable in lam and theta."""
        t = process.inverse_log_snr(self.lam)
        if not float(t[0].detach()) <= self.t_start * (1 + 1e-3) <= process.t_max * (1 + 2e-3):
            raise InvalidValue(
                f"the table starts at t={self.t_start:g} and first calls at sigma/alpha="
                f"{math.exp(-float(self.lam[0])):.4g}, which is t={float(t[0]):g} of {process} "
                f"with t_max={process.t_max:g}: it was fitted to another process; tune one for this"
            )
        lam = torch.maximum(self.lam, process.log_snr(process.t_max))  # no call above t_max
        t = process.inverse_log_snr(lam).clamp(max=process.t_max)
        path = Path(process, t, process.alpha(t), process.sigma(t), lam)
        c = self.stats.variances
        weights = self.theta[..., None] * reach(lam, c)[:, None]
        state, data = whitened_columns(path, c, weights)
        start = torch.tensor([self.t_start], dtype=torch.float64, device="cpu")
        entry = closed_form(process, start, t[:1], c)[0]
        ends = torch.cat([start, t[-1:]])
        return SpectralTable(
            process, self.stats, t[:-1], state, data, entry, ends, f"learned-{self.nfe}"
        )

    def to_json(self) -> str:
        """Exact text form."""
        record = {
            "lam": self.lam.tolist(),
            "theta": self.theta.tolist(),
            "statistics": self.stats.record(),
            "t_start": self.t_start,
            "notes": self.notes,
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Learned:
        """Inverse of `to_json`. Raises ValueError for other text."""
        r = parse(text, "a learned table", ("lam", "theta", "statistics", "t_start"))
        stats = Statistics.from_record(r["statistics"])
        notes = r.get("notes", {})
        if not isinstance(notes, dict):
            raise InvalidValue(f"notes must be an object; got {notes!r}")
        lam, theta = numbers(r, "lam", 1), numbers(r, "theta", 2)
        return cls(lam, theta, stats, finite("t_start", r["t_start"]), notes)

    def save(self, path: str | FilePath) -> FilePath:
        """Write `to_json` to a file; returns the path."""
        return write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | FilePath) -> Learned:
        """Inverse of `save`. Raises ValueError for another file."""
        return cls.from_json(read_text(path))


FILES = (".json", ".npz")
"""How the files of tables end."""


def read(
    path: str | FilePath, process: Process
) -> Tableau | SpectralTable | GaussianPreconditioned:
    """What a JSON or npz file holds, as a solver for a model's process.

    path: of what `Sampler.export`, `Statistics.save`, or `save` of a `Tuned`, `Learned`, `Tableau`
        or `SpectralTable` wrote; statistics make the Gaussian-preconditioned integrator of order 2.
    process: of the model; a table must be of it.
    Raises ValueError for another file, naming the path.
    """
    try:
        record = read_record(path, "a table")
        if "theta" in record:
            return Learned.from_json(read_text(path)).tableau(process)
        if "variances" in record and "state" not in record:
            return GaussianPreconditioned(Statistics.from_record(record))
        kind = SpectralTable if "basis" in record else Tableau
        table: Tableau | SpectralTable = kind.from_record(record)
        table.check(process)
    except InvalidValue as error:
        raise InvalidValue(f"{path} holds no table for {process}: {error}") from error
    return table


def reach(lam: Tensor, c: Tensor) -> Tensor:
    """kappa: int dlambda/sqrt(c + e^{-2 lambda}) = asinh(sqrt(c) e^lambda)/sqrt(c), [n, d]."""
    z, root = torch.exp(lam)[:, None], torch.sqrt(c.clamp(min=1e-12))
    return torch.diff(torch.asinh(root * z) / root, dim=0)
