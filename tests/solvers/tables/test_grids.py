"""Grids against the formulas of the papers and of the peers, their ends, and bad input."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta as beta_distribution

import undiffuse as ud
from undiffuse.solvers import Levels, times
from undiffuse.solvers.families.registry import SOLVERS
from undiffuse.solvers.tables.grids import (
    GRIDS,
    Beta,
    Cosine,
    Discrete,
    Karras,
    Laplace,
    Shifted,
    beta_cdf,
)

PROCESSES = [make() for make in ud.models.PROCESSES.values()]


def ratio(process, t):
    return torch.exp(-process.log_snr(t))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_falls_from_t_max_to_its_end(name, process):
    if process.t_max != 1 and isinstance(GRIDS[name], Discrete):
        pytest.skip("indices are of a process on [0, 1]")
    for steps in (1, 2, 9):
        t = times(name, process, steps, "t_min")
        assert len(t) == steps + 1 and t.dtype == torch.float64
        assert bool((t[1:] < t[:-1]).all())
        if name not in ("linspace", "leading", "trailing"):  # those have ends of their own
            assert (float(t[0]), float(t[-1])) == (process.t_max, process.t_min)
        jump = times(name, process, steps, "denoise")
        assert len(jump) == steps + 1 and float(jump[-1]) == process.t_clean


@pytest.mark.parametrize("rho", [3.0, 7.0])
def test_karras_is_the_papers_formula(rho):
    process, n = ud.EDM(0.002, 80.0), 18
    i = np.arange(n)
    a, b = 80 ** (1 / rho), 0.002 ** (1 / rho)
    expected = (a + i / (n - 1) * (b - a)) ** rho
    t = times(Karras(rho), process, n)
    assert np.allclose(t[:-1].numpy(), expected, rtol=1e-12) and float(t[-1]) == 0
    vp = ud.VP()
    r = ratio(vp, times(Karras(rho), vp, n, "t_min")) ** (1 / rho)
    assert torch.allclose(r[1:] - r[:-1], (r[-1] - r[0]) / n)


def test_log_snr_is_k_diffusions_exponential():
    t = times("exponential", ud.EDM(0.03, 14.6), 10)
    assert np.allclose(t[:-1].numpy(), np.exp(np.linspace(np.log(14.6), np.log(0.03), 10)))


def test_cosine_has_equal_angles():
    angle = torch.atan(ratio(ud.VP(), times(Cosine(), ud.VP(), 11, "t_min")))
    assert torch.allclose(angle[1:] - angle[:-1], (angle[-1] - angle[0]) / 11)


def test_laplace_has_equal_mass():
    process, grid = ud.EDM(), Laplace(0.4, 0.9)
    lam = process.log_snr(times(grid, process, 12, "t_min"))
    law = torch.distributions.Laplace(torch.tensor(0.4).double(), torch.tensor(0.9).double())
    mass = law.cdf(lam)
    assert torch.allclose(mass[1:] - mass[:-1], (mass[-1] - mass[0]) / 12)


def test_shift_is_stable_diffusion_threes():
    process = ud.Flow(t_min=1e-4)
    end = 1e-4 / (3 - 2 * 1e-4)  # the unshifted end
    s0 = torch.linspace(1, end, 8, dtype=torch.float64)
    assert torch.allclose(times(Shifted(3.0), process, 7, "t_min"), 3 * s0 / (1 + 2 * s0))
    assert torch.allclose(
        times(Shifted(1.0), process, 7, "zero"), torch.linspace(1, 0, 8, dtype=torch.float64)
    )


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (1.0, 1.0), (0.7, 2.0), (3.0, 0.4)])
def test_beta_has_the_quantiles_of_the_beta_law(a, b):
    x = torch.linspace(0, 1, 21, dtype=torch.float64)
    assert np.allclose(beta_cdf(x, a, b).numpy(), beta_distribution.cdf(x.numpy(), a, b), atol=1e-6)
    flow = ud.Flow(t_min=1e-6)
    t = times(Beta(a, b), flow, 9, "t_min").numpy()[1:-1]
    expected = beta_distribution.ppf(1 - np.arange(1, 9) / 9, a, b)
    assert np.allclose(t, expected, atol=1e-5)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 10, 50])
def test_discrete_spacings_are_diffusers(spacing, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    process = ud.VP.from_betas(scheduler.betas.double())
    t = times(Discrete(spacing), process, steps)
    index = torch.round(t[:-1] * 1000 - 1).long()
    expected = scheduler.timesteps
    assert torch.equal(index, expected) or (steps == 1 and spacing == "linspace")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: times("karass", p), "unknown grid 'karass'; did you mean 'karras'"),
        (lambda p: times("karras", p, 0), "steps must be >= 1; got 0"),
        (lambda p: times("karras", p, 2.5), "steps must be a whole number >= 1; got 2.5"),
        (lambda p: times([1.0, 0.5, 0.0], p, final="t_min"), "leave that time out"),
        (lambda p: times("trailing", ud.EDM(), 5), "t_max=80: use 'karras'"),
        (lambda p: times("karras", p, 5, "end"), "final must be one of 'denoise', 'zero', 't_min'"),
        (lambda p: times([1.0, 0.5, 0.6], p), "got 0.5 -> 0.6 at node 2"),
        (lambda p: times([1.0, math.nan, 0.6], p), "grid must fall strictly"),
        (lambda p: times([1.0, 0.5, 1e-5], p), "at least t_min=0.001"),
        (lambda p: times([1.5, 0.5], p), "from at most t_max=1"),
        (lambda p: times([[1.0], [0.5]], p), "grid must be a sequence of times"),
        (
            lambda p: times(Discrete(train_steps=10), p, 11),
            "steps must be at most the network's 10",
        ),
        (lambda p: Karras(0.0), r"rho must lie in \[0.1, 1000\]; got 0"),
        (lambda p: Laplace(b=-1.0), r"b must lie in \[0.01, 1000\]; got -1"),
        (lambda p: Shifted(0.0), r"mu must lie in \[0.001, 1000\]; got 0"),
        (lambda p: Beta(0.0), r"a must lie in \[0.1, 10\]; got 0"),
        (lambda p: Discrete("middle"), "spacing must be 'linspace', 'leading' or 'trailing'"),
        (lambda p: SOLVERS["ddim"].tableau(p, [1.0]), "got 1 node; a step needs two"),
        (lambda p: SOLVERS["ddim"].tableau(p, [[1.0, 0.5]]), "grid must be one-dimensional"),
    ],
)
def test_bad_grids_say_what_must_hold(build, message):
    with pytest.raises(ValueError, match=message):
        build(ud.VP())


def test_published_levels_are_diffusers_and_their_own_number_of_steps_lays_them():
    """Ten steps on Stable Diffusion's process: to the three digits that are published."""
    schedules = pytest.importorskip("diffusers.schedulers").AysSchedules
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    process = ud.VP.from_betas(betas)
    for name, key in (("ays-sd15", "StableDiffusion"), ("ays-sdxl", "StableDiffusionXL")):
        laid = ratio(process, times(name, process, 10, "t_min"))[:-1]
        published = torch.tensor(schedules[f"{key}Sigmas"][:-1], dtype=torch.float64)
        assert torch.allclose(laid, published, rtol=0.01)


def test_published_levels_of_a_flow_are_its_times_and_log_linear_between():
    """Optimal Stepsize's ten for FLUX as their code interpolates them to five."""
    process = ud.Flow(t_min=0.001, t_max=0.9968)
    t = times("oss-flux", process, 10, "t_min")
    values = (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001)
    assert torch.allclose(t, torch.tensor(values, dtype=torch.float64), rtol=1e-6)
    xs = np.linspace(0, 1, 11)
    five = np.exp(np.interp(np.linspace(0, 1, 6), xs, np.log(values[::-1])))[::-1]
    assert np.allclose(times("oss-flux", process, 5, "t_min").numpy(), five, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Levels((1.0,)), "two levels or more that fall"),
        (lambda: Levels((1.0, 2.0)), "two levels or more that fall"),
        (lambda: Levels((2.0, 0.1), "share"), "levels of at most 1; got 2"),
        (lambda: Levels((2.0, 0.1), "sigma"), "of must be 'ratio' or 'share'"),
    ],
)
def test_levels_that_are_none_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
