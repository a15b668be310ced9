"""Comparing runs: only what lies beyond noise is called a change."""

import json

import pytest
import torch

from undiffuse.bench import compare
from undiffuse.solvers.store import Store


def cell(key, error, half=0.01, **more):
    return {
        "key": key,
        "status": "ok",
        "problem": "p",
        "library": "undiffuse",
        "solver": key,
        "grid": "g",
        "nfe_asked": 5,
        "error": error,
        "error_lo": error - half,
        "error_hi": error + half,
        **more,
    }


def folder(path, cells, seconds=()):
    results, timings = Store(path), Store(path, "timings.jsonl")
    for c in cells:
        results.append(c)
    for key, s in seconds:
        timings.append({"key": key, "seconds": s})
    return path


def test_cells_are_worse_only_beyond_their_intervals(tmp_path, capsys):
    a = folder(
        tmp_path / "a",
        [cell("x", 0.10), cell("y", 0.2), cell("z", 0.3), cell("w", 0.1)],
        [("x", 1.0), ("y", 1.0)],
    )
    b = folder(
        tmp_path / "b",
        [
            cell("x", 0.11),
            cell("y", 0.3),
            cell("z", 0.2),
            {**cell("w", 0.1), "status": "failed", "message": "m"},
        ],
        [("x", 1.1), ("y", 2.0)],
    )
    found = {c.what.split(" ")[2] + c.what.split(":")[-1]: c.verdict for c in compare.compare(a, b)}
    assert found == {
        "x error": "same",
        "y error": "worse",
        "z error": "better",
        "w failed (m)": "worse",
        "x: seconds, mean of 1 cells": "same",
        "y: seconds, mean of 1 cells": "worse",
    }
    assert compare.run(a, b) == 1 and compare.run(a, a) == 0
    printed = capsys.readouterr().out
    assert "3 became worse" in printed and "0 of 6 numbers changed" in printed


def test_the_seconds_of_a_solver_are_its_cells_together(tmp_path):
    """One cell that took long is noise; all of them half as long again is not."""
    g = torch.Generator().manual_seed(0)
    noise = torch.exp(0.2 * torch.randn(2, 24, generator=g)).tolist()
    cells = [cell(f"{s} {n}", 0.1) | {"solver": s, "nfe_asked": n} for s in "xy" for n in range(24)]

    def timed(name, factor, noise):
        at = [
            (f"{s} {n}", factor[s] * noise[n] * (9 if (s, n) == ("x", 3) else 1))
            for s in "xy"
            for n in range(24)
        ]
        return folder(tmp_path / name, cells, at)

    a, b = timed("a", {"x": 0.1, "y": 0.1}, noise[0]), timed("b", {"x": 0.1, "y": 0.15}, noise[1])
    found = {c.what.split(" ")[2]: c for c in compare.compare(a, b) if "seconds" in c.what}
    assert found["x:"].verdict == "same" and found["y:"].verdict == "worse"
    assert {c.verdict for c in compare.compare(b, a) if "y: seconds" in c.what} == {"better"}


def test_a_gap_that_changed_its_sign_is_neither_worse_nor_better(tmp_path):
    def gap(value):
        return cell("x", 0.1) | {"kl": value, "kl_lo": value - 0.01, "kl_hi": value + 0.01}

    a, b, c = (folder(tmp_path / str(v), [gap(v)]) for v in (-0.2, 0.205, 0.3))
    found = [[x for x in compare.compare(a, other) if "kl" in x.what] for other in (b, c)]
    assert [x.verdict for (x,) in found] == ["same", "worse"]


def test_runs_of_two_versions_are_compared_and_both_are_named(tmp_path, capsys):
    a, b = (
        folder(tmp_path / v, [cell(v, 0.1) | {"solver": "x", "versions": f"undiffuse {v}"}])
        for v in ("1", "2")
    )
    assert compare.run(a, b) == 0
    printed = capsys.readouterr().out
    assert "before: undiffuse 1" in printed and "after: undiffuse 2" in printed
    assert "different networks" not in printed
    c = folder(tmp_path / "c", [cell("x", 0.1) | {"network": "n"}])
    d = folder(tmp_path / "d", [cell("x", 0.1) | {"network": "m"}])
    compare.run(c, d)
    assert "p: the two runs are of different networks" in capsys.readouterr().out


def test_the_command_fails_where_something_became_worse(tmp_path, capsys):
    from undiffuse.cli import main

    a, b = (folder(tmp_path / str(v), [cell("x", v)]) for v in (0.1, 0.2))
    assert main(["bench", "compare", str(a), str(b)]) == 1
    assert main(["bench", "compare", str(b), str(a)]) == 0
    assert "undiffuse x on g, 5 NFE: error" in capsys.readouterr().out


def test_a_state_more_in_memory_is_worse(tmp_path):
    a = folder(tmp_path / "a", [cell("x", 0.1, memory=6.1), cell("y", 0.1, memory=6.1)])
    b = folder(tmp_path / "b", [cell("x", 0.1, memory=7.1), cell("y", 0.1, memory=6.2)])
    found = {c.what.split(" ")[2]: c.verdict for c in compare.compare(a, b) if "states" in c.what}
    assert found == {"x": "worse", "y": "same"}


def bench_file(path, **medians):
    rows = [
        {"fullname": name, "stats": {"median": m, "iqr": iqr}} for name, (m, iqr) in medians.items()
    ]
    path.write_text(json.dumps({"benchmarks": rows}))
    return path


def test_timings_need_to_leave_both_the_spread_and_the_tolerance(tmp_path):
    a = bench_file(tmp_path / "a.json", slow=(1.0, 0.01), noisy=(1.0, 0.5), near=(1.0, 0.01))
    b = bench_file(tmp_path / "b.json", slow=(1.5, 0.01), noisy=(1.6, 0.5), near=(1.1, 0.01))
    found = {c.what: (c.verdict, c.ratio) for c in compare.compare(a, b)}
    assert found["slow"] == ("worse", 1.5)
    assert found["noisy"][0] == found["near"][0] == "same"
    assert {c.verdict for c in compare.compare(b, a)} == {"better", "same"}


def test_bad_input_is_refused(tmp_path):
    a = folder(tmp_path / "a", [cell("x", 0.1)])
    b = bench_file(tmp_path / "b.json", t=(1.0, 0.1))
    other = tmp_path / "c.json"
    other.write_text("{}")
    with pytest.raises(FileNotFoundError, match="no results at"):
        compare.compare(a, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="compare two of one kind"):
        compare.compare(a, b)
    with pytest.raises(ValueError, match="neither a results.jsonl nor"):
        compare.compare(b, other)
    with pytest.raises(ValueError, match="no number in common"):
        compare.compare(a, folder(tmp_path / "d", [cell("other", 0.1)]))
    with pytest.raises(ValueError, match="tolerance must be > 0"):
        compare.compare(a, a, tolerance=0)
