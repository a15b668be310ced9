"""Gaussian-preconditioned integration: the linear flow of the data's mean and covariance is exact.

In x^ = x/alpha with s = sigma/alpha, a data mean m and covariance Q diag(c) Q^T, the whitened state
y = Q^T (x^ - m)/sqrt(c + s^2) stays put but for what the data are not Gaussian in:

    dy/dlambda = r/sqrt(c + e^{-2 lambda}),   r = Q^T (D - D_gauss),   D_gauss the Wiener filter.

Only r is extrapolated, the kernel is integrated for every component. c = 0 is the exponential
Adams method in the data prediction (DPM-Solver++), so this is one family; it is a table whose
coefficients are vectors over the components of the basis Q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import Denoiser, Process
from .base import Path
from .grids import check
from .multistep import gauss, lagrange


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean [d], variances c [d] along the columns of basis [d, d] (None: the components' own).

    Float64. Raises ValueError for shapes that do not agree or negative variances.
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor | None = None

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if self.mean.ndim != 1 or self.variances.shape != (d,):
            raise ValueError(
                f"mean and variances must be vectors of one length; got "
                f"{tuple(self.mean.shape)} and {tuple(self.variances.shape)}"
            )
        if self.basis is not None and self.basis.shape != (d, d):
            raise ValueError(f"basis must be {(d, d)}; got {tuple(self.basis.shape)}")
        if not bool((self.variances >= 0).all()):
            raise ValueError(f"variances must be >= 0; got {float(self.variances.min())}")

    @classmethod
    def none(cls, d: int) -> Statistics:
        """Nothing known: mean 0, c = 0, and the integrator is DPM-Solver++'s."""
        return cls(torch.zeros(d).double(), torch.zeros(d).double())

    @classmethod
    def of(cls, data: Tensor, kind: str = "full") -> Statistics:
        """Statistics of data [n, *event]: 'full' covariance, 'diagonal', or one 'scalar' variance."""
        x = data.double().flatten(1)
        mean, centred = x.mean(0), x - x.mean(0)
        if kind == "full":
            values, basis = torch.linalg.eigh(centred.T @ centred / len(x))
            return cls(mean, values.clamp(min=0.0), basis)
        per_component = centred.square().mean(0)
        if kind == "diagonal":
            return cls(mean, per_component)
        if kind == "scalar":
            return cls(mean, per_component.mean().expand(len(mean)).clone())
        raise ValueError(f"kind must be 'full', 'diagonal' or 'scalar'; got {kind!r}")


    def posterior(self, v: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(P v, tr P) for P = C (C + s^2)^-1, the Jacobian of E[x | x + s eps] of N(m, C).

        v [n, d] in any dtype, noise: s^2 [n] float64; the answers are [n, d] in v's and [n].
        """
        gain = self.variances.to(noise.device)
        gain = gain / (gain + noise[:, None])
        if self.basis is None:
            return gain.to(v.dtype) * v, gain.sum(1)
        q = self.basis.to(v.device, v.dtype)
        return (gain.to(v.dtype) * (v @ q)) @ q.T, gain.sum(1)


@dataclass(frozen=True, eq=False)
class SpectralTable:
    """A table over components: u_{i+1} = sum_k state[i,k] u_{i-k} + sum_h data[i,h] E_{i-h}.

    u = Q^T (x - alpha m) and E = Q^T (D - m). times [N]; state [N, K, d]; data [N, H, d] float64;
    entry [d] takes u from grid[0] to times[0] in closed form; grid: where it starts and ends.
    """

    process: Process
    stats: Statistics
    times: Tensor
    state: Tensor
    data: Tensor
    entry: Tensor
    grid: Tensor

    @property
    def nfe(self) -> int:
        return len(self.times)

    def run(self, model: Denoiser, x: Tensor) -> Tensor:
        """Integrate x [B, ...] from grid[0] to grid[-1]; in x's dtype, coefficients float64."""
        shape, dtype = x.shape, x.dtype
        mean = self.stats.mean.to(x.device, dtype)
        state, data, entry = (m.to(x.device, dtype) for m in (self.state, self.data, self.entry))
        alpha = self.process.alpha(torch.cat([self.grid[:1], self.times, self.grid[-1:]])).tolist()
        u = self._rotate(x.flatten(1) - alpha[0] * mean) * entry
        states: list[Tensor] = [u]
        datas: list[Tensor] = []
        for i, t in enumerate(self.times.tolist()):
            at = self._rotate(states[0], back=True) + alpha[i + 1] * mean
            d = model(at.reshape(shape), t).flatten(1)
            datas.insert(0, self._rotate(d - mean))
            u = sum((a * v for a, v in zip(state[i], states, strict=False)), torch.zeros_like(u))
            u = sum((b * v for b, v in zip(data[i], datas, strict=False)), u)
            states.insert(0, u)
            del states[state.shape[1] :], datas[data.shape[1] :]
        out: Tensor = self._rotate(u, back=True) + alpha[-1] * mean
        return out.reshape(shape)

    def _rotate(self, v: Tensor, back: bool = False) -> Tensor:
        if self.stats.basis is None:
            return v
        q: Tensor = self.stats.basis.to(v.device, v.dtype)
        return torch.matmul(v, q.T if back else q)


@dataclass(frozen=True, eq=False)
class GaussianPreconditioned:
    """The integrator of this module, of order `points`; see `SpectralTable.run`.

    start: a ratio sigma/alpha down to which the flow is taken to be the Gaussian's own, without a
    call, since r is nearly 0 at high noise; None calls from the grid's first node on.
    """

    stats: Statistics
    points: int = 2
    start: float | None = None

    def table(self, process: Process, grid: Sequence[float] | Tensor) -> SpectralTable:
        """The table for these times, which must end at sigma > 0 (`final='t_min'`)."""
        t = torch.as_tensor(grid, dtype=torch.float64)
        check(t, process, t_min=process.t_clean)
        path = Path.of(process, t)
        if path.ends_clean or not bool(torch.isfinite(path.lam).all()):
            raise ValueError("grid must lie where 0 < alpha and 0 < sigma; use final='t_min'")
        called = torch.cat([t[:-1], t[-1:]])
        if self.start is not None:
            first = process.inverse_log_snr(-torch.log(torch.tensor(self.start).double()))
            called = torch.cat([first[None], t[1:]]) if float(t[1]) < float(first) else t
        inner = Path.of(process, called)
        weights = residual_weights(inner.lam, self.stats.variances, self.points)
        state, data = whitened_columns(inner, self.stats.variances, weights)
        return SpectralTable(
            process, self.stats, called[:-1], state, data,
            closed_form(process, t[:1], called[:1], self.stats.variances)[0],
            torch.cat([t[:1], t[-1:]]),
        )  # fmt: skip


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
    back = torch.arange(n)[:, None] - torch.arange(points)
    basis = lagrange(inside, lam[back.clamp(min=0)], back >= 0)
    kernel = torch.rsqrt(c + torch.exp(-2 * inside)[..., None])  # [n, G, d]
    return torch.einsum("g,ngh,ngd->nhd", w, h[..., None] * basis, kernel)


def whitened_columns(path: Path, c: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of u and E for y' = y + sum_h weights[:, h] r_{i-h}."""
    n, points = weights.shape[:2]
    spread = torch.sqrt(c + torch.exp(-2 * path.lam)[:, None])  # [n + 1, d]
    wiener = c / spread.square()
    data = (path.alpha[1:, None] * spread[1:])[:, None] * weights
    back = (torch.arange(n)[:, None] - torch.arange(points)).clamp(min=0)
    state = -data * wiener[back] / path.alpha[back][..., None]
    carry = path.alpha[1:, None] * spread[1:] / (path.alpha[:-1, None] * spread[:-1])
    return torch.cat([state[:, :1] + carry[:, None], state[:, 1:]], 1), data
