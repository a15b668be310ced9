"""Comparing runs: only what lies beyond noise is called a change."""

import json

import pytest

from undiffuse.bench import compare
from undiffuse.bench.store import Store


def cell(key, error, half=0.01, **more):
    return {
        "key": key, "status": "ok", "problem": "p", "library": "undiffuse", "solver": key,
        "grid": "g", "nfe_asked": 5, "error": error, "error_lo": error - half,
        "error_hi": error + half, **more,
    }  # fmt: skip


def folder(path, cells, seconds=()):
    results, timings = Store(path), Store(path, "timings.jsonl")
    for c in cells:
        results.append(c)
    for key, s in seconds:
        timings.append({"key": key, "seconds": s})
    return path


def test_cells_are_worse_only_beyond_their_intervals(tmp_path, capsys):
    a = folder(tmp_path / "a", [cell("x", 0.10), cell("y", 0.2), cell("z", 0.3), cell("w", 0.1)],
               [("x", 1.0), ("y", 1.0)])  # fmt: skip
    b = folder(tmp_path / "b", [cell("x", 0.11), cell("y", 0.3), cell("z", 0.2),
                                {**cell("w", 0.1), "status": "failed", "message": "m"}],
               [("x", 1.1), ("y", 2.0)])  # fmt: skip
    found = {c.what.split(" ")[2] + c.what.split(":")[-1]: c.verdict for c in compare.compare(a, b)}
    assert found == {
        "x error": "same", "y error": "worse", "z error": "better", "w failed": "worse",
        "x seconds": "same", "y seconds": "worse",
    }  # fmt: skip
    assert compare.run(a, b) == 1 and compare.run(a, a) == 0
    printed = capsys.readouterr().out
    assert "3 became worse" in printed and "0 of 6 numbers changed" in printed


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
