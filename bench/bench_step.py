"""Host cost of a step without the network, by pytest-benchmark: `pytest bench/bench_step.py`.

Each group is one size; compare medians within a group of one run (`--benchmark-compare` keeps
runs). The loops are those of step_cost.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import undiffuse as ud
from undiffuse.bench.kernels import step_cost

torch.set_num_threads(1)
LOOPS: dict[str, Any] = {
    "in place": step_cost.by_hand,
    "in place, noisy": step_cost.by_hand_noisy,
    "diffusers 2M": step_cost.diffusers_2m,
    **{name: partial(step_cost.ours, name) for name in ("ddim", "dpmpp-2m", "ddpm")},
}


@pytest.mark.parametrize("shape", step_cost.SIZES, ids=str)
@pytest.mark.parametrize("which", LOOPS)
def test_step(benchmark: Any, shape: tuple[int, ...], which: str) -> None:
    if which == "diffusers 2M":
        pytest.importorskip("diffusers")
    benchmark.group = f"{step_cost.STEPS} steps of {shape}"
    run = LOOPS[which](shape, ud.kernels.normal(shape, seed=1))
    x = benchmark.pedantic(run, rounds=15, warmup_rounds=2)
    assert x.shape == shape


@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun", "unipc-3"])
def test_planning_a_thousand_steps(benchmark: Any, solver: str) -> None:
    process = ud.VP()
    s = ud.solvers.get(solver)
    benchmark.group = "planning 1000 steps"
    table = benchmark(lambda: s.tableau(process, ud.solvers.times("karras", process, 1000)))
    assert table.nfe >= 1000
