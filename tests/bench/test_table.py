"""Tables rank only what does not overlap, as text and Markdown."""

import pytest

from undiffuse.bench.measures import quality
from undiffuse.bench.report import table

pytest.importorskip("scipy")


def rows():
    common = {
        "problem": "p",
        "library": "undiffuse",
        "grid": "g",
        "status": "ok",
        "stochastic": False,
        "start": 157.4,
        "end": 0.01,
    }

    def row(solver, n, error, half, **more):
        return {
            **common,
            "solver": solver,
            "nfe_asked": n,
            "nfe": n,
            "error": error,
            "error_lo": error - half,
            "error_hi": error + half,
            **more,
        }

    return [
        row("first", 5, 0.10, 0.02, memory=6.1),
        row("close", 5, 0.13, 0.02),
        row("worse", 5, 0.30, 0.02, nfe=4),
        row("first", 10, 0.010, 0.001, memory=7.2),
        row("close", 10, 0.013, 0.001),
        {**common, "solver": "worse", "nfe_asked": 10, "status": "failed", "message": "m"},
        {
            "problem": "p",
            "library": "peer",
            "solver": "gone",
            "grid": "-",
            "nfe_asked": 5,
            "status": "unavailable",
            "message": "not installed",
        },
    ]


def test_a_table_ranks_only_what_does_not_overlap():
    t, missing = table.tables(rows(), "p", quality.DEFAULT, {"error": " (note)"})
    assert t.title == "p: error to the reference trajectory / data std (note)"
    assert t.columns == ["library", "solver", "grid", "from > to", "states", "5", "10"]
    by_name = {row[1]: (row[3:], flags[5:]) for row, flags in zip(t.rows, t.best, strict=True)}
    assert by_name["first"] == (["157 > 0.01", "7", "0.1", "0.01"], [True, True])
    assert by_name["close"] == (["157 > 0.01", "-", "0.13", "0.013"], [True, False])
    assert by_name["worse"] == (["157 > 0.01", "-", "0.3 (4)", "failed"], [False, False])
    assert [row[1] for row in t.rows] == ["first", "close", "worse"]
    assert missing.rows == [
        ["undiffuse", "worse", "g", "10", "m"],
        ["peer", "gone", "-", "5", "not installed"],
    ]


def test_a_row_is_beaten_by_any_other_not_by_the_least_alone():
    """The least value's interval is wide: the third row meets it, but not the second's."""

    def row(solver, value, lo, hi):
        return {"solver": solver, "status": "ok", "error": value, "error_lo": lo, "error_hi": hi}

    rows = [row("third", 3.0, 2.0, 4.0), row("least", 1.0, 0.2, 5.0), row("second", 1.1, 1.0, 1.2)]
    found = table.unbeaten(rows, quality.MEASURES["error"])
    assert [r["solver"] for r in found] == ["least", "second"]


def test_values_on_both_sides_of_zero_are_ranked_by_their_distance_from_it():
    def row(solver, value):
        return {
            "solver": solver,
            "status": "ok",
            "kl": value,
            "kl_lo": value - 0.1,
            "kl_hi": value + 0.1,
        }

    rows = [row("above", 0.55), row("below", -0.5), row("far", -0.8)]
    found = table.unbeaten(rows, quality.MEASURES["kl"])
    assert [r["solver"] for r in found] == ["below", "above"]
    near = [*rows, row("none", 0.02)]
    assert [r["solver"] for r in table.unbeaten(near, quality.MEASURES["kl"])] == ["none"]
    shares = [
        {"solver": s, "status": "ok", "recall": v, "recall_lo": v - 0.02, "recall_hi": v + 0.01}
        for s, v in (("low", 0.8), ("high", 0.9))
    ]
    assert table.unbeaten(shares, quality.MEASURES["recall"]) == shares[1:]


def test_tables_as_text_and_markdown(capsys):
    t = table.tables(rows(), "p", quality.DEFAULT, {})[0]
    table.show([t])
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["library", "solver", "grid"] in [words[:3] for words in said]
    assert ["undiffuse", "close", "g", "157", ">", "0.01", "-", "0.13*", "0.013"] in said
    marked = table.markdown(t).splitlines()
    assert marked[3] == "|---|---|---|---|---|---|---|"
    assert marked[5] == (
        "| undiffuse | close | g | 157 > 0.01 | - | **0.13** (0.11 to 0.15) "
        "| 0.013 (0.012 to 0.014) |"
    )


@pytest.mark.parametrize(
    ("v", "text"),
    [
        (0.2849, "0.28"),
        (0.00056, "0.00056"),
        (5.31, "5.3"),
        (36.4, "36"),
        (2.4e-7, "2.4e-07"),
        (0.0, "0"),
    ],
)
def test_numbers_are_short(v, text):
    assert table.short(v) == text
