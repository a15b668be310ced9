"""log p of data under the probability flow, with error bars (Song et al. 2021, D.2).

Along the flow dx/dt = v(x, t)

    log p_0(x_0) = log p_T(x_T) + int_0^T div v dt,        p_T = N(0, sigma(T)^2 I).

The divergence is estimated with random probes, and their noise is nearly all of the error of a
single datum's log p. Two methods: 'quadrature' (quadrature.py) puts its cost where that error is,
and 'augmented' (augmented.py) is the classic coupled ODE. The data enter at t_min as x_t/alpha, so
the result is the log density of the data with noise of standard deviation sigma/alpha at t_min.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels.errors import RunFailure
from ...kernels.shapes import column
from ...kernels.streams import TRUNCATION
from ...models import Denoiser
from ...models import jacobian as traces
from .. import arguments
from ..flow import ScaledFlow
from ..outcome import Status, raise_if_failed, status_failed
from . import augmented, quadrature
from .options import SMALL, Likelihood, Options
from .result import LogProb

if TYPE_CHECKING:
    from typing_extensions import Unpack


def log_prob(
    model: Denoiser,
    x: Tensor,
    *,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
    on_failure: str = "raise",
    **options: Unpack[Options],
) -> LogProb:
    """log p(x) of each sample under the probability flow, with its error budget.

        log p_0(x_0) = log p_T(x_T) + int_0^T div v dt                    (Song et al. 2021, D.2)

        lp = ud.log_prob(model, x, rtol=1e-4, probes=8)
        lp.log_prob, lp.total_error, lp.bits_per_dim

    model: a `Denoiser`; with guidance the flow, and so log p, is the guided one.
    x: data [B, *event], float32 or float64.
    seed: of the probes, a 64-bit int or int64 [B].
    sample_ids: names of the samples, integers [B]; default 0 ... B - 1. A sample's probes depend on
        its seed and id alone.
    cond: keyword arguments of the network; rows follow their samples.
    on_failure: 'raise' a SolverError, or 'return' the result with its status.
    options: the fields of `Likelihood`. The ones used most: rtol, atol (tolerances of the path),
        trace ('hutchinson' or 'exact'), probes, target_std_error (bits/dim), max_rows (memory).

    A sample's result does not depend on its batch, to the bit where the network's output does not.
    No gradient flows: see `differentiable_log_prob`. Raises ValueError or TypeError for what does
    not fit, before any network call; TypeError at the first where the network's parameters and x
    are of two dtypes; SolverError where a sample fails; RuntimeError in torch.inference_mode().
    """
    arguments.keywords("log_prob", options, (f.name for f in fields(Likelihood)))
    how = Likelihood(**options)
    arguments.data(model, x)
    arguments.on_failure(on_failure)
    if torch.is_inference_mode_enabled():
        raise RunFailure(
            "torch.inference_mode() forbids the products that log_prob is made of; "
            "torch.no_grad() does not"
        )
    seed = arguments.seed_of(seed, len(x), x.device)
    ids = arguments.sample_ids(sample_ids, len(x), x.device)
    chosen = how.resolved(x)
    flow = ScaledFlow(model, len(x), cond, how.t_min, x.dtype)
    run = quadrature.run if chosen.method == "quadrature" else augmented.run
    found = run(flow, x, chosen, seed, ids)
    if chosen.method == "quadrature" and chosen.target_solver_error is not None:
        free = how.rtol is None and how.atol is None
        quadrature.tighten(flow, x, chosen, seed, ids, found, free)
    _check_gradient(flow, x, seed, ids, found)
    if how.truncation:
        worth, told = truncation(flow, x, seed, ids)
        fine = found.status == Status.OK
        found.status[fine & ~told] = int(Status.BLURRED)
        found = replace(found, truncation=worth)
    result = _without_failures(replace(found, offset=float(how.offset)))
    raise_if_failed(result.status, result, on_failure, _missed(result, how))
    return result


def _check_gradient(
    flow: ScaledFlow, x: Tensor, seed: int | Tensor, ids: Tensor, found: LogProb
) -> None:
    """Mark, in place, the samples at which the network's gradient is not that of its values."""
    rows = (~status_failed(found.status)).nonzero().flatten()
    if len(rows):
        part = flow.part(rows)
        told = part.agrees(x[rows], arguments.seeds_of(seed, rows), ids[rows])
        found.nfe[rows] += part.forwards
        found.products[rows] += 1
        found.status[rows[~told]] = int(Status.NOT_DIFFERENTIABLE)


