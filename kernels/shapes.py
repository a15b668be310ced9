"""One number for each sample, laid against the events of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps", "meta")  # devices that have no float64; meta stands for such a one


def wide(x: Tensor) -> torch.dtype:
    """The dtype of times and sums beside x: float64, or float32 on a device without it."""
    return torch.float32 if x.device.type in WITHOUT_FLOAT64 else torch.float64


def as_float64(values: Any) -> Tensor:
    """Numbers as float64: a tensor where it is, anything else on the host, whatever torch's default
    device is."""
    if isinstance(values, Tensor):
        return values.to(torch.float64)
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def column(c: Tensor, x: Tensor) -> Tensor:
    """c [B] as [B, 1, ...] against x [B, *event]: on x's device, in its dtype, or bool if c is a
    mask. A c without dimensions stays a number, wherever it is."""
    dtype = torch.bool if c.dtype == torch.bool else x.dtype
    if c.ndim == 0:
        return c.to(dtype)
    return c.to(x.device, dtype).reshape(-1, *(1,) * (x.ndim - 1))
