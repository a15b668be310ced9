"""Path first, trace second: log p as an integral along a curve that need not be exact.

For ANY curve u(lambda) from the data to the prior, with v the flow's field and s = grad log p,

    d/dlambda log p(u(lambda), lambda) = -div v + s . (du/dlambda - v),

by the continuity equation. The flow is the curve where the last term, the defect, is 0; a cheap
curve with its defect in the integrand is as good to second order, since s is read off the same
network evaluation. So the path is a coarse adaptive run, and the integral is Gauss-Legendre on each
of its steps, with one to eight nodes: as many as the path itself says are needed. Every node draws
probes of its own: their errors average out, where one probe held along the path has a single error
that does not. Probes go where weight x standard deviation is largest, in nested Walsh blocks of 1,
2, 4, ... (see trace.py), whose successive levels also tell what variance is left. A full block is
the exact trace: no variance, while `path_error` remains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from ...kernels.runge_kutta import rms
from ...kernels.shapes import column
from ...models.jacobian import colours
from .. import arguments
from ..adaptive.dense import DensePath
from ..adaptive.ode import OdeSolution, integrate
from ..flow import ScaledFlow
from ..outcome import Status, status_failed
from .options import Chosen
from .path_errors import change, path_error, roughness
from .probing import DECAY, Nodes, Prober
from .result import LogProb

LONGEST = 2.0  # of a step in lambda: the trace may bend as e^(2 lambda) where the path is straight
MOST = 8  # Gauss nodes a step, by default; exact for polynomials of degree 15
LAID = {True: (1, 0.1), False: (3, 0.2)}
"""Of an exact trace, or one that is probed: the fewest nodes a step, and the share of log p's
absolute tolerance, atol d nats, that the nodes of a step may miss. Three nodes average over the
roughness of a trained network's trace (tests/solvers/likelihood/test_trained_errors.py)."""
FINEST = {torch.float32: 1e-6, torch.float64: 1e-10}  # tolerances that a target may ask for
HOPELESS = 4.0
"""Variance, in units of the target's, that all of max_probes are predicted to leave, from which on
they are not spent: the standard error would be twice too large."""
FOREIGN, FINER = 4.0, 3
"""Times the prior's deviation that the rms of a latent must have to be none of it, and how often at
most its path is laid again. Trained networks take dull images to twice that deviation."""
SHORT, RARE = 0.5, 20.0
"""Nor is a latent of it whose square is less than SHORT times its mean, where normal ones are so
with a probability below e^-RARE: images brighter, emptier or tighter than any that was learned."""
KEPT, MORE = 0.5, 4
"""Of what a tenth of the tolerance changes, the share that it may leave: the error falls at least
as the root of the tolerance, to a third, and half of the change is that third. There are about
MORE times the nodes then."""
FEWEST = 24
"""Nodes of a path at least, with a target and more components than max_probes. More nodes miss less
of a rough rate, and probes tell as much at them."""


def lay(
    flow: ScaledFlow,
    path: DensePath,
    orders: Sequence[int],
    miss: float,
    fine: Tensor,
    fewest: int = 0,
) -> tuple[Nodes, Tensor]:
    """Gauss-Legendre nodes on every step of the samples that are fine ([B] mask), and a bound of
    what they miss of each step, nats, [B, steps].

    orders: how many nodes a step may have, rising; it gets the first that misses no more than
    `miss` nats of it, or the last.
    fewest: nodes of a sample at least, as far as the last of `orders` allows.
    """
    missed = misses(flow, path, orders)
    least = (fewest / (path.h == path.h).sum(1).clamp(min=1)).ceil().long() - orders[0]
    choice = (missed > miss).long().cumprod(2).sum(2).maximum(least[:, None])
    choice = choice.clamp(0, len(orders) - 1)
    table = torch.full((2, len(orders), orders[-1]), torch.nan, dtype=torch.float64, device="cpu")
    for i, m in enumerate(orders):
        table[:, i, :m] = torch.from_numpy(np.stack(legendre.leggauss(m)))
    z, w = table.to(path.h.device)[:, choice]  # [B, steps, most], NaN where a step has fewer
    start, h = path.start[..., None], path.h[..., None]
    lam = torch.where(fine[:, None, None], start + h * (0.5 + 0.5 * z), torch.nan).flatten(1)
    real = ~torch.isnan(lam)
    order = real.sort(dim=1, descending=True, stable=True).indices
    order = order[:, : int(real.sum(1).max())]  # a column for each node of the fullest sample
    lam, real = lam.gather(1, order), real.gather(1, order)
    filled = torch.nan_to_num(lam, flow.lam_data)
    sample, index, lam = real.nonzero(as_tuple=True)[0], order[real], lam[real]
    weight = (0.5 * h * w).flatten(1)[sample, index]
    u, slope = path(filled)[real], path.slope(filled)[real]
    nodes = Nodes.laid(
        sample,
        index // orders[-1],
        index,
        lam,
        weight,
        column(flow.norm(lam), u) * u,
        slope,
        colours(tuple(u.shape[1:]))[1],
    )
    return nodes, missed.gather(2, choice[..., None])[..., 0]


