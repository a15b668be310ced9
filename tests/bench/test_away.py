"""Away from home: ratios, the choice on other networks, going on, what is refused."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

import undiffuse as ud
from undiffuse.bench import away, away_report
from undiffuse.bench.problems import together
from undiffuse.cli import main
from undiffuse.solvers import store
from undiffuse.solvers.sampling import pilot

pytest.importorskip("scipy")
pytest.importorskip("diffusers")
SMALL = {"nfe": [3, 4], "starts": 4, "tries": 60}
CODE = """
import torch, undiffuse as ud
from undiffuse.models import VP, Gaussian, GaussianMixture
from undiffuse.models.checkpoint import Checkpoint
def made(law, process):
    return Checkpoint(law.denoiser(process), (2,), (-3.0, 3.0))
def ring():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
    return made(GaussianMixture(torch.ones(3), means, 0.05), VP())
def pair():
    means = torch.tensor([[0.8, 0.3], [-0.8, 0.2]], dtype=torch.float64)
    return made(GaussianMixture(torch.ones(2), means, 0.1), VP.cosine())
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    path = tmp_path_factory.mktemp("away") / "two.py"
    path.write_text(CODE)
    return [f"{path}:ring", f"{path}:pair"]


@pytest.fixture(scope="module")
def measured(networks, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured")
    found = away.run(networks, out, **SMALL, progress=False)
    lines = (out / "away.jsonl").read_text().splitlines()
    return out, found, [json.loads(line) for line in lines]


def geometric(values):
    return math.prod(values) ** (1 / len(values))


def mean(record, what):
    return sum(record["rows"][what]) / len(record["rows"][what])


def over_the_best_peer(record, what):
    peers = [mean(record, w) for w in record["rows"] if w.startswith("peer ")]
    return mean(record, what) / min(peers)


def test_the_columns_are_the_rows_over_the_least_of_the_peers(measured):
    out, found, records = measured
    assert {(r["network"], r["nfe"]) for r in records} == {
        (name, n) for name in ("ring", "pair") for n in (3, 4)
    }
    for what, row in (("default", "default"), ("tuned", "tuned"), (away_report.SHIPPED, None)):
        every = [over_the_best_peer(r, row or f"peer {away_report.SHIPPED}") for r in records]
        assert found[what]["mean"] == pytest.approx(geometric(every), rel=1e-12)
        assert found[what]["worst"] == max(every) and found[what]["cells"] == 4
    fixed = [
        min(over_the_best_peer(r, w) for w in r["rows"] if w.startswith("fixed ")) for r in records
    ]
    assert found["best fixed"]["mean"] == pytest.approx(geometric(fixed), rel=1e-12)
    assert "learned" not in found
    table = (out / "away.md").read_text()
    assert "| ring | 4 | " in table and f"**{found['default']['mean']:.2f}**" in table


def test_one_pilot_finds_both_tables(measured, networks, tmp_path, monkeypatch):
    # the same choice as without learning, and what ud.tune learns of it; above LEARNED calls none
    monkeypatch.setattr(away.pilot, "tune", partial(pilot.tune, iterations=20))
    monkeypatch.setattr(away, "LEARNED", 3)
    away.run(networks, tmp_path, **SMALL, learn=True, progress=False)
    lines = (tmp_path / "away.jsonl").read_text().splitlines()
    before = {(r["network"], r["nfe"]): r for r in measured[2]}
    for r in map(json.loads, lines):
        assert r["rows"]["tuned"] == before[r["network"], r["nfe"]]["rows"]["tuned"]
        assert ("learned" in r["rows"]) == (r["nfe"] == 3) and r["tuning"]["seconds"] > 0
    model = ud.load(networks[0]).denoiser
    table = pilot.tune(model, (1, 2), 3, learn=True, calls=60, iterations=20).table
    options = {"seed": 0, "dtype": torch.float64}
    exact = ud.sample(model, (4, 2), "heun", 400, final="t_min", **options)
    off = (ud.sample(model, (4, 2), table, **options) - exact).square().mean(1).sqrt()
    off = float(off.mean() / model.process.alpha(model.t_min))
    record = next(r for r in map(json.loads, lines) if (r["network"], r["nfe"]) == ("ring", 3))
    assert mean(record, "learned") == pytest.approx(off, rel=0.01)
    pair = next(r for r in map(json.loads, lines) if (r["network"], r["nfe"]) == ("pair", 3))
    assert mean(pair, "learned") < mean(pair, "tuned") / 3
    text = (tmp_path / "away.md").read_text()
    assert "took to be learned" in text and "tuned" in text


def test_errors_are_those_of_an_independent_run(measured, networks):
    """The default at 4 calls, from the same noise, against a fine Heun run of the flow."""
    _, _, records = measured
    record = next(r for r in records if (r["network"], r["nfe"]) == ("ring", 4))
    model = ud.load(networks[0]).denoiser
    shape, options = (4, 2), {"seed": 0, "dtype": torch.float64}
    sampler = ud.Sampler(model, nfe=4)
    ends_clean = float(sampler.tableau.grid[-1]) < model.t_min
    final = "denoise" if ends_clean else "t_min"
    x = ud.sample(model, shape, nfe=4, **options)
    exact = ud.sample(model, shape, "heun", 400, final="t_min", **options)
    if final == "denoise":
        exact = model(exact, model.t_min)
    scale = 1.0 if ends_clean else float(model.process.alpha(model.t_min))
    off = ((x - exact) / scale).square().mean(1).sqrt().mean()
    assert mean(record, "default") == pytest.approx(float(off), rel=0.01)


def test_the_choice_uses_no_row_of_the_network_left_out(measured):
    """Of two networks: what has the least root mean square of ratios on the other one."""
    _, found, records = measured
    cells = away_report.ratios(records)
    chosen = {}
    for name, other in (("ring", "pair"), ("pair", "ring")):
        theirs = [r for r in records if r["network"] == other]

        def rms(what, of=theirs):
            return sum(over_the_best_peer(r, what) ** 2 for r in of)

        chosen[name] = min(away_report.CANDIDATES, key=rms)
        assert away_report.choices(cells)[name] == chosen[name]
    every = [over_the_best_peer(r, chosen[r["network"]]) for r in records]
    assert found["left out"]["mean"] == pytest.approx(geometric(every), rel=1e-9)
    assert found["left out"]["lo"] <= found["left out"]["mean"] <= found["left out"]["hi"]
    # whatever the network left out did, the choice for it is the same
    changed = json.loads(json.dumps(records))
    for r in changed:
        if r["network"] == "ring":
            for what, row in r["rows"].items():
                r["rows"][what] = [v * (1e-3 if what == min(r["rows"]) else 7.0) for v in row]
    assert away_report.choices(away_report.ratios(changed))["ring"] == chosen["ring"]


def test_the_default_is_among_the_candidates(measured):
    """What is shipped is what the bank chose of them: its rows are one of theirs."""
    _, _, records = measured
    for r in records:
        assert any(r["rows"]["default"] == r["rows"][what] for what in away_report.CANDIDATES)


def test_tables_in_one_batch_end_where_each_ends_alone():
    """The same arithmetic in another order, in float64."""
    model = ud.targets.GaussianMixture([1, 2], [[0.0, 1.0], [2.0, -1.0]], 0.1).denoiser(ud.VP())
    solvers = ("relay", "ipndm-2-afs", "unipc-3-noise", "dpmpp-2m")
    tables = [ud.Sampler(model, s, nfe=6, final=f).tableau for s in solvers for f in ("t_min",)]
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for table, found in zip(tables, together.ends(model, tables, x), strict=True):
        alone = ud.sample(model, x.shape, table, x_init=x, dtype=torch.float64)
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="make as many calls each"):
        list(together.ends(model, [tables[0], ud.Sampler(model, nfe=7).tableau], x))


