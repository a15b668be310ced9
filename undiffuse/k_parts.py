"""The parts of k-diffusion that loops of one's own are made of: derivatives, steps and noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .k_run import NoiseSampler, check_floating, own_ids
from .kernels import BrownianPath
from .kernels.errors import InvalidValue
from .kernels.shapes import column

DEPTH = 24
"""Halvings of the range of sigmas: at 14.6 wide a leaf is 1e-6, far below any step of a run."""


class BrownianTreeNoiseSampler:
    """noise_sampler(sigma, sigma') of one Brownian path for each sample, W(sigma).

    The normals are (W(sigma') - W(sigma))/sqrt|sigma' - sigma|: runs of other steps see one path.

    x: what the normals are like, [B, ...].
    sigma_min, sigma_max: the ends of the path.
    seed: an integer, or one a sample, whose normals then are its own in any batch; default None:
        drawn from torch's generator.
    transform: sigma -> the path's time; default the identity.
    cpu: ignored, for programs that hand it over: the bits are the same on every device.
    Raises ValueError and TypeError for what does not fit.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: float | Tensor,
        sigma_max: float | Tensor,
        seed: Any = None,
        transform: Callable[[Tensor], Tensor] = lambda x: x,
        cpu: bool = False,
    ) -> None:
        check_floating(x)
        self.transform, self.like = transform, x.new_empty(0)
        seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        ends = sorted((self._time(sigma_min), self._time(sigma_max)))
        self.path = BrownianPath(
            x.shape, seed, ends, DEPTH, sample_ids=own_ids(seed, x), device=x.device
        )

    def __call__(self, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        start, end = self._time(sigma), self._time(sigma_next)
        if start == end:
            raise InvalidValue(f"sigma and sigma_next must differ; got {start:g} twice")
        w = self.path.increment(min(start, end), max(start, end)).to(self.like)
        root: float = abs(end - start) ** 0.5
        return w / (root if end > start else -root)

    def _time(self, sigma: float | Tensor) -> float:
        return float(self.transform(torch.as_tensor(sigma)))


def default_noise_sampler(x: Tensor) -> NoiseSampler:
    """Normals like x of torch's generator, whatever the sigmas."""
    return lambda sigma, sigma_next: torch.randn_like(x)


def append_zero(sigmas: Tensor) -> Tensor:
    """The sigmas [n] and a 0, [n + 1]."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma = (x - D)/sigma of the probability flow (Karras et al. 2022, 1); sigma: [B]."""
    return (x - denoised) / column(sigma, x)


def get_ancestral_step(
    sigma_from: float | Tensor, sigma_to: float | Tensor, eta: float = 1.0
) -> tuple[Any, Any]:
    """(sigma_down, sigma_up): step down to the first, then add noise of the second.

    sigma_up^2 = eta^2 sigma'^2 (sigma^2 - sigma'^2)/sigma^2, at most sigma'^2, and
    sigma_down^2 + sigma_up^2 = sigma'^2.
    """
    if not eta:
        return sigma_to, 0.0
    up = eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5
    up = min(sigma_to, up)
    return (sigma_to**2 - up**2) ** 0.5, up
