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

import dataclasses
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...kernels.checks import check_dense, check_device
from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.shapes import as_float64

Time = float | Tensor


def f64(t: Time) -> Tensor:
    """t as a float64 tensor. Raises TypeError for what is no real number, ValueError for NaN."""
    if isinstance(t, Tensor) and t.dtype == torch.float64:
        found = t
    else:
        try:
            # a tensor stays where it is: as_tensor would move it to the default device
            found = t if isinstance(t, Tensor) else torch.as_tensor(t, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise InvalidType(f"times must be real numbers; got {t!r}") from None
        if found.is_complex() or found.dtype == torch.bool:
            raise InvalidType(f"times must be real numbers; got {found.dtype}")
        found = as_float64(t)
    if _readable(found) and bool(found.isnan().any()):
        raise InvalidValue("times must be numbers; got nan")
    return found


def _readable(t: Tensor) -> bool:
    """Whether looking at t's numbers costs no wait for a device and breaks no trace."""
    return (
        t.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
    )


def real(name: str, value: Any) -> float:
    """The value as a float. Raises TypeError unless it is a number, ValueError unless finite."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise InvalidType(f"{name} must be a number; got {value!r}")
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidType(f"{name} must be one real number; got {value!r}") from None
    if not math.isfinite(found):
        raise InvalidValue(f"{name} must be finite; got {value}")
    return found


def count(name: str, value: Any) -> int:
    """The value as an int. Raises TypeError unless it is a whole number, ValueError unless >= 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidType(f"{name} must be a whole number >= 1; got {value!r}")
    try:
        found = operator.index(value)
    except TypeError:
        raise InvalidType(f"{name} must be one whole number >= 1; got {value!r}") from None
    if found < 1:
        raise InvalidValue(f"{name} must be a whole number >= 1; got {value!r}")
    return found


def positive(name: str, value: Any) -> float:
    """The value as a float. Raises ValueError unless it is finite and > 0."""
    if not real(name, value) > 0:
        raise InvalidValue(f"{name} must be finite and > 0; got {value}")
    return float(value)


def increasing(lo_name: str, lo: float, hi_name: str, hi: float) -> None:
    """Raise ValueError unless lo < hi."""
    if not lo < hi:
        raise InvalidValue(f"{hi_name} must exceed {lo_name}; got {lo_name}={lo}, {hi_name}={hi}")


@dataclass(frozen=True)
class Prior:
    """N(0, std^2) for every component: the law sampling starts from.

    std: standard deviation, > 0. Raises ValueError for another.
    """

    std: float

    def __post_init__(self) -> None:
        positive("std", self.std)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, std^2 I) in nats, [B, ...] -> float64 [B]."""
        x = x.double().flatten(1)
        return -0.5 * (x / self.std).square().sum(1) - x.shape[1] * (
            math.log(self.std) + 0.5 * math.log(2 * math.pi)
        )


class Process(ABC):
    """A Gaussian forward process; see the module's first lines for the symbols.

    Its functions are formulas, which also answer outside [t_min, t_max]; times are refused by what
    uses them, with `inside`.

    t_min, t_max: the times of data and of noise.
    t_clean: where sigma is 0 and the last step is one denoising jump; -inf where only the limit is.
    closed_form: alpha and sigma hold down to t = 0, so that t_min is a convention and no property
        of the table or network.
    """

    t_clean: ClassVar[float] = 0.0
    closed_form: ClassVar[bool] = False
    pure_noise: ClassVar[float] = 1e3
    """sigma/alpha from which x_t counts as noise alone. D is the data's mean there: what is left
    out of an integral is of relative order (std of the data/1e3)^2, 1e-6 for data of unit scale."""
    first_ratio: ClassVar[float] = 100.0
    """sigma/alpha of the first node of a grid after one of pure noise, see `first_log_snr`."""
    t_min: float
    t_max: float

    @staticmethod
    def of(
        alpha: Callable[[Tensor], Tensor],
        sigma: Callable[[Tensor], Tensor],
        t_min: float = 1e-3,
        t_max: float = 1.0,
        inverse: Callable[[Tensor], Tensor] | None = None,
    ) -> Custom:
        """Any schedule by its two functions; see `Custom`."""
        return Custom(alpha, sigma, t_min, t_max, inverse)

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

    @property
    def noisiest_log_snr(self) -> float:
        """lambda where noise ends: at t_max, but at least that of `pure_noise`."""
        return max(float(self.log_snr(self.t_max)), -math.log(self.pure_noise))

    @property
    def noisiest_ratio(self) -> float:
        """The largest sigma/alpha worth a node, an integral or a training time.

        sigma/alpha at t_max, but at most `pure_noise`, from which on x_t is noise alone.
        """
        return math.exp(-self.noisiest_log_snr)

    def first_log_snr(self, t_max: float | None = None) -> float:
        """lambda of the first node of a run from t_max whose next ones are laid by lambda.

        That of t_max itself, but that of `first_ratio` where noise counts as pure at t_max: a grid
        in sigma/alpha would spend its nodes there for nothing, or has no end (a flow's alpha is 0).
        """
        lam = float(self.log_snr(self.t_max if t_max is None else t_max))
        return lam if lam >= -math.log(self.pure_noise) else -math.log(self.first_ratio)

    def clock(self, t: Tensor) -> Tensor:
        """What a default grid is laid evenly in for one share, a rising function of t: t itself,
        which networks are trained evenly in for the most part."""
        return t

    def add_noise(self, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise.

        x_0: data [B, *event].
        t: float or [B], in [0, t_max].
        noise: standard normals of x_0's shape.
        Raises ValueError where shapes do not agree or t lies outside the process.
        """
        check_dense("x_0", x_0)
        check_dense("noise", noise)
        check_device("noise", noise, x_0.device)
        if noise.shape != x_0.shape:
            raise InvalidValue(
                f"noise must have the shape of x_0 {tuple(x_0.shape)}; got {tuple(noise.shape)}"
            )
        t = self.inside(t, x_0.shape[0]).to(x_0.device)
        alpha, sigma = (
            s(t).to(x_0.dtype).reshape(-1, *(1,) * (x_0.ndim - 1)) for s in (self.alpha, self.sigma)
        )
        return alpha * x_0 + sigma * noise

    def inside(self, t: Time, batch: int | None = None) -> Tensor:
        """t as float64, of shape () or [batch].

        Raises ValueError unless every t lies between t_clean (or t_min, if t_clean is earlier) and
        t_max. Times on a device are not looked at.
        """
        t = f64(t)
        if batch is not None and t.ndim and t.shape != (batch,):
            raise InvalidValue(f"t must be a float or of shape ({batch},); got {tuple(t.shape)}")
        if _readable(t):
            first, last = self._range
            slack = 1e-9 * max(1.0, abs(last))  # the rounding of float32 times is not the caller's
            bad = ~((t >= first - slack) & (t <= last + slack) | (t == self.t_clean))
            if bool(bad.any()):
                raise InvalidValue(
                    f"t must lie in [{first:g}, t_max={last:g}] of {self}; "
                    f"got {float(t[bad].flatten()[0]):g}"
                )
        return t

    @property
    def _range(self) -> tuple[float, float]:
        first = 0.0 if self.t_clean == 0 else min(0.0, self.t_min)
        return first, self.t_max

    def arguments(self) -> dict[str, Any]:
        """JSON-ready keyword arguments with which its registered name makes an equal process."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    def _keep(self, **values: Any) -> None:
        """Set fields of a frozen dataclass to what they were converted to."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def bisect(falls: Callable[[Tensor], Tensor], target: Tensor, lo: float, hi: float) -> Tensor:
    """The t in [lo, hi] at which a falling function meets the target, to the last bits of t."""
    a, b = torch.full_like(target, lo), torch.full_like(target, hi)
    with torch.no_grad():
        for _ in range(54):
            mid = 0.5 * (a + b)
            above = falls(mid) > target
            a, b = torch.where(above, mid, a), torch.where(above, b, mid)
    return 0.5 * (a + b)


@dataclass(frozen=True)
class Custom(Process):
    """A process of two functions, alpha(t) and sigma(t); `Process.of` makes one.

    alpha_of, sigma_of: functions of float64 times of any shape; alpha > 0 and sigma/alpha rising
        inside (t_min, t_max).
    t_min, t_max: times of data and noise, 0 <= t_min < t_max.
    inverse: lambda = log(alpha/sigma) -> t, where it is known in closed form; by default bisection,
        which costs fifty evaluations.

    Slopes are automatic derivatives, or differences of fourth order where a function does not track
    gradients (a table, NumPy). At t_clean = -inf, which stands for the data themselves, alpha is 1
    and sigma 0.
    Raises ValueError where alpha or sigma is negative or not finite, sigma/alpha does not rise, or
    `inverse` is not its inverse.
    """

    alpha_of: Callable[[Tensor], Tensor]
    sigma_of: Callable[[Tensor], Tensor]
    t_min: float = 1e-3
    t_max: float = 1.0
    inverse: Callable[[Tensor], Tensor] | None = None

    t_clean: ClassVar[float] = -math.inf

    def __post_init__(self) -> None:
        self._keep(t_min=real("t_min", self.t_min), t_max=real("t_max", self.t_max))
        if self.t_min < 0:
            raise InvalidValue(f"t_min must be >= 0; got {self.t_min}")
        increasing("t_min", self.t_min, "t_max", self.t_max)
        t = torch.linspace(self.t_min, self.t_max, 33, dtype=torch.float64, device="cpu")
        for name, function in (("alpha", self.alpha), ("sigma", self.sigma)):
            value = function(t).detach()
            if not (value.shape == t.shape and bool((torch.isfinite(value) & (value >= 0)).all())):
                raise InvalidValue(
                    f"{name} must be finite and >= 0 at every t, of the shape of t; got {value}"
                )
        with torch.no_grad():
            check_rising("sigma/alpha", t, -self.log_snr(t))
            if self.inverse is not None:
                back = self.inverse_log_snr(self.log_snr(t))
                if back.shape != t.shape or not torch.allclose(back, t, rtol=1e-6, atol=1e-9):
                    raise InvalidValue(f"inverse must give t back from log_snr(t); got {back}")

    def alpha(self, t: Time) -> Tensor:
        return self._at(t, self.alpha_of, 1.0)

    def sigma(self, t: Time) -> Tensor:
        return self._at(t, self.sigma_of, 0.0)

    def _at(self, t: Time, function: Callable[[Tensor], Tensor], clean: float) -> Tensor:
        t = f64(t)
        value = torch.as_tensor(function(t.clamp(min=0.0)), dtype=torch.float64, device=t.device)
        return torch.where(t == -math.inf, clean, value.expand(t.shape))

    def alpha_dot(self, t: Time) -> Tensor:
        return slope(self.alpha_of, t, self.t_min, self.t_max)

    def sigma_dot(self, t: Time) -> Tensor:
        return slope(self.sigma_of, t, self.t_min, self.t_max)

    def inverse_log_snr(self, lam: Time) -> Tensor:
        if self.inverse is not None:
            return self.inverse(f64(lam))
        return bisect(self.log_snr, f64(lam), 0.0, self.t_max)


def slope(function: Callable[[Tensor], Tensor], t: Time, first: float, last: float) -> Tensor:
    """d function/dt by automatic differentiation, differentiable where t is.

    first, last: where a function that does not track gradients is asked for differences.
    """
    t = f64(t)
    keep = t.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = t if keep else t.detach().requires_grad_()
        try:
            value = function(leaf)
        except (RuntimeError, TypeError):  # NumPy takes no tensor with gradients
            value = None
        if isinstance(value, Tensor) and value.requires_grad:
            (found,) = torch.autograd.grad(value.sum(), leaf, create_graph=keep)
            return found
    return differences(function, t.detach(), first, last)


STENCIL = (-2.0, -1.0, 0.0, 1.0, 2.0)
SHARE = 1e-3
"""Step of the differences over the span: the error is its fourth power, or rounding over it."""


def differences(
    function: Callable[[Tensor], Tensor], t: Tensor, first: float, last: float
) -> Tensor:
    """d function/dt at t from five values within [first, last]: of the quartic through them."""
    h = SHARE * (last - first)
    middle = t.clamp(first + 2 * h, last - 2 * h)
    nodes = t.new_tensor(STENCIL)
    values = torch.stack(
        [as_float64(function(middle + k * h)).to(t).expand(t.shape) for k in STENCIL], -1
    )
    powers = torch.arange(len(STENCIL), dtype=t.dtype, device=t.device)
    weights = torch.linalg.solve(nodes[:, None] ** powers, values[..., None])[..., 0]
    at = ((t - middle) / h)[..., None]
    found: Tensor = (weights[..., 1:] * powers[1:] * at.pow(powers[1:] - 1)).sum(-1) / h
    return found


def check_rising(name: str, t: Tensor, values: Tensor) -> None:
    """Raise ValueError unless the values at times t rise strictly and none is NaN."""
    step = values.diff()
    step = torch.where(values[1:] == math.inf, (values[:-1] < math.inf).double(), step)
    if not bool((step > 0).all()):
        i = int((~(step > 0)).nonzero()[0])
        raise InvalidValue(
            f"{name} must rise with t; got {float(values[i]):g} at t={float(t[i]):g} "
            f"and {float(values[i + 1]):g} at t={float(t[i + 1]):g}"
        )
