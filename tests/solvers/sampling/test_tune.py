"""Tuning end to end: written, refused, read by samplers and by the benchmark."""

import dataclasses
import json

import pytest
import torch

import undiffuse as ud
from undiffuse.bench.nfe import run as nfe
from undiffuse.bench.problems import plans
from undiffuse.bench.problems import plans as lineup
from undiffuse.bench.problems import problem as problems
from undiffuse.models.named_targets import get
from undiffuse.models.networks import InItsOwnType
from undiffuse.solvers import Tableau
from undiffuse.solvers.sampling import tune as tuning
from undiffuse.solvers.sampling.tuning import FitError, read

QUIET = {"progress": False, "starts": 64, "iterations": 60}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("tune")
    return out, tuning.tune(out, target="ring2", nfe=[4, 6], **QUIET)


def test_a_tuned_table_has_the_error_that_was_printed_on_starts_of_its_own(tuned):
    """The last quarter of the starts, run by the ordinary sampler, against their own fine ends."""
    out, errors = tuned
    law, model = get("ring2"), get("ring2").law.denoiser(get("ring2").process)
    x = tuning.exact_starts("ring2", 64, 0)[48:]
    goal = ud.solvers.tuning.references(model, x, 1.0, model.t_min)
    for n, error in errors.items():
        table = read(out / f"learned-{n}.json", model.process)
        assert table.nfe == n
        y = ud.sample(model, x.shape, table, x_init=x, dtype=torch.float64)
        off = float((y - goal).square().mean(1).sqrt().mean())
        std = float(law.law.sample(8192, seed=1).var(0).mean().sqrt())
        assert off / std == pytest.approx(error, rel=1e-6)
        notes = json.loads((out / f"learned-{n}.json").read_text())["notes"]
        assert notes["problem"] == "ring2" and notes["after"] == error < 0.6 * notes["before"]


def test_the_benchmark_runs_tuned_tables_on_the_problem_they_are_for(tuned, tmp_path):
    """Ahead of the classical rows at 6 calls, on starts that the fit never saw."""
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
        grid=["log_snr", "karras", "laplace", "quadratic"],  # those that tune starts from
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
    (tmp_path / "learned-4.json").write_text((out / "learned-4.json").read_text())
    other = plans.Tuned.of(str(tmp_path))
    assert one.digest != other.digest
    with pytest.raises(ValueError, match="no JSON of a table in .*: run `undiffuse tune"):
        (tmp_path / "empty").mkdir()
        plans.Tuned.of(str(tmp_path / "empty"))


def test_a_refusal_does_not_keep_the_others_from_being_fitted(tmp_path, monkeypatch):
    real = tuning.fit

    def refuses_two(model, x, goal, start, **rest):
        if start.nfe == 2:
            raise FitError("no better")
        return real(model, x, goal, start, **rest)

    monkeypatch.setattr(tuning, "fit", refuses_two)
    with pytest.raises(FitError, match="2 calls: no better"):
        tuning.tune(tmp_path, target="ring2", nfe=[2, 4], statistics=["none"], **QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["learned-4.json"]
    process = get("ring2").process
    assert isinstance(read(tmp_path / "learned-4.json", process), Tableau)  # nothing but none


def test_the_choice_is_the_least_of_those_it_looks_at():
    """The starts' errors of every grid at the chosen points, statistics and start, by the
    sampler."""
    law = get("ring2").law
    model = law.denoiser(get("ring2").process)
    x = tuning.exact_starts("ring2", 48, 0)
    goal = ud.solvers.tuning.references(model, x, 1.0, model.t_min)
    stats = tuning.known_statistics(law.sample(500, seed=1), None, 2)
    table, choice = tuning.best_initial(model, x, goal, 1.0, model.t_min, 5, stats)

    def error(t):
        y = ud.sample(model, x.shape, t.tableau(model.process), x_init=x, dtype=torch.float64)
        return float((y - goal).square().mean(1).sqrt().mean())

    from undiffuse.solvers.sampling.tuning import SPACINGS, Choice, initial

    others = [
        initial(
            model.process,
            1.0,
            model.t_min,
            5,
            stats[choice.statistics],
            Choice(choice.statistics, choice.points, g, choice.start),
        )
        for g in SPACINGS
    ]
    assert error(table) == pytest.approx(min(map(error, others)))


def test_statistics_are_a_solver_and_beat_the_same_order_without_them(tmp_path):
    """Gaussian-like data at 6 calls: the linear flow is exact, what is left is small."""
    target = get("stiff")
    model = target.law.denoiser(target.process)
    p = problems.exact(target, 64, 0)
    x = problems.from_unit(p.process, p.start, 1.0)
    goal = ud.solvers.tuning.references(model, x, 1.0, model.t_min)
    ud.solvers.Statistics.of(target.law.sample(4000, seed=1), "full").save(tmp_path / "s.json")
    solver = read(tmp_path / "s.json", p.process)

    def error(solver):
        y = ud.sample(
            model, x.shape, solver, 6, "log_snr", x_init=x, final="t_min", dtype=torch.float64
        )
        return float((y - goal).square().mean(1).sqrt().mean())

    assert error(solver) < 0.2 * error("dpmpp-2m")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"starts": 4}, "starts must be >= 8; got 4"),
        ({"nfe": [1]}, "nfe must be numbers of calls >= 2; got"),
        ({"target": "ring2", "model": "x"}, "a model or a target, not both"),
        ({"target": "ring2", "statistics": ["three.json"]}, "are of 3 components, not 2"),
        ({"target": "ring2", "statistics": ["wavelet"]}, "statistics must be none, full"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    ud.solvers.Statistics.none(3).save("three.json")
    with pytest.raises(ValueError, match=message):
        tuning.tune(tmp_path, **{"progress": False, **given})


def test_statistics_need_data_and_a_place(tmp_path):
    with pytest.raises(ValueError, match="no place beside it: give `out`"):
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
    assert [c.library for c in lineup.ours(["ddim"], ["log_snr"])] == ["undiffuse"]
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
    errors = tuning.tune(
        tmp_path,
        model=f"{tmp_path / 'nets.py'}:{name}",
        nfe=[4],
        starts=16,
        iterations=0,
        progress=False,
    )
    assert 0.0 < errors[4] < 0.3  # 0.13 and 0.16: the classical table itself
    notes = json.loads((tmp_path / "learned-4.json").read_text())["notes"]
    assert (name == "bfloat16") or "statistics='none'" in notes["initial"]


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
