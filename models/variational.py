"""The variational bound of discrete-time diffusion, as objectives (Ho et al. 2020, 5).

    -log p(x_0) <= KL(q(x_T|x_0) | p) + sum_{i=2}^{n} L_i + L_1
    L_i = KL( q(x_s | x_t, x_0) | p(x_s | x_t) ),     L_1 = -log p(x_0 | x_1)

with q(x_s | x_t, x_0) = N(a x_t + b x_0, v), where alpha_ts = alpha_t/alpha_s,
sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2 and

    a = alpha_ts sigma_s^2/sigma_t^2,   b = alpha_s sigma_ts^2/sigma_t^2,
    v = sigma_ts^2 sigma_s^2/sigma_t^2  ('small', beta tilde; 'large' is sigma_ts^2, beta).

p(x_s | x_t) = N(a x_t + b D(x_t), v_p), v_p small, large or learned:
log v_p = r log v_large + (1 - r) log v_small, r = (1 + o)/2 (Nichol & Dhariwal 2021, 15), o the
second half of the network's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.errors import InvalidType, InvalidValue
from ..kernels.shapes import column
from .denoiser import Denoiser
from .processes import Process
from .training.losses import LOSSES, Objective, check_batch_of


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(a x_t + b x_0, small), and `large` = q(x_s | x_t)'s for white data."""

    a: Tensor
    b: Tensor
    small: Tensor
    large: Tensor


def posterior(process: Process, s: float | Tensor, t: float | Tensor) -> Posterior:
    """The coefficients of q(x_s | x_t, x_0), s < t, float64 of their shape."""
    alpha_s, alpha_t = process.alpha(s), process.alpha(t)
    var_s, var_t = process.sigma(s).square(), process.sigma(t).square()
    # sigma_ts^2 = sigma_t^2 (1 - SNR_t/SNR_s), without the difference of near numbers
    large = -var_t * torch.expm1(2 * (process.log_snr(t) - process.log_snr(s)))
    return Posterior(
        alpha_t / alpha_s * var_s / var_t, alpha_s * large / var_t, large * var_s / var_t, large
    )


def from_mean(net: Callable[..., Tensor], process: Process, steps: int = 1000) -> Denoiser:
    """A network of the mean of p(x_s | x_t), one step of `steps` down (Ho et al. 2020, 8).

    Called as net(x, i, **cond), i = 0..steps-1 at t = (i+1)/steps; D = (mean - a x_t)/b. Raises
    TypeError or ValueError as `Denoiser` does.
    """
    made = Denoiser(net, process, predicts="data", time="index", steps=steps)  # checks them
    return replace(made, net=OfMean(net, process, made.steps))


class OfMean(nn.Module):
    """The data prediction of a network of the mean, see `from_mean`."""

    def __init__(self, net: Callable[..., Tensor], process: Process, steps: int) -> None:
        super().__init__()
        self.net, self.process, self.steps = net, process, steps

    def forward(self, x: Tensor, i: Tensor, /, **cond: Any) -> Tensor:
        t = (i.double() + 1) / self.steps
        q = posterior(self.process, t - 1 / self.steps, t)
        mean: Tensor = self.net(x, i, **cond)
        return (mean - column(q.a, x) * x) / column(q.b, x)


