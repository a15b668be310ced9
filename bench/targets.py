"""Distributions with exact scores and densities, to hold solvers to.

    digits64   one Gaussian a class of scikit-learn's 8 x 8 digits, 64 dimensions
    ring2      8 narrow modes on a circle, weights 1..8, 2 dimensions

Each is a Gaussian mixture, so D, the score, log p_t and samples are closed forms at every time and
what a benchmark measures is the solver's error alone. They come with DDPM's 1000-step linear beta
schedule, sigma/alpha from 157.4 down to 0.0100, the range that the peers' defaults are made for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import VP, GaussianMixture, Process
from ..models.data import load
from ..solvers.grids import lookup


@dataclass(frozen=True, eq=False)
class Target:
    """A law on R^event with the process that noises it. about: one line for the report."""

    name: str
    law: GaussianMixture
    process: Process
    about: str

    @property
    def std(self) -> float:
        """Root mean variance of a component, the unit of errors."""
        return float(self.law.cov.diagonal().mean().sqrt())


def ddpm_process() -> Process:
    """DDPM's schedule: beta linear from 1e-4 to 0.02 in 1000 steps (Ho et al. 2020)."""
    return VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def class_mixture(x: Tensor, labels: Tensor, jitter: float) -> GaussianMixture:
    """One Gaussian a class: its mean, its covariance + jitter^2 I, its share. x [N, *event]."""
    weights, means, covs = [], [], []
    for k in sorted(set(labels.tolist())):
        members = x[labels == k].double()
        flat = members.flatten(1)
        weights.append(float(len(flat)))
        means.append(members.mean(0))
        covs.append(torch.cov(flat.T) + jitter**2 * torch.eye(flat.shape[1], dtype=x.dtype))
    return GaussianMixture(weights, torch.stack(means), torch.stack(covs))


def digits64() -> Target:
    """Pixels/8 - 1, one Gaussian a digit with the class's covariance + 0.02^2 I; event [1, 8, 8]."""
    data = load("digits")
    labels = torch.zeros(len(data)).long() if data.labels is None else data.labels
    return Target(
        "digits64",
        class_mixture(data.x.double(), labels, jitter=0.02),
        ddpm_process(),
        "scikit-learn's 8x8 digits, one Gaussian a class (exact scores)",
    )


def ring2() -> Target:
    """8 modes on the unit circle, standard deviation 0.05, weights 1..8."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    means = torch.stack([angle.cos(), angle.sin()], 1)
    law = GaussianMixture(list(range(1, 9)), means, 0.05**2)
    return Target("ring2", law, ddpm_process(), "8 modes on a circle, weights 1..8 (exact scores)")


TARGETS: dict[str, Callable[[], Target]] = {"digits64": digits64, "ring2": ring2}
"""Targets by the name that the command line takes."""


def get(name: str) -> Target:
    """Build the target of that name. Raises ValueError with the nearest known one otherwise."""
    return lookup("target", name, TARGETS)()
