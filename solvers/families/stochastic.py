"""First-order samplers of the reverse SDE dx = [f x - g^2 score] dt + g dw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...kernels.errors import InvalidValue
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau, from_rows
from .exponential import DDIM
from .single_step_engine import Node, Stage, legs, single_step


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
            raise InvalidValue(f"variance must be 'small' or 'large'; got {self.variance!r}")

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


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """Reverse diffusion sampling (Song et al. 2021, 46): the forward step's own coefficients.

        x_s = (2 - a) x + G^2 score + G z,   a = alpha_t/alpha_s,  G^2 = sigma_t^2 - a^2 sigma_s^2

    The last interval down to sigma = 0 is one denoising jump.
    """

    order: ClassVar[float] = 1.0
    weak_order: ClassVar[float] = 1.0

    def rows(self, path: Path) -> Tableau:
        sigma, a = path.sigma[:-1], path.alpha[:-1] / path.alpha[1:]
        g2 = sigma.square() - (a * path.sigma[1:]).square()
        pull = g2 / sigma.square()
        state, data, noise = 2 - a - pull, pull * path.alpha[:-1], torch.sqrt(g2)
        if path.ends_clean:
            state[-1], data[-1], noise[-1] = 0.0, 1.0, 0.0
        return from_rows(
            "reverse-diffusion", path.t, path.t[:-1], [state], [data], [noise],
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


@dataclass(frozen=True)
class SRA1(Solver):
    """Stochastic Runge-Kutta of strong order 1.5 for additive noise (Roessler 2010, SRA1).

    In y = x/alpha with the variance v = (sigma/alpha)^2 as clock the reverse SDE has unit noise,
    dy = b dr + dW with b = (D - y)/v and r = -v, whatever the process. Over a step d of v

        y_2 = y + 3/4 d b_1 + 3/2 (W/2 + H),    y' = y + d (b_1 + 2 b_2)/3 + W

    W ~ N(0, d) is the increment, H ~ N(0, d/12) the space-time area. Two calls a step. Wants
    steps with d < v, as every explicit scheme in x does. From alpha = 0 the first step is DDIM's.
    """

    order: ClassVar[float] = 1.5
    weak_order: ClassVar[float] = 2.0

    def rows(self, path: Path) -> Tableau:
        steps = legs(path)
        v0, v1 = torch.exp(-2 * steps.start.lam), torch.exp(-2 * steps.end.lam)
        d = v0 - v1
        v2 = v0 - 0.75 * d
        two = Node.at(path.process, -0.5 * torch.log(v2))
        w, area = torch.sqrt(d), torch.sqrt(d / 12)
        a0, a2, a1 = steps.start.alpha, two.alpha, steps.end.alpha
        pull = 0.75 * d / v0
        stage = Stage(
            two.lam, [a2 / a0 * (1 - pull)], [a2 * pull], [0.75 * a2 * w, 1.5 * a2 * area]
        )
        one, other = d / (3 * v0), 2 * d / (3 * v2)
        end = Stage(None, [a1 / a0 * (1 - one), -a1 / a2 * other], [a1 * one, a1 * other], [a1 * w])
        return single_step(
            "sra1", path, steps, [stage, end], eta=1.0,
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


SOLVERS: dict[str, Solver] = {
    "euler-maruyama": EulerMaruyama(),
    "reverse-diffusion": ReverseDiffusion(),
    "sra1": SRA1(),
    "ddpm": DDPM(),
    "ddpm-large": DDPM("large"),
}
