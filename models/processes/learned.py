"""A noise schedule that is learned: SNR(t) = exp(-omega(t)), omega rising (Kingma et al. 2021).

    alpha^2 = sigmoid(-omega), sigma^2 = sigmoid(omega), f = -sigma^2 omega'/2, g^2 = sigma^2 omega'

`variational.ContinuousVLB` is the bound that trains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...kernels.errors import InvalidType, InvalidValue
from .process import Process, Time, bisect, check_rising, count, f64, increasing, real
from .registry import register


class MonotoneOmega(nn.Module):
    """omega(t) rising from omega(0) = lo to omega(1) = hi (Kingma et al. 2021, H).

    omega = lo + (hi - lo) (m(t) - m(0))/(m(1) - m(0)) with m(t) = a t + sum_k b_k sigmoid(c_k t +
    d_k), all of a, b_k, c_k positive: monotone by construction. Float64.

    lo, hi: omega at t = 0 and t = 1, lo < hi, the parameter `ends`; the defaults span the noise of
        8-bit images.
    width: number of sigmoids, >= 1; their numbers are the parameters `shape` and `offset`.
    """

    def __init__(self, lo: float = -13.3, hi: float = 5.0, width: int = 64) -> None:
        super().__init__()
        increasing("lo", real("lo", lo), "hi", real("hi", hi))
        width = count("width", width)
        f32 = torch.float32  # whatever torch's default is: the first values are part of the format
        centre = torch.linspace(0, 1, width, dtype=f32, device="cpu")
        slope = torch.full((width,), 10.0, dtype=f32, device="cpu")
        self.ends = nn.Parameter(torch.tensor([lo, hi], dtype=f32, device="cpu"))
        # through exp, so that they stay positive; the bumps start at almost nothing
        log_a, log_b = (
            torch.zeros(1, dtype=f32, device="cpu"),
            torch.full((width,), -5.0, dtype=f32, device="cpu"),
        )
        self.shape = nn.Parameter(torch.cat([log_a, log_b, slope.log()]))
        self.offset = nn.Parameter(-slope * centre)
        self.double()

    def forward(self, t: Tensor) -> Tensor:
        at = t.to(self.ends.device)  # grids are laid on the host, wherever the parameters are
        m, m0, m1 = (self._rise(u) for u in (at, torch.zeros_like(at), torch.ones_like(at)))
        lo, hi = self.ends.unbind()
        out: Tensor = lo + (hi - lo) * (m - m0) / (m1 - m0)
        return out.to(t.device)

    def _rise(self, t: Tensor) -> Tensor:
        width = len(self.offset)
        a, b, c = torch.split(self.shape.exp(), [1, width, width])
        out: Tensor = a * t + (b * torch.sigmoid(c * t[..., None] + self.offset)).sum(-1)
        return out


@dataclass(frozen=True, eq=False)
class LearnedVP(Process):
    """Variance-preserving process with SNR = exp(-omega(t)) (Kingma et al. 2021, 2).

    omega: a module or function of float64 times [...], rising and differentiable.
    learn: keep the graph to omega's parameters. Off by default: samplers want numbers.
    t_min, t_max: the times of data and noise, 0 <= t_min < t_max <= 1.

    Raises ValueError where omega does not rise or is not finite on [t_min, t_max].
    """

    omega: Callable[[Tensor], Tensor]
    learn: bool = False
    t_min: float = 0.0
    t_max: float = 1.0

    t_clean: ClassVar[float] = -math.inf  # sigma(t) > 0 everywhere

    def __post_init__(self) -> None:
        if not callable(self.omega):
            raise InvalidType(f"omega must be a module or function; got {self.omega!r}")
        self._keep(t_min=real("t_min", self.t_min), t_max=real("t_max", self.t_max))
        increasing("t_min", self.t_min, "t_max", self.t_max)
        if self.t_min < 0 or self.t_max > 1:
            raise InvalidValue(
                f"t_min and t_max must lie in [0, 1]; got {self.t_min} and {self.t_max}"
            )
        t = torch.linspace(self.t_min, self.t_max, 33, dtype=torch.float64, device="cpu")
        with torch.no_grad():
            check_rising("omega", t, self.omega(t))

    def _omega(self, t: Time) -> Tensor:
        if self.learn:
            return self.omega(f64(t))
        with torch.no_grad():
            return self.omega(f64(t))

    def omega_dot(self, t: Time) -> Tensor:
        """d omega/dt > 0, by automatic differentiation."""
        with torch.enable_grad():
            leaf = f64(t).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.omega(leaf).sum(), leaf, create_graph=self.learn)
        return slope

    def alpha(self, t: Time) -> Tensor:
        return torch.sigmoid(-self._omega(t)).sqrt()

    def sigma(self, t: Time) -> Tensor:
        return torch.sigmoid(self._omega(t)).sqrt()

    def alpha_dot(self, t: Time) -> Tensor:
        return -0.5 * self.alpha(t) * self.sigma(t).square() * self.omega_dot(t)

    def sigma_dot(self, t: Time) -> Tensor:
        return 0.5 * self.sigma(t) * self.alpha(t).square() * self.omega_dot(t)

    def log_snr(self, t: Time) -> Tensor:
        return -0.5 * self._omega(t)

    def inverse_log_snr(self, lam: Time) -> Tensor:
        # omega is monotone and may have no closed inverse
        return bisect(lambda t: -0.5 * self.omega(t), f64(lam), self.t_min, self.t_max)

    def drift_rate(self, t: Time) -> Tensor:
        return -0.5 * self.sigma(t).square() * self.omega_dot(t)

    def diffusion(self, t: Time) -> Tensor:
        return self.sigma(t) * self.omega_dot(t).sqrt()

    def arguments(self) -> dict[str, Any]:
        if not isinstance(self.omega, MonotoneOmega):
            raise InvalidValue(
                f"a LearnedVP has no name in PROCESSES while its omega is a "
                f"{type(self.omega).__name__}: only a MonotoneOmega can be written to a file"
            )
        return {k: v.tolist() for k, v in self.omega.state_dict().items()}


@register("learned", LearnedVP)
def _learned(**state: list[float]) -> LearnedVP:
    """SNR = exp(-omega(t)), omega trained with the network (Kingma et al. 2021)."""
    omega = MonotoneOmega()
    if state:
        tensors = {k: torch.tensor(v, dtype=torch.float64, device="cpu") for k, v in state.items()}
        omega = MonotoneOmega(width=len(tensors["offset"]))
        omega.load_state_dict(tensors)
    return LearnedVP(omega)
