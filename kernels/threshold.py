"""Dynamic thresholding: each sample clipped at a quantile of its own magnitudes."""

import math

import torch
from torch import Tensor

from . import dispatch
from .checks import check_operands
from .errors import InvalidValue
from .linear_reference import compute_dtype


def _place(ratio: float, n: int) -> tuple[int, float]:
    """The quantile's place among n sorted values: rank below (from 0) and share of the next."""
    position = ratio * (n - 1)
    rank = min(math.floor(position), n - 1)
    return rank, position - rank


def _reference(x: Tensor, ratio: float, maximum: float) -> Tensor:
    """clamp(x, -s, s) / s, s the quantile of |x| clamped to [1, maximum]; by selection, no sort."""
    dtype = compute_dtype(x)
    flat = x.reshape(x.shape[0], -1).to(dtype)
    n = flat.shape[1]
    rank, share = _place(ratio, n)
    magnitude = flat.abs()
    below = magnitude.kthvalue(rank + 1, dim=1, keepdim=True).values
    above = magnitude.kthvalue(min(rank + 2, n), dim=1, keepdim=True).values
    s = (below + (above - below) * share).clamp(1.0, maximum)
    return (torch.minimum(torch.maximum(flat, -s), s) / s).view(x.shape).to(x.dtype)


def _check(x: Tensor, ratio: float, maximum: float) -> None:
    check_operands(x)
    if not 0 <= ratio <= 1:
        raise InvalidValue(f"ratio must be in [0, 1]; got {ratio}")
    if not maximum >= 1:
        raise InvalidValue(f"maximum must be at least 1; got {maximum}")
    if not x.numel():
        raise InvalidValue(f"x must not be empty; got {list(x.shape)}")


_threshold = dispatch.define(
    "dynamic_threshold",
    "(Tensor x, float ratio, float maximum) -> Tensor",
    reference=_reference,
    triton="triton_threshold:dynamic_threshold",
    fake=dispatch.like,
    check=_check,
)


def dynamic_threshold(data: Tensor, ratio: float = 0.995, maximum: float = math.inf) -> Tensor:
    """clamp(D, -s, s) / s, s = max(1, ratio-quantile of |D|) per sample, at most `maximum`.

    data: D, [B, ...], floating, of any size.
    ratio: in [0, 1], linear between order statistics as in torch.quantile.
    maximum: of s, >= 1.
    Returns D's shape and dtype; arithmetic is float32 (float64 for float64). No gradient flows.
    Raises ValueError for a ratio outside [0, 1] or a maximum below 1.
    Saharia et al., "Imagen", NeurIPS 2022, section 2.3.
    """
    check_operands(data)
    if not 0 <= ratio <= 1:
        raise InvalidValue(f"ratio must be in [0, 1]; got {ratio}")
    if not maximum >= 1:
        raise InvalidValue(f"maximum must be at least 1; got {maximum}")
    if data.numel() == 0:
        return data.clone()
    out: Tensor = _threshold(data, ratio, maximum)
    return out
