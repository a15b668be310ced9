"""Ito diffusions dX = b(X, t) dt + S(X, t) dB of any b and S, and their reversal.

With a = S S^T and p_t the law of X_t, the process run backwards is a diffusion with the same S
and drift (Anderson 1982; Haussmann & Pardoux 1986)

    b* = b - div a - a grad log p_t,        (div a)_i = sum_j d a_ij / d x_j,

in dX = b* dt + S dB~ with dt < 0; in the time s = t_max - t, which rises, the drift is -b*.
States are [B, d]; b returns [B, d]; S returns [B, d, m], [d, m] for a constant one, or [B, d] for
a diagonal. Times reach both as float64 [B].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import normal
from ..kernels.checks import ids_or_places, whole
from ..kernels.errors import InvalidType, InvalidValue
from ..kernels.streams import ITO, MAX_DRAW
from .processes.process import Process

Field = Callable[[Tensor, Tensor], Tensor]
"""(x [B, d], t float64 [B]) -> values."""


@dataclass(frozen=True, eq=False)
class ItoSDE:
    """dX = drift(X, t) dt + diffusion(X, t) dB on [t_min, t_max].

    drift, diffusion: callables of (X, t); see the first lines for shapes.
    t_min, t_max: the interval.
    Raises ValueError for an empty interval, and at the call for fields of another shape.
    """

    drift: Field
    diffusion: Field
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        for name in ("drift", "diffusion"):
            if not callable(getattr(self, name)):
                raise InvalidType(
                    f"{name} must be callable as f(x, t); got {getattr(self, name)!r}"
                )
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
            pull = (self.covariance(x, t) * score(x, t)[:, None]).sum(2)
            return self.divergence(x, t) + pull - self.drift(x, t)

        return ItoSDE(drift, lambda x, s: self.diffusion(x, mirror(s)), self.t_min, self.t_max)

    def simulate(
        self,
        x: Tensor,
        steps: int,
        seed: int | Tensor = 0,
        *,
        sample_ids: Tensor | Sequence[int] | None = None,
        first: int = 0,
    ) -> Path:
        """Euler-Maruyama from X(t_min) = x [B, d] in `steps` equal steps; returns the whole path.

        Strong order 1/2 (1 where S is constant), weak order 1.

        x: [B, d], floating.
        steps: how many, >= 1.
        seed: an int, or int64 [B], one a sample.
        sample_ids: integers [B], global ids, by default 0 to B - 1. The same (seed, sample id)
            gives the same path in any batch.
        first: the index of the first step's normal; a run that goes on from another's end counts on
            from that one's steps, or it meets the same normals.

        Raises TypeError or ValueError for others, and for a drift of another shape.
        """
        steps = whole("steps", steps, 1, MAX_DRAW)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise InvalidType(f"x must be a floating tensor [B, d]; got {kind}")
        if x.ndim != 2:
            raise InvalidValue(f"x must be [B, d]; got {tuple(x.shape)}")
        ids = ids_or_places(sample_ids, len(x), x.device)
        times = torch.linspace(self.t_min, self.t_max, steps + 1, dtype=torch.float64, device="cpu")
        dt = (self.t_max - self.t_min) / steps
        states = [x]
        for i, t in enumerate(times[:-1].to(x.device)):
            at = t.expand(len(x))
            b, s = self.drift(x, at), self.matrix(x, at)
            if b.shape != x.shape:
                raise InvalidValue(
                    f"drift must return x's shape {tuple(x.shape)}; got {tuple(b.shape)}"
                )
            shape, place = (len(x), s.shape[2]), ITO.at(first + i)
            dw = normal(shape, seed, ids, **place, dtype=x.dtype, device=x.device)
            x = x + dt * b + dt**0.5 * (s * dw[:, None]).sum(2)  # einsum may round by the batch
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
    """dX = -theta X dt + root dB on [0, t_max].

    theta: matrix [d, d].
    root: matrix [d, m].
    t_max: end of the interval; default 1.
    """
    return ItoSDE(lambda x, t: -x @ theta.T.to(x), lambda x, t: root.to(x), 0.0, t_max)


def langevin(score: Callable[[Tensor], Tensor], t_max: float = 1.0) -> ItoSDE:
    """dX = grad log p(X) dt + sqrt(2) dB, which leaves p and is its own reversal.

    Simulated it is the unadjusted Langevin algorithm: its law is p to first order in the step, and
    its modes exchange mass at the pace of the barriers between them.
    """
    return ItoSDE(lambda x, t: score(x), lambda x, t: torch.full_like(x, 2**0.5), 0.0, t_max)


def _derivative(value: Tensor, x: Tensor, j: int) -> Tensor:
    """d value_b/d x_bj, [B]."""
    (g,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x[:, j]) if g is None else g[:, j]
