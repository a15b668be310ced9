"""Bits per dimension of digits that the network was not trained on.

The data are levels `spacing` apart. With u uniform in one level's width, E log p(x + u) + d log
spacing is a lower bound on the log probability of the levels (uniform dequantisation, Theis et al.
2016), so bits/dim carries the offset -log2(spacing) = 3 for the digits' 17 levels. The trace is
exact up to EXACT_DIM components (64 products an evaluation for the digits), estimated above.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..models.checkpoint import Checkpoint
from ..models.data import load, split
from ..solvers.likelihood import log_prob
from . import metrics

EXACT_DIM = 128


def held_out(checkpoint: Checkpoint) -> Tensor:
    """Events [M, *event] of the checkpoint's data that its training left out, in its range.

    Its record's "data" says which, "split" how; a split of None means that it saw none of them.
    Raises ValueError where the checkpoint does not say what it was trained on, and what `load`
    raises where that cannot be read here.
    """
    record = checkpoint.training
    if "data" not in record or "split" not in record:
        raise ValueError(
            "the checkpoint does not say which data it was trained on, and how split: name data that "
            "it never saw (--data), or give Checkpoint(training={'data': ..., 'split': None})"
        )
    data = load(record["data"]).to_range(*checkpoint.data_range)
    return data.x if record["split"] is None else split(data.x, **record["split"])[1]


def dequantised(x: Tensor, spacing: float, seed: int) -> Tensor:
    """x + U(-spacing/2, spacing/2): a density for data that have levels."""
    if not spacing:
        return x
    g = torch.Generator().manual_seed(seed)
    return x + spacing * (torch.rand(x.shape, generator=g) - 0.5)


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
    e = metrics.mean_interval(found.bits_per_dim.cpu(), seed=seed)
    calls = found.nfe if isinstance(found.nfe, int) else int(found.nfe.max())
    return {
        "bits_per_dim": e.value, "lo": e.lo, "hi": e.hi, "count": len(x), "nfe": calls,
        "trace": "exact" if exact else "estimated", "offset": offset, "t_min": found.t_min, "blur": found.blur,
    }  # fmt: skip
