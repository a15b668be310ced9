"""The default: which solver and grid an unnamed one is, and what the relay's rows are."""

import inspect

import pytest
import torch

import undiffuse as ud
from undiffuse import cli
from undiffuse.models.targets import GaussianMixture
from undiffuse.solvers import IPNDM, DPMSolverPP, Relay, times
from undiffuse.solvers.tables.grids import GRIDS, Laplace

LAW = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)
PROCESSES = {
    "vp": ud.VP(), "cosine": ud.VP.cosine(), "subvp": ud.SubVP(), "ve": ud.VE(), "edm": ud.EDM(),
    "flow": ud.Flow(), "betas": ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000).double()),
}  # fmt: skip


def test_what_is_used_where_none_is_named_is_one_pair_everywhere():
    for function in (ud.sample, ud.Sampler.__init__):
        parameters = inspect.signature(function).parameters
        assert (parameters["solver"].default, parameters["grid"].default) == (
            "relay",
            "laplace-wide",
        )
    parsed = cli._parser().parse_args(["sample"])
    assert (parsed.solver, parsed.grid, parsed.steps) == ("relay", "laplace-wide", 20)
    assert GRIDS["laplace-wide"] == Laplace(0.0, 5.0)


def test_each_row_is_the_one_solver_s_or_the_other_s():
    process = ud.VP()
    t = times("laplace-wide", process, 12)
    made = Relay(ratio=2.0).tableau(process, t)
    high = torch.exp(-process.log_snr(made.times)) > 2.0
    assert 2 < int(high.sum()) < 10
    for rows, solver in ((high, DPMSolverPP(2)), (~high, IPNDM(3))):
        other = solver.tableau(process, t)
        for name in ("state", "data"):
            a, b = getattr(made, name)[rows], getattr(other, name)[rows]
            wide = max(a.shape[1], b.shape[1])
            a, b = (torch.nn.functional.pad(m, (0, wide - m.shape[1])) for m in (a, b))
            assert torch.equal(a, b)
    few = Relay(ratio=1e-9).tableau(process, t)
    assert torch.equal(few.data, DPMSolverPP(2).tableau(process, t).data)


def test_runs_of_few_calls_look_back_two_points_and_no_further():
    process = ud.VP()
    for calls, points in ((6, 2), (7, 3)):
        table = Relay().tableau(process, times("laplace-wide", process, calls))
        assert (table.nfe, table.data.shape[1]) == (calls, points)
    with pytest.raises(ValueError, match="ratio must be > 0; got 0"):
        Relay(ratio=0.0)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("final", ["denoise", "zero", "t_min"])
def test_the_default_calls_once_a_step_on_every_process_from_one_step_on(name, final):
    model = LAW.denoiser(PROCESSES[name])
    for steps in (1, 2, 3, 20):
        r = ud.sample(model, (8, 2), steps=steps, final=final, return_result=True)
        assert r.nfe == steps and torch.isfinite(r.x).all()
    x = ud.sample(model, (4000, 2), final=final)  # 20 calls: the law within five standard errors
    mean, var = LAW.mean, LAW.cov.diagonal()
    assert torch.allclose(x.double().mean(0), mean, atol=5 * float(var.max() / 4000) ** 0.5 + 0.01)
    assert torch.allclose(x.double().var(0), var, rtol=0.1)


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_the_default_errs_less_than_what_is_typed_elsewhere(name):
    """dpmpp-2m on karras, whose error at 8 calls the default has at most half of."""
    model, shape = LAW.denoiser(PROCESSES[name]), (256, 2)
    run = {"seed": 3, "dtype": torch.float64}
    exact = ud.sample(model, shape, "unipc-4", 400, "log_snr", **run)
    for steps, share in ((8, 0.5), (20, 0.5)):
        ours = ud.sample(model, shape, steps=steps, **run)
        usual = ud.sample(model, shape, "dpmpp-2m", steps, "karras", **run)
        mine, theirs = ((x - exact).square().mean().sqrt() for x in (ours, usual))
        assert mine < share * theirs


def test_a_network_of_discrete_time_is_told_times_within_its_steps():
    seen = []

    def net(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    process = ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000).double())
    model = ud.Denoiser(net, process, time="index", steps=1000)
    x = ud.sample(model, (2, 3))
    told = torch.stack(seen)[:, 0]
    assert len(seen) == 20 and torch.isfinite(x).all()
    assert float(told[0]) == 999 and float(told.min()) >= 0 and bool((told.diff() < 0).all())
