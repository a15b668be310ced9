"""Targets whose score, density and samples are exact: what solvers and likelihoods are held to.

Under x_t = alpha x_0 + sigma eps a Gaussian mixture stays one,
p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I), so D, score and log p_t are closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.checks import check_dense
from ..kernels.errors import InvalidType, InvalidValue
from ..kernels.noise import normal, uniform
from ..kernels.shapes import as_float64
from ..kernels.streams import TARGET, TARGET_COMPONENT
from .denoiser import Denoiser
from .processes import Process
from .processes.process import count, f64

Array = Tensor | Sequence[float] | Sequence[Sequence[float]]


class GaussianMixture:
    """sum_k weights_k N(means_k, covs_k) on R^d, or on any event shape of d components.

    weights: [K], positive, normalised here.
    means: [K, *event], finite.
    covs: [K, d, d] full, [K, d] diagonals, [K] or a number: variances, not deviations, >= 0.

    Computed in float64. Raises TypeError for what holds no real numbers; ValueError for weights
    that are not positive, means that are not finite, shapes that do not agree and covariances that
    are not symmetric positive semi-definite.
    """

    def __init__(self, weights: Array, means: Array, covs: Array | float) -> None:
        w, m = _numbers("weights", weights), _numbers("means", means)
        if w.ndim != 1 or not bool((w > 0).all()) or not bool(torch.isfinite(w.sum())):
            raise InvalidValue(
                f"weights must be a vector of positive numbers with a finite sum; got {weights!r}"
            )
        if not bool(torch.isfinite(m).all()):
            raise InvalidValue(f"means must be finite; got {means!r}")
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
        """Exact draws, float64 [n, *event].

        n: how many, >= 1.
        seed: any 64-bit integer. Draw i depends on the seed and i alone, so that the first draws of
            a longer run are those of a shorter one.
        Raises ValueError or TypeError for other values.
        """
        n, d = count("n", n), self.means.shape[1]
        u = uniform((n,), seed, **TARGET_COMPONENT.at(), dtype=torch.float64, device="cpu")
        k = torch.searchsorted(self.weights.cumsum(0)[:-1].contiguous(), u, right=True)
        z = normal((n, d), seed, **TARGET.at(), dtype=torch.float64, device="cpu")
        z = z * self._eigenvalues.sqrt()[k]
        basis, few = self._basis.expand(len(self.means), -1, -1), max(1, (1 << 24) // d**2)
        turned = [  # a few at a time: each takes its component's d x d axes along
            torch.einsum("nij,nj->ni", basis[ks], zs)
            for ks, zs in zip(torch.split(k, few), torch.split(z, few), strict=True)
        ]
        return (self.means[k] + torch.cat(turned)).reshape(n, *self.event_shape)

    def log_prob(
        self, x: Tensor, t: float | Tensor = 0.0, process: Process | None = None
    ) -> Tensor:
        """log p_t(x) in nats, [B].

        x: [B, *event].
        t: float or [B], in the process's times.
        process: what noised the data; None at t = 0 only.
        Raises ValueError for shapes and times that do not fit, and where the law has no density: a
        variance of 0 that no noise has covered.
        """
        alpha, sigma = self._scales(x, t, process)
        if process is not None:
            process.inside(t)
        if not bool((self._eigenvalues > 0).all()) and not bool((sigma > 0).all()):
            raise InvalidValue(
                "the law has no density at t=0: a variance of its covs is 0; ask at t > 0 with a "
                "process, or give every component a variance > 0"
            )
        return self._evaluate(x, alpha, sigma)[0].logsumexp(-1).to(_at_least_f32(x.dtype))

    def data_prediction(self, x: Tensor, t: float | Tensor, process: Process) -> Tensor:
        """D(x, t) = E[x_0 | x_t = x], the responsibilities' mean of K Wiener filters.

        x: [B, *event].
        t: float or [B], also after t_max, where churn may ask.
        process: what noised the data.
        """
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
        """The exact network for a process: it predicts data, at any t, and is differentiable."""
        if not isinstance(process, Process):
            raise InvalidType(f"process must be a Process, e.g. VP(); got {process!r}")
        return Denoiser(_Exact(self, process), process, predicts="data")

    def _scales(
        self, x: Tensor, t: float | Tensor, process: Process | None
    ) -> tuple[Tensor, Tensor]:
        check_dense("x", x, floating=False, numbers=process is None)
        if x.ndim == 0 or tuple(x.shape[1:]) != tuple(self.event_shape):
            raise InvalidValue(
                f"x must be [B, {', '.join(map(str, self.event_shape))}]; got {tuple(x.shape)}"
            )
        if process is None:
            times = torch.as_tensor(t, dtype=torch.float64, device=x.device)
            if bool((times == 0).all()):
                return torch.ones_like(times).expand(len(x)), torch.zeros_like(times).expand(len(x))
            raise InvalidValue(f"log_prob at t={t} needs the process that noised the data")
        if not isinstance(process, Process):
            raise InvalidType(f"process must be a Process, e.g. VP(); got {process!r}")
        times = f64(t).to(x.device)
        if times.ndim and times.shape != x.shape[:1]:
            raise InvalidValue(
                f"t must be a float or of shape ({len(x)},); got {tuple(times.shape)}"
            )
        return process.alpha(times.expand(len(x))), process.sigma(times.expand(len(x)))

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
    """N(mean, cov) on R^d, or on any event shape of d components.

    mean: [*event], finite.
    cov: [d, d], its diagonal [d], or a variance >= 0.
    Raises as `GaussianMixture` does.
    """

    def __init__(self, mean: Array, cov: Array | float) -> None:
        m, c = _numbers("mean", mean), _numbers("cov", cov)
        super().__init__([1.0], m[None], c[None] if c.ndim else c)


class _Exact:
    """net(x, t) of a law and a process; a class, so that it pickles."""

    def __init__(self, law: GaussianMixture, process: Process) -> None:
        self.law, self.process = law, process

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.law.data_prediction(x, t, self.process)

    def __repr__(self) -> str:
        return f"exact({type(self.law).__name__})"


def _numbers(name: str, values: object) -> Tensor:
    """Real numbers as float64. Raises TypeError for what holds none."""
    try:
        # a tensor stays where it is: as_tensor would move it to the default device
        found = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
        if found.is_complex() or found.layout != torch.strided or found.is_meta:
            raise TypeError
        if not found.numel():
            raise InvalidValue(f"{name} must hold numbers; got shape {tuple(found.shape)}")
        return as_float64(values)
    except InvalidValue:
        raise
    except (TypeError, ValueError, RuntimeError):
        raise InvalidType(f"{name} must hold real numbers; got {values!r}") from None


def _eigen(covs: Array | float, count: int, dim: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues [K, d] and bases [K, d, d]; where all are diagonal, the identity [1, d, d]."""
    c = _numbers("covs", covs)
    if c.ndim < 3:
        try:
            values = (c[:, None] if c.ndim == 1 else c).expand(count, dim).clone()
        except RuntimeError:
            raise InvalidValue(
                f"covs must be [K, d, d], [K, d], [K] or a number with K={count}, d={dim}; "
                f"got {tuple(c.shape)}"
            ) from None
        basis = torch.eye(dim, dtype=torch.float64, device="cpu")[None]
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
