"""One conformance suite over every registered solver: a new one is tested by being registered."""

import dataclasses
import json
import math
import pickle

import pytest
import torch

import undiffuse as ud
from undiffuse.kernels import normal
from undiffuse.models.targets import GaussianMixture
from undiffuse.solvers import (
    Consistency,
    DPMSolverPP,
    Heun,
    Restart,
    RungeKutta,
    SASolver,
    SingleStep,
    Solver,
    Tableau,
    UniPC,
    names,
    times,
)
from undiffuse.solvers.families.registry import SOLVERS
from undiffuse.solvers.tables.law import gaussian_law, marginal

from ..exact import evaluate

NAMES = names(aliases=False)
PROCESSES = [ud.VP(), ud.VE(), ud.EDM(), ud.Flow()]
TARGET = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)


def sampling_grid(process, steps=7, final="denoise"):
    return times("karras", process, steps, final)


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_is_a_frozen_value(name):
    solver = ud.solvers.get(name)
    assert solver is SOLVERS[name] and isinstance(solver, Solver)
    assert ud.solvers.get(name.upper().replace("-", "_")) is solver
    assert pickle.loads(pickle.dumps(solver)) == solver
    assert hash(dataclasses.replace(solver)) == hash(solver)
    assert repr(solver).startswith(type(solver).__name__ + "(")
    assert type(solver).__doc__ and len(type(solver).__doc__) > 100
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_its_table_reads_back_and_counts_its_calls(name, process):
    table = SOLVERS[name].tableau(process, sampling_grid(process, 20))
    again = Tableau.from_json(table.to_json())
    assert again == table and hash(again) == hash(table)
    assert all(isinstance(v, (int, float)) for v in json.loads(table.to_json())["times"])
    shown = repr(table)
    assert shown.startswith(f"{table.name}: {table.nfe} network evaluations")
    assert shown.count("\n") == 1 + min(table.nfe, 25)
    assert table.stochastic == SOLVERS[name].stochastic
    used = table.draws[table.noise != 0]
    assert bool((used > 0).all())  # draw 0 is the entry's
    calls = []

    def net(x, t):
        calls.append(t)
        return TARGET.data_prediction(x, t.double(), process)

    model = ud.Denoiser(net, process, predicts="data")
    r = ud.sample(model, (3, 2), solver=table, return_result=True)
    told = torch.cat(calls).reshape(-1, 3)[:, 0]  # independent stages are asked about together
    assert r.nfe == table.nfe == len(told)
    assert torch.equal(told, table.times.float())
    assert bool(torch.isfinite(r.x).all())


