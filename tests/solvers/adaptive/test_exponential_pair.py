"""The adaptive exponential pairs: DPM-Solver's own steps, and every sample on its own."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import SingleStep, SolverError, sample_ode_adaptively
from undiffuse.solvers.adaptive import ExponentialPair
from undiffuse.solvers.adaptive.exponential_pair import EXPONENTIAL
from undiffuse.solvers.adaptive.ode import Controller, integrate
from undiffuse.solvers.adaptive.sample import SOLVERS
from undiffuse.solvers.flow import ScaledFlow

from ..exact import (
    LAM0,
    LAM1,
    MIXTURE,
    MIXTURE_END,
    MIXTURE_START,
    evaluate,
    mixture_denoiser,
    slope,
)

PROCESS = ud.VP()
FIXED = Controller(0, 0, 0, safety=1.0, smallest=1.0, largest=1.0)


def flow():
    return ScaledFlow(MIXTURE.denoiser(PROCESS), len(MIXTURE_START))


def fixed_steps(pair, n, **options):
    """n equal steps of lambda from the mixture's starts, y = x/alpha."""
    return integrate(
        pair.field(flow()),
        MIXTURE_START,
        LAM0,
        LAM1,
        solver=pair,
        atol=1e6,
        first_step=(LAM1 - LAM0) / n,
        controller=FIXED,
        **options,
    )


@pytest.mark.parametrize("pair", EXPONENTIAL.values(), ids=EXPONENTIAL)
def test_equal_steps_are_the_single_step_table(pair):
    n = 6
    t = PROCESS.inverse_log_snr(torch.linspace(LAM0, LAM1, n + 1, dtype=torch.float64))
    table = SingleStep(pair.order, pair.form).tableau(PROCESS, t)
    x = evaluate(table, mixture_denoiser(PROCESS), PROCESS.alpha(t[0]) * MIXTURE_START)
    run = fixed_steps(pair, n)
    assert torch.allclose(run.x, x / PROCESS.alpha(t[-1]), rtol=0, atol=1e-11)
    assert bool((run.nfe == 1 + n * pair.order).all()) and bool((run.accepted == n).all())


@pytest.mark.parametrize("pair", EXPONENTIAL.values(), ids=EXPONENTIAL)
def test_the_estimate_is_the_distance_to_the_next_lower_order(pair):
    """Of order h^p for DPM-Solver-(p-1)p; for p = 2 the lower one is DDIM."""
    y, t = MIXTURE_START, torch.full((9,), LAM0, dtype=torch.float64)
    field, rows = pair.field(flow()), torch.arange(9)
    sizes = []
    for h in (0.04, 0.02):
        step = torch.full_like(t, h)
        stages = [field(t, y, rows)]
        for i, share in enumerate(pair.c.tolist()[1:], 1):
            end = pair.state(i, t, y, step, stages)
            stages.append(field(t + share * step, end, rows))
        defect = pair.defect(t, step, stages)
        sizes.append(float(defect.square().mean().sqrt()))
        if pair.order == 2:
            grid = PROCESS.inverse_log_snr(torch.tensor([LAM0, LAM0 + h], dtype=torch.float64))
            ddim = ud.solvers.DDIM().tableau(PROCESS, grid)
            low = evaluate(ddim, mixture_denoiser(PROCESS), PROCESS.alpha(grid[0]) * y)
            low = low / PROCESS.alpha(grid[1])
            assert torch.allclose(end - low, defect, rtol=0, atol=1e-12)
    assert abs(math.log2(sizes[0] / sizes[1]) - pair.order) < 0.15


@pytest.mark.parametrize("pair", EXPONENTIAL.values(), ids=EXPONENTIAL)
def test_order_and_the_cubic_between_steps(pair):
    ns, errors, between = (40, 80), [], []
    middle = torch.linspace(LAM0 + 0.1, LAM1, 37, dtype=torch.float64)
    exact = integrate(
        lambda lam, y, rows: flow().residual(y, lam, rows),
        MIXTURE_START,
        LAM0,
        LAM1,
        solver="dopri8",
        rtol=1e-10,
        atol=1e-10,
        max_step=0.05,
        save_at=middle,
    ).saved
    for n in ns:
        run = fixed_steps(pair, n, save_at=middle)
        errors.append(float((run.x - MIXTURE_END).square().mean().sqrt()))
        between.append(float((run.saved - exact).square().mean().sqrt()))
    assert abs(slope(ns, errors) - pair.order) < 0.15
    assert slope(ns, between) > pair.order - 0.2


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_error_follows_the_tolerance(name):
    pair = EXPONENTIAL[name]
    found = []
    for tol in (1e-2, 1e-3, 1e-4):
        run = integrate(
            pair.field(flow()), MIXTURE_START, LAM0, LAM1, solver=pair, rtol=tol, atol=tol
        )
        error = float((run.x - MIXTURE_END).abs().max())
        assert error < 10 * tol
        found.append((error, float(run.nfe.double().mean())))
    assert found[2][0] < 0.1 * found[0][0] and found[2][1] > found[0][1]


