"""Posteriors of a measurement where they are known: mean and covariance, and mode weights.

Two problems, each with the first coordinates measured, y = A x_0 + NOISE N(0, I):

    a Gaussian in five dimensions, two of them measured: the posterior is a Gaussian
    a mixture of three in the plane, one coordinate measured: the posterior is a mixture

Every method of models/guidance/posterior.py, imputation and RePaint, and guidance by log p(y |
x_t), exact and with x_t in the place of x_0. Errors are of the coordinates that were not measured.
Imputation and RePaint know no noise of the measurement: they are held against the noise-free
conditional.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse.models import VP, Denoiser, GaussianMixture
from undiffuse.models.guidance import classifier, inpaint, posterior
from undiffuse.solvers import DDIM, Restart, Solver
from undiffuse.solvers.sampling.sample import sample

Row = dict[str, Any]
F64 = torch.float64
NOISE = 0.3
PROCESS = VP()
FREE = "exact draws"
REPAINT = Restart(DDIM(), tuple((0.01 * 3**k, 0.01 * 3 ** (k + 1), 10) for k in range(8)))
HOW: dict[str, tuple[str | Solver, int, float]] = {
    "imputation, ddpm": ("ddpm", 200, 0.0),
    "RePaint": (REPAINT, 80, 0.0),
}
"""Solver, steps and the noise of the conditional it is held against; the others: Heun, 40,
NOISE."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A prior mixture [K components, d] and the first coordinates' measurement y [m]."""

    prior: GaussianMixture
    y: Tensor

    def measure(self, x: Tensor) -> Tensor:
        """A: the first coordinates of x [B, d]."""
        return x[:, : len(self.y)]

    def conditional(self, noise: float) -> GaussianMixture:
        """The law of the other coordinates given y, by completing squares in each component."""
        m = len(self.y)
        means, covs, evidence = [], [], []
        for mean, cov in zip(self.prior.means, self.prior.covs, strict=True):
            seen = cov[:m, :m] + noise**2 * torch.eye(m, dtype=F64)
            gain = cov[m:, :m] @ torch.linalg.inv(seen)
            means.append(mean[m:] + gain @ (self.y - mean[:m]))
            covs.append(cov[m:, m:] - gain @ cov[:m, m:])
            evidence.append(log_normal(self.y - mean[:m], seen))
        weights = torch.softmax(self.prior.weights.log() + torch.stack(evidence), 0)
        return GaussianMixture(weights, torch.stack(means), torch.stack(covs))

    def log_evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t = x), exact, [B]: y and x_t are jointly a mixture of Gaussians."""
        alpha, sigma = (f(t)[:, None, None] for f in (PROCESS.alpha, PROCESS.sigma))
        m, d = len(self.y), x.shape[1]
        joint, marginal = [], []
        for w, mean, cov in zip(self.prior.weights, self.prior.means, self.prior.covs, strict=True):
            c_x = alpha**2 * cov + sigma**2 * torch.eye(d, dtype=F64)
            gain = alpha * cov[:m] @ torch.linalg.inv(c_x)
            off = x - alpha[:, 0] * mean
            c_y = cov[:m, :m] - alpha * gain @ cov[:, :m] + NOISE**2 * torch.eye(m, dtype=F64)
            mean_y = mean[:m] + torch.einsum("bij,bj->bi", gain, off)
            marginal.append(w.log() + log_normal(off, c_x))
            joint.append(marginal[-1] + log_normal(self.y - mean_y, c_y))
        return torch.logsumexp(torch.stack(joint), 0) - torch.logsumexp(torch.stack(marginal), 0)

    def log_plain(self, x: Tensor, t: Tensor) -> Tensor:
        """log N(y; A x_t/alpha, NOISE^2 + sigma^2/alpha^2): x_t for x_0 (Jalal et al. 2021, 4)."""
        variance = NOISE**2 + torch.exp(-2 * PROCESS.log_snr(t))
        off = self.y - self.measure(x) / PROCESS.alpha(t)[:, None]
        return -0.5 * off.square().sum(1) / variance


def gaussian() -> Problem:
    """Five correlated coordinates, the first two measured."""
    g = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, dtype=F64, generator=g) / math.sqrt(5)
    mean = torch.randn(5, dtype=F64, generator=g)
    prior = GaussianMixture(
        [1.0], mean[None], (root @ root.T + 0.1 * torch.eye(5, dtype=F64))[None]
    )
    return Problem(prior, torch.tensor([0.8, -0.6], dtype=F64))


def mixture() -> Problem:
    """Three modes in the plane, two of them tilted; y leaves all of them possible."""
    tilted = [[[0.3, 0.2], [0.2, 0.3]], [[0.4, -0.25], [-0.25, 0.3]], [[0.1, 0.0], [0.0, 0.2]]]
    means = [[1.0, 1.2], [0.2, -1.5], [-0.5, 0.3]]
    prior = GaussianMixture([0.5, 0.3, 0.2], means, torch.tensor(tilted, dtype=F64))
    return Problem(prior, torch.tensor([0.3], dtype=F64))


def methods(problem: Problem) -> dict[str, Denoiser]:
    """name -> denoiser of x_0 given y."""
    model, y = problem.prior.denoiser(PROCESS), problem.y[None]
    known = torch.zeros(1, problem.prior.means.shape[1], dtype=F64)
    known[:, : len(problem.y)] = y
    mask = torch.zeros_like(known)
    mask[:, : len(problem.y)] = 1
    scale = float(problem.prior.cov.diagonal().mean())

    def solve(method: str) -> Denoiser:
        return posterior(
            model,
            y,
            problem.measure,
            NOISE,
            method=method,
            data_variance=scale,
            iterations=len(problem.y),
        )

    imputed = inpaint(model, known, mask)
    return {
        **{name: solve(name) for name in ("mmps", "tmpd", "pigdm", "dps")},
        "guidance, exact log p(y|x_t)": classifier(model, problem.log_evidence),
        "guidance, x_t for x_0": classifier(model, problem.log_plain),
        "imputation, ddpm": imputed,
        "RePaint": imputed,
    }


def posterior_errors(n: int = 4000, seed: int = 0) -> list[Row]:
    """A row a method, and one of exact draws, whose errors are those of n samples alone.

    mean_error: distance of the means over the posterior's root total variance; cov_error: of the
    covariances, over the posterior's norm; weights: of the mixture's modes, mean responsibilities
    under the exact posterior; weight_error: the largest difference.
    """
    problems = (gaussian(), mixture())
    laws = {noise: [p.conditional(noise) for p in problems] for noise in (NOISE, 0.0)}
    rows = [_row(FREE, 0, laws[NOISE], [law.sample(n, seed=seed) for law in laws[NOISE]])]
    found = [methods(p) for p in problems]
    for name in found[0]:
        solver, steps, noise = HOW.get(name, ("heun", 40, NOISE))
        free, calls = [], 0
        for problem, models in zip(problems, found, strict=True):
            r = sample(
                models[name],
                (n, problem.prior.means.shape[1]),
                solver,
                steps,
                "log_snr",
                seed=seed,
                dtype=F64,
                return_result=True,
            )
            free.append(r.x[:, len(problem.y) :])
            calls = r.nfe
        rows.append(_row(name, calls, laws[noise], free))
    return rows


def _row(name: str, nfe: int, laws: list[GaussianMixture], drawn: list[Tensor]) -> Row:
    (one, modes), (x, y) = laws, drawn
    mean = (x.mean(0) - one.mean).norm() / one.cov.diagonal().sum().sqrt()
    cov = (torch.cov(x.T) - one.cov).norm() / one.cov.norm()
    weights = responsibilities(modes, y).mean(0)
    return {
        "method": name,
        "nfe": nfe,
        "mean_error": float(mean),
        "cov_error": float(cov),
        "weights": weights.tolist(),
        "truth": modes.weights.tolist(),
        "weight_error": float((weights - modes.weights).abs().max()),
    }


def responsibilities(law: GaussianMixture, x: Tensor) -> Tensor:
    """p(component | x), [B, K]; its mean over the law is `law.weights`."""
    parts = [log_normal(x - m, c) for m, c in zip(law.means, law.covs, strict=True)]
    return torch.softmax(torch.stack(parts, 1) + law.weights.log(), 1)


def log_normal(off: Tensor, cov: Tensor) -> Tensor:
    """log N(off; 0, cov) of off [..., d] and cov [..., d, d]."""
    root = torch.linalg.cholesky(cov)
    z = torch.linalg.solve_triangular(root, off[..., None], upper=False)[..., 0]
    log_root = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * off.shape[-1] * math.log(2 * math.pi)
    out: Tensor = -0.5 * z.square().sum(-1) - log_root - constant
    return out


# --- tests ------------------------------------------------------------------------------------


def whole_posterior(problem):
    """p(x_0 | y) of all coordinates by information form: P' = P + A^T A / noise^2."""
    d, m = problem.prior.means.shape[1], len(problem.y)
    a = torch.eye(d, dtype=F64)[:m]
    means, covs, logits = [], [], []
    for w, mean, cov in zip(
        problem.prior.weights, problem.prior.means, problem.prior.covs, strict=True
    ):
        precision = torch.linalg.inv(cov) + a.T @ a / NOISE**2
        covs.append(torch.linalg.inv(precision))
        shift = torch.linalg.solve(cov, mean) + a.T @ problem.y / NOISE**2
        means.append(covs[-1] @ shift)
        evidence = torch.distributions.MultivariateNormal(
            a @ mean, a @ cov @ a.T + NOISE**2 * torch.eye(m, dtype=F64)
        )
        logits.append(w.log() + evidence.log_prob(problem.y))
    weights = torch.softmax(torch.stack(logits), 0)
    return GaussianMixture(weights, torch.stack(means), torch.stack(covs))


