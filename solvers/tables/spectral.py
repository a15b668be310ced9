"""Gaussian-preconditioned integration: the linear flow of the data's mean and covariance is exact.

In x^ = x/alpha with s = sigma/alpha, a data mean m and covariance Q diag(c) Q^T, the whitened state
y = Q^T (x^ - m)/sqrt(c + s^2) stays put but for what the data are not Gaussian in:

    dy/dlambda = r/sqrt(c + e^{-2 lambda}),   r = Q^T (D - D_gauss),   D_gauss the Wiener filter.

Only r is extrapolated, the kernel is integrated for every component. c = 0 is the exponential
Adams method in the data prediction (DPM-Solver++), so this is one family; it is a table whose
coefficients are vectors over the components of the basis Q.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser, Process
from ...models.bases import Basis, Columns, Cosine, Leading, Unit, from_record
from ..families.multistep_engine import gauss, lagrange
from .grids import as_times, check
from .solver import Path

KINDS = ("full", "leading", "cosine", "diagonal", "scalar")
"""Of statistics: what of the covariance is kept."""
RANK = 64
"""Directions of 'leading' statistics, at most."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean [d], variances c [d] along the columns of a basis (None: the components' own; a matrix
    [d, d] with orthonormal columns stands for `bases.Columns`).

    Float64. Raises ValueError for shapes that do not agree or negative variances.
    """

    mean: Tensor = field(repr=False)
    variances: Tensor = field(repr=False)
    basis: Basis | Tensor | None = None

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if self.mean.ndim != 1 or self.variances.shape != (d,):
            raise InvalidValue(
                f"mean and variances must be vectors of one length; got "
                f"{tuple(self.mean.shape)} and {tuple(self.variances.shape)}"
            )
        if isinstance(self.basis, Tensor) and self.basis.shape != (d, d):
            raise InvalidValue(f"basis must be {(d, d)}; got {tuple(self.basis.shape)}")
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
        return cls(torch.zeros(d).double(), torch.zeros(d).double())

    @classmethod
    def of(cls, data: Tensor, kind: str = "full") -> Statistics:
        """Statistics of data [n, *event].

        kind: 'full' covariance, [d, d]; 'leading': its first RANK directions and one variance for
        the rest; 'cosine': diagonal in the DCT basis of the event's axes; 'diagonal' in its own
        components; or one 'scalar' variance. Raises ValueError for another kind or n < 2.
        """
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
            mean, c = (torch.tensor(record[k], dtype=torch.float64) for k in ("mean", "variances"))
            return cls(mean, c, from_record(record["basis"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidValue(f"not a record of statistics: {error!r}") from error

    def write(self, path: str | FilePath) -> None:
        """Write the record as JSON."""
        FilePath(path).write_text(json.dumps(self.record()), encoding="utf-8")

    @classmethod
    def read(cls, path: str | FilePath) -> Statistics:
        """Inverse of `write`. Raises ValueError for another file."""
        try:
            return cls.from_record(json.loads(FilePath(path).read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
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


@dataclass(frozen=True, eq=False)
class SpectralTable:
    """A table over components: u_{i+1} = sum_k state[i,k] u_{i-k} + sum_h data[i,h] E_{i-h}.

    u = Q^T (x - alpha m) and E = Q^T (D - m). times [N]; state [N, K, d]; data [N, H, d] float64;
    entry [d] takes u from grid[0] to times[0] in closed form; grid: where it starts and ends.
    Runs wherever a `Tableau` does: `sample(model, shape, solver=table)`. A sample is the same in any
    batch up to the rounding of the products with Q, which a library may sum in another order there.
    """

    process: Process
    stats: Statistics
    times: Tensor
    state: Tensor = field(repr=False)
    data: Tensor = field(repr=False)
    entry: Tensor = field(repr=False)
    grid: Tensor
    name: str = "spectral"
    stochastic: bool = False

    @property
    def nfe(self) -> int:
        return len(self.times)


@dataclass(frozen=True, eq=False)
class Frame:
    """Between a model's samples and the components that a spectral table acts on; all it holds is on
    the device and in the state's type, so that a CUDA graph can capture it.

    alpha [N + 2]: at grid[0], at every call, at grid[-1]. c_in [N]: scale of the network's input.
    shift [N]: with D = skip x + scale out, E = skip u + scale Q^T (out + shift m).
    """

    stats: Statistics
    entry: Tensor
    alpha: tuple[float, ...]
    c_in: tuple[float, ...]
    shift: tuple[float, ...]

    @classmethod
    def of(cls, table: SpectralTable, model: Denoiser, device: Any, dtype: torch.dtype) -> Frame:
        """For a model on a device, in the state's type. Raises ValueError for a model of another
        process than the table's, or one that clips: its limits are those of pixels, not of
        components."""
        if model.clip is not None:
            raise InvalidValue(
                f"clip={model.clip} acts on pixels and a table with statistics on components: "
                "use clip=None with it"
            )
        times = torch.cat([table.grid[:1], table.times, table.grid[-1:]])
        alpha = table.process.alpha(times)
        sigma, other = table.process.sigma(times), model.process
        if not all(
            torch.allclose(a, b, rtol=1e-6)
            for a, b in ((alpha, other.alpha(times)), (sigma, other.sigma(times)))
        ):
            raise InvalidValue(
                f"the table was made for {table.process}, the model is of {other}: "
                "make one for it, `solver.tableau(model.process, grid)`"
            )
        skip, scale = model.coefficients("data", table.times)
        shift = (skip * alpha[1:-1] - 1) / scale
        c_in = model.network_scale(table.times)
        numbers = (tuple(v.tolist()) for v in (alpha, c_in, shift))
        return cls(table.stats.to(device, dtype), table.entry.to(device, dtype), *numbers)

    def fits(self, shape: Sequence[int]) -> None:
        """Raises ValueError unless samples of this shape (B, ...) have the statistics' components."""
        d = self.stats.mean.numel()
        if math.prod(shape[1:]) != d:
            raise InvalidValue(
                f"the solver's statistics are of {d} components; got shape {tuple(shape)}: "
                "take statistics of data of the model's own kind"
            )

    def enter(self, x: Tensor) -> Tensor:
        """x at grid[0] -> u at the first call."""
        u = self.stats.q.into(x.flatten(1) - self._mean(x, 0))
        return (u * self.entry).reshape(x.shape)

    def asked(self, u: Tensor, row: int) -> Tensor:
        """u -> the network's input at call `row`."""
        return self.c_in[row] * self.sample(u, row + 1)

    def leave(self, u: Tensor) -> Tensor:
        """u -> x at grid[-1]."""
        return self.sample(u, len(self.alpha) - 1)

    def sample(self, u: Tensor, i: int) -> Tensor:
        """u -> x where alpha[i] is taken."""
        return (self.stats.q.back(u.flatten(1)) + self._mean(u, i)).reshape(u.shape)

    def heard(self, out: Tensor, row: int, dtype: torch.dtype) -> Tensor:
        """What the network returned at that call -> what the table's read-out takes."""
        shifted = out.to(dtype).flatten(1) + self.shift[row] * self.stats.mean.to(out.device, dtype)
        return self.stats.q.into(shifted).reshape(out.shape)

    def _mean(self, x: Tensor, i: int) -> Tensor:
        return self.alpha[i] * self.stats.mean.to(x.device, x.dtype)


