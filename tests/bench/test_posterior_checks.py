"""The laws that `undiffuse bench models` holds posteriors to, against an independent closed form."""

import pytest
import torch

from undiffuse.bench.models import posterior_checks as checks
from undiffuse.models import GaussianMixture
from undiffuse.models.guidance.combine import classifier

F64 = torch.float64


def whole_posterior(problem):
    """p(x_0 | y) of all coordinates by information form: P' = P + A^T A / noise^2."""
    d, m = problem.prior.means.shape[1], len(problem.y)
    a = torch.eye(d, dtype=F64)[:m]
    means, covs, logits = [], [], []
    for w, mean, cov in zip(
        problem.prior.weights, problem.prior.means, problem.prior.covs, strict=True
    ):
        precision = torch.linalg.inv(cov) + a.T @ a / checks.NOISE**2
        covs.append(torch.linalg.inv(precision))
        shift = torch.linalg.solve(cov, mean) + a.T @ problem.y / checks.NOISE**2
        means.append(covs[-1] @ shift)
        evidence = torch.distributions.MultivariateNormal(
            a @ mean, a @ cov @ a.T + checks.NOISE**2 * torch.eye(m, dtype=F64)
        )
        logits.append(w.log() + evidence.log_prob(problem.y))
    weights = torch.softmax(torch.stack(logits), 0)
    return GaussianMixture(weights, torch.stack(means), torch.stack(covs))


@pytest.mark.parametrize("make", [checks.gaussian, checks.mixture])
def test_the_exact_laws_are_the_posterior(make):
    problem = make()
    whole, m = whole_posterior(problem), len(problem.y)
    law = problem.conditional(checks.NOISE)
    torch.testing.assert_close(law.weights, whole.weights)
    torch.testing.assert_close(law.means, whole.means[:, m:])
    torch.testing.assert_close(law.covs, whole.covs[:, m:, m:])
    # guidance by the exact evidence is the posterior's own denoiser at every time
    guided = classifier(problem.prior.denoiser(checks.PROCESS), problem.log_evidence)
    x = torch.randn(7, whole.means.shape[1], dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.02, 1.0, 7, dtype=F64)
    torch.testing.assert_close(
        guided(x, t), whole.denoiser(checks.PROCESS)(x, t), rtol=1e-6, atol=1e-6
    )


def test_responsibilities_average_to_the_weights():
    law = checks.mixture().conditional(checks.NOISE)
    found = checks.responsibilities(law, law.sample(20_000, seed=1)).mean(0)
    assert float((found - law.weights).abs().max()) < 4 * (0.25 / 20_000) ** 0.5


def test_without_noise_the_measured_coordinate_is_conditioned_on():
    # bivariate normal: E[b | a] = mu_b + rho (a - mu_a), in each component
    problem = checks.mixture()
    law = problem.conditional(0.0)
    cov, mean = problem.prior.covs, problem.prior.means
    wanted = mean[:, 1] + cov[:, 0, 1] / cov[:, 0, 0] * (problem.y - mean[:, 0])
    torch.testing.assert_close(law.means[:, 0], wanted)
