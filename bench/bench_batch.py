"""64 mixed requests in one `ContinuousBatch` against one after the other, by pytest-benchmark:
`pytest bench/bench_batch.py`.

Each group is one network; compare medians within a group of one run. The requests are of 20 kinds
(five solvers, two grids, 12 or 20 steps), so that both ways find their tables in the cache as a
server does; they have one or two samples each and come all at once; the batch holds 64 rows.
Networks: none to speak of (half its input), which leaves the host's cost of a step, and three
convolutions of 32 channels. Samples are [1, 8, 8] and [4, 32, 32].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import undiffuse as ud

torch.set_num_threads(1)
SOLVERS = ("dpmpp-2m", "unipc-3", "ddpm", "heun", "relay")
EVENTS = [(1, 8, 8), (4, 32, 32)]


def convolutions(channels: int) -> Callable[..., torch.Tensor]:
    torch.manual_seed(0)
    widths = (channels, 32, 32, channels)
    layers = [torch.nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    return torch.nn.Sequential(*layers).requires_grad_(False)


def mixed(event: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {
            "shape": (1 + k % 2, *event),
            "solver": SOLVERS[k % len(SOLVERS)],
            "steps": (12, 20)[k // 5 % 2],
            "grid": ("log_snr", "uniform")[k // 10 % 2],
            "seed": k,
        }
        for k in range(64)
    ]


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("network", ["none", "convolutions"])
@pytest.mark.parametrize("how", ["one at a time", "one batch"])
def test_mixed_requests(benchmark: Any, how: str, network: str, event: tuple[int, ...]) -> None:
    inner = convolutions(event[0]) if network == "convolutions" else lambda x: 0.5 * x
    model, requests = ud.Denoiser(lambda x, t: inner(x), ud.VP()), mixed(event)
    benchmark.group = f"{network}, {event}"

    def alone() -> list[torch.Tensor]:
        return [ud.sample(model, **request, on_failure="return") for request in requests]

    def together() -> list[torch.Tensor]:
        batch = ud.ContinuousBatch(model, 64)
        running = [batch.add(**request) for request in requests]
        batch.run()
        return [request.result() for request in running]

    found = benchmark.pedantic(
        alone if how == "one at a time" else together, rounds=5, warmup_rounds=1
    )
    assert len(found) == len(requests)
