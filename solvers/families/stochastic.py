"""Samplers of the reverse SDE dx = [f x - g^2 score] dt + g dw, and of its family of any noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ..arguments import flag, whole
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau, from_rows
from .adams import check_points
from .exponential import DDIM
from .multistep_engine import (
    Ending,
    body,
    check_ending,
    constant_noise,
    counted,
    endings,
    lean,
    multistep,
    weights,
)
from .single_step_engine import Node, Stage, legs, single_step


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on the reverse SDE, in t (Song et al. 2021, 6).

        x_{t-d} = x - (f x - g^2 (alpha D - x)/sigma^2) d + g sqrt(d) z

    Stable only while g^2 d < sigma^2, so it wants many steps. From alpha = 0, where g is infinite,
    the first step is the ancestral one, alpha D + sigma z. A last interval down to sigma = 0 is
    one denoising jump.
    """

    order: ClassVar[float] = 1.0

    def rows(self, path: Path) -> Tableau:
        process, t = path.process, path.t[:-1]
        d = t - path.t[1:]
        f, g2 = process.drift_rate(t), process.diffusion(t).square()
        pull = g2 * d / path.sigma[:-1].square()
        state, data, noise = 1 - f * d - pull, pull * path.alpha[:-1], torch.sqrt(g2 * d)
        if float(path.alpha[0]) == 0.0:
            state[0], data[0], noise[0] = 0.0, path.alpha[1], path.sigma[1]
        if path.ends_clean:
            state[-1], data[-1], noise[-1] = 0.0, 1.0, 0.0
        return from_rows("euler-maruyama", path.t, t, [state], [data], [noise])


