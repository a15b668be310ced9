"""Gaussian-preconditioned integration: the linear flow of the data's mean and covariance is exact.

In x^ = x/alpha with s = sigma/alpha, a data mean m and covariance Q diag(c) Q^T, the whitened state
y = Q^T (x^ - m)/sqrt(c + s^2) stays put but for what the data are not Gaussian in:

    dy/dlambda = r/sqrt(c + e^{-2 lambda}),   r = Q^T (D - D_gauss),   D_gauss the Wiener filter.

Only r is extrapolated, the kernel is integrated for every component. c = 0 is the exponential
Adams method in the data prediction (DPM-Solver++), so this is one family; it is a table whose
coefficients are vectors over the components of the basis Q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.shapes import as_float64
from ...models import Process
from ...models.statistics import Statistics
from ..tables.grids import as_times, checked
from ..tables.solver import Path
from ..tables.spectral import SpectralTable
from .multistep_engine import gauss, lagrange


@dataclass(frozen=True, eq=False)
class GaussianPreconditioned:
    """The integrator of this module, of order `points`: `sample(model, shape, solver=this)`.

    stats: of the data.
    points: residuals that a step goes through, 1..4; the order.
    start: sigma/alpha down to which the flow is taken to be the Gaussian's own, without a call: r
        is nearly 0 at high noise. On a grid that begins below it the network is called throughout.
        None calls from the grid's first node on, or from its second where the first is pure noise:
        there D is the mean and r is 0.
    Raises ValueError for other numbers, TypeError for what are no `Statistics`.
    """

    stats: Statistics
    points: int = 2
    start: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.stats, Statistics):
            raise InvalidType(f"stats must be Statistics; got {self.stats!r}")
        if isinstance(self.points, bool) or self.points not in (1, 2, 3, 4):
            raise InvalidValue(f"points must be 1, 2, 3 or 4; got {self.points}")
        if self.start is not None and not 0 < self.start < math.inf:
            raise InvalidValue(f"start must be a ratio sigma/alpha > 0, or None; got {self.start}")

    def tableau(self, process: Process, grid: Sequence[float] | Tensor) -> SpectralTable:
        """The table for these times: float64, strictly falling, as for any solver.

        With `start`, nodes above it are passed over but for the first, which moves there. Raises
        ValueError for a grid that leaves fewer than two times to call at.
        """
        t = as_times(grid)
        t = checked(t, process, t_min=process.t_clean)
        called, clean = t, float(process.sigma(t[-1])) == 0.0
        if self.start is not None:
            first = process.inverse_log_snr(-torch.log(as_float64(self.start)))
            called = torch.cat([first[None], t[t < first]]) if float(t[0]) > float(first) else t
        elif float(process.alpha(t[0])) == 0.0:
            called = t[1:]
        inner = Path.of(process, called[:-1] if clean else called)
        if len(inner.t) < 2 or not bool(torch.isfinite(inner.lam).all()):
            raise InvalidValue(
                "grid must call the network at two times at least where 0 < alpha and 0 < sigma, "
                f"below start={self.start}; got {len(t)} nodes from t={float(t[0]):g}: use more "
                "steps"
            )
        c = self.stats.variances
        weights = residual_weights(inner.lam, c, self.points)
        state, data = whitened_columns(inner, c, weights)
        if clean:  # the jump x = D is the row u' = E
            state = torch.cat([state, torch.zeros_like(state[:1])])
            data = torch.cat([data, torch.zeros_like(data[:1])])
            data[-1, 0] = 1.0
        return SpectralTable(
            process,
            self.stats,
            called[:-1],
            state,
            data,
            closed_form(process, t[:1], called[:1], c)[0],
            torch.cat([t[:1], t[-1:]]),
            f"gaussian-{self.points}",
        )


def closed_form(process: Process, t: Tensor, s: Tensor, c: Tensor) -> Tensor:
    """The Gaussian's own flow from t to s, per component: [len(t), d]."""
    before, after = Path.of(process, t), Path.of(process, s)
    old, new = (p.alpha.square()[:, None] * c + p.sigma.square()[:, None] for p in (before, after))
    return torch.sqrt(new / old)


def residual_weights(lam: Tensor, c: Tensor, points: int) -> Tensor:
    """int l_h(lambda)/sqrt(c + e^{-2 lambda}) over every step: [n, points, d]."""
    n = len(lam) - 1
    u, w = gauss(16)
    h = (lam[1:] - lam[:-1])[:, None]
    inside = lam[:-1, None] + h * u
    back = torch.arange(n, device="cpu")[:, None] - torch.arange(points, device="cpu")
    basis = lagrange(inside, lam[back.clamp(min=0)], back >= 0)
    kernel = torch.rsqrt(c + torch.exp(-2 * inside)[..., None])  # [n, G, d]
    return torch.einsum("g,ngh,ngd->nhd", w, h[..., None] * basis, kernel)


def whitened_columns(path: Path, c: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of u and E for y' = y + sum_h weights[:, h] r_{i-h}."""
    n, points = weights.shape[:2]
    spread = torch.sqrt(c + torch.exp(-2 * path.lam)[:, None])  # [n + 1, d]
    wiener = c / spread.square()
    data = (path.alpha[1:, None] * spread[1:])[:, None] * weights
    back = (torch.arange(n, device="cpu")[:, None] - torch.arange(points, device="cpu")).clamp(
        min=0
    )
    state = -data * wiener[back] / path.alpha[back][..., None]
    carry = path.alpha[1:, None] * spread[1:] / (path.alpha[:-1, None] * spread[:-1])
    return torch.cat([state[:, :1] + carry[:, None], state[:, 1:]], 1), data
