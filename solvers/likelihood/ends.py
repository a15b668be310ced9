"""What the two ends of the path leave out of log p: the noise at t_min, and the prior at t_max.

Both are told by the network at one point, from its residual r = D - x^ and its Jacobian there.

    truncation   log p_0 - log p_b at the data, b = sigma/alpha at t_min. By the heat equation
                 d p/d(b^2) = laplacian(p)/2; with e_i the eigenvalues of -b^2 grad s
                     sum_i [-1/2 log(1 - e_i) - 1/2 (r_i/b)^2/(1 - e_i)],
                 right to first order in b^2, and exact where the data are Gaussian about x
    prior_gap    log p_T - log N(0, s^2) at the latent x, with D there for what the data still are.
                 score + x/s^2 = D/s^2, so that along the ray from 0 it changes by
                     int_0^1 x . D(u x) du/s^2
                 and the Gaussian with K = dD/dx^ and mean (I - K)^-1 D(0) has, at 0,
                     1/2 log det(I - K) - 1/2 D(0) . (I - K)^-1 D(0)/s^2.
                 Where s is no larger than the data's scales D(0) is also taken as the tangent at x
                 has it, D - K x^: the two err to opposite sides, so that their mean counts

What cannot be told is not corrected for. What is then left is bounded by facts of any law: a score
is no longer than its divergence explains, and log p_T/N(0, s^2) at 0 is log E exp(-|x_0|^2/2s^2),
between -E |x_0|^2/2s^2 (Jensen) and 0.

tr f(E) of a matrix that is too large to be written down is a Gauss quadrature by a few Lanczos
steps from random probes (Ubaru, Chen and Saad 2017); its largest node also tells whether some
direction is tighter than the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from numpy.polynomial import legendre
from torch import Tensor

from ...kernels import rademacher
from ...kernels.shapes import column
from ...kernels.streams import ENDS
from ...models import jacobian as traces
from .. import arguments
from ..flow import ScaledFlow
from .options import SMALL
from .path_errors import LUCK

FULL = 256
"""Components up to which an exact trace takes the whole matrix at the ends: one more node."""
TIGHTEST = 0.75  # of an e_i that few Lanczos steps may tell; the whole matrix is told by rounding
LANCZOS = 3  # steps: exact for polynomials of degree 5 in E
MOST_PROBES = 32
NEAR = 20.0
"""sigma/alpha at t_max, in scales of the data, below which five nodes are on the ray from 0, and
none beyond: what D moves along it falls as its inverse square."""

NARROW = 1e-6  # 1 - k below which a variance at t_max is float32's rounding
UNSURE = 0.5  # of the value at 0 where p_T has no Gaussian's curvature there
LOUDEST = 3.0
"""D moves from 0 to a latent by C x^/s^2, of length at most sqrt(d) scale^2/s for data of one
direction alone, times a normal: so many times that is no law's."""
SLIGHT = 1e-4  # nats a component that nobody asks about


class End(NamedTuple):
    """What an end is worth, its error, and what is left of log p where it is not corrected for,
    nats float64 [B]; whether it can be told, and whether the data are tighter than the noise at
    t_min, or not hidden by that at t_max, bool [B]; products with the Jacobian, int64 [B]."""

    worth: Tensor
    error: Tensor
    left: Tensor
    told: Tensor
    shown: Tensor
    products: Tensor


