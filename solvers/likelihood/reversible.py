"""A fixed grid that can be walked both ways: encode and decode undo each other to rounding.

Two states y, z with a coupling c and any one-step increment Psi (McCallum & Foster 2024, 3.1):

    y' = c y + (1 - c) z + Psi_h(z),            z' = z - Psi_{-h}(y')
    z = z' + Psi_{-h}(y'),                      y = [y' - (1 - c) z - Psi_h(z)]/c

The second line inverts the first by algebra, whatever the network is and however coarse the grid,
while y keeps the order of Psi. Rounding grows by 1/c a step on the way back (and by what the flow
and a step too coarse for it magnify), which is why c = 0.99 is near 1; c = 1 would let the two
states drift apart. Here Psi is the midpoint rule in the coordinates of `ScaledFlow`: order 2, four
network calls a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser
from .. import arguments
from ..flow import ScaledFlow
from ..tables.butcher import MIDPOINT


@dataclass(frozen=True)
class Reversible:
    """The probability flow on a fixed grid, and exactly back (McCallum & Foster 2024).

    steps: equal steps of lambda, >= 1.
    coupling: c, in (0, 1]. Rounding grows by 1/c a step on the way back; at 1 the two states drift
        apart.

    Raises ValueError or TypeError for values outside.
    """

    steps: int = 40
    coupling: float = 0.99

    def __post_init__(self) -> None:
        arguments.whole("steps", self.steps)
        arguments.positive("coupling", self.coupling, 1.0)

    def encode(
        self,
        model: Denoiser,
        x: Tensor,
        *,
        cond: dict[str, Any] | None = None,
        t_min: float | None = None,
    ) -> Tensor:
        """Both states of x [B, *event] at t_max: [2, B, *event], the latent first.

        The second differs from it by the step's error, and takes `decode` back to x itself.
        """
        arguments.data(model, x)
        flow = ScaledFlow(model, len(x), cond, t_min, x.dtype)
        with torch.no_grad():
            y = z = flow.enter(x)
            for lam, h in self._steps(flow, flow.lam_data, flow.lam_noise):
                y = self.coupling * y + (1 - self.coupling) * z + _midpoint(flow, z, lam, h)
                z = z - _midpoint(flow, y, lam + h, -h)
            return torch.stack([flow.latent(y), flow.latent(z)])

    def decode(
        self,
        model: Denoiser,
        latent: Tensor,
        *,
        cond: dict[str, Any] | None = None,
        t_min: float | None = None,
    ) -> Tensor:
        """The data [B, *event] of both states [2, B, *event] at t_max.

        For a latent without its second state hand in torch.stack([z, z]).
        """
        if not isinstance(latent, Tensor):
            raise InvalidType(f"latent must be a tensor; got {type(latent).__name__}")
        if latent.ndim < 3 or len(latent) != 2:
            raise InvalidValue(
                f"latent must be [2, B, ...], both states; got {tuple(latent.shape)}: "
                "stack a latent with itself"
            )
        arguments.data(model, latent, "latent")
        flow = ScaledFlow(model, latent.shape[1], cond, t_min, latent.dtype)
        with torch.no_grad():
            y, z = (flow.from_latent(v) for v in latent)
            for lam, h in reversed(self._steps(flow, flow.lam_data, flow.lam_noise)):
                z = z + _midpoint(flow, y, lam + h, -h)
                y = (y - (1 - self.coupling) * z - _midpoint(flow, z, lam, h)) / self.coupling
            return flow.leave(y)

    def _steps(self, flow: ScaledFlow, start: float, end: float) -> list[tuple[float, float]]:
        """(lambda, h) of every step."""
        h = (end - start) / self.steps
        return [(start + i * h, h) for i in range(self.steps)]


def _midpoint(flow: ScaledFlow, u: Tensor, lam: float, h: float) -> Tensor:
    """The increment of the midpoint rule, h f(u + h/2 f(u))."""
    rows = torch.arange(len(u), dtype=torch.int64, device=u.device)
    start = torch.full((len(u),), lam, dtype=torch.float64, device=u.device)
    step = torch.tensor(h, dtype=torch.float64, device=u.device)
    return MIDPOINT.increments(lambda t, xs: [flow.field(t, xs[0], rows)], start, [u], step)[0]