def truncation(
    flow: ScaledFlow, x: Tensor, seed: int | Tensor, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """log p_0(x) - log p_blurred(x), nats [B], and where it can be told, bool [B].

    By the heat equation d p/d(blur^2) = laplacian(p)/2, so that to first order it is
    -blur^2/2 (tr grad s + |s|^2). With e the eigenvalues of -blur^2 grad s and r = blur^2 s = D - x

        sum_i [-1/2 log(1 - e_i) - 1/2 (r_i/blur)^2/(1 - e_i)]

    agrees with that to first order, and is exact where the data are Gaussian about x, however much
    tighter than the blur. Events of few components are solved for all e_i. In others one probe
    tells sum e and sum e^2, and the e_i that are not 0 are taken as equal. Nothing can be told
    where 1 - e is so small that rounding leaves less than half of its digits.
    """
    batch, d = len(x), x[0].numel()
    lam = x.new_full((batch,), flow.lam_data, dtype=torch.float64)
    leaf = x.detach().clone().requires_grad_()
    if d <= SMALL:
        v = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
        v = v.expand(d, batch, *x.shape[1:])
    else:
        v = traces.probes("rademacher", 1, x, seed, ids, draw0=TRUNCATION.first)
    with torch.enable_grad():
        at = flow.at(lam)
        out = flow.output(leaf, at, torch.arange(batch, device=x.device))
        w = traces.products(out, leaf, v).double()
    r = at.residual(x, out.detach()).double()
    w = column(1 - at.a, r) * v.double() - column(at.b, r) * w  # -blur^2 grad s times each probe
    if d <= SMALL:
        full = w.flatten(2).movedim(1, 0).cpu()
        e, q = torch.linalg.eigh(torch.nan_to_num(0.5 * (full + full.mT)))
        e, many = e.to(x.device), torch.ones((), dtype=torch.float32, device="cpu")
        square = (q.mT.to(x.device) @ r.flatten(1)[..., None])[..., 0].square()
    else:
        first, second = (v * w).flatten(2).sum(2)[0], w.square().flatten(2).sum(2)[0]
        e = torch.where(first > 0, second / first, 0.0)[:, None]
        many = torch.where(first > 0, first.square() / second, 0.0)[:, None]
        square = r.square().flatten(1).sum(1, keepdim=True)
    left = 1 - e
    told = (left > torch.finfo(x.dtype).eps ** 0.5).all(1)
    worth = -0.5 * (many * left.log() + square / (flow.blur**2 * left))
    return worth.sum(1).masked_fill(~told, torch.nan), told


def _without_failures(found: LogProb) -> LogProb:
    """Nothing but the cost is known of samples that failed, whatever their batch."""
    failed = status_failed(found.status)
    names = ("log_prob", "std_error", "path_error", "defect", "prior_gap", "truncation")
    kept = {name: getattr(found, name).masked_fill(failed, torch.nan) for name in names}
    latent = found.latent.masked_fill(column(failed, found.latent), torch.nan)
    return replace(found, latent=latent, **kept)


def _missed(found: LogProb, how: Likelihood) -> dict[Status, str]:
    """Which target the first sample that missed one has missed, in words."""
    rows = (found.status == Status.TARGET_NOT_MET).nonzero().flatten()
    target = how.target_std_error
    if len(rows) and target is not None and float(found.bits_std_error[rows[0]]) > target:
        words = "target_std_error was not reached: raise it or max_probes"
    elif how.target_solver_error is not None:
        words = "target_solver_error was not reached: raise it, or lower rtol and atol"
    else:
        words = (
            "target_std_error was not reached by solver_error: raise it, set target_solver_error, "
            "or lower rtol and atol"
        )
    return {Status.TARGET_NOT_MET: words}
