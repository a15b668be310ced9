"""A network that is always asked about the same number of samples.

Matrix products and convolutions round a row differently in a batch of another size. Asked in
blocks of a fixed size, at the same place of which a sample always stands, a network gives it the
same bits in every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...models import Denoiser, conditions


def in_blocks(model: Denoiser, rows: int) -> Denoiser:
    """The denoiser whose networks are asked about `rows` samples at a time."""

    def change(net: Callable[..., Any]) -> Callable[..., Any]:
        made = _Module(net, rows) if isinstance(net, nn.Module) else _Function(net, rows)
        return made

    return model.map(change)


class _Function:
    def __init__(self, net: Callable[..., Any], rows: int) -> None:
        self.net, self.rows = net, rows

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        return _asked(self.net, self.rows, x, t, cond)


class _Module(nn.Module):
    def __init__(self, net: nn.Module, rows: int) -> None:
        super().__init__()
        self.net, self.rows = net, rows
        self.training = net.training  # train() would change the parts, too

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        return _asked(self.net, self.rows, x, t, cond)


def _asked(net: Callable[..., Any], rows: int, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Any:
    if len(x) <= rows:
        return net(x, t, **cond)
    outs = []
    for first in range(0, len(x), rows):
        index = torch.arange(first, min(first + rows, len(x)), device=x.device)
        own = conditions.rows(cond, index, len(x))
        outs.append(net(x[first : first + rows], t[first : first + rows], **own))
    # what is no tensor is refused by whoever called
    return torch.cat(outs) if all(isinstance(out, Tensor) for out in outs) else outs[0]
