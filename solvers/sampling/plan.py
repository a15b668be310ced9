"""A tableau composed with a network's preconditioning, in the kernel's layout.

The table of `kernels.linear_step` has columns skip, w0, w1, c_in and then the tableau's own. Where
D itself is not needed (no history of it, no clipping) the read-out is folded into the state and
data columns in float64, so that nothing is cancelled in float32 and the kernel adds two terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.checks import sent
from ...kernels.errors import RunFailure
from ...kernels.linear_reference import HEAD
from ...models import Denoiser
from ..tables.spectral import Frame, SpectralTable
from ..tables.tableau import Tableau


@dataclass(frozen=True, eq=False)
class Plan:
    """What the loop needs, cast once, on the device, and cut into rows once.

    table [N, 4 + K + H + M], draws int64 [N, M] or None; t_in: N scalars, c_noise, what the network
    is told (never in a half type: bfloat16 would round 999 to 1000); rows: N indices, int64 [1];
    c_in0: scale of the network's first input; scaled: whether any c_in differs from 1; states,
    datas: lengths of the histories. frame: where the table acts on components, which then does the
    work of c_in.
    """

    table: Tensor
    draws: Tensor | None
    t_in: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]
    c_in0: float
    scaled: bool
    states: int
    datas: int
    frame: Frame | None = None


def compose(
    tableau: Tableau | SpectralTable,
    model: Denoiser,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Plan:
    """Fold `model`'s read-out at the tableau's times into its columns. dtype: the state's."""
    if isinstance(tableau, SpectralTable):
        return _compose_spectral(tableau, model, device, dtype)
    state, data = tableau.state.clone(), tableau.data.clone()
    skip, scale = model.coefficients("data", tableau.times)
    c_in = model.network_scale(tableau.times)
    w1 = torch.zeros_like(skip)
    if data.shape[1] == 1 and model.clip is None:
        state[:, 0] += data[:, 0] * skip
        data[:, 0] *= scale
        skip, scale = torch.zeros_like(skip), torch.ones_like(scale)
    head = [skip, scale, w1, torch.cat([c_in[1:], c_in.new_zeros(1)])]
    table = torch.cat([torch.stack(head, 1), state, data, tableau.noise], 1)
    if table.shape[1] != HEAD + state.shape[1] + data.shape[1] + tableau.noise.shape[1]:
        raise RunFailure("the table's layout is not the kernel's")
    return Plan(
        table=sent(table, device, dtype),
        draws=sent(tableau.draws, device) if tableau.noise.shape[1] else None,
        t_in=sent(model.network_time(tableau.times), device, dtype).unbind(),
        rows=torch.arange(tableau.nfe, device=device)[:, None].unbind(),
        c_in0=float(c_in[0]),
        scaled=bool((c_in != 1).any()),
        states=state.shape[1] - 1,
        datas=data.shape[1] - 1,
    )


def _compose_spectral(
    tableau: SpectralTable, model: Denoiser, device: torch.device | str, dtype: torch.dtype
) -> Plan:
    """The same where every component has columns of its own: table [N, 4 + K + H, d]."""
    skip, scale = model.coefficients("data", tableau.times)
    zero = torch.zeros_like(skip)
    head = torch.stack([skip, scale, zero, zero], 1)[..., None]
    head = head.expand(-1, -1, tableau.state.shape[2])
    return Plan(
        table=sent(torch.cat([head, tableau.state, tableau.data], 1), device, dtype),
        draws=None,
        t_in=sent(model.network_time(tableau.times), device, dtype).unbind(),
        rows=torch.arange(tableau.nfe, device=device)[:, None].unbind(),
        c_in0=1.0,
        scaled=False,
        states=tableau.state.shape[1] - 1,
        datas=tableau.data.shape[1] - 1,
        frame=Frame.of(tableau, model, device, dtype),
    )
