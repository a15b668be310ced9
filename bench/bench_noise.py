"""Noise beside torch's and torchsde's, by pytest-benchmark: `pytest bench/bench_noise.py`.

Read medians as ratios within a group of one run; `undiffuse bench compare` reads two files of them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import undiffuse as ud

torch.set_num_threads(1)
MILLION = (1, 10**6)
EVENT, BATCH = (3, 32, 32), 16
GRID = torch.linspace(0, 1, 21).tolist()


@pytest.mark.parametrize("which", ["torch.randn", "exact", "fast"])
def test_a_million_normals(benchmark: Any, which: str) -> None:
    benchmark.group = "10^6 normals"
    if which == "torch.randn":
        x = benchmark.pedantic(torch.randn, MILLION, rounds=15, warmup_rounds=2)
    else:
        ud.kernels.warm_up()
        with ud.kernels.using(noise=which):
            x = benchmark.pedantic(ud.kernels.normal, (MILLION, 3), rounds=15, warmup_rounds=2)
    assert abs(float(x.std()) - 1) < 0.01


def test_a_path_of_ours_along_a_grid(benchmark: Any) -> None:
    benchmark.group = "Brownian increments of 20 steps, 16x3x32x32"
    ud.kernels.warm_up()

    def fresh() -> Any:
        return ud.kernels.BrownianPath((BATCH, *EVENT), 3, knots=GRID)

    _along(benchmark, fresh, lambda path, s, t: path.increment(s, t))


@pytest.mark.parametrize("name", ["BrownianInterval", "BrownianTree"])
def test_a_path_of_torchsdes_along_a_grid(benchmark: Any, name: str) -> None:
    torchsde = pytest.importorskip("torchsde")
    benchmark.group = "Brownian increments of 20 steps, 16x3x32x32"
    flat = (BATCH, 3 * 32 * 32)

    def fresh() -> Any:  # a new one each time: it keeps what it was asked
        more = {"size": flat} if name == "BrownianInterval" else {"w0": torch.zeros(flat)}
        return getattr(torchsde, name)(t0=0.0, t1=1.0, entropy=1, **more)

    _along(benchmark, fresh, lambda path, s, t: path(s, t))


def _along(benchmark: Any, fresh: Any, increment: Any) -> None:
    def walk() -> torch.Tensor:
        path = fresh()
        return torch.stack([increment(path, s, t) for s, t in pairwise(GRID)])

    w = benchmark.pedantic(walk, rounds=5, warmup_rounds=1)
    assert abs(float(w.var()) - 0.05) < 0.005
