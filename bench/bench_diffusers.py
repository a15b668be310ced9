"""Host cost of a pipeline's scheduler, by pytest-benchmark: `pytest bench/bench_diffusers.py`.

Each group holds diffusers' DPM-Solver++ 2M and UndiffuseScheduler with the same method; compare
medians within a group of one run. The aim: a step at most half of theirs, set_timesteps of steps
that were asked for before at most a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from undiffuse.diffusers import UndiffuseScheduler

torch.set_num_threads(1)
STEPS = 20
SHAPES = [(1, 4, 64, 64), (2, 4, 128, 128)]
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _theirs() -> Any:
    return diffusers.DPMSolverMultistepScheduler(**LATENT)


def _ours() -> Any:
    return UndiffuseScheduler.from_scheduler(_theirs(), solver="dpmpp-2m")


MADE: dict[str, Callable[[], Any]] = {"diffusers 2M": _theirs, "undiffuse": _ours}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("which", MADE)
def test_steps(benchmark: Any, shape: tuple[int, ...], which: str) -> None:
    benchmark.group = f"{STEPS} steps of {shape}"
    scheduler = MADE[which]()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = x.flip(0)

    def run() -> torch.Tensor:
        scheduler.set_timesteps(STEPS)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(out, t, y, return_dict=False)[0]
        return y

    assert benchmark.pedantic(run, rounds=30, warmup_rounds=3).shape == shape


@pytest.mark.parametrize("which", MADE)
def test_set_timesteps(benchmark: Any, which: str) -> None:
    benchmark.group = "set_timesteps"
    scheduler = MADE[which]()
    scheduler.set_timesteps(STEPS)
    benchmark(lambda: scheduler.set_timesteps(STEPS))
    assert len(scheduler.timesteps) == STEPS
