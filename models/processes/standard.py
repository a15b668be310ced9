"""The processes of the literature, each entered in `PROCESSES` beside its class.

VP, TabledVP, SubVP   variance preserving: DDPM in continuous and discrete time, sub-VP
VE, EDM, Brownian     variance exploding: alpha = 1
Flow                  straight lines from data to noise
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from .learned import LearnedVP
from .process import Process, Time, count, f64, increasing, positive, real
from .registry import register


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

    closed_form: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._keep(
            beta_min=positive("beta_min", self.beta_min), beta_max=real("beta_max", self.beta_max)
        )
        if not self.beta_min <= self.beta_max:
            raise InvalidValue(
                f"beta_max must be at least beta_min={self.beta_min}; got {self.beta_max}"
            )
        self._keep(**_times(self.t_min, self.t_max, "beta_max is reached"))

    def beta(self, t: Time) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * f64(t)

    def beta_integral(self, t: Time) -> Tensor:
        t = f64(t)
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def inverse_beta_integral(self, b: Tensor) -> Tensor:
        # the stable root of the quadratic: no cancellation as b -> 0
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b)
        return 2 * b / (self.beta_min + root)


@register("vp")
@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance-preserving SDE, beta linear in t: alpha = exp(-1/2 int beta) (Song et al. 2021, 32).

    beta_min, beta_max: the noise rate at t = 0 and t = 1, 0 < beta_min <= beta_max.
    t_min, t_max: the times of data and noise, 0 < t_min < t_max <= 1.

    `VP.cosine()` and `VP.from_betas(betas)` are the discrete-time schedules of Improved DDPM and
    DDPM. Raises ValueError for other values.
    """

    @staticmethod
    def cosine(s: float = 0.008, steps: int = 1000) -> TabledVP:
        """Improved DDPM's table, alpha_bar = cos^2((u+s)/(1+s) pi/2) (Nichol & Dhariwal 2021, 17).

        s: offset, >= 0, that keeps the first beta from vanishing.
        steps: entries. Betas are capped at 0.999.
        Raises ValueError for other values.
        """
        if real("s", s) < 0:
            raise InvalidValue(f"s must be >= 0; got {s}")
        steps = count("steps", steps)
        u = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
        alpha_bar = torch.cos((u + s) / (1 + s) * math.pi / 2).square()
        return VP.from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))

    @staticmethod
    def from_betas(betas: Sequence[float] | Tensor) -> TabledVP:
        """A DDPM schedule beta_1..beta_N as a process on [1/N, 1]: step i is at t = i/N.

        betas: N numbers in (0, 1), of any floating type. See `TabledVP`.
        """
        return TabledVP(betas)  # type: ignore[arg-type]

    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: Sequence[float] | Tensor) -> TabledVP:
        """`from_betas` of the products alpha_bar_i = prod_{j<=i} (1 - beta_j), i = 1..N.

        alphas_cumprod: N numbers that fall strictly from below 1 to above 0. Raises ValueError for
        others.
        """
        bar = _vector("alphas_cumprod", alphas_cumprod)
        before = torch.cat([bar.new_ones(1), bar[:-1]])
        if not bool(((bar > 0) & (bar < before)).all()):
            raise InvalidValue(
                "alphas_cumprod must fall strictly from below 1 to above 0; got "
                f"{float(bar[0]):g} .. {float(bar[-1]):g}"
            )
        return TabledVP(tuple((1 - bar / before).tolist()))

    @staticmethod
    def learned(omega: Callable[[Tensor], Tensor]) -> LearnedVP:
        """SNR(t) = exp(-omega(t)), omega rising on [0, 1]: `MonotoneOmega()`; see learned.py."""
        return LearnedVP(omega)


def _times(t_min: Any, t_max: Any, why: str, zero: bool = False) -> dict[str, float]:
    """Both ends of time as floats. Raises ValueError unless 0 < t_min < t_max <= 1.

    why: what happens at t = 1, for the message. zero: whether t_min may be 0.
    """
    first = real("t_min", t_min) if zero and t_min == 0 else positive("t_min", t_min)
    last = real("t_max", t_max)
    increasing("t_min", first, "t_max", last)
    if last > 1:
        raise InvalidValue(f"t_max must be at most 1, where {why}; got {t_max}")
    return {"t_min": first, "t_max": last}


