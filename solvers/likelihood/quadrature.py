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
LUCK = 3.0  # deviations of |score|^2 that a datum of an exact score may lie above its mean
ROUGH = 0.8  # exact scores leave less than .7, smooth trained networks .6 to .84
RELATIVE = 0.4
"""Of a score, what it may be wrong by beyond what `trusted` tells. Chosen on networks in the plane
and in 13 to 64 dimensions, for their errors with the exact trace to lie within one and two
`defect_error` about as often as a normal's. Most networks of `undiffuse bench likelihood` were
looked at, so its coverage is no evidence for others."""


def lay(
    flow: ScaledFlow, path: DensePath, orders: Sequence[int], miss: float, fine: Tensor
) -> tuple[Nodes, Tensor]:
    """Gauss-Legendre nodes on every step of the samples that are fine ([B] mask), and a bound of
    what they miss of each step, nats, [B, steps].

    orders: how many nodes a step may have, rising; it gets the first that misses no more than
    `miss` nats of it, or the last.
    """
    missed = misses(flow, path, orders)
    choice = (missed > miss).long().cumprod(2).sum(2).clamp(max=len(orders) - 1)
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


def trusted(nodes: Nodes) -> tuple[Tensor, Tensor]:
    """tr E with E = 1 - dD/dx^, and the share in [0, 1] of the network's score that is believed to
    be its density's, float64 [R] each.

    A density's score s has E |s|^2 = -E div s (Fisher), here E |r|^2/s^^2 = tr E. What an
    independent error adds to the score lengthens it and leaves its divergence alone, so that the
    linear estimate of the true score from the network's is tr E s^^2/|r|^2 times it. Of normal data
    |r|^2/s^^2 has the variance 2 tr E^2; a datum within LUCK deviations is no reason for doubt.
    """
    d = nodes.x_hat[0].numel()
    rate = d - (nodes.a * d + nodes.b * nodes.form)
    plain, cross = (1 - nodes.a).square() * d, 2 * (1 - nodes.a) * nodes.b * nodes.form
    square = plain - cross + nodes.b.square() * nodes.square / nodes.size.clamp(min=1)
    usual = rate + LUCK * (2 * square.clamp(min=0)).sqrt()
    return rate, (usual / nodes.energy.clamp(min=1e-300)).clamp(0, 1)


