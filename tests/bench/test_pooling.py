"""Seeds pooled and runs merged: what is joined, what is refused."""

import math

import pytest

from undiffuse.bench.nfe import summary as pooling
from undiffuse.solvers import store

from .runs import computed, run

pytest.importorskip("scipy")


def test_seeds_are_pooled_into_rows_with_narrower_intervals(tmp_path):
    asked = {"solvers": ["ddim", "ddpm"], "nfe": [6], "grid": "log_snr", "batch": 32}
    three = run(tmp_path, seeds=[3, 4, 5], **asked)
    each = [r for r in store.Store(tmp_path).records.values() if r["solver"] == "ddim"]
    assert [r["seed"] for r in each] == [3, 4, 5] and three["cells"] == 2
    assert three["problems"]["ring2"]["seeds"] == [3, 4, 5]
    (best,) = three["best"]["ring2"]["6"]
    assert best["error"] == pytest.approx(sum(r["error"] for r in each) / 3)
    width = sum(r["error_hi"] - r["error_lo"] for r in each) / 3
    assert best["error_hi"] - best["error_lo"] == pytest.approx(width / math.sqrt(3), rel=0.15)
    alone = run(tmp_path, seed=4, **asked)  # its cell is there already, and is shown by itself
    assert alone["best"]["ring2"]["6"][0]["error"] == each[1]["error"]
    assert len(store.Store(tmp_path).records) == 6
    with pytest.raises(ValueError, match="seeds must name at least one"):
        run(tmp_path, seeds=[])


def test_merged_runs_are_one_run_that_repeats_nothing(tmp_path, monkeypatch, capsys):
    from undiffuse.cli import main

    run(tmp_path / "a", nfe=[4], grid="log_snr")
    run(tmp_path / "b", nfe=[8], grid="log_snr")
    capsys.readouterr()
    command = ["bench", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out"]
    assert main([*command, str(tmp_path / "c")]) == 0
    printed = capsys.readouterr().out
    assert "4 cells of 2 runs" in printed and "dpmpp-2m" in printed
    lines = [(tmp_path / d / "results.jsonl").read_text().splitlines() for d in "abc"]
    assert sorted(lines[2]) == sorted(lines[0] + lines[1])
    assert (tmp_path / "c" / "table.md").read_text().splitlines()[2].endswith("| states | 4 | 8 |")
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "2 runs, joined" in page and "nfe=4" in page and "nfe=8" in page
    keys = computed(monkeypatch)
    whole = run(tmp_path / "c", grid="log_snr")
    assert keys == [] and whole["cells"] == 4
    text = (tmp_path / "b" / "results.jsonl").read_text().replace("undiffuse 0", "undiffuse 9")
    (tmp_path / "b" / "results.jsonl").write_text(text.replace('"nfe_asked": 8', '"nfe_asked": 4'))
    capsys.readouterr()
    assert main([*command, str(tmp_path / "d")]) == 2 and not [*(tmp_path / "d").glob("*")]
    assert "was run with undiffuse 0" in capsys.readouterr().err
    assert main(["bench", "merge", str(tmp_path / "a")]) == 2
    assert "merge two or more" in capsys.readouterr().err
    for name in "ab":
        (tmp_path / name / "results.jsonl").write_text("")
    assert main([*command, str(tmp_path / "d")]) == 2
    assert f"no result that reads in {tmp_path / 'a'}" in capsys.readouterr().err
    (tmp_path / "b" / "results.jsonl").unlink()
    assert main([*command, str(tmp_path / "d")]) == 2 and not [*(tmp_path / "d").glob("*")]
    assert f"no results.jsonl in {tmp_path / 'b'}" in capsys.readouterr().err


POOL = {
    "problem": "p",
    "library": "l",
    "solver": "s",
    "grid": "g",
    "final": None,
    "nfe_asked": 5,
    "nfe": 5,
    "status": "ok",
    "batch": 8,
    "network": "n",
    "versions": "v",
}


def test_what_is_not_of_one_kind_is_not_pooled():
    one = {**POOL, "key": "1", "seed": 0, "error": 1.0, "error_lo": 0.5, "error_hi": 2.0}
    with pytest.raises(ValueError, match="p is the name of two networks or processes here"):
        pooling.pooled([one, {**one, "seed": 1, "network": "another"}])
    with pytest.raises(ValueError, match="l s was run with v, and with w: run it again with one"):
        pooling.pooled([one, {**one, "seed": 1, "versions": "w"}])
    # other measures of the same samples join them; another end is another row
    more = {**POOL, "key": "3", "seed": 0, "kl": 0.1, "kl_lo": 0.0, "kl_hi": 0.2}
    (both,) = pooling.pooled([one, more])
    assert (both["error"], both["kl"], both["key"]) == (1.0, 0.1, "1")
    rows = pooling.pooled([{**one, "final": "t_min"}, {**one, "final": "zero", "error": 2.0}])
    assert [(r["grid"], r["error"]) for r in rows] == [("g, t_min", 1.0), ("g, zero", 2.0)]


def test_pooling_fails_with_one_seed_and_prefers_the_larger_batch():
    one = {**POOL, "key": "1", "seed": 0, "error": 1.0, "error_lo": 0.5, "error_hi": 2.0}
    two = {**POOL, "key": "2", "seed": 1, "error": 3.0, "error_lo": 2.5, "error_hi": 4.0, "nfe": 4}
    (mean,) = pooling.pooled([one, two])
    assert (mean["error"], mean["nfe"], mean["batch"], mean["seed"]) == (2.0, 5, 16, [0, 1])
    assert mean["error_lo"] == pytest.approx(2 - math.sqrt(0.5) / 2)
    assert mean["error_hi"] == pytest.approx(2 + math.sqrt(2) / 2)
    (again,) = pooling.pooled([one, {**one, "batch": 64, "error": 1.5}])
    assert again["error"] == 1.5 and again["seed"] == 0
    (broken,) = pooling.pooled([one, {**two, "status": "failed", "message": "diverged"}])
    assert broken["status"] == "failed" and broken["message"] == "seed 1: diverged"
