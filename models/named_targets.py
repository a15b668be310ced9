"""Distributions with exact scores and densities, to hold solvers to.

    digits64      one Gaussian a class of scikit-learn's 8 x 8 digits, 64 dimensions
    ring2         8 narrow modes on a circle, weights 1..8, 2 dimensions
    moons, spiral, checkerboard   the customary pictures in the plane, as mixtures that fit them
    images192     3 x 8 x 8 fields with the power spectrum of photographs, 4 kinds, 192 dimensions
    images768     the same in 3 x 16 x 16
    stiff         one Gaussian of 16 dimensions, variances from 1e-6 to 1
    lognormal16   fields exp(Gaussian) on 16 sites, as the mixture fitted to 64 000 of them

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

from ..kernels.errors import InvalidValue, did_you_mean
from .data.sets import load
from .processes import VP, Process
from .targets import GaussianMixture


@dataclass(frozen=True, eq=False)
class Target:
    """A law on R^event with the process that noises it.

    name: of the target.
    law: of the data.
    process: of the noise.
    about: one line for the report.
    """

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
    return VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device="cpu"))


def class_mixture(x: Tensor, labels: Tensor, jitter: float) -> GaussianMixture:
    """One Gaussian a class: its mean, its covariance + jitter^2 I, its share. x [N, *event]."""
    weights, means, covs = [], [], []
    for k in sorted(set(labels.tolist())):
        members = x[labels == k].double()
        flat = members.flatten(1)
        weights.append(float(len(flat)))
        means.append(members.mean(0))
        unit = torch.eye(flat.shape[1], dtype=x.dtype, device="cpu")
        covs.append(torch.cov(flat.T) + jitter**2 * unit)
    return GaussianMixture(weights, torch.stack(means), torch.stack(covs))


def digits64() -> Target:
    """Pixels/8 - 1 [1, 8, 8]: a Gaussian per digit, with its class's covariance + 0.02^2 I."""
    data = load("digits")
    labels = (
        torch.zeros(len(data), dtype=torch.int64, device="cpu")
        if data.labels is None
        else data.labels
    )
    return Target(
        "digits64",
        class_mixture(data.x.double(), labels, jitter=0.02),
        ddpm_process(),
        "scikit-learn's 8x8 digits, one Gaussian a class (exact scores)",
    )


