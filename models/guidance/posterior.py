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
iterations suffice; the others are not. On a mixture none of them has the weights of the modes,
since x_0 | x_t is no Gaussian there; where log p(y | x_t) is known, `classifier` guidance by it has
(tests/models/test_known_posteriors.py measures all of them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels.checks import check_dense
from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.shapes import column
from ..denoiser import Combination, Denoiser
from ..readout import convert
from .rule import data_and_vjp, finite

Operator = Callable[[Tensor], Tensor]
METHODS = ("dps", "pigdm", "tmpd", "mmps")


class Measured(Combination):
    """See `posterior`."""

    held = ("y",)

    def __init__(
        self,
        model: Denoiser,
        y: Tensor,
        operator: Operator,
        adjoint: Operator | None,
        noise: float,
        method: str,
        data_variance: float,
        iterations: int,
    ) -> None:
        super().__init__(model, predicts="data")
        self.y, self.operator, self.adjoint, self.noise = y, operator, adjoint, noise
        self.method, self.data_variance, self.iterations = method, data_variance, iterations
        self.tried = False  # whether the operator's gradient was compared with its differences

    @property
    def title(self) -> str:
        return f"posterior({self.method}, noise={self.noise:g}, iterations={self.iterations})"

    def evaluate(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor:
        model, x, y, at = self.models[0], x_in, self.y, self.time(x_in, t_in, t)
        d, vjp = data_and_vjp(model, x, at, cond, self.t_in(model, t_in))
        tweedie = column(convert(model.process, at, "score", "data").scale, x)  # sigma^2/alpha
        if not self.tried:
            _try(self.operator, self.adjoint, d, y)
            self.tried = True
        measured, tangent, transpose = _linearised(self.operator, self.adjoint, d)
        covariance = _covariance(self.method, model, at, x, tweedie, vjp, self.data_variance)

        def system(u: Tensor) -> Tensor:
            if covariance is None:
                return self.noise**2 * u
            return self.noise**2 * u + tangent(covariance(transpose(u)))

        u = conjugate_gradients(system, y.to(d) - measured, self.iterations)
        return d + tweedie * vjp(transpose(u))


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
    method: 'mmps', 'pigdm', 'tmpd' or 'dps'.
    data_variance: c of 'pigdm'.
    iterations: of conjugate gradients; the size of y is exact. 'mmps' takes one more gradient of
        the network for each, the others one in all. Its J is symmetric for an exact D and only
        nearly for a network (digits: off by 0.47 of its norm at sigma/alpha = 1), which many
        iterations amplify: for networks one to three.

    Raises TypeError or ValueError for bad settings, and at the first call where A's output has not
    y's shape or A passes no gradient (or the adjoint is not A's), which would guide nothing.
    """
    if method not in METHODS:
        raise InvalidValue(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    for name, value in (("operator", operator), ("adjoint", adjoint)):
        if not callable(value) and not (name == "adjoint" and value is None):
            raise InvalidType(f"{name} must be callable on batches; got {value!r}")
    _numbers("y", y)
    if not finite("noise", noise) > 0:
        raise InvalidValue(f"noise must be > 0, the measurement's standard deviation; got {noise}")
    finite("data_variance", data_variance, 0)
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise InvalidType(f"iterations must be a whole number; got {iterations!r}")
    if iterations < 1:
        raise InvalidValue(f"iterations must be >= 1; got {iterations}")
    return Measured(
        model, y, operator, adjoint, noise, method, data_variance, iterations
    ).denoiser()


class Inpainted(Combination):
    """See `inpaint`."""

    held = ("known", "mask")
    title = "inpaint"

    def __init__(self, model: Denoiser, known: Tensor, mask: Tensor) -> None:
        super().__init__(model, predicts="data")
        self.known, self.mask = known, mask

    def evaluate(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor:
        model, at = self.models[0], self.time(x_in, t_in, t)
        if self.known.shape[1:] != x_in.shape[1:]:
            raise InvalidValue(
                f"known and mask are of events {tuple(self.known.shape[1:])}; the samples are "
                f"{tuple(x_in.shape[1:])}"
            )
        d = model.read("data", x_in, at, cond, self.t_in(model, t_in))
        return torch.where(self.mask.to(x_in.device).bool(), self.known.to(d), d)


def inpaint(model: Denoiser, known: Tensor, mask: Tensor) -> Denoiser:
    """Imputation: D replaced by `known` where mask is 1 (Song et al. 2021, I.2).

    With D fixed there, the known part of x_t travels as alpha known + sigma eps, with the noise
    it started from (ODE) or fresh noise (SDE), and the network completes what it sees. Going back
    up in noise, as solvers.Restart does, makes it RePaint (Lugmayr et al. 2022).
    The rest is not drawn from the exact conditional, not even on Gaussian data: `posterior` with a
    mask as operator is closer.

    known: [B, ...] or [1, ...], finite where mask is 1.
    mask: of values 0 and 1 and as many dimensions as `known`, against which it broadcasts; or of
        one event's shape.

    Raises TypeError or ValueError where they do not fit each other.
    """
    for name, value in (("known", known), ("mask", mask)):
        check_dense(name, value, floating=False, numbers=True)
    if mask.ndim != known.ndim and mask.shape != known.shape[1:]:
        raise InvalidValue(
            f"mask must have the dimensions of known {tuple(known.shape)}, or its event's shape; "
            f"got {tuple(mask.shape)}: add the missing axes, e.g. mask[:, None]"
        )
    try:
        shape = torch.broadcast_shapes(known.shape, mask.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise InvalidValue(
            f"mask must broadcast against known {tuple(known.shape)}; got {tuple(mask.shape)}"
        ) from None
    if shape[1:] != known.shape[1:] and known.shape[1:].numel() != 1:
        raise InvalidValue(
            f"mask must not be larger than known's events {tuple(known.shape[1:])}; "
            f"got {tuple(mask.shape)}"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidValue("mask must hold 0 (unknown) and 1 (known) only")
    known, mask = known.expand(shape), mask.expand(shape)
    if not bool((torch.isfinite(known) | (mask == 0)).all()):
        raise InvalidValue("known must be finite where mask is 1")
    return Inpainted(model, known, mask).denoiser()


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


def _try(operator: Operator, adjoint: Operator | None, d: Tensor, y: Tensor) -> None:
    """Compare |u|^2, u = A' v by differences, with v . A'^T u, once: they must be the same number.

    An operator under no_grad, detached in part, or rounded passes another gradient than its
    values'.
    """
    value = operator(d)
    if not isinstance(value, Tensor) or value.shape[1:] != y.shape[1:]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidValue(f"operator must map D to y's shape {tuple(y.shape)}; got {got}")
    point = d.detach()
    v = torch.cos(
        1.618 * torch.arange(point.numel(), device=d.device) ** 2 % 6.2832
    )  # no structure
    v = v.to(point).reshape(point.shape)
    step = 1e-2 * (point.square().mean().sqrt() + 1)
    with torch.no_grad():
        slope = (operator(point + step * v) - operator(point - step * v)) / (2 * step)
    # where the values do not change at all, the gradient must be 0 whatever it is applied to
    flat = slope.flatten(1).abs().sum(1) == 0
    u = torch.where(column(flat, slope), torch.ones_like(slope), slope).detach()
    pulled = _linearised(operator, adjoint, point)[2](u).detach()
    ours, theirs = (v * pulled).flatten(1).sum(1), slope.square().flatten(1).sum(1)
    if not bool(((ours - theirs).abs() <= 0.1 * theirs.mean()).all()):
        name = "operator's gradient" if adjoint is None else "adjoint"
        raise InvalidValue(
            f"the {name} does not belong to the values of operator: by differences |A v|^2 is "
            f"{float(theirs[0]):g}, by transposition {float(ours[0]):g}; drop no_grad, detach and "
            "rounding from the operator, or hand in its transpose as adjoint"
        )


def _numbers(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim < 1:
        raise InvalidType(f"{name} must be a tensor [B, ...] or [1, ...]; got {value!r:.60}")
    check_dense(name, value, floating=False, numbers=True)
    if not bool(torch.isfinite(value).all()):
        raise InvalidValue(f"{name} must be finite")
