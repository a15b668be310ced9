"""Processes against the identities that define them."""

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import undiffuse as ud

PROCESSES = [
    ud.VP(),
    ud.VP(0.2, 9.0),
    ud.VP.cosine(),
    ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000)),
    ud.SubVP(),
    ud.VE(),
    ud.EDM(),
    ud.Flow(),
    ud.Brownian(2.0),
]
named = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: repr(p)[:24])


def inner_times(process, n=33):
    # off the knots of the tabled schedules, where beta jumps
    u = (torch.arange(n, dtype=torch.float64) + 0.531) / n
    return process.t_min + u * (process.t_max - process.t_min) * 0.999


@named
def test_drift_and_diffusion_are_the_derivatives_of_alpha_and_sigma(process):
    t = inner_times(process).requires_grad_()

    def slope(y):
        if not y.requires_grad:
            return torch.zeros_like(t)
        return torch.autograd.grad(y.sum(), t, allow_unused=True, materialize_grads=True)[0]

    f = slope(process.alpha(t).log())
    g2 = slope(process.sigma(t).square()) - 2 * f * process.sigma(t).square()
    torch.testing.assert_close(process.drift_rate(t), f, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.diffusion(t).square(), g2, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(process.alpha_dot(t), slope(process.alpha(t)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.sigma_dot(t), slope(process.sigma(t)), rtol=1e-9, atol=1e-12)


@named
def test_log_snr_and_its_inverse(process):
    t = inner_times(process)
    lam = process.log_snr(t)
    torch.testing.assert_close(
        lam, (process.alpha(t) / process.sigma(t)).log(), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(process.inverse_log_snr(lam), t, rtol=1e-10, atol=1e-13)
    assert bool((lam[1:] < lam[:-1]).all())
    assert lam.dtype == torch.float64


@given(st.floats(-6.0, 6.0))
def test_inverse_log_snr_inverts_at_any_ratio(lam):
    for process in (ud.VP(), ud.SubVP(), ud.VE(), ud.EDM(), ud.Flow(), ud.Brownian(3.0)):
        assert process.log_snr(process.inverse_log_snr(lam)) == pytest.approx(lam, abs=1e-9)


@named
def test_the_clean_end_has_no_noise_and_unit_signal(process):
    t = process.t_clean
    assert float(process.sigma(t)) == 0.0
    assert float(process.alpha(t)) == 1.0
    assert float(process.log_snr(t)) == math.inf


def test_values_from_the_literature():
    # score_sde: log mean coefficient -t^2 (b1 - b0)/4 - t b0/2; sub-VP std is 1 - exp(2 that)
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    log_mean = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
    torch.testing.assert_close(ud.VP().alpha(t), log_mean.exp())
    torch.testing.assert_close(ud.VP().sigma(t), (1 - (2 * log_mean).exp()).sqrt())
    torch.testing.assert_close(ud.SubVP().sigma(t), 1 - (2 * log_mean).exp())
    beta = 0.1 + t * 19.9
    discount = 1 - torch.exp(-2 * 0.1 * t - 19.9 * t**2)
    torch.testing.assert_close(ud.SubVP().diffusion(t), (beta * discount).sqrt())
    # VE: g = sigma sqrt(2 log(sigma_max/sigma_min))
    ve = ud.VE(0.01, 50.0)
    torch.testing.assert_close(ve.diffusion(t), ve.sigma(t) * math.sqrt(2 * math.log(5000)))
    assert float(ud.EDM().diffusion(3.0)) == pytest.approx(math.sqrt(2 * 3.0))


def test_from_betas_gives_the_table_at_its_own_steps():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    process = ud.VP.from_betas(betas)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(
        process.alpha(t).square(), (1 - betas).cumprod(0), rtol=1e-12, atol=0
    )
    assert (process.t_min, process.t_max) == (1e-3, 1.0)


def test_cosine_equals_diffusers_schedule():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    ours = ud.VP.cosine().alpha(t).square()
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=0)  # theirs is float32


def test_prior_density_is_that_of_a_normal():
    process = ud.VE()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 50.0).log_prob(x).sum((1, 2))
    torch.testing.assert_close(process.prior.log_prob(x), expected.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ud.VP(beta_min=-1.0), "beta_min"),
        (lambda: ud.VP(beta_min=2.0, beta_max=1.0), "beta_max"),
        (lambda: ud.VP.from_betas([0.1, 1.5]), r"betas\[1\]=1.5"),
        (lambda: ud.VP.from_betas([]), "betas"),
        (lambda: ud.VE(sigma_min=0.0), "sigma_min"),
        (lambda: ud.EDM(sigma_min=3.0, sigma_max=1.0), "sigma_max"),
        (lambda: ud.Flow(t_max=1.5), "t_max"),
        (lambda: ud.Brownian(sigma=-2.0), "sigma"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@named
def test_processes_are_values(process):
    again = pickle.loads(pickle.dumps(process))
    assert again == process and hash(again) == hash(process)
    torch.testing.assert_close(again.alpha(0.4 * process.t_max), process.alpha(0.4 * process.t_max))