def ring2() -> Target:
    """8 modes on the unit circle, standard deviation 0.05, weights 1..8."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64, device="cpu") / 8
    means = torch.stack([angle.cos(), angle.sin()], 1)
    law = GaussianMixture(list(range(1, 9)), means, 0.05**2)
    return Target("ring2", law, ddpm_process(), "8 modes on a circle, weights 1..8 (exact scores)")


def moons() -> Target:
    """Two interleaved half circles, 24 modes each, deviation 0.07."""
    angle = math.pi * (torch.arange(24, dtype=torch.float64, device="cpu") + 0.5) / 24
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    lower = torch.stack([0.5 - angle.cos(), 0.25 - angle.sin()], 1)
    law = GaussianMixture([1.0] * 48, torch.cat([upper, lower]), 0.07**2)
    return Target("moons", law, ddpm_process(), "two half circles (exact scores)")


def spiral() -> Target:
    """Two turns of an Archimedean spiral, 60 modes of deviation 0.04, equal along its length."""
    u = torch.sqrt((torch.arange(60, dtype=torch.float64, device="cpu") + 0.5) / 60)
    angle = 4 * math.pi * u
    means = u[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    law = GaussianMixture([1.0] * 60, means, 0.04**2)
    return Target("spiral", law, ddpm_process(), "a spiral of two turns (exact scores)")


def checkerboard() -> Target:
    """The 8 dark fields of a 4 x 4 board on [-1, 1]^2, each a grid of 5 x 5 modes."""
    four, five = (torch.arange(n, dtype=torch.float64, device="cpu") for n in (4, 5))
    corner = torch.cartesian_prod(four, four)
    dark = corner[corner.sum(1) % 2 == 0]
    fine = (torch.cartesian_prod(five, five) + 0.5) / 5
    means = ((dark[:, None] + fine) / 2 - 1).flatten(0, 1)
    law = GaussianMixture([1.0] * len(means), means, 0.035**2)
    return Target("checkerboard", law, ddpm_process(), "dark fields of a board (exact scores)")


def _images(side: int, name: str) -> Target:
    k = torch.arange(side, dtype=torch.float64, device="cpu")
    basis = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / side)  # DCT-II, rows: frequencies
    basis = basis / basis.norm(dim=1, keepdim=True)
    modes = torch.einsum("ac,bd->abcd", basis, basis).reshape(side * side, side * side)
    turned = torch.tensor([[1, 1, 1], [1, -1, 0], [1, 1, -2]], dtype=torch.float64, device="cpu")
    luma = torch.linalg.qr(turned.T)[0].T
    d = 3 * side * side
    axes = torch.einsum("ij,ab->iajb", luma, modes).reshape(d, d)
    color = torch.tensor([1.0, 0.15, 0.05], dtype=torch.float64, device="cpu")
    means, covs = [], []
    for stretch in (0.3, 0.7, 1.4, 3.0):
        f = torch.hypot(k[:, None] * stretch, k[None] / stretch) / side
        spectrum = (color[:, None] * (f.flatten() + 1 / side) ** -2).flatten()
        spectrum = 0.25 * spectrum / spectrum.mean()
        covs.append(axes.T @ (spectrum[:, None] * axes))
        even = torch.ones(3, side, side, dtype=torch.float64, device="cpu")
        means.append(0.3 * (stretch - 1) / (stretch + 1) * even)
    law = GaussianMixture([1.0, 2.0, 2.0, 1.0], torch.stack(means), torch.stack(covs))
    return Target(name, law, ddpm_process(), f"image-like fields, {d}-dim (exact scores)")


def images192() -> Target:
    """Colour fields [3, 8, 8] with variance ~ 1/(f + 1/8)^2 at frequency f, four kinds that differ
    in mean and in the direction in which they are smooth; deviation about 0.5."""
    return _images(8, "images192")


def images768() -> Target:
    """The same in [3, 16, 16], with variance ~ 1/(f + 1/16)^2."""
    return _images(16, "images768")


def stiff() -> Target:
    """N(0, C) on R^16 with eigenvalues from 1e-6 to 1 in a fixed random basis."""
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(16, 16, generator=g, dtype=torch.float64, device="cpu"))[0]
    c = q @ torch.diag(torch.logspace(-6, 0, 16, dtype=torch.float64, device="cpu")) @ q.T
    law = GaussianMixture(
        [1.0], torch.zeros(1, 16, dtype=torch.float64, device="cpu"), ((c + c.T) / 2)[None]
    )
    return Target("stiff", law, ddpm_process(), "a Gaussian of condition 1e6 (exact scores)")


def lognormal16() -> Target:
    """exp of a stationary Gaussian field on a ring of 16 sites, standardised.

    A log-Gaussian field has no score in closed form once it is noised, so the target is a mixture
    of 8 Gaussians fitted to it: the fields split by their mean into 8 equal parts.
    """
    site = torch.arange(16, dtype=torch.float64, device="cpu")
    apart = torch.minimum((site[:, None] - site).abs(), 16 - (site[:, None] - site).abs())
    cov = 0.25 * torch.exp(-apart / 3)
    g = torch.Generator().manual_seed(0)
    z = torch.randn(64_000, 16, generator=g, dtype=torch.float64, device="cpu")
    field = torch.exp(z @ torch.linalg.cholesky(cov).T)
    field = (field - field.mean()) / field.std()
    kind = torch.argsort(torch.argsort(field.mean(1))) * 8 // len(field)
    law = class_mixture(field, kind, jitter=0.0)
    return Target("lognormal16", law, ddpm_process(), "a fitted log-Gaussian field (exact scores)")


TARGETS: dict[str, Callable[[], Target]] = {
    "digits64": digits64,
    "ring2": ring2,
    "moons": moons,
    "spiral": spiral,
    "checkerboard": checkerboard,
    "images192": images192,
    "images768": images768,
    "stiff": stiff,
    "lognormal16": lognormal16,
}
"""Targets by the name that the command line takes."""


def get(name: str) -> Target:
    """Build the target of that name. Raises ValueError with the nearest known one otherwise."""
    if name not in TARGETS:
        near = did_you_mean(name, TARGETS)
        raise InvalidValue(f"unknown target {name!r}{near or ';'} known: {', '.join(TARGETS)}")
    return TARGETS[name]()
