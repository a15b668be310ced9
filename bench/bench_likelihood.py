"""Cost of log p, by pytest-benchmark: `pytest bench/bench_likelihood.py`.

The peer is the classic of score_sde and its kin, the state and log p in one torchdiffeq dopri5 with
one Rademacher probe. A second group takes real networks: the one that ships, and those of
`UNDIFFUSE_DATA` where it is set. Its figure is a ratio made in one run in which both take turns:
`time_per_unit` is our time of a network call or product over the peer's.
`undiffuse bench likelihood` has the errors that go with these costs.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import undiffuse as ud
from undiffuse.models.checkpoint import load, load_default
from undiffuse.models.dequantize import dequantised
from undiffuse.models.named_targets import digits64
from undiffuse.solvers.likelihood.items import held_out

torch.set_num_threads(1)
PEER: dict[str, Any] = {"backend": "torchdiffeq", "probes": 1}
WAYS: dict[str, dict[str, Any]] = {
    "torchdiffeq, 1 probe": PEER,
    "augmented, 1 probe": {"method": "augmented", "probes": 1},
    "quadrature, default": {},
    "quadrature, exact trace": {"trace": "exact"},
}
EXAMPLES = Path(__file__).parents[1] / "examples"
REAL = {"digits": ("", 16), "mnist_ddpm.py:mnist_cnn": ("ddpm_mnist_cnn", 4)} | {
    f"published.py:{name}": (folder, items)
    for name, folder, items in (
        ("mnist_unet", "ddpm_mnist_unet", 2),
        ("hea", "hea_tabddpm", 16),
        ("signals", "signals_ddpm", 16),
        ("swiss", "swiss_ddpm", 16),
    )
}
"""Networks by their example, each with its folder of UNDIFFUSE_DATA and items at once."""
TURNS = 3


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


@pytest.mark.parametrize("name", REAL)
def test_time_of_a_call_or_product(benchmark: Any, name: str) -> None:
    pytest.importorskip("torchdiffeq")
    folder, items = REAL[name]
    if folder and not (Path(os.environ.get("UNDIFFUSE_DATA", "")) / folder).is_dir():
        pytest.skip(f"UNDIFFUSE_DATA holds no {folder}")
    sys.path.insert(0, str(EXAMPLES))
    network = load(f"{EXAMPLES / name.split(':')[0]}:{name.split(':')[1]}") if folder else None
    network = network or load_default()
    model = network.denoiser
    if network.training.get("data"):
        x = dequantised(held_out(network)[:items], network.spacing, 0)
    else:
        x = ud.sample(model, (items, *network.event_shape), "dpmpp-2m", steps=30, seed=3)
    took: dict[bool, list[float]] = {True: [], False: []}
    units: dict[bool, float] = {}

    def turn() -> None:
        for ours, how in ((False, PEER), (True, {})):
            began = time.perf_counter()
            r = ud.log_prob(model, x, t_min=model.t_min, on_failure="return", **how)
            took[ours].append(time.perf_counter() - began)
            units[ours] = float((r.nfe + r.products).double().mean())

    benchmark.group = f"log p of real networks, {TURNS} turns of the peer and ours"
    benchmark.pedantic(turn, rounds=TURNS, warmup_rounds=1)
    mine, theirs = (statistics.median(took[k]) / units[k] for k in (True, False))
    benchmark.extra_info["time_per_unit"] = mine / theirs
    benchmark.extra_info["units"] = [units[True], units[False]]
    print(f"{name}: {mine / theirs:.2f} of the peer's time a unit; units {units}")
