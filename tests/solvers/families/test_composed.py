"""What is made of tables: the first call spared, a run backwards, tables joined."""

import dataclasses

import pytest
import torch

import undiffuse as ud
from undiffuse.models.bases import Columns
from undiffuse.models.targets import GaussianMixture
from undiffuse.solvers import (
    DDIM,
    Adams,
    DPMSolverPP,
    GaussianPreconditioned,
    Heun,
    Inversion,
    RungeKutta,
    SparedStart,
    Statistics,
    Tableau,
    UniPC,
    times,
)
from undiffuse.solvers.families.composed import analytical_first_step
from undiffuse.solvers.families.registry import SOLVERS
from undiffuse.solvers.tables.grids import Discrete
from undiffuse.solvers.tables.law import gaussian_law, response

from ..exact import (
    MIXTURE_END,
    MIXTURE_START,
    evaluate,
    grid,
    mixture_denoiser,
    slope,
)

TARGET = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)
NAMES = sorted(k for k in SOLVERS if k not in ("sra1",))


@pytest.mark.parametrize("name", NAMES)
def test_sparing_the_first_call_changes_nothing_where_its_closed_form_is_exact(name):
    """On N(0, c) the Wiener filter is D itself: the same response to the start and to every normal,
    history and shared normals included, with one call fewer. heun-churn has an entry already."""
    process, c = ud.VP(), 0.3
    full = SOLVERS[name].tableau(process, times("karras", process, 7))
    spared = analytical_first_step(full, process, c)
    assert spared.nfe == full.nfe - 1 and spared.name == f"afs({full.name})"
    one, other = (response(t, process, 0.0, c) for t in (full, spared))
    assert torch.allclose(one[:, :2], other[:, :2], rtol=0, atol=1e-12)  # offset and start
    # the first normal may have become the entry's
    assert torch.allclose(one[:, 2:].sum(1), other[:, 2:].sum(1), rtol=0, atol=1e-12)
    laws = (gaussian_law(t, process, 0.0, c) for t in (full, spared))
    assert torch.allclose(*(v.var for v in laws), rtol=1e-12)
    assert Tableau.from_json(spared.to_json()) == spared


def test_the_sampler_draws_the_spared_row_s_normal_where_later_rows_see_it():
    """dpmpp-2m-sde looks back at D_0, which is known from x_1 and its normal: z_0, drawn again."""
    process, c = ud.VP(), 0.3
    law = ud.targets.Gaussian([0.0, 0.0], c)
    full = SOLVERS["dpmpp-2m-sde"].tableau(process, times("karras", process, 9))
    spared = analytical_first_step(full, process, c)
    assert bool((spared.draws[spared.noise != 0] == 0).any())
    calls = []

    def net(x, t):
        calls.append(t)
        return law.denoiser(process)(x, t)

    model = ud.Denoiser(net, process, predicts="data")
    x = ud.sample(model, (20_000, 2), solver=spared, seed=1, dtype=torch.float64)
    assert len(calls) == 8
    start = gaussian_law(
        spared, process, 0.0, c, init=ud.solvers.law.Law(*torch.eye(2)[:, :1].double())
    )
    # five standard errors of 40,000 numbers
    assert abs(float(x.var()) / float(start.var) - 1) < 5 * (2 / 40_000) ** 0.5


@pytest.mark.parametrize("name", ["dpmpp-2m", "heun", "unipc-3"])
def test_at_high_noise_it_costs_little_and_in_mid_noise_an_order(name):
    process = ud.VP()
    exact = UniPC(3).tableau(process, times("log_snr", process, 400, "t_min"))
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = TARGET.denoiser(process)
    table = SOLVERS[name].tableau(process, times("log_snr", process, 10, "t_min"))
    end = evaluate(exact, denoise, x)
    plain, spared = (
        float((evaluate(t, denoise, x) - end).square().mean().sqrt())
        for t in (table, analytical_first_step(table, process, 0.7))
    )
    assert spared < 1.2 * plain + 1e-3
    errors = []
    for n in (40, 80):  # the spared step is the first of n equal ones: h times D's own error
        t = grid(process, n, graded=0)
        cut = analytical_first_step(SOLVERS[name].tableau(process, t), process, 0.7)
        assert cut.order == 1
        y = evaluate(cut, mixture_denoiser(process), process.alpha(t[0]) * MIXTURE_START)
        errors.append(float((y - process.alpha(t[-1]) * MIXTURE_END).square().mean().sqrt()))
    assert abs(slope((40, 80), errors) - 1) < 0.15


def test_what_cannot_be_spared_is_said():
    process = ud.VP()
    t = times("karras", process, 5)
    forgets = DPMSolverPP(2, 1.0).tableau(process, t)
    later = (torch.arange(5) > 0)[:, None]
    forgets = dataclasses.replace(forgets, state=forgets.state * later, data=forgets.data * later)
    for table, message in (
        (SOLVERS["sra1"].tableau(process, t), "draws two normals in its first row"),
        (DDIM().tableau(process, t[-2:]), "two network calls or more"),
        (forgets, "forgets x_0 in its first row"),
    ):
        with pytest.raises(ValueError, match=message):
            analytical_first_step(table, process)
    with pytest.raises(ValueError, match="variance must be >= 0; got -1"):
        analytical_first_step(DDIM().tableau(process, t), process, -1.0)


# --- backwards --------------------------------------------------------------------------------

BACKWARDS = {
    "ddim": DDIM(),
    "heun": Heun(),
    "dpmpp-2m": DPMSolverPP(2),
    "dpmpp-3m": DPMSolverPP(3),
    "unipc-2": UniPC(2),
    "deis-3": Adams(3),
    "rk4": RungeKutta(),
    "plms": SOLVERS["plms"],
    "dpm-solver-3": SOLVERS["dpm-solver-3"],
    "vab-2": SOLVERS["vab-2"],
}


