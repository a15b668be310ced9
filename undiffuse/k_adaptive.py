"""DPM-Solver-12 and -23 with steps chosen by the error of the whole batch, as in k-diffusion."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .k_run import (
    CallersNoise,
    Model,
    NoiseSampler,
    check_call,
    flow_scale,
    level_range,
    own_ids,
    process_of,
)
from .kernels import normal
from .kernels.errors import InvalidType, InvalidValue, RunFailure
from .kernels.streams import ROWS
from .models.progress import bar
from .solvers import arguments
from .solvers.families.exponential import DDIM
from .solvers.families.singlestep import SingleStep
from .solvers.tables.tableau import Tableau

LEFT = 1e-5
"""Length of lambda below which nothing is left to step through; k-diffusion's."""
MOST = 10_000
"""Attempts of a run: more than any that goes on."""


@dataclass
class Controller:
    """Step sizes by a PID controller in the logarithms of past errors (Soederlind 2003).

        h' = h limit(e_n^-b1 e_{n-1}^-b2 e_{n-2}^-b3),   limit(v) = 1 + arctan(v - 1)

    b1 = (p + i + d)/k, b2 = -(p + 2 d)/k, b3 = d/k. An attempt is accepted where the factor reaches
    `safety`.

    h: the step, > 0.
    p, i, d: the gains.
    k: order of the error.
    safety: in (0, 1].
    """

    h: float
    p: float
    i: float
    d: float
    k: float
    safety: float
    past: list[float] = field(default_factory=list)

    def accepts(self, error: float) -> bool:
        """Whether an attempt of this error stands; sets the next step."""
        now = 1 / (error + 1e-8)
        self.past = [now, *(self.past[1:] or (now, now))]
        powers = (self.p + self.i + self.d, -(self.p + 2 * self.d), self.d)
        logs = zip(powers, self.past, strict=True)
        factor = math.exp(sum(b / self.k * math.log(v) for b, v in logs))
        factor = 1 + math.atan(factor - 1)
        fine = factor >= self.safety
        if fine:
            self.past = [now, now, self.past[1]]
        self.h *= factor
        return fine


@lru_cache(maxsize=8)
def solvers(order: int) -> tuple[DDIM | SingleStep, SingleStep]:
    """The lower and the higher of the pair; both make the same first calls."""
    if order == 2:
        return DDIM(), SingleStep(2, "noise")
    return SingleStep(2, "noise", shares=(1 / 3,)), SingleStep(3, "noise")


def write(table: Tableau, row: int, xs: list[Tensor], ds: list[Tensor]) -> Tensor:
    """What a row of a table writes from the states and predictions so far."""
    made = torch.zeros_like(xs[0])
    for matrix, past in ((table.state, xs), (table.data, ds)):
        for lag, value in enumerate(matrix[row].tolist()[: row + 1]):
            if value:
                made = made + value * past[row - lag]
    return made


