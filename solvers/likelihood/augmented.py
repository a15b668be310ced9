"""The classic likelihood: x and the integral of the divergence in one ODE, probes held along it.

    native       u(lambda) of flow.py by adaptive/ode.py, each sample at its own steps; of a network
                 that predicts velocities x(t) itself, see `InTime`
    torchdiffeq  x(t) with the whole batch in one error norm, as other code has it: an oracle

A probe v held along the path gives v^T M v with M = int J dlambda, of variance 2 |offdiag M|_F^2
for Rademacher signs. All its terms c_i = v_i (M^T v)_i = M_ii + n_i are integrated, as many numbers
as x has for each probe, since E sum n_i^2 = |offdiag M|_F^2 tells the error (see `_spread`):

    K >= 2    sum_i of the variance of c_i over the probes, without bias
    K = 1     (|c|^2 - (sum c)^2/d) / (1 - 2/d), from above by how unequal the M_ii are

(M is symmetric for an exact score; the n_i of another give its error from above.) With one probe
and an M of low rank c is small where the error is large, so that two standard errors hold less than
95 %. For Gaussian probes the diagonal counts too: K >= 2 takes the spread of the K estimates.

A step that errs by e_u in u and e_L in L = int d - tr dD/dx^ moves log p by s . e_u - e_L, with the
gradient s of log p in u, which is the network's score where that is exact: of no trained network.
`path_error` is the sum of |s . e_u| + |e_L| over the steps, with the network's score and the pair's
own error estimates: of scores times `BENT`, and where s is no density's, guided or of velocities,
times 1 + RUGGED of the share of rejected steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import MissingPackage
from ...kernels.runge_kutta import rms
from ...kernels.shapes import column
from ...models import jacobian as traces
from ...models.processes.standard import TabledVP
from ...models.readout import convert
from ..adaptive.ode import integrate
from ..flow import ScaledFlow
from ..outcome import Status
from .options import Chosen
from .result import LogProb

BENT = 3.0
"""Trained networks' rates bend within a step, where a pair's two rows see the same stages and so
agree. Chosen on a network in the plane and one in 13 components."""


def run(flow: ScaledFlow, x: Tensor, how: Chosen, seed: int | Tensor, ids: Tensor) -> LogProb:
    """log p of x by one ODE; how: resolved."""
    v = None
    if how.trace != "exact":
        kind = "rademacher" if how.trace == "hutchinson" else how.trace
        v = traces.probes(kind, int(how.probes), x, seed, ids)
    rtol, atol = how.rtol, how.atol
    solver, gaussian = how.solver, how.trace == "gaussian"
    if how.backend == "native":
        found = native(flow, x, v, solver, rtol, atol, how.max_steps, gaussian)
    else:
        found = by_torchdiffeq(flow, x, v, solver, rtol, atol, gaussian)
        flow.forwards = found.forwards
    unknown = torch.full_like(found.value, torch.nan)
    return LogProb(
        log_prob=found.value,
        std_error=found.std_error,
        path_error=found.path_error,
        defect=unknown,
        latent=found.latent,
        status=found.status,
        nfe=found.forwards,
        products=found.products,
        rejected=found.rejected,
        t_min=flow.t_min,
        blur=flow.blur,
    )


RUGGED = 25.0
"""Times the share of rejected steps, by which the pair's own error estimates are too small: they
hold for rates that are smooth over a step, of which next to none are rejected. Chosen on velocity
networks of rectifiers and of ELU, 12 and 10 components, whose rates jump or bend."""


class Augmented(NamedTuple):
    """What one ODE of x and log p found.

    latent: x at t_max.
    value: log p(x), [B] float64.
    std_error: [B], of the probes.
    path_error: [B], estimate of the solver's own error of log p, nats; nan if torchdiffeq's.
    forwards, products: [B], network evaluations and Jacobian products.
    rejected: [B], rejected steps.
    status: int64 [B], codes of `Status`.
    """

    latent: Tensor
    value: Tensor
    std_error: Tensor
    path_error: Tensor
    forwards: Tensor
    products: Tensor
    rejected: Tensor
    status: Tensor


def native(
    flow: ScaledFlow,
    x: Tensor,
    v: Tensor | None,
    method: str,
    rtol: float,
    atol: float,
    max_steps: int,
    gaussian: bool = False,
) -> Augmented:
    """By adaptive/ode.py. v: probes [K, *x.shape], or None for exact traces.

    gaussian: v are normal, not Rademacher. rtol, atol hold for the state; log p has
    the absolute tolerance atol * d in nats.
    """
    batch, d = len(x), x[0].numel()
    count, parts = (1, 1) if v is None else (len(v), d)  # each probe keeps its components
    width, own = count * parts, in_own_time(flow)
    course, no_score = InTime(flow) if own else InLambda(flow), own or flow.guided

    def rhs(place: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            asked = course.ask(place, y[:, :d].reshape(-1, *x.shape[1:]), rows)
            if v is None:
                terms = traces.exact(asked.out, asked.x)[:, None]
            else:
                mine = v[:, rows]
                terms = (mine * traces.products(asked.out, asked.x, mine)).flatten(2)
                terms = terms.movedim(0, 1).flatten(1)
        # sums to the rate of log p over the parts of a probe
        rate = column(asked.fixed / parts, terms) - column(asked.weight, terms) * terms
        return torch.cat([asked.slope.flatten(1), rate], 1)

    def norm(e: Tensor) -> Tensor:
        form = e[:, d:].double().reshape(-1, count, parts).sum(2)
        return torch.maximum(rms(e[:, :d]), form.abs().amax(1) / (atol * d))

    def audit(place: Tensor, y: Tensor, slope: Tensor, e: Tensor) -> Tensor:
        grad = course.score(place, y[:, :d], slope[:, :d])
        moved, missed = (grad * e[:, :d]).sum(1), e[:, d:].double().sum(1) / count
        both = moved.abs() + missed.abs()
        return both if no_score else BENT * both

    y0 = torch.cat([course.enter(x).flatten(1), x.new_zeros(batch, width)], 1)
    relative, absolute = torch.zeros(2, d + width, dtype=x.dtype, device=x.device)
    relative[:d], absolute[:d], absolute[d:] = rtol, atol, 1.0
    s = integrate(
        rhs,
        y0,
        *course.span,
        solver=method,
        rtol=relative,
        atol=absolute,
        norm=norm,
        max_steps=max_steps,
        audit=audit,
    )
    z = course.leave(s.x[:, :d].reshape(x.shape))
    sums = -s.x[:, d:].double().reshape(batch, count, parts).movedim(1, 0)
    forms, error = _spread(sums, v, gaussian)
    products = s.nfe * (d if v is None else count)
    value = course.prior(z) + forms
    told = s.audited
    if no_score:
        told = told * (1 + RUGGED * s.rejected / (s.accepted + s.rejected).clamp(min=1))
    return Augmented(z, value, error, told, flow.forwards, products, s.rejected, s.status)


class Asked(NamedTuple):
    """A network's answer on the way, n samples.

    x, out: what it was asked at, a leaf of the graph, and its output.
    slope: of the state.
    fixed, weight: float64 [n]; log p falls as fixed - weight tr d(out)/dx.
    """

    x: Tensor
    out: Tensor
    slope: Tensor
    fixed: Tensor
    weight: Tensor


class InLambda:
    """The state is u, the course lambda; see flow.py."""

    def __init__(self, flow: ScaledFlow) -> None:
        self.flow, self.span = flow, (flow.lam_data, flow.lam_noise)
        self.enter, self.leave, self.score = flow.enter, flow.latent, flow.score
        self.prior = flow.prior

    def ask(self, lam: Tensor, u: Tensor, rows: Tensor) -> Asked:
        """The network at u."""
        at = self.flow.at(lam)
        x_hat = (column(at.norm, u) * u).detach().requires_grad_()
        out = self.flow.output(x_hat, at, rows)
        held = x_hat.detach()
        slope = at.velocity(held, at.residual(held, out.detach()))
        return Asked(x_hat, out, slope, (1 - at.a) * u[0].numel(), at.b)


class InTime:
    """The state is x/s with the data's scale s, the course t: the network's output is its slope.

    A velocity network is smooth in t, while lambda stretches both of its ends; and no end is cut
    off where alpha is 0, so that log p is that of the network's flow from t_min to t_max to the
    tolerance, whether or not it is the flow of a density.
    """

    def __init__(self, flow: ScaledFlow) -> None:
        process = flow.model.process
        self.flow, self.scale, self.span = flow, flow.scale, (flow.t_min, process.t_max)
        self.alpha = float(process.alpha(flow.t_min))

    def enter(self, x: Tensor) -> Tensor:
        """The state of data x."""
        return x * (self.alpha / self.scale)

    def leave(self, y: Tensor) -> Tensor:
        """x at t_max."""
        return y * self.scale

    def ask(self, t: Tensor, y: Tensor, rows: Tensor) -> Asked:
        """The network at y."""
        x = (y * self.scale).detach().requires_grad_()
        out = self.flow.told(x, t, rows)
        one = torch.ones_like(t)
        return Asked(x, out, out.detach() / self.scale, 0 * one, one)

    def score(self, t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """Gradient of log p in y, float64."""
        model = self.flow.model
        skip, scale = convert(model.process, t, "flow", "score", model.sigma_data)
        return self.scale**2 * (column(skip, y.double()) * y + column(scale, y.double()) * slope)

    def prior(self, z: Tensor) -> Tensor:
        """log density of x/alpha at t_min were the flow none, [B]."""
        return self.flow.model.process.prior.log_prob(z) + z[0].numel() * math.log(self.alpha)


SWIFTEST = 4.0
"""Of alpha and sigma, in one span of t: straight and circular paths have 1 and pi/2, while sigma of
a VP process with linear beta starts as sqrt(t)."""


def in_own_time(flow: ScaledFlow) -> bool:
    """Whether a network predicts the velocity of a process that is smooth in t; a table of betas
    has a kink at each entry, of which lambda knows nothing."""
    model, process = flow.model, flow.model.process
    tabled = isinstance(process, TabledVP)
    if model.predicts != "flow" or model.clip is not None or tabled:
        return False
    span = process.t_max - flow.t_min
    t = flow.t_min + span * torch.linspace(0.0, 1.0, 9, dtype=torch.float64, device="cpu")
    rates = torch.stack([process.alpha_dot(t), process.sigma_dot(t)]).abs() * span
    return float(rates.max()) <= SWIFTEST


def by_torchdiffeq(
    flow: ScaledFlow,
    x: Tensor,
    v: Tensor | None,
    method: str,
    rtol: float,
    atol: float,
    gaussian: bool = False,
) -> Augmented:
    """By torchdiffeq in t: one step size and one error norm for the whole batch."""
    try:
        from torchdiffeq import odeint
    except ImportError as missing:
        raise MissingPackage(
            "backend='torchdiffeq' needs torchdiffeq: pip install 'undiffuse[integrators]', or "
            "leave backend out"
        ) from missing

    model, process = flow.model, flow.model.process
    batch, d = len(x), x[0].numel()
    alpha = float(process.alpha(flow.t_min))
    calls = refused = 0

    def velocity(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = t.double().clamp(flow.t_min, process.t_max)  # torchdiffeq steps past the end
        if model.clip is None:
            return *model.coefficients("flow", t), model.raw(x, t)
        return *convert(process, t, "data", "flow", model.sigma_data), model(x, t)

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

    def refuse(*_: object) -> None:
        nonlocal refused
        refused += 1

    rhs.callback_reject_step = refuse  # type: ignore[attr-defined]
    width = (1, batch, 1) if v is None else (len(v), batch, d)
    span = torch.tensor([flow.t_min, process.t_max], dtype=torch.float64, device=x.device)
    with torch.no_grad():
        xs, sums = odeint(
            rhs, (alpha * x, x.new_zeros(width)), span, rtol=rtol, atol=atol, method=method
        )
    forms, error = _spread(sums[-1].double(), v, gaussian)
    fine = torch.isfinite(xs[-1]).flatten(1).all(1) & torch.isfinite(forms)
    status = torch.where(fine, int(Status.OK), int(Status.NETWORK_NOT_FINITE))
    forwards, rejected = (torch.full_like(status, n) for n in (calls, refused))
    # log density of x^ = x/alpha, as everywhere; the prior's share is that of x
    value = process.prior.log_prob(xs[-1]) + forms + d * math.log(alpha)
    count = d if v is None else len(v)
    cost = forwards, forwards * count, rejected
    return Augmented(xs[-1], value, error, torch.full_like(error, torch.nan), *cost, status)


def _spread(sums: Tensor, v: Tensor | None, gaussian: bool) -> tuple[Tensor, Tensor]:
    """Mean over probes of the estimates, and its standard error, from c [K, B, d] ([1, B, 1] for
    exact traces). One Gaussian probe: from above, by up to 1.7. K = 1 needs d > 2."""
    forms = sums.sum(-1)
    if v is None:
        return forms[0], torch.zeros_like(forms[0])
    count, d = len(v), sums.shape[-1]
    if count == 1:
        excess = sums[0].square().sum(-1) - forms[0].square() / d
        return forms[0], (2 * excess.clamp(min=0) / (1 - 2 / d)).sqrt()
    if gaussian:
        return forms.mean(0), forms.std(0) / math.sqrt(count)
    return forms.mean(0), (2 * sums.var(0).sum(-1) / count).sqrt()