def truncation(
    flow: ScaledFlow, x: Tensor, seed: int | Tensor, ids: Tensor, exact: bool, allowed: Tensor
) -> End:
    """log p_0(x) - log p_b(x).

    exact: take the whole Jacobian where d <= FULL; it is always taken where d <= 8.
    allowed: float64 [B], the error to reach by more probes, nats.
    """
    lam = x.new_full((len(x),), flow.lam_data, dtype=torch.float64)
    point = _Point(flow, x, lam, seed, ids)
    blur, r = flow.blur, point.residual
    if _whole(x, exact):
        e, q = point.eigen(lambda v, w: v - w)
        square = (q.mT @ r[..., None])[..., 0].square()
        left, least = 1 - e, torch.finfo(x.dtype).eps ** 0.5
        tight = ~(left > least).all(1)
        size = e.square().sum(1)
        usual = e.sum(1).abs() + LUCK * (2 * size).sqrt()
        ray, log_det = (square / left).sum(1), left.clamp(min=least).log().sum(1)
        noise = torch.zeros_like(ray)
        turned = r - (q @ (e * (q.mT @ r[..., None])[..., 0])[..., None])[..., 0]
    else:
        one, share, image = _lanczos(lambda v: point.times(v, lambda v, w: v - w), r)
        turned = r - image
        ray = r.square().sum(1) * (share / (1 - one).clamp(min=1e-3)).sum(1)
        log_det, noise, most, length = point.log_det(lambda v, w: v - w, 2 * allowed)
        tight = ~((most < TIGHTEST) & (one.amax(1) < TIGHTEST))
        usual = length * (1 + LUCK * (2 / x[0].numel()) ** 0.5)
    worth = -0.5 * (log_det + ray / blur**2)
    # a Gaussian about x has the residual (I - E) r at x + r
    there = point.at(x + r.reshape(x.shape).to(x.dtype))
    bent = 0.5 * (r * (there - turned)).sum(1).abs() / blur**2
    # of clean normal data ray/b^2 has the mean tr E: what no divergence explains is no density's
    excess = 0.5 * (ray / blur**2 - usual).clamp(min=0)
    told = ~tight & _small(torch.hypot(bent, excess), worth, r)
    error = torch.hypot(0.5 * noise, torch.hypot(bent, excess))
    return End(worth, error, 0.5 * (log_det.abs() + usual), told, tight, point.products)


def prior_gap(
    flow: ScaledFlow,
    z: Tensor,
    at_data: Tensor,
    seed: int | Tensor,
    ids: Tensor,
    exact: bool,
    allowed: Tensor,
) -> End:
    """log p_T - log N(0, sigma^2) at the latents z.

    Nothing is left out where the process ends in pure noise. at_data: the data, for their scale;
    exact, allowed: as above.
    """
    zero = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    if flow.ends_pure:
        return End(zero, zero, zero, zero == 0, zero != 0, zero.long())
    lam = torch.full_like(zero, flow.lam_noise)
    x = flow.at_noise(z)
    s2 = math.exp(-2 * flow.lam_noise)
    point = _Point(flow, x, lam, seed, ids, MOST_PROBES)
    flat, data = x.double().flatten(1), point.residual + x.double().flatten(1)
    near = s2 < (NEAR * flow.scale) ** 2
    start = point.at(torch.zeros_like(x))
    ray = 0.5 * (flat * (start + data)).sum(1) / s2  # the chord, right where D is linear
    bent = 0.5 * (flat * (data - start)).sum(1).abs() / s2  # all that it says of the slope
    if near:
        place, weight = legendre.leggauss(5)
        inside = [point.at((c := 0.5 + 0.5 * z) * x) + c * flat for z in place.tolist()]
        along = [(flat * v).sum(1) / s2 for v in inside]
        chord = ray
        ray = sum((0.5 * w * v for w, v in zip(weight.tolist(), along, strict=True)), 0 * ray)
        bent = (ray - chord).abs()  # 0 of a Gaussian, whose value at 0 is taken
    if _whole(x, exact or near):
        k, q = point.eigen(lambda v, w: w)
        at_zero, fine = _normaliser(k, q, start, s2)
        noise = torch.zeros_like(at_zero)
        if near:
            tangent = data - (q @ (k * (q.mT @ flat[..., None])[..., 0])[..., None])[..., 0]
            other, _ = _normaliser(k, q, tangent, s2)
            at_zero, noise = 0.5 * (at_zero + other), 0.5 * (at_zero - other).abs()
            # a Gaussian has the same K at 0
            origin = _Point(flow, torch.zeros_like(x), lam, seed, ids)
            other, same = _normaliser(*origin.eigen(lambda v, w: w), start, s2)
            apart = torch.where(same, at_zero - other, UNSURE * at_zero)
            noise = noise.maximum(apart.abs())
            point.products += origin.products
    else:
        # K is small, of order (scale/s)^2: the mean is D(0) but for its share in it
        log_det, noise, most, _ = point.log_det(lambda v, w: w, 2 * allowed, 1)
        at_zero, noise = 0.5 * (log_det - start.square().sum(1) / s2), 0.5 * noise
        fine = (most < TIGHTEST) & (not near)
    worth, d = ray + at_zero, flat.shape[1]
    # a network that must find D in its output times sigma/alpha finds what no data would make
    size = torch.maximum(at_data.double().flatten(1).square().mean(1), zero + flow.scale**2)
    moved = (data - start).square().mean(1).sqrt()
    real = moved <= LOUDEST * size * (d / s2) ** 0.5
    most = LOUDEST * flat.norm(dim=1) * size.sqrt() / s2
    usual = flat.norm(dim=1) * (size / d).sqrt() / s2
    left = torch.where(real, ray.abs().minimum(most), usual).maximum(0.5 * d * size / s2)
    doubt = torch.hypot(bent, noise) if near else bent
    told = fine & real & _small(doubt, left if near else worth, flat)
    shown = s2 < NEAR**2 * size
    return End(worth, torch.hypot(noise, bent), left, told, shown, point.products)


