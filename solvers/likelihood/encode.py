"""The latent of a datum and back: the probability flow as a bijection between data and noise."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser
from ..adaptive.ode import integrate
from ..adaptive.pairs import PAIRS
from ..flow import ScaledFlow
from ..outcome import MEANING, SolverError, Status
from ..tables.grids import lookup

KINDS = {"float32": "float", "float64": "double"}  # what x may be, and how to cast to it


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
    """The latent of x [B, *event] at t_max, unique to x: the probability flow from data to noise.

    Each sample has its own steps: a latent does not depend on its batch. `decode` undoes it up to
    the tolerance; `Reversible` (reversible.py) is a fixed grid that is undone to rounding.
    Raises ValueError or TypeError for bad input, SolverError where a sample fails.
    """
    check(model, x, rtol, atol, "raise")
    flow, name = ScaledFlow(model, len(x), cond, t_min), lookup("solver", solver, PAIRS).name
    with naming_dtypes(model, x):
        run = integrate(
            flow.field, flow.enter(x), flow.lam_data, flow.lam_noise, method=name, rtol=rtol,
            atol=atol, max_steps=max_steps,
        )  # fmt: skip
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
    """The data of a latent z [B, *event] at t_max: the probability flow from noise to data.

    Raises ValueError or TypeError for bad input, SolverError where a sample fails.
    """
    check(model, z, rtol, atol, "raise")
    flow, name = ScaledFlow(model, len(z), cond, t_min), lookup("solver", solver, PAIRS).name
    with naming_dtypes(model, z):
        with torch.no_grad():
            u = flow.from_latent(z)
        run = integrate(
            flow.field, u, flow.lam_noise, flow.lam_data, method=name, rtol=rtol, atol=atol,
            max_steps=max_steps,
        )  # fmt: skip
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
    """Data between a and b [B, *event], [len(weights), B, *event]: a at weight 0 and b at 1.

        path = interpolate(model, x[:1], x[1:2], [0, 0.25, 0.5, 0.75, 1])[:, 0]    # from x_0 to x_1

    Their latents are joined by `slerp` and decoded. options: as of `encode` (cond, t_min,
    max_steps). Raises what `encode` raises, ValueError for a and b of different shapes or no weight.
    """
    if a.shape != b.shape:
        raise InvalidValue(f"b must have a's shape {tuple(a.shape)}; got {tuple(b.shape)}")
    if len(weights) == 0:
        raise InvalidValue("weights must hold at least one number; got none")
    z_a, z_b = (encode(model, v, solver, rtol, atol, **options) for v in (a, b))
    mixed = [slerp(z_a, z_b, float(w)) for w in weights]
    return torch.stack([decode(model, z, solver, rtol, atol, **options) for z in mixed])


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """[sin((1-w) angle) a + sin(w angle) b]/sin(angle), the angle between a and b of each sample
    (Shoemake 1985): between Gaussian latents it keeps their norm, which their mean does not.
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


def check(model: Denoiser, x: Tensor, rtol: float, atol: float, on_failure: str) -> None:
    """Raises TypeError or ValueError for arguments that no integration could start from."""
    if not isinstance(model, Denoiser):
        raise InvalidType(f"model must be a Denoiser; got {type(model).__name__}")
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        hint = ""
        if isinstance(x, Tensor) and not x.is_floating_point():
            hint = ": integers have no density, choose a dequantisation in solvers.bits_per_dim"
        raise InvalidType(f"x must be a float32 or float64 tensor [B, ...]; got {kind}{hint}")
    if x.ndim < 2 or x.numel() == 0:
        raise InvalidValue(f"x must be [B, ...] with B >= 1; got {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
        raise InvalidValue(f"x must be finite; samples {bad[:8]} hold NaN or Inf")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(value) and value > 0):
            raise InvalidValue(f"{name} must be finite and > 0; got {value}")
    if on_failure not in ("raise", "return"):
        raise InvalidValue(f"on_failure must be 'raise' or 'return'; got {on_failure!r}")


@contextmanager
def naming_dtypes(model: Denoiser, x: Tensor) -> Iterator[None]:
    """Says whose dtypes disagree, as a TypeError, where torch only says that some do.

    Known only at the call: a network may cast its input itself.
    """
    try:
        yield
    except RuntimeError as error:
        net = model.net
        weights = list(net.parameters()) if isinstance(net, nn.Module) else []
        found = {p.dtype for p in weights if p.is_floating_point()} - {x.dtype}
        if not found or not re.search(r"dtype|scalar type|[Ii]nput type", str(error)):
            raise
        have = " and ".join(sorted(map(str, found)))
        cast = min(map(str, found)).removeprefix("torch.")
        remedy = f"hand in x.{KINDS[cast]}() or cast" if cast in KINDS else "cast"
        raise InvalidType(
            f"x is {x.dtype} but the network's parameters are {have}: {remedy} the network, "
            f"net.{KINDS[str(x.dtype).removeprefix('torch.')]}()"
        ) from error


def raise_if_failed(status: Tensor, result: Any, on_failure: str) -> None:
    """Raises SolverError, naming the first failed samples, unless on_failure is 'return'."""
    failed = (status != Status.OK).nonzero().flatten().tolist()
    if failed and on_failure == "raise":
        code = Status(int(status[failed[0]]))
        shown = ", ".join(map(str, failed[:8])) + (", ..." if len(failed) > 8 else "")
        raise SolverError(
            f"{MEANING[code]} for sample {shown}; {len(failed)} of {len(status)} failed in all",
            status,
            result,
        )
