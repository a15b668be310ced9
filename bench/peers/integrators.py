"""General integrators on the same flow and reverse SDE: torchdiffeq, torchsde and SciPy.

They know nothing of the linear part that diffusion solvers integrate exactly, which is what this
comparison shows. All get the drift callables of `solvers.flow`. torchdiffeq's fixed-step methods
are given our grid; torchsde steps uniformly in time, as its users do. The adaptive ones choose
their steps by an error estimate of the whole batch.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models import Denoiser
from ...solvers.flow import ScaledFlow, probability_flow, reverse_sde
from ...solvers.tables import grids
from ..problems import problem as problems
from ..problems.plans import Plan, Unavailable
from ..problems.problem import Problem, data_prediction, from_unit, ratio_at, to_unit


def k_sampling() -> Any:
    """The module k_diffusion.sampling, read alone. Raises Unavailable where it is not installed."""
    name = "_k_diffusion_alone"
    if f"{name}.sampling" in sys.modules:
        return sys.modules[f"{name}.sampling"]
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        raise Unavailable("not installed (pip install k-diffusion)")
    # its __init__ imports the training code; sampling.py needs one helper of utils.py alone
    parent = ModuleType(name)
    parent.__path__ = []
    parent.utils = SimpleNamespace(  # type: ignore[attr-defined]
        append_dims=lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    )
    path = Path(next(iter(found.submodule_search_locations))) / "sampling.py"
    spec = importlib.util.spec_from_file_location(f"{name}.sampling", path)
    if spec is None or spec.loader is None:
        raise Unavailable(f"cannot read {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name], sys.modules[f"{name}.sampling"] = parent, module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[name], sys.modules[f"{name}.sampling"]
        raise Unavailable(f"its sampling.py does not import: {error}") from error
    return module


def installed(library: str) -> None:
    """Raises Unavailable where the library is not installed."""
    if importlib.util.find_spec(library) is None:
        raise Unavailable("not installed (pip install 'undiffuse[integrators]')")


STAGES = {"euler": 1, "midpoint": 2, "rk4": 4}
SDE_STAGES = {"euler": 1, "srk": 10}
"""Calls a step of torchsde's methods, as counted."""


@dataclass(frozen=True)
class TorchdiffeqPeer:
    """torchdiffeq.odeint of the probability flow by a fixed-step method on a grid of ours."""

    name: str
    grid: str = "log_snr"
    library: str = "torchdiffeq"

    def plan(self, problem: Problem, nfe: int) -> Plan:
        installed(self.library)
        steps = nfe // STAGES[self.name]
        if steps < 1:
            raise Unavailable(f"one step makes {STAGES[self.name]} calls, not within {nfe}")
        process = problem.process
        times = grids.times(self.grid, process, steps, "t_min", problem.model.t_min)
        first, last = float(times[0]), float(times[-1])

        def run(model: Denoiser, w: Tensor, seed: int) -> Tensor:
            from torchdiffeq import odeint

            flow = probability_flow(model, t_min=last)
            x = odeint(flow, from_unit(process, w, first), times, method=self.name)
            return to_unit(process, x[-1], last)

        calls = STAGES[self.name] * steps
        return Plan(calls, ratio_at(process, first), ratio_at(process, last), False, run)


@dataclass(frozen=True)
class TorchsdePeer:
    """torchsde.sdeint of the reverse SDE by Euler-Maruyama, or by 'srk' (10 calls a step), its
    default for diagonal noise; uniform steps of time.

    Its check of the SDE calls the network once before the first step; that call is counted.
    """

    name: str = "euler"
    grid: str = "uniform"
    library: str = "torchsde"

    def plan(self, problem: Problem, nfe: int) -> Plan:
        installed(self.library)
        each = SDE_STAGES[self.name]
        steps = (nfe - 1) // each
        if steps < 1:
            raise Unavailable(f"one step and its check of the SDE make {each + 1} calls")
        if math.isinf(problem.r_max):
            raise Unavailable("the reverse SDE is singular at pure noise, where the model starts")
        process = problem.process
        first, last = process.t_max, problem.model.t_min

        def run(model: Denoiser, w: Tensor, seed: int) -> Tensor:
            import torchsde

            shape = w.shape
            sde = reverse_sde(model, event_shape=shape[1:])
            span = torch.tensor([0.0, first - last], dtype=torch.float64)
            y = from_unit(process, w, first).flatten(1)
            noise = torchsde.BrownianInterval(
                0.0,
                float(span[1]),
                size=tuple(y.shape),
                dtype=y.dtype,
                entropy=seed,
                levy_area_approximation="space-time" if self.name == "srk" else "none",
            )
            step = float(span[1]) / steps * (1 + 1e-12)  # or rounding adds a step of 1e-16
            y = torchsde.sdeint(sde, y, span, bm=noise, method=self.name, dt=step)[-1]
            return to_unit(process, y.reshape(shape), last)

        return Plan(1 + each * steps, ratio_at(process, first), ratio_at(process, last), True, run)


FIXED = (TorchdiffeqPeer("midpoint"), TorchdiffeqPeer("rk4"), TorchsdePeer(), TorchsdePeer("srk"))


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
        counter = problems.Counter()
        flow = probability_flow(model.map(counter.around), t_min=model.t_min)

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
        installed("torchdiffeq")
        from torchdiffeq import odeint

        process, counter = model.process, problems.Counter()
        counted = model.map(counter.around)
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
        process, counter = model.process, problems.Counter()
        counted = model.map(counter.around)
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
    return calls // problem.model.calls


ADAPTIVE = tuple(AdaptivePeer(*key) for key in METHODS)
