"""Cost of log p of 16 events, by pytest-benchmark: `pytest bench/bench_likelihood.py`.

The peer is the classic of score_sde and its kin, the state and log p in one torchdiffeq dopri5 with
one Rademacher probe; `undiffuse bench likelihood` has the errors that go with these costs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import undiffuse as ud
from undiffuse.models.named_targets import digits64

torch.set_num_threads(1)
WAYS: dict[str, dict[str, Any]] = {
    "torchdiffeq, 1 probe": {"backend": "torchdiffeq", "probes": 1},
    "augmented, 1 probe": {"method": "augmented", "probes": 1},
    "quadrature, default": {},
    "quadrature, exact trace": {"trace": "exact"},
}


@pytest.mark.parametrize("way", WAYS)
def test_log_prob(benchmark: Any, way: str) -> None:
    pytest.importorskip("sklearn")
    benchmark.group = "log p of 16 digits, 64 components, exact score"
    law = digits64().law
    model, x = law.denoiser(ud.VP()), law.sample(16, seed=1)
    found = benchmark.pedantic(
        ud.log_prob, (model, x), {"seed": 2, **WAYS[way]}, rounds=3, warmup_rounds=1
    )
    gap = (found.log_prob - law.log_prob(x)).abs().mean() / 64
    assert float(gap) < 1.0
