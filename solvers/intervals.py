"""Values with 95 % intervals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 500  # of a bootstrap


class Estimate(NamedTuple):
    """A value with the ends of its 95 % interval."""

    value: float
    lo: float
    hi: float

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals share a point: then the two values are not ranked."""
        return self.lo <= other.hi and other.lo <= self.hi


def mean_interval(values: Tensor, seed: int = 0) -> Estimate:
    """Mean with its bootstrap percentile interval of 95 %.

    Of 16 skewed values the interval holds the mean in about nine cases of ten.

    values: [n].
    seed: of the resampling.
    """
    values = values.double().flatten()
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (RESAMPLES, len(values)), generator=g, device="cpu")
    means = values[index].mean(1)
    lo, hi = torch.quantile(
        means, torch.tensor([0.025, 0.975], dtype=torch.float64, device="cpu")
    ).tolist()
    return Estimate(float(values.mean()), lo, hi)
