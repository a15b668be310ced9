"""Adaptive sampling of the probability flow, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.errors import InvalidValue
from ...kernels.streams import INITIAL
from ...models import Denoiser
from .. import arguments
from ..arguments import lookup
from ..flow import ScaledFlow
from ..outcome import raise_if_failed
from .exponential_pair import EXPONENTIAL, ExponentialPair
from .ode import Controller, integrate
from .pairs import PAIRS, Pair
from .sde import AdaptiveResult

METHODS: dict[str, Pair | ExponentialPair] = {**PAIRS, **EXPONENTIAL}


def sample_ode_adaptively(
    model: Denoiser,
    shape: Sequence[int],
    *,
    method: str | Pair | ExponentialPair = "dpmpp-23",
    rtol: float = 1e-3,
    atol: float = 1e-3,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    x_init: Tensor | None = None,
    cond: dict[str, Any] | None = None,
    final: str = "denoise",
    controller: Controller | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> AdaptiveResult:
    """Draw samples [B, ...] of the probability flow with steps chosen by each sample's own error.

    method: a Runge-Kutta pair ('bosh3', 'dopri5', 'tsit5', 'dopri8') in the coordinates of
    `ScaledFlow`, or an exponential pair ('dpm-solver-12', 'dpm-solver-23', 'dpmpp-12', 'dpmpp-23')
    in x/alpha; both over lambda, from t_max to the model's t_min. rtol, atol: of the state in those
    coordinates, per step. seed, sample_ids, x_init: as in `Sampler.init`. final: 'denoise' (one
    call more) or 't_min'. device: of the noise, by default the network's. A sample does not depend on its batch. Raises ValueError or TypeError
    for bad input, SolverError (or returns the statuses, on_failure='return') where a sample fails.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise InvalidValue(f"shape must be (batch, ...) of positive sizes; got {tuple(shape)}")
    if final not in ("denoise", "t_min"):
        raise InvalidValue(f"final must be 'denoise' or 't_min'; got {final!r}")
    pair = lookup("method", method, METHODS) if isinstance(method, str) else method
    if x_init is None:
        sigma = float(model.process.sigma(model.process.t_max))
        z = normal(
            tuple(shape), seed, sample_ids, **INITIAL.at(),
            device=device or arguments.device_of(model),
        )
        x_init = sigma * z.to(dtype)
    elif tuple(x_init.shape) != tuple(shape):
        raise InvalidValue(f"x_init must be of shape {tuple(shape)}; got {tuple(x_init.shape)}")
    arguments.denoiser(model)
    arguments.event_batch("x_init", x_init)
    rtol = arguments.tolerance("rtol", rtol, x_init.dtype)
    atol = arguments.tolerance("atol", atol, x_init.dtype)
    arguments.on_failure(on_failure)
    flow = ScaledFlow(model, len(x_init), cond, model.t_min)
    exponential = isinstance(pair, ExponentialPair)
    with torch.no_grad():
        u = flow.from_latent(x_init)
        if exponential:
            u = u * flow.norm(flow.lam_noise).to(u.dtype)
        field = pair.field(flow) if isinstance(pair, ExponentialPair) else flow.field
        run = integrate(
            field, u, flow.lam_noise, flow.lam_data, method=pair, rtol=rtol, atol=atol,
            controller=controller, max_steps=max_steps,
        )  # fmt: skip
        x_hat = run.x if exponential else flow.leave(run.x)
        x = x_hat * float(model.process.alpha(model.t_min))
        if final == "denoise":
            x = flow.model(x, model.t_min)
            flow.forwards += 1
    result = AdaptiveResult(x, flow.forwards, run.accepted, run.rejected, run.status)
    raise_if_failed(run.status, result, on_failure)
    return result
