"""Learned tables: a grid and residual weights fitted to a model's own trajectories.

In the coordinates of `spectral` every step is

    y_{i+1} = y_i + kappa_i sum_h theta[i,h] r_{i-h},   kappa_i = int dlambda / sqrt(c + e^{-2 lambda})

with theta lower triangular (all history, another row for every step: a bespoke non-stationary
solver, Shaul et al. 2024) and the nodes lambda_i free; fitting.py fits both. Without statistics the
result is an ordinary `Tableau`; otherwise a `SpectralTable`. Any sampler runs both.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Process
from ...models.statistics import Statistics
from ..tables.solver import Path
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau
from .preconditioned import GaussianPreconditioned, closed_form, whitened_columns


@dataclass(frozen=True, eq=False)
class Learned:
    """lam [n + 1] the nodes, theta [n, n] the residual weights (column h: h steps back), stats.

    t_start: where the state is handed over; the flow from there to the first node is closed form.
    notes: what is worth knowing of its making, in words and numbers that JSON can hold.
    """

    lam: Tensor
    theta: Tensor
    stats: Statistics
    t_start: float
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def nfe(self) -> int:
        return len(self.theta)

    def tableau(self, process: Process) -> Tableau | SpectralTable:
        """What a sampler runs: an ordinary table if no mean or variance is in it. For the process
        whose model was fitted, or another that has at t_start as much noise at least and covers the
        nodes; raises ValueError for one that does not."""
        table = self.spectral(process)
        if bool(self.stats.mean.any()) or bool(self.stats.variances.any()):
            return table
        none = table.times.new_zeros(self.nfe, 0)
        return Tableau(
            table.times, table.state[:, :, 0], table.data[:, :, 0], none, none.long(), table.grid,
            (float(table.entry[0]), 0.0), table.name,
        ).trimmed()  # fmt: skip

    def spectral(self, process: Process) -> SpectralTable:
        """The table over components, differentiable in lam and theta."""
        t = process.inverse_log_snr(self.lam)
        if not float(t[0].detach()) <= self.t_start * (1 + 1e-3) <= process.t_max * (1 + 2e-3):
            raise InvalidValue(
                f"the table starts at t={self.t_start:g} and first calls at sigma/alpha="
                f"{math.exp(-float(self.lam[0])):.4g}, which is t={float(t[0]):g} of {process} with "
                f"t_max={process.t_max:g}: it was fitted to another process; tune one for this"
            )
        path = Path(process, t, process.alpha(t), process.sigma(t), self.lam)
        c = self.stats.variances
        weights = self.theta[..., None] * reach(self.lam, c)[:, None]
        state, data = whitened_columns(path, c, weights)
        start = torch.tensor([self.t_start], dtype=torch.float64)
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
        try:
            r = json.loads(text)
            lam, theta = (torch.tensor(r[k], dtype=torch.float64) for k in ("lam", "theta"))
            stats = Statistics.from_record(r["statistics"])
            return cls(lam, theta, stats, float(r["t_start"]), r.get("notes", {}))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise InvalidValue(f"not a learned table in JSON: {error!r}") from error

    def write(self, path: str | FilePath) -> None:
        """Write `to_json` to a file."""
        FilePath(path).write_text(self.to_json(), encoding="utf-8")


def read(
    path: str | FilePath, process: Process
) -> Tableau | SpectralTable | GaussianPreconditioned:
    """What a JSON file holds, as a solver for a model's process: a learned table, a plain one, or
    statistics, which make the Gaussian-preconditioned integrator of order 2.

    Raises FileNotFoundError, or ValueError for another file.
    """
    try:
        text = FilePath(path).read_text(encoding="utf-8")
        keys = set(json.loads(text))
    except (ValueError, TypeError) as error:  # no text, or no JSON
        raise InvalidValue(f"{path} holds no table: {error}") from error
    if "theta" in keys:
        return Learned.from_json(text).tableau(process)
    if "variances" in keys:
        return GaussianPreconditioned(Statistics.from_record(json.loads(text)))
    return Tableau.from_json(text)


def reach(lam: Tensor, c: Tensor) -> Tensor:
    """kappa: int dlambda/sqrt(c + e^{-2 lambda}) = asinh(sqrt(c) e^lambda)/sqrt(c), [n, d]."""
    z, root = torch.exp(lam)[:, None], torch.sqrt(c.clamp(min=1e-12))
    return torch.diff(torch.asinh(root * z) / root, dim=0)