def change(nodes: Nodes, batch: int, guided: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """int (d - tr dD/dx^) + defect dlambda from the data to the noise, what the defect has added to
    log p, and the standard error of that; float64 [B] each.

    Of each node's defect the share counts that its score is `trusted` with. What is left, of
    variance share (1 - share) + RELATIVE^2 in units of |s|^2, is taken to point anywhere, as far as
    a step goes the same way, and in each step another. guided: the score is no density's, of which
    nothing is believed.
    """
    rate, share = trusted(nodes)
    share, relative = (0 * share, 1.0) if guided else (share, RELATIVE)
    defect = share * nodes.defect
    steps = int(nodes.step.max()) + 1
    sums = torch.zeros(2, batch, dtype=torch.float64, device=rate.device)
    sums[0].index_add_(0, nodes.sample, nodes.weight * (rate + defect))
    sums[1].index_add_(0, nodes.sample, -nodes.weight * defect)
    left = (share * (1 - share) + relative**2).sqrt() * nodes.reach * nodes.weight.abs()
    each = left.new_zeros(batch * steps).index_add_(0, nodes.sample * steps + nodes.step, left)
    return sums[0], sums[1], each.reshape(batch, steps).square().sum(1).sqrt()


def path_error(nodes: Nodes, path: DensePath, bound: Tensor, variance: Tensor, most: int) -> Tensor:
    """Estimate of what the quadrature contributes, nats, [B] >= 0: over the steps, the sum of the
    largest of `bound` (from `lay`) and of what the nodes beside the step say of two rates.

    Polynomials of degree > 2m through the m nodes of a step and as many beside it integrate a rate
    over the step otherwise than the m alone, which are right up to 2m - 1: the difference is what
    these miss, as far as the rate is smooth across steps. The rates are |r|^2/s^^2, which no probe
    touches, and d - tr dD/dx^ itself, of which counts what is beyond three standard errors of the
    difference.

    variance: of the trace's estimate at each node, [R].
    most: nodes a step at most.
    """
    place = torch.stack([nodes.sample, nodes.step])
    (sample, step), m = torch.unique_consecutive(place, dim=1, return_counts=True)
    have = torch.bincount(nodes.sample, minlength=len(bound))
    end, have, beside, last = have.cumsum(0)[sample], have[sample], m // 2 + 1, m.cumsum(0)
    count = (m + 2 * beside).minimum(have)
    low = (last - m - beside).maximum(end - have).minimum(end - count)
    place = torch.arange(2 * most + 2, device=low.device)  # as wide whatever the batch
    used, pick = place < count[:, None], low[:, None] + place
    inside = (pick >= (last - m)[:, None]) & (pick < last[:, None])
    pick = pick.clamp(max=len(nodes.lam) - 1)
    left, right = nodes.lam[low], nodes.lam[low + count - 1]
    middle, half = 0.5 * (left + right)[:, None], 0.5 * (left - right)[:, None].clamp(min=1e-300)
    z, w = (torch.from_numpy(v).to(low.device) for v in legendre.leggauss(most + 2))
    start, h = path.start[sample, step][:, None], path.h[sample, step][:, None]

    def basis(lam: Tensor) -> Tensor:
        x = ((lam - middle) / half).cpu().numpy()
        return torch.from_numpy(legendre.legvander(x, len(place) - 1)).to(low.device)

    over = (w[:, None] * basis(start + h * (0.5 + 0.5 * z))).sum(1)  # of the step, of each P_k
    system = torch.where(
        used[:, None] & used[..., None],
        basis(nodes.lam[pick]).mT,
        torch.eye(len(place), dtype=h.dtype, device=h.device),
    )
    goal = torch.where(used, 0.5 * h * over, 0.0)
    weight = torch.linalg.solve_ex(system, goal)[0]  # not finite where two nodes are one
    more = torch.where(used, weight - inside * nodes.weight[pick], 0.0)
    more = more * (h.abs() / more.abs().sum(1, keepdim=True)).clamp(max=1)  # no wild extrapolation

    def rest(rate: Tensor) -> Tensor:
        return (more * rate[pick]).sum(1)

    d = nodes.x_hat[0].numel()
    noise = 9 * (more.square() * variance[pick]).sum(1)
    clear = (rest(d * (1 - nodes.a) - nodes.b * nodes.form).square() - noise).clamp(min=0).sqrt()
    missed = torch.fmax(bound[sample, step], torch.fmax(rest(nodes.energy).abs(), clear))
    return bound.new_zeros(len(bound)).index_add_(0, sample, missed)


def roughness(nodes: Nodes, variance: Tensor) -> Tensor:
    """What a rate that jumps or oscillates from node to node adds to the error, nats, [B] >= 0.

    Networks of rectifiers have divergences that jump, embeddings of whole times ones that oscillate
    between them. A node's residual is its distance from the polynomial through its nearest 4, or 8,
    neighbours, each over the root of 1 + sum l^2, with Lagrange's weights l: of a smooth rate it
    falls with their number, of a rough one it does not, and is then the node's own error. The less
    it falls, the more of it counts; none where 8 leave less than ROUGH of what 4 do.
    variance: of the rate by its probes; what counts is beyond three of their standard errors.
    """
    d = nodes.x_hat[0].numel()
    rate, batch = d - (nodes.a * d + nodes.b * nodes.form), int(nodes.sample.max()) + 1
    count = torch.bincount(nodes.sample, minlength=batch)
    begin, many = (count.cumsum(0) - count)[nodes.sample], count[nodes.sample]
    place = torch.arange(len(rate), device=rate.device) - begin
    found = []
    for k in (4, 8):
        first = (place - k // 2).minimum(many - k - 1).clamp(min=0)
        others = first[:, None] + torch.arange(k, device=rate.device)
        others = others + (others >= place[:, None])  # without the node itself
        others = begin[:, None] + others.minimum(many[:, None] - 1)
        x, one = nodes.lam[others], torch.eye(k, dtype=torch.float64, device=rate.device)
        top = nodes.lam[:, None, None] - x[:, None, :]
        weight = torch.where(one > 0, 1.0, top / (x[:, :, None] - x[:, None, :] + one)).prod(2)
        square = (rate - (weight * rate[others]).sum(1)).square()
        square = square - 9 * (variance + (weight.square() * variance[others]).sum(1))
        square = nodes.weight.square() * square / (1 + weight.square().sum(1))
        found.append(torch.zeros_like(count, dtype=rate.dtype).index_add_(0, nodes.sample, square))
    few, more = (v.clamp(min=0).sqrt() for v in found)
    share = ((more / few.clamp(min=1e-300) - ROUGH) / (1 - ROUGH)).clamp(0, 1)
    return torch.where(count > 8, share * more.minimum(few), 0.0)


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
        nodes, bound = lay(flow, cast(DensePath, path.path), orders, share * allowed, fine)
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
                    error = torch.hypot(bound.nansum(1), change(nodes, batch, flow.guided)[2])
                    over = error.square() > path_goal
                if goal is not None and how.max_probes < d:  # as many as d leave nothing
                    over = over | (left * how.max_probes**-DECAY > HOPELESS * goal)
                return over

            variance = spend(prober, how.probes, how.max_probes, goals, hold)
            noise = prober.variance() / nodes.weight.square()
        total, defect, doubt = change(nodes, batch, flow.guided)
        error = path_error(nodes, cast(DensePath, path.path), bound, noise, orders[-1])
        rough = roughness(nodes, noise)
        error[: len(rough)] = torch.hypot(error[: len(rough)], rough)
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