def misses(flow: ScaledFlow, path: DensePath, orders: Sequence[int]) -> Tensor:
    """Bounds of what m Gauss nodes miss of each step, for m in `orders`, nats, [B, steps, orders].

    Told before any network call by two functions that the interpolant knows: s^^2 |score|^2, with
    the score that the path's own slope implies, which has the trace's mean over the data and its
    smoothness, and d s^^2/n^2, the rate on N(0, s^2) data, for a datum near a mean has no score.
    Their Legendre coefficients c_k on the step, each raised to the largest that follows so that no
    zero among them counts, give |h|/2 sum_k |c_k| |what m nodes miss of P_k|, k >= 2m.
    """
    z, _ = legendre.leggauss(2 * orders[-1] + 2)
    to = torch.from_numpy(np.linalg.inv(legendre.legvander(z, len(z) - 1))).to(path.h.device)
    known = []
    for place in (0.5 + 0.5 * z).tolist():  # one node of all steps at a time, to spare memory
        lam = torch.where(torch.isnan(path.h), flow.lam_data, path.start + place * path.h)
        share = torch.exp(-2 * lam) / flow.norm(lam).square()
        u, slope = path(lam).flatten(0, 1), path.slope(lam).flatten(0, 1)
        square = rms(flow.score(lam.flatten(), u, slope)).square().reshape(lam.shape)
        known.append(u[0].numel() * share * torch.stack([square, torch.ones_like(lam)]))
    c = (torch.stack(known, 3)[..., None, :] * to).sum(4)  # @ rounds otherwise in other batches
    c = c.abs().flip(3).cummax(3).values.flip(3).sum(0)
    rest = torch.zeros(len(orders), len(z), dtype=torch.float64, device=c.device)
    for i, m in enumerate(orders):
        x, w = legendre.leggauss(m)
        rest[i, 2 * m :] = torch.from_numpy(np.abs(w @ legendre.legvander(x, len(z) - 1)))[2 * m :]
    return (c[..., None, :] * rest).sum(3) * (0.5 * path.h.abs())[..., None]


def spend(
    prober: Prober,
    probes: float,
    max_probes: float,
    goal: Tensor | None,
    hold: Callable[[Tensor], Tensor] | None = None,
    rounds: int = 6,
) -> Tensor:
    """Pilot, plan, probe; with a goal (variance [B]) again until it is met. Variance left, [B].

    hold: told the variance [B] that the pilot leaves, says which samples, bool [B], have no use of
        more probes.
    """
    nodes, batch = prober.nodes, prober.flow.batch
    prober.visit(torch.arange(len(nodes.sample), device=nodes.sample.device), 1)
    count = torch.bincount(nodes.sample, minlength=batch).double()
    budget = count * (probes if goal is None else max_probes)

    def left() -> Tensor:
        zero = torch.zeros(batch, dtype=torch.float64, device=nodes.lam.device)
        return zero.index_add_(0, nodes.sample, prober.variance())

    if hold is not None:
        budget = torch.where(hold(left()), 0.0, budget)
    share = 0.7
    for _ in range(1 if goal is None else rounds):
        aim = None
        if goal is not None:  # a sample that has arrived spends no more; others aim a bit below
            budget = torch.where(left() <= goal, 0.0, budget)
            if not bool(budget.any()):
                break
            aim = share * goal
        if not prober.grow(prober.plan(budget, aim)):
            share *= 0.7  # all are said to have arrived, and have not
    return left()


def chunk_rows(batch: int, d: int) -> int:
    """How many nodes to evaluate at once: as many as the caller's batch, or 2^18 numbers."""
    return max(batch, math.ceil((1 << 18) / d), 1)


