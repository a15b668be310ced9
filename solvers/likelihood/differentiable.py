"""log p as a function to differentiate: the flow as a continuous normalising flow for training.

The augmented ODE of augmented.py on a fixed grid of lambda by RK4, in plain autograd. Each step is
recomputed in the backward pass (checkpointing), so memory holds one state a step, and the gradient
is that of the numbers computed, to rounding: no adjoint ODE is solved, and none is unstable.
Adaptive steps would make log p discontinuous in the parameters; the grid is the price of a gradient
that agrees with finite differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...kernels.shapes import column
from ...models import Denoiser
from ...models import jacobian as traces
from .. import arguments
from ..flow import ScaledFlow
from ..tables.butcher import RK4


def differentiable_log_prob(
    model: Denoiser,
    x: Tensor,
    steps: int = 40,
    trace: str = "hutchinson",
    probes: int = 1,
    seed: int | Tensor = 0,
    *,
    sample_ids: Tensor | Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
) -> Tensor:
    """log p(x), [B] in x's dtype, with gradients in x and in the network's parameters.

    model: a `Denoiser` whose network is twice differentiable.
    x: data [B, *event], float32 or float64.
    steps: of RK4, uniform in lambda, >= 1; 4 evaluations each.
    trace: 'hutchinson' (probes held along the path: unbiased for log p and its gradient) or
        'exact'.
    probes: Rademacher probes of a path, >= 1.
    seed, sample_ids: a sample's probes depend on these alone.
    cond: keyword arguments of the network; rows follow their samples.
    t_min: where time starts, as of `log_prob`.

    Raises ValueError or TypeError for what does not fit, before any network call, and SolverError
    where the network's gradient is not that of its values.
    """
    arguments.data(model, x)
    steps, probes = arguments.whole("steps", steps), arguments.whole("probes", probes)
    arguments.choice("trace", trace, ("exact", "hutchinson"))
    seed = arguments.seed_of(seed, len(x), x.device)
    ids = arguments.sample_ids(sample_ids, len(x), x.device)
    flow = ScaledFlow(model, len(x), cond, t_min, x.dtype)
    flow.refuse_hidden(x, seed, ids)
    v = None
    if trace == "hutchinson":
        v = traces.probes("rademacher", probes, x.detach(), seed, ids)
    rows, d = torch.arange(len(x), device=x.device), x[0].numel()

    def field(lam: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """du/dlambda, and d - tr dD/dx^."""
        at = flow.at(lam)
        x_hat = column(at.norm, u) * u
        if not x_hat.requires_grad:
            x_hat.requires_grad_()
        out = flow.output(x_hat, at, rows)
        if v is None:
            form = traces.exact(out, x_hat, create_graph=True)
        else:
            form = (v * traces.products(out, x_hat, v, create_graph=True)).flatten(2).sum(2).mean(0)
        return at.velocity(x_hat, at.residual(x_hat, out)), d * (1 - at.a) - at.b * form

    def step(lam: Tensor, h: Tensor, u: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        moved, added = RK4.increments(lambda t, xs: field(t, xs[0]), lam, (u, total), h)
        return u + moved, total + added

    with torch.enable_grad():
        u, total = flow.enter(x), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        grid = torch.linspace(
            flow.lam_data, flow.lam_noise, steps + 1, dtype=torch.float64, device="cpu"
        )
        for i in range(steps):
            lam = grid[i].to(x.device).expand(len(x))
            h = (grid[i + 1] - grid[i]).to(x.device)
            u, total = checkpoint(step, lam, h, u, total, use_reentrant=False)
        log_p: Tensor = flow.prior(flow.latent(u)) - total
    return log_p.to(x.dtype)
