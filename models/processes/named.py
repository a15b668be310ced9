"""The forward processes by name; the variance-preserving ones are in vp.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from .process import Prior, Process, Time, f64, increasing, positive
from .vp import VP, SubVP, TabledVP

__all__ = [
    "EDM",
    "PROCESSES",
    "VE",
    "VP",
    "Brownian",
    "Flow",
    "Prior",
    "Process",
    "SubVP",
    "TabledVP",
]


class _VarianceExploding(Process):
    """alpha = 1: the data are not scaled, only drowned."""

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(f64(t))

    def alpha_dot(self, t: Time) -> Tensor:
        return torch.zeros_like(f64(t))

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
        positive("sigma_min", self.sigma_min)
        increasing("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        increasing("t_min", self.t_min, "t_max", self.t_max)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_min * torch.exp(self._rate * f64(t))

    def sigma_dot(self, t: Time) -> Tensor:
        return self._rate * self.sigma(t)

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return (-f64(lam) - math.log(self.sigma_min)) / self._rate


@dataclass(frozen=True)
class EDM(_VarianceExploding):
    """alpha = 1, sigma = t: time is the noise level (Karras et al. 2022)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        positive("sigma_min", self.sigma_min)
        positive("sigma_data", self.sigma_data)
        increasing("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def sigma(self, t: Time) -> Tensor:
        return f64(t).clone()

    def sigma_dot(self, t: Time) -> Tensor:
        return torch.ones_like(f64(t))

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return torch.exp(-f64(lam))


@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow / flow matching: alpha = 1 - t, sigma = t, data at t = 0 (Lipman et al. 2023)."""

    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        positive("t_min", self.t_min)
        increasing("t_min", self.t_min, "t_max", self.t_max)
        if self.t_max > 1:
            raise InvalidValue(f"t_max must be at most 1, where alpha = 0; got {self.t_max}")

    def alpha(self, t: Time) -> Tensor:
        return 1 - f64(t)

    def sigma(self, t: Time) -> Tensor:
        return f64(t).clone()

    def alpha_dot(self, t: Time) -> Tensor:
        return -torch.ones_like(f64(t))

    def sigma_dot(self, t: Time) -> Tensor:
        return torch.ones_like(f64(t))

    def inverse_log_snr(self, lam: Time) -> Tensor:
        # torch.sigmoid rounds a single number otherwise than one among many
        return 1 / (1 + torch.exp(f64(lam)))


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
        positive("sigma", sigma)
        positive("t_min", t_min)
        increasing("t_min", t_min, "t_max", t_max)
        for name, value in (("scale", sigma), ("t_min", t_min), ("t_max", t_max)):
            object.__setattr__(self, name, value)

    def sigma(self, t: Time) -> Tensor:
        return self.scale * f64(t).sqrt()

    def sigma_dot(self, t: Time) -> Tensor:
        return 0.5 * self.scale * f64(t).rsqrt()

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return torch.exp(-2 * f64(lam)) / self.scale**2

    def diffusion(self, t: Time) -> Tensor:
        return torch.full_like(f64(t), self.scale)


def _learned(**state: list[float]) -> Process:
    """A `LearnedVP` of a `MonotoneOmega`: as it starts, or with the given parameters."""
    from .learned_schedule import (  # which need denoisers, which need processes
        LearnedVP,
        MonotoneOmega,
    )

    omega = MonotoneOmega()
    if state:
        tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in state.items()}
        omega = MonotoneOmega(width=len(tensors["offset"]))
        omega.load_state_dict(tensors)
    return LearnedVP(omega)


PROCESSES: dict[str, Callable[..., Process]] = {
    "vp": VP,
    "vp-cosine": VP.cosine,
    "vp-betas": VP.from_betas,
    "subvp": SubVP,
    "ve": VE,
    "edm": EDM,
    "flow": Flow,
    "brownian": Brownian,
    "learned": _learned,
}
"""Processes by the name that checkpoints and the command line use."""
