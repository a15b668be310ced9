"""Tuning by name: what is written, kept, read by samplers and by the benchmark."""

import dataclasses
import json

import pytest
import torch

import undiffuse as ud
from undiffuse.bench.nfe import run as nfe
from undiffuse.bench.problems import plans
from undiffuse.bench.problems import problem as problems
from undiffuse.models.named_targets import get
from undiffuse.models.networks import InItsOwnType
from undiffuse.solvers.families.tuned import read
from undiffuse.solvers.sampling import tuning

QUIET = {"progress": False, "starts": 32, "iterations": 40, "calls": 400}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("tune")
    return out, tuning.tune(out, target="ring2", nfe=[4, 6], learn=True, **QUIET)


def fine(model, x):
    return ud.sample(model, x.shape, "unipc-3", 300, "log_snr", x_init=x, final="t_min")


def test_a_file_has_the_error_that_was_told_on_starts_of_its_own(tuned):
    """256 starts that the pilot never had: within a factor of three, as a few near a parting of
    the ways err most of all that is erred."""
    out, errors = tuned
    law = get("ring2")
    model = law.law.denoiser(law.process)
    z = ud.kernels.normal((256, 2), 7, dtype=torch.float64)
    x = z * float(law.process.sigma(law.process.t_max))
    goal = fine(model, x)
    std = float(goal.var(0).mean().sqrt())
    for n, error in errors.items():
        table = read(out / f"tuned-{n}.json", model.process)
        assert table.nfe == n
        clean = float(table.grid[-1]) == 0
        y = ud.sample(model, x.shape, table, x_init=x)
        off = y - (model(goal, model.t_min) if clean else goal)
        mean = float(off.square().mean(1).sqrt().mean()) / std
        notes = json.loads((out / f"tuned-{n}.json").read_text())["notes"]
        assert notes["problem"] == "ring2" and notes["error"] == error
        assert error / 3 < mean < 3 * error
        if notes["unlearned"] is not None:
            assert error < notes["unlearned"]


def test_the_same_settings_are_kept_and_others_looked_for_again(tuned, capsys, monkeypatch):
    out, errors = tuned
    before = (out / "tuned-4.json").read_text()
    again = tuning.tune(out, target="ring2", nfe=[4], learn=True, **QUIET)
    assert again == {4: errors[4]} and (out / "tuned-4.json").read_text() == before
    assert "4 calls: kept" in capsys.readouterr().out
    monkeypatch.setattr(tuning.pilot, "tune", lambda *a, **k: pytest.fail("looked again"))
    for change in ({"seed": 1}, {"final": "t_min"}, {"starts": 16}):
        with pytest.raises(pytest.fail.Exception, match="looked again"):
            tuning.tune(out, target="ring2", nfe=[4], learn=True, **{**QUIET, **change})


def test_the_benchmark_runs_tuned_tables_on_the_problem_they_are_for(tuned, tmp_path):
    """Ahead of the classical rows at 6 calls, on starts that the pilot never had."""
    out, _ = tuned
    found = nfe.run(
        tmp_path,
        checkpoint="none",
        targets=["ring2", "moons"],
        peers=[],
        batch=64,
        solvers=["vab-4", "dpmpp-2m", str(out)],
        nfe=[4, 6, 9],
        progress=False,
        grid=["log_snr", "karras", "laplace", "quadratic"],
    )
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    mine = {(r["problem"], r["nfe_asked"]): r for r in rows if r["library"] == plans.TUNED}
    assert mine["ring2", 9]["nfe"] == 6  # the most calls of its tables
    assert mine["moons", 6]["status"] == "unavailable"
    assert "no table for moons" in mine["moons", 6]["message"]
    best = found["front"]["ring2"]["6"]
    assert best["tuned"]["error"] < best["ours"]["error"] and best["peers"] is None


def test_other_tables_in_the_same_folder_are_other_cells(tuned, tmp_path):
    out, _ = tuned
    one = plans.Tuned.of(str(out))
    (tmp_path / "tuned-4.json").write_text((out / "tuned-4.json").read_text())
    other = plans.Tuned.of(str(tmp_path))
    assert one.digest != other.digest
    with pytest.raises(ValueError, match="no JSON of a table in .*: run `undiffuse tune"):
        (tmp_path / "empty").mkdir()
        plans.Tuned.of(str(tmp_path / "empty"))


def test_statistics_are_a_solver_and_beat_the_same_order_without_them(tmp_path):
    """Gaussian-like data at 6 calls: the linear flow is exact, what is left is small."""
    target = get("stiff")
    model = target.law.denoiser(target.process)
    p = problems.exact(target, 64, 0)
    x = problems.from_unit(p.process, p.start, 1.0)
    goal = fine(model, x)
    ud.solvers.Statistics.of(target.law.sample(4000, seed=1), "full").save(tmp_path / "s.json")
    solver = read(tmp_path / "s.json", p.process)

    def error(solver):
        y = ud.sample(
            model, x.shape, solver, 6, "log_snr", x_init=x, final="t_min", dtype=torch.float64
        )
        return float((y - goal).square().mean(1).sqrt().mean())

    assert error(solver) < 0.2 * error("dpmpp-2m")


