"""Adaptive sampling of the probability flow, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType
from ...models import Denoiser
from .. import arguments
from ..flow import ScaledFlow
from ..outcome import raise_if_failed
from .exponential_pair import EXPONENTIAL, ExponentialPair
from .ode import Controller, integrate
from .pairs import PAIRS, Embedded, Pair
from .sde import AdaptiveResult, start

SOLVERS: dict[str, Pair | ExponentialPair] = {**PAIRS, **EXPONENTIAL}


def sample_ode_adaptively(
    model: Denoiser,
    shape: Sequence[int],
    *,
    solver: str | Pair | ExponentialPair = "dpmpp-23",
    rtol: float = 1e-3,
    atol: float = 1e-3,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
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

    model, shape: the denoiser, and (B, *event).
    solver: a Runge-Kutta pair ('bosh3', 'dopri5', 'tsit5', 'dopri8', or a `Pair`) in the
        coordinates of `ScaledFlow`, or an exponential pair ('dpm-solver-12', 'dpm-solver-23',
        'dpmpp-12', 'dpmpp-23') in x/alpha; both over lambda, from t_max to the model's t_min.
    rtol, atol: of the state in those coordinates, per step.
    seed, sample_ids, x_init: as in `Sampler.init`; x_init is float32 or float64.
    cond: keyword arguments of the network; rows follow their samples (models/conditions.py).
    final: 'denoise' (one call more) or 't_min'.
    controller: of the step sizes, default `Controller()`.
    max_steps: attempts of one sample, >= 1.
    on_failure: 'raise', or 'return' the result with its statuses.
    dtype: of the state, float32 or float64, where x_init is not given.
    device: of the noise, by default the network's.
    A sample does not depend on its batch. Raises ValueError or TypeError for bad input before any
    network call, SolverError where a sample fails.
    """
    arguments.denoiser(model)
    shape = arguments.batch_shape("shape", shape)
    arguments.choice("final", final, ("denoise", "t_min"))
    arguments.on_failure(on_failure)
    arguments.whole("max_steps", max_steps)
    if controller is not None and not isinstance(controller, Controller):
        raise InvalidType(f"controller must be a Controller; got {type(controller).__name__}")
    pair = solver if isinstance(solver, Embedded) else arguments.lookup("solver", solver, SOLVERS)
    x_init = start(model, shape, seed, sample_ids, x_init, dtype, device)
    rtol = arguments.tolerance("rtol", rtol, x_init.dtype)
    atol = arguments.tolerance("atol", atol, x_init.dtype)
    flow = ScaledFlow(model, len(x_init), cond, model.t_min)
    exponential = isinstance(pair, ExponentialPair)
    with torch.no_grad():
        u = flow.from_latent(x_init)
        if exponential:
            u = u * flow.norm(flow.lam_noise).to(u.dtype)
        field = pair.field(flow) if isinstance(pair, ExponentialPair) else flow.field
        run = integrate(
            field,
            u,
            flow.lam_noise,
            flow.lam_data,
            solver=pair,
            rtol=rtol,
            atol=atol,
            controller=controller,
            max_steps=max_steps,
        )
        x_hat = run.x if exponential else flow.leave(run.x)
        x = x_hat * float(model.process.alpha(model.t_min))
        if final == "denoise":
            x = flow.model(x, model.t_min)
            flow.forwards += 1
    result = AdaptiveResult(x, flow.forwards, run.accepted, run.rejected, run.status)
    raise_if_failed(run.status, result, on_failure)
    return result
