"""Targets of the likelihood tests and their exact densities."""

import math

import torch
from sklearn.datasets import load_digits

import undiffuse as ud

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


def far_apart(d):
    """Two isotropic Gaussians: off its diagonal the Jacobian is of rank one, the hardest for one
    probe."""
    means = torch.randn(2, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return ud.targets.GaussianMixture([1.0, 2.0], means, [0.05, 0.2])


def at_start(target, process, x, result):
    """The exact density of the blurred data: p_t(alpha x) alpha^d at the t_min that was used."""
    alpha = process.alpha(result.t_min)
    return target.log_prob(alpha * x, result.t_min, process) + x[0].numel() * alpha.log()


def prior_gap(target, process, latent):
    """log p_T - log N(0, sigma_T^2) at the latents: what the prior's mismatch adds."""
    return (target.log_prob(latent, process.t_max, process) - process.prior.log_prob(latent)).abs()


def digits64():
    """One Gaussian a class of scikit-learn's digits: NUMBERS of 64-dimensional likelihoods."""
    images, labels = load_digits(return_X_y=True)
    x, labels = torch.tensor(images / 8 - 1), torch.tensor(labels)
    parts = [x[labels == k] for k in range(10)]
    return ud.targets.GaussianMixture(
        [len(p) for p in parts],
        torch.stack([p.mean(0).reshape(1, 8, 8) for p in parts]),
        torch.stack([torch.cov(p.T) + 0.02**2 * torch.eye(64).double() for p in parts]),
    )


def in_bits(target, process, x, r):
    """(error, standard error) in bits/dim against the exact density with the prior's own gap."""
    ref = at_start(target, process, x, r)
    gap = target.log_prob(r.latent, process.t_max, process) - process.prior.log_prob(r.latent)
    return (r.uncorrected + gap - ref) / (64 * math.log(2)), r.bits_std_error
