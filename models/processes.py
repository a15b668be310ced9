"""Forward processes x_t = alpha(t) x_0 + sigma(t) eps: what the noise does to the data.

Every quantity follows from alpha and sigma (Song et al. 2021, Kingma et al. 2021):

    lambda(t) = log alpha(t)/sigma(t)          half the log signal-to-noise ratio
    dx = f(t) x dt + g(t) dw                   f = d log alpha/dt
    g(t)^2 = d sigma^2/dt - 2 f sigma^2        the forward SDE with these marginals

A process gives alpha, sigma and their slopes in closed form, so that nothing is differenced
and both ends of time stay exact. All methods take a float or a tensor of times, compute in
float64 and return a float64 tensor of the same shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Time = float | Tensor


def _f64(t: Time) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and > 0; got {value}")


def _increasing(lo_name: str, lo: float, hi_name: str, hi: float) -> None:
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"{hi_name} must exceed {lo_name}; got {lo_name}={lo}, {hi_name}={hi}")


@dataclass(frozen=True)
class Prior:
    """N(0, std^2) for every component: the law sampling starts from."""

    std: float

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, std^2 I) in nats, [B, ...] -> float64 [B]."""
        x = x.double().flatten(1)
        return (
            -0.5 * (x / self.std).square().sum(1)
            - x.shape[1] * (math.log(self.std) + 0.5 * math.log(2 * math.pi))
        )


class Process(ABC):
    """A Gaussian forward process; see the module's first lines for the symbols."""

    # where sigma is 0, so that the last step is one denoising jump; -inf where only the limit is
    t_clean: ClassVar[float] = 0.0
    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Signal scale alpha(t) in [0, 1]."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Noise scale sigma(t) >= 0, the standard deviation of x_t given x_0."""

    @abstractmethod
    def alpha_dot(self, t: Time) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def sigma_dot(self, t: Time) -> Tensor:
        """d sigma / dt."""

    @abstractmethod
    def inverse_log_snr(self, lam: Time) -> Tensor:
        """The t at which log_snr(t) = lam."""

    def log_snr(self, t: Time) -> Tensor:
        """lambda(t) = log alpha(t)/sigma(t); +inf where sigma = 0, -inf where alpha = 0."""
        return self.alpha(t).log() - self.sigma(t).log()

    def drift_rate(self, t: Time) -> Tensor:
        """f(t) of dx = f x dt + g dw."""
        return self.alpha_dot(t) / self.alpha(t)

    def diffusion(self, t: Time) -> Tensor:
        """g(t) of dx = f x dt + g dw."""
        sigma = self.sigma(t)
        g2 = 2 * sigma * (self.sigma_dot(t) - self.drift_rate(t) * sigma)
        return g2.sqrt()

    @property
    def prior(self) -> Prior:
        """N(0, sigma(t_max)^2): x at t_max for data of scale << sigma(t_max)/alpha(t_max)."""
        return Prior(float(self.sigma(self.t_max)))


class _VariancePreserving(Process):
    """sigma^2 = 1 - alpha^2 with alpha = exp(-B/2), B the integral of beta from 0 to t."""

    @abstractmethod
    def beta(self, t: Time) -> Tensor:
        """Noise rate beta(t) > 0."""

    @abstractmethod
    def beta_integral(self, t: Time) -> Tensor:
        """B(t) = integral of beta from 0 to t."""

    @abstractmethod
    def inverse_beta_integral(self, b: Tensor) -> Tensor:
        """The t at which beta_integral(t) = b."""

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(-0.5 * self.beta_integral(t))

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.beta_integral(t)))

    def alpha_dot(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t) * self.alpha(t)

    def sigma_dot(self, t: Time) -> Tensor:
        return 0.5 * self.beta(t) * self.alpha(t).square() / self.sigma(t)

    def log_snr(self, t: Time) -> Tensor:
        return -0.5 * torch.log(torch.expm1(self.beta_integral(t)))

    def inverse_log_snr(self, lam: Time) -> Tensor:
        # B = log(1 + exp(-2 lambda))
        lam = _f64(lam)
        return self.inverse_beta_integral(torch.logaddexp(torch.zeros_like(lam), -2 * lam))

    def drift_rate(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)

    def diffusion(self, t: Time) -> Tensor:
        return self.beta(t).sqrt()


