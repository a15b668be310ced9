"""Posterior denoisers: samples of p(x_0 | y) from a denoiser of p(x_0), y = A x_0 + noise.

The score of p(x_t | y) is that of p(x_t) plus grad log p(y | x_t). Taking x_0 | x_t as
N(D(x_t), V), y | x_t is N(A D, S + A V A^T) with S = noise^2 I, and with J = dD/dx and
D' = D + (sigma^2/alpha) grad log p(y | x_t), whose V is not differentiated,

    D' = D + (sigma^2/alpha) J^T A^T (S + A V A^T)^{-1} (y - A D).

    'dps'     V = 0                                             Chung et al. 2023, 16
    'pigdm'   V = r^2 I, r^2 = c sigma^2/(alpha^2 c + sigma^2)    Song et al. 2023, 7
    'tmpd'    V = (sigma^2/alpha) diag(J^T 1)                   Boys et al. 2023, 10
    'mmps'    V = (sigma^2/alpha) J^T, the exact covariance     Rozet et al. 2024, 9

The system is solved by conjugate gradients. On Gaussian data 'mmps' is the posterior, once the
iterations suffice; the others are not. On a mixture none of them has the weights of the modes, since
x_0 | x_t is no Gaussian there; where log p(y | x_t) is known, `classifier` guidance by it has
(tests/models/test_known_posteriors.py measures all of them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.shapes import column
from ..denoiser import Denoiser
from ..readout import convert
from .rule import apply_rule, data_and_vjp

Operator = Callable[[Tensor], Tensor]
METHODS = ("dps", "pigdm", "tmpd", "mmps")


def posterior(
    model: Denoiser,
    y: Tensor,
    operator: Operator,
    noise: float,
    *,
    method: str = "mmps",
    adjoint: Operator | None = None,
    data_variance: float = 1.0,
    iterations: int = 2,
) -> Denoiser:
    """The denoiser of p(x_0 | y), y = A x_0 + noise * N(0, I); see the module's first lines.

    y: [B, ...], or one measurement [1, ...] for the whole batch.
    operator, adjoint: A and its transpose on batches of any size, the same for every sample;
        without `adjoint`, A is differentiated, which also takes an A that is not linear (linearised
        at D).
    noise: standard deviation of the measurement's noise, > 0.
    method: 'mmps', 'pigdm', 'tmpd' or 'dps'. data_variance: c of 'pigdm'.
    iterations: of conjugate gradients; the size of y is exact. 'mmps' takes one more gradient of
        the network for each, the others one in all. Its J is symmetric for an exact D and only
        nearly for a network (digits: off by 0.47 of its norm at sigma/alpha = 1), which many
        iterations amplify: for networks one to three.

    Raises ValueError for values outside, and at the call where A's output has not y's shape.
    """
    if method not in METHODS:
        raise InvalidValue(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if not noise > 0:
        raise InvalidValue(f"noise must be > 0, the measurement's standard deviation; got {noise}")
    if iterations < 1:
        raise InvalidValue(f"iterations must be >= 1; got {iterations}")

    def rule(x: Tensor, t: Tensor, cond: dict[str, Any], y: Tensor) -> Tensor:
        d, vjp = data_and_vjp(model, x, t, cond)
        tweedie = column(convert(model.process, t, "score", "data").scale, x)  # sigma^2/alpha
        measured, tangent, transpose = _linearised(operator, adjoint, d)
        if measured.shape[1:] != y.shape[1:] or len(y) not in (1, len(x)):
            raise InvalidValue(
                f"operator must map D to y's shape {tuple(y.shape)}; got {tuple(measured.shape)}"
            )
        covariance = _covariance(method, model, t, x, tweedie, vjp, data_variance)

        def system(u: Tensor) -> Tensor:
            if covariance is None:
                return noise**2 * u
            return noise**2 * u + tangent(covariance(transpose(u)))

        u = conjugate_gradients(system, y.to(d) - measured, iterations)
        return d + tweedie * vjp(transpose(u))

    title = f"posterior({method}, noise={noise:g}, iterations={iterations})"
    return apply_rule(model, title, rule, "data", rows={"y": y})


def inpaint(model: Denoiser, known: Tensor, mask: Tensor) -> Denoiser:
    """Imputation: D replaced by `known` where mask is 1 (Song et al. 2021, I.2).

    With D fixed there, the known part of x_t travels as alpha known + sigma eps, with the noise
    it started from (ODE) or fresh noise (SDE), and the network completes what it sees. Going back
    up in noise, as solvers.Restart does, makes it RePaint (Lugmayr et al. 2022).
    The rest is not drawn from the exact conditional, not even on Gaussian data: `posterior` with a
    mask as operator is closer.

    known: [B, ...] or [1, ...]; mask: of values 0 and 1, broadcasts against it.
    Raises ValueError where they do not fit each other.
    """
    try:
        shape = torch.broadcast_shapes(known.shape, mask.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise InvalidValue(
            f"mask must broadcast against known {tuple(known.shape)}; got {tuple(mask.shape)}"
        ) from None
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidValue("mask must hold 0 (unknown) and 1 (known) only")
    known, mask = known.expand(shape), mask.expand(shape)

    def rule(x: Tensor, t: Tensor, cond: dict[str, Any], known: Tensor, mask: Tensor) -> Tensor:
        d = model(x, t, **cond)
        return torch.where(mask.to(x.device).bool(), known.to(d), d)

    return apply_rule(model, "inpaint", rule, "data", rows={"known": known, "mask": mask})


def conjugate_gradients(system: Operator, b: Tensor, iterations: int) -> Tensor:
    """u with system(u) = b, for each sample of b [B, ...] alone; no value is read on the host."""
    u = torch.zeros_like(b)
    r = p = b
    rr = _dot(r, r)
    for _ in range(iterations):
        q = system(p)
        step = _ratio(rr, _dot(p, q))
        u = u + step * p
        r = r - step * q
        rr, before = _dot(r, r), rr
        p = r + _ratio(rr, before) * p
    return u


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, [B, 1, ...]."""
    return column((a * b).flatten(1).sum(1), a)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a/b, and 0 where b is not positive: converged, or no longer a direction of descent."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


def _covariance(
    method: str,
    model: Denoiser,
    t: Tensor,
    x: Tensor,
    tweedie: Tensor,
    vjp: Operator,
    data_variance: float,
) -> Operator | None:
    """v -> V v."""
    if method == "dps":
        return None
    if method == "mmps":
        return lambda v: tweedie * vjp(v)
    if method == "tmpd":
        diagonal = tweedie * vjp(torch.ones_like(x))
        return lambda v: diagonal * v
    signal, noise = model.process.alpha(t).square(), model.process.sigma(t).square()
    r2 = column(data_variance * noise / (signal * data_variance + noise), x)
    return lambda v: r2 * v


def _linearised(
    operator: Operator, adjoint: Operator | None, d: Tensor
) -> tuple[Tensor, Operator, Operator]:
    """A(d), v -> (dA/dx) v and u -> (dA/dx)^T u, where an adjoint says that A is linear."""
    if adjoint is not None:
        return operator(d), operator, adjoint
    value, vjp = torch.func.vjp(operator, d)  # type: ignore[misc]

    def transpose(u: Tensor) -> Tensor:
        out: Tensor = vjp(u)[0]
        return out

    # the transpose is linear in u, so its own transpose is the tangent map, at any u
    _, twice = torch.func.vjp(transpose, torch.zeros_like(value))  # type: ignore[misc]

    def tangent(v: Tensor) -> Tensor:
        out: Tensor = twice(v)[0]
        return out

    return value, tangent, transpose
