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
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue

Time = float | Tensor


def f64(t: Time) -> Tensor:
    """t as a float64 tensor."""
    return torch.as_tensor(t, dtype=torch.float64)


def positive(name: str, value: float) -> None:
    """Raise ValueError unless value is finite and > 0."""
    if not (math.isfinite(value) and value > 0):
        raise InvalidValue(f"{name} must be finite and > 0; got {value}")


def increasing(lo_name: str, lo: float, hi_name: str, hi: float) -> None:
    """Raise ValueError unless lo < hi, both finite."""
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise InvalidValue(f"{hi_name} must exceed {lo_name}; got {lo_name}={lo}, {hi_name}={hi}")


@dataclass(frozen=True)
class Prior:
    """N(0, std^2) for every component: the law sampling starts from."""

    std: float

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, std^2 I) in nats, [B, ...] -> float64 [B]."""
        x = x.double().flatten(1)
        return -0.5 * (x / self.std).square().sum(1) - x.shape[1] * (
            math.log(self.std) + 0.5 * math.log(2 * math.pi)
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
