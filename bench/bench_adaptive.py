"""Adaptive loops to one tolerance, by pytest-benchmark: `pytest bench/bench_adaptive.py`.

An uneven batch and its exact network; ours chooses steps by the sample, the peers by the batch.
`undiffuse bench adaptive` counts their calls and errors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from undiffuse.bench import adaptive
from undiffuse.bench.adaptive import methods
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import Unavailable
from undiffuse.bench.problems.problem import from_unit

torch.set_num_threads(1)
METHODS = {f"{m.library} {m.name}": m for m in methods()}


@pytest.mark.parametrize("which", METHODS)
def test_to_a_tolerance(benchmark: Any, which: str) -> None:
    benchmark.group = "48 uneven samples, tolerance 1e-2"
    target = adaptive.uneven()
    problem = replace(problems.exact(target, 48), model=adaptive.element_wise(target))
    x = from_unit(problem.process, problem.start, problem.process.t_max)

    def run() -> Any:
        with torch.no_grad():
            return METHODS[which].run(problem.model, x, 1e-2)

    try:
        run()
    except Unavailable as error:
        pytest.skip(str(error))
    end, calls = benchmark.pedantic(run, rounds=3)
    benchmark.extra_info["calls"] = float(calls.double().mean())
    assert bool(torch.isfinite(end).all())
