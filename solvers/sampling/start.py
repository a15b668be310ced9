"""The two ends of a run: the law it starts from, and what its last jump leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.streams import COMPONENT, INITIAL
from ...models import Denoiser, GaussianMixture, Process
from ...models import jacobian as trace
from ...models.statistics import Statistics
from .. import arguments
from ..flow import ScaledFlow


def initial_states(
    process: Process,
    shape: Sequence[int],
    law: Statistics | GaussianMixture | None = None,
    *,
    t: float | None = None,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """States [B, ...] to start from at t, for `sample(..., x_init=...)`.

        law None               N(0, sigma^2), what `sample` starts from itself
        law a Statistics       N(alpha m, alpha^2 C + sigma^2): the data's own mean and covariance
        law a GaussianMixture  the exact marginal sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2)

    N(0, sigma^2) lacks alpha m and alpha^2 C, which no solver makes up for: of DDPM's schedule
    alpha(t_max) is 0.0064, of VE's 1. All three use one normal z a component and differ from
    sigma z by O(alpha). With a law the rotation into its basis is a matrix product, whose last bits
    BLAS may round by the size of the batch.

    process: of the model.
    shape: (B, *event).
    law: of the data, as above.
    t: the time; default t_max.
    seed, sample_ids: as for `sample`; the same pair gives the same z in every batch.
    dtype, device: of the states.
    Raises ValueError for a law of another event size, TypeError for another law.
    """
    shape = arguments.batch_shape("shape", shape)
    if law is not None and not isinstance(law, Statistics | GaussianMixture):
        raise InvalidType(
            f"law must be a Statistics, a GaussianMixture or None; got {type(law).__name__}"
        )
    t = process.t_max if t is None else arguments.finite("t", t)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    device = arguments.device("device", device)
    z = normal(shape, seed, sample_ids, **INITIAL.at(), device=device)
    if law is None:
        return z.to(dtype) * sigma
    means, variances, turn = _components(law)
    if means.shape[1] != math.prod(shape[1:]):
        raise InvalidValue(
            f"law must be of events of {math.prod(shape[1:])} numbers; got {means.shape[1]}"
        )
    which = torch.zeros(shape[0], dtype=torch.int64, device="cpu")
    if isinstance(law, GaussianMixture) and len(means) > 1:
        # the component by the distribution function of one more normal
        pick = normal((shape[0], 1), seed, sample_ids, **COMPONENT.at())[:, 0].double()
        which = torch.searchsorted(law.weights.cumsum(0)[:-1], torch.special.ndtr(pick))
    scale = torch.sqrt(alpha**2 * variances + sigma**2)[which]
    into, back = turn(which)
    v = back(scale * into(z.double().flatten(1).cpu()))
    return (alpha * means[which] + v).reshape(shape).to(device, dtype)


Turn = Callable[[Tensor], Tensor]


def _components(
    law: Statistics | GaussianMixture,
) -> tuple[Tensor, Tensor, Callable[[Tensor], tuple[Turn, Turn]]]:
    """Means [K, d], variances [K, d] along bases, and the bases of chosen components, there and
    back."""
    if isinstance(law, Statistics):
        return law.mean[None], law.variances[None], lambda _: (law.q.into, law.q.back)
    variances, q = torch.linalg.eigh(law.covs)

    def turn(which: Tensor) -> tuple[Turn, Turn]:
        return (
            lambda v: torch.einsum("bij,bi->bj", q[which], v),
            lambda v: torch.einsum("bij,bj->bi", q[which], v),
        )

    return law.means, variances.clamp(min=0.0), turn


def jump_loss(
    model: Denoiser,
    x: Tensor,
    t: float | None = None,
    *,
    probes: int | None = None,
    seed: int = 0,
    cond: dict[str, Any] | None = None,
) -> Tensor:
    """The variance that a denoising jump x -> D(x, t) leaves out, a component, [B].

    D has the data's mean but lacks E Var[x_0 | x_t] of its variance (the law of total variance),
    and by Tweedie's formula of second order

        Var[x_0 | x_t] = sigma^2/alpha dD/dx,

    so this is sigma^2/alpha tr(dD/dx)/d. Its mean over states is the bias to expect; for data
    N(m, c) it is c sigma^2/(alpha^2 c + sigma^2). `final='t_min'` has sigma^2 too much instead.

    model: the denoiser.
    x: states [B, ...] at t.
    t: the time of the jump; default: the model's t_min.
    probes: random products with the Jacobian that estimate the trace; None takes it exactly, by d.
    seed: of the probes.
    cond: the conditions of these samples.
    Raises ValueError for bad input, or a network that autograd cannot see through.
    """
    arguments.denoiser(model)
    arguments.event_batch("x", x)
    if probes is not None:
        probes = arguments.whole("probes", probes)
    t = model.t_min if t is None else arguments.positive("t", t, model.process.t_max)
    alpha, sigma = float(model.process.alpha(t)), float(model.process.sigma(t))
    if not (alpha > 0 and sigma > 0):
        raise InvalidValue(f"t must have alpha > 0 and sigma > 0; got t={t:g}")
    ScaledFlow(model, len(x), cond).refuse_hidden(x / alpha, seed)
    skip, scale = (float(v) for v in model.coefficients("data", t))  # D = skip x + scale out
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = model.raw(x, t, **(cond or {}))
        if probes is None:
            found = trace.exact(out, x)
        else:
            v = trace.probes("rademacher", probes, x, seed)
            found = (v * trace.products(out, x, v)).flatten(2).sum(2).mean(0)
    return sigma**2 / alpha * (skip + scale * found.detach() / x[0].numel())