@torch.no_grad()
def sample_dpm_adaptive(
    model: Model,
    x: Tensor,
    sigma_min: float | Tensor,
    sigma_max: float | Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    return_info: bool = False,
) -> Any:
    """DPM-Solver-12 or -23, its steps chosen by the error of the whole batch (Lu et al. 2022).

    model, x, extra_args, callback, disable, s_noise, noise_sampler: as of the other functions; the
        callback is told `error` and `h` as well, after every attempt.
    sigma_min, sigma_max: where it ends and starts, 0 < sigma_min < sigma_max.
    order: 2 or 3, of the higher solution.
    rtol, atol: of an attempt, whose error is the root mean square of the two solutions' difference
        over max(atol, rtol |x|).
    h_init: the first step of log sigma.
    pcoeff, icoeff, dcoeff, accept_safety: of the `Controller`.
    eta: share of noise in [0, 1].
    return_info: whether to return (x, {"steps", "nfe", "n_accept", "n_reject"}).

    A refused attempt keeps its first call, so nfe is lower than k-diffusion's. For steps by every
    sample's own error see `ud.solvers.sample_ode_adaptively`.
    Raises ValueError and TypeError for what does not fit, before any call of the model;
    RuntimeError where it does not come to an end.
    """
    check_call(model, x, extra_args, callback)
    if order not in (2, 3):
        raise InvalidValue(f"order must be 2 or 3; got {order!r}")
    low, high = level_range(sigma_min, sigma_max)
    share = arguments.finite("eta", eta)
    if not 0 <= share <= 1:
        raise InvalidValue(f"eta must lie in [0, 1]; got {eta}")
    rtol, atol = (arguments.positive(n, v) for n, v in (("rtol", rtol), ("atol", atol)))
    h_init = arguments.positive("h_init", h_init)
    scale, extra = flow_scale(model), dict(extra_args or {})
    process = process_of(scale is not None, (high, low))
    if not math.isfinite(float(process.log_snr(high))):
        raise InvalidValue(f"sigma_max must be below 1 for a flow; got {high:g}")
    if share and scale is not None:
        raise InvalidValue(f"eta must be 0 for a flow; got {eta}")
    wide = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    kind, x = x.dtype, x.to(wide)
    draw = _normals(x, extra, noise_sampler) if share else None
    gain = arguments.finite("s_noise", s_noise)
    gains = (pcoeff, icoeff, dcoeff)
    control = Controller(h_init, *gains, 1.5 if share else order, accept_safety)
    pair = solvers(order)
    lam, end = (float(process.log_snr(v)) for v in (high, low))
    info = {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}
    first: Tensor | None = None
    before = x

    def level(at: float) -> float:
        return float(process.inverse_log_snr(at))

    def denoised(y: Tensor, sigma: float) -> Tensor:
        info["nfe"] += 1
        told = y.new_full((len(y),), sigma, dtype=kind)
        return model(y.to(kind), told, **extra).to(wide)

    with bar(not disable if disable is not None else sys.stderr.isatty()) as shown:
        shown.say("sample_dpm_adaptive")
        while lam < end - LEFT:
            if info["steps"] == MOST:
                raise RunFailure(
                    f"no end after {MOST} attempts: raise rtol={rtol:g}, atol={atol:g}"
                )
            to = min(end, lam + control.h)
            kept = 0.5 * math.log1p(share**2 * math.expm1(-2 * (to - lam)))
            down = min(end, to - kept)  # lambda of sigma_down
            ends = torch.tensor([level(lam), level(down)], dtype=torch.float64, device="cpu")
            lower, higher = (s.tableau(process, ends) for s in pair)
            first = denoised(x, float(ends[0])) if first is None else first
            xs, ds = [x], [first]
            for row in range(order - 1):
                xs.append(write(higher, row, xs, ds))
                ds.append(denoised(xs[-1], float(higher.times[row + 1])))
            small, large = write(lower, order - 2, xs, ds), write(higher, order - 1, xs, ds)
            bound = torch.clamp(rtol * torch.maximum(small.abs(), before.abs()), min=atol)
            error = float(torch.linalg.norm((small - large) / bound)) / x.numel() ** 0.5
            info["steps"] += 1
            told = first
            if control.accepts(error):
                added = math.sqrt(max(level(to) ** 2 - level(down) ** 2, 0.0)) * gain
                if draw is not None:
                    large = large + added * draw(level(lam), level(to), info["n_accept"])
                before, x, lam, first = small, large, to, None
                info["n_accept"] += 1
            else:
                info["n_reject"] += 1
            shown.advance()
            if callback is not None:
                at = x.new_tensor(level(lam))
                more = {"error": error, "h": control.h, **info}
                callback(
                    {
                        "x": x.to(kind),
                        "i": info["steps"] - 1,
                        "sigma": at,
                        "sigma_hat": at,
                        "denoised": told.to(kind),
                        **more,
                    }
                )
    return (x.to(kind), info) if return_info else x.to(kind)


def _normals(
    x: Tensor, extra: dict[str, Any], asked: NoiseSampler | None
) -> Callable[[float, float, int], Tensor]:
    """(sigma, sigma', step) -> the normals of a step: the caller's, or those of the seed."""
    if asked is not None:
        if not callable(asked):
            raise InvalidType(f"{CallersNoise.WANTED}; got {asked!r}")
        return lambda a, b, _: asked(x.new_tensor(a), x.new_tensor(b)).to(x)
    seed = extra.get("seed")
    seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
    ids = arguments.sample_ids(own_ids(seed, x), len(x), x.device)
    return lambda a, b, k: normal(x.shape, seed, ids, **ROWS.at(k), device=x.device).to(x.dtype)
