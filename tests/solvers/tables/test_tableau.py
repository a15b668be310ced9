"""The table: what it refuses, how it prints, and that its text form is exact."""

import dataclasses
import json
import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import DPMSolverPP, Tableau, times
from undiffuse.solvers.tables.tableau import from_rows


def table(**changes):
    process = ud.VP()
    made = DPMSolverPP(2, eta=1.0).tableau(process, times("log_snr", process, 5, "t_min"))
    return dataclasses.replace(made, **changes) if changes else made


def test_shapes_and_counts():
    t = table()
    assert (t.nfe, t.state.shape, t.data.shape, t.noise.shape) == (5, (5, 1), (5, 2), (5, 1))
    assert t.stochastic and t.draws.flatten().tolist() == [1, 2, 3, 4, 5]
    assert not dataclasses.replace(t, noise=torch.zeros_like(t.noise)).stochastic
    assert dataclasses.replace(
        t, noise=t.noise[:, :0], draws=t.draws[:, :0], entry=(1, 1)
    ).stochastic


def test_json_keeps_every_bit_and_infinities():
    process = ud.VE()
    t = DPMSolverPP(2).tableau(process, times("karras", process, 6))
    assert math.isinf(float(t.grid[-1]))
    again = Tableau.from_json(t.to_json())
    assert again == t and json.loads(t.to_json())["grid"][-1] == "-inf"
    for name in ("times", "state", "data", "noise", "draws", "grid"):
        assert torch.equal(getattr(again, name), getattr(t, name))
    nudged = t.state.clone()
    nudged[2, 0] = torch.nextafter(nudged[2, 0], nudged.new_tensor(9.0))
    assert dataclasses.replace(t, state=nudged) != t


def test_it_prints_as_a_table():
    lines = repr(table()).splitlines()
    assert lines[0] == "dpmpp-2m-sde: 5 network evaluations, order 1.0, weak order 2.0"
    assert lines[1].split() == ["row", "t", "x_i", "D_i", "D_i-1", "z"]
    assert len(lines) == 7 and lines[2].split()[4] == "."  # no history yet
    long = DPMSolverPP(1).tableau(ud.VP(), times("log_snr", ud.VP(), 100))
    assert len(repr(long).splitlines()) == 27 and "..." in repr(long)


def test_trimming_drops_only_zero_columns():
    t = times("log_snr", ud.VP(), 3, "t_min")
    one, zero = torch.ones(3).double(), torch.zeros(3).double()
    late = torch.tensor([0.0, 0.0, 2.0]).double()
    made = from_rows("x", t, t[:-1], [one, zero, late, zero], [zero, zero], [zero, one])
    assert made.state.shape == (3, 3) and made.data.shape == (3, 1) and made.noise.shape == (3, 2)
    assert made.draws.tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"state": torch.ones(4, 1).double()},
            r"state must be \[5, ...\] like times; got \(4, 1\)",
        ),
        ({"data": torch.ones(5, 0).double()}, "at least one row, one state and one data column"),
        (
            {"draws": torch.ones(5, 2).long()},
            r"draws must have noise's shape \(5, 1\); got \(5, 2\)",
        ),
        ({"entry": (math.nan, 0.0)}, "entry must be two finite numbers"),
        ({"noise": torch.full((5, 1), math.inf).double()}, "scheme is singular"),
        ({"data": torch.ones(5, 2).double()}, r"data\[:1,1\] must be 0: there is no such history"),
        (
            {"state": torch.ones(5, 3).double()},
            r"state\[:1,1\] must be 0: there is no such history",
        ),
    ],
)
def test_bad_tables_say_what_must_hold(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_a_table_of_another_process_is_refused_and_of_an_equal_one_taken():
    flow, vp = ud.Flow(), ud.VP()
    model = ud.targets.Gaussian([0.0, 0.0], 1.7).denoiser(ud.VP())
    with pytest.raises(ValueError, match=r"dpmpp-2m was made for another process: .*VP"):
        ud.sample(
            model, (5, 2), ud.solvers.get("dpmpp-2m").tableau(flow, times("log_snr", flow, 9))
        )
    own = ud.solvers.get("dpmpp-2m").tableau(vp, times("log_snr", vp, 9))
    assert torch.equal(
        ud.sample(model, (5, 2), own), ud.sample(model, (5, 2), "dpmpp-2m", 9, "log_snr")
    )
    unknown = dataclasses.replace(own, levels=None, times=own.times + 1)
    with pytest.raises(ValueError, match=r"t must lie in .*t_max=1.*got 2"):
        ud.sample(model, (5, 2), unknown)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"times": 3}', "not json"])
def test_bad_text_is_refused(text):
    with pytest.raises(ValueError, match="not a tableau in JSON"):
        Tableau.from_json(text)
