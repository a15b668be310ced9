"""Data that a network was not trained on, and their bits per dimension.

Levels are `spacing` apart and dequantised uniformly, so bits/dim carry the offset -log2(spacing) = 3
for the digits' 17 levels. The trace is exact up to EXACT_DIM components (64 products an evaluation
for the digits), estimated above.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...models.checkpoint import Checkpoint
from ...models.dequantize import dequantised
from ...solvers.intervals import mean_interval
from ...solvers.likelihood.log_prob import log_prob

EXACT_DIM = 128


def bits_per_dim(
    checkpoint: Checkpoint, x: Tensor, count: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Mean bits/dim of the first `count` events of x [M, *event], its 95 % interval over events.

    Returns bits_per_dim, lo, hi, count, nfe, trace, offset (bits added for the levels), t_min and
    blur (where time is cut off, and the noise left there).
    """
    spacing = checkpoint.spacing
    x = dequantised(x[:count], spacing, seed)
    offset = -math.log2(spacing) if spacing else 0.0
    exact = x[0].numel() <= EXACT_DIM
    how: dict[str, Any] = {"trace": "exact", "rtol": 1e-4, "atol": 1e-4} if exact else {}
    model = checkpoint.denoiser
    if isinstance(model.net, torch.nn.Module):
        x = x.to(next(model.net.parameters(), x).device)
    found = log_prob(model, x, offset=offset, t_min=model.t_min, **how)  # not trained below
    e = mean_interval(found.bits_per_dim.cpu(), seed=seed)
    calls = found.nfe if isinstance(found.nfe, int) else int(found.nfe.max())
    return {
        "bits_per_dim": e.value, "lo": e.lo, "hi": e.hi, "count": len(x), "nfe": calls,
        "trace": "exact" if exact else "estimated", "offset": offset, "t_min": found.t_min, "blur": found.blur,
    }  # fmt: skip