@pytest.mark.parametrize("make", [gaussian, mixture])
def test_the_exact_laws_are_the_posterior(make):
    problem = make()
    whole, m = whole_posterior(problem), len(problem.y)
    law = problem.conditional(NOISE)
    torch.testing.assert_close(law.weights, whole.weights)
    torch.testing.assert_close(law.means, whole.means[:, m:])
    torch.testing.assert_close(law.covs, whole.covs[:, m:, m:])
    # guidance by the exact evidence is the posterior's own denoiser at every time
    guided = classifier(problem.prior.denoiser(PROCESS), problem.log_evidence)
    x = torch.randn(7, whole.means.shape[1], dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.02, 1.0, 7, dtype=F64)
    torch.testing.assert_close(guided(x, t), whole.denoiser(PROCESS)(x, t), rtol=1e-6, atol=1e-6)


def test_responsibilities_average_to_the_weights():
    law = mixture().conditional(NOISE)
    found = responsibilities(law, law.sample(20_000, seed=1)).mean(0)
    assert float((found - law.weights).abs().max()) < 4 * (0.25 / 20_000) ** 0.5


def test_without_noise_the_measured_coordinate_is_conditioned_on():
    # bivariate normal: E[b | a] = mu_b + rho (a - mu_a), in each component
    problem = mixture()
    law = problem.conditional(0.0)
    cov, mean = problem.prior.covs, problem.prior.means
    wanted = mean[:, 1] + cov[:, 0, 1] / cov[:, 0, 0] * (problem.y - mean[:, 0])
    torch.testing.assert_close(law.means[:, 0], wanted)


@pytest.mark.slow
def test_posteriors_are_as_good_as_their_approximation():
    n = 2000  # the errors of exact draws are about sqrt(d/n) and sqrt(2 d/n)
    rows = {r["method"]: r for r in posterior_errors(n)}
    for exact in ("exact draws", "mmps", "guidance, exact log p(y|x_t)"):
        assert rows[exact]["mean_error"] < 4 / math.sqrt(n), exact
        assert rows[exact]["cov_error"] < 6 / math.sqrt(n), exact
    for weak in ("tmpd", "dps", "guidance, x_t for x_0", "imputation, ddpm"):
        assert rows[weak]["mean_error"] > 4 / math.sqrt(n), weak
    assert rows["RePaint"]["mean_error"] < 0.6 * rows["imputation, ddpm"]["mean_error"]
    # on the mixture only exact guidance has the weights, to sqrt(1/4n) and Heun's error
    assert rows["guidance, exact log p(y|x_t)"]["weight_error"] < 4 * math.sqrt(0.25 / n)
    assert min(rows[m]["weight_error"] for m in ("mmps", "tmpd", "pigdm", "dps", "RePaint")) > 0.05