def run(
    flow: ScaledFlow,
    x: Tensor,
    how: Chosen,
    seed: int | Tensor,
    ids: Tensor,
    free: bool = False,
    first: bool = False,
) -> LogProb:
    """log p of x by the path first and the trace at its nodes; how: resolved.

    The pilot, one probe a node, judges the path: where it cannot meet target_solver_error no more
    probes are spent, since a path of smaller steps is to follow (free: it may). Nor are they where
    the latent is foreign, of a path that `refine` lays again (first: it will).
    """
    batch, d = x.shape[0], x[0].numel()
    goal, path_goal = (_variance(v, d) for v in (how.target_std_error, how.target_solver_error))
    rtol, atol, trace = how.rtol, how.atol, how.trace
    path = integrate(
        flow.field,
        flow.enter(x),
        flow.lam_data,
        flow.lam_noise,
        solver=how.solver,
        rtol=rtol,
        atol=atol,
        max_step=LONGEST,
        max_steps=how.max_steps,
        dense=True,
    )
    status = path.status.clone()
    fine = status == Status.OK
    if not bool(fine.any()):  # no path to lay a node on
        return _nothing(flow, x, status, path.rejected)
    with torch.no_grad():
        latent = _far_end(flow, path)
        strange = foreign(flow, x, latent) & first
        least, share = LAID[trace == "exact"]
        points = how.points
        orders = range(least, MOST + 1) if points is None else range(points, points + 1)
        allowed = min(atol * d, math.inf if path_goal is None else math.sqrt(path_goal))
        fewest = FEWEST if goal is not None and how.max_probes < d else 0
        dense = cast(DensePath, path.path)
        nodes, bound = lay(flow, dense, orders, share * allowed, fine, fewest)
        chunk = how.max_rows or chunk_rows(batch, d)
        prober = Prober(flow, nodes, seed, ids, chunk, how.control)
        if trace == "exact":
            prober.visit(torch.arange(len(nodes.sample), device="cpu"), d, exact=True)
            variance, noise = nodes.lam.new_zeros(batch), 0 * nodes.weight
        else:
            goals = None if goal is None else nodes.lam.new_full((batch,), goal)

            def hold(left: Tensor) -> Tensor:
                over = strange.clone()
                if free and path_goal is not None:
                    rough = roughness(nodes, prober.variance() / nodes.weight.square(), batch)
                    doubt = change(nodes, batch, rough.share, flow.guided)[2]
                    over = torch.hypot(bound.nansum(1), doubt).square() > path_goal
                if goal is not None and how.max_probes < d:  # as many as d leave nothing
                    over = over | (left * how.max_probes**-DECAY > HOPELESS * goal)
                return over

            variance = spend(prober, how.probes, how.max_probes, goals, hold)
            noise = prober.variance() / nodes.weight.square()
        rough = roughness(nodes, noise, batch)
        total, defect, doubt = change(nodes, batch, rough.share, flow.guided)
        error = torch.hypot(path_error(nodes, dense, bound, noise, orders[-1]), rough.missed)
        value = flow.prior(latent) - total
        odd = fine & ~torch.isfinite(value)  # at a node, or at the far end
        status[odd] = int(Status.NETWORK_NOT_FINITE)
    if goal is not None:
        missed = (variance > goal * (1 + 1e-9)) & (status == Status.OK)
        status[missed] = int(Status.TARGET_NOT_MET)
    return LogProb(
        log_prob=value,
        std_error=variance.sqrt(),
        path_error=error,
        defect=defect,
        defect_error=doubt,
        latent=latent,
        status=status,
        nfe=flow.forwards,
        products=prober.products,
        rejected=path.rejected,
        t_min=flow.t_min,
        blur=flow.blur,
    )


