"""What the host spends beside the network, by pytest-benchmark: `pytest bench/bench_host.py`.

Compare medians within a group of one run. `undiffuse bench host` writes the same as ratios.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from undiffuse.bench import host
from undiffuse.bench.problems.plans import Unavailable
from undiffuse.kernels import normal, warm_up

torch.set_num_threads(1)
STEPS = {**{f"2M {k}": v for k, v in host.DETERMINISTIC.items()}}
STEPS |= {f"ddpm {k}": v for k, v in host.NOISY.items()}


def timed(benchmark: Any, group: str, run: Any, rounds: int = 15) -> Any:
    benchmark.group = group
    return benchmark.pedantic(run, rounds=rounds, warmup_rounds=2)


@pytest.mark.parametrize("shape", host.SHAPES, ids=str)
@pytest.mark.parametrize("which", STEPS)
def test_twenty_steps(benchmark: Any, shape: tuple[int, ...], which: str) -> None:
    warm_up()
    try:
        run = STEPS[which](shape, normal(shape, seed=1))
    except (ImportError, Unavailable) as error:
        pytest.skip(str(error))
    assert timed(benchmark, f"{which.split()[0]}, 20 steps of {shape}", run).shape == shape


@pytest.mark.parametrize("solver", ["dpmpp-2m", "relay"])
@pytest.mark.parametrize("which", ["first Sampler", "second Sampler", "diffusers"])
def test_a_sampler(benchmark: Any, solver: str, which: str) -> None:
    found = host.samplers(solver)
    if which not in found:
        pytest.skip("diffusers is not installed")
    timed(benchmark, f"a Sampler of {solver}", found[which], 30)


@pytest.mark.parametrize("shape", host.SHAPES, ids=str)
@pytest.mark.parametrize(
    "which", ["network alone", "in place", "ours, sample", "diffusers", "k-diffusion"]
)
def test_a_small_network(benchmark: Any, shape: tuple[int, ...], which: str) -> None:
    found = host.runs(shape)
    if which not in found:
        pytest.skip(f"{which} is not installed")
    x = timed(benchmark, f"20 calls of a small network, {shape}", found[which], 5)
    assert x.shape == shape and bool(torch.isfinite(x).all())