@dataclass(frozen=True)
class _LinearBeta(_VariancePreserving):
    """beta(t) = beta_min + (beta_max - beta_min) t."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _positive("beta_min", self.beta_min)
        _increasing("beta_min", self.beta_min, "beta_max", self.beta_max)
        _increasing("t_min", self.t_min, "t_max", self.t_max)
        _positive("t_min", self.t_min)

    def beta(self, t: Time) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * _f64(t)

    def beta_integral(self, t: Time) -> Tensor:
        t = _f64(t)
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def inverse_beta_integral(self, b: Tensor) -> Tensor:
        # the stable root of the quadratic: no cancellation as b -> 0
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b)
        return 2 * b / (self.beta_min + root)


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance-preserving SDE: beta linear in t, alpha = exp(-1/2 int beta) (Song et al. 2021, 32).

    `VP.cosine()` and `VP.from_betas(betas)` are the discrete-time schedules of DDPM and
    Improved DDPM. Raises ValueError unless 0 < beta_min < beta_max and 0 < t_min < t_max.
    """

    @staticmethod
    def cosine(s: float = 0.008, steps: int = 1000) -> TabledVP:
        """Improved DDPM's schedule, alpha_bar = cos^2((u+s)/(1+s) pi/2), beta capped at 0.999."""
        if steps < 1:
            raise ValueError(f"steps must be >= 1; got {steps}")
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((u + s) / (1 + s) * math.pi / 2).square()
        return VP.from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))

    @staticmethod
    def from_betas(betas: Sequence[float] | Tensor) -> TabledVP:
        """A DDPM schedule beta_1..beta_N as a process on [1/N, 1]: step i is at t = i/N."""
        return TabledVP(tuple(torch.as_tensor(betas, dtype=torch.float64).tolist()))


@dataclass(frozen=True)
class TabledVP(_VariancePreserving):
    """Discrete-time VP schedule (DDPM) in continuous time: log alpha_bar linear between entries.

    alpha_bar(i/N) = prod_{j<=i} (1 - beta_j), i = 0..N, so beta(t) = -N log(1 - beta_i) is
    piecewise constant. Raises ValueError unless every beta lies in (0, 1).
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        for i, b in enumerate(self.betas):
            if not 0 < b < 1:
                raise ValueError(f"betas must lie in (0, 1); got betas[{i}]={b}")
        if not self.betas:
            raise ValueError("betas must hold at least one entry; got none")
        rates = -torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)) * len(self.betas)
        total = torch.cat([rates.new_zeros(1), rates.cumsum(0) / len(self.betas)])
        object.__setattr__(self, "_rates", rates)
        object.__setattr__(self, "_knots", total)

    _rates: ClassVar[Tensor]
    _knots: ClassVar[Tensor]

    def __repr__(self) -> str:
        n = len(self.betas)
        return f"VP.from_betas({n} entries, {self.betas[0]:.3g} .. {self.betas[-1]:.3g})"

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1.0 / len(self.betas)

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0

    def _segment(self, t: Tensor) -> Tensor:
        return torch.clamp(torch.ceil(t * len(self.betas)).long() - 1, 0, len(self.betas) - 1)

    def beta(self, t: Time) -> Tensor:
        t = _f64(t)
        return self._rates.to(t.device)[self._segment(t)]

    def beta_integral(self, t: Time) -> Tensor:
        t = _f64(t)
        i, n = self._segment(t), len(self.betas)
        knots, rates = self._knots.to(t.device), self._rates.to(t.device)
        # from the right knot, so that t = i/N gives the table's entry to the last bit or two
        return knots[i + 1] - rates[i] * ((i + 1).double() / n - t)

    def inverse_beta_integral(self, b: Tensor) -> Tensor:
        n = len(self.betas)
        knots, rates = self._knots.to(b.device), self._rates.to(b.device)
        i = torch.clamp(torch.searchsorted(knots, b.contiguous()) - 1, 0, n - 1)
        return (i + 1).double() / n - (knots[i + 1] - b) / rates[i]


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP SDE: alpha as in VP, sigma = 1 - alpha^2, not its square root (Song et al. 2021, 35)."""

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(-self.beta_integral(t))

    def sigma_dot(self, t: Time) -> Tensor:
        return self.beta(t) * torch.exp(-self.beta_integral(t))

    def log_snr(self, t: Time) -> Tensor:
        # alpha/(1 - alpha^2) = 1/(2 sinh(B/2))
        return -torch.log(2 * torch.sinh(0.5 * self.beta_integral(t)))

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return self.inverse_beta_integral(2 * torch.asinh(0.5 * torch.exp(-_f64(lam))))

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(-self.beta(t) * torch.expm1(-2 * self.beta_integral(t)))


