"""An integral over [0, 1] for each sample by itself, from few noisy values of its integrand.

A pilot of one value in each of P equal bins gives a piecewise constant density

    q = 0.8 m/mean(m) + 0.2,     m^2 = (f^2 of the bin and its neighbours, weighted 2:1:1),

near the best one, sqrt(E f^2) (Nichol & Dhariwal 2021, 3.3), and bounded away from 0. The values
that count are drawn anew, two in each of S strata of equal mass under q, so that f/q has the
integral as its mean whatever the pilot found, and half the squared difference of the two is the
variance without any assumption on f.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import uniform
from ...kernels.errors import InvalidValue
from ...kernels.streams import JITTER

PILOT = 0.2  # share of the calls
FLOOR = 0.2  # share of the uniform density


class Integral(NamedTuple):
    """value, variance of it, both float64 [B]; where [B, K] in (0, 1) and shares [B, K], which add
    up to value; calls of the integrand."""

    value: Tensor
    variance: Tensor
    where: Tensor
    shares: Tensor
    calls: int


def integrate_by_importance(
    f: Callable[[Tensor, int], Tensor],
    calls: int,
    seed: int | Tensor,
    ids: Tensor,
    pilot: bool = True,
    draw0: int = 0,
) -> Integral:
    """int_0^1 E f(v) dv from `calls` calls f(v [B], draw) -> float64 [B], ids int64 [B].

    f draws its own noise from `draw`, which no two calls share; they are called draw0, draw0 + 1,
    ... pilot: False draws v uniformly, for comparison. Raises ValueError for fewer than 8 calls.
    """
    if calls < 8:
        raise InvalidValue(f"calls must be >= 8, some of them for the pilot; got {calls}")
    bins = max(4, round(PILOT * calls)) if pilot else 0
    strata = (calls - bins) // 2
    batch, device = len(ids), ids.device

    def jitter(draw: int) -> Tensor:
        return uniform((batch, 1), seed, ids, **JITTER.at(draw), device=device)[:, 0].double()

    density = torch.ones(batch, 1, dtype=torch.float64, device=device)
    if pilot:
        seen = [f((j + jitter(draw0 + j)) / bins, draw0 + j) for j in range(bins)]
        density = _density(torch.stack(seen, 1))
    width = 1 / density.shape[1]
    mass = torch.nn.functional.pad((density * width).cumsum(1), (1, 0))
    mass = mass / mass[:, -1:]
    where, shares = [], []
    for k in range(2 * strata):
        draw = draw0 + bins + k
        u = (k // 2 + jitter(draw)) / strata
        j = (mass[:, 1:-1] <= u[:, None]).sum(1, keepdim=True)
        q = density.gather(1, j)[:, 0]
        v = (j[:, 0] + (u - mass.gather(1, j)[:, 0]) / (q * width)) * width
        where.append(v.clamp(0, 1))
        shares.append(f(where[-1], draw) / (q * 2 * strata))
    table = torch.stack(shares, 1)
    variance = (table[:, ::2] - table[:, 1::2]).square().sum(1)
    return Integral(table.sum(1), variance, torch.stack(where, 1), table, bins + 2 * strata)


def _density(seen: Tensor) -> Tensor:
    """q of the pilot's values [B, P], of mean 1 over the bins."""
    square = seen.square()
    around = torch.nn.functional.pad(square[:, None], (1, 1), mode="replicate")[:, 0]
    m = (0.5 * square + 0.25 * (around[:, :-2] + around[:, 2:])).sqrt()
    mean = m.mean(1, keepdim=True)
    q = torch.where(mean > 0, m / mean.clamp(min=1e-300), 1.0)
    return FLOOR + (1 - FLOOR) * q
