"""Score matching losses: one expectation up to a known constant, one minimiser."""

import math

import pytest
import torch

from undiffuse.models import Gaussian, GaussianMixture
from undiffuse.models.training.score_matching import denoising, explicit, implicit, sliced

F64 = torch.float64
A = torch.tensor([[-1.5, 0.3], [-0.2, -0.7]], dtype=F64)  # not symmetric: not even a gradient
TARGET = Gaussian([0.4, -0.3], [[0.6, 0.2], [0.2, 0.9]])
PRECISION = torch.linalg.inv(TARGET.cov)
X = TARGET.sample(40_000, seed=0)


def true_score(x):
    return -(x - TARGET.mean) @ PRECISION


def wrong_score(x):
    return torch.tanh(x @ A.T) + 0.1 * x.flip(1).square()


def mean_error(difference):
    return float(difference.detach().mean()), float(difference.detach().std()) / math.sqrt(
        len(difference)
    )


LOSSES = {
    "implicit": lambda s, x: implicit(s, x),
    "hutchinson": lambda s, x: implicit(s, x, 1, probes=2),
    "sliced": lambda s, x: sliced(s, x, 2, probes=2, analytic=False),
    "sliced, analytic": lambda s, x: sliced(s, x, 3),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_loss_is_the_explicit_one_less_half_the_fisher_information(name):
    # E 1/2||s - grad log p||^2 = E[1/2||s||^2 + tr ds/dx] + 1/2 E||grad log p||^2
    constant = 0.5 * float(torch.trace(PRECISION))
    difference = explicit(wrong_score, X, true_score(X)) - LOSSES[name](wrong_score, X) - constant
    mean, error = mean_error(difference)
    assert abs(mean) < 4 * error and error < 0.05


def test_the_exact_trace_is_the_divergence():
    x = X[:5]
    jacobians = torch.stack([torch.autograd.functional.jacobian(wrong_score, v[None]) for v in x])
    divergence = torch.stack([torch.trace(j[0, :, 0]) for j in jacobians])
    wanted = 0.5 * wrong_score(x).square().sum(1) + divergence
    torch.testing.assert_close(implicit(wrong_score, x), wanted)


@pytest.mark.parametrize("name", [*LOSSES, "denoising"])
def test_the_gradient_vanishes_at_the_true_score_and_nowhere_near(name):
    sigma = 0.5
    smooth = Gaussian(TARGET.mean, TARGET.cov + sigma**2 * torch.eye(2, dtype=F64))
    precision = torch.linalg.inv(smooth.cov) if name == "denoising" else PRECISION

    def z_values(shift):
        c = torch.full((len(X), 4), shift, dtype=F64, requires_grad=True)

        def score(x):
            s = -(x - TARGET.mean) @ precision
            return s * (1 + c[:, :1]) + c[:, 1:2] + c[:, 2:3] * torch.tanh(x) + c[:, 3:] * x.flip(1)

        if name == "denoising":
            loss = denoising(score, X, sigma, 4)
        else:
            loss = LOSSES[name](score, X)
        (g,) = torch.autograd.grad(loss.sum(), c)
        return (g.mean(0) / (g.std(0) / math.sqrt(len(g)))).abs().max()

    assert z_values(0.0) < 4.5
    assert z_values(0.3) > 10


def test_events_of_any_shape_on_a_mixture():
    target = GaussianMixture([0.3, 0.7], torch.tensor([[[0.0, 1.0]], [[1.0, -1.0]]]), 0.4)
    x = target.sample(4000, seed=1)

    def score(x):
        with torch.enable_grad():
            y = x if x.requires_grad else x.clone().requires_grad_()
            return torch.autograd.grad(target.log_prob(y).sum(), y, create_graph=True)[0]

    fisher = 0.5 * score(x).square().flatten(1).sum(1)
    mean, error = mean_error(implicit(score, x).detach() + fisher.detach())  # -F/2 + F/2 = 0
    assert abs(mean) < 4 * error


def test_it_works_without_gradients_and_refuses_what_it_cannot_do():
    with torch.no_grad():
        value = implicit(wrong_score, X[:3])
    assert not value.requires_grad
    torch.testing.assert_close(value, implicit(wrong_score, X[:3]).detach())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: implicit(wrong_score, X, torch.Generator()), TypeError, "seed must be"),
        (lambda: implicit(wrong_score, X, probes=-1), ValueError, "probes must be in"),
        (lambda: implicit(wrong_score, X, probes=1.5), TypeError, "probes must be a whole number"),
        (lambda: sliced(wrong_score, X, 0, probes=0), ValueError, "probes must be in"),
        (lambda: denoising(wrong_score, X, 0.0), ValueError, "sigma must be > 0; got 0"),
        (lambda: denoising(wrong_score, X, "a"), TypeError, "sigma must be a number"),
        (lambda: explicit(wrong_score, X, X[:3]), ValueError, "target must have x's shape"),
        (lambda: implicit(lambda x: x[:, :1], X), ValueError, "score must return x's shape"),
        (lambda: implicit(lambda x: x.detach(), X), ValueError, "no gradient"),
        (lambda: implicit(wrong_score, None), TypeError, "x must be a floating tensor"),
        (lambda: implicit(wrong_score, X.long()), TypeError, "x must be a floating tensor"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_noise_is_the_seed_s_and_the_sample_s():
    """Another batch, the same numbers: for each loss that draws."""
    for loss in (
        lambda x, ids: implicit(wrong_score, x, 5, 3, sample_ids=ids),
        lambda x, ids: sliced(wrong_score, x, 5, 2, False, sample_ids=ids),
        lambda x, ids: denoising(wrong_score, x, 0.3, 5, sample_ids=ids),
    ):
        whole = loss(X[:6], None)
        torch.testing.assert_close(loss(X[[4, 1]], [4, 1]), whole[[4, 1]], rtol=1e-12, atol=1e-12)
        others = loss(X[:64], range(64, 128)) - loss(X[:64], None)
        assert others.abs().max() > 1e-3