@pytest.mark.parametrize("name", BACKWARDS)
def test_there_and_back_is_as_far_off_as_the_order_says(name):
    """On a grid graded at both ends: a multistep method's first step counts on neither way."""
    solver, process = BACKWARDS[name], ud.VP()
    errors, ns = [], (40, 80) if name == "rk4" else (100, 200)
    for n in ns:
        t = grid(process, n)
        last = process.log_snr(t[-2:])
        fine = 4.0 ** -torch.arange(1.0, 9.0, dtype=torch.float64)
        t = torch.cat(
            [t[:-1], process.inverse_log_snr(last[1] - fine * (last[1] - last[0])), t[-1:]]
        )
        there, back = Inversion(solver).tableau(process, t), solver.tableau(process, t)
        assert torch.equal(there.grid, t.flip(0)) and not there.stochastic
        x = process.alpha(t[-1]) * MIXTURE_END
        z = evaluate(there, mixture_denoiser(process), x)
        errors.append(float((evaluate(back, mixture_denoiser(process), z) - x).abs().max()))
    assert slope(ns, errors) > there.order - 0.2
    start = process.alpha(t[0]) * MIXTURE_START
    assert float((z - start).abs().max()) < (0.1 if name == "ddim" else 1e-3)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "heun", "unipc-2", "vab-2", "plms"])
def test_a_flow_is_inverted_up_to_its_pure_noise(name):
    """At alpha = 0 log-SNR is infinite: the last step there, as the first from there, is DDIM's."""
    process, solver = ud.Flow(), SOLVERS[name]
    denoise, x = TARGET.denoiser(process), TARGET.sample(12, seed=3).double()
    gaps = []
    for steps in (40, 160):
        t = times("shifted", process, steps, "t_min")
        z = evaluate(Inversion(solver).tableau(process, t), denoise, x)
        gaps.append(float((evaluate(solver.tableau(process, t), denoise, z) - x).abs().max()))
    assert gaps[1] < 0.35 * gaps[0] and gaps[1] < 0.1
    only = Inversion(solver).tableau(process, [1.0, 0.3])
    exact = x / 0.3 - 0.7 / 0.3 * denoise(x, torch.tensor(0.3))
    assert torch.allclose(evaluate(only, denoise, x), exact) and only.nfe == 1


def test_ddim_inversion_is_diffusers():
    """Their step with the noise predicted at the level the state has. Their pipelines ask the
    network at the next level instead, which is another scheme of first order."""
    diffusers = pytest.importorskip("diffusers")
    betas = diffusers.DDPMScheduler().betas.double()
    process, steps = ud.VP.from_betas(betas), 10
    scheduler = diffusers.DDIMInverseScheduler(
        clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=False
    )
    scheduler.set_timesteps(steps)
    t = times(Discrete("trailing"), process, steps)
    t[-1] = 1 / 1000  # the first entry of their table
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = Inversion(DDIM()).tableau(process, t)
    ours = evaluate(table, TARGET.denoiser(process), x)
    y, told = x, x
    for index, now in zip(scheduler.timesteps, table.times, strict=True):
        y = scheduler.step(noise(process, y, now), index, y).prev_sample
        later = (float(index) + 1) / 1000
        told = scheduler.step(noise(process, told, later), index, told).prev_sample
    assert float((y - ours).abs().max()) < 1e-4  # their table of alpha_bar is float32
    assert float((told - ours).abs().max()) > 1e-2


def noise(process, x, t):
    d = TARGET.data_prediction(x, float(t), process)
    return (x - process.alpha(t) * d) / process.sigma(t)


def test_inversion_through_the_sampler_and_its_refusals():
    process = ud.VP()
    model = TARGET.denoiser(process)
    data = TARGET.sample(5, seed=0).double()
    way = {"steps": 60, "grid": "log_snr"}
    z = ud.sample(model, data.shape, Inversion(DPMSolverPP(2)), x_init=data, **way)
    back = ud.sample(model, data.shape, "dpmpp-2m", x_init=z, final="t_min", **way)
    assert float((back - data).abs().max()) < 5e-3
    assert float(z.abs().max()) < 5 and float((z - data).abs().max()) > 0.3
    with pytest.raises(ValueError, match="starts from data: give the state"):
        ud.sample(model, data.shape, Inversion(), **way)
    with pytest.raises(ValueError, match="solver must be a deterministic solver; got DDPM"):
        Inversion(SOLVERS["ddpm"])
    with pytest.raises(ValueError, match="two nodes with sigma > 0"):
        Inversion().tableau(process, times("karras", process, 1))


@pytest.mark.parametrize("make", [Inversion, SparedStart])
def test_a_table_over_components_is_refused_in_one_line(make):
    """It has no rows of scalars; its statistics, of any size, are not printed."""
    stats = Statistics(torch.zeros(9).double(), torch.ones(9).double(), torch.eye(9).double())
    solver = GaussianPreconditioned(dataclasses.replace(stats, basis=Columns(stats.basis)))
    with pytest.raises(TypeError, match=r"must be a Solver.*got GaussianPrecond\S*Stat") as error:
        make(solver)
    assert "tensor" not in str(error.value)
    table = solver.tableau(ud.VP(), times("log_snr", ud.VP(), 3))
    assert len(repr(table)) < 400 and "gaussian-2" in repr(table)


def test_a_spared_start_names_its_variance_at_once():
    with pytest.raises(ValueError, match="variance must be >= 0; got -1"):
        SparedStart(DDIM(), -1.0)
