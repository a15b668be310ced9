"""Score matching without a process: losses for a score network s(x) of one density.

    explicit    1/2 ||s(x) - grad log p(x)||^2                      where the score is known
    implicit    1/2 ||s(x)||^2 + tr ds/dx                           Hyvarinen 2005, theorem 1
    sliced      1/2 (v . s)^2 + v^T (ds/dx) v,  E[v v^T] = I        Song et al. 2019, 8
    denoising   1/2 ||s(x + sigma eps) + eps/sigma||^2              Vincent 2011, 9

The first three have one expectation over x ~ p up to the constant 1/2 E||grad log p||^2, the
fourth has it for p convolved with N(0, sigma^2). All return one number for each sample, a sum
over the components; x is [B, *event], s maps it to its own shape and acts on samples one by one.
Noise is a pure function of (seed, sample id): a training loop counts `seed` up.
Over the levels of a process use `Objective` with predicts='score'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.checks import as_seed, whole
from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.streams import TRAINING
from .. import jacobian

Score = Callable[[Tensor], Tensor]
Ids = Tensor | Sequence[int] | None
MOST_PROBES = 1 << 20


def explicit(score: Score, x: Tensor, target: Tensor) -> Tensor:
    """1/2 ||s(x) - target||^2 with the known score `target` of x's shape; [B]."""
    _events(x)
    if not isinstance(target, Tensor) or target.shape != x.shape:
        got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise InvalidValue(f"target must have x's shape {tuple(x.shape)}; got {got}")
    return 0.5 * (_of(score, x) - target).square().flatten(1).sum(1)


def denoising(
    score: Score, x: Tensor, sigma: float, seed: int | Tensor = 0, *, sample_ids: Ids = None
) -> Tensor:
    """1/2 ||s(x + sigma eps) + eps/sigma||^2 (Vincent 2011, 9); [B].

    sigma: the noise's standard deviation, finite and > 0.
    seed, sample_ids: as in `implicit`.
    Raises TypeError or ValueError for others.
    """
    _events(x)
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)):
        raise InvalidType(f"sigma must be a number > 0; got {sigma!r}")
    if not 0 < sigma < float("inf"):
        raise InvalidValue(f"sigma must be > 0; got {sigma}")
    eps = normal(x.shape, seed, sample_ids, **TRAINING.at(), dtype=x.dtype, device=x.device)
    return 0.5 * (_of(score, x + sigma * eps) + eps / sigma).square().flatten(1).sum(1)


def implicit(
    score: Score,
    x: Tensor,
    seed: int | Tensor = 0,
    probes: int = 0,
    *,
    sample_ids: Ids = None,
) -> Tensor:
    """1/2 ||s||^2 + tr ds/dx (Hyvarinen 2005, 4); [B].

    probes: 0 for the exact trace, d gradients of s; K >= 1 for Hutchinson's estimate v^T (ds/dx) v
        with K Rademacher vectors.
    seed: of the vectors, an int or int64 [B].
    sample_ids: integers [B], whose vectors they are; by default 0 to B - 1.

    Raises TypeError or ValueError for others, and where s does not depend on x through autograd.
    """
    return terms(score, x, whole("probes", probes, 0, MOST_PROBES), seed, sample_ids).mean(0)


def sliced(
    score: Score,
    x: Tensor,
    seed: int | Tensor = 0,
    probes: int = 1,
    analytic: bool = True,
    *,
    sample_ids: Ids = None,
) -> Tensor:
    """1/2 (v . s)^2 + v^T (ds/dx) v, averaged over Rademacher v (Song et al. 2019, 8); [B].

    probes: how many v, >= 1.
    seed, sample_ids: as in `implicit`.
    analytic: E_v (v . s)^2 = ||s||^2 taken in closed form, the variance-reduced loss (9); it is
        `implicit` with probes.
    """
    probes = whole("probes", probes, 1, MOST_PROBES)
    return terms(score, x, probes, seed, sample_ids, sliced=not analytic).mean(0)


def terms(
    score: Score,
    x: Tensor,
    probes: int,
    seed: int | Tensor,
    sample_ids: Ids,
    *,
    sliced: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """1/2 ||s||^2 + v^T (ds/dx) v for every probe v, [K, B]; differentiable where gradients are on.

    score, x, seed, sample_ids: as in `implicit`.
    probes: K; 0 makes one row with the exact trace.
    sliced: 1/2 (v . s)^2 in the place of 1/2 ||s||^2.
    dtype: of the sums, by default x's.
    """
    _events(x)
    as_seed(seed, x.device)
    keep, dtype = torch.is_grad_enabled(), dtype or x.dtype
    with torch.enable_grad():  # the loss itself needs it
        leaf = x.detach().clone().requires_grad_()
        s = _of(score, leaf)
        if probes == 0:
            forms = jacobian.exact(s, leaf, create_graph=keep).to(dtype)[None]
        else:
            v = jacobian.probes("rademacher", probes, x, seed, sample_ids)
            w = jacobian.products(s, leaf, v, create_graph=keep)
            forms = (v * w).to(dtype).flatten(2).sum(2)
        if sliced:
            square = (v * s).to(dtype).flatten(2).sum(2).square()
        else:
            square = s.to(dtype).square().flatten(1).sum(1)
        found = forms + 0.5 * square
    return found if keep else found.detach()


def _of(score: Score, x: Tensor) -> Tensor:
    s = score(x)
    if not isinstance(s, Tensor) or s.shape != x.shape:
        got = tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__
        raise InvalidValue(f"score must return x's shape {tuple(x.shape)}; got {got}")
    return s


def _events(x: Any) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InvalidType(f"x must be a floating tensor [B, ...]; got {got}")
