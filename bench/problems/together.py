"""Many tables of equal length in one batch: a network is asked once for all of them.

Row i of K tables is one call on K B states, each told its own table's time. Small networks cost
what their calls cost, not what their rows do, so a hundred settings are tried for little more than
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser
from ...solvers.tables.tableau import Tableau

NUMBERS = 2**18
"""Most numbers of a batch: what is larger goes in pieces of whole tables."""


def ends(model: Denoiser, tables: Sequence[Tableau], x: Tensor) -> Iterator[Tensor]:
    """Where each table takes the starts x [B, ...]; in x's type.

    tables: deterministic, of as many calls each, from the same first time.
    Raises ValueError for others.
    """
    if len({t.nfe for t in tables}) > 1 or any(t.stochastic for t in tables):
        raise InvalidValue("tables must be deterministic and make as many calls each")
    if len({float(t.grid[0]) for t in tables}) > 1:
        raise InvalidValue("tables must start at the same time")
    each = max(1, NUMBERS // x.numel())
    for i in range(0, len(tables), each):
        yield from _piece(model, tables[i : i + each], x)


@torch.no_grad()
def _piece(model: Denoiser, tables: Sequence[Tableau], x: Tensor) -> Tensor:
    """[K, B, ...], the ends of these tables."""
    shape = (len(tables), *x.shape)
    state, data = (_stacked(getattr(t, what) for t in tables) for what in ("state", "data"))
    times = torch.stack([t.times for t in tables])
    entry = torch.tensor([t.entry[0] for t in tables], dtype=torch.float64, device="cpu")
    column = (slice(None), *(None,) * x.ndim)
    states, datas = [entry.to(x)[column] * x], list[Tensor]()  # the newest first
    for row in range(times.shape[1]):
        t = times[:, row].repeat_interleave(len(x))
        datas.insert(0, model(states[0].flatten(0, 1), t).reshape(shape))
        new = torch.zeros(shape, dtype=x.dtype, device=x.device)
        for past, weights in ((states, state), (datas, data)):
            for k, held in enumerate(past[: weights.shape[2]]):
                new += weights[:, row, k].to(x)[column] * held
        states.insert(0, new)
        del states[state.shape[2] :], datas[data.shape[2] :]
    return states[0]


def _stacked(columns: Iterator[Tensor]) -> Tensor:
    """[K, N, widest] of coefficients [N, width], padded by 0."""
    held = list(columns)
    wide = max(c.shape[1] for c in held)
    return torch.stack([torch.nn.functional.pad(c, (0, wide - c.shape[1])) for c in held])