def test_a_second_run_computes_nothing_and_another_seed_everything(measured, networks, monkeypatch):
    out, found, _ = measured
    asked = []

    def spy(posed, nfe, *_):
        asked.append((posed.name, posed.seed, tuple(nfe)))
        return iter(())

    monkeypatch.setattr(away, "measure", spy)
    before = (out / "away.jsonl").read_bytes()
    assert away.run(networks, out, **SMALL, progress=False) == found
    assert asked == [] and (out / "away.jsonl").read_bytes() == before
    with pytest.raises(KeyError):  # nothing was measured for it
        away.run(networks, out, **SMALL, seed=1, progress=False)
    assert asked == [("ring", 1, (3, 4)), ("pair", 1, (3, 4))]


def test_after_a_change_of_our_tables_only_what_changed_runs(
    measured, networks, tmp_path, monkeypatch
):
    """No peer, and no table that equals one of before under whatever name."""
    out, _, records = measured
    shutil.copytree(out, tmp_path / "again")
    ours, ends, ran = away._ours, away.ends, []

    def changed(posed, nfe):
        yield from ours(posed, nfe)
        yield "as before", lambda: ud.Sampler(posed.model, nfe=nfe).tableau
        yield "new", lambda: ud.Sampler(posed.model, "ddim", nfe, "cosine").tableau

    def spied(posed, tables):
        ran.append(set(tables))
        return ends(posed, tables)

    monkeypatch.setattr(away, "_ours", changed)
    monkeypatch.setattr(away, "MADE", {})
    monkeypatch.setattr(away, "ends", spied)
    monkeypatch.setattr(away, "_peers", None)
    away.run(networks, tmp_path / "again", **{**SMALL, "tries": 0}, progress=False)
    again = [json.loads(x) for x in (tmp_path / "again" / "away.jsonl").read_text().splitlines()]
    assert ran == [{"new"}] * 4 and len(again) == 8
    for old, new in zip(records, again[4:], strict=True):
        rows = {w: row for w, row in old["rows"].items() if w != "tuned"}
        assert new["rows"] == {**rows, "new": new["rows"]["new"], "as before": rows["default"]}
        assert mean(new, "new") > 0 and new["absent"] == old["absent"]


