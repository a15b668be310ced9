"""Adaptive explicit Runge-Kutta for a batch in which every sample is its own trajectory.

Each sample has its own time, step size, error norm, accepted and rejected steps and verdict:

    e = || err / (atol + rtol max(|x|, |x'|)) ||_rms over the sample's own components,
    accept if e <= 1,     h' = h safety e^(-(p+i+d)/k) e_1^((p+2d)/k) e_2^(-d/k)

with e_1, e_2 the errors of the accepted steps before (a PID controller; k is the order). Samples
that have arrived are taken out of the batch, so one stiff sample does not tax the others, and with
an element-wise right-hand side a sample's trajectory is the same to the last bit in any batch.
One host synchronisation a step: the verdict decides who goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.runge_kutta import rms
from ...kernels.shapes import column, wide
from ...models import notebook
from .. import arguments, showing
from ..outcome import Status
from .dense import DensePath, Recorder
from .pairs import PAIRS, Embedded, Pair

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]
Audit = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Controller:
    """Step sizes from errors: h' = h safety e^(-(p+i+d)/k) e_1^((p+2d)/k) e_2^(-d/k).

    p, i, d: weights of the proportional, integral and differential part; (0, 1, 0) is the
        elementary controller, d = 0 a PI.
    safety: share of the step that the error allows, in (0, 1].
    smallest, largest: bounds of h'/h, smallest <= 1 <= largest.
    Raises ValueError or TypeError for numbers outside these. (Soederlind 2003)
    """

    p: float = 0.2
    i: float = 0.5
    d: float = 0.0
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 10.0

    def __post_init__(self) -> None:
        for name in ("p", "i", "d"):
            arguments.finite(name, getattr(self, name))
        arguments.positive("safety", self.safety, 1.0)
        low, high = (arguments.positive(n, getattr(self, n)) for n in ("smallest", "largest"))
        if not low <= 1 <= high:
            raise InvalidValue(f"smallest <= 1 <= largest must hold; got {low:g} and {high:g}")

    def factor(self, e: Tensor, e_1: Tensor, e_2: Tensor, order: float, accept: Tensor) -> Tensor:
        """What h is multiplied by, float64 [n]; at most `safety` after a rejection."""
        p, i, d = self.p / order, self.i / order, self.d / order
        log = -(p + i + d) * e.log() + (p + 2 * d) * e_1.log() - d * e_2.log()
        rejected = self.safety * torch.exp(-(1 / order) * e.log())
        factor = torch.where(accept, self.safety * log.exp(), rejected.clamp(max=self.safety))
        return factor.clamp(self.smallest, self.largest)


@dataclass(frozen=True, eq=False)
class OdeSolution:
    """What `integrate` found.

    x [B, *event]: the state at t1, or where the sample failed.
    t: float64 [B], the time reached.
    status: int64 [B].
    nfe, accepted, rejected: int64 [B], evaluations of f and steps of each sample.
    calls: calls of f, each with the samples still under way.
    audited: float64 [B], the sum of `audit` over the accepted steps.
    saved [B, J, *event]: the states at save_at.
    path: x(t) for any t passed, where dense=True.
    """

    x: Tensor
    t: Tensor
    status: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    calls: int
    audited: Tensor
    saved: Tensor | None = None
    path: DensePath | None = None

    def _facts(self) -> notebook.Facts:
        taken, again = showing.counts(self.accepted), showing.counts(self.rejected)
        steps = f"{taken} steps taken, {again} tried again"
        return [*showing.run(self.x, self.nfe, self.status), ("steps", steps)]

    def __repr__(self) -> str:
        return notebook.lines("OdeSolution", self._facts())

    def _repr_html_(self) -> str:
        return notebook.table("OdeSolution", (), self._facts())


def integrate(
    f: Field,
    x0: Tensor,
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    solver: str | Embedded = "dopri5",
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-5,
    norm: Norm = rms,
    controller: Controller | None = None,
    first_step: float | None = None,
    min_step: float | None = None,
    max_step: float = math.inf,
    max_steps: int = 4096,
    audit: Audit | None = None,
    save_at: Tensor | None = None,
    dense: bool = False,
) -> OdeSolution:
    """Integrate dx/dt = f(t, x) from t0 to t1, sample by sample, forward or backward in time.

    f: f(t, x, rows) -> dx/dt like x, for the samples still under way: t float64 [n], x [n, *event]
        of x0's dtype, rows int64 [n] the samples' places in x0; n shrinks.
    x0: [B, *event], float32 or float64.
    t0, t1: floats or [B].
    solver: 'bosh3', 'dopri5', 'tsit5', 'dopri8', a `Pair`, or an `ExponentialPair`, for which f
        returns not dx/dt but what that class says.
    rtol, atol: numbers >= 0, or tensors of them that broadcast over an event; not both 0.
    norm: of the scaled error [n, *event] -> float64 [n].
    first_step: > 0; None takes Hairer's estimate (one evaluation more).
    min_step: > 0; default 1e-13 of the span.
    max_step: longest step, > 0.
    max_steps: attempts of one sample, >= 1.
    audit: of a step's end (t, x), what f returned there, and the estimated error of x -> float64
        [n], to be summed.
    save_at: times [J] or [B, J] between t0 and t1 at which to keep x.
    dense: keep every step's interpolant, (degree + 1) states each.

    A sample that fails stops with a `Status` of its own and leaves the others alone. Gradients are
    not tracked. On a device without float64 times are float32.
    Raises ValueError or TypeError for arguments that do not fit, before f is called.
    """
    pair = solver if isinstance(solver, Embedded) else arguments.lookup("solver", solver, PAIRS)
    if not callable(f):
        raise InvalidType(f"f must be a function f(t, x, rows) -> dx/dt; got {type(f).__name__}")
    if not isinstance(x0, Tensor) or x0.is_meta or x0.layout != torch.strided:
        raise InvalidType(f"x0 must be a tensor [B, ...] that holds numbers; got {x0!r}")
    if x0.dtype not in (torch.float32, torch.float64) or x0.ndim < 2:
        raise InvalidValue(
            f"x0 must be [B, ...], float32 or float64; got {x0.dtype} {tuple(x0.shape)}"
        )
    arguments.whole("max_steps", max_steps)
    for name, step in (("first_step", first_step), ("min_step", min_step)):
        if step is not None:
            arguments.positive(name, step)
    if max_step != math.inf:
        arguments.positive("max_step", max_step)
    if controller is not None and not isinstance(controller, Controller):
        raise InvalidType(f"controller must be a Controller; got {type(controller).__name__}")
    _check_tolerances(x0, rtol, atol)
    with torch.no_grad():
        run = _Run(f, x0, t0, t1, pair, rtol, atol, norm, controller or Controller())
        times = None if save_at is None else _within(save_at, run)
        run.recorder = Recorder(x0) if dense or save_at is not None else None
        run.max_step, run.audit = float(max_step), audit
        run.start(first_step)
        while len(run.rows):
            run.step(max_steps, min_step)
        path = run.recorder.path() if run.recorder is not None else None
        saved = path(times) if path is not None and times is not None else None
    return OdeSolution(
        run.x_end,
        run.t_end,
        run.status,
        run.nfe,
        run.accepted,
        run.rejected,
        run.calls,
        run.audited,
        saved,
        path if dense else None,
    )


def _check_tolerances(x0: Tensor, rtol: float | Tensor, atol: float | Tensor) -> None:
    """Raise unless both are finite and >= 0, not both 0, and rtol no finer than x0's rounding."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if isinstance(value, Tensor) and value.ndim:
            fine = bool((torch.isfinite(value) & (value >= 0)).all())
        else:
            number = arguments.finite(name, value)
            fine = number >= 0
            if name == "rtol" and number:
                arguments.tolerance(name, number, x0.dtype)
        if not fine:
            raise InvalidValue(f"{name} must be >= 0 and finite; got {value}")
    if not isinstance(rtol, Tensor) and not isinstance(atol, Tensor) and rtol == atol == 0:
        raise InvalidValue("one of rtol and atol must be > 0; got 0 and 0")