def _vector(name: str, values: Any) -> Tensor:
    """Numbers in a row, as float64 on the host. Raises TypeError or ValueError for others."""
    try:
        tensors = hasattr(values, "dtype") or any(isinstance(v, complex) for v in values)
        if isinstance(values, np.ndarray):
            values = values.copy()  # torch takes no negative strides
        given = isinstance(values, Tensor)  # which as_tensor would move to the default device
        kind = None if tensors else torch.float64
        found = values if given else torch.as_tensor(values, dtype=kind, device="cpu")
        if found.is_complex() or found.dtype == torch.bool:
            raise TypeError
        if found.layout != torch.strided:
            raise TypeError
        found = found.detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise InvalidType(f"{name} must be a sequence of real numbers; got {values!r}") from None
    if found.ndim != 1 or not len(found):
        raise InvalidValue(
            f"{name} must hold at least one entry, in one dimension; got shape {tuple(found.shape)}"
        )
    return found


@dataclass(frozen=True)
class TabledVP(_VariancePreserving):
    """Discrete-time VP schedule (DDPM) in continuous time: log alpha_bar linear between entries.

    betas: beta_1..beta_N, each in (0, 1).

    alpha_bar(i/N) = prod_{j<=i} (1 - beta_j), i = 0..N, so beta(t) = -N log(1 - beta_i) is
    piecewise constant. Raises ValueError unless every beta lies in (0, 1).
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        self._keep(betas=tuple(_vector("betas", self.betas).tolist()))
        for i, b in enumerate(self.betas):
            if not 0 < b < 1:
                raise InvalidValue(f"betas must lie in (0, 1); got betas[{i}]={b}")
        rates = -torch.log1p(-torch.tensor(self.betas, dtype=torch.float64, device="cpu")) * len(
            self.betas
        )
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
        # from the right knot, so that t = i/N gives the table's entry to the last bit or two; but
        # from 0 near t = 0, where that difference would leave a rounding of either sign
        right = torch.clamp(knots[i + 1] - rates[i] * ((i + 1).double() / n - t), min=knots[i])
        return torch.where(t < 0.5 / n, rates[0] * t.clamp(min=0.0), right)

    def inverse_beta_integral(self, b: Tensor) -> Tensor:
        n = len(self.betas)
        knots, rates = self._knots.to(b.device), self._rates.to(b.device)
        i = torch.clamp(torch.searchsorted(knots, b.contiguous()) - 1, 0, n - 1)
        return (i + 1).double() / n - (knots[i + 1] - b) / rates[i]

    def arguments(self) -> dict[str, Any]:
        return {"betas": list(self.betas)}


register("vp-cosine")(VP.cosine)


@register("vp-betas", TabledVP)
def _table(betas: Sequence[float] | Tensor | None = None) -> TabledVP:
    """A table of betas; by default DDPM's 1,000 from 1e-4 to 0.02 (Ho et al. 2020)."""
    ddpm = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device="cpu")
    return VP.from_betas(ddpm if betas is None else betas)


