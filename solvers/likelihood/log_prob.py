"""log p of data under the probability flow, with error bars (Song et al. 2021, D.2).

Along the flow dx/dt = v(x, t)

    log p_0(x_0) = log p_T(x_T) + int_0^T div v dt,        p_T = N(0, sigma(T)^2 I).

The divergence is estimated with random probes, and their noise is nearly all of the error of a
single datum's log p. Two methods: 'quadrature' (quadrature.py) puts its cost where that error is,
and 'augmented' (augmented.py) is the classic coupled ODE. The data enter at t_min as x_t/alpha, so
the flow's is the log density of the data with noise of standard deviation sigma/alpha at t_min, and
of a prior that knows nothing of them. Both are corrected for where they can be told (ends.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels.errors import RunFailure
from ...kernels.shapes import column
from ...models import Denoiser
from .. import arguments
from ..flow import ScaledFlow
from ..outcome import Status, raise_if_failed, status_failed
from . import augmented, ends, quadrature
from .options import Chosen, Likelihood, Options
from .probing import DECAY
from .result import LogProb

if TYPE_CHECKING:
    from typing_extensions import Unpack


SHARE = 0.3  # of the error of all else that the probes at the ends may have
NOTICED = 0.01  # bits/dim of a prior that is not known, from which on it may be the status


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
    flow = ScaledFlow(model, len(x), cond, how.t_min, x.dtype)
    chosen = how.resolved(x, flow.guided, augmented.in_own_time(flow))
    if chosen.method == "augmented":
        found = augmented.run(flow, x, chosen, seed, ids)
    else:
        free = how.rtol is None and how.atol is None
        found = quadrature.run(flow, x, chosen, seed, ids, free, first=free)
        if free or chosen.target_solver_error is not None:
            quadrature.refine(flow, x, chosen, seed, ids, found, free)
    _check_gradient(flow, x, seed, ids, found)
    found = _close(flow, x, chosen, seed, ids, found)
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


def _close(
    flow: ScaledFlow, x: Tensor, how: Chosen, seed: int | Tensor, ids: Tensor, found: LogProb
) -> LogProb:
    """The same with what its two ends leave out, for the samples that have a value."""
    rows = (~status_failed(found.status)).nonzero().flatten()
    if not len(rows) or not (how.truncation or how.prior == "matched"):
        return found
    part, seeds = flow.part(rows), arguments.seeds_of(seed, rows)
    allowed = SHARE * found.total_error.nan_to_num()[rows]
    made = {n: torch.full_like(found.log_prob, torch.nan) for n in ("prior_gap", "truncation")}
    value, told = found.log_prob.clone(), {}
    how_much = (seeds, ids[rows], how.trace == "exact", allowed)
    if how.prior == "matched":
        told["prior_gap"] = ends.prior_gap(part, found.latent[rows], x[rows], *how_much)
    if how.truncation:
        told["truncation"] = ends.truncation(part, x[rows], *how_much)
    errors = {}
    for name, end in told.items():
        made[name][rows] = torch.where(end.told, end.worth, torch.nan)
        value[rows] += torch.where(end.told, end.worth, 0.0)
        errors[name] = torch.where(end.told, end.error, end.left).nan_to_num(torch.inf)
        found.products[rows] += end.products
    found.nfe[rows] += part.forwards
    error = torch.zeros_like(value)
    error[rows] = torch.stack(list(errors.values())).square().sum(0).sqrt()
    gap, cut = made["prior_gap"], made["truncation"]
    closed = replace(found, log_prob=value, ends_error=error, prior_gap=gap, truncation=cut)
    if (gap_end := told.get("prior_gap")) is not None:
        rest = closed.total_error[rows].square() - errors["prior_gap"].square()
        bits = errors["prior_gap"] / (x[0].numel() * math.log(2))
        most = ~gap_end.told & gap_end.shown
        most &= (errors["prior_gap"].square() > rest) & (bits > NOTICED)
        _mark(closed.status, rows[most], Status.UNMIXED)
    if (cut_end := told.get("truncation")) is not None:
        _mark(closed.status, rows[cut_end.shown], Status.BLURRED)
    return closed


def _mark(status: Tensor, rows: Tensor, code: Status) -> None:
    """Enter what else is to be said of rows, in place: it is said before UNMIXED alone."""
    mild = (status[rows] == Status.OK) | (status[rows] == Status.UNMIXED)
    status[rows[mild]] = int(code)


def _without_failures(found: LogProb) -> LogProb:
    """Nothing but the cost is known of samples that failed, whatever their batch."""
    failed = status_failed(found.status)
    names = ["log_prob", "std_error", "path_error", "defect", "defect_error"]
    names += ["prior_gap", "truncation", "ends_error"]
    kept = {name: getattr(found, name).masked_fill(failed, torch.nan) for name in names}
    latent = found.latent.masked_fill(column(failed, found.latent), torch.nan)
    return replace(found, latent=latent, **kept)


def _missed(found: LogProb, how: Likelihood) -> dict[Status, str]:
    """Which target the first sample that missed one has missed, in words."""
    rows = (found.status == Status.TARGET_NOT_MET).nonzero().flatten()
    target = how.target_std_error
    if len(rows) and target is not None and float(found.bits_std_error[rows[0]]) > target:
        short = float(found.bits_std_error[rows[0]]) / target
        products = int(found.products[rows[0]]) * short ** (2 / DECAY)
        words = (
            "target_std_error was not reached: raise it or max_probes; it would cost about "
            f"{products:.2g} products"
        )
    elif how.target_solver_error is not None:
        words = "target_solver_error was not reached: raise it, or lower rtol and atol"
    else:
        words = (
            "target_std_error was not reached by solver_error: raise it, set target_solver_error, "
            "or lower rtol and atol"
        )
    return {Status.TARGET_NOT_MET: words}
