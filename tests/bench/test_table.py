"""Tables rank only what does not overlap, as text and Markdown."""


import pytest

from undiffuse.bench import (
    quality,
    table,
)

pytest.importorskip("scipy")


def rows():
    common = {"problem": "p", "library": "undiffuse", "grid": "g", "status": "ok",
              "stochastic": False, "start": 157.4, "end": 0.01}  # fmt: skip

    def row(solver, n, error, half, **more):
        return {**common, "solver": solver, "nfe_asked": n, "nfe": n, "error": error,
                "error_lo": error - half, "error_hi": error + half, **more}  # fmt: skip

    return [
        row("first", 5, 0.10, 0.02, memory=6.1),
        row("close", 5, 0.13, 0.02),
        row("worse", 5, 0.30, 0.02, nfe=4),
        row("first", 10, 0.010, 0.001, memory=7.2),
        row("close", 10, 0.013, 0.001),
        {**common, "solver": "worse", "nfe_asked": 10, "status": "failed", "message": "m"},
        {"problem": "p", "library": "peer", "solver": "gone", "grid": "-", "nfe_asked": 5,
         "status": "unavailable", "message": "not installed"},
    ]  # fmt: skip


def test_a_table_ranks_only_what_does_not_overlap():
    t, missing = table.tables(rows(), "p", quality.DEFAULT, {"error": " (note)"})
    assert t.title == "p: error to the reference trajectory / data std (note)"
    assert t.columns == ["library", "solver", "grid", "from > to", "states", "5", "10"]
    by_name = {row[1]: (row[3:], flags[5:]) for row, flags in zip(t.rows, t.best, strict=True)}
    assert by_name["first"] == (["157 > 0.01", "7", "0.1", "0.01"], [True, True])
    assert by_name["close"] == (["157 > 0.01", "-", "0.13", "0.013"], [True, False])
    assert by_name["worse"] == (["157 > 0.01", "-", "0.3 (4)", "failed"], [False, False])
    assert [row[1] for row in t.rows] == ["first", "close", "worse"]
    assert missing.rows == [["peer", "gone", "-", "5", "not installed"]]


def test_tables_as_text_and_markdown():
    t = table.tables(rows(), "p", quality.DEFAULT, {})[0]
    lines = table.plain(t).splitlines()
    assert lines[1].split()[:3] == ["library", "solver", "grid"] and "0.13*" in lines[3]
    marked = table.markdown(t).splitlines()
    assert marked[3] == "|---|---|---|---|---|---|---|"
    assert marked[5] == "| undiffuse | close | g | 157 > 0.01 | - | **0.13** | 0.013 |"


@pytest.mark.parametrize(
    ("v", "text"), [(0.2849, "0.28"), (0.00056, "0.00056"), (5.31, "5.3"), (36.4, "36"),
                    (2.4e-7, "2.4e-07"), (0.0, "0")]
)  # fmt: skip
def test_numbers_are_short(v, text):
    assert table.short(v) == text
