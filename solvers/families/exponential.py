"""Exponential integrators in the data prediction: the linear part of each step is exact.

In lambda the probability flow is d(x/sigma)/dlambda = e^lambda D, so over a step h from s to t

    x_t = (sigma_t/sigma_s) x_s + alpha_t int_0^h e^{-(h-u)} D du,

and a method is a rule for D inside the integral (Lu et al. 2022b, DPM-Solver++).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Process
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau, from_rows
from .multistep_engine import (
    Ending,
    Weights,
    body,
    check_ending,
    constant_noise,
    counted,
    endings,
    grid_for,
    multistep,
    no_noise,
    weights,
)


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM, first order (Song, Meng & Ermon 2021, 12); eta = 0 is Euler in sigma/alpha.

        x_t = alpha_t D + sqrt(sigma_t^2 - s^2) eps + s z,   s = eta sigma_t sqrt(1 - e^{-2h})

    eta: share of noise in [0, 1]; 0 is the probability flow, 1 the ancestral sampler of DDPM, for
        every process.
    Raises ValueError for eta outside [0, 1].
    """

    eta: float = 0.0

    order: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InvalidValue(f"eta must lie in [0, 1]; got {self.eta}")

    def rows(self, path: Path) -> Tableau:
        alpha, sigma, h = path.alpha[1:], path.sigma[1:], path.h
        log_kept = 0.5 * torch.log1p(self.eta**2 * torch.expm1(-2 * h))
        kept = torch.exp(log_kept)  # share of sigma_t that still comes from eps
        noise = self.eta * sigma * torch.sqrt(-torch.expm1(-2 * h).clamp(max=0.0))
        return from_rows(
            f"ddim(eta={self.eta:g})" if self.eta else "ddim",
            path.t,
            path.t[:-1],
            state=[kept * sigma / path.sigma[:-1]],
            data=[-alpha * torch.expm1(log_kept - h)],
            noise=[noise],
        )


SHORT, CLEAN = 8, 0.02
"""Steps up to which a noisy run ends at t_min, where sigma/alpha is at most CLEAN there: a
denoising jump would take a call from the steps, as of `Relay`."""


class _ReverseSDE(Solver):
    """Where a run steps if nobody says: with noise by equal steps of lambda.

    Of six grids by the sliced W2 distance to exact draws, on all but one of five exact targets with
    three processes each: the same choice whichever was left out, at 10 and at 20 steps. Longer runs
    end with a jump: without it narrow data lose nats of density to the noise that is left.
    """

    eta: float
    form: str

    @property
    def own_grid(self) -> str:
        return "log_snr" if self.eta else grid_for(self.form, int(self.order))

    def on(self, process: Process, steps: int) -> tuple[Solver, int, str]:
        end = torch.tensor(process.t_min, dtype=torch.float64, device="cpu")
        cleanest = float(torch.exp(-process.log_snr(end)))
        if self.eta and 1 < steps <= SHORT and cleanest <= CLEAN:
            return self, steps, "t_min"
        return super().on(process, steps)


@dataclass(frozen=True)
class DPMSolverPP(_ReverseSDE):
    """DPM-Solver++, multistep (Lu et al. 2022b, algorithm 2), and its SDE (eta = 1).

        x_t = (sigma_t/sigma_s) e^{-eta h} x_s + alpha_t (1 - e^{-(1+eta) h}) D~
              + sigma_t sqrt(1 - e^{-2 eta h}) z
        D~  = D_i + (D_i - D_{i-1}) / (2r),   r = h_{i-1}/h_i        (order 2)

    The first steps use what history there is. With noise the law is of order 2 at most, since D
    along a noisy path is not smooth.

    order: 1 (DDIM for eta = 0), 2, or 3, which integrates the parabola through three predictions
        exactly; the published third-order formula is `DPMSolverPP3Compat`, of order 2.
    eta: share of noise >= 0; 0 is the probability flow, 1 the reverse SDE.
    form: 'data' as above, or 'noise', the multistep DPM-Solver (Lu et al. 2022), where

        x_t = alpha_t/alpha_s x_s - (1 + eta) sigma_t (e^h - 1) eps~
              + sigma_t sqrt(eta (e^{2h} - 1)) z

    solver_type: of order 2, 'midpoint' as above, or 'heun', which integrates the line through two
        predictions exactly (both as in diffusers).
    ending: the most points in the last steps; (2, 1) is diffusers' `lower_order_final`, (1,) its
        `euler_at_final`. A denoising jump counts as a step of one point.
    Raises ValueError for another value, TypeError for one of another type.
    """

    order: int = 2
    eta: float = 0.0
    form: str = "data"
    solver_type: str = "midpoint"
    ending: Ending = ()

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise InvalidValue(f"order must be 1, 2 or 3; got {self.order}")
        check_multistep(self.eta, self.form, self.solver_type, self.ending)

    @property
    def weak_order(self) -> float:
        return float(min(self.order, 2) if self.eta else self.order)

    def rows(self, path: Path) -> Tableau:
        rule = self.rule(body(path), endings(path, self.ending))
        kind = "dpmpp" if self.form == "data" else "dpm-solver"
        return multistep(
            f"{kind}-{self.order}m" + ("-sde" if self.eta else ""),
            path,
            self.form,
            rule,
            order=1.0 if self.eta else float(self.order),
        )

    def rule(self, inner: Path, ending: Ending) -> Weights:
        """The rule of every step of `body(path)`."""
        tau = torch.full_like(inner.h, self.eta**0.5)
        decay = constant_noise(tau) if self.eta else no_noise
        midpoint = self.order == 2 and self.solver_type == "midpoint"
        points = 1 if midpoint else self.order
        rule = weights(inner, points, self.form, decay=decay, ending=ending)
        if midpoint and len(inner.h):
            lean = torch.zeros_like(inner.h)  # 1/(2r): how far D~ leans along D_i - D_{i-1}
            lean[1:] = 0.5 * inner.h[1:] / inner.h[:-1]
            lean[counted(inner, 2, ending) < 2] = 0.0
            rule = rule._replace(points=rule.points * torch.stack([1 + lean, -lean], 1))
        return rule


