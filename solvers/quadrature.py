"""Path first, trace second: log p as an integral along a curve that need not be exact.

For ANY curve u(lambda) from the data to the prior, with v the flow's field and s = grad log p,

    d/dlambda log p(u(lambda), lambda) = -div v + s . (du/dlambda - v),

by the continuity equation. The flow is the curve where the last term, the defect, is 0; a cheap
curve with its defect in the integrand is as good to second order, since s is read off the same
network evaluation. So the path is a coarse adaptive run, and the integral is Gauss-Legendre on each
of its steps. Every node draws probes of its own: their errors average out, where one probe held
along the path has a single error that does not. Probes go where weight x standard deviation is
largest, in nested Walsh blocks of 1, 2, 4, ... (see trace.py), whose successive levels also tell
what variance is left. A full block is the exact trace: no variance, while `path_error` remains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .dense import DensePath
from .probing import Nodes, Prober
from .scaled_flow import ScaledFlow, column
from .trace import colours


def lay(flow: ScaledFlow, path: DensePath, points: int, fine: Tensor) -> Nodes:
    """Gauss-Legendre nodes on every step of the samples that are fine ([B] mask)."""
    z, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(points))
    start, h = path.start[..., None], path.h[..., None]
    lam = (start + h * (0.5 + 0.5 * z.to(h.device))).flatten(1)
    weight = (0.5 * h * w.to(h.device)).flatten(1)
    real = ~torch.isnan(lam) & fine[:, None]
    filled = torch.where(real, lam, torch.nanmean(lam))
    sample, index = real.nonzero(as_tuple=True)
    lam = lam[real]
    n = flow.norm(lam)
    u, slope = path(filled)[real], path.slope(filled)[real]
    zero = torch.zeros_like(lam)
    return Nodes(
        sample, index, lam, weight[real], column(n, u) * u, slope, zero, zero.clone(), zero.clone(),
        zero.clone(), torch.zeros_like(sample), zero.clone(), torch.zeros_like(u),
        zero.new_zeros(len(lam), colours(tuple(u.shape[1:]))[1] + 1),
    )  # fmt: skip


def change(nodes: Nodes, batch: int) -> tuple[Tensor, Tensor]:
    """int (d - tr dD/dx^) + defect dlambda from the data to the noise, float64 [B], and what the
    defect has added to log p."""
    d = nodes.x_hat[0].numel()
    rate = d - (nodes.a * d + nodes.b * nodes.form) + nodes.defect
    sums = torch.zeros(2, batch, dtype=torch.float64, device=rate.device)
    sums[0].index_add_(0, nodes.sample, nodes.weight * rate)
    sums[1].index_add_(0, nodes.sample, -nodes.weight * nodes.defect)
    return sums[0], sums[1]


def path_error(flow: ScaledFlow, path: DensePath, nodes: Nodes, points: int) -> Tensor:
    """Estimate of the quadrature's own error, nats, [B] >= 0.

    It is read off the part of the integrand that no probe has touched, |r|^2/s^^2 + defect (the
    first has the trace's mean and its smoothness). With the ends of a step, where r is known for
    nothing and the defect is 0, there are points + 2 values, hence Legendre coefficients up to
    c_{m+1}; the first that m Gauss nodes miss, c_{2m}, is what their decay leads to.
    """
    m = points
    z = np.concatenate([[-1.0], np.polynomial.legendre.leggauss(m)[0], [1.0]])
    basis = torch.from_numpy(np.linalg.inv(np.polynomial.legendre.legvander(z, m + 1)))
    known = ~torch.isnan(path.h)
    ends = torch.stack([path.start, path.start + path.h], 2)
    lam = torch.where(known[..., None], ends, flow.lam_data).flatten(1)
    n = flow.norm(lam)[..., None]
    u, slope = (v.flatten(2).double() for v in (path(lam), path.slope(lam)))
    r = n * slope - u * torch.exp(-2 * lam)[..., None] / n
    edge = (torch.exp(2 * lam) * r.square().sum(2)).reshape(*path.h.shape, 2)
    keep = torch.zeros_like(known)
    keep[nodes.sample, nodes.index // m] = True
    inner = edge.new_zeros(*path.h.shape, m)
    inner[keep] = (nodes.energy + nodes.defect).reshape(-1, m)
    values = torch.cat([edge[..., :1], inner, edge[..., 1:]], 2)
    c = (values @ basis.T.to(values)).abs()
    decay = (c[..., -1] / c[..., -3].clamp(min=1e-300)).clamp(max=1.0)
    missed = c[..., -1] * decay ** (0.5 * (m - 1)) * path.h.abs()
    return torch.where(keep, missed, 0.0).sum(1)


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


def as_ids(sample_ids: Tensor | Sequence[int] | None, batch: int) -> Tensor:
    """Global sample ids, int64 [B]; their places by default."""
    if sample_ids is None:
        return torch.arange(batch)
    ids = torch.as_tensor(sample_ids)
    if ids.dtype != torch.int64 or tuple(ids.shape) != (batch,):
        raise ValueError(f"sample_ids must be int64 [{batch}]; got {ids.dtype} {tuple(ids.shape)}")
    return ids


def chunk_rows(batch: int, d: int) -> int:
    """How many nodes to evaluate at once: as many as the caller's batch, or 2^18 numbers."""
    return max(batch, math.ceil((1 << 18) / d), 1)
