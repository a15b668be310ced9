"""log p of data under the probability flow, with error bars (Song et al. 2021, D.2).

Along the flow dx/dt = v(x, t)

    log p_0(x_0) = log p_T(x_T) + int_0^T div v dt,        p_T = N(0, sigma(T)^2 I),

and with a random probe for the divergence the probe is nearly all of the error of a single datum's
log p. Two methods: 'quadrature' (quadrature.py), which puts its cost where that error is, and
'augmented' (augmented.py), the classic coupled ODE. The data enter at t_min as x_t/alpha: what is
returned is the log density of the data blurred by noise of standard deviation sigma/alpha there,
and `truncation` says what that blur is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.checks import as_seed, check_batch
from ...kernels.errors import InvalidType, InvalidValue, RunFailure
from ...kernels.shapes import column
from ...kernels.streams import TRUNCATION
from ...models import Denoiser
from ...models import jacobian as traces
from ...models.statistics import Statistics
from .. import arguments
from ..adaptive.ode import integrate
from ..adaptive.pairs import PAIRS
from ..flow import ScaledFlow
from ..outcome import Status, raise_if_failed, status_failed
from . import augmented, quadrature
from .probing import Prober
from .result import LogProb

METHODS = {"quadrature": ("tsit5", 1e-3, 4.0), "augmented": ("dopri5", 1e-5, 1.0)}
"""Methods, with their default solver, tolerance and probes."""
LONGEST = 2.0  # in lambda: where the path is straight the trace may still bend, as e^(2 lambda)
SMALL = 8  # components up to which the exact trace is taken: few terms cannot tell their error
FINE = 1e-4  # rtol and atol at most by default where the trace is exact and the path the only error
LAID = {True: (1, 0.1), False: (3, 0.2)}
"""Of an exact trace or one that is probed: nodes a step at least, and which share of log p's
absolute tolerance they may miss of it. A trained network's trace can be rough where its path is
smooth, and does not tell before it is asked: nodes with probes of their own average over it."""
MOST = 8  # nodes a step
TRACES = ("hutchinson", "gaussian", "exact")
FINEST = {torch.float32: 1e-6, torch.float64: 1e-10}  # tolerance that a target may ask for
MISSED = {
    False: "target_std_error was not reached: raise it or max_probes",
    True: "target_solver_error (by default target_std_error) was not reached: raise it, or lower "
    "rtol and atol",
}
BACKENDS = ("native", "torchdiffeq")


def log_prob(
    model: Denoiser,
    x: Tensor,
    solver: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    trace: str = "hutchinson",
    probes: float | None = None,
    seed: int | Tensor = 0,
    *,
    method: str | None = None,
    backend: str = "native",
    target_std_error: float | None = None,
    target_solver_error: float | None = None,
    max_probes: float = 64,
    points: int | None = None,
    control: Statistics | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
    truncation: bool = False,
    max_rows: int | None = None,
    offset: float = 0.0,
    max_steps: int = 1000,
    on_failure: str = "raise",
) -> LogProb:
    """log p(x) for each sample of x [B, *event], float32 or float64, with its standard error.

    method: 'quadrature' (default: path first, then the trace at Gauss nodes with probes of their
    own) or 'augmented' (x and log p in one ODE, probes held along it). solver: 'bosh3', 'dopri5',
    'tsit5', 'dopri8'; rtol, atol: of the path. By default tsit5 for 'quadrature', at 1e-3 where
    probes err more than the path (bosh3 at 1e-2 will do for an exact score) and 1e-4 where the
    trace is exact; dopri5 at 1e-5 for 'augmented'.
    trace: 'hutchinson' (Rademacher probes), 'exact' (d products a node), 'gaussian' (augmented
    only). Events of d <= 8 components, and of d <= probes with no target, get the exact trace
    whatever was asked: std_error is 0. probes: of each path ('augmented', whole), or the mean
    number a node ('quadrature', 4); target_std_error: instead, what std_error is to reach in
    bits/dim, with at most max_probes a node ('quadrature'); target_solver_error: what solver_error
    is to reach, by default the same: samples whose path errs more run again at a tenth of the
    tolerances, unless these are given. points: nodes a step; by default as few
    as miss, by an estimate that needs no network call, no more than a share of log p's absolute
    tolerance, atol d nats or the target if that is less, but 3 where the trace is probed. control:
    mean and covariance of the data (`Statistics.of(data)`), whose Gaussian's Jacobian is known and
    need not be probed ('quadrature'; only what is off the diagonal helps: a quarter of the error on
    3x16x16 fields, nothing on digits). seed, sample_ids: a sample's probes depend on these
    alone. cond: keyword arguments of the network; with guidance the flow is the guided one, and so
    is log p. t_min: where time starts; 1e-5 for processes in closed form down to 0, else the
    model's own (sub-VP: 1e-4). truncation: estimate what t_min costs (one evaluation and probe
    more). max_rows: events given to the network at once at the nodes, by default as many as x has
    or 2^18 numbers: what memory asks for ('quadrature'). offset:
    added to bits_per_dim: -log2 of the levels' spacing for dequantised data (score_sde's 7 for
    256 levels in [-1, 1], 8 in [0, 1]). backend: 'torchdiffeq' runs 'augmented' through
    torchdiffeq. on_failure: 'raise' a SolverError, or 'return' with status.

    The samples are those of x alone or in any batch, to the bit where the network's are. No
    gradient flows: see `differentiable_log_prob`. Raises ValueError or TypeError for what does not
    fit, before any network call; TypeError at the first where the network's parameters and x are of
    two dtypes; RuntimeError in torch.inference_mode().
    """
    if method is None:
        method = "augmented" if backend == "torchdiffeq" or trace == "gaussian" else "quadrature"
    default_solver, tolerance, default_probes = arguments.lookup("method", method, METHODS)
    probes = default_probes if probes is None else probes
    arguments.denoiser(model)
    arguments.event_batch("x", x)
    arguments.on_failure(on_failure)
    rtol, atol = (
        v if v is None else arguments.tolerance(n, v, x.dtype)
        for n, v in (("rtol", rtol), ("atol", atol))
    )
    _check_options(
        method, backend, trace, probes, max_probes,
        {"target_std_error": target_std_error, "target_solver_error": target_solver_error},
        {"points": points, "max_rows": max_rows},
    )  # fmt: skip
    check_batch("seed", as_seed(seed, x.device), len(x))
    seed = as_seed(seed, x.device) if isinstance(seed, Tensor) else seed
    d = x[0].numel()
    _check_control(control, method, d)
    if d <= SMALL or (target_std_error is None and probes >= d):
        trace = "exact"
    if trace == "exact":
        tolerance = min(tolerance, FINE)
    free = rtol is None and atol is None
    rtol = tolerance if rtol is None else rtol
    atol = tolerance if atol is None else atol
    name = arguments.lookup("solver", solver or default_solver, PAIRS).name
    ids = arguments.sample_ids(sample_ids, len(x))
    flow = ScaledFlow(model, len(x), cond, t_min)
    with arguments.naming_dtypes(model, x):
        if method == "quadrature":
            if target_solver_error is None:
                target_solver_error = target_std_error
            goal, path_goal = (  # variances, nats^2
                None if v is None else (v * d * math.log(2)) ** 2
                for v in (target_std_error, target_solver_error)
            )

            def run(flow: ScaledFlow, rows: Tensor, rtol: float, atol: float) -> Parts:
                own = seed[rows] if isinstance(seed, Tensor) and seed.numel() > 1 else seed
                return _by_quadrature(
                    flow, x[rows], name, rtol, atol, trace, probes, max_probes, goal, path_goal,
                    points, control, own, ids.to(x.device)[rows], max_steps, max_rows,
                )  # fmt: skip

            parts = run(flow, torch.arange(len(x), device=x.device), rtol, atol)
            if path_goal is not None:
                finest = FINEST[x.dtype] if free else rtol
                _tighten(run, flow, parts, path_goal, rtol, atol, finest)
        else:
            parts = _by_augmented(
                flow, x, name, rtol, atol, trace, int(probes), seed, ids, backend, max_steps
            )
        blurred = (
            _truncated(flow, x, seed, ids) if truncation else torch.full_like(parts[0], torch.nan)
        )
    products, rejected, status = parts[3:6]
    path_missed = target_std_error is None or bool(
        (parts[1] / (d * math.log(2)) <= target_std_error)[status == Status.TARGET_NOT_MET].any()
    )
    failed = status_failed(status)  # of these nothing is known but the cost, whatever the batch
    value, error, path_error, defect, gap, blurred = (
        v.masked_fill(failed, torch.nan) for v in (*parts[:2], *parts[6:], blurred)
    )
    latent = parts[2].masked_fill(column(failed, parts[2]).bool(), torch.nan)
    bits = -value / (x[0].numel() * math.log(2)) + offset
    result = LogProb(
        value, bits, error, flow.forwards, products, rejected, latent, status, path_error, defect,
        gap, blurred, flow.t_min, flow.blur,
    )  # fmt: skip
    raise_if_failed(status, result, on_failure, {Status.TARGET_NOT_MET: MISSED[path_missed]})
    return result


Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _by_quadrature(
    flow: ScaledFlow, x: Tensor, solver: str, rtol: float, atol: float, trace: str, probes: float,
    max_probes: float, goal: float | None, path_goal: float | None, points: int | None,
    control: Statistics | None, seed: int | Tensor, ids: Tensor, max_steps: int,
    max_rows: int | None,
) -> Parts:  # fmt: skip
    """log p, its standard error, latent, products, rejected, status, path error, defect, gap."""
    run = integrate(
        flow.field, flow.enter(x), flow.lam_data, flow.lam_noise, method=solver, rtol=rtol,
        atol=atol, max_step=LONGEST, max_steps=max_steps, dense=True,
    )  # fmt: skip
    path, batch = run.path, len(x)
    if path is None:
        raise RunFailure("the path was not kept")
    status = run.status.clone()
    if not bool((status == Status.OK).any()):  # no path to lay a node on
        nan, none = (
            torch.full_like(status, torch.nan, dtype=torch.float64),
            torch.zeros_like(status),
        )
        latent = torch.full_like(x, torch.nan)
        return nan, nan, latent, none, run.rejected, status, nan, nan, nan
    with torch.no_grad():
        least, share = LAID[trace == "exact"]
        orders = range(least, MOST + 1) if points is None else range(points, points + 1)
        allowed = min(atol * x[0].numel(), math.inf if path_goal is None else math.sqrt(path_goal))
        nodes, bound = quadrature.lay(flow, path, orders, share * allowed, status == Status.OK)
        chunk = max_rows or quadrature.chunk_rows(batch, x[0].numel())
        prober = Prober(flow, nodes, seed, ids.to(x.device), chunk, control)
        if trace == "exact":
            prober.visit(torch.arange(len(nodes.sample)), x[0].numel(), exact=True)
            variance, noise = nodes.lam.new_zeros(batch), 0 * nodes.weight
        else:
            goals = None if goal is None else nodes.lam.new_full((batch,), goal)
            variance = quadrature.spend(prober, probes, max_probes, goals)
            noise = prober.variance() / nodes.weight.square()
        change, defect = quadrature.change(nodes, batch)
        path_error = quadrature.path_error(nodes, path, bound, noise, orders[-1])
        far = torch.tensor([flow.lam_noise], dtype=torch.float64)
        slope = path.slope(far)[:, 0]  # exact at the end of a step: it gives D there for nothing
        n, ratio = float(flow.norm(flow.lam_noise)), math.exp(-flow.lam_noise)
        x_hat = run.x * n
        data = slope * n + x_hat * (1 - (ratio / n) ** 2)
        latent = flow.latent(run.x, data)
        value = flow.prior(latent) - change
        odd = (status == Status.OK) & ~torch.isfinite(value)  # at a node, or at the far end
        status[odd] = int(Status.NETWORK_NOT_FINITE)
        mean = data * float(flow.model.process.alpha(flow.model.process.t_max))
        gap = flow.prior(latent, mean) - flow.prior(latent)
    if goal is not None:
        missed = (variance > goal * (1 + 1e-9)) & (status == Status.OK)
        status[missed] = int(Status.TARGET_NOT_MET)
    error, cost = variance.sqrt(), (prober.products, run.rejected)
    return value, error, latent, *cost, status, path_error, defect, gap


def _tighten(
    run: Callable[[ScaledFlow, Tensor, float, float], Parts], flow: ScaledFlow, parts: Parts,
    goal: float, rtol: float, atol: float, finest: float,
) -> None:  # fmt: skip
    """Run the samples whose path errs by more than the goal (a variance) again, in place, at a tenth
    of the tolerances at a time down to `finest`; whose does so still has not met its target."""

    def missed() -> Tensor:
        status, path_error, defect = parts[5:8]
        return ~status_failed(status) & (torch.hypot(path_error, defect).square() > goal)

    stuck = torch.zeros_like(flow.forwards, dtype=torch.bool)  # tighter steps were not to be had
    while rtol > 1.01 * finest and len(rows := (missed() & ~stuck).nonzero().flatten()):
        rtol, atol = 0.1 * rtol, 0.1 * atol
        part = flow.part(rows)
        again = run(part, rows, rtol, atol)
        flow.forwards[rows] += part.forwards
        for i in (3, 4):  # products and rejected add up
            parts[i][rows] += again[i]
        worked = ~status_failed(again[5])
        stuck[rows[~worked]] = True
        for i in (0, 1, 2, 5, 6, 7, 8):
            parts[i][rows[worked]] = again[i][worked]
    parts[5][missed()] = int(Status.TARGET_NOT_MET)


def _by_augmented(
    flow: ScaledFlow, x: Tensor, solver: str, rtol: float, atol: float, trace: str, probes: int,
    seed: int | Tensor, ids: Tensor, backend: str, max_steps: int,
) -> Parts:  # fmt: skip
    v = None
    if trace != "exact":
        kind = "rademacher" if trace == "hutchinson" else trace
        v = traces.probes(kind, probes, x, seed, ids)
    if backend == "native":
        run = augmented.native(flow, x, v, solver, rtol, atol, max_steps, trace == "gaussian")
        prior = flow.prior(run.latent)
    else:
        run = augmented.by_torchdiffeq(flow, x, v, solver, rtol, atol, trace == "gaussian")
        prior = flow.model.process.prior.log_prob(run.latent)
        flow.forwards = run.forwards
    unknown = torch.full_like(run.change, torch.nan)
    value = prior + run.change
    cost = run.products, run.rejected
    return value, run.std_error, run.latent, *cost, run.status, run.path_error, unknown, unknown


def _check_options(
    method: str, backend: str, trace: str, probes: float, most: float,
    targets: dict[str, float | None], counts: dict[str, int | None],
) -> None:  # fmt: skip
    if torch.is_inference_mode_enabled():
        raise RunFailure("torch.inference_mode() forbids the products that log_prob is made of; "
                           "torch.no_grad() does not")  # fmt: skip
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or count < 1):
            raise InvalidValue(f"{name} must be a whole number >= 1; got {count}")
    for name, target in targets.items():
        if target is not None and not target > 0:
            raise InvalidValue(f"{name} must be > 0 bits/dim; got {target}")
        if target is not None and method != "quadrature":
            raise InvalidValue(f"{name} needs method='quadrature'")
    if backend not in BACKENDS:
        raise InvalidValue(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if trace not in TRACES:
        raise InvalidValue(f"trace must be one of {', '.join(TRACES)}; got {trace!r}")
    if not probes >= 1:
        raise InvalidValue(f"probes must be >= 1; got {probes}; use trace='exact' for none")
    if method == "quadrature":
        if backend == "torchdiffeq":
            raise InvalidValue("backend='torchdiffeq' needs method='augmented'")
        if trace == "gaussian":
            raise InvalidValue("trace='gaussian' needs method='augmented'; Rademacher is better")
        if not most >= 1:
            raise InvalidValue(f"max_probes must be >= 1; got {most}")
    elif probes != int(probes):
        raise InvalidValue(f"probes must be whole with method='augmented'; got {probes}")


def _check_control(control: Statistics | None, method: str, d: int) -> None:
    if control is None:
        return
    if not isinstance(control, Statistics):
        raise InvalidType(f"control must be a Statistics; got {type(control).__name__}")
    if method != "quadrature" or control.mean.numel() != d:
        raise InvalidValue(
            f"control needs method='quadrature' and a mean of {d} components; got {method!r} and "
            f"{control.mean.numel()}"
        )


def _truncated(flow: ScaledFlow, x: Tensor, seed: int | Tensor, ids: Tensor) -> Tensor:
    """log p_0(x) - log p_blurred(x) = -blur^2/2 (tr grad s + |s|^2) + O(blur^4), [B], one probe.

    By the heat equation d p/d(blur^2) = laplacian(p)/2, with blur^2 s = D - x.
    """
    lam = torch.full((len(x),), flow.lam_data, dtype=torch.float64, device=x.device)
    leaf = x.detach().clone().requires_grad_()
    v = traces.probes("rademacher", 1, x, seed, ids, draw0=TRUNCATION.first)
    with torch.enable_grad():
        a, b, out = flow.readout(leaf, lam, torch.arange(len(x), device=x.device))
        form = (v * traces.products(out, leaf, v)).double().flatten(2).sum(2)[0]
    r = (column(a - 1, x) * x + column(b, x) * out.detach()).double()
    laplacian = (a - 1) * x[0].numel() + b * form
    return -0.5 * (laplacian + r.square().flatten(1).sum(1) / flow.blur**2)
