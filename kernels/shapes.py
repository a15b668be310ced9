"""One number for each sample, laid against the events of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def column(c: Tensor, x: Tensor) -> Tensor:
    """c [B] as [B, 1, ...] against x [B, *event]: in x's dtype, or bool if c is a mask."""
    c = c if c.dtype == torch.bool else c.to(x.dtype)
    return c.reshape(-1, *(1,) * (x.ndim - 1))
