"""Levels as a density: where integers lie in a network's range, and the noise that fills their
width.

With y = level + (u - 1/2) spacing, u in [0, 1)^d drawn from q(u | level),

    log P(level) >= E[ log p(y) - log q(u | level) ] + d log spacing        (Theis et al. 2016, 3.1)

so bits/dim carry the offset -log2 spacing. q is uniform, log q = 0, or a hook's (Ho et al. 2019,
variational); the bound is tight for q proportional to p inside the level. Two conventions are in
use:

    'ends'   level k at lo + k (hi - lo)/(count - 1): the first and last lie on the range's ends
             (DDPM, Improved DDPM; offset 6.994 for 256 levels on [-1, 1])
    'bins'   level k fills [lo + k w, lo + (k + 1) w), w = (hi - lo)/count, its middle the datum:
             data and noise fill the range (score_sde; offset 7 for 256 levels on [-1, 1], 8 on
             [0, 1]; and VDM, whose decoder takes the offset's place)

A network's own is the one it was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import uniform
from ..kernels.errors import InvalidType, InvalidValue
from ..kernels.streams import DEQUANTIZE

Hook = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""hook(centres [B, *event], eps of their shape, standard normals) -> (u in [0, 1], log q(u)
[B])."""
CONVENTIONS = ("ends", "bins")
CHOICES = "'uniform', 'none' or a hook(centres, eps) -> (u, log_q)"


@dataclass(frozen=True)
class Levels:
    """Where the levels of quantised data lie in a network's range; see the first lines.

    count: levels, >= 2.
    range: (lo, hi), finite, lo < hi.
    convention: 'ends' or 'bins'.

    Raises ValueError or TypeError for others.
    """

    count: int = 256
    range: tuple[float, float] = (-1.0, 1.0)
    convention: str = "ends"

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not hasattr(self.count, "__index__"):
            raise InvalidType(f"count must be a whole number >= 2; got {self.count!r}")
        if self.count < 2:
            raise InvalidValue(f"count must be >= 2 levels; got {self.count}")
        ends = tuple(self.range)
        finite = len(ends) == 2 and all(math.isfinite(end) for end in ends)
        if not (finite and ends[0] < ends[1]):
            raise InvalidValue(f"range must be (lo, hi), finite and lo < hi; got {self.range}")
        if self.convention not in CONVENTIONS:
            names = ", ".join(CONVENTIONS)
            raise InvalidValue(f"convention must be one of {names}; got {self.convention!r}")

    @property
    def spacing(self) -> float:
        """Distance of neighbouring levels, the width of each."""
        parts = self.count - (self.convention == "ends")
        return (self.range[1] - self.range[0]) / parts

    @property
    def bounds(self) -> tuple[float, float]:
        """The first and the last level."""
        inset = 0.5 * self.spacing if self.convention == "bins" else 0.0
        return self.range[0] + inset, self.range[1] - inset

    @property
    def offset(self) -> float:
        """-log2 spacing, bits/dim."""
        return -math.log2(self.spacing)

    def centres(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Integers 0 ... count - 1, or floats that lie on the levels, as levels in the range.

        Raises ValueError for values outside, and for floats between two levels.
        """
        lo, hi = self.bounds
        if not x.is_floating_point():
            ends = int(x.min()), int(x.max())
            if ends[0] < 0 or ends[1] >= self.count:
                raise InvalidValue(
                    f"x must hold levels 0 to {self.count - 1}; got {ends[0]} to {ends[1]}: give "
                    f"levels=Levels(count) with the right count"
                )
            return lo + x.to(dtype) * self.spacing
        place = (x.double() - lo) / self.spacing
        least, most = float(place.min()), float(place.max())
        if not (least > -0.01 and most < self.count - 0.99):
            raise InvalidValue(
                f"x must lie in the declared range {lo:g} to {hi:g}; got {float(x.min()):g} to "
                f"{float(x.max()):g}: bring it there, or hand in the integers"
            )
        off = float((place - place.round()).abs().max())
        if off > 0.01:
            raise InvalidValue(
                f"x must lie on the levels, {self.spacing:g} apart from {lo:g}; a value is "
                f"{off:.2g} of that off: was noise added before? Then hand it in without levels"
            )
        return x

    def __str__(self) -> str:
        lo, hi = self.range
        where = f"{self.count} levels on [{lo:g}, {hi:g}]"
        return f"{where}, {self.convention!r}, offset {self.offset:.4g}"


def dequantised(
    x: Tensor, spacing: float, seed: int | Tensor = 0, sample_ids: Tensor | None = None
) -> Tensor:
    """x + U(-spacing/2, spacing/2), of a datum always the same.

    x: [B, *event].
    spacing: distance of the levels; 0 leaves x as it is.
    seed, sample_ids: as in `normal`.
    """
    if not spacing:
        return x
    u = uniform(x.shape, seed, sample_ids, **DEQUANTIZE.at(), dtype=x.dtype, device=x.device)
    return fill(x, spacing, u)


def fill(centres: Tensor, spacing: float, u: Tensor) -> Tensor:
    """centres + (u - 1/2) spacing, u in [0, 1] of their shape: a density where there were
    levels."""
    return centres + (u - 0.5) * spacing


def ask(hook: Hook, centres: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """(u, log q in float64) of a hook. Raises ValueError for what is no dequantisation."""
    u, log_q = hook(centres, eps)
    if u.shape != centres.shape or log_q.shape != centres.shape[:1]:
        raise InvalidValue(
            f"dequantize must return u {tuple(centres.shape)} and log_q "
            f"{tuple(centres.shape[:1])}; got {tuple(u.shape)} and {tuple(log_q.shape)}"
        )
    if not bool(((u >= 0) & (u <= 1)).all()) or not bool(torch.isfinite(log_q).all()):
        raise InvalidValue(
            f"dequantize must return u in [0, 1] and finite log_q; got u from {float(u.min()):g} "
            f"to {float(u.max()):g}, log_q {log_q.tolist()[:4]}"
        )
    return u, log_q.double()
