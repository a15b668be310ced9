"""Other libraries' adaptive integrators: SciPy, torchdiffeq, k-diffusion.

All of them choose one step for the whole batch. A tolerance is what they are told, not a number of
calls, so a row of `undiffuse bench nfe` is the tightest tolerance of a ladder (factors of 2) whose
run on the problem's own starts stays within the calls asked; the runs that find it are not charged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...models import Denoiser
from ...models.guidance.rule import calls_of
from ...solvers import probability_flow
from ...solvers.flow import ScaledFlow
from ..problems import problem as problems
from ..problems.plans import Plan, Unavailable
from ..problems.problem import Problem, data_prediction, from_unit, to_unit
from .k_diffusion import sampling as k_sampling

LOOSEST, TIGHTEST = 1.0, 2.0**-24


@dataclass(frozen=True)
class Method:
    """run(model, x at t_max, tolerance) -> x at t_min and each sample's calls, int64 [B]."""

    library: str
    name: str
    run: Callable[[Denoiser, Tensor, float], tuple[Tensor, Tensor]]


def scipy(name: str) -> Method:
    """solve_ivp of the probability flow in t, the whole batch as one vector (score_sde's sampler is
    its RK45)."""

    def run(model: Denoiser, x: Tensor, tol: float) -> tuple[Tensor, Tensor]:
        try:
            from scipy.integrate import solve_ivp
        except ImportError as error:
            raise Unavailable("not installed (pip install 'undiffuse[bench]')") from error
        counter = problems.Counter(model.net)
        flow = probability_flow(replace(model, net=counter), t_min=model.t_min)

        def slope(t: float, flat: np.ndarray) -> np.ndarray:
            y = torch.from_numpy(flat).to(x).reshape(x.shape)
            return flow(t, y).double().cpu().flatten().numpy()

        ends, start = (model.process.t_max, model.t_min), x.double().cpu().flatten().numpy()
        found = solve_ivp(slope, ends, start, method=name, rtol=tol, atol=tol)
        if not found.success:
            raise ArithmeticError(found.message)
        y = torch.from_numpy(found.y[:, -1].copy()).to(x).reshape(x.shape)
        return y, torch.full((len(x),), counter.calls)

    return Method("scipy", name, run)


def torchdiffeq(name: str, ours: bool = False) -> Method:
    """odeint of `probability_flow` in t; of our own coordinates over lambda with `ours`."""

    def run(model: Denoiser, x: Tensor, tol: float) -> tuple[Tensor, Tensor]:
        from torchdiffeq import odeint

        process, counter = model.process, problems.Counter(model.net)
        counted = replace(model, net=counter)
        way = {"method": name, "rtol": tol, "atol": tol}
        if not ours:
            span = torch.tensor([process.t_max, model.t_min], dtype=torch.float64)
            x = odeint(probability_flow(counted), x, span, **way)[-1]
        else:
            flow, rows = ScaledFlow(counted, len(x), t_min=model.t_min), torch.arange(len(x))
            span = torch.tensor([flow.lam_noise, flow.lam_data], dtype=torch.float64)

            def field(lam: Tensor, u: Tensor) -> Tensor:
                return flow.field(lam.expand(len(u)), u, rows)

            u = odeint(field, flow.from_latent(x), span, **way)[-1]
            x = flow.leave(u) * float(process.alpha(model.t_min))
        return x, torch.full((len(x),), counter.calls)

    return Method("torchdiffeq", f"{name} in {'lambda' if ours else 't'}", run)


def k_diffusion(order: int) -> Method:
    """sample_dpm_adaptive of that order."""

    def run(model: Denoiser, x: Tensor, tol: float) -> tuple[Tensor, Tensor]:
        process, counter = model.process, problems.Counter(model.net)
        counted = replace(model, net=counter)
        ends = [problems.ratio_at(process, t) for t in (model.t_min, process.t_max)]

        def denoise(y: Tensor, sigma: Tensor) -> Tensor:
            r = float(sigma.flatten()[0])
            return data_prediction(counted, y / math.hypot(1.0, r), r)

        y = x / float(process.alpha(process.t_max))
        y = k_sampling().sample_dpm_adaptive(
            denoise, y, *ends, order=order, rtol=tol, atol=tol, disable=True
        )
        return y * float(process.alpha(model.t_min)), torch.full((len(x),), counter.calls)

    return Method("k-diffusion", f"dpm_adaptive-{order}", run)


METHODS = {
    (m.library, m.name): m
    for m in (scipy("RK45"), scipy("DOP853"), torchdiffeq("dopri5"), k_diffusion(3))
}


@dataclass(frozen=True)
class AdaptivePeer:
    """One of METHODS as a row of `undiffuse bench nfe`."""

    library: str
    name: str
    grid: str = "adaptive"

    def plan(self, problem: Problem, nfe: int) -> Plan:
        """The tightest tolerance before the ladder first needs more than nfe calls."""
        tol, best, why = LOOSEST, None, ""
        while tol >= TIGHTEST:
            try:
                calls = _calls(problem, self.library, self.name, tol)
            except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
                why = f"at tolerance {tol:g}: {type(error).__name__}: {error}"
            else:
                if calls > nfe:
                    why = f"makes {calls} calls at its loosest tolerance, {tol:g}"
                    break
                best = (tol, calls)
            tol /= 2
        if best is None:
            raise Unavailable(why)
        chosen, calls = best
        process, method = problem.process, METHODS[self.library, self.name]

        def run(model: Denoiser, w: Tensor, seed: int) -> Tensor:
            x, _ = method.run(model, from_unit(process, w, process.t_max), chosen)
            return to_unit(process, x, model.t_min)

        return Plan(calls, problem.r_max, problem.r_min, False, run)


@lru_cache(maxsize=1024)
def _calls(problem: Problem, library: str, name: str, tol: float) -> int:
    """Evaluations that the method makes on the problem's starts."""
    x = from_unit(problem.process, problem.start, problem.process.t_max)
    with torch.no_grad():
        calls = int(METHODS[library, name].run(problem.model, x, tol)[1].max())
    return calls // calls_of(problem.model.net)


PEERS = tuple(AdaptivePeer(*key) for key in METHODS)