@pytest.mark.parametrize("learn", [False, True])
def test_data_that_are_nearly_gaussian_choose_the_table_that_knows_it(tmp_path, learn):
    """What is saved reads back as the table that was found, learned or not."""
    target = get("stiff")
    model, data = target.law.denoiser(target.process), target.law.sample(2000, seed=1)
    found = ud.tune(
        model, (4, *data.shape[1:]), 5, data=data, learn=learn, starts=16, iterations=20, calls=600
    )
    assert found.choice.startswith("gaussian-")
    again = read(found.save(tmp_path / "t.json"), model.process)
    x, y = (ud.sample(model, (4, *data.shape[1:]), t) for t in (found.table, again))
    assert again.nfe == 5 and torch.allclose(x, y, rtol=1e-6, atol=1e-6)
    assert found.at(model, 8).nfe == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"starts": 4}, "starts must be >= 8; got 4"),
        ({"nfe": [1]}, "nfe must be numbers of calls >= 2; got"),
        ({"target": "ring2", "model": "x"}, "a model or a target, not both"),
    ],
)
def test_bad_input_is_named(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        tuning.tune(tmp_path, **{"progress": False, **given})


def test_statistics_need_data_and_a_place(tmp_path):
    with pytest.raises(ValueError, match="no place beside it: give out"):
        tuning.statistics()
    path = ud.models.checkpoint.load_default().save(tmp_path / "digits.safetensors")
    found = tuning.statistics(model=path, kind="cosine")
    assert found == tmp_path / "digits.statistics.json"
    assert ud.solvers.Statistics.load(found).mean.shape == (64,)
    assert tuning.statistics(data="digits", out=tmp_path) == tmp_path / "statistics.json"


def test_a_file_of_something_else_is_named_and_a_folder_does_not_hide_a_solver(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ddim").mkdir()
    assert [c.library for c in plans.ours(["ddim"], ["log_snr"])] == ["undiffuse"]
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="list.json holds no table"):
        plans.tuned_to(tmp_path / "list.json")


def test_statistics_that_fit_no_grid_are_an_unavailable_row(tmp_path, monkeypatch):
    """Pure noise is left without a call, so a flow has one step more than calls."""
    ud.solvers.Statistics.none(2).save(tmp_path / "s.json")
    law = get("ring2").law
    p = problems.exact(get("ring2"), 4, 0)
    flow = dataclasses.replace(p, model=law.denoiser(ud.Flow()))
    config = plans.Tuned.of(str(tmp_path / "s.json"))
    assert config.plan(flow, 3).calls == 3
    monkeypatch.setattr(plans.grid_rules, "times", lambda *_: torch.tensor([1.0, 0.1]).double())
    with pytest.raises(plans.Unavailable, match="two times at least"):
        config.plan(flow, 3)


NETS = """
import copy, dataclasses
import torch
import undiffuse as ud

def changed(**how):
    made = ud.load_default()
    return dataclasses.replace(made, denoiser=dataclasses.replace(made.denoiser, **how))

def bfloat16():
    return changed(net=copy.deepcopy(ud.load_default().denoiser.net).bfloat16())

def clips():
    return changed(clip=(-1.5, 1.5))
"""


@pytest.mark.parametrize("name", ["bfloat16", "clips"])
def test_networks_of_half_precision_and_that_clip_are_tuned(tmp_path, name):
    """Clipping acts on pixels, so no statistics are tried; the states stay float32."""
    (tmp_path / "nets.py").write_text(NETS)
    spec = f"{tmp_path / 'nets.py'}:{name}"
    errors = tuning.tune(tmp_path, model=spec, nfe=[4], calls=160, progress=False)
    assert 0.0 < errors[4] < 0.4  # the best classical table itself
    notes = json.loads((tmp_path / "tuned-4.json").read_text())["notes"]
    assert (name == "bfloat16") or "gaussian" not in notes["choice"]


def test_a_network_of_half_precision_is_told_whole_times():
    """bfloat16 would make 1000 of 999."""
    told = []

    class Net(torch.nn.Linear):
        def forward(self, x, t):
            told.append(t)
            return super().forward(x)

    net = InItsOwnType(Net(3, 3).bfloat16())
    out = net(torch.ones(2, 3).double(), torch.full((2,), 999.0).double())
    assert out.dtype == torch.float64 and told[0].tolist() == [999.0, 999.0]