@pytest.mark.filterwarnings("ignore:.* diverges on")
@pytest.mark.parametrize("process", [ud.VP(), ud.Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_fused_run_is_the_table_in_float64(name, process):
    """float32 through the operator, with the network's read-out folded in, against the equation."""
    table = SOLVERS[name].tableau(process, sampling_grid(process, 6))
    predicts = "v"
    exact = TARGET.denoiser(process)

    def net(x, t):
        d = exact(x.double(), t.double())
        a, s = process.alpha(t)[:, None], process.sigma(t)[:, None]
        # v = alpha eps - sigma D; at sigma > 0
        return (a * (x.double() - a * d) / s - s * d).to(x.dtype)

    model = ud.Denoiser(net, process, predicts=predicts)
    shape, seed = (16, 2), 5
    fused = ud.sample(model, shape, solver=table, seed=seed)
    x = normal(shape, seed, purpose="initial").double() * float(process.sigma(table.grid[0]))
    z = {
        d: normal(shape, seed, draw=d, purpose="predictor").double()
        for d in [0, *table.draws.unique().tolist()]
    }
    plain = evaluate(table, exact, x, z)
    assert torch.allclose(fused.double(), plain, rtol=0, atol=3e-4)
    if table.stochastic:  # the test would see a normal left out
        still = evaluate(table, exact, x, {d: torch.zeros_like(x) for d in z})
        assert float((fused - still).abs().max()) > 1e-2


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_it_ends_in_one_denoising_jump_and_starts_in_pure_noise(name, process):
    t = sampling_grid(process, 5)
    table = SOLVERS[name].tableau(process, t)
    assert float(table.times[-1]) == float(t[-2])
    assert table.data[-1].tolist() == [1.0] + [0.0] * (table.data.shape[1] - 1)
    assert not bool(table.state[-1].any()) and not bool(table.noise[-1].any())
    only = SOLVERS[name].tableau(process, t[[0, -1]])  # one call, straight to D
    assert only.nfe == 1 and only.data.tolist() == [[1.0]] and only.state.tolist() == [[0.0]]


@pytest.mark.parametrize("name", NAMES)
def test_planning_is_fast_and_stays_finite(name):
    process = ud.VP()
    table = SOLVERS[name].tableau(process, times("log_snr", process, 1000, "t_min"))
    for m in (table.state, table.data, table.noise):
        assert bool(torch.isfinite(m).all()) and bool((m.abs() < 1e5).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniPC(0), "points must be a whole number in 1..6; got 0"),
        (lambda: UniPC(2, "bh3"), "variant must be 'bh1' or 'bh2'; got 'bh3'"),
        (lambda: UniPC(2, form="velocity"), "form must be 'data' or 'noise'; got 'velocity'"),
        (lambda: DPMSolverPP(4), "order must be 1, 2 or 3; got 4"),
        (lambda: DPMSolverPP(2, -1.0), "eta must be >= 0; got -1.0"),
        (lambda: RungeKutta(clock="t"), "clock must be 'sigma' or 'flow'; got 't'"),
        (lambda: RungeKutta(eta=2.0), r"eta must lie in \[0, 1\]; got 2.0"),
        (lambda: SingleStep(4), "order must be 2 or 3; got 4"),
        (lambda: SASolver(window=(1.0, 0.5)), r"window must be \(low, high\) with low < high"),
        (lambda: Restart(intervals=((0.5, 0.1, 1),)), "an interval must be"),
        (lambda: Restart(SASolver()), "inner must be a deterministic solver"),
        (lambda: Consistency(1.5), r"gamma must lie in \[0, 1\]; got 1.5"),
        (lambda: Heun(churn=-1.0), "churn must be >= 0; got -1.0"),
        (lambda: ud.solvers.get("dpmp-2m"), "unknown solver 'dpmp-2m'; did you mean 'dpmpp-2m'"),
    ],
)
def test_bad_settings_say_what_must_hold(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_restart_goes_back_up_as_often_as_it_says():
    process = ud.EDM()
    grid = times("karras", process, 18)
    plain = SOLVERS["heun"].tableau(process, grid)
    ratio = grid[:-1]
    once, thrice = (Restart(intervals=((0.05, 0.3, k),)).tableau(process, grid) for k in (1, 3))
    inside = int(((ratio >= 0.05) & (ratio <= 0.3)).sum())
    assert once.nfe == plain.nfe + 2 * (inside - 1)
    assert thrice.nfe == plain.nfe + 6 * (inside - 1)
    rises = int((thrice.times[1:] > thrice.times[:-1] * 1.0001).sum())
    assert rises == 3
    assert Restart(intervals=((100.0, 200.0, 2),)).tableau(process, grid).nfe == plain.nfe


@pytest.mark.parametrize("process", [ud.VP(), ud.EDM()], ids=lambda p: type(p).__name__)
def test_consistency_sampling_is_exact_in_law_for_an_exact_consistency_function(process):
    """The flow's end point replaces D: by its own linear response, not `gaussian_law`'s D."""
    m, c = 0.3, 0.2
    t = times("karras", process, 4)
    table = Consistency().tableau(process, t)
    mean, var = (float(v) for v in marginal(process, t[0], *torch.tensor([m, c]).double()))
    for i, now in enumerate(table.times):
        a, s = float(process.alpha(now)), float(process.sigma(now))
        gain = math.sqrt(c / (a * a * c + s * s))  # the flow's map from t to 0
        k = float(table.state[i, 0]) + float(table.data[i, 0]) * gain
        shift = float(table.data[i, 0]) * (m - gain * a * m)
        noise = float(table.noise[i, 0]) if table.noise.shape[1] else 0.0
        mean, var = k * mean + shift, k * k * var + noise**2
    assert (mean, var) == (pytest.approx(m, rel=1e-9), pytest.approx(c, rel=1e-9))


def test_tcd_lies_between_lcm_and_ddim():
    process = ud.VP()
    t = times("karras", process, 4)
    lcm, tcd, still = (Consistency(g).tableau(process, t) for g in (1.0, 0.3, 0.0))
    assert torch.equal(lcm.state, torch.zeros_like(lcm.state))
    assert torch.allclose(still.state, SOLVERS["ddim"].tableau(process, t).state, rtol=1e-14)
    assert torch.allclose(still.data, SOLVERS["ddim"].tableau(process, t).data, rtol=1e-12)
    # x = alpha D + sigma eps in, alpha' D + sigma' eps' out: the variance of what is not D
    sigma = process.sigma(t)
    kept = (tcd.state[:, 0] * sigma[:-1]).square() + tcd.noise[:, 0].square()
    assert torch.allclose(kept, sigma[1:].square())


@pytest.mark.parametrize("process", [ud.VP(), ud.Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5])
def test_every_noise_level_keeps_the_marginals(process, tau):
    """One dial for all processes: the law at 400 steps is the data's whatever tau."""
    t = times("log_snr", process, 400)
    m, c = torch.tensor([0.5]), torch.tensor([0.3])
    law = gaussian_law(SASolver(2, 2, tau, (0.0, math.inf)).tableau(process, t), process, m, c)
    # the last jump shrinks what is left of the noise, of order sigma_min^2
    assert float(law.mean) == pytest.approx(0.5, abs=2e-4)
    assert float(law.var) == pytest.approx(0.3, abs=2e-3)