def refine(
    flow: ScaledFlow,
    x: Tensor,
    how: Chosen,
    seed: int | Tensor,
    ids: Tensor,
    found: LogProb,
    free: bool,
) -> None:
    """Run samples again, in place, at a tenth of the tolerances at a time, down to what x's dtype
    can tell: those whose solver_error exceeds target_solver_error, and those of a foreign latent.

    Of such a latent either the datum is foreign, or the path strayed where a trained network's flow
    spreads. There the network's score is none of the flow's density, and does not tell what the
    path misses. Finer steps do: KEPT of what they change, beyond the noise of the probes, counts in
    path_error. They are laid FINER times at most, while that is not small beside the error. Where
    no finer steps work, all that the prior makes of the latent counts, for a path that strayed may
    have made it.

    With tolerances of the caller's (free=False) nothing is run again. Samples that still exceed
    target_solver_error have status TARGET_NOT_MET.
    """
    goal = _variance(how.target_solver_error, x[0].numel())
    finest = FINEST[x.dtype] if free else how.rtol
    strange = foreign(flow, x, found.latent) & ~status_failed(found.status)
    unsettled, stuck = strange.clone(), torch.zeros_like(strange)
    length = (found.latent.double() / flow.model.process.prior.std).flatten(1).square().sum(1)
    unknown = torch.where(strange, 0.5 * length, 0.0)

    def missed() -> Tensor:
        over = found.solver_error.square() > (math.inf if goal is None else goal)
        return over & ~status_failed(found.status)

    finer = 0
    while how.rtol > 1.01 * finest and len(rows := ((missed() | unsettled) & ~stuck).nonzero()):
        rows, finer = rows.flatten(), finer + 1
        how = replace(how, rtol=0.1 * how.rtol, atol=0.1 * how.atol)
        if goal is None:  # as many products, on more nodes
            how = replace(how, probes=max(1.0, how.probes / MORE))
        before, noise = found.log_prob[rows], found.std_error[rows].square()
        worked, after = _again(flow, x, how, seed, ids, found, rows, how.rtol > 1.01 * finest)
        stuck[rows[~worked]] = True
        noise += found.std_error[rows].square()
        gone = torch.where(strange[rows], (after - before).square() - noise, 0.0)
        left = torch.where(worked, KEPT * gone.clamp(min=0).sqrt(), unknown[rows])
        unknown[rows] = 0.0  # what finer steps have changed is counted
        doubt = torch.hypot(found.std_error[rows], found.solver_error[rows])
        found.path_error[rows] = torch.hypot(found.path_error[rows], left)
        unsettled[rows] = worked & (left > 3 * doubt) & (finer < FINER)
    found.status[missed()] = int(Status.TARGET_NOT_MET)


def foreign(flow: ScaledFlow, x: Tensor, latent: Tensor) -> Tensor:
    """Whether the prior knows nothing of the latents of data x, bool [B]; see FOREIGN and SHORT.

    Of d normal numbers P(|z|^2 < r d) <= exp(-d (r - 1 - log r)/2) for r < 1 (Chernoff).
    """
    process = flow.model.process
    alpha = float(process.alpha(process.t_max))
    usual = process.prior.std**2 + alpha**2 * rms(x.double()).square()
    r = rms(latent.double()).square() / usual
    rare = 0.5 * x[0].numel() * (r - 1 - r.log()) > RARE
    return (r > FOREIGN**2) | ((r < SHORT) & rare)


def _again(
    flow: ScaledFlow,
    x: Tensor,
    how: Chosen,
    seed: int | Tensor,
    ids: Tensor,
    found: LogProb,
    rows: Tensor,
    free: bool,
) -> tuple[Tensor, Tensor]:
    """Run rows as `how` says and enter what worked; that mask, and log p, of the rows."""
    again = run(flow.part(rows), x[rows], how, arguments.seeds_of(seed, rows), ids[rows], free)
    worked = ~status_failed(again.status)
    for name in ("nfe", "products", "rejected"):
        getattr(found, name)[rows] += getattr(again, name)
    told = "log_prob", "std_error", "path_error", "defect", "defect_error", "latent", "status"
    for name in told:
        getattr(found, name)[rows[worked]] = getattr(again, name)[worked]
    return worked, again.log_prob


def _variance(bits: float | None, d: int) -> float | None:
    """The variance, nats^2, of a standard error in bits/dim."""
    return None if bits is None else (bits * d * math.log(2)) ** 2


def _far_end(flow: ScaledFlow, path: OdeSolution) -> Tensor:
    """x at t_max. The path's own slope gives D at the end of a step, so no call is needed."""
    far = torch.tensor([flow.lam_noise], dtype=torch.float64, device="cpu")
    slope = cast(DensePath, path.path).slope(far)[:, 0]
    n, ratio = float(flow.norm(flow.lam_noise)), math.exp(-flow.lam_noise)
    x_hat = path.x * n
    return flow.latent(path.x, slope * n + x_hat * (1 - (ratio / n) ** 2))


def _nothing(flow: ScaledFlow, x: Tensor, status: Tensor, rejected: Tensor) -> LogProb:
    """Of samples that all failed on their way."""
    nan = torch.full_like(status, torch.nan, dtype=torch.float64)
    return LogProb(
        log_prob=nan,
        std_error=nan,
        path_error=nan,
        defect=nan,
        defect_error=nan,
        latent=torch.full_like(x, torch.nan),
        status=status,
        nfe=flow.forwards,
        products=torch.zeros_like(status),
        rejected=rejected,
        t_min=flow.t_min,
        blur=flow.blur,
    )
