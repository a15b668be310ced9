"""Host cost of a step without the network, by pytest-benchmark: `pytest bench/bench_step.py`.

Each group is one size; compare medians within a group of one run (`--benchmark-compare` keeps
runs). 'in place' is the loop a careful person writes by hand, with the coefficients as floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import undiffuse as ud

SIZES = [(1, 4, 64, 64), (16, 3, 32, 32), (64, 3, 64, 64)]
STEPS = 20
torch.set_num_threads(1)


def ours(solver: str, shape: tuple[int, ...], out: Tensor) -> Callable[[], Any]:
    sampler = ud.Sampler(ud.VP(), solver, STEPS, predicts="noise")
    first = sampler.init(shape)

    def run() -> Tensor:
        state = first
        while not state.done:
            state = sampler.tell(state, out)
        return state.x

    return run


def by_hand(shape: tuple[int, ...], out: Tensor) -> Callable[[], Any]:
    """DPM-Solver++ 2M of a noise network: D, then three terms, in place."""
    sampler = ud.Sampler(ud.VP(), "dpmpp-2m", STEPS, predicts="noise")
    columns = sampler.plan.table.double().tolist()
    first = sampler.init(shape).x

    def run() -> Tensor:
        x, older = first.clone(), out
        for skip, w0, _, _, a, b0, b1 in columns:
            d = torch.mul(x, skip).add_(out, alpha=w0)
            x.mul_(a).add_(d, alpha=b0).add_(older, alpha=b1)
            older = d
        return x

    return run


def diffusers_2m(shape: tuple[int, ...], out: Tensor) -> Callable[[], Any]:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS)
        x = out
        for t in scheduler.timesteps:
            x = scheduler.step(out, t, x).prev_sample
        return x

    return run


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("which", ["in place", "ddim", "dpmpp-2m", "ddpm", "diffusers 2M"])
def test_step(benchmark: Any, shape: tuple[int, ...], which: str) -> None:
    benchmark.group = f"{STEPS} steps of {shape}"
    out = ud.kernels.normal(shape, seed=1)
    made = {"in place": by_hand, "diffusers 2M": diffusers_2m}.get(which)
    run = made(shape, out) if made else ours(which, shape, out)
    x = benchmark.pedantic(run, rounds=15, warmup_rounds=2)
    assert x.shape == shape


@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun", "unipc-3"])
def test_planning_a_thousand_steps(benchmark: Any, solver: str) -> None:
    process = ud.VP()
    s = ud.solvers.get(solver)
    benchmark.group = "planning 1000 steps"
    table = benchmark(lambda: s.tableau(process, ud.solvers.times("karras", process, 1000)))
    assert table.nfe >= 1000