class VarianceHead(nn.Module):
    """A network of twice as many channels, whose second half says where the variance lies.

    Called like any network it returns the first half; `both` returns (prediction, o), each of
    x's shape. Raises ValueError where the inner network does not double dimension 1.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.config = getattr(net, "config", {})

    def both(self, x: Tensor, t: Tensor, /, **cond: Any) -> tuple[Tensor, Tensor]:
        """(prediction, o)."""
        out = self.net(x, t, **cond)
        if out.shape != (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
            raise InvalidValue(
                f"a network with learned variance must return {2 * x.shape[1]} channels for "
                f"x {tuple(x.shape)}; got {tuple(out.shape)}"
            )
        prediction, o = out.chunk(2, 1)
        return prediction, o

    def forward(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        return self.both(x, t, **cond)[0]


@dataclass(frozen=True)
class VLB:
    """n times one term of the bound, chosen uniformly: its mean is the bound less KL_T, nats/dim.

    steps: n; the chain visits n times from t_min to t_max, equally spaced.
    variance: 'small', 'large', or 'learned' for a denoiser whose net is a `VarianceHead`.
    spacing: distance of the data's levels, for the discretised decoder (Ho et al. 2020, 13);
        0 for continuous data and a Gaussian density.

    Raises ValueError for steps < 2 and unknown variances, TypeError for a net without the head.
    """

    steps: int = 1000
    variance: str = "small"
    spacing: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise InvalidValue(f"steps must be >= 2; got {self.steps}")
        if self.variance not in ("small", "large", "learned"):
            raise InvalidValue(
                f"variance must be one of small, large, learned; got {self.variance!r}"
            )

    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, generator: torch.Generator, **cond: Any
    ) -> Tensor:
        """One draw for each sample: x_0 [B, *event] -> [B]."""
        check_batch_of(x_0, generator)
        device, n = generator.device, len(x_0)
        i = torch.randint(1, self.steps + 1, (n,), device=device, generator=generator)
        eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=device, generator=generator)
        i, eps = i.to(x_0.device), eps.to(x_0.device)
        return self.steps * self.at(denoiser, x_0, i, eps, **cond)

    def at(self, denoiser: Denoiser, x_0: Tensor, i: Tensor, eps: Tensor, **cond: Any) -> Tensor:
        """L_i, i = 1..steps [B], in nats per component, at given normals; [B]."""
        process = denoiser.process
        step = (process.t_max - process.t_min) / (self.steps - 1)
        t = process.t_min + step * (i.double() - 1)
        s = torch.where(i > 1, t - step, t)  # unused where i = 1
        x_t = column(process.alpha(t), x_0) * x_0 + column(process.sigma(t), x_0) * eps
        d, o = self._predict(denoiser, x_t, t, cond)
        q = posterior(process, torch.where(i > 1, s, 0.5 * t), t)
        log_p = self._log_variance(q, o, x_0)
        kl = 0.5 * (
            log_p
            - column(q.small.log(), x_0)
            + (column(q.small, x_0) + (column(q.b, x_0) * (d - x_0)).square()) * torch.exp(-log_p)
            - 1
        )
        # the decoder's own branch is taken at i = 1 alone; elsewhere it must only be finite
        width = column(torch.where(i > 1, 1.0, process.sigma(t) / process.alpha(t)), x_0)
        terms = torch.where(column(i > 1, x_0), kl, decoder_nll(x_0, d, width, self.spacing))
        return terms.flatten(1).mean(1)

    def _predict(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        if self.variance != "learned":
            return denoiser(x_t, t, **cond), None
        return data_and_variance(denoiser, x_t, t, **cond)

    def _log_variance(self, q: Posterior, o: Tensor | None, x: Tensor) -> Tensor:
        small, large = column(q.small.log(), x), column(q.large.log(), x)
        if o is None:
            return large if self.variance == "large" else small
        r = 0.5 * (1 + o)
        out: Tensor = r * large + (1 - r) * small
        return out


@dataclass(frozen=True)
class Hybrid:
    """L_simple + weight L_vlb, the bound teaching the variance alone (Nichol & Dhariwal 2021, 16).

    The mean is detached in the bound, as there. For a denoiser whose net is a `VarianceHead`.
    """

    steps: int = 1000
    weight: float = 0.001
    simple: Objective = LOSSES["simple"]

    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, generator: torch.Generator, **cond: Any
    ) -> Tensor:
        """One draw for each sample: x_0 [B, *event] -> [B]."""
        bound = _DetachedMean(self.steps, "learned")
        simple = self.simple(denoiser, x_0, generator, **cond)
        return simple + self.weight * bound(denoiser, x_0, generator, **cond)


class _DetachedMean(VLB):
    def _predict(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        d, o = data_and_variance(denoiser, x_t, t, **cond)
        return d.detach(), o


def data_and_variance(
    denoiser: Denoiser, x: Tensor, t: float | Tensor, **cond: Any
) -> tuple[Tensor, Tensor]:
    """D(x, t) and the variance's place o in [-1, 1] or beyond, from one call of the network."""
    head = denoiser.net
    if not isinstance(head, VarianceHead):
        raise InvalidType(
            f"learned variances need a VarianceHead as net; got {type(head).__name__}"
        )
    kept = _Kept(head)
    return denoiser._with(net=kept)(x, t, **cond), kept.o


class _Kept:
    """A `VarianceHead` that keeps what it says of the variance at its last call."""

    def __init__(self, head: VarianceHead) -> None:
        self.head = head

    def __call__(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        prediction, self.o = self.head.both(x, t, **cond)
        return prediction


def decoder_nll(
    x_0: Tensor,
    mean: Tensor,
    std: Tensor,
    spacing: float = 0.0,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """-log p(x_0) of N(mean, std^2), or of its mass on x_0's level, in nats (Ho et al. 2020, 13).

    x_0, mean: of one shape.
    std: the deviation.
    spacing: distance of the levels; 0 takes the density.
    bounds: the lowest and highest level, which take the whole tail.
    """
    z = (x_0 - mean) / std
    if spacing == 0:
        return 0.5 * z.square() + std.log() + 0.5 * math.log(2 * math.pi)
    half, (lo, hi) = 0.5 * spacing / std, bounds
    low, high = x_0 < lo + 0.25 * spacing, x_0 > hi - 0.25 * spacing
    outward = torch.where(low, -1.0, 1.0)
    end = torch.special.log_ndtr(half - outward * z)  # from the inner edge to infinity
    # from the nearer tail, where differences of the distribution function keep their digits
    upper = torch.special.log_ndtr(half - z.abs())
    lower = torch.special.log_ndtr(-half - z.abs())
    inside = upper + torch.log1p(-torch.exp(lower - upper))
    return -torch.where(low | high, end, inside)


def flat_decoder_nll(
    x_0: Tensor,
    noisy: Tensor,
    std: float,
    spacing: float,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """-log p(x_0 | noisy): softmax over all levels of -(noisy - level)^2/(2 std^2).

    The decoder of Kingma et al. 2021, 12, with a flat prior on the levels. No network is asked.

    x_0: data on the levels.
    noisy: x_t/alpha.
    std: sigma/alpha there.
    spacing, bounds: distance of the levels, and the lowest and highest of them.
    """
    count = round((bounds[1] - bounds[0]) / spacing) + 1
    own = (noisy - x_0).square()
    total = torch.zeros_like(own)
    nearest = (noisy - bounds[0]).div(spacing).round().clamp(0, count - 1) * spacing + bounds[0]
    least = (noisy - nearest).square()
    for k in range(count):
        total += torch.exp((least - (noisy - (bounds[0] + k * spacing)).square()) / (2 * std**2))
    return (own - least) / (2 * std**2) + total.log()
