"""First-order samplers of the reverse SDE dx = [f x - g^2 score] dt + g dw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Path, Solver
from .exponential import DDIM
from .tableau import Tableau, from_rows


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on the reverse SDE, in t (Song et al. 2021, 6).

        x_{t-d} = x - (f x - g^2 (alpha D - x)/sigma^2) d + g sqrt(d) z

    Stable only while g^2 d < sigma^2, so it wants many steps. A last interval down to sigma = 0
    is one denoising jump. Raises ValueError where g is infinite (alpha = 0, as in `Flow` at
    t = 1: give it a grid that starts below).
    """

    order: ClassVar[float] = 1.0
    weak_order: ClassVar[float] = 1.0

    def rows(self, path: Path) -> Tableau:
        process, t = path.process, path.t[:-1]
        d = t - path.t[1:]
        f, g2 = process.drift_rate(t), process.diffusion(t).square()
        pull = g2 * d / path.sigma[:-1].square()
        state, data, noise = 1 - f * d - pull, pull * path.alpha[:-1], torch.sqrt(g2 * d)
        if path.ends_clean:
            state[-1], data[-1], noise[-1] = 0.0, 1.0, 0.0
        return from_rows(
            "euler-maruyama", path.t, t, [state], [data], [noise],
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling (Ho et al. 2020, algorithm 2): the mean of q(x_s | x_t, x_0 = D).

    variance: 'small' is the posterior's, beta~ = sigma_s^2 (1 - e^{-2h}) (so DDIM with eta = 1);
    'large' the forward step's, beta = sigma_t^2 (1 - e^{-2h}) of t, the noisier end. No noise
    in a last interval down to sigma = 0. Raises ValueError for another `variance`.
    """

    variance: str = "small"

    order: ClassVar[float] = 1.0
    weak_order: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance must be 'small' or 'large'; got {self.variance!r}")

    def rows(self, path: Path) -> Tableau:
        mean = DDIM(eta=1.0).rows(path)
        end = path.sigma[1:] if self.variance == "small" else path.sigma[:-1]
        noise = end * torch.sqrt(-torch.expm1(-2 * path.h))
        if path.ends_clean:
            noise[-1] = 0.0
        return from_rows(
            "ddpm" if self.variance == "small" else "ddpm-large",
            path.t, mean.times, [mean.state[:, 0]], [mean.data[:, 0]], [noise],
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


SOLVERS: dict[str, Solver] = {
    "euler-maruyama": EulerMaruyama(),
    "ddpm": DDPM(),
    "ddpm-large": DDPM("large"),
}
