"""Host cost of a step with its log-density beside the step alone: `pytest bench/bench_density.py`.

Each group is one size; compare medians within a group of one run. No network is called.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import undiffuse as ud
from undiffuse.bench.kernels import step_cost

torch.set_num_threads(1)


def flow_grpo(sampler: ud.Sampler, x: Tensor) -> Callable[[], Tensor]:
    """The same steps as published code writes them: one operation after the other."""
    sigmas = sampler.tableau.grid.tolist()

    def run() -> Tensor:
        y, total = x, torch.zeros(len(x))
        for s, then in pairwise(sigmas[:-1]):
            v, dt = 0.1 * y, then - s
            eta = 0.7 * (s / (1 - (sigmas[1] if s == 1 else s))) ** 0.5
            std = eta * (-dt) ** 0.5
            mean = y * (1 + eta**2 / (2 * s) * dt) + v * (1 + eta**2 * (1 - s) / (2 * s)) * dt
            y = mean + std * torch.randn_like(mean)
            each = -((y - mean) ** 2) / (2 * std**2) - torch.log(torch.tensor(std * 2.5066))
            total = total + each.flatten(1).sum(1)
        return total

    return run


def ours(sampler: ud.Sampler, x: Tensor, scored: bool) -> Callable[[], Tensor]:
    def run() -> Tensor:
        state, total = sampler.init(x.shape, seed=1), torch.zeros(len(x))
        while not state.done:
            x_in = state.x_in
            assert x_in is not None
            out: Tensor = 0.1 * x_in
            if scored:
                step = sampler.step_with_log_prob(state, out)
                state, total = step.state, total + step.log_prob
            else:
                state = sampler.tell(state, out)
        return total

    return run


@pytest.mark.parametrize("shape", step_cost.SIZES, ids=str)
@pytest.mark.parametrize("which", ["tell", "step_with_log_prob", "operation by operation"])
def test_step(benchmark: Any, shape: tuple[int, ...], which: str) -> None:
    model = ud.Denoiser(lambda x, t: 0.1 * x, ud.Flow(), predicts="flow")
    sampler = ud.Sampler(model, ud.solvers.FlowSDE(0.7), steps=11, grid="uniform")
    x = ud.kernels.normal(shape, seed=1)
    benchmark.group = f"10 steps of {shape}"
    if which == "operation by operation":
        run = flow_grpo(sampler, x)
    else:
        run = ours(sampler, x, which == "step_with_log_prob")
    assert benchmark.pedantic(run, rounds=15, warmup_rounds=2).shape == shape[:1]
