"""Distances between samples and laws, each with an interval.

A distance between two finite sets is positive even when both are exact: quality.py gives each its
floor. Intervals are 95 %: the percentile bootstrap for means, the delete-a-group jackknife for
distances (resampling with replacement duplicates points, which biases a two-sample distance
upwards). Sets are [n, ...] tensors; components are flattened. All arithmetic is float64.

Features: `--features package.module:function` or `file.py:function` names a function without
arguments that returns a callable of samples [n, *event], in the range the model has them, with
values [n, k]. examples/mnist_lenet.py is a complete example; extractors.py has Inception-v3 and
vision networks of transformers by name. Without it the features are the components themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue, optional
from ...models.checkpoint import from_code
from ...solvers.intervals import Estimate, mean_interval

Z95 = 1.959964
"""Half width of a 95 % interval in standard errors."""
# --- intervals --------------------------------------------------------------------------------


def student(freedom: int) -> float:
    """Half width of a 95 % interval in standard errors that are themselves of freedom + 1 values.

    The series in 1/freedom (Abramowitz & Stegun 1964, 26.7.5) is good to 1e-3 from 5 on.
    """
    if freedom < 5:
        return (12.706, 4.303, 3.182, 2.776)[freedom - 1]
    z, v = Z95, float(freedom)
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return z + sum(terms)


def jackknife(distance: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> Estimate:
    """distance(x, y) with the interval of the delete-a-group jackknife over both sets, ten groups.
    Of the distance's value for such sets: what it is above that of the laws is not in it."""
    x, y = _flat(x), _flat(y)
    groups = min(10, len(x), len(y))
    value = distance(x, y)
    parts = torch.tensor(
        [distance(_without(x, g, groups), _without(y, g, groups)) for g in range(groups)]
    )
    spread = (groups - 1) / groups * (parts - parts.mean()).square().sum()
    half = student(groups - 1) * float(spread.sqrt())
    return Estimate(value, value - half, value + half)


# --- distances --------------------------------------------------------------------------------