def elementwise():
    """A network that says of every component the same whatever stands beside it."""
    return ud.Denoiser(lambda x, t: 0.8 * torch.tanh(3 * x) + 0.1 * x, PROCESS, predicts="data")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_does_not_see_its_batch(solver, dtype):
    """Bitwise: alone, in pairs, in another order; other samples' counts differ from its own."""
    options = {"solver": solver, "rtol": 1e-4, "atol": 1e-4, "seed": 3, "dtype": dtype}
    whole = sample_ode_adaptively(elementwise(), (9, 3), **options)
    assert len(set(whole.nfe.tolist())) > 1
    for ids in ([4], [7, 0], [8, 3, 5]):
        part = sample_ode_adaptively(
            elementwise(), (len(ids), 3), sample_ids=torch.tensor(ids), **options
        )
        assert torch.equal(part.x, whole.x[ids])
        for field in ("nfe", "accepted", "rejected"):
            assert torch.equal(getattr(part, field), getattr(whole, field)[ids])


BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
EVERY = [
    ud.VP(),
    ud.VP.cosine(),
    ud.VP.from_betas(BETAS),
    ud.SubVP(),
    ud.VE(),
    ud.EDM(),
    ud.Flow(),
    ud.Brownian(),
]


@pytest.mark.parametrize("process", EVERY, ids=lambda p: type(p).__name__)
def test_a_time_is_rounded_alike_in_every_batch(process):
    """Some of torch's functions (logaddexp, sigmoid, hypot) round one number otherwise than
    many."""
    flow = ScaledFlow(MIXTURE.denoiser(process), 301)
    lam = torch.linspace(flow.lam_noise, flow.lam_data, 301, dtype=torch.float64)
    for i, whole in enumerate(flow.at(lam)):
        for size in (1, 3):
            parts = torch.cat([flow.at(part)[i] for part in lam.split(size)])
            assert torch.equal(parts, whole)


@pytest.mark.parametrize("process", [ud.VP(), ud.VE(), ud.EDM(), ud.Flow()], ids=repr)
@pytest.mark.parametrize("solver", ["dpm-solver-23", "dpmpp-23", "bosh3"])
def test_it_draws_the_samples_of_the_fixed_grids(process, solver):
    """The same starts as `sample`, the same flow: the two agree as both get finer."""
    law = ud.targets.GaussianMixture([1, 2], [[0.0, 1.0], [2.0, -1.0]], [0.05, 0.2])
    model = law.denoiser(process)
    fine = ud.sample(model, (16, 2), "unipc-3", 400, "log_snr", seed=2, dtype=torch.float64)
    options = {"solver": solver, "rtol": 1e-6, "atol": 1e-6, "seed": 2, "dtype": torch.float64}
    run = sample_ode_adaptively(model, (16, 2), **options)
    assert float((run.x - fine).abs().max()) < 1e-3
    still = sample_ode_adaptively(model, (16, 2), final="t_min", **options)
    assert torch.equal(run.nfe, still.nfe + 1)
    spread = float(process.sigma(model.t_min))
    assert 0 < float((still.x - process.alpha(model.t_min) * run.x).abs().max()) < 6 * spread + 1e-3


def test_failures_and_bad_input():
    def broken(x, t):
        late = (t[:, None] < 0.5) & (x[:, :1] > 0)
        return torch.where(late, torch.nan, 0.5 * x)

    model = ud.Denoiser(broken, PROCESS, predicts="data")
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    run = sample_ode_adaptively(model, (2, 1), x_init=x, on_failure="return", final="t_min")
    assert run.status.tolist() == [ud.solvers.Status.NETWORK_NOT_FINITE, ud.solvers.Status.OK]
    with pytest.raises(SolverError, match="the network returned NaN or Inf for sample 0; 1 of 2"):
        sample_ode_adaptively(model, (2, 1), x_init=x, final="t_min")
    for options, message in (
        ({"solver": "dpm-solver-32"}, "did you mean 'dpm-solver-23'"),
        ({"final": "zero"}, "final must be one of denoise, t_min; got 'zero'"),
        ({"rtol": 0.0}, "rtol must be"),
        ({"x_init": x[:1]}, r"x_init must be of shape \(2, 1\); got \(1, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_ode_adaptively(model, (2, 1), **options)
    for options, message in (
        ({"order": 4}, "order must be 2 or 3"),
        ({"form": "v"}, "form must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ExponentialPair(**options)
