"""General integrators on the same flow and reverse SDE: torchdiffeq and torchsde.

They know nothing of the linear part that diffusion solvers integrate exactly, which is what this
comparison shows. Both get the drift callables of `solvers.drift`. torchdiffeq's fixed-step methods
are given our grid; torchsde steps uniformly in time, as its users do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models import Denoiser
from ...solvers.flow import probability_flow, reverse_sde
from ...solvers.tables import grids
from ..problems.plans import Plan, Unavailable
from ..problems.problem import Problem, from_unit, ratio_at, to_unit

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
                0.0, float(span[1]), size=tuple(y.shape), dtype=y.dtype, entropy=seed,
                levy_area_approximation="space-time" if self.name == "srk" else "none",
            )  # fmt: skip
            step = float(span[1]) / steps * (1 + 1e-12)  # or rounding adds a step of 1e-16
            y = torchsde.sdeint(sde, y, span, bm=noise, method=self.name, dt=step)[-1]
            return to_unit(process, y.reshape(shape), last)

        return Plan(1 + each * steps, ratio_at(process, first), ratio_at(process, last), True, run)


PEERS = (TorchdiffeqPeer("midpoint"), TorchdiffeqPeer("rk4"), TorchsdePeer(), TorchsdePeer("srk"))