def test_a_run_that_is_not_finite_is_infinitely_far(measured):
    """null in a file, which has no infinity, is not 0 and is not left out."""
    _, _, records = measured
    changed = json.loads(json.dumps(records))
    changed[0]["rows"]["default"][0] = None
    text, found = away_report.report(changed)
    assert found["default"]["mean"] == found["default"]["worst"] == math.inf
    assert "inf" in text


def test_the_interval_of_a_ratio_is_that_of_paired_starts():
    """By the delta method: a = 2 b exactly has none; independent of b, the textbook's."""
    g = torch.Generator().manual_seed(0)
    a, b = 1 + torch.rand(2, 4000, generator=g, dtype=torch.float64)
    assert away_report._half_width(2 * b, b) == pytest.approx(0.0, abs=1e-12)
    relative = (a.var() / a.mean() ** 2 + b.var() / b.mean() ** 2) / len(a)
    textbook = 1.96 * float(a.mean() / b.mean() * relative.sqrt())
    assert away_report._half_width(a, b) == pytest.approx(textbook, rel=0.05)


def test_the_committed_table_is_what_the_committed_rows_say_and_chose_the_default():
    folder = Path(__file__).parents[2] / "bench" / "results"
    records = store.read(folder / "away.jsonl")
    text, found = away_report.report(records)
    assert text == (folder / "away.md").read_text()
    assert json.loads((folder / "away.json").read_text())["all"] == found
    chosen = away_report.choices(away_report.ratios(records))[None]
    solver, grid = away_report.CANDIDATES[chosen]
    assert (ud.solvers.get("relay"), ud.solvers.grids.named("blend")) == (solver, grid)
    assert len({r["network"] for r in records}) >= 14


def test_a_flow_that_no_reference_solves_is_named(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(away, "MOST", 20)
    with pytest.raises(RuntimeError, match="20 evaluations do not solve the flow of ring"):
        away.run(networks, tmp_path, nfe=[3], starts=2, tries=1, progress=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nfe": [1, 5]}, r"nfe must be .* >= 2; got \[1, 5\]"),
        ({"nfe": []}, "nfe must be"),
        ({"tries": -1}, "tries must be at least 0.*got -1"),
        ({"tries": 0, "learn": True}, "1 to learn; got 0"),
        ({"starts": 1}, "starts must be at least 2"),
        ({"networks": ["digits"]}, "two at least, to leave one out; got 1"),
        ({"networks": ["digits", "digits"]}, "one name: digits, digits"),
    ],
)
def test_what_does_not_fit_is_named_before_any_work(tmp_path, change, named, monkeypatch):
    monkeypatch.setattr(away, "load", None)
    options = {"networks": ["a.safetensors", "b.safetensors"], **change}
    with pytest.raises(ValueError, match=named):
        away.run(options.pop("networks"), tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()


def test_a_network_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        away.run(["digits", "nowhere.safetensors"], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_command_names_what_is_wrong(tmp_path, capsys):
    assert main(["bench", "away", "digits", "--out", str(tmp_path / "out")]) != 0
    assert "away and grids two or more" in capsys.readouterr().err
