"""The likelihood benchmark against what its rows are known to be."""

import json

import pytest

from undiffuse.bench import exact_likelihood


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("likelihood")
    made = exact_likelihood.run(out, batch=64, progress=False)
    assert json.loads((out / "likelihood.json").read_text())["images"] == made["images"] == 64
    assert (out / "likelihood.md").read_text().count("\n") >= len(exact_likelihood.ROWS)
    return {row["how"]: row for row in made["rows"]}


@pytest.mark.slow
def test_independent_probes_beat_one_held_along_the_path_at_equal_cost(record):
    classic, ours = record["augmented dopri5 1e-5, 1 probe (classic)"], record["quadrature, default"]
    assert ours["products"] <= classic["products"]
    # 0.15 against 0.016 bits/dim over 200 images; 64 images leave a factor of 1.5 of luck
    assert ours["rms"] < 0.25 * classic["rms"]


@pytest.mark.slow
def test_exact_traces_leave_the_integrator_s_error_alone(record):
    for how in ("augmented dopri5 1e-5, exact trace", "quadrature, exact trace"):
        assert record[how]["rms"] < 3e-3 and record[how]["std_error"] == 0


@pytest.mark.slow
def test_error_bars_are_of_the_size_of_the_errors(record):
    for how in ("quadrature, default", "quadrature, 8 probes", "quadrature, target 0.01"):
        row = record[how]
        # the standard deviation of 64 errors is known to 9 %, that of the error bars to less
        assert 0.65 < row["rms"] / row["std_error"] < 1.4
        assert row["covered"] >= 0.87  # 0.95 less three standard errors of 64 trials


def test_an_empty_benchmark_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch must be >= 2"):
        exact_likelihood.run(tmp_path, batch=1)
