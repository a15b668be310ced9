"""The latent of a datum and back: the probability flow as a bijection between data and noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser
from .. import arguments
from ..adaptive.ode import integrate
from ..adaptive.pairs import PAIRS
from ..flow import ScaledFlow
from ..outcome import raise_if_failed


def encode(
    model: Denoiser,
    x: Tensor,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    *,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
    max_steps: int = 1000,
) -> Tensor:
    """The latent of x: the probability flow from data to noise, [B, *event] at t_max.

        dx/dt = f x - 1/2 g^2 s(x, t)                               (Song et al. 2021, 13)

    model: a `Denoiser`.
    x: data [B, *event], float32 or float64.
    solver: 'bosh3', 'dopri5', 'tsit5' or 'dopri8'.
    rtol, atol: tolerances of a step in scaled coordinates, from what x's dtype can hold (1e-7 in
        float32, 1e-13 in float64) to 1.
    cond: keyword arguments of the network; rows follow their samples.
    t_min: where the data enter, as of `log_prob`.
    max_steps: attempted steps of a sample at most, >= 1.

    Each sample has its own steps, so a latent does not depend on its batch. `decode` undoes it up
    to the tolerance, `Reversible` up to rounding. Raises ValueError or TypeError for what does not
    fit, before any network call, and SolverError where a sample fails.
    """
    rtol, atol = _checked(model, x, "x", rtol, atol, max_steps)
    name = arguments.lookup("solver", solver, PAIRS).name
    flow = ScaledFlow(model, len(x), cond, t_min, x.dtype)
    run = integrate(
        flow.field,
        flow.enter(x),
        flow.lam_data,
        flow.lam_noise,
        solver=name,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
    )
    raise_if_failed(run.status, run, "raise")
    with torch.no_grad():
        return flow.latent(run.x)


def decode(
    model: Denoiser,
    z: Tensor,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    *,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
    max_steps: int = 1000,
) -> Tensor:
    """The data of a latent: the probability flow from noise to data, [B, *event] at t_min.

    z: latents [B, *event] at t_max, float32 or float64. The other arguments, and what is raised,
    are those of `encode`.
    """
    rtol, atol = _checked(model, z, "z", rtol, atol, max_steps)
    name = arguments.lookup("solver", solver, PAIRS).name
    flow = ScaledFlow(model, len(z), cond, t_min, z.dtype)
    with torch.no_grad():
        u = flow.from_latent(z)
    run = integrate(
        flow.field,
        u,
        flow.lam_noise,
        flow.lam_data,
        solver=name,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
    )
    raise_if_failed(run.status, run, "raise")
    return flow.leave(run.x)


def interpolate(
    model: Denoiser,
    a: Tensor,
    b: Tensor,
    weights: Sequence[float] | Tensor = (0.0, 0.25, 0.5, 0.75, 1.0),
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    **options: Any,
) -> Tensor:
    """Data between a and b, by `slerp` between their latents: [len(weights), B, *event].

        path = interpolate(model, x[:1], x[1:2], [0, 0.25, 0.5, 0.75, 1])[:, 0]    # from x_0 to x_1

    a, b: data of one shape [B, *event].
    weights: where between them, numbers in [0, 1]: a at 0, b at 1.
    solver, rtol, atol, options: as of `encode` (options: cond, t_min, max_steps).

    Raises what `encode` raises.
    """
    arguments.keywords("interpolate", options, ("cond", "t_min", "max_steps"))
    _checked(model, a, "a", rtol, atol)
    _checked(model, b, "b", rtol, atol)
    if a.shape != b.shape:
        raise InvalidValue(f"b must have a's shape {tuple(a.shape)}; got {tuple(b.shape)}")
    shares = [arguments.finite(f"weights[{i}]", w) for i, w in enumerate(weights)]
    if not shares or not all(0 <= w <= 1 for w in shares):
        raise InvalidValue(f"weights must be numbers in [0, 1], at least one; got {shares}")
    z_a, z_b = (encode(model, v, solver, rtol, atol, **options) for v in (a, b))
    mixed = [slerp(z_a, z_b, w) for w in shares]
    return torch.stack([decode(model, z, solver, rtol, atol, **options) for z in mixed])


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """[sin((1-w) angle) a + sin(w angle) b]/sin(angle), the angle being that of a and b.

    Shoemake 1985. Between Gaussian latents it keeps their norm, which their mean does not.

    a, b: [B, ...], each sample with an angle of its own.
    weight: w, 0 at a and 1 at b.
    """
    flat_a, flat_b = a.double().flatten(1), b.double().flatten(1)
    dot = (flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1)).clamp(min=1e-300)
    angle = torch.arccos(dot.clamp(-1, 1))
    sine = angle.sin()
    straight = sine < 1e-6  # parallel: the limit, a chord
    over = torch.where(straight, 1.0, sine)
    first = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / over)
    last = torch.where(straight, weight, (weight * angle).sin() / over)
    wide = (-1, *(1,) * (a.ndim - 1))
    return first.to(a.dtype).reshape(wide) * a + last.to(a.dtype).reshape(wide) * b


def _checked(
    model: Denoiser, x: Tensor, name: str, rtol: float, atol: float, max_steps: int = 1
) -> tuple[float, float]:
    arguments.data(model, x, name)
    arguments.whole("max_steps", max_steps)
    return arguments.tolerance("rtol", rtol, x.dtype), arguments.tolerance("atol", atol, x.dtype)