@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling (Ho et al. 2020, algorithm 2): the mean of q(x_s | x_t, x_0 = D).

    A last interval down to sigma = 0 draws no noise.

    variance: 'small' is the posterior's, beta~ = sigma_s^2 (1 - e^{-2h}) (so DDIM with eta = 1);
        'large' is the forward step's, beta = sigma_t^2 (1 - e^{-2h}) of t, the noisier end.
    Raises ValueError for another `variance`.
    """

    variance: str = "small"

    order: ClassVar[float] = 1.0

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
            path.t,
            mean.times,
            [mean.state[:, 0]],
            [mean.data[:, 0]],
            [noise],
        )


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """Reverse diffusion sampling (Song et al. 2021, 46): the forward step's own coefficients.

        x_s = (2 - a) x + G^2 score + G z,   a = alpha_t/alpha_s,  G^2 = sigma_t^2 - a^2 sigma_s^2

    The last interval down to sigma = 0 is one denoising jump.
    """

    order: ClassVar[float] = 1.0

    def rows(self, path: Path) -> Tableau:
        sigma, a = path.sigma[:-1], path.alpha[:-1] / path.alpha[1:]
        g2 = sigma.square() - (a * path.sigma[1:]).square()
        pull = g2 / sigma.square()
        state, data, noise = 2 - a - pull, pull * path.alpha[:-1], torch.sqrt(g2)
        if path.ends_clean:
            state[-1], data[-1], noise[-1] = 0.0, 1.0, 0.0
        return from_rows("reverse-diffusion", path.t, path.t[:-1], [state], [data], [noise])


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
        return single_step("sra1", path, steps, [stage, end], eta=1.0)


@dataclass(frozen=True)
class SASolver(Solver):
    """SA-Solver (Xue et al. 2023, propositions 4.2 and 4.3, algorithm 1; data prediction, PEC).

        x_t = sigma_t/sigma_s e^{-T} x_s + sigma_t sqrt(1 - e^{-2T}) z
              + alpha_t int (1 + tau^2) e^{-(1 + tau^2)(lambda_t - lambda)} D dlambda,  T = tau^2 h

    with D the polynomial through the last `predictor` predictions; once D is known at the step's
    end the step is redone with the polynomial through `corrector` of them, that one included,
    with the same normal. A line, through two predictions, is weighed as the authors' code does it:
    its slope's integral is replaced by alpha_t (1 + tau^2) h^2/2, from which it differs by O(h^3).
    The marginals are the same for every tau. Law: order 2, since D on a noisy path is not smooth;
    for tau = 0 the predictor's order, one more where the corrector has more points.

    predictor: predictions that a step goes through, 1..4.
    corrector: those that it is corrected with, 1..5; 0 for no corrector.
    tau: size of the noise >= 0 in steps that start at a ratio sigma/alpha inside `window`, else 0.
    window: (low, high) in sigma/alpha; the default is the authors' 0.2 < t < 0.8 of linear VP.
    ending: the most points of the predictor in the last steps, of the corrector one more; (3, 2, 1)
        is diffusers' `lower_order_final`. A denoising jump counts as a step of one point.
    Raises ValueError for another value, TypeError for one of another type.
    """

    predictor: int = 3
    corrector: int = 4
    tau: float = 1.0
    window: tuple[float, float] = (0.72, 25.0)
    ending: Ending = ()

    def __post_init__(self) -> None:
        check_points(self.predictor, 4)
        if self.corrector:
            check_points(self.corrector, 5)
        check_ending(self.ending)
        if not 0 <= self.tau < math.inf:
            raise InvalidValue(f"tau must be >= 0; got {self.tau}")
        if not 0 <= self.window[0] < self.window[1]:
            raise InvalidValue(f"window must be (low, high) with low < high; got {self.window}")

    @property
    def order(self) -> float:
        return 1.0 if self.tau else self._smooth_order

    @property
    def weak_order(self) -> float:
        return min(2.0, self._smooth_order) if self.tau else self._smooth_order

    @property
    def _smooth_order(self) -> float:
        return float(max(self.predictor, min(self.corrector, self.predictor + 1)))

    def rows(self, path: Path) -> Tableau:
        inner, ending = body(path), endings(path, self.ending)
        tau, h = self.noise_of(inner), inner.h
        decay = constant_noise(tau)
        half = 0.5 * inner.alpha[1:] * (1 + tau.square()) * h
        predict = weights(inner, self.predictor, decay=decay, ending=ending)
        if self.predictor > 1:
            reach = h / torch.cat([h[:1], h[:-1]])
            predict = lean(
                predict, counted(inner, self.predictor, ending) == 2, half * reach, base=0
            )
        correct = None
        if self.corrector:
            past = self.corrector - 1
            correct = weights(inner, past, ahead=True, decay=decay, ending=ending)
            if past:
                correct = lean(correct, counted(inner, past, ending) == 1, half, base=1)
        return multistep("sa-solver", path, "data", predict, correct)

    def noise_of(self, path: Path) -> Tensor:
        """tau of every step, [n]."""
        ratio = torch.exp(-path.lam[:-1])
        inside = (ratio >= self.window[0]) & (ratio <= self.window[1])
        return self.tau * inside.double()


@dataclass(frozen=True)
class ERSDE(Solver):
    """Extended reverse-time SDE solvers (Cui et al. 2023, 'ER-SDE-Solver').

    In s = sigma/alpha, with a noise scale phi(s) = s (e^{s^0.3} + 10) (their ER-SDE-5),

        x_t = alpha_t/alpha_s phi(s_t)/phi(s_s) x_s + alpha_t int phi(s_t) phi'(s)/phi(s)^2 D ds
              + alpha_t sqrt(s_t^2 - s_s^2 (phi(s_t)/phi(s_s))^2) z

    and D the polynomial in s through the last `points` predictions, integrated exactly (published
    code stops at the first divided difference in D', which costs an order at three points).
    It is the SDE of tau^2 = s phi'/phi - 1. Law: order 2 at most.

    points: predictions that a step goes through, 1..3.
    Raises ValueError for another number.
    """

    points: int = 3

    order: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_points(self.points, 3)

    @property
    def weak_order(self) -> float:
        return float(min(self.points, 2))

    def rows(self, path: Path) -> Tableau:
        rule = weights(body(path), self.points, clock="sigma", decay=er_decay)
        return multistep(f"er-sde-{self.points}", path, "data", rule)


def er_decay(path: Path, lam: Tensor) -> tuple[Tensor, Tensor]:
    """A = -log phi(s)/phi(s_s) and its slope in lambda."""

    def log_phi(log_s: Tensor) -> Tensor:
        ten = torch.full_like(log_s, math.log(10.0))
        return log_s + torch.logaddexp(torch.exp(0.3 * log_s), ten)

    bent = torch.exp(-0.3 * lam)
    rate = 1 + 0.3 * bent * torch.sigmoid(bent - math.log(10.0))
    return log_phi(-path.lam[:-1, None]) - log_phi(-lam), rate


@dataclass(frozen=True)
class FlowSDE(Solver):
    """Euler-Maruyama in t on the probability flow with noise of any size: Flow-GRPO's SDE.

        x_{t-d} = x - (v - 1/2 eta^2 s) d + eta sqrt(d) z,   eta = noise_level g/sqrt(2)

    v is the velocity of the flow and s the score. For `Flow` this is Liu et al. 2025 (Flow-GRPO),

        x_{t-d} = x - (v + eta^2/(2t) (x + (1 - t) v)) d + eta sqrt(d) z,
        eta = noise_level sqrt(t/(1 - t)),

    and noise_level = sqrt(2) is the reverse SDE itself. Where alpha = 0 (t = 1) eta takes alpha
    from the next node, as the authors' code does.

    noise_level: size of the noise >= 0; the authors take 0.7.
    noisy_end: draw noise in a last step down to sigma = 0 too, as the authors' code does. By
        default that step is one denoising jump.
    window: (first, last) steps that draw noise, counted from 0, `last` not among them (MixGRPO, Li
        et al. 2025); Euler steps of the flow outside. None: all. `Within` has other solvers there.
    Raises ValueError for another value, or a window that ends after the grid.
    """

    noise_level: float = 0.7
    noisy_end: bool = False
    window: tuple[int, int] | None = None

    order: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise_level < math.inf:
            raise InvalidValue(f"noise_level must be finite and >= 0; got {self.noise_level}")
        flag("noisy_end", self.noisy_end)
        check_window(self.window)

    def rows(self, path: Path) -> Tableau:
        process, t = path.process, path.t[:-1]
        d, alpha, sigma = t - path.t[1:], path.alpha[:-1], path.sigma[:-1]
        up, down = process.sigma_dot(t), process.alpha_dot(t)
        seen = torch.where(alpha > 0, alpha, path.alpha[1:])
        level = self.noise_level * inside(self.window, len(t))
        eta2 = level.square() * sigma * (up * alpha - sigma * down) / seen
        pull = 0.5 * d * eta2 / sigma.square()
        state = 1 - d * up / sigma - pull
        data = d * (up * alpha / sigma - down) + pull * alpha
        noise = torch.sqrt(eta2 * d)
        if path.ends_clean and not self.noisy_end:
            state[-1], data[-1], noise[-1] = 0.0, 1.0, 0.0
        return from_rows("flow-sde", path.t, t, [state], [data], [noise])


@dataclass(frozen=True)
class CPS(Solver):
    """Coefficients-preserving sampling (Wang & Yu 2025, Flow-CPS): DDIM with a share of new noise.

        x_s = alpha_s D + sigma_s (cos(a pi/2) eps + sin(a pi/2) z),   a = noise_level

    D and eps = (x - alpha D)/sigma are the predictions of data and noise. The coefficients of data
    and noise are those of the process whatever a is, so no step leaves more noise than belongs at
    its time. The share does not shrink with the step: the law has a bias that steps do not remove
    (order 0), but for a = 0, which is DDIM.

    noise_level: a in [0, 1].
    window: (first, last) steps that draw noise, as of `FlowSDE`; DDIM's steps outside.
    Raises ValueError for another value, or a window that ends after the grid.
    """

    noise_level: float = 0.7
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.noise_level <= 1:
            raise InvalidValue(f"noise_level must lie in [0, 1]; got {self.noise_level}")
        check_window(self.window)

    @property
    def order(self) -> float:
        return 0.0 if self.noise_level else 1.0

    def rows(self, path: Path) -> Tableau:
        sigma = path.sigma[1:]
        angle = self.noise_level * math.pi / 2 * inside(self.window, len(sigma))
        kept = torch.cos(angle) * sigma / path.sigma[:-1]
        return from_rows(
            "cps",
            path.t,
            path.t[:-1],
            [kept],
            [path.alpha[1:] - kept * path.alpha[:-1]],
            [torch.sin(angle) * sigma],
        )


def check_window(window: tuple[int, int] | None) -> None:
    """Raises ValueError unless it is None or (first, last) with 0 <= first <= last."""
    if window is None:
        return
    if not isinstance(window, tuple) or len(window) != 2:
        raise InvalidType(f"window must be a tuple (first, last); got {window!r}")
    first, last = (whole(f"window[{i}]", v, 0) for i, v in enumerate(window))
    if first > last:
        raise InvalidValue(f"window must be (first, last) with first <= last; got {window}")


def inside(window: tuple[int, int] | None, steps: int) -> Tensor:
    """1 in the steps of the window, 0 in others: float64 [steps]. None is all steps.

    Raises ValueError for a window that ends after them.
    """
    first, last = (0, steps) if window is None else window
    if last > steps:
        raise InvalidValue(f"window {window} must end within the grid's {steps} steps")
    i = torch.arange(steps, device="cpu")
    return ((i >= first) & (i < last)).double()


SOLVERS: dict[str, Solver] = {
    "euler-maruyama": EulerMaruyama(),
    "reverse-diffusion": ReverseDiffusion(),
    "sra1": SRA1(),
    "ddpm": DDPM(),
    "ddpm-large": DDPM("large"),
    "sa-solver": SASolver(),
    "sa-solver-2": SASolver(2, 2),
    "sa-solver-ode": SASolver(3, 4, tau=0.0),
    **{f"er-sde-{k}": ERSDE(k) for k in (1, 2, 3)},
    "flow-sde": FlowSDE(),
    "cps": CPS(),
}