@dataclass(frozen=True)
class DPMSolverPP3Compat(_ReverseSDE):
    """The multistep third-order DPM-Solver++ as published code has it, which is of order 2.

        x_t = carry x_s + alpha_t (-phi_1 D_i + phi_2 D' - phi_3 D''),   H = (1 + eta) h
        phi_1 = e^{-H} - 1,  phi_2 = phi_1/H + 1,  phi_3 = phi_2/H - 1/2

    D'' stands for half of h^2 times the second derivative (a divided difference), where phi_3
    calls for the whole; hence the order. At few steps on a Karras grid it is often the more
    accurate of the two, and published FIDs were computed with it (Lu et al. 2022b, appendix B).

    eta: share of noise >= 0, as for `DPMSolverPP`.
    form: 'data' as above, or 'noise', the same with sigma_t, h and e^h - 1 (Lu et al. 2022).
    solver_type: of the steps of two points, as for `DPMSolverPP`; 'heun' is k-diffusion's 3M SDE.
    ending: the most points in the last steps, as for `DPMSolverPP`.
    Raises ValueError for another value, TypeError for one of another type.
    """

    eta: float = 0.0
    form: str = "data"
    solver_type: str = "midpoint"
    ending: Ending = ()

    order: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        check_multistep(self.eta, self.form, self.solver_type, self.ending)

    def rows(self, path: Path) -> Tableau:
        inner, ending = body(path), endings(path, self.ending)
        two = DPMSolverPP(2, self.eta, self.form, self.solver_type).rule(inner, ending)
        wide = torch.nn.functional.pad(two.points, (0, 3 - two.points.shape[1]))
        at = (counted(inner, 3, ending) == 3).nonzero().flatten()
        if len(at):
            wide[at] = self._third(inner, at)
        kind = "dpmpp" if self.form == "data" else "dpm-solver"
        return multistep(
            f"{kind}-3m-compat" + ("-sde" if self.eta else ""),
            path,
            self.form,
            two._replace(points=wide),
            order=1.0 if self.eta else 2.0,
        )

    def _third(self, inner: Path, at: Tensor) -> Tensor:
        """Weights of the three predictions in the steps `at`."""
        h = inner.h[at]
        r0, r1 = inner.h[at - 1] / h, inner.h[at - 2] / h
        if self.form == "data":
            sign, big, scale = -1.0, (1 + self.eta) * h, inner.alpha[at + 1]
        else:
            sign, big, scale = 1.0, h, -(1 + self.eta) * inner.sigma[at + 1]
        phi1 = torch.expm1(sign * big)
        phi2 = phi1 / big - sign
        phi3 = phi2 / big - 0.5
        d1, d2 = 1 / r0, 1 / r1  # weights of the two differences
        bend = phi2 * r0 / (r0 + r1) + sign * phi3 / (r0 + r1)
        now, before = d1 * (phi2 + bend), d2 * bend
        return scale[:, None] * torch.stack([sign * phi1 + now, -now - before, before], 1)


def check_multistep(eta: float, form: str, solver_type: str, ending: Ending) -> None:
    """Raises ValueError for settings that `DPMSolverPP` and its like do not know."""
    check_eta(eta)
    if form not in ("data", "noise"):
        raise InvalidValue(f"form must be 'data' or 'noise'; got {form!r}")
    if solver_type not in ("midpoint", "heun"):
        raise InvalidValue(f"solver_type must be 'midpoint' or 'heun'; got {solver_type!r}")
    check_ending(ending)


def check_eta(eta: float) -> None:
    """Raises ValueError unless 0 <= eta < inf."""
    if not 0 <= eta < math.inf:
        raise InvalidValue(f"eta must be >= 0; got {eta}")


SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "euler": DDIM(),
    "euler-ancestral": DDIM(eta=1.0),
    "dpmpp-1m": DPMSolverPP(1),
    "dpmpp-2m": DPMSolverPP(2),
    "dpmpp-3m": DPMSolverPP(3),
    "dpmpp-3m-compat": DPMSolverPP3Compat(),
    "dpmpp-2m-sde": DPMSolverPP(2, eta=1.0),
    "dpmpp-3m-sde": DPMSolverPP(3, eta=1.0),
    "dpmpp-3m-sde-compat": DPMSolverPP3Compat(eta=1.0),
}
