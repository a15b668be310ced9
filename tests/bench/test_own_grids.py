"""Which grid suits a solver: rows, the choice without a network, what is refused."""

import json
import math

import pytest
import torch

import undiffuse as ud
from undiffuse.bench import own_grids

pytest.importorskip("scipy")
CODE = """
import torch
from undiffuse.models import VP, GaussianMixture
from undiffuse.models.checkpoint import Checkpoint
def made(means, process):
    law = GaussianMixture(torch.ones(2), torch.tensor(means, dtype=torch.float64), 0.1)
    return Checkpoint(law.denoiser(process), (2,), (-3.0, 3.0))
def first():
    return made([[1.0, 0.0], [-1.0, 0.5]], VP())
def second():
    return made([[0.8, 0.3], [-0.8, 0.2]], VP())
"""
SMALL = {"solvers": ["ddim", "dpmpp-2m"], "nfe": [4], "starts": 3, "progress": False}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    path = tmp_path_factory.mktemp("grids") / "two.py"
    path.write_text(CODE)
    return [f"{path}:first", f"{path}:second"]


@pytest.fixture(scope="module")
def measured(networks, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured")
    found = own_grids.run(networks, out, **SMALL)
    return out, found, [json.loads(x) for x in (out / "own-grids.jsonl").read_text().splitlines()]


def test_a_row_is_the_error_of_what_sample_runs(measured, networks):
    """dpmpp-2m on karras at four calls, held to a fine Heun run and a jump from there."""
    _, _, records = measured
    model = ud.load(networks[0]).denoiser
    run = {"seed": 0, "dtype": torch.float64}
    x = ud.sample(model, (3, 2), "dpmpp-2m", nfe=4, grid="karras", **run)
    fine = ud.sample(model, (3, 2), "heun", 800, "log_snr", final="t_min", **run)
    off = (x - model(fine, model.t_min)).square().mean(1).sqrt().mean()
    assert records[0]["rows"]["dpmpp-2m|karras|4"] == pytest.approx(float(off), rel=0.01)


def test_the_choice_for_a_network_uses_no_row_of_it(measured):
    _, found, records = measured
    assert set(found) == set(SMALL["solvers"]) and set(found["ddim"]) == set(own_grids.GRIDS)
    held = own_grids.logs(records)["dpmpp-2m"]
    chosen, value = own_grids.left_out(held)
    for here, there in (("first", "second"), ("second", "first")):
        assert chosen[here] == min(held, key=lambda g, there=there: held[g][there])
    expected = sum(held[chosen[x]][x] for x in ("first", "second")) / 2
    assert value == pytest.approx(math.exp(expected), rel=1e-12)
    least = min(v for k, v in records[0]["rows"].items())
    row = records[0]["rows"]["dpmpp-2m|karras|4"]
    assert held["karras"]["first"] == pytest.approx(math.log(row / least), rel=1e-12)


def test_a_run_that_is_not_finite_counts_as_failed_and_a_second_run_goes_on(
    measured, networks, monkeypatch
):
    out, found, records = measured
    changed = json.loads(json.dumps(records))
    changed[0]["rows"]["ddim|karras|4"] = None
    assert own_grids.logs(changed)["ddim"]["karras"]["first"] == math.log(own_grids.CAP)
    monkeypatch.setattr(own_grids, "measure", None)
    assert own_grids.run(networks, out, **SMALL) == found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nfe": [1]}, r"nfe must be .* >= 2; got \[1\]"),
        ({"starts": 1}, "starts must be at least 2; got 1"),
        ({"solvers": ["ddpm"]}, "must draw no noise"),
        ({"solvers": ["ddimm"]}, "ddim"),
        ({"networks": ["digits"]}, "two at least"),
        ({"networks": ["digits", "digits"]}, "of different names"),
    ],
)
def test_what_does_not_fit_is_named_before_any_work(tmp_path, change, named, monkeypatch):
    monkeypatch.setattr(own_grids, "load", None)
    options = {"networks": ["a.safetensors", "b.safetensors"], **SMALL, **change}
    with pytest.raises(ValueError, match=named):
        own_grids.run(options.pop("networks"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