class _VarianceExploding(Process):
    """alpha = 1: the data are not scaled, only drowned."""

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(_f64(t))

    def alpha_dot(self, t: Time) -> Tensor:
        return torch.zeros_like(_f64(t))

    def log_snr(self, t: Time) -> Tensor:
        return -self.sigma(t).log()


@dataclass(frozen=True)
class VE(_VarianceExploding):
    """Variance-exploding SDE: sigma(t) = sigma_min (sigma_max/sigma_min)^t (Song et al. 2021, 30)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    t_clean: ClassVar[float] = -math.inf

    def __post_init__(self) -> None:
        _positive("sigma_min", self.sigma_min)
        _increasing("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        _increasing("t_min", self.t_min, "t_max", self.t_max)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_min * torch.exp(self._rate * _f64(t))

    def sigma_dot(self, t: Time) -> Tensor:
        return self._rate * self.sigma(t)

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return (-_f64(lam) - math.log(self.sigma_min)) / self._rate


@dataclass(frozen=True)
class EDM(_VarianceExploding):
    """alpha = 1, sigma = t: time is the noise level (Karras et al. 2022)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _positive("sigma_min", self.sigma_min)
        _positive("sigma_data", self.sigma_data)
        _increasing("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def sigma(self, t: Time) -> Tensor:
        return _f64(t).clone()

    def sigma_dot(self, t: Time) -> Tensor:
        return torch.ones_like(_f64(t))

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return torch.exp(-_f64(lam))


@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow / flow matching: alpha = 1 - t, sigma = t, data at t = 0 (Lipman et al. 2023)."""

    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _positive("t_min", self.t_min)
        _increasing("t_min", self.t_min, "t_max", self.t_max)
        if self.t_max > 1:
            raise ValueError(f"t_max must be at most 1, where alpha = 0; got {self.t_max}")

    def alpha(self, t: Time) -> Tensor:
        return 1 - _f64(t)

    def sigma(self, t: Time) -> Tensor:
        return _f64(t).clone()

    def alpha_dot(self, t: Time) -> Tensor:
        return -torch.ones_like(_f64(t))

    def sigma_dot(self, t: Time) -> Tensor:
        return torch.ones_like(_f64(t))

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return torch.sigmoid(-_f64(lam))


@dataclass(frozen=True, init=False)
class Brownian(_VarianceExploding):
    """Scaled Brownian motion x_t = x_0 + scale W_t: alpha = 1, sigma(t)^2 = scale^2 t.

    Its reversal is dX = scale^2 grad log h dt + scale dB, the Doob h-transform. The argument
    is called `sigma`, the field `scale`, since sigma(t) is a function of time.
    """

    scale: float
    t_min: float
    t_max: float

    def __init__(self, sigma: float = 1.0, t_min: float = 1e-5, t_max: float = 1.0) -> None:
        _positive("sigma", sigma)
        _positive("t_min", t_min)
        _increasing("t_min", t_min, "t_max", t_max)
        for name, value in (("scale", sigma), ("t_min", t_min), ("t_max", t_max)):
            object.__setattr__(self, name, value)

    def sigma(self, t: Time) -> Tensor:
        return self.scale * _f64(t).sqrt()

    def sigma_dot(self, t: Time) -> Tensor:
        return 0.5 * self.scale * _f64(t).rsqrt()

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return torch.exp(-2 * _f64(lam)) / self.scale**2

    def diffusion(self, t: Time) -> Tensor:
        return torch.full_like(_f64(t), self.scale)


PROCESSES: dict[str, Callable[..., Process]] = {
    "vp": VP,
    "vp-cosine": VP.cosine,
    "vp-betas": VP.from_betas,
    "subvp": SubVP,
    "ve": VE,
    "edm": EDM,
    "flow": Flow,
    "brownian": Brownian,
}
"""Processes by the name that checkpoints and the command line use."""
