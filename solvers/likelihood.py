"""log p of data under the probability flow, with error bars (Song et al. 2021, D.2).

Along the flow dx/dt = v(x, t) of `drift.probability_flow`

    log p_0(x_0) = log p_T(x_T) + int_0^T div v dt,        p_T = N(0, sigma(T)^2 I).

The data enter at t_min, where x_t = alpha x_0 up to noise of size sigma(t_min): what is returned is
log of the density of x_t/alpha, the data blurred by sigma/alpha at t_min.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import Denoiser
from ..models.readout import convert
from . import trace as traces
from .drift import start_time
from .grids import lookup
from .status import MEANING, SolverError, Status

TRACES = ("hutchinson", "gaussian", "exact")
BACKENDS = {"dopri5": "dopri5", "bosh3": "bosh3", "dopri8": "dopri8", "rk4": "rk4"}


@dataclass(frozen=True, eq=False)
class LogProb:
    """What `log_prob` found; tensors are [B].

    log_prob: nats, float64. bits_per_dim: -log_prob/(d ln 2) + offset. std_error: of log_prob, in
    nats, from the probes alone (0 for an exact trace). nfe: network evaluations. latent: x at
    t_max, [B, *event]. status: codes of `Status`, 0 = fine. t_min: where time was cut off; the
    density is that of data blurred by noise of standard deviation `blur` = sigma/alpha there.
    """

    log_prob: Tensor
    bits_per_dim: Tensor
    std_error: Tensor
    nfe: int | Tensor
    latent: Tensor
    status: Tensor
    t_min: float
    blur: float


def log_prob(
    model: Denoiser,
    x: Tensor,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trace: str = "hutchinson",
    probes: int = 1,
    seed: int | Tensor = 0,
    *,
    sample_ids: Tensor | Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
    offset: float = 0.0,
    on_failure: str = "raise",
) -> LogProb:
    """log p(x) for each sample of x [B, *event], float32 or float64, with its standard error.

    solver: 'dopri5', 'bosh3', 'dopri8' (adaptive, rtol and atol). trace: 'hutchinson' (Rademacher
    probes), 'gaussian', or 'exact' (d products an evaluation). probes: K, held along the path;
    the network is evaluated once for the drift and all K products. seed, sample_ids: a sample's
    probes depend on these alone. t_min: where time starts; 1e-5 for processes in closed form
    down to 0, else the model's own. offset: added to bits_per_dim (score_sde: 7 for 256 levels
    scaled to [-1, 1], 8 for [0, 1]). on_failure: 'raise' a SolverError, or 'return'.

    Raises ValueError or TypeError for what does not fit, before any network call.
    """
    _check(model, x, rtol, atol, on_failure)
    if trace not in TRACES:
        raise ValueError(f"trace must be one of {', '.join(TRACES)}; got {trace!r}")
    if probes < 1:
        raise ValueError(f"probes must be >= 1; got {probes}; use trace='exact' for none")
    method = lookup("solver", solver, BACKENDS)
    start = start_time(model, t_min)
    alpha = float(model.process.alpha(start))
    blur = float(model.process.sigma(start)) / alpha
    v = None
    if trace != "exact":
        kind = "rademacher" if trace == "hutchinson" else trace
        v = traces.probes(kind, probes, x, seed, sample_ids)
    field = _Augmented(model, start, cond, v)
    x_T, sums = field.integrate(alpha * x, method, rtol, atol)
    d = x[0].numel()
    change, error = field.reduce(sums, d)
    total = model.process.prior.log_prob(x_T) + change + d * math.log(alpha)
    status = _status(x_T, total)
    bits = -total / (d * math.log(2)) + offset
    result = LogProb(total, bits, error, field.nfe, x_T, status, start, blur)
    raise_if_failed(status, result, on_failure)
    return result


def encode(
    model: Denoiser,
    x: Tensor,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    *,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
) -> Tensor:
    """The latent of x [B, *event]: the probability flow from t_min to t_max; `decode` undoes it."""
    _check(model, x, rtol, atol, "raise")
    start = start_time(model, t_min)
    x_start = float(model.process.alpha(start)) * x
    method = lookup("solver", solver, BACKENDS)
    return _Augmented(model, start, cond).flow(
        x_start, start, model.process.t_max, method, rtol, atol
    )


def decode(
    model: Denoiser,
    z: Tensor,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    *,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
) -> Tensor:
    """The data of a latent z [B, *event]: the flow from t_max to t_min, divided by alpha there."""
    _check(model, z, rtol, atol, "raise")
    start = start_time(model, t_min)
    method = lookup("solver", solver, BACKENDS)
    x_start = _Augmented(model, start, cond).flow(
        z, model.process.t_max, start, method, rtol, atol
    )
    return x_start / float(model.process.alpha(start))


class _Augmented:
    """x and the integrals of div v together, one network evaluation a right-hand side."""

    def __init__(
        self, model: Denoiser, start: float, cond: dict[str, Any] | None, v: Tensor | None = None
    ) -> None:
        self.model, self.start, self.cond, self.v = model, start, dict(cond or {}), v
        self.nfe = 0

    def field(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(skip, scale, out) with velocity = skip x + scale out, scalars in float64."""
        self.nfe += 1
        model = self.model
        t = t.double().clamp(self.start, model.process.t_max)  # torchdiffeq steps past the end
        if model.clip is None:
            return *model.coefficients("flow", t), model.raw(x, t, **self.cond)
        affine = convert(model.process, t, "data", "flow", model.sigma_data)
        return *affine, model(x, t, **self.cond)

    def flow(
        self, x: Tensor, a: float, b: float, method: str, rtol: float, atol: float
    ) -> Tensor:
        def rhs(t: Tensor, x: Tensor) -> Tensor:
            skip, scale, out = self.field(t, x)
            return skip.to(x.dtype) * x + scale.to(x.dtype) * out

        with torch.no_grad():
            solved: Tensor = _odeint(rhs, x, a, b, method, rtol, atol)
        return solved

    def integrate(
        self, x: Tensor, method: str, rtol: float, atol: float
    ) -> tuple[Tensor, Tensor]:
        """x at t_max, and int scale * (v_i w_i) dt for each probe and component: [K, B, d]."""
        shape = (1, len(x)) if self.v is None else (len(self.v), len(x), x[0].numel())

        def rhs(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x = state[0].detach().requires_grad_()
            with torch.enable_grad():
                skip, scale, out = self.field(t, x)
                if self.v is None:
                    terms = traces.exact(out, x)[None]
                else:
                    terms = (self.v * traces.products(out, x, self.v)).flatten(2)
            dx = skip.to(x.dtype) * x.detach() + scale.to(x.dtype) * out.detach()
            # the exact part of the divergence, skip * d, is spread over the components
            per = float(x[0].numel()) if self.v is None else 1.0
            return dx, skip.to(x.dtype) * per + scale.to(x.dtype) * terms

        with torch.no_grad():
            first = (x, x.new_zeros(shape))
            b = self.model.process.t_max
            x_T, sums = _odeint(rhs, first, self.start, b, method, rtol, atol)
        return x_T, sums

    def reduce(self, sums: Tensor, d: int) -> tuple[Tensor, Tensor]:
        """Mean over the probes of int div v dt and its standard error, float64 [B].

        With one probe the spread is read off the product itself: w = M^T v with M = int J dt has
        E|w|^2 = |M|_F^2, so the variance 2 (|M|_F^2 - sum M_ii^2) is estimated, slightly from
        above, by 2 (|w|^2 - (v.w)^2/d).
        """
        sums = sums.double()
        if self.v is None:
            return sums[0], torch.zeros_like(sums[0])
        forms = sums.sum(-1)
        k = len(forms)
        if k > 1:
            return forms.mean(0), forms.std(0) / math.sqrt(k)
        excess = sums.square().sum(-1) - forms.square() / d
        return forms[0], (2 * excess[0].clamp(min=0)).sqrt()


def _odeint(
    rhs: Callable[..., Any], state: Any, a: float, b: float, method: str, rtol: float, atol: float
) -> Any:
    from torchdiffeq import odeint

    first = state[0] if isinstance(state, tuple) else state
    t = torch.tensor([a, b], dtype=torch.float64, device=first.device)
    solved = odeint(rhs, state, t, rtol=rtol, atol=atol, method=method)
    return tuple(s[-1] for s in solved) if isinstance(solved, tuple) else solved[-1]


def _check(model: Denoiser, x: Tensor, rtol: float, atol: float, on_failure: str) -> None:
    if not isinstance(model, Denoiser):
        raise TypeError(f"model must be a Denoiser; got {type(model).__name__}")
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a float32 or float64 tensor [B, ...]; got {kind}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x must be [B, ...] with B >= 1; got {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"x must be finite; samples {bad[:8]} hold NaN or Inf")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and > 0; got {value}")
    if on_failure not in ("raise", "return"):
        raise ValueError(f"on_failure must be 'raise' or 'return'; got {on_failure!r}")


def _status(x_T: Tensor, total: Tensor) -> Tensor:
    fine = torch.isfinite(x_T).flatten(1).all(1) & torch.isfinite(total)
    return torch.where(fine, int(Status.OK), int(Status.NETWORK_NOT_FINITE))


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
