"""The likelihood benchmark against what its rows are known to be."""

import json

import pytest
import torch

from undiffuse.bench.likelihood import exact as exact_likelihood
from undiffuse.bench.peers import likelihood as likelihood_peers
from undiffuse.models import VP, Denoiser, GaussianMixture


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("likelihood")
    made = exact_likelihood.run(out, batch=64, progress=False, quick=True)
    assert json.loads((out / "likelihood.json").read_text())["seed"] == made["seed"] == 0
    assert (out / "likelihood.md").read_text().count("\n") >= len(exact_likelihood.OURS)
    return made


@pytest.fixture(scope="module")
def rows(record):
    (target,) = record["targets"]
    assert target["target"] == "digits64"
    return {row["how"]: row for row in target["rows"]}


CLASSIC = "augmented dopri5 1e-5, 1 probe (classic)"


@pytest.mark.slow
def test_independent_probes_beat_one_held_along_the_path_at_equal_cost(rows):
    ours = rows["quadrature, default"]
    for how in (CLASSIC, *exact_likelihood.PEERS):
        cost = [r["forwards"] + r["products"] for r in (ours, rows[how])]
        # torchdiffeq steps the whole batch at once, which on these images costs a sixth less
        assert cost[0] <= 1.25 * cost[1]
        # 0.15 against 0.016 bits/dim over 200 images; 64 images leave a factor of 1.5 of luck
        assert ours["rms"] < 0.25 * rows[how]["rms"]


@pytest.mark.slow
def test_exact_traces_leave_the_integrator_s_error_alone(rows):
    for how in exact_likelihood.EXACT:
        assert rows[how]["rms"] < 3e-3 and rows[how]["std_error"] == 0
        assert rows[how]["solver"] < 3e-4  # bits/dim; the prior and t_min are the rest
        assert 0.5 < rows[how]["path_error"] / rows[how]["solver"] < 12
    chosen, four = (rows[f"quadrature, exact trace{n}"] for n in ("", ", 4 nodes a step"))
    assert chosen["products"] < 0.85 * four["products"]  # and 6e-5 against 2.5e-5 bits/dim


@pytest.mark.slow
def test_error_bars_are_of_the_size_of_the_errors(rows):
    for how in ("quadrature, default", "quadrature, 8 probes", "quadrature, target 0.01"):
        # the standard deviation of 64 errors is known to 9 %, that of the error bars to less
        assert 0.65 < rows[how]["rms"] / rows[how]["std_error"] < 1.4
        assert rows[how]["within_2"] >= 0.87  # 0.95 less three standard errors of 64 trials


@pytest.mark.slow
def test_a_value_depends_on_its_batch_in_the_peers_only(record):
    apart = {row["how"]: row["largest"] for row in record["coupling"]}
    for how in exact_likelihood.PEERS:
        assert apart[how] > 1e-6  # their step sizes follow the worst of the batch
    assert apart["quadrature, default"] < 1e-12 and apart[CLASSIC] < 1e-8  # rounding


def test_the_peers_give_one_number_and_the_exact_one_without_a_probe_s_error():
    """In one dimension a Rademacher probe is the exact trace, so RK45 and dopri5 agree with the
    density, up to the prior's mismatch; the score_sde way calls the network twice."""
    law, process = GaussianMixture([1, 2], [[-1.0], [1.0]], [0.1, 0.2]), VP()
    calls = []

    class Counted(torch.nn.Module):
        def forward(self, x, t):
            calls.append(len(x))
            return law.denoiser(process)(x, t)

    model, x = Denoiser(Counted(), process, predicts="data"), law.sample(5, seed=1)
    found = likelihood_peers.by_scipy(model, x, 0)
    assert len(calls) == int(found.forwards[0]) == 2 * int(found.products[0])
    other = likelihood_peers.by_torchdiffeq(model, x, 0)
    torch.testing.assert_close(found.log_prob, other.log_prob, rtol=0, atol=1e-3)
    assert (found.log_prob - law.log_prob(x)).abs().max() < 1e-2
    assert found.std_error.isnan().all() and other.std_error.isnan().all()


def test_an_empty_benchmark_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch must be >= 2"):
        exact_likelihood.run(tmp_path, batch=1)
