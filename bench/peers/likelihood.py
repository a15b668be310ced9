"""log p as other code computes it: one probe held along one ODE for the whole batch.

    by_scipy         as score_sde does (Song et al. 2021, D.2): the batch flattened into one vector
                     for scipy's RK45, and the network called twice an evaluation, once for the
                     drift and once under the divergence
    by_torchdiffeq   dopri5 with the batch in one error norm; drift and divergence share a call

Neither reports an error bar. Both start at alpha x and return the log density of x, as ours does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models import Denoiser
from ...models import jacobian as traces
from ...solvers.flow import probability_flow, start_time
from ...solvers.likelihood.log_prob import log_prob
from ...solvers.outcome import SolverError, Status

TOLERANCE = 1e-5


class Found(NamedTuple):
    """log_prob [B] nats, and uncorrected, that of the flow alone; latent [B, *event], t_min;
    std_error, path_error [B] nats (nan where there is none); forwards, products [B]."""

    log_prob: Tensor
    uncorrected: Tensor
    latent: Tensor
    t_min: float
    std_error: Tensor
    path_error: Tensor
    total_error: Tensor
    forwards: Tensor
    products: Tensor


Way = Callable[[Denoiser, Tensor, int], Found]


def ours(**how: object) -> Way:
    """`log_prob` with these arguments."""

    def way(model: Denoiser, x: Tensor, seed: int) -> Found:
        r = log_prob(model, x, seed=seed, on_failure="return", **how)  # type: ignore[arg-type]
        ends = r.log_prob, r.uncorrected, r.latent, r.t_min
        return Found(*ends, r.std_error, r.path_error, r.total_error, r.nfe, r.products)

    return way


def by_torchdiffeq(model: Denoiser, x: Tensor, seed: int, tolerance: float = TOLERANCE) -> Found:
    """dopri5, one Rademacher probe. Raises ModuleNotFoundError without torchdiffeq."""
    plain = {"prior": "normal", "truncation": False}  # as in the code that does so
    found = ours(backend="torchdiffeq", rtol=tolerance, atol=tolerance, probes=1, **plain)(
        model, x, seed
    )
    return found._replace(std_error=torch.full_like(found.std_error, torch.nan))


def by_scipy(model: Denoiser, x: Tensor, seed: int, tolerance: float = TOLERANCE) -> Found:
    """RK45 at `tolerance`, one Rademacher probe. Raises ModuleNotFoundError without scipy."""
    from scipy.integrate import solve_ivp

    process, start = model.process, start_time(model, None)
    drift, batch, d = probability_flow(model), len(x), x[0].numel()
    v = traces.probes("rademacher", 1, x, seed)
    alpha = float(process.alpha(start))

    def rhs(t: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        x_t = torch.from_numpy(y[: batch * d]).reshape(x.shape).to(x)
        with torch.no_grad():
            dx = drift(t, x_t)
        leaf = x_t.requires_grad_()
        with torch.enable_grad():
            w = traces.products(drift(t, leaf), leaf, v)
        div = (v * w)[0].flatten(1).sum(1)
        return np.concatenate([dx.flatten().double().numpy(), div.double().numpy()])

    y0 = np.concatenate([(alpha * x).flatten().double().numpy(), np.zeros(batch)])
    run = solve_ivp(rhs, (start, process.t_max), y0, "RK45", rtol=tolerance, atol=tolerance)
    if not run.success:
        failed = torch.full((batch,), int(Status.STEP_TOO_SMALL))
        raise SolverError(f"scipy's RK45 failed: {run.message}", failed)
    end = torch.from_numpy(run.y[:, -1])
    z = end[: batch * d].reshape(x.shape).to(x)
    value = process.prior.log_prob(z) + end[batch * d :] + d * math.log(alpha)
    calls = torch.full((batch,), int(run.nfev))
    none = torch.full_like(value, torch.nan)
    return Found(value, value, z, start, none, none, none, 2 * calls, calls)
