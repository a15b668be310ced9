"""The table of orders: its files, its reading of a liar, its count of lines."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from undiffuse.bench.orders import run as orders
from undiffuse.solvers import DDIM
from undiffuse.solvers.families.registry import SOLVERS


@dataclass(frozen=True)
class Liar(DDIM):
    """Says it is of order 2."""

    order: ClassVar[float] = 2.0

    weak_order: ClassVar[float] = 2.0


def test_a_solver_that_says_more_than_it_does_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SOLVERS, "liar", Liar())
    monkeypatch.setitem(SOLVERS, "noisy-liar", Liar(eta=1.0))
    chosen = ["liar", "noisy-liar", "ddim", "heun", "euler-ancestral", "midpoint", "lcm"]
    record = orders.run(tmp_path, solvers=chosen, progress=False)
    assert json.loads((tmp_path / "orders.json").read_text()) == record
    assert record["missed"] == {"liar": ["gaussian", "mixture"], "noisy-liar": ["weak"]}
    rows = {r["solver"]: r for r in record["rows"]}
    assert rows["liar"]["lines"] == 5 and record["classes"] == 5
    assert rows["midpoint"]["gaussian"] > 2.5  # more than declared is no miss there
    assert "strong" in rows["euler-ancestral"] and "weak_mixture" in rows["euler-ancestral"]
    assert "weak" not in rows["lcm"] and "strong" not in rows["lcm"]  # order 0: nothing converges
    text = (tmp_path / "orders.md").read_text()
    assert text.count("\n| ") == 1 + len(chosen) and "7 solvers, 2 further than 0.15" in text
    assert "7 solvers, 2 further" in capsys.readouterr().out


def test_half_of_the_solvers_are_under_fifty_lines():
    classes = {type(s): orders.lines(s) for s in SOLVERS.values()}
    assert sorted(classes.values())[len(classes) // 2] < 50


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'ddim'"):
        orders.run(tmp_path / "out", solvers=["dim"], progress=False)
    assert not (tmp_path / "out").exists()
