"""Ito diffusions dX = b(X, t) dt + S(X, t) dB of any b and S, and their reversal.

With a = S S^T and p_t the law of X_t, the process run backwards is a diffusion with the same S
and drift (Anderson 1982; Haussmann & Pardoux 1986)

    b* = b - div a - a grad log p_t,        (div a)_i = sum_j d a_ij / d x_j,

in dX = b* dt + S dB~ with dt < 0; in the time s = t_max - t, which rises, the drift is -b*.
States are [B, d]; b returns [B, d]; S returns [B, d, m], [d, m] for a constant one, or [B, d] for
a diagonal. Times reach both as float64 [B].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.errors import InvalidValue
from .processes.process import Process

Field = Callable[[Tensor, Tensor], Tensor]
"""(x [B, d], t float64 [B]) -> values."""


@dataclass(frozen=True, eq=False)
class ItoSDE:
    """dX = drift(X, t) dt + diffusion(X, t) dB on [t_min, t_max]; see the first lines for shapes.

    Raises ValueError for an empty interval, and at the call for fields of another shape.
    """

    drift: Field
    diffusion: Field
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not self.t_min < self.t_max:
            raise InvalidValue(
                f"t_max must exceed t_min; got t_min={self.t_min}, t_max={self.t_max}"
            )

    def matrix(self, x: Tensor, t: Tensor) -> Tensor:
        """S(x, t) as [B, d, m]."""
        s = self.diffusion(x, t)
        if s.shape == x.shape:
            s = torch.diag_embed(s)
        elif s.ndim == 2 and s.shape[0] == x.shape[1]:
            s = s.expand(len(x), -1, -1)
        if s.ndim != 3 or s.shape[:2] != x.shape:
            raise InvalidValue(
                f"diffusion must return [B, d, m], [d, m] or [B, d] for x {tuple(x.shape)}; "
                f"got {tuple(s.shape)}"
            )
        return s

    def covariance(self, x: Tensor, t: Tensor) -> Tensor:
        """a = S S^T, [B, d, d]."""
        s = self.matrix(x, t)
        return s @ s.mT

    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """(div a)_i = sum_j d a_ij/d x_j, [B, d], by automatic differentiation."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            a = self.covariance(leaf, t)
            if not a.requires_grad:
                return torch.zeros_like(x)
            rows = [
                torch.stack([_derivative(a[:, i, j], leaf, j) for j in range(x.shape[1])], 1).sum(1)
                for i in range(x.shape[1])
            ]
        return torch.stack(rows, 1)

    def reversed(self, score: Field) -> ItoSDE:
        """The process in the time s = t_min + t_max - t, given score(x, t) = grad log p_t(x)."""

        def mirror(s: Tensor) -> Tensor:
            return self.t_min + self.t_max - s

        def drift(x: Tensor, s: Tensor) -> Tensor:
            t = mirror(s)
            pull = torch.einsum("bij,bj->bi", self.covariance(x, t), score(x, t))
            return self.divergence(x, t) + pull - self.drift(x, t)

        return ItoSDE(drift, lambda x, s: self.diffusion(x, mirror(s)), self.t_min, self.t_max)

    def simulate(self, x: Tensor, steps: int, seed: int = 0) -> Path:
        """Euler-Maruyama from X(t_min) = x [B, d] in `steps` equal steps; returns the whole path.

        Strong order 1/2 (1 where S is constant), weak order 1. Seeded by torch's generator of
        x's device; a run that goes on from another's end needs another seed, or it meets the same
        normals. Raises ValueError for steps < 1, a drift of another shape, or an x that is not
        [B, d].
        """
        if steps < 1:
            raise InvalidValue(f"steps must be >= 1; got {steps}")
        if x.ndim != 2:
            raise InvalidValue(f"x must be [B, d]; got {tuple(x.shape)}")
        times = torch.linspace(self.t_min, self.t_max, steps + 1, dtype=torch.float64)
        g = torch.Generator(x.device).manual_seed(seed)
        dt = (self.t_max - self.t_min) / steps
        states = [x]
        for t in times[:-1].to(x.device):
            at = t.expand(len(x))
            b, s = self.drift(x, at), self.matrix(x, at)
            if b.shape != x.shape:
                raise InvalidValue(
                    f"drift must return x's shape {tuple(x.shape)}; got {tuple(b.shape)}"
                )
            dw = torch.randn(len(x), s.shape[2], dtype=x.dtype, device=x.device, generator=g)
            x = x + dt * b + dt**0.5 * torch.einsum("bij,bj->bi", s, dw)
            states.append(x)
        return Path(times, torch.stack(states))


class Path(NamedTuple):
    """times [n + 1] float64, states [n + 1, B, d]."""

    times: Tensor
    states: Tensor


def forward_sde(process: Process) -> ItoSDE:
    """dx = f x dt + g dw of a Gaussian process (Song et al. 2021, 5), on events of shape [d]."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return process.drift_rate(t).to(x.dtype)[:, None] * x

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        return process.diffusion(t).to(x.dtype)[:, None].expand_as(x)

    return ItoSDE(drift, diffusion, process.t_min, process.t_max)


def ornstein_uhlenbeck(theta: Tensor, root: Tensor, t_max: float = 1.0) -> ItoSDE:
    """dX = -theta X dt + root dB with matrices theta [d, d] and root [d, m]."""
    return ItoSDE(lambda x, t: -x @ theta.T.to(x), lambda x, t: root.to(x), 0.0, t_max)


def langevin(score: Callable[[Tensor], Tensor], t_max: float = 1.0) -> ItoSDE:
    """dX = grad log p(X) dt + sqrt(2) dB, which leaves p and is its own reversal.

    Simulated it is the unadjusted Langevin algorithm: its law is p to first order in the step, and
    its modes exchange mass at the pace of the barriers between them.
    """
    return ItoSDE(lambda x, t: score(x), lambda x, t: torch.full_like(x, 2**0.5), 0.0, t_max)


def annealed_langevin(
    score: Field,
    x: Tensor,
    levels: Tensor,
    steps: int = 100,
    step_size: float = 0.1,
    seed: int = 0,
) -> Tensor:
    """Langevin at one noise level after the other (Song & Ermon 2019, algorithm 1), [B, d].

    score(x, sigma): of the data convolved with N(0, sigma^2), sigma [B]. levels: sigmas that fall.
    At each, `steps` of x + h score + sqrt(2 h) z with h = step_size sigma^2, so that a step keeps
    its ratio to the scale. Raises ValueError unless the levels are positive and fall.
    """
    if levels.ndim != 1 or not bool((levels > 0).all()) or not bool((levels.diff() < 0).all()):
        raise InvalidValue(f"levels must be positive and fall strictly; got {levels.tolist()}")
    for i, sigma in enumerate(levels.tolist()):
        at = ItoSDE(
            lambda x, t, s=sigma: score(x, torch.full_like(t, s)),  # type: ignore[misc]
            lambda x, t: torch.full_like(x, 2**0.5),
            0.0,
            steps * step_size * sigma**2,
        )
        x = at.simulate(x, steps, seed + i).states[-1]
    return x


def _derivative(value: Tensor, x: Tensor, j: int) -> Tensor:
    """d value_b/d x_bj, [B]."""
    (g,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x[:, j]) if g is None else g[:, j]
