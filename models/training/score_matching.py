"""Score matching without a process: losses for a score network s(x) of one density.

    explicit    1/2 ||s(x) - grad log p(x)||^2                      where the score is known
    implicit    1/2 ||s(x)||^2 + tr ds/dx                           Hyvarinen 2005, theorem 1
    sliced      1/2 (v . s)^2 + v^T (ds/dx) v,  E[v v^T] = I        Song et al. 2019, 8
    denoising   1/2 ||s(x + sigma eps) + eps/sigma||^2              Vincent 2011, 9

The first three have one expectation over x ~ p up to the constant 1/2 E||grad log p||^2, the
fourth has it for p convolved with N(0, sigma^2). All return one number for each sample, a sum
over the components; x is [B, *event], s maps it to its own shape and acts on samples one by one.
Over the levels of a process use `Objective` with predicts='score'.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue

Score = Callable[[Tensor], Tensor]


def explicit(score: Score, x: Tensor, target: Tensor) -> Tensor:
    """1/2 ||s(x) - target||^2 with the known score `target` of x's shape; [B]."""
    if target.shape != x.shape:
        raise InvalidValue(
            f"target must have x's shape {tuple(x.shape)}; got {tuple(target.shape)}"
        )
    return 0.5 * (score(x) - target).square().flatten(1).sum(1)


def denoising(score: Score, x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """1/2 ||s(x + sigma eps) + eps/sigma||^2 (Vincent 2011, 9); [B]. Raises unless sigma > 0."""
    if not sigma > 0:
        raise InvalidValue(f"sigma must be > 0; got {sigma}")
    eps = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return 0.5 * (score(x + sigma * eps) + eps / sigma).square().flatten(1).sum(1)


def implicit(
    score: Score, x: Tensor, generator: torch.Generator | None = None, probes: int = 0
) -> Tensor:
    """1/2 ||s||^2 + tr ds/dx (Hyvarinen 2005, 4); [B].

    probes: 0 for the exact trace, d gradients of s; K >= 1 for Hutchinson's estimate
    v^T (ds/dx) v with K Rademacher vectors from `generator`, which it then needs.
    """
    x, s = _evaluate(score, x)
    if probes == 0:
        trace = _exact_trace(s, x)
    else:
        vectors = _rademacher(x, probes, generator)
        trace = torch.stack([_quadratic(s, x, v) for v in vectors]).mean(0)
    return 0.5 * s.square().flatten(1).sum(1) + trace


def sliced(
    score: Score,
    x: Tensor,
    generator: torch.Generator,
    probes: int = 1,
    analytic: bool = True,
) -> Tensor:
    """1/2 (v . s)^2 + v^T (ds/dx) v, averaged over Rademacher v (Song et al. 2019, 8); [B].

    analytic: E_v (v . s)^2 = ||s||^2 taken in closed form, the variance-reduced loss (9); it is
    `implicit` with probes.
    """
    if analytic:
        return implicit(score, x, generator, max(1, probes))
    x, s = _evaluate(score, x)
    terms = [
        0.5 * (v * s).flatten(1).sum(1).square() + _quadratic(s, x, v)
        for v in _rademacher(x, probes, generator)
    ]
    return torch.stack(terms).mean(0)


def _evaluate(score: Score, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a leaf, and s(x) with its graph, also under no_grad: the loss itself needs it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return x, score(x)


def _quadratic(s: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v^T (ds/dx) v, [B], differentiable where gradients are on."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        dot = (s * v).sum()
    (jv,) = torch.autograd.grad(dot, x, retain_graph=True, create_graph=keep)
    return (jv * v).flatten(1).sum(1)


def _exact_trace(s: Tensor, x: Tensor) -> Tensor:
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, *x.shape[1:])
    return torch.stack([_quadratic(s, x, e.expand_as(x)) for e in basis]).sum(0)


def _rademacher(x: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """[count, *x.shape] of +-1."""
    if count < 1:
        raise InvalidValue(f"probes must be >= 1; got {count}")
    if generator is None:
        raise InvalidValue(
            "random probes need a generator; pass one, or probes=0 for the exact trace"
        )
    bits = torch.randint(2, (count, *x.shape), generator=generator, device=x.device)
    return (2 * bits - 1).to(x.dtype)