def _within(save_at: Tensor, run: _Run) -> Tensor:
    """The times at which to keep x, or ValueError for one that the run does not pass."""
    times = torch.as_tensor(save_at, dtype=run.t.dtype, device=run.t.device)
    low, high = (v[:, None] for v in (run.t.minimum(run.t1), run.t.maximum(run.t1)))
    if times.ndim in (1, 2) and not bool(((times >= low) & (times <= high)).all()):
        raise InvalidValue(
            f"save_at must lie between t0 and t1, {float(low.min()):g} to {float(high.max()):g}; "
            f"got {float(times.min()):g} to {float(times.max()):g}"
        )
    return times


class _Run:
    """The samples under way: rows, t, h, x, k (= f(t, x)) and past errors, all of length n."""

    recorder: Recorder | None = None
    audit: Audit | None = None
    max_step = math.inf

    def __init__(
        self,
        f: Field,
        x0: Tensor,
        t0: float | Tensor,
        t1: float | Tensor,
        pair: Embedded,
        rtol: float | Tensor,
        atol: float | Tensor,
        norm: Norm,
        controller: Controller,
    ) -> None:
        self.f, self.pair, self.norm, self.controller = f, pair, norm, controller
        batch, device = len(x0), x0.device
        self.rtol, self.atol = (
            torch.as_tensor(v, dtype=x0.dtype, device=device) for v in (rtol, atol)
        )
        numbers = all(isinstance(v, int | float) and v >= 0 for v in (rtol, atol))
        # the kernel makes x' and the norm of its error in one launch, where that norm is asked for
        self.fused = pair if isinstance(pair, Pair) and norm is rms and numbers else None
        self.tolerances = (rtol, atol)
        self.t, self.t1 = (
            torch.as_tensor(v, dtype=wide(x0), device=device).expand(batch).clone()
            for v in (t0, t1)
        )
        if not bool((torch.isfinite(self.t) & torch.isfinite(self.t1)).all()):
            raise InvalidValue(f"t0 and t1 must be finite; got {t0} and {t1}")
        self.span = self.t1 - self.t
        self.rows = torch.arange(batch, dtype=torch.int64, device=device)
        self.x = x0.clone()
        self.x_end, self.t_end = x0.clone(), self.t.clone()
        self.status, self.nfe, self.accepted, self.rejected = torch.zeros(
            4, batch, dtype=torch.int64, device=device
        )
        self.e_1, self.e_2 = torch.ones_like(self.t), torch.ones_like(self.t)
        self.audited = torch.zeros_like(self.t)
        self.calls = 0

    def evaluate(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        self.nfe[self.rows] += 1
        return self.f(t, x, self.rows).to(x.dtype)

    def start(self, first_step: float | None) -> None:
        self.keep(self.span != 0)
        if not len(self.rows):
            return
        self.k = self.evaluate(self.t, self.x)
        if self.k.shape != self.x.shape:
            raise InvalidValue(f"f must return x's shape {tuple(self.x.shape)}; got {self.k.shape}")
        self.h = torch.zeros_like(self.t)
        fine = _finite(self.k)
        self.status[self.rows[~fine]] = int(Status.NETWORK_NOT_FINITE)
        self.keep(fine)
        if first_step is not None:
            self.h = self.span.sign() * abs(first_step)
        elif len(self.rows):
            self.h = self.hairer().clamp(-self.max_step, self.max_step)

    def hairer(self) -> Tensor:
        """The first step (Hairer, Norsett & Wanner 1993, II.4), [n]."""
        scale = self.atol + self.rtol * self.x.abs()
        span, sign = self.span.abs(), self.span.sign()
        slope = self.pair.slope(self.t, self.x, self.k)
        d0, d1 = self.norm(self.x / scale), self.norm(slope / scale)
        tiny = (d0 < 1e-5) | (d1 < 1e-5)
        h0 = torch.where(tiny, 1e-6 * span, 0.01 * d0 / d1).minimum(span)
        t, x = self.t + sign * h0, self.x + column(sign * h0, self.x) * slope
        d2 = self.norm((self.pair.slope(t, x, self.evaluate(t, x)) - slope) / scale) / h0
        d2 = torch.where(torch.isfinite(d2), d2, 1e3 / h0)
        most = torch.maximum(d1, d2)
        h1 = torch.exp((torch.log(0.01 / most.clamp(min=1e-300))) / self.pair.order)
        h1 = torch.where(most <= 1e-15, (1e-3 * h0).clamp(min=1e-6), h1)
        return sign * torch.minimum(100 * h0, h1).minimum(span)

    def step(self, max_steps: int, min_step: float | None) -> None:
        """One attempt of every sample under way."""
        left = self.t1 - self.t
        last = 1.0001 * self.h.abs() >= left.abs()  # no crumb of a step is left over
        h = torch.where(last, left, self.h)
        goal = torch.where(last, self.t1, self.t + h)  # t1 itself, not t + (t1 - t)
        x, stages = self.advance(h, goal)
        error: Tensor | None = None
        if self.fused is not None and self.audit is None:
            e = self.fused.judged(
                self.x, h, stages, float(self.tolerances[0]), float(self.tolerances[1])
            )
            e = e.to(self.t.dtype)
        else:
            error = self.pair.defect(self.t, h, stages)
            scale = self.atol + self.rtol * torch.maximum(self.x.abs(), x.abs())
            e = self.norm(error / scale)
        network_fine = torch.stack([_finite(k) for k in stages]).all(0)
        fine = network_fine & _finite(x) & torch.isfinite(e)
        accept = fine & (e <= 1)
        e = torch.where(fine, e, torch.inf).clamp(1e-10, 1e300)
        factor = self.controller.factor(e, self.e_1, self.e_2, self.pair.order, accept)
        if self.recorder is not None:
            piece = self.pair.piece(self.t, self.x, x, h, stages)
            self.recorder.add(accept, self.rows, self.t, h, piece)
        if self.audit is not None and error is not None:
            told = self.audit(goal, x, stages[-1], error)
            self.audited[self.rows] += torch.where(accept, told, 0.0)
        self.accepted[self.rows] += accept
        self.rejected[self.rows] += ~accept
        self.t = torch.where(accept, goal, self.t)
        wide = column(accept, self.x)
        self.x, self.k = torch.where(wide, x, self.x), torch.where(wide, stages[-1], self.k)
        self.e_2 = torch.where(accept, self.e_1, self.e_2)
        self.e_1 = torch.where(accept, e, self.e_1)
        self.h = (h * factor).clamp(-self.max_step, self.max_step)
        self.judge(accept & last, accept, fine, network_fine, max_steps, min_step)

    def advance(self, h: Tensor, goal: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x' at the step's end, and the stages."""
        stages = [self.k]
        for i, share in enumerate(self.pair.c.tolist()[1:], 1):
            x = self.pair.state(i, self.t, self.x, h, stages)
            t = goal if share > 1 - 1e-12 else self.t + h * share
            stages.append(self.evaluate(t, x))
        return x, stages

    def judge(
        self,
        arrived: Tensor,
        accept: Tensor,
        fine: Tensor,
        network_fine: Tensor,
        max_steps: int,
        min_step: float | None,
    ) -> None:
        least = 1e-13 * self.span.abs() + 1e-15 * self.t.abs() if min_step is None else min_step
        stuck = ~arrived & (self.h.abs() < least)
        late = ~arrived & (self.accepted + self.rejected)[self.rows].ge(max_steps)
        verdict = torch.zeros_like(self.rows)
        for bad, code in (
            (late, Status.TOO_MANY_STEPS),
            (stuck, Status.STEP_TOO_SMALL),
            (stuck & ~fine, Status.STATE_NOT_FINITE),
            (stuck & ~network_fine, Status.NETWORK_NOT_FINITE),
        ):
            verdict = torch.where(bad, int(code), verdict)
        self.status[self.rows] = verdict
        going = ~(arrived | stuck | late)
        if not bool(going.all()):
            self.keep(going)

    def keep(self, mask: Tensor) -> None:
        """Write out the samples that stop and go on with the others."""
        out = ~mask
        self.x_end[self.rows[out]], self.t_end[self.rows[out]] = self.x[out], self.t[out]
        for name in ("rows", "t", "t1", "span", "h", "x", "k", "e_1", "e_2"):
            if hasattr(self, name):
                setattr(self, name, getattr(self, name)[mask].contiguous())


def _finite(x: Tensor) -> Tensor:
    return torch.isfinite(x).flatten(1).all(1)
