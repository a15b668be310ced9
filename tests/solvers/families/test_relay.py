"""The default: which solver and grid an unnamed one is, and what the relay's rows are."""

import inspect
import math

import pytest
import torch

import undiffuse as ud
from undiffuse import cli
from undiffuse.models.targets import GaussianMixture
from undiffuse.solvers import IPNDM, Relay, SparedStart, UniPC, times
from undiffuse.solvers.tables import grids
from undiffuse.solvers.tables.grids import Blend

LAW = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)
PROCESSES = {
    "vp": ud.VP(),
    "cosine": ud.VP.cosine(),
    "subvp": ud.SubVP(),
    "ve": ud.VE(),
    "edm": ud.EDM(),
    "flow": ud.Flow(),
    "betas": ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000).double()),
}


def test_what_is_used_where_none_is_named_is_one_pair_everywhere():
    for function in (ud.sample, ud.Sampler.__init__):
        parameters = inspect.signature(function).parameters
        assert (parameters["solver"].default, parameters["grid"].default) == ("relay", None)
    parsed = cli.build().parse_args(["sample"])
    assert (parsed.solver, parsed.grid, parsed.final) == ("relay", None, None)
    assert grids.named("blend") == Blend(0.6, short=0.45)


@pytest.mark.parametrize("steps", [5, 14, 40])
def test_each_row_is_one_of_three_solvers(steps):
    """By the table in its docstring: r = n/pace, 300 the bound beyond which all is iPNDM-2. From
    beyond it r is a fourth in a run that is not short."""
    process = ud.VP.cosine()  # from sigma/alpha 20,000 down
    t = times(Blend(1.0), process, steps)
    made = Relay(pace=0.5, many=36, kept=0.0).tableau(process, t)
    ratio = torch.exp(-process.log_snr(made.times))
    steady, change = IPNDM(2), 2 * steps if steps <= 12 else steps / 2
    low, high, faint = ratio <= change, (ratio > change) & (ratio <= 300.0), ratio > 300.0
    by_steps = {
        5: [(low, UniPC(2, form="noise")), (~low, steady)],
        14: [(low, UniPC(2, form="noise")), (~low, steady)],
        40: [(low, UniPC(3, form="noise")), (high, UniPC(2, form="noise")), (faint, steady)],
    }
    for rows, solver in by_steps[steps]:
        other = solver.tableau(process, t)
        assert int(rows.sum()) > 1
        for name in ("state", "data"):
            a, b = getattr(made, name)[rows], getattr(other, name)[rows]
            wide = max(a.shape[1], b.shape[1])
            a, b = (torch.nn.functional.pad(m, (0, wide - m.shape[1])) for m in (a, b))
            assert torch.equal(a, b)
    assert made.order == 2.0 and Relay().tableau(ud.VP(), times("log_snr", ud.VP(), 9)).order == 4.0
    for name in ("pace", "noisy"):
        with pytest.raises(ValueError, match=f"{name} must be > 0; got 0"):
            Relay(**{name: 0.0})
    for name in ("few", "many"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number >= 0; got -1"):
            Relay(**{name: -1})


@pytest.mark.parametrize("kept", [0.0, 0.25, 1.0])
def test_below_the_change_a_run_goes_by_a_mean_of_two_solvers(kept):
    """From five to twelve intervals `kept` of it is iPNDM-2, of fewer all, of more half of that."""
    process = ud.VP()
    for steps, share in ((4, 1.0), (5, kept), (12, kept), (13, kept / 2), (35, kept / 2)):
        t = times("blend", process, steps)
        made = Relay(pace=4.0, kept=kept).tableau(process, t)
        mild, sharp = (s.tableau(process, t) for s in (IPNDM(2), UniPC(2, form="noise")))
        low = torch.exp(-process.log_snr(made.times)) <= steps / 4.0
        for name in ("state", "data"):
            every = [getattr(table, name) for table in (made, mild, sharp)]
            wide = max(m.shape[1] for m in every)
            found, a, b = (torch.nn.functional.pad(m, (0, wide - m.shape[1])) for m in every)
            mean = torch.where(low[:, None], share * a + (1 - share) * b, a)
            torch.testing.assert_close(found, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("process", "calls"), [(ud.VP(), 6), (ud.VP.cosine(), 11)], ids=("from 150", "from 20,000")
)
def test_the_shortest_runs_from_noise_spare_a_call_and_lay_an_interval_more(process, calls):
    """Six steps of the default are a relay on seven intervals, the first without a call; eleven
    where the start tells a network nothing."""
    model = LAW.denoiser(process)
    short = ud.Sampler(model, steps=calls).tableau
    t = times("blend", process, calls + 1, "t_min", model.t_min)
    other = SparedStart(Relay()).tableau(process, t)
    assert short.nfe == calls and torch.equal(short.state, other.state)
    assert torch.equal(short.data, other.data) and short.entry == other.entry != (1.0, 0.0)
    assert ud.Sampler(model, steps=calls + 1).tableau.entry == (1.0, 0.0)
    # a schedule that ends at sigma/alpha = 1.3 has something to hear from the first call on
    early = ud.VP.from_betas(torch.linspace(1e-4, 0.02, 100).double())
    assert ud.Sampler(LAW.denoiser(early), steps=5).tableau.entry == (1.0, 0.0)


def test_exploding_variances_by_any_name_have_one_grid():
    """VE, EDM and Brownian motion over the same noise levels are one flow in three times."""
    every = (ud.VE(0.02, 50.0, 0.0), ud.EDM(0.02, 50.0), ud.Brownian(1.0, 0.0004, 2500.0))
    for steps in (7, 20):
        sigmas = [process.sigma(times("blend", process, steps)) for process in every]
        for other in sigmas[1:]:
            torch.testing.assert_close(other, sigmas[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("nodes", [4, 9, 21])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_blend_lays_equal_shares_of_its_density(name, nodes):
    """The mass w (lambda - lambda_0)/range + (1 - w) (clock_0 - clock)/range of every step is the
    same, to the 4,097 points that it is tabulated on."""
    process = PROCESSES[name]
    pure = min(float(torch.exp(-process.log_snr(process.t_max))), 1e3)
    t = times(Blend(0.3, pure=1e3), process, nodes, "t_min")
    lam, clock = process.log_snr(t).clamp(min=-math.log(pure)), process.clock(t)
    share = 0.3 * torch.diff(lam) / (lam[-1] - lam[0])
    share = share + 0.7 * torch.diff(clock) / (clock[-1] - clock[0])
    assert torch.allclose(share, torch.full_like(share, 1 / nodes), atol=2e-3)


def test_few_nodes_of_a_blend_have_a_share_of_their_own():
    process = ud.VP()
    for steps, w in ((7, 0.2), (8, 0.7)):  # 8 and 9 nodes
        t = times(Blend(0.7, pure=1e3, short=0.2), process, steps, "t_min")
        assert torch.equal(t, times(Blend(w, pure=1e3), process, steps, "t_min"))


OWN = {
    "relay": "blend",
    "ddim": "blend",
    "ipndm-3": "blend",
    "unipc-3-noise": "blend",
    "dpmpp-2m": "laplace-wide",
    "unipc-2": "laplace-wide",
    "dpmpp-3m-compat": "laplace-wide",
    "vab-2": "blend",
    "vab-4": "laplace-wide",
    "ipndm-4": "laplace-wide",
    "dpmpp-3m": "log_snr",
    "unipc-3": "log_snr",
    "dpmpp-2m-sde": "log_snr",
    "pfdiff-1": "cosine",
}


@pytest.mark.parametrize("name", OWN)
def test_a_solver_that_is_named_alone_steps_on_its_own_grid(name):
    model = LAW.denoiser(ud.VP())
    assert ud.solvers.get(name).own_grid == OWN[name]
    made, asked = (ud.Sampler(model, name, 10, grid).tableau for grid in (None, OWN[name]))
    assert torch.equal(made.grid, asked.grid) and torch.equal(made.data, asked.data)


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
    """dpmpp-2m on karras, of whose error at 8 and 20 calls the default has at most half."""
    model, shape = LAW.denoiser(PROCESSES[name]), (256, 2)
    run = {"seed": 3, "dtype": torch.float64}
    exact = ud.sample(model, shape, "unipc-4", 400, "log_snr", **run)
    for steps, share in ((8, 0.6), (20, 0.6)):
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
