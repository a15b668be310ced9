"""The main job: cells are run once, counted, resumed, tabled, drawn; bad input is refused first."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from undiffuse.bench.measures import quality
from undiffuse.bench.nfe import campaign
from undiffuse.bench.nfe import run as nfe
from undiffuse.bench.peers import samplers as peers
from undiffuse.bench.problems import plans
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import Ours
from undiffuse.models import Denoiser, Flow, guidance
from undiffuse.models import progress as nfe_bar
from undiffuse.models.checkpoint import Checkpoint, load_default
from undiffuse.models.named_targets import get
from undiffuse.solvers import store

from .runs import computed, run

pytest.importorskip("scipy")


def test_a_run_writes_its_files_and_returns_the_summary(tmp_path, capsys):
    summary = run(tmp_path, solvers=["ddim", "dpmpp-2m", "ddpm"], grid=["log_snr"])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["cells"] == 6 and summary["failed"] == 0
    about = summary["problems"]["ring2"]
    assert about["r_max"] == pytest.approx(157.407, rel=1e-4)
    assert 20 * about["reference_error"] <= about["smallest_error"]
    records = store.Store(tmp_path).records.values()
    errors = {(r["solver"], r["nfe"]): r["error"] for r in records if "error" in r}
    assert errors["ddim", 8] < errors["ddim", 4]
    assert errors["dpmpp-2m", 8] < errors["ddim", 8]
    for r in records:
        noisy = r["solver"] == "ddpm"
        assert r["stochastic"] is noisy and ("sw2" in r) is noisy and ("error" in r) is not noisy
        field = "log_density_gap" if noisy else "error"
        assert r[f"{field}_lo"] <= r[field] <= r[f"{field}_hi"]
        assert r["nfe"] == r["nfe_asked"] and r["start"] > r["end"] > 0
    assert (tmp_path / "nfe.png").stat().st_size > 10_000
    assert not (tmp_path / "samples.png").exists()  # ring2 has no pictures
    printed = capsys.readouterr().out
    assert "ring2: error to the reference trajectory" in printed and "dpmpp-2m" in printed


def test_a_measured_grid_is_laid_once_a_problem_and_beats_the_fixed_ones(tmp_path, monkeypatch):
    """Its pilot's calls are not the rows': a row that made more than it declares would fail."""
    laid, real = [], plans.equidistributed

    def spy(*args, **options):
        laid.append(args)
        return real(*args, **options)

    monkeypatch.setattr(plans, "equidistributed", spy)
    found = run(
        tmp_path, solvers=["ipndm-3"], grid=["log_snr", "equidistributed"], nfe=[10, 15], batch=64
    )
    assert found["failed"] == 0 and len(laid) == 1
    records = store.Store(tmp_path).records.values()
    errors = {(r["grid"], r["nfe"]): r["error_median"] for r in records}
    for n in (10, 15):
        assert errors["equidistributed", n] < 0.6 * errors["log_snr", n]


def test_a_second_run_repeats_no_cell_and_a_wider_one_only_what_is_new(tmp_path, monkeypatch):
    run(tmp_path)
    before = (tmp_path / "results.jsonl").read_text()
    keys = computed(monkeypatch)
    run(tmp_path)
    assert keys == [] and (tmp_path / "results.jsonl").read_text() == before
    run(tmp_path, nfe=[4, 6, 8])
    assert len(keys) == len(set(keys)) == 2 * len(nfe.GRIDS)
    assert all(json.loads(k)[6] == 6 for k in keys)


def test_a_run_that_dies_in_a_cell_goes_on_with_that_cell(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    real, count = campaign.run_cell, []

    def dies(cell, plan, ref):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return real(cell, plan, ref)

    monkeypatch.setattr(campaign, "run_cell", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    assert len(store.Store(tmp_path / "cut").records) == 3
    monkeypatch.setattr(campaign, "run_cell", real)
    keys = computed(monkeypatch)
    run(tmp_path / "cut")
    assert len(keys) == 2 * 2 * len(nfe.GRIDS) - 3
    whole, cut = ((tmp_path / d / "results.jsonl").read_text() for d in ("whole", "cut"))
    assert sorted(whole.splitlines()) == sorted(cut.splitlines())


def test_the_bar_knows_all_cells_from_the_start_and_ends_full(tmp_path, monkeypatch):
    """So that the time left is of the whole run: two problems, one row that cannot run, resumed."""
    said = []

    class Spy(nfe_bar.Bar):
        def total(self, steps):
            said.append(steps)

        def advance(self, steps=1):
            said.extend("+" * steps)

    @contextmanager
    def spying(show):
        yield Spy()

    monkeypatch.setattr(nfe, "bar", spying)
    monkeypatch.setattr(nfe.summary, "write_all", lambda *a: [])  # no pictures here
    asked = {"targets": ["ring2", "moons"], "solvers": ["heun", "ddim"], "grid": "log_snr"}
    run(tmp_path, **asked, nfe=[1, 4])  # heun cannot make one call
    totals = [s for s in said if s != "+"]
    assert said[0] >= 2 * 2 * 2 and sum(totals) == said.count("+")  # phases have weights
    said.clear()
    run(tmp_path, **asked, nfe=[1, 4, 6])
    assert said[0] >= 2 * 2 and sum(s for s in said if s != "+") == said.count("+")


def test_asked_metrics_are_measured_of_every_solver(tmp_path):
    asked = [m for m in quality.MEASURES if m not in ("error", "weak_error")]
    summary = run(
        tmp_path, solvers=["dpmpp-2m", "ddpm"], nfe=[20], grid="log_snr", metrics=asked, batch=64
    )
    assert set(summary["problems"]["ring2"]["floors"]) == set(asked)
    for r in store.Store(tmp_path).records.values():
        assert all(r[f"{m}_lo"] <= r[m] <= r[f"{m}_hi"] for m in asked) and "error" not in r
        assert r["w1"] <= r["w2"] and r["sw2"] <= r["w2"]
    assert (tmp_path / "table.md").read_text().count("ring2:") == len(asked)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"nfe": []}, "nfe must be whole numbers"),
        ({"nfe": [0, 5]}, "nfe must be whole numbers"),
        ({"nfe": [2.5]}, "nfe must be whole numbers"),
        ({"solvers": ["dpmp-2m"]}, "did you mean 'dpmpp-2m'"),
        ({"grid": "kerras"}, "did you mean 'karras'"),
        ({"targets": ["digit64"]}, "did you mean 'digits64'"),
        ({"peers": ["difusers"]}, "unknown 'difusers'"),
        ({"final": "end"}, "final must be one of"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"targets": []}, "nothing to measure"),
        ({"metrics": ["sw3"]}, "did you mean 'sw2'"),
        ({"workers": 0}, "workers must be >= 1"),
        ({"solvers": []}, "nothing to measure: name a solver or a peer"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()


def test_a_network_with_the_name_of_a_target_is_refused(tmp_path):
    (tmp_path / "code.py").write_text(
        "from undiffuse.models.checkpoint import load_default\n"
        "def ring2():\n    return load_default()\n"
    )
    with pytest.raises(ValueError, match="a target and the network have one name: ring2, ring2"):
        run(tmp_path / "out", checkpoint=f"{tmp_path}/code.py:ring2")


def test_no_solvers_of_ours_leaves_the_peers(tmp_path):
    run(tmp_path, solvers=[], peers=["rk4"], nfe=[8], targets=["ring2", "ring2"])
    assert [r["solver"] for r in store.Store(tmp_path).records.values()] == ["rk4"]


def test_an_absent_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        run(tmp_path / "out", checkpoint=str(tmp_path / "none.safetensors"))


# --- the network that ships ---------------------------------------------------------------------


def test_the_shipped_network_is_measured_with_bits_and_pictures(tmp_path):
    summary = nfe.run(
        tmp_path,
        targets=[],
        peers=[],
        solvers=["ddim", "dpmpp-2m"],
        nfe=[5, 10],
        grid="log_snr",
        batch=8,
        quick=True,
        progress=False,
    )
    errors = {(r["solver"], r["nfe"]): r["error"] for r in store.Store(tmp_path).records.values()}
    assert errors["dpmpp-2m", 10] < errors["dpmpp-2m", 5] < errors["ddim", 5] < 1.0
    held = summary["likelihood"]
    assert held["count"] == 8 and held["offset"] == 3.0
    assert held["lo"] < held["bits_per_dim"] < held["hi"]
    assert 1.0 < held["bits_per_dim"] < 4.09  # log2(17) is what knowing nothing costs
    assert (tmp_path / "samples.png").stat().st_size > 5_000
    assert Path(tmp_path / "table.md").read_text().count("digits network") == 1


def test_a_checkpoint_of_the_users_own_with_data_of_theirs(tmp_path):
    from undiffuse.models import EDM
    from undiffuse.models.checkpoint import Checkpoint

    law = get("ring2").law
    process = EDM()

    def net(x, t):
        return law.data_prediction(x, t, process)

    mine = Checkpoint(Denoiser(net, process, predicts="data"), (2,), (-1.2, 1.2))
    more = {"nfe": [6, 12], "solvers": ["dpmpp-2m"], "peers": ["diffusers"], "grid": "log_snr"}
    with pytest.raises(ValueError, match="workers need a checkpoint's file"):
        run(tmp_path, **more, targets=[], checkpoint=mine, data=law.sample(100), workers=2)
    summary = run(
        tmp_path, **more, targets=[], checkpoint=mine, data=law.sample(100), likelihood=False
    )
    about = summary["problems"]["network"]
    assert (about["r_max"], about["r_min"]) == pytest.approx((80.0, 0.002))
    records = [r for r in store.Store(tmp_path).records.values() if r["status"] == "ok"]
    assert {r["library"] for r in records} >= {"undiffuse"}
    ours = {r["nfe"]: r["error"] for r in records if r["library"] == "undiffuse"}
    assert ours[12] < ours[6] < 0.5


def test_a_flow_starts_at_pure_noise_and_is_resumed(tmp_path, monkeypatch, capsys):
    """sigma/alpha is infinite there, which JSON has not."""
    law = get("ring2").law
    given = Checkpoint(law.denoiser(Flow()), (2,), (-1.2, 1.2))
    more = {
        "checkpoint": given,
        "targets": [],
        "data": law.sample(64),
        "grid": "uniform",
        "likelihood": False,
        "peers": ["rk4", "RK45"],
        "nfe": [16],
    }
    first = run(tmp_path, **more)
    keys, real = computed(monkeypatch), campaign.plan_of
    asked = []
    monkeypatch.setattr(campaign, "plan_of", lambda c, *a: asked.append(c.name) or real(c, *a))
    again = run(tmp_path, **more)
    assert keys == [] and again["best"] == first["best"]
    done = {r["solver"] for r in store.Store(tmp_path).records.values() if r["status"] == "ok"}
    assert "ddim" in done and not done & set(asked)  # nor was anything planned again
    assert "inf > 0" in capsys.readouterr().out


class Blind(torch.nn.Module):
    """The shipped network, told a label that it does not read."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, label=None):
        return self.net(x, t)


