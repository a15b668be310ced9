"""The vector fields of the reversal, as callables that other libraries integrate.

    probability flow   dx/dt = f x - 1/2 g^2 s(x, t)                        (Song et al. 2021, 13)
    reverse SDE        dy = [-f y + g^2 s(y, t)] ds + g dw,  s = t_max - t  (Anderson 1982)

Both are read off the network by one affine map folded in float64 (models/readout.py): a network
that predicts the velocity is handed through unchanged, and nothing is divided by sigma unless the
answer itself is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.errors import InvalidType, InvalidValue
from ..models import VE, VP, Brownian, Denoiser, Flow, Process, SubVP

CLOSED_FORM = (VP, SubVP, VE, Brownian, Flow)  # processes in closed form down to t = 0
T_MIN = 1e-5
SHARPEST = 1e-5  # sigma/alpha: below it float32 hardly tells D from x, nor 1/sigma^2 of it a score


def start_time(model: Denoiser, t_min: float | None = None) -> float:
    """Where an integration over data starts: t_min, or by default 1e-5 for processes in closed form
    down to 0 and networks of continuous time (sub-VP, whose noise falls as t: 1e-4, where
    sigma/alpha is 1e-5), else the model's own t_min.

    Raises TypeError for a model that is not a `Denoiser`, ValueError for t_min outside (0, t_max).
    """
    process = _denoiser(model).process
    if t_min is None:
        free = isinstance(process, CLOSED_FORM) and model.time != "index"
        if not free:
            return model.t_min
        sharpest = process.inverse_log_snr(torch.tensor(-math.log(SHARPEST), dtype=torch.float64))
        return min(max(T_MIN, float(sharpest)), process.t_min)
    if not 0 < t_min < process.t_max and t_min != process.t_min:  # a learned schedule starts at 0
        raise InvalidValue(f"t_min must lie in (0, t_max={process.t_max:g}); got {t_min}")
    return float(t_min)


def probability_flow(
    model: Denoiser, cond: dict[str, Any] | None = None, t_min: float | None = None
) -> Callable[[float | Tensor, Tensor], Tensor]:
    """f(t, x) = dx/dt of the probability flow: the right-hand side for torchdiffeq.odeint.

        odeint(probability_flow(model), x_T, torch.tensor([t_max, t_min]))      # samples
        odeint(probability_flow(model), x, torch.tensor([t_min, t_max]))        # encodes

    t: a float or a scalar tensor (or [B], a time for each sample); x [B, *event] of any event
    shape; the answer has x's shape and dtype. cond: keyword arguments for the network.
    Raises TypeError for a model that is not a `Denoiser`; the callable raises ValueError at a
    time where the velocity cannot be read off what the network predicts.
    """
    first, last = start_time(model, t_min), model.process.t_max
    extra = dict(cond or {})

    def velocity(t: float | Tensor, x: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device).clamp(first, last)
        return model.velocity(x, t, **extra)

    return velocity


class ReverseSDE:
    """The reverse SDE in the form torchsde asks for; made by `reverse_sde`.

    f(s, y), g(s, y): drift and diffusion [B, d] at s = t_max - t; noise_type 'diagonal',
    sde_type 'ito'. span = (s_0, t_max - t_min): from noise to data. s_0 is 0; but where
    alpha(t_max) is (next to) 0, f and g are singular there, and it is where alpha/sigma = 0.01
    (s_0 = 0.0099 for `Flow`). The prior's noise may start there too: the mean it lacks is 0.01 of
    the data's, and is forgotten. Euler is stable from there for dt <= s_0.
    """

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(
        self,
        model: Denoiser,
        event_shape: Sequence[int] | None = None,
        cond: dict[str, Any] | None = None,
    ) -> None:
        self.model = _denoiser(model)
        self.event_shape = None if event_shape is None else tuple(int(n) for n in event_shape)
        self.cond = dict(cond or {})
        self.span = (_first(model.process), model.process.t_max - model.t_min)

    def time(self, s: float | Tensor) -> Tensor:
        """t = t_max - s, float64, kept from falling below 0 or t_min by the rounding of s."""
        t = self.model.process.t_max - torch.as_tensor(s, dtype=torch.float64)
        slack = 1e-6 * self.span[1]
        return torch.where((t - self.model.t_min).abs() < slack, self.model.t_min, t)

    def f(self, s: float | Tensor, y: Tensor) -> Tensor:
        """-f y + g^2 s(y, t), [B, d]."""
        t = self.time(s)
        process = self.model.process
        rate, g2 = process.drift_rate(t), process.diffusion(t).square()
        if not bool(torch.isfinite(rate) & torch.isfinite(g2)):
            raise InvalidValue(
                f"the reverse SDE of {process} is singular at s={float(s):g} (t={float(t):g}), "
                f"where alpha=0: start it later, at span[0]={self.span[0]:g}"
            )
        x = y if self.event_shape is None else y.reshape(-1, *self.event_shape)
        score = self.model.score(x, t, **self.cond).reshape(y.shape)
        return g2.to(y.dtype) * score - rate.to(y.dtype) * y

    def g(self, s: float | Tensor, y: Tensor) -> Tensor:
        """g(t) for every component, [B, d]."""
        return self.model.process.diffusion(self.time(s)).to(y.dtype).expand_as(y)


def reverse_sde(
    model: Denoiser,
    event_shape: Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
) -> ReverseSDE:
    """dy = [-f y + g^2 score] ds + g dw with s = t_max - t, for torchsde.sdeint.

        sde = reverse_sde(model, event_shape=(1, 28, 28))
        y = torchsde.sdeint(sde, y_0, torch.tensor(sde.span), dt=1e-2, method="euler")[-1]

    torchsde integrates y [B, d]; event_shape restores the shape the network expects. cond:
    keyword arguments for the network. Raises TypeError for a model that is not a `Denoiser`;
    `f` raises ValueError at t_max of a flow, where g is infinite; `span` starts after it.
    """
    return ReverseSDE(model, event_shape, cond)


def _first(process: Process) -> float:
    """The s at which the reverse SDE of the process starts, see `ReverseSDE`."""
    if float(process.alpha(process.t_max)) > 1e-3:
        return 0.0
    return process.t_max - float(process.inverse_log_snr(math.log(0.01)))


def _denoiser(model: Denoiser) -> Denoiser:
    if not isinstance(model, Denoiser):
        raise InvalidType(f"model must be a Denoiser; got {type(model).__name__}")
    return model
