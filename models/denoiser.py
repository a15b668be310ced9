"""The denoiser: a network, the process it was trained on, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..kernels.errors import InvalidValue
from ..kernels.shapes import column
from .processes import Process
from .readout import (
    READOUTS,
    TIME_CONVENTIONS,
    Affine,
    convert,
    network_scale,
    network_time,
)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """The data prediction D(x, t) = E[x_0 | x_t = x] of a network, and its other read-outs.

    net: callable `net(x, t, **cond)`, x [B, ...] -> [B, ...]; t is [B], float32 or float64.
    process: the forward process the network was trained on.
    predicts: 'noise', 'data', 'score', 'v', 'flow' (velocity) or 'edm' (Karras et al. 2022).
    time: what the network is told: 'continuous' (t), 'index' (0..steps-1 for a network of
        discrete time), 'edm' (log(sigma)/4, the default of predicts='edm'), 'sigma', or a
        callable of the float64 tensor t.
    steps: how many a network of discrete time has; None: the process's table, else 1000.
    sigma_data: scale of the data in the 'edm' preconditioning; None: the process's, else 0.5.
    clip: optional (lo, hi): D is clamped to it at every step. Off by default, since it changes
        the law; for pixel networks (-1, 1) is customary.
    cond: conditioning tensors handed to every call (a call's own `cond` wins).

    Raises ValueError for unknown names and for steps that are not the process's. Calls raise ValueError where a read-out does not exist.
    """

    net: Callable[..., Tensor]
    process: Process
    predicts: str = "noise"
    time: str | Callable[[Tensor], Tensor] | None = None
    steps: int = None  # type: ignore[assignment]  # resolved below
    sigma_data: float = None  # type: ignore[assignment]
    clip: tuple[float, float] | None = None
    cond: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.predicts not in READOUTS:
            raise InvalidValue(
                f"predicts must be one of {', '.join(READOUTS)}; got {self.predicts!r}"
            )
        if self.time is None:
            default = "edm" if self.predicts == "edm" else "continuous"
            object.__setattr__(self, "time", default)
        elif not callable(self.time) and self.time not in TIME_CONVENTIONS:
            names = ", ".join(TIME_CONVENTIONS)
            raise InvalidValue(f"time must be one of {names}, or a callable; got {self.time!r}")
        if self.sigma_data is None:
            object.__setattr__(self, "sigma_data", getattr(self.process, "sigma_data", 0.5))
        table = len(getattr(self.process, "betas", ()))
        if self.steps is None:
            object.__setattr__(self, "steps", table or 1000)
        if self.steps < 1:
            raise InvalidValue(f"steps must be >= 1; got {self.steps}")
        if self.time == "index" and table not in (0, self.steps):
            raise InvalidValue(f"steps must be the {table} of {self.process}; got {self.steps}")
        if self.time == "index" and self.process.t_max != 1:
            raise InvalidValue(
                f"time='index' counts steps on t in (0, 1]; {self.process} has "
                f"t_max={self.process.t_max:g}: use time='continuous' or a callable"
            )
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise InvalidValue(f"clip must be (lo, hi) with lo < hi; got {self.clip}")

    @property
    def t_min(self) -> float:
        """The smallest time at which the network may be called."""
        least = self.process.t_min
        return max(least, 1.0 / self.steps) if self.time == "index" else least

    # --- coefficients, float64, for the tables of the solvers ---------------------------------

    def coefficients(self, target: str, t: float | Tensor) -> Affine:
        """(skip, scale) with `target` = skip x + scale net(...), folded in float64."""
        return convert(self.process, t, self.predicts, target, self.sigma_data)

    def network_scale(self, t: Tensor) -> Tensor:
        """c_in(t), float64."""
        return network_scale(self.process, t, self.predicts, self.sigma_data)

    def network_time(self, t: Tensor) -> Tensor:
        """c_noise(t), float64."""
        return network_time(self.process, t, self.time, self.steps)

    # --- evaluations --------------------------------------------------------------------------

    def raw(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """The network's own output at x [B, ...] and t (float or [B])."""
        t64 = self._times(x, t)
        scale = self.network_scale(t64).to(x.dtype)
        # bfloat16 would round step 999 to 1000
        t_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        x_in = x if self.predicts != "edm" else x * column(scale, x)
        out = self.net(x_in, self.network_time(t64).to(t_dtype), **{**self.cond, **cond})
        if out.shape != x.shape:
            raise InvalidValue(
                f"net must return the shape of its input {tuple(x.shape)}; got {tuple(out.shape)}"
            )
        return out

    def __call__(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """D(x, t), x [B, ...], t float or [B]; clipped if `clip` is set."""
        d = self._read("data", x, t, cond)
        return d if self.clip is None else d.clamp(*self.clip)

    def score(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """grad log p_t(x) = (alpha D - x)/sigma^2; not at sigma = 0 unless the network gives it."""
        return self._from_clipped("score", x, t, cond)

    def noise(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """E[eps | x_t = x] = (x - alpha D)/sigma."""
        return self._from_clipped("noise", x, t, cond)

    def velocity(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """dx/dt of the probability flow, f x - 1/2 g^2 score (Song et al. 2021, 13)."""
        return self._from_clipped("flow", x, t, cond)

    def _from_clipped(self, target: str, x: Tensor, t: float | Tensor, cond: Any) -> Tensor:
        if self.clip is None:
            return self._read(target, x, t, cond)
        affine = convert(self.process, self._times(x, t), "data", target, self.sigma_data)
        return _apply(affine, x, self(x, t, **cond))

    def _read(self, target: str, x: Tensor, t: float | Tensor, cond: Any) -> Tensor:
        affine = self.coefficients(target, self._times(x, t))  # first: it may refuse
        return _apply(affine, x, self.raw(x, t, **cond))

    def _times(self, x: Tensor, t: float | Tensor) -> Tensor:
        if not isinstance(t, Tensor):
            return torch.full((x.shape[0],), float(t), dtype=torch.float64, device=x.device)
        if t.ndim == 0:
            return t.double().expand(x.shape[0])
        if t.shape != x.shape[:1]:
            raise InvalidValue(
                f"t must be a float or of shape {(x.shape[0],)}; got {tuple(t.shape)}"
            )
        return t.double()


def _apply(affine: Affine, x: Tensor, out: Tensor) -> Tensor:
    skip, scale = (column(c, x) for c in affine)
    return skip * x + scale * out