@register("subvp")
@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP SDE: alpha as in VP, sigma = 1 - alpha^2, not its square root (Song et al. 2021, 35).

    Arguments as of `VP`.
    """

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


class _VarianceExploding(Process):
    """alpha = 1: the data are not scaled, only drowned."""

    # what counts as large depends on the data's scale, and sigma_max is chosen by it
    pure_noise: ClassVar[float] = math.inf

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(f64(t))

    def alpha_dot(self, t: Time) -> Tensor:
        return torch.zeros_like(f64(t))

    def clock(self, t: Tensor) -> Tensor:
        """sigma^(1/5), whatever t is: that of VE, log sigma, spends more nodes below the data's
        scale than a flow asks for. Karras et al. (2022, 5) have a root between 5 and 10."""
        return self.sigma(t).pow(1 / 5)

    def log_snr(self, t: Time) -> Tensor:
        return -self.sigma(t).log()


@register("ve")
@dataclass(frozen=True)
class VE(_VarianceExploding):
    """Variance-exploding SDE: sigma(t) = sigma_min (sigma_max/sigma_min)^t (Song et al. 2021, 30).

    sigma_min, sigma_max: the noise at t = 0 and t = 1, 0 < sigma_min < sigma_max.
    t_min, t_max: the times of data and noise, 0 <= t_min < t_max <= 1.
    Raises ValueError for other values.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    t_clean: ClassVar[float] = -math.inf
    closed_form: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._keep(**_sigmas(self.sigma_min, self.sigma_max))
        self._keep(**_times(self.t_min, self.t_max, "sigma_max is reached", zero=True))

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_min * torch.exp(self._rate * f64(t))

    def sigma_dot(self, t: Time) -> Tensor:
        return self._rate * self.sigma(t)

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return (-f64(lam) - math.log(self.sigma_min)) / self._rate


def _sigmas(sigma_min: Any, sigma_max: Any) -> dict[str, float]:
    """Both noise levels as floats. Raises ValueError unless 0 < sigma_min < sigma_max."""
    low, high = positive("sigma_min", sigma_min), real("sigma_max", sigma_max)
    increasing("sigma_min", low, "sigma_max", high)
    return {"sigma_min": low, "sigma_max": high}


@register("edm")
@dataclass(frozen=True)
class EDM(_VarianceExploding):
    """alpha = 1, sigma = t: time is the noise level (Karras et al. 2022).

    sigma_min, sigma_max: t_min and t_max, 0 < sigma_min < sigma_max.
    sigma_data: standard deviation of the data, > 0, for networks in the 'edm' preconditioning.
    Raises ValueError for other values.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        self._keep(**_sigmas(self.sigma_min, self.sigma_max))
        self._keep(sigma_data=positive("sigma_data", self.sigma_data))

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


@register("flow")
@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow / flow matching: alpha = 1 - t, sigma = t, data at t = 0 (Lipman et al. 2023).

    t_min, t_max: the times of data and noise, 0 < t_min < t_max <= 1.
    Raises ValueError for other values.
    """

    t_min: float = 1e-3
    t_max: float = 1.0

    closed_form: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._keep(**_times(self.t_min, self.t_max, "alpha = 0"))

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


@register("brownian")
@dataclass(frozen=True, init=False)
class Brownian(_VarianceExploding):
    """Scaled Brownian motion x_t = x_0 + scale W_t: alpha = 1, sigma(t)^2 = scale^2 t.

    sigma: its standard deviation at t = 1, > 0; kept in the field `scale`, since sigma(t) is a
        function of time. `scale` is taken too, for `dataclasses.replace`.
    t_min, t_max: the times of data and noise, 0 < t_min < t_max, as late as you like.

    Its reversal is dX = scale^2 grad log h dt + scale dB, the Doob h-transform.
    Raises ValueError for other values.
    """

    scale: float
    t_min: float
    t_max: float

    closed_form: ClassVar[bool] = True

    def __init__(
        self,
        sigma: float = 1.0,
        t_min: float = 1e-5,
        t_max: float = 1.0,
        *,
        scale: float | None = None,
    ) -> None:
        first, last = positive("t_min", t_min), real("t_max", t_max)
        increasing("t_min", first, "t_max", last)
        scale = positive("sigma", sigma if scale is None else scale)
        self._keep(scale=scale, t_min=first, t_max=last)

    def sigma(self, t: Time) -> Tensor:
        return self.scale * f64(t).sqrt()

    def sigma_dot(self, t: Time) -> Tensor:
        return 0.5 * self.scale * f64(t).rsqrt()

    def inverse_log_snr(self, lam: Time) -> Tensor:
        return torch.exp(-2 * f64(lam)) / self.scale**2

    def diffusion(self, t: Time) -> Tensor:
        return torch.full_like(f64(t), self.scale)

    def arguments(self) -> dict[str, Any]:
        return {"sigma": self.scale, "t_min": self.t_min, "t_max": self.t_max}
