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

from ...kernels.errors import InvalidValue
from ...models.checkpoint import Checkpoint
from ...models.data.formats import stream
from ...models.data.sets import load, split_indices
from ...models.data.sources import Source
from ...solvers.likelihood.bits import dequantised
from ...solvers.likelihood.log_prob import log_prob
from ..measures import metrics

EXACT_DIM = 128


def unseen(checkpoint: Checkpoint) -> Source:
    """The events of the checkpoint's data that its training left out, not yet read.

    Its record's "data" says which, "split" how; a split of None means that it saw none of them.
    Raises ValueError where the checkpoint does not say what it was trained on, FileNotFoundError
    where that is not here, and what `stream` raises.
    """
    record = checkpoint.training
    if "data" not in record or "split" not in record:
        raise InvalidValue(
            "the checkpoint does not say which data it was trained on, and how split: name data that "
            "it never saw (--data), or give Checkpoint(training={'data': ..., 'split': None})"
        )
    try:
        source = stream(record["data"])
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the network was trained on {record['data']!r}, which is not here: name data that it "
            "never saw, or run where they lie"
        ) from None
    if record["split"] is None:
        return source
    held = split_indices(len(source), **record["split"])[1].tolist()
    if not held:
        raise InvalidValue(f"the training left out nothing of {record['data']!r}: name other data")
    return source.subset(held)


def held_out(checkpoint: Checkpoint) -> Tensor:
    """All of `unseen` [M, *event], float32, in the network's range."""
    return load(unseen(checkpoint)).to_range(*checkpoint.data_range).x


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
