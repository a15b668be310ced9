"""Every registered solver runs on every registered process, from its noise to its data."""

import math
from itertools import pairwise

import pytest
import torch

import undiffuse as ud
from undiffuse.models.processes.registry import PROCESSES
from undiffuse.solvers.tables.law import gaussian_law, marginal

MADE = {
    "learned": lambda: ud.VP.learned(ud.models.MonotoneOmega()),
    "vp-betas": lambda: ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000)),
    "brownian": lambda: ud.models.Brownian(1.0),
}


PAIRS = [
    pytest.param(process, final, marks=pytest.mark.slow if process == "learned" else ())
    for process in PROCESSES
    for final in ("denoise", "t_min")
]


@pytest.mark.parametrize(("process", "final"), PAIRS)
def test_every_solver_has_a_table_whose_law_is_finite(process, final):
    """From t_max itself: where alpha is 0 there, as in Flow, every coefficient has its limit."""
    made = MADE.get(process, PROCESSES[process])()
    refused, steps, names = {}, 12, ud.solvers.names()
    if process == "learned":  # its alpha is a network's, slow to invert
        steps, names = 5, names[::4]
    for name in names:
        try:
            sampler = ud.Sampler(
                ud.Denoiser(lambda x, t: x, made, predicts="v"), name, steps, final=final
            )
        except ValueError as error:
            refused[name] = str(error)
            continue
        assert float(sampler.tableau.grid[0]) == made.t_max
        law = gaussian_law(sampler.tableau, made, 0.3, 0.8)
        assert bool(torch.isfinite(law.var).all()), name
    assert refused == {}


def gain(table):
    """The most that an error of 1 in one prediction of the velocity moves any state by, noise
    apart: D is in error by -t there, and by the state's own error everywhere."""
    moved = torch.zeros(table.nfe + 1, table.nfe, dtype=torch.float64)  # [state, row in error]
    for i in range(table.nfe):
        data = moved[: i + 1] - torch.diag(table.times)[: i + 1]
        for m, values in ((table.state, moved), (table.data, data)):
            for k in range(min(i + 1, m.shape[1])):
                moved[i + 1] += m[i, k] * values[i - k]
    return float(moved.abs().max())


@pytest.mark.parametrize("before", [1e-6, 1e-9, 0.0])
def test_no_solver_magnifies_errors_next_to_pure_noise(before):
    """diffusers begins its flows at 1 - 1e-6, where alpha divides float32's rounding by 1e-6.

    A sum of steps cannot move a state further than the run is long, but for the weights of
    Adams-Bashforth, 4.52 here; from t = 1 itself no solver goes beyond either.
    """
    flow, t = ud.Flow(), [1.0 - before, 0.97, 0.92, 0.84, 0.67, 0.0]
    found = {name: gain(ud.solvers.get(name).tableau(flow, t)) for name in ud.solvers.names()}
    assert {name: g for name, g in found.items() if g > 5} == {}


def steps_of(n):
    flow = ud.Flow()
    t = ud.solvers.times("uniform", flow, n, "t_min")
    return gaussian_law(ud.solvers.get("euler-maruyama").tableau(flow, t), flow, 0.3, 0.8), t[-1]


def test_euler_maruyama_starts_at_pure_noise():
    """g is infinite at t = 1 of a flow; the step from there is the limit, alpha D + sigma z."""
    flow = ud.Flow()
    table = ud.solvers.get("euler-maruyama").tableau(flow, ud.solvers.times("uniform", flow, 10))
    first = float(table.grid[1])
    assert (table.state[0, 0], table.data[0, 0], table.noise[0, 0]) == pytest.approx(
        (0.0, 1 - first, first), abs=1e-15
    )
    # the same step from just below t = 1 by the exact reverse transition, given D
    s, t = torch.tensor(first, dtype=torch.float64), torch.tensor(1 - 1e-9, dtype=torch.float64)
    ratio = (flow.alpha(t) / flow.alpha(s)) * (flow.sigma(s) / flow.sigma(t)).square()
    assert abs(float(ratio - table.state[0, 0])) < 1e-8


def test_euler_maruyama_is_of_weak_order_one_from_pure_noise():
    errors = []
    for n in (400, 800, 1600):
        law, end = steps_of(n)
        exact = marginal(ud.Flow(), end, torch.tensor([0.3]).double(), torch.tensor([0.8]).double())
        errors.append(float((law.var - exact.var).abs() + (law.mean - exact.mean).abs()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(slope > 0.9 for slope in slopes), (errors, slopes)
    assert errors[0] < 1e-5
