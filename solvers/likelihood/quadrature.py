"""Path first, trace second: log p as an integral along a curve that need not be exact.

For ANY curve u(lambda) from the data to the prior, with v the flow's field and s = grad log p,

    d/dlambda log p(u(lambda), lambda) = -div v + s . (du/dlambda - v),

by the continuity equation. The flow is the curve where the last term, the defect, is 0; a cheap
curve with its defect in the integrand is as good to second order, since s is read off the same
network evaluation. So the path is a coarse adaptive run, and the integral is Gauss-Legendre on each
of its steps, with one to eight nodes: as many as the path itself says are needed. Every node draws probes of its own: their errors average out, where one probe held
along the path has a single error that does not. Probes go where weight x standard deviation is
largest, in nested Walsh blocks of 1, 2, 4, ... (see trace.py), whose successive levels also tell
what variance is left. A full block is the exact trace: no variance, while `path_error` remains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from ...kernels.shapes import column
from ...models.jacobian import colours
from ..adaptive.dense import DensePath
from ..adaptive.ode import rms
from ..flow import ScaledFlow
from .probing import Nodes, Prober


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
    table = torch.full((2, len(orders), orders[-1]), torch.nan, dtype=torch.float64)
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
    zero = torch.zeros_like(lam)
    nodes = Nodes(
        sample, index // orders[-1], index, lam, weight, column(flow.norm(lam), u) * u, slope,
        zero, zero.clone(), zero.clone(), zero.clone(), torch.zeros_like(sample), zero.clone(),
        torch.zeros_like(u), zero.new_zeros(len(lam), colours(tuple(u.shape[1:]))[1] + 1),
    )  # fmt: skip
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


def change(nodes: Nodes, batch: int) -> tuple[Tensor, Tensor]:
    """int (d - tr dD/dx^) + defect dlambda from the data to the noise, float64 [B], and what the
    defect has added to log p."""
    d = nodes.x_hat[0].numel()
    rate = d - (nodes.a * d + nodes.b * nodes.form) + nodes.defect
    sums = torch.zeros(2, batch, dtype=torch.float64, device=rate.device)
    sums[0].index_add_(0, nodes.sample, nodes.weight * rate)
    sums[1].index_add_(0, nodes.sample, -nodes.weight * nodes.defect)
    return sums[0], sums[1]


def path_error(nodes: Nodes, path: DensePath, bound: Tensor, variance: Tensor, most: int) -> Tensor:
    """Estimate of what the quadrature contributes, nats, [B] >= 0: over the steps, the sum of the
    largest of `bound` (from `lay`) and of what the nodes beside the step say of two rates.

    Polynomials of degree > 2m through the m nodes of a step and as many beside it integrate a rate
    over the step otherwise than the m alone, which are right up to 2m - 1: the difference is what
    these miss, as far as the rate is smooth across steps. The rates are |r|^2/s^^2, which no probe
    touches, and d - tr dD/dx^ itself, of which counts what is beyond three standard errors of the
    difference. variance: of the trace's estimate at each node, [R]; most: nodes a step at most.
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
    system = torch.where(used[:, None] & used[..., None], basis(nodes.lam[pick]).mT,
                         torch.eye(len(place), dtype=h.dtype, device=h.device))  # fmt: skip
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


def spend(
    prober: Prober, probes: float, max_probes: float, goal: Tensor | None, rounds: int = 6
) -> Tensor:
    """Pilot, plan, probe; with a goal (variance [B]) again until it is met. Variance left, [B]."""
    nodes, batch = prober.nodes, prober.flow.batch
    prober.visit(torch.arange(len(nodes.sample), device=nodes.sample.device), 1)
    count = torch.bincount(nodes.sample, minlength=batch).double()
    budget = count * (probes if goal is None else max_probes)

    def left() -> Tensor:
        zero = torch.zeros(batch, dtype=torch.float64, device=nodes.lam.device)
        return zero.index_add_(0, nodes.sample, prober.variance())

    for _ in range(1 if goal is None else rounds):
        aim = None
        if goal is not None:  # a sample that has arrived spends no more; others aim a bit below
            budget = torch.where(left() <= goal, 0.0, budget)
            aim = 0.7 * goal
        if not prober.grow(prober.plan(budget, aim)):
            break
    return left()


def chunk_rows(batch: int, d: int) -> int:
    """How many nodes to evaluate at once: as many as the caller's batch, or 2^18 numbers."""
    return max(batch, math.ceil((1 << 18) / d), 1)
