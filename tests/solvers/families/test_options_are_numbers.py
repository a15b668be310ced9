"""Options of solvers that are no numbers, or no options, are refused in our words."""

import dataclasses
import math
import pickle

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import get, names

OBJECTS = [s for s in map(get, names()) if dataclasses.is_dataclass(s)]


@pytest.mark.parametrize("value", ["x", None, [], math.nan, True])
def test_no_option_ends_in_an_error_of_pythons(value):
    for solver in {type(s): s for s in OBJECTS}.values():
        for one in dataclasses.fields(solver):
            try:
                dataclasses.replace(solver, **{one.name: value})
            except ud.UndiffuseError:
                continue
            assert one.type not in ("float", "int"), (solver, one.name)


def test_a_failure_goes_through_pickle():
    error = ud.SolverError("no", torch.tensor([1, 0]), 3)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "no" and again.result == 3 and torch.equal(again.status, error.status)
