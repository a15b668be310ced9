"""log_prob against exact densities, on every process."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers.likelihood import decode, encode, log_prob

PROCESSES = {
    "vp": ud.VP(),
    "subvp": ud.SubVP(),
    "ve": ud.VE(),
    "edm": ud.models.EDM(),
    "flow": ud.Flow(),
    "brownian": ud.models.Brownian(30.0),
    "vp-cosine": ud.VP.cosine(),
    "vp-betas": ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000)),
}


def mixture(shape=(4,), seed=0):
    """Two Gaussians of full covariance, eigenvalues >= 0.1, on any event shape."""
    g = torch.Generator().manual_seed(seed)
    d = math.prod(shape)
    a = torch.randn(2, d, d, generator=g, dtype=torch.float64)
    covs = 0.2 * a @ a.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)
    means = 0.5 * torch.randn(2, *shape, generator=g, dtype=torch.float64)
    return ud.targets.GaussianMixture([1.0, 2.0], means, covs)


def at_start(target, process, x, result):
    """The exact density of the blurred data: p_t(alpha x) alpha^d at the t_min that was used."""
    alpha = process.alpha(result.t_min)
    return target.log_prob(alpha * x, result.t_min, process) + x[0].numel() * alpha.log()


def prior_gap(target, process, latent):
    """log p_T - log N(0, sigma_T^2) at the latents: what the prior's mismatch adds."""
    return (
        target.log_prob(latent, process.t_max, process) - process.prior.log_prob(latent)
    ).abs()


@pytest.mark.parametrize("name", PROCESSES)
def test_exact_trace_gives_the_exact_density(name):
    """At rtol 1e-7 what is left is the prior's mismatch, which is known exactly."""
    process, target = PROCESSES[name], mixture()
    x = target.sample(6, seed=3)
    tol, slack = (1e-5, 0.05) if "-" in name else (1e-7, 2e-4)  # tables have kinks in beta
    r = log_prob(target.denoiser(process), x, trace="exact", rtol=tol, atol=tol)
    gap = prior_gap(target, process, r.latent)
    assert ((r.log_prob - at_start(target, process, x, r)).abs() <= gap + slack).all()
    assert gap.max() < 0.1 and (r.std_error == 0).all() and (r.status == 0).all()
    torch.testing.assert_close(r.bits_per_dim, -r.log_prob / (4 * math.log(2)))


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_a_gaussian_in_float32_and_as_an_image(name):
    """Default tolerances, image-shaped: within 0.02 nats of the Gaussian's own log density."""
    target = ud.targets.Gaussian(torch.zeros(1, 2, 3), 0.25)
    x = target.sample(4, seed=1).float()
    r = log_prob(target.denoiser(PROCESSES[name]), x, trace="exact")
    assert r.latent.shape == x.shape and r.log_prob.dtype == torch.float64
    assert (r.log_prob - target.log_prob(x.double())).abs().max() < 0.02


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_latent_and_back(name):
    target = mixture((2, 3))
    model, x = target.denoiser(PROCESSES[name]), target.sample(4, seed=2)
    z = encode(model, x, rtol=1e-8, atol=1e-8)
    assert (decode(model, z, rtol=1e-8, atol=1e-8) - x).abs().max() < 1e-5
    assert (z - x).abs().max() > 0.5  # it went somewhere


def test_bad_input_is_refused_before_any_call():
    def net(x, t):
        raise RuntimeError("the network was called")

    model, x = ud.Denoiser(net, ud.VP()), torch.zeros(2, 3)
    for options, message in [
        ({"trace": "hutch"}, "trace must be one of"),
        ({"probes": 0}, "probes must be >= 1; got 0"),
        ({"rtol": 0.0}, "rtol must be finite and > 0"),
        ({"t_min": 2.0}, r"t_min must lie in \(0, t_max=1\)"),
        ({"solver": "dopri6"}, "did you mean 'dopri"),
        ({"on_failure": "ignore"}, "on_failure must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            log_prob(model, x, **options)
    with pytest.raises(TypeError, match="float32 or float64"):
        log_prob(model, x.long())
    with pytest.raises(ValueError, match=r"samples \[1\] hold NaN"):
        log_prob(model, torch.tensor([[0.0], [math.nan]]))
