"""The probability flow in coordinates where it is gentle, from the data to the prior.

With x^ = x/alpha, s^ = sigma/alpha and lambda = -log s^ the flow is dx^/dlambda = D - x^, whatever
the schedule. For data of scale s it is smoothest in

    u = x^/n,   n^2 = s^2 + s^^2:        du/dlambda = (D - x^ s^2/n^2)/n,

which is zero where the data are N(0, s^2), and bounded at both ends. Densities are those of x^:

    d/dlambda log p^(x^(lambda)) = d - tr(dD/dx^)      along the flow.

Where alpha(t_max) is (next to) 0, lambda is cut off at s^ = FAR and the rest is one DDIM step: D
has become the data's mean there, and what is neglected is of order (s/FAR)^2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..models import Denoiser
from .drift import start_time

FAR = 1e3


class ScaledFlow:
    """The flow of `model` for a batch of given size; lam_data > lam_noise are its two ends.

    cond: keyword arguments of the network; tensors with one row a sample follow their samples.
    t_min: see `drift.start_time`. forwards counts network evaluations, [B] int64.
    """

    def __init__(
        self,
        model: Denoiser,
        batch: int,
        cond: dict[str, Any] | None = None,
        t_min: float | None = None,
    ) -> None:
        self.model, self.batch = model, batch
        self.cond = {**model.cond, **(cond or {})}
        self.own = {k for k, v in self.cond.items() if _per_row(v, batch)}  # rows are samples'
        self.scale = model.sigma_data
        process = model.process
        self.t_min = start_time(model, t_min)
        self.lam_data = float(process.log_snr(self.t_min))
        self.lam_noise = max(float(process.log_snr(process.t_max)), -math.log(FAR))
        self.forwards = torch.zeros(batch, dtype=torch.int64)

    @property
    def blur(self) -> float:
        """Standard deviation of the noise that the data carry at t_min, sigma/alpha."""
        return math.exp(-self.lam_data)

    def norm(self, lam: float | Tensor) -> Tensor:
        """n(lambda), float64."""
        ratio = torch.exp(-torch.as_tensor(lam, dtype=torch.float64))
        return torch.sqrt(ratio.square() + self.scale**2)  # hypot rounds otherwise in other batches

    def time(self, lam: Tensor) -> Tensor:
        process = self.model.process
        return process.inverse_log_snr(lam).clamp(self.t_min, process.t_max)

    def readout(self, x_hat: Tensor, lam: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, out) with D = a x^ + b out, out = net(alpha x^); a, b float64 [n]."""
        model, t = self.model, self.time(lam)
        alpha = model.process.alpha(t)
        x = column(alpha, x_hat) * x_hat
        cond = self._of_rows(rows)
        self.forwards = self.forwards.to(rows.device)
        self.forwards.index_add_(0, rows, torch.ones_like(rows))
        if model.clip is None:
            skip, scale = model.coefficients("data", t)
            return skip * alpha, scale, model.raw(x, t, **cond)
        return torch.zeros_like(t), torch.ones_like(t), model(x, t, **cond)

    def residual(self, x_hat: Tensor, lam: Tensor, rows: Tensor) -> Tensor:
        """r = D - x^ = s^^2 grad log p^, formed without cancelling x^ where the network allows."""
        a, b, out = self.readout(x_hat, lam, rows)
        return column(a - 1, x_hat) * x_hat + column(b, x_hat) * out

    def velocity(self, x_hat: Tensor, lam: Tensor, residual: Tensor) -> Tensor:
        """du/dlambda = (r + x^ s^^2/n^2)/n."""
        n = self.norm(lam)
        return (residual + column(torch.exp(-2 * lam) / n**2, x_hat) * x_hat) / column(n, x_hat)

    def score(self, lam: Tensor, u: Tensor, slope: Tensor) -> Tensor:
        """Gradient of log p^ in u where du/dlambda is `slope`, like u [n, *event], float64: n r/s^^2
        with the r that `velocity` makes that slope of."""
        weight = self.norm(lam).square() * torch.exp(2 * lam)
        return column(weight, u.double()) * slope - u

    def field(self, lam: Tensor, u: Tensor, rows: Tensor) -> Tensor:
        """du/dlambda: the right-hand side for `adaptive_ode.integrate`."""
        x_hat = column(self.norm(lam), u) * u
        return self.velocity(x_hat, lam, self.residual(x_hat, lam, rows))

    # --- the two ends -------------------------------------------------------------------------

    def enter(self, x: Tensor) -> Tensor:
        """u of data x, which are x^ at lam_data."""
        return x / self.norm(self.lam_data).to(x.dtype)

    def leave(self, u: Tensor) -> Tensor:
        """Data of u at lam_data."""
        return u * self.norm(self.lam_data).to(u.dtype)

    def latent(self, u: Tensor, data: Tensor | None = None) -> Tensor:
        """x at t_max of u at lam_noise; data: D there, where the caller has it."""
        x_hat = u * self.norm(self.lam_noise).to(u.dtype)
        ratio, weight = self._jump()
        if weight == 0:
            return ratio * x_hat
        if data is None:
            data = x_hat + self.residual(x_hat, self._lam(u), self._all(u))
        return ratio * x_hat + weight * data

    def from_latent(self, z: Tensor) -> Tensor:
        """u at lam_noise of a latent z at t_max; inverts `latent` by fixed point."""
        ratio, weight = self._jump()
        x_hat = z / ratio
        if weight != 0:
            for _ in range(3):  # contracts by (s/FAR)^2 a time
                data = x_hat + self.residual(x_hat, self._lam(z), self._all(z))
                x_hat = (z - weight * data) / ratio
        return x_hat / self.norm(self.lam_noise).to(z.dtype)

    def prior(self, z: Tensor, mean: Tensor | None = None) -> Tensor:
        """log density of x^ at lam_noise whose latent is z: N(mean, sigma^2) at t_max, [B]."""
        centred = z if mean is None else z - mean.to(z.dtype)
        log_prob = self.model.process.prior.log_prob(centred)
        return log_prob + z[0].numel() * math.log(self._jump()[0])

    def _jump(self) -> tuple[float, float]:
        """(a, b) with x at t_max = a x^ + b D: DDIM from lam_noise; b = 0 where nothing is cut."""
        process = self.model.process
        t = self.time(torch.tensor(self.lam_noise, dtype=torch.float64))
        ratio = process.alpha(t) * process.sigma(process.t_max) / process.sigma(t)
        weight = process.alpha(process.t_max) - ratio
        cut = self.lam_noise > float(process.log_snr(process.t_max))
        return float(ratio), float(weight) if cut else 0.0

    def _lam(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.lam_noise, dtype=torch.float64, device=x.device)

    def _all(self, x: Tensor) -> Tensor:
        return torch.arange(len(x), device=x.device)

    def part(self, rows: Tensor) -> ScaledFlow:
        """The flow of these samples alone, with counts of its own."""
        part = ScaledFlow(self.model, len(rows), self._of_rows(rows), self.t_min)
        part.own = self.own  # one shared by all samples may happen to be as long as the part
        return part

    def _of_rows(self, rows: Tensor) -> dict[str, Any]:
        return {k: v[rows] if k in self.own else v for k, v in self.cond.items()}


def _per_row(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch


def column(c: Tensor, x: Tensor) -> Tensor:
    """[n] -> [n, 1, ...] in x's dtype."""
    return c.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
