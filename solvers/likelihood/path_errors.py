"""What the path and its nodes add to the error of log p: estimates that cost no network call.

change        the deviation of the path from the flow, and what its correction may be wrong by
path_error    what the quadrature misses of a smooth rate
roughness     what it misses of a rate that jumps or oscillates, as trained networks' do
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from numpy.polynomial import legendre
from torch import Tensor

from ..adaptive.dense import DensePath
from .probing import Nodes

LUCK = 3.0  # deviations of |score|^2 that a datum of an exact score may lie above its mean
MISSES = 0.4, 0.9, 0.55
"""Of `Roughness.share`: below the first a rate counts as smooth, and from the second on Gauss nodes
miss the third times what interpolation does. Exact scores leave .1 to .7, smooth trained networks
.5 to .8, rectifiers and embeddings that oscillate .9 to 1."""
WRONG = 0.3, 1.6
BETWEEN = 0.75, 0.95
"""Of a score, what it may be wrong by beyond what `trusted` tells, where rates are smooth and where
they are rough; and the shares between which the one becomes the other. These and MISSES were chosen
on three networks in the plane and three in 13, 30 and 100 components, for their errors with the
exact trace to lie within one and two `total_error` about as often as a normal's. Three of the
networks of `undiffuse bench likelihood` are among them."""


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


def change(
    nodes: Nodes, batch: int, rough: Tensor, guided: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """int (d - tr dD/dx^) + defect dlambda from the data to the noise, what the defect has added to
    log p, and the standard error of that; float64 [B] each.

    Of each node's defect the share counts that its score is `trusted` with. What is left, of
    variance share (1 - share) + WRONG^2 in units of |s|^2, is taken to point anywhere, as far as
    a step goes the same way, and in each step another. A network whose rate is rough along the path
    is rough across it too, where the flow's density then changes by more than the score says.

    rough: share of roughness, [B], see `Roughness`.
    guided: the score is no density's, of which nothing is believed.
    """
    rate, share = trusted(nodes)
    share = 0 * share if guided else share
    defect = share * nodes.defect
    steps = int(nodes.step.max()) + 1
    sums = torch.zeros(2, batch, dtype=torch.float64, device=rate.device)
    sums[0].index_add_(0, nodes.sample, nodes.weight * (rate + defect))
    sums[1].index_add_(0, nodes.sample, -nodes.weight * defect)
    least = 1.0 if guided else WRONG[0]
    wrong = least + (WRONG[1] - least) * between(rough, *BETWEEN)[nodes.sample]
    left = (share * (1 - share) + wrong.square()).sqrt() * nodes.reach * nodes.weight.abs()
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


class Roughness(NamedTuple):
    """What a rate that no polynomial follows says of the errors, float64 [B] each.
    share: in [0, 1], the part of a rate's distance from a polynomial through 4 neighbours that is
        left with 8. It falls towards 0 where the rate is smooth.
    missed: what the nodes miss of the rate because of it, nats >= 0.
    """

    share: Tensor
    missed: Tensor


def roughness(nodes: Nodes, variance: Tensor, batch: int) -> Roughness:
    """How rough the rate is from node to node.

    Divergences of rectifiers jump, those of embeddings of whole times oscillate between them. A
    node's residual is its distance from the polynomial through its nearest 4 or 8 neighbours, each
    over the root of 1 + sum l^2, with Lagrange's weights l. Of a smooth rate it falls with their
    number, and Gauss nodes miss far less; of a rough one it does not, and is the node's own error.
    variance: of the rate by its probes, [R]; what counts is beyond three of their standard errors.
    """
    d = nodes.x_hat[0].numel()
    rate = d - (nodes.a * d + nodes.b * nodes.form)
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
    share = torch.where(count > 8, (more / few.clamp(min=1e-300)).clamp(max=1), 0.0)
    smooth, rough, most = MISSES
    return Roughness(share, most * between(share, smooth, rough) * more.minimum(few))


def between(v: Tensor, low: float, high: float) -> Tensor:
    """0 up to low, 1 from high on, linear between."""
    return ((v - low) / (high - low)).clamp(0, 1)
