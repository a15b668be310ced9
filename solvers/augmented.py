"""The classic likelihood: x and the integral of the divergence in one ODE, probes held along it.

    native       u(lambda) of scaled_flow.py by adaptive_ode, each sample at its own steps
    torchdiffeq  x(t) with the whole batch in one error norm, as other code has it: an oracle

With one probe v held, the estimate is v^T M v with M = int J dlambda, and the product w = M^T v is
integrated too: E|w|^2 = |M|_F^2 gives its variance 2 (|M|_F^2 - sum M_ii^2), slightly from above,
as 2 (|w|^2 - (v.w)^2/d). With K >= 2 the spread of the K estimates does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.readout import convert
from . import trace as traces
from .adaptive_ode import integrate, rms
from .scaled_flow import ScaledFlow, column
from .status import Status


class Augmented(NamedTuple):
    """latent: x at t_max. change: log p(x) - log prior(latent), [B] float64. std_error: [B]."""

    latent: Tensor
    change: Tensor
    std_error: Tensor
    forwards: Tensor
    products: Tensor
    status: Tensor


def native(
    flow: ScaledFlow, x: Tensor, v: Tensor | None, method: str, rtol: float, atol: float,
    max_steps: int,
) -> Augmented:  # fmt: skip
    """By `adaptive_ode` in lambda. v: probes [K, *x.shape], or None for exact traces.

    rtol, atol hold for u; log p has the absolute tolerance atol * d in nats.
    """
    batch, d = len(x), x[0].numel()
    width = 1 if v is None else d if len(v) == 1 else len(v)  # one probe keeps its components

    def rhs(lam: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        u = y[:, :d].reshape(-1, *x.shape[1:])
        x_hat = (column(flow.norm(lam), u) * u).detach().requires_grad_()
        with torch.enable_grad():
            a, b, out = flow.readout(x_hat, lam, rows)
            if v is None:
                terms = traces.exact(out, x_hat)[:, None]
            else:
                mine = v[:, rows]
                terms = (mine * traces.products(out, x_hat, mine)).flatten(2)
                terms = terms[0] if len(v) == 1 else terms.sum(2).T
        held, free = x_hat.detach(), out.detach()
        residual = column(a - 1, held) * held + column(b, held) * free
        du = flow.velocity(held, lam, residual).flatten(1)
        share = d / width if width == d or v is None else d
        rate = column((1 - a) * share, terms) - column(b, terms) * terms  # sums to d - tr dD/dx^
        return torch.cat([du, rate], 1)

    def norm(e: Tensor) -> Tensor:
        tail = e[:, d:].double()
        form = tail.sum(1, keepdim=True) if width == d else tail
        return torch.maximum(rms(e[:, :d]), form.abs().amax(1) / (atol * d))

    y0 = torch.cat([flow.enter(x).flatten(1), x.new_zeros(batch, width)], 1)
    relative, absolute = torch.zeros(2, d + width, dtype=x.dtype, device=x.device)
    relative[:d], absolute[:d], absolute[d:] = rtol, atol, 1.0
    s = integrate(
        rhs, y0, flow.lam_data, flow.lam_noise, method=method, rtol=relative, atol=absolute,
        norm=norm, max_steps=max_steps,
    )  # fmt: skip
    z = flow.latent(s.x[:, :d].reshape(x.shape))
    sums = -s.x[:, d:].double()
    sums = sums.reshape(batch, 1, d).mT if width == d and v is not None else sums[:, None]
    forms, error = _spread(sums.movedim(2, 0), v, d)
    count = d if v is None else len(v)
    return Augmented(z, forms, error, flow.forwards, s.nfe * count, s.status)


def by_torchdiffeq(
    flow: ScaledFlow, x: Tensor, v: Tensor | None, method: str, rtol: float, atol: float
) -> Augmented:
    """By torchdiffeq in t: one step size and one error norm for the whole batch."""
    from torchdiffeq import odeint

    model, process = flow.model, flow.model.process
    batch, d = len(x), x[0].numel()
    alpha = float(process.alpha(flow.t_min))
    calls = 0

    def velocity(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = t.double().clamp(flow.t_min, process.t_max)  # torchdiffeq steps past the end
        if model.clip is None:
            return *model.coefficients("flow", t), model.raw(x, t, **flow.cond)
        return *convert(process, t, "data", "flow", model.sigma_data), model(x, t, **flow.cond)

    def rhs(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        x = state[0].detach().requires_grad_()
        with torch.enable_grad():
            skip, scale, out = velocity(t, x)
            if v is None:
                terms = traces.exact(out, x)[None, :, None] + 0 * state[1]
            else:
                terms = (v * traces.products(out, x, v)).flatten(2)
        held = x.detach()
        dx = skip.to(x.dtype) * held + scale.to(x.dtype) * out.detach()
        share = d if v is None else 1.0
        return dx, skip.to(x.dtype) * share + scale.to(x.dtype) * terms

    width = (1, batch, 1) if v is None else (len(v), batch, d)
    span = torch.tensor([flow.t_min, process.t_max], dtype=torch.float64, device=x.device)
    with torch.no_grad():
        xs, sums = odeint(
            rhs, (alpha * x, x.new_zeros(width)), span, rtol=rtol, atol=atol, method=method
        )
    forms, error = _spread(sums[-1].double(), v, d)
    forwards = torch.full((batch,), calls, dtype=torch.int64)
    fine = torch.isfinite(xs[-1]).flatten(1).all(1) & torch.isfinite(forms)
    status = torch.where(fine, int(Status.OK), int(Status.NETWORK_NOT_FINITE))
    # log density of x^ = x/alpha, as everywhere; the prior's share is that of x
    change = forms + d * math.log(alpha)
    count = d if v is None else len(v)
    return Augmented(xs[-1], change, error, forwards, forwards * count, status)


def _spread(sums: Tensor, v: Tensor | None, d: int) -> tuple[Tensor, Tensor]:
    """Mean and standard error over probes of sums [K, B, components or 1]."""
    forms = sums.sum(-1)
    if v is None:
        return forms[0], torch.zeros_like(forms[0])
    if len(v) > 1:
        return forms.mean(0), forms.std(0) / math.sqrt(len(v))
    excess = sums[0].square().sum(-1) - forms[0].square() / d
    return forms[0], (2 * excess.clamp(min=0)).sqrt()