@dataclass(frozen=True, eq=False)
class GaussianPreconditioned:
    """The integrator of this module, of order `points`: `sample(model, shape, solver=this)`.

    start: a ratio sigma/alpha down to which the flow is taken to be the Gaussian's own, without a
    call, since r is nearly 0 at high noise; None calls from the grid's first node on, or from its
    second where the first is pure noise, where D is the mean and r is 0. Raises ValueError for
    points other than 1 to 4 or start <= 0.
    """

    stats: Statistics
    points: int = 2
    start: float | None = None

    def __post_init__(self) -> None:
        if self.points not in (1, 2, 3, 4):
            raise InvalidValue(f"points must be 1, 2, 3 or 4; got {self.points}")
        if self.start is not None and not 0 < self.start < math.inf:
            raise InvalidValue(f"start must be a ratio sigma/alpha > 0, or None; got {self.start}")

    def tableau(self, process: Process, grid: Sequence[float] | Tensor) -> SpectralTable:
        """The table for these times: float64, strictly falling, as for any solver.

        With `start`, nodes above it are passed over but for the first, which moves there. Raises
        ValueError for a grid that leaves fewer than two times to call at.
        """
        t = as_times(grid)
        check(t, process, t_min=process.t_clean)
        called, clean = t, float(process.sigma(t[-1])) == 0.0
        if self.start is not None:
            first = process.inverse_log_snr(-torch.log(torch.tensor(self.start).double()))
            called = torch.cat([first[None], t[t < first]]) if float(t[0]) > float(first) else t
        elif float(process.alpha(t[0])) == 0.0:
            called = t[1:]
        inner = Path.of(process, called[:-1] if clean else called)
        if len(inner.t) < 2 or not bool(torch.isfinite(inner.lam).all()):
            raise InvalidValue(
                "grid must call the network at two times at least where 0 < alpha and 0 < sigma, "
                f"below start={self.start}; got {len(t)} nodes from t={float(t[0]):g}: use more steps"
            )
        c = self.stats.variances
        weights = residual_weights(inner.lam, c, self.points)
        state, data = whitened_columns(inner, c, weights)
        if clean:  # the jump x = D is the row u' = E
            state = torch.cat([state, torch.zeros_like(state[:1])])
            data = torch.cat([data, torch.zeros_like(data[:1])])
            data[-1, 0] = 1.0
        return SpectralTable(
            process, self.stats, called[:-1], state, data,
            closed_form(process, t[:1], called[:1], c)[0],
            torch.cat([t[:1], t[-1:]]), f"gaussian-{self.points}",
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
