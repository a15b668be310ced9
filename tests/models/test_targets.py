"""Exact targets against quadrature, autograd and torch.distributions."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import undiffuse as ud

WEIGHTS = [1.0, 2.0, 0.5]
MEANS = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.5, 0.5]], dtype=torch.float64)
ROOTS = torch.tensor(
    [[[1.0, 0.0], [0.4, 0.3]], [[0.2, 0.0], [0.1, 0.5]], [[0.6, 0.0], [-0.5, 0.2]]]
).double()
COVS = ROOTS @ ROOTS.mT
MIXTURE = ud.targets.GaussianMixture(WEIGHTS, MEANS, COVS)


def independent(alpha=1.0, sigma=0.0):
    w = torch.tensor(WEIGHTS, dtype=torch.float64)
    cov = alpha**2 * COVS + sigma**2 * torch.eye(2, dtype=torch.float64)
    return MixtureSameFamily(Categorical(w / w.sum()), MultivariateNormal(alpha * MEANS, cov))


@pytest.mark.parametrize("process", [ud.VP(), ud.VE(), ud.Flow()], ids=lambda p: type(p).__name__)
def test_log_density_at_any_time(process):
    x = torch.randn(20, 2, dtype=torch.float64)
    torch.testing.assert_close(MIXTURE.log_prob(x), independent().log_prob(x))
    for t in (0.05, 0.6, 1.0):
        a, s = float(process.alpha(t)), float(process.sigma(t))
        torch.testing.assert_close(
            MIXTURE.log_prob(x, t, process), independent(a, s).log_prob(x), rtol=1e-9, atol=1e-9
        )


def test_score_is_the_gradient_of_the_log_density():
    process = ud.VP()
    x = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    for t in (0.01, 0.3, 0.9):
        (grad,) = torch.autograd.grad(MIXTURE.log_prob(x, t, process).sum(), x)
        score = MIXTURE.denoiser(process).score(x, t)
        torch.testing.assert_close(score, grad, rtol=1e-7, atol=1e-8)


def test_data_prediction_is_the_posterior_mean_by_quadrature():
    # one dimension, three components: E[x_0 | x_t] by a fine Riemann sum over x_0
    mixture = ud.targets.GaussianMixture([1, 1, 2], [[-1.0], [0.3], [2.0]], [0.1, 0.02, 0.4])
    process, t = ud.SubVP(), 0.35
    a, s = float(process.alpha(t)), float(process.sigma(t))
    x0 = torch.linspace(-8, 10, 200_001, dtype=torch.float64)[:, None]
    prior = mixture.log_prob(x0).exp()
    for x in (-1.0, 0.4, 1.7):
        w = prior * torch.exp(-0.5 * ((x - a * x0[:, 0]) / s) ** 2)
        expected = (w @ x0[:, 0]) / w.sum()
        got = mixture.denoiser(process)(torch.tensor([[x]], dtype=torch.float64), t)
        assert float(got) == pytest.approx(float(expected), abs=1e-9)


def test_samples_have_the_mixture_s_moments_and_do_not_depend_on_anything_but_the_seed():
    x = MIXTURE.sample(200_000, seed=4)
    # five standard errors of a mean and of a covariance of 200,000 draws
    sd = MIXTURE.cov.diagonal().sqrt()
    assert bool(((x.mean(0) - MIXTURE.mean).abs() < 5 * sd / 447).all())
    assert bool(((x.T.cov() - MIXTURE.cov).abs() < 5 * 2 * sd.max() ** 2 / 447).all())
    assert torch.equal(x[:10], MIXTURE.sample(200_000, seed=4)[:10])
    assert not torch.equal(x[:10], MIXTURE.sample(10, seed=5))


def test_variances_may_be_full_diagonal_or_scalar_and_events_of_any_shape():
    full = ud.targets.GaussianMixture(
        [1, 1], MEANS[:2], torch.eye(2).double().expand(2, 2, 2) * 0.3
    )
    for covs in (0.3, [0.3, 0.3], [[0.3, 0.3], [0.3, 0.3]]):
        x = torch.randn(4, 2, dtype=torch.float64)
        other = ud.targets.GaussianMixture([1, 1], MEANS[:2], covs)
        torch.testing.assert_close(full.log_prob(x), other.log_prob(x))
        torch.testing.assert_close(full.denoiser(ud.VP())(x, 0.5), other.denoiser(ud.VP())(x, 0.5))
    image = ud.targets.Gaussian(torch.zeros(1, 4, 4), 1.0)
    assert image.sample(3).shape == (3, 1, 4, 4)
    assert image.denoiser(ud.EDM())(image.sample(3).float(), 0.5).shape == (3, 1, 4, 4)


def test_a_singular_covariance_is_allowed_where_noise_makes_it_proper():
    flat = ud.targets.Gaussian([0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]])
    d = flat.denoiser(ud.EDM())(torch.tensor([[1.0, -1.0]], dtype=torch.float64), 0.1)
    np.testing.assert_allclose(d.numpy(), 0.0, atol=1e-12)  # off the line: nothing is left


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0, -1.0], MEANS[:2], 1.0), "weights"),
        (([1.0], MEANS, COVS), "means must be"),
        ((WEIGHTS, MEANS, COVS[:2]), "covs must be"),
        ((WEIGHTS, MEANS, COVS + torch.tensor([[0.0, 1.0], [0.0, 0.0]])), "symmetric"),
        ((WEIGHTS, MEANS, -COVS), "semi-definite"),
        ((WEIGHTS, MEANS, [1.0, 2.0]), "covs must be"),
    ],
)
def test_bad_targets_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        ud.targets.GaussianMixture(*arguments)


def test_bad_evaluations_are_named():
    with pytest.raises(ValueError, match=r"x must be \[B, 2\]"):
        MIXTURE.log_prob(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="needs the process"):
        MIXTURE.log_prob(torch.zeros(3, 2), t=0.5)