def test_a_guided_checkpoint_pays_for_both_of_its_calls():
    """Guided towards nothing it is the plain network, in float64 like it, at twice the calls."""
    base = load_default()
    model = replace(base.denoiser, net=Blind(base.denoiser.net), cond={"label": 1.0})
    checkpoint = replace(base, denoiser=guidance.cfg(model, 3.0))
    guided, plain = (campaign.Spec(8, 0, checkpoint=c).build() for c in (checkpoint, None))
    configs = [Ours("dpmpp-2m"), *peers.chosen(["rk4", "RK45"])]
    for config, n in zip(configs, (5, 8, 20), strict=True):
        twice, once = plans.plan_of(config, guided, 2 * n), plans.plan_of(config, plain, n)
        assert twice.calls == 2 * once.calls
        # raises unless that many calls are made, of the network under the guidance
        w = campaign.integrate(guided, twice, guided.start)
        expected = campaign.integrate(plain, once, plain.start)
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-9)
    assert next(base.denoiser.net.parameters()).dtype == torch.float32


def test_data_floors_use_two_halves_that_share_no_point():
    problem = replace(
        problems.exact(get("ring2"), 8), law=None, data=torch.arange(21.0)[:, None].double()
    )
    one, two = (problems.exact_draw(problem, 0.0, 100, seed).flatten().tolist() for seed in (6, 7))
    assert len(one) + len(two) == 21 and not set(one) & set(two)


def test_a_run_of_small_states_uses_one_thread_and_gives_them_back(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run(tmp_path, nfe=[4])
    assert asked == [1, 2]