def _normaliser(k: Tensor, q: Tensor, start: Tensor, s2: float) -> tuple[Tensor, Tensor]:
    """log p_T - log N(0, s^2) at 0 of the Gaussian with K = q k q^T and D(0) = start, nats, and
    whether rounding leaves it half of its digits."""
    left = 1 - k
    part = (q.mT @ start[..., None])[..., 0]
    return 0.5 * (left.log() - part.square() / (s2 * left)).sum(1), (left > NARROW).all(1)


def _small(error: Tensor, worth: Tensor, x: Tensor) -> Tensor:
    """Whether a correction is worth making, of x [B, d]: a fact of the point, not of the run."""
    near = error <= 0.5 * worth.abs() + SLIGHT * x.shape[1]
    return near & torch.isfinite(worth) & torch.isfinite(error)


def _whole(x: Tensor, exact: bool) -> bool:
    return x[0].numel() <= (FULL if exact else SMALL)


class _Point:
    """The network at x^ of all samples: its residual, float64 [B, d], and products with dD/dx^."""

    def __init__(
        self,
        flow: ScaledFlow,
        x: Tensor,
        lam: Tensor,
        seed: int | Tensor,
        ids: Tensor,
        draw: int = 0,
        rows: Tensor | None = None,
    ) -> None:
        self.draw = draw
        self.flow, self.lam, self.seed, self.ids = flow, lam, seed, ids
        self.rows = torch.arange(len(x), device=x.device) if rows is None else rows
        self.level = flow.at(lam)
        self.x = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            self.out = flow.output(self.x, self.level, self.rows)
        self.residual = self._residual(x, self.out.detach())
        self.products = torch.zeros_like(self.rows)

    def _residual(self, x: Tensor, out: Tensor) -> Tensor:
        return self.level.residual(x, out).double().flatten(1)

    def at(self, x: Tensor) -> Tensor:
        """r at other points, float64 [B, d]."""
        with torch.no_grad():
            return self._residual(x, self.flow.output(x, self.level, self.rows))

    def times(self, v: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """of(v, (dD/dx^)^T v) for v [B, d], float64."""
        given = v.reshape(self.x.shape).to(self.x.dtype)
        w = traces.products(self.out, self.x, given[None], keep=True)[0].double().flatten(1)
        self.products += 1
        return of(v, column(self.level.a, v) * v + column(self.level.b, v) * w)

    def eigen(self, of: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Eigenvalues and vectors of the symmetric part, float64 [B, d], [B, d, d]."""
        batch, d = len(self.x), self.x[0].numel()
        unit = torch.eye(d, dtype=torch.float64, device=self.x.device)
        rows = [self.times(unit[i].expand(batch, d), of) for i in range(d)]
        full = torch.stack(rows, 1)
        e, q = torch.linalg.eigh(torch.nan_to_num(0.5 * (full + full.mT)).cpu())
        return e.to(full.device), q.to(full.device)

    def log_det(
        self, of: Callable[[Tensor, Tensor], Tensor], allowed: Tensor, steps: int = LANCZOS
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """tr log(1 - E), its standard error, the largest node met, and an estimate from above of
        tr |E|, float64 [B], of the matrix E = of(1, dD/dx^).

        The first probe takes all orders in E by `steps` of Lanczos; the others, as many as bring a
        sample's standard error to `allowed` or MOST_PROBES, the first two, -v.Ev - |Ev|^2/2.
        """
        d = self.x[0].numel()
        v = self.signs(0)
        node, share, w = _lanczos(lambda u: self.times(u, of), v, steps)
        first = _two_orders(v, w)
        rest = d * (share * (1 - node).clamp(min=1e-3).log()).sum(1) - first
        # twice the off-diagonal square, from above by how unequal the E_ii are
        form, size = (v * w).sum(1), w.square().sum(1)
        spread = 2 * (size - form.square() / d).clamp(min=0) / (1 - 2 / max(d, 3))
        want = (spread / allowed.square().clamp(min=1e-300)).ceil().clamp(1, MOST_PROBES)
        total = first.clone()
        for k in range(1, int(want.max())):
            rows = (want > k).nonzero().flatten()
            part = self.part(rows)
            v = part.signs(k)
            total[rows] += _two_orders(v, part.times(v, of))
            self.products[rows] += part.products
        return rest + total / want, (spread / want).sqrt(), node.amax(1), (d * size).sqrt()

    def signs(self, k: int) -> Tensor:
        """Random signs [B, d], float64, of the point's k-th probe."""
        made = (ENDS.subdraw, torch.float64, self.x.device)
        return rademacher(self.x.shape, self.seed, self.ids, self.draw + k, *made).flatten(1)

    def part(self, rows: Tensor) -> _Point:
        """The same of these samples alone; their evaluation is counted by this one's flow."""
        seed = arguments.seeds_of(self.seed, self.rows[rows])
        some = (self.x.detach()[rows], self.lam[rows], seed, self.ids[rows], self.draw)
        return _Point(self.flow, *some, rows=self.rows[rows])


def _two_orders(v: Tensor, w: Tensor) -> Tensor:
    """-v.w - |w|^2/2: log(1 - E) between v to second order, for w = E v."""
    return -(v * w).sum(1) - 0.5 * w.square().sum(1)


def _lanczos(
    times: Callable[[Tensor], Tensor], v: Tensor, steps: int = LANCZOS
) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and shares [B, steps] of the Gauss quadrature v^T f(E) v = |v|^2 sum share f(node)
    for the symmetric part of E, and E v; v [B, d] float64, times(v) = E^T v."""
    size = v.norm(dim=1, keepdim=True)
    basis, images = [v / size.clamp(min=1e-300)], []
    for k in range(steps):
        w = times(basis[k])
        images.append(w)
        for _ in range(2):
            for q in basis:
                w = w - (q * w).sum(1, keepdim=True) * q
        length = w.norm(dim=1, keepdim=True)
        fresh = length > 1e-6 * images[0].norm(dim=1, keepdim=True)
        basis.append(torch.where(fresh, w / length.clamp(min=1e-300), 0.0))
    q, w = torch.stack(basis[:steps], 1), torch.stack(images, 1)
    small = (q[:, :, None] * w[:, None]).sum(3)  # @ rounds otherwise in other batches
    node, vector = torch.linalg.eigh(torch.nan_to_num(0.5 * (small + small.mT)).cpu())
    first = images[0] * size
    return node.to(v.device), vector[:, 0].square().to(v.device), first
