"""Exponential integrators in the data prediction: the linear part of each step is exact.

In lambda the probability flow is d(x/sigma)/dlambda = e^lambda D, so over a step h from s to t

    x_t = (sigma_t/sigma_s) x_s + alpha_t int_0^h e^{-(h-u)} D du,

and a method is a rule for D inside the integral (Lu et al. 2022b, DPM-Solver++).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Path, Solver
from .tableau import Tableau, from_rows


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM, first order (Song, Meng & Ermon 2021, 12); eta = 0 is Euler in sigma/alpha.

        x_t = alpha_t D + sqrt(sigma_t^2 - s^2) eps + s z,   s = eta sigma_t sqrt(1 - e^{-2h})

    eta in [0, 1] dials the noise: 0 is the probability flow, 1 the ancestral sampler of DDPM,
    for every process. Raises ValueError for eta outside [0, 1].
    """

    eta: float = 0.0

    order: ClassVar[float] = 1.0
    weak_order: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}")

    def rows(self, path: Path) -> Tableau:
        alpha, sigma, h = path.alpha[1:], path.sigma[1:], path.h
        log_kept = 0.5 * torch.log1p(self.eta**2 * torch.expm1(-2 * h))
        kept = torch.exp(log_kept)  # share of sigma_t that still comes from eps
        noise = self.eta * sigma * torch.sqrt(-torch.expm1(-2 * h))
        return from_rows(
            f"ddim(eta={self.eta:g})" if self.eta else "ddim",
            path.t,
            path.t[:-1],
            state=[kept * sigma / path.sigma[:-1]],
            data=[-alpha * torch.expm1(log_kept - h)],
            noise=[noise],
            order=self.order,
            weak_order=self.weak_order,
        )


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """DPM-Solver++, multistep (Lu et al. 2022b, algorithm 2), and its SDE (eta = 1).

        x_t = (sigma_t/sigma_s) e^{-eta h} x_s + alpha_t (1 - e^{-(1+eta) h}) D~
              + sigma_t sqrt(1 - e^{-2 eta h}) z
        D~  = D_i + (D_i - D_{i-1}) / (2r),   r = h_{i-1}/h_i

    order: 1 (DDIM for eta = 0) or 2. The first step, and a jump to sigma = 0, are of order 1.
    eta >= 0: 0 the probability flow, 1 the reverse SDE. Raises ValueError otherwise.
    """

    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2; got {self.order}")
        if not self.eta >= 0:
            raise ValueError(f"eta must be >= 0; got {self.eta}")

    @property
    def weak_order(self) -> float:
        return float(self.order)

    def rows(self, path: Path) -> Tableau:
        alpha, sigma, h = path.alpha[1:], path.sigma[1:], path.h
        # 0 * inf is not 0: without noise there is no extra decay, whatever h
        extra = self.eta * h if self.eta else torch.zeros_like(h)
        state = torch.exp(-extra) * sigma / path.sigma[:-1]
        weight = -alpha * torch.expm1(-h - extra)
        lean = torch.zeros_like(h)  # 1/(2r): how far D~ leans out along D_i - D_{i-1}
        if self.order == 2:
            inner = slice(1, len(h) - 1 if path.ends_clean else len(h))
            lean[inner] = 0.5 * h[inner] / h[:-1][: len(h[inner])]
        return from_rows(
            f"dpmpp-{self.order}m" + ("-sde" if self.eta else ""),
            path.t,
            path.t[:-1],
            state=[state],
            data=[weight * (1 + lean), -weight * lean],
            noise=[sigma * torch.sqrt(-torch.expm1(-2 * extra))],
            order=float(self.order),
            weak_order=self.weak_order,
        )


SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "euler": DDIM(),
    "dpmpp-1m": DPMSolverPP(1),
    "dpmpp-2m": DPMSolverPP(2),
    "dpmpp-2m-sde": DPMSolverPP(2, eta=1.0),
}