def wasserstein_1d(x: Tensor, y: Tensor, p: int = 2) -> Tensor:
    """W_p^p between the columns of x [n, k] and y [m, k], exact, [k]; p is 1 or 2.

    The optimal coupling joins quantiles, so with both sides sorted the integral over (0, 1) is a
    finite sum over the union of the steps i/n and j/m. Raises ValueError for another p.
    """
    if p not in (1, 2):
        raise InvalidValue(f"p must be 1 or 2; got {p}")
    n, m = len(x), len(y)
    x, y = (v.double().T.contiguous().sort(1).values for v in (x, y))  # [k, n], [k, m]
    if n == m:
        return (x - y).abs().pow(p).mean(1)
    edges = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).sort().values
    widths = torch.diff(edges, prepend=edges.new_zeros(1)).double() / (n * m)
    right = edges - 1  # a point inside each step, in units of 1/(n m); repeated edges weigh 0
    return (x[:, right // m] - y[:, right // n]).abs().pow(p) @ widths


def sliced_wasserstein(
    x: Tensor, y: Tensor, p: int = 2, directions: int = 128, seed: int = 0
) -> float:
    """Sliced W_p: the p-th root of the mean of W_p^p over random unit directions.

    For a shift by s in d dimensions sliced W2 is |s|/sqrt(d): per component, like our other errors.
    """
    x, y = _flat(x), _flat(y)
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn(x.shape[1], directions, generator=g, dtype=torch.float64)
    theta = theta / theta.norm(dim=0)
    return math.pow(float(wasserstein_1d(x @ theta, y @ theta, p).mean()), 1 / p)


def assignment(x: Tensor, y: Tensor, p: int = 2) -> float:
    """W_p of two sets of points by the exact assignment; cubic in their number, sets are cut to
    the smaller one's. Needs SciPy."""
    words = "exact transport needs SciPy: pip install 'undiffuse[bench]'"
    linear_sum_assignment = optional("scipy.optimize", words).linear_sum_assignment
    n = min(len(x), len(y))
    cost = torch.cdist(_flat(x[:n]), _flat(y[:n])).pow(p)
    rows, columns = linear_sum_assignment(cost.numpy())
    return math.pow(float(cost[rows, columns].mean()), 1 / p)


def knn_log_density(points: Tensor, x: Tensor, k: int = 5, exclude_self: bool = False) -> Tensor:
    """log density at points [m, d] of the law that x [n, d] was drawn from, nats, [m].

    By the distance to the k-th neighbour, log q = psi(k) - log(n) - log V_d - d log r_k, which
    makes the mean of -log q an unbiased entropy to first order (Kozachenko & Leonenko 1987).
    exclude_self: points are x itself; then n - 1 others count.
    """
    points, x = _flat(points), _flat(x)
    n, d = len(x) - exclude_self, x.shape[1]
    near = torch.cdist(points, x).kthvalue(k + exclude_self, dim=1).values
    volume = 0.5 * d * math.log(math.pi) - math.lgamma(1 + d / 2)
    psi = float(torch.digamma(torch.tensor(float(k))))
    return psi - math.log(n) - volume - d * near.clamp(min=1e-300).log()


def jensen_shannon(x: Tensor, log_p_x: Tensor, y: Tensor, log_p_y: Tensor, k: int = 5) -> Estimate:
    """JS(q, p) in nats, within [0, log 2], of samples x [n, d] of q and exact ones y [m, d] of p.

    log_p_x [n], log_p_y [m]: the exact log density p; q's is its k-th neighbours'. That estimate of
    log q scatters by psi'(k), whose second-order effect on the (concave) integrand is taken off, so
    equal laws give 0 on average. The interval is the delete-a-group jackknife's.
    """
    scatter = float(torch.polygamma(1, torch.tensor(float(k))))

    def value(a: Tensor, b: Tensor) -> float:
        own, other = a[:, :-1], b[:, :-1]
        log_q = knn_log_density(own, own, k, exclude_self=True)
        u = torch.cat([log_q, knn_log_density(other, own, k)])
        u = u - torch.cat([a[:, -1], b[:, -1]])  # log q/p at samples of q, then of p
        sign = torch.cat([u.new_ones(len(a)), -u.new_ones(len(b))])
        slope = torch.sigmoid(u) * torch.sigmoid(-u)
        terms = math.log(2) + torch.nn.functional.logsigmoid(sign * u) + 0.5 * scatter * slope
        return float(terms[: len(a)].mean() + terms[len(a) :].mean()) / 2

    return jackknife(value, _with(x, log_p_x), _with(y, log_p_y))


def fisher_divergence(
    x: Tensor, score: Callable[[Tensor], Tensor], blur: float, seed: int = 0
) -> Estimate:
    """E_q |grad log q - grad log p|^2 a dimension, both laws blurred by N(0, blur^2 I); x [n, d].

    score(points [n, d]): grad log of the blurred p, exact. q's is that of the kernel estimate,
    which is the blurred sample's own; it is made twice, of either half of the sample and without
    the point itself, so that in the product of the two errors its scatter has mean 0. Jackknife
    interval.
    """
    x = _flat(x)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = x + blur * z

    def value(a: Tensor, _: Tensor) -> float:
        centres, at, exact = a.chunk(3, 1)
        near = -torch.cdist(at, centres).square() / (2 * blur**2)
        near.fill_diagonal_(-math.inf)
        gaps = []
        for half in range(2):
            share = near[:, half::2].softmax(1)
            gaps.append((share @ centres[half::2] - at) / blur**2 - exact)
        return float((gaps[0] * gaps[1]).mean())

    packed = torch.cat([x, points, score(points)], 1)
    return jackknife(value, packed, packed)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased, so it may fall below 0 for equal laws."""
    x, y = _flat(x), _flat(y)
    return (
        2 * float(torch.cdist(x, y).mean()) - _pairs(torch.cdist(x, x)) - _pairs(torch.cdist(y, y))
    )


def mmd2(x: Tensor, y: Tensor, bandwidths: tuple[float, ...] | None = None) -> float:
    """Squared maximum mean discrepancy, unbiased, kernel sum_s exp(-|x - y|^2 / (2 s^2)).

    bandwidths: s; by default 1/2, 1 and 2 times the median distance within y, the exact set.
    """
    x, y = _flat(x), _flat(y)
    xy, xx, yy = torch.cdist(x, y), torch.cdist(x, x), torch.cdist(y, y)
    if bandwidths is None:
        median = float(yy[yy > 0].median())
        bandwidths = (0.5 * median, median, 2 * median)
    total = 0.0
    for s in bandwidths:
        k = [torch.exp(-d.square() / (2 * s * s)) for d in (xy, xx, yy)]
        total += _pairs(k[1]) + _pairs(k[2]) - 2 * float(k[0].mean())
    return total


def log_density_gap(log_p: Tensor, exact_log_p: Tensor, dim: int) -> Estimate:
    """E log p under the samples less under exact ones, nats a dimension; 0 for a right sampler.

    log_p [n], exact_log_p [m]: the exact log density at either set. Above 0: the samples keep too
    close to the modes; below: they stray. Resolves what distances no longer do.
    """
    a, b = (mean_interval(v.double() / dim) for v in (log_p, exact_log_p))
    half = float(torch.tensor([a.hi - a.lo, b.hi - b.lo], dtype=torch.float64).norm()) / 2
    gap = a.value - b.value
    return Estimate(gap, gap - half, gap + half)


def per_sample_rmse(x: Tensor, reference: Tensor) -> Tensor:
    """Root mean square over the components of each sample's error, [B]."""
    return _flat(x - reference).square().mean(1).sqrt()


def _flat(x: Tensor) -> Tensor:
    return x.double().flatten(1)


def _with(x: Tensor, column: Tensor) -> Tensor:
    return torch.cat([_flat(x), column.double()[:, None]], 1)


def _without(x: Tensor, group: int, groups: int) -> Tensor:
    return x[torch.arange(len(x)) % groups != group]


def _pairs(matrix: Tensor) -> float:
    """Mean over pairs of different points."""
    n = len(matrix)
    return float((matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1)))


Features = Callable[[Tensor], Tensor]
FEATURE_BATCH = 256
"""Samples that a feature network is given at a time."""


def load_features(spec: str) -> Features:
    """The features that the named function returns; its code is run.

    Raises ValueError for another form of name, TypeError where it returns something else, and what
    the code raises.
    """
    made = from_code(spec)
    if made is None:
        raise InvalidValue(
            "features must be package.module:function or file.py:function, a function without "
            f"arguments that returns a callable [n, *event] -> [n, k]; got {spec!r}"
        )
    if not callable(made):
        raise InvalidType(f"{spec} must return a callable; got {type(made).__name__}")
    kept: Features = made
    return kept


def apply_features(features: Features | None, x: Tensor) -> Tensor:
    """Features of x [n, *event], float64 [n, k]; None is the components.

    Raises ValueError for values of another shape, or that are not finite.
    """
    if features is None:
        return x.double().flatten(1)
    with torch.no_grad():
        found = torch.cat(
            [features(part.float()).detach().cpu() for part in torch.split(x, FEATURE_BATCH)]
        )
    if found.ndim != 2 or len(found) != len(x) or not bool(torch.isfinite(found).all()):
        raise InvalidValue(
            f"features must return finite numbers [{len(x)}, k] for {len(x)} samples; got "
            f"{tuple(found.shape)}, {int((~torch.isfinite(found)).sum())} of them not finite"
        )
    return found.double()


def frechet(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), of features x [n, k] and y [m, k].

    Heusel et al. 2017, 6. The trace of the root is the sum of the singular values of R_x R_y^T with
    C = R^T R, so no root of a matrix is taken and rank-deficient covariances do no harm. Small sets
    are further apart than their laws: compare with the floor.
    """
    roots = []
    for v in (x, y):
        centred = (v - v.mean(0)) / (len(v) - 1) ** 0.5
        roots.append(torch.linalg.qr(centred, mode="r").R)
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(r.square().sum() for r in roots)
    return float((x.mean(0) - y.mean(0)).square().sum() + spread - 2 * overlap)


def kid(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of features [n, k], kernel (x.y/k + 1)^3 (Binkowski et al. 2018)."""
    k = x.shape[1]
    xx, yy, xy = ((a @ b.T / k + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = sum((m.sum() - m.diagonal().sum()) / (len(m) * (len(m) - 1)) for m in (xx, yy))
    return float(within - 2 * xy.mean())


# --- nearest neighbours of features -----------------------------------------------------------

ROWS = 1000
"""Rows of a matrix of distances at a time."""


class Neighbours(NamedTuple):
    """How samples and data lie among each other; each is a mean over points, with the interval of
    that mean, the balls held fixed."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def neighbours(x: Tensor, y: Tensor, k: int = 5) -> Neighbours:
    """Precision, recall, density and coverage of samples x [n, d] and data y [m, d].

    Each point has a ball, whose radius is the distance to its k-th neighbour in its own set.
    precision: share of samples in a ball of the data (Kynkaanniemi et al. 2019, 1).
    recall: share of the data in a ball of the samples (the same).
    density: in how many balls of the data a sample lies, over k; may exceed 1 (Naeem et al. 2020,
        3).
    coverage: share of the data whose ball holds a sample (the same).

    x, y: two points or more in each.
    k: 3 in Kynkaanniemi et al., 5 in Naeem et al.
    """
    x, y = _flat(x), _flat(y)
    around_x, around_y = _radii(x, k), _radii(y, k)
    inside, held = [], torch.zeros(len(y), dtype=torch.bool)
    near = torch.zeros(len(y), dtype=torch.bool)
    for part, radius in zip(torch.split(x, ROWS), torch.split(around_x, ROWS), strict=True):
        d = torch.cdist(part, y)
        inside.append((d <= around_y).sum(1))
        near |= (d <= around_y).any(0)
        held |= (d <= radius[:, None]).any(0)
    balls = torch.cat(inside).double()
    return Neighbours(
        *(mean_interval(v) for v in (balls > 0, held, balls / min(k, len(y) - 1), near))
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th neighbour, or the furthest there is."""
    if len(x) < 2:
        raise InvalidValue(f"neighbours need two points or more; got {len(x)}")
    place = min(k, len(x) - 1) + 1
    return torch.cat(
        [torch.cdist(part, x).kthvalue(place, 1).values for part in torch.split(x, ROWS)]
    )


def precision(x: Tensor, y: Tensor, k: int = 3) -> float:
    """Share of the samples x [n, d] that lie in a ball of the data y [m, d]."""
    return neighbours(x, y, k).precision.value


def recall(x: Tensor, y: Tensor, k: int = 3) -> float:
    """Share of the data y that lie in a ball of the samples x."""
    return neighbours(x, y, k).recall.value


def density(x: Tensor, y: Tensor, k: int = 5) -> float:
    """In how many balls of the data y a sample lies, over k."""
    return neighbours(x, y, k).density.value


def coverage(x: Tensor, y: Tensor, k: int = 5) -> float:
    """Share of the data y whose ball holds a sample."""
    return neighbours(x, y, k).coverage.value
