"""Variance-preserving processes: DDPM's schedule in continuous and discrete time, and sub-VP."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from .process import Process, Time, f64, increasing, positive

if TYPE_CHECKING:
    from .learned_schedule import LearnedVP


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
        # B = log(1 + exp(-2 lambda)), by functions that round alike in a batch of any size, which
        # torch.logaddexp and softplus do not
        y = -2 * f64(lam)
        return self.inverse_beta_integral(y.clamp(min=0.0) + torch.log1p(torch.exp(-y.abs())))

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
        positive("beta_min", self.beta_min)
        if not self.beta_min <= self.beta_max:
            raise InvalidValue(
                f"beta_max must be at least beta_min={self.beta_min}; got {self.beta_max}"
            )
        increasing("t_min", self.t_min, "t_max", self.t_max)
        positive("t_min", self.t_min)

    def beta(self, t: Time) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * f64(t)

    def beta_integral(self, t: Time) -> Tensor:
        t = f64(t)
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def inverse_beta_integral(self, b: Tensor) -> Tensor:
        # the stable root of the quadratic: no cancellation as b -> 0
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b)
        return 2 * b / (self.beta_min + root)


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance-preserving SDE: beta linear in t, alpha = exp(-1/2 int beta) (Song et al. 2021, 32).

    `VP.cosine()` and `VP.from_betas(betas)` are the discrete-time schedules of DDPM and
    Improved DDPM. Raises ValueError unless 0 < beta_min <= beta_max and 0 < t_min < t_max.
    """

    @staticmethod
    def cosine(s: float = 0.008, steps: int = 1000) -> TabledVP:
        """Improved DDPM's schedule, alpha_bar = cos^2((u+s)/(1+s) pi/2), beta capped at 0.999."""
        if steps < 1:
            raise InvalidValue(f"steps must be >= 1; got {steps}")
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((u + s) / (1 + s) * math.pi / 2).square()
        return VP.from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))

    @staticmethod
    def from_betas(betas: Sequence[float] | Tensor) -> TabledVP:
        """A DDPM schedule beta_1..beta_N as a process on [1/N, 1]: step i is at t = i/N."""
        return TabledVP(tuple(torch.as_tensor(betas, dtype=torch.float64).tolist()))

    @staticmethod
    def learned(omega: Callable[[Tensor], Tensor]) -> LearnedVP:
        """SNR(t) = exp(-omega(t)), omega rising on [0, 1]: `MonotoneOmega()`; see learned.py."""
        from .learned_schedule import LearnedVP

        return LearnedVP(omega)


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
                raise InvalidValue(f"betas must lie in (0, 1); got betas[{i}]={b}")
        if not self.betas:
            raise InvalidValue("betas must hold at least one entry; got none")
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
        t = f64(t)
        return self._rates.to(t.device)[self._segment(t)]

    def beta_integral(self, t: Time) -> Tensor:
        t = f64(t)
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
        return self.inverse_beta_integral(2 * torch.asinh(0.5 * torch.exp(-f64(lam))))

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(-self.beta(t) * torch.expm1(-2 * self.beta_integral(t)))
