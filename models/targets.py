"""Targets whose score, density and samples are exact: what solvers and likelihoods are held to.

Under x_t = alpha x_0 + sigma eps a Gaussian mixture stays one,
p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I), so D, score and log p_t are closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.errors import InvalidValue
from .denoiser import Denoiser
from .processes import Process

Array = Tensor | Sequence[float] | Sequence[Sequence[float]]


class GaussianMixture:
    """sum_k weights_k N(means_k, covs_k) on R^d, or on any event shape of d components.

    weights: [K], positive, normalised here. means: [K, *event].
    covs: [K, d, d] full, [K, d] diagonals, [K] or a float: variances (not deviations).
    Computed in float64. Raises ValueError for weights that are not positive, for shapes that do
    not agree and for covariances that are not symmetric positive semi-definite.
    """

    def __init__(self, weights: Array, means: Array, covs: Array | float) -> None:
        w = torch.as_tensor(weights, dtype=torch.float64)
        m = torch.as_tensor(means, dtype=torch.float64)
        if w.ndim != 1 or not bool((w > 0).all()) or not bool(torch.isfinite(w).all()):
            raise InvalidValue(f"weights must be a vector of positive numbers; got {weights!r}")
        if m.ndim < 2 or m.shape[0] != w.shape[0]:
            raise InvalidValue(
                f"means must be [K, ...] with K={w.shape[0]} components; got {tuple(m.shape)}"
            )
        self.event_shape = m.shape[1:]
        self.weights = w / w.sum()
        self.means = m.flatten(1)
        self._eigenvalues, self._basis = _eigen(covs, *self.means.shape)

    @property
    def covs(self) -> Tensor:
        """[K, d, d], float64."""
        q = self._basis
        return q @ (self._eigenvalues[..., None] * q.mT)

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, [d]."""
        return self.weights @ self.means

    @property
    def cov(self) -> Tensor:
        """Covariance of the mixture, [d, d]."""
        c = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covs) + torch.einsum(
            "k,ki,kj->ij", self.weights, c, c
        )

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n exact draws, float64 [n, *event]; seeded by torch's CPU generator."""
        g = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=g)
        z = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=g)
        z = z * self._eigenvalues.sqrt()[k]
        d = self.means.shape[1]
        basis, few = self._basis.expand(len(self.means), -1, -1), max(1, (1 << 24) // d**2)
        turned = [  # a few at a time: each takes its component's d x d axes along
            torch.einsum("nij,nj->ni", basis[ks], zs)
            for ks, zs in zip(torch.split(k, few), torch.split(z, few), strict=True)
        ]
        return (self.means[k] + torch.cat(turned)).reshape(n, *self.event_shape)

    def log_prob(
        self, x: Tensor, t: float | Tensor = 0.0, process: Process | None = None
    ) -> Tensor:
        """log p_t(x) in nats, x [B, *event], t float or [B]; t = 0 needs no process. [B]."""
        alpha, sigma = self._scales(x, t, process)
        return self._evaluate(x, alpha, sigma)[0].logsumexp(-1).to(_at_least_f32(x.dtype))

    def data_prediction(self, x: Tensor, t: float | Tensor, process: Process) -> Tensor:
        """D(x, t) = E[x_0 | x_t = x], the responsibilities' mean of K Wiener filters."""
        alpha, sigma = self._scales(x, t, process)
        logp, y, var = self._evaluate(x, alpha, sigma)
        gain = (alpha[:, None, None] * self._eigenvalues.to(x.device) / var) * y  # [B, K, d]
        q = self._basis.to(x.device)
        posterior = self.means.to(x.device) + (
            torch.einsum("ij,bkj->bki", q[0], gain)
            if q.shape[0] == 1
            else torch.einsum("kij,bkj->bki", q, gain)
        )
        d = torch.einsum("bk,bki->bi", logp.softmax(-1), posterior)
        return d.reshape(x.shape).to(x.dtype)

    def denoiser(self, process: Process) -> Denoiser:
        """The exact network for `process`: it predicts data, at any t, and is differentiable."""
        return Denoiser(lambda x, t: self.data_prediction(x, t, process), process, predicts="data")

    def _scales(
        self, x: Tensor, t: float | Tensor, process: Process | None
    ) -> tuple[Tensor, Tensor]:
        if tuple(x.shape[1:]) != tuple(self.event_shape):
            raise InvalidValue(
                f"x must be [B, {', '.join(map(str, self.event_shape))}]; got {tuple(x.shape)}"
            )
        times = torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(x.shape[0])
        if process is None:
            if not bool((times != 0).any()):
                return torch.ones_like(times), torch.zeros_like(times)
            raise InvalidValue(f"log_prob at t={t} needs the process that noised the data")
        return process.alpha(times), process.sigma(times)

    def _evaluate(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; ...) [B, K], x - alpha m_k in the eigenbasis and its variances [B, K, d]."""
        flat = x.double().flatten(1)
        means, q = self.means.to(x.device), self._basis.to(x.device)
        diff = flat[:, None] - alpha[:, None, None] * means  # [B, K, d]
        y = (
            torch.einsum("ij,bki->bkj", q[0], diff)
            if q.shape[0] == 1
            else torch.einsum("kij,bki->bkj", q, diff)
        )
        eig = self._eigenvalues.to(x.device)
        var = alpha.square()[:, None, None] * eig + sigma.square()[:, None, None]
        logp = -0.5 * (y.square() / var + var.log()).sum(-1)
        logp = logp - 0.5 * flat.shape[1] * math.log(2 * math.pi)
        return logp + self.weights.to(x.device).log(), y, var


class Gaussian(GaussianMixture):
    """N(mean, cov) on R^d: mean [*event], cov [d, d], its diagonal [d], or a variance."""

    def __init__(self, mean: Array, cov: Array | float) -> None:
        m = torch.as_tensor(mean, dtype=torch.float64)
        c = torch.as_tensor(cov, dtype=torch.float64)
        super().__init__([1.0], m[None], c[None] if c.ndim else c)


def _eigen(covs: Array | float, count: int, dim: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues [K, d] and bases [K, d, d] (or [1, d, d], the identity, where all are diagonal)."""
    c = torch.as_tensor(covs, dtype=torch.float64)
    if c.ndim < 3:
        try:
            values = (c[:, None] if c.ndim == 1 else c).expand(count, dim).clone()
        except RuntimeError:
            raise InvalidValue(
                f"covs must be [K, d, d], [K, d], [K] or a number with K={count}, d={dim}; "
                f"got {tuple(c.shape)}"
            ) from None
        basis = torch.eye(dim, dtype=torch.float64)[None]
    elif tuple(c.shape) != (count, dim, dim):
        raise InvalidValue(f"covs must be {(count, dim, dim)}; got {tuple(c.shape)}")
    elif not torch.allclose(c, c.mT, rtol=1e-6, atol=1e-9 * float(c.abs().max())):
        raise InvalidValue("covs must be symmetric")
    else:
        values, basis = torch.linalg.eigh(0.5 * (c + c.mT))
    floor = -1e-9 * float(values.abs().max())
    if not bool(torch.isfinite(values).all()) or float(values.min()) < floor:
        raise InvalidValue(
            f"covs must be finite and positive semi-definite; smallest eigenvalue {values.min():g}"
        )
    return values.clamp(min=0.0), basis


def _at_least_f32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
