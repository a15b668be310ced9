"""A table composed with a network's preconditioning, in the kernel's layout.

The table of `kernels.linear_step` has columns skip, w0, w1, c_in and then the tableau's own. Where
D itself is not needed (no history of it, no clipping) the read-out is folded into the state and
data columns in float64, so that nothing is cancelled in float32 and the kernel adds two terms.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.checks import sent
from ...kernels.errors import RunFailure
from ...kernels.linear_reference import HEAD
from ...models import Denoiser, Process
from ..tables.innovations import as_wide, innovations
from ..tables.spectral import Frame, SpectralTable
from ..tables.tableau import Identity, Tableau


@dataclass(frozen=True, eq=False)
class Plan:
    """What the loop needs, cast once, on the device.

    table: [N, 4 + K + H + M] of the state's type, or [N, 4 + K + H, d] of a spectral table.
    draws: int64 [N, M], or None where no row draws a normal.
    draw0: the index that the draws of this run begin with; see `first_draw`.
    rows: int64 [N], 0 to N - 1.
    each: the same, one tensor [1] for each.
    t_in: [N], what the network is told; never of a half type, since bfloat16 rounds 999 to 1000.
    c_in: [N], scale of the network's input.
    times, skip, scale: [N] floats, where the calls are and D = skip x + scale out.
    start: sigma where the run starts.
    states, datas: lengths of the histories.
    frame: between samples and what the table acts on.
    blocks: lengths of runs of rows whose network calls can be made at once; see `Tableau.blocks`.
    key: of all the numbers above: runs of equal keys are the same run.
    """

    table: Tensor
    draws: Tensor | None
    draw0: int
    rows: Tensor
    each: tuple[Tensor, ...]
    t_in: Tensor
    c_in: Tensor
    times: list[float]
    skip: list[float]
    scale: list[float]
    start: float
    states: int
    datas: int
    frame: Identity | Frame
    blocks: list[int]
    key: str


def compose(
    tableau: Tableau | SpectralTable,
    model: Denoiser,
    device: torch.device,
    dtype: torch.dtype,
    t_dtype: torch.dtype,
) -> Plan:
    """Fold `model`'s read-out at the tableau's times into its columns.

    dtype: the state's.
    t_dtype: of the times that the network is told.
    """
    frame = tableau.frame(model, device, dtype)
    state, data, noise = tableau.state.clone(), tableau.data.clone(), tableau.noise
    skip, scale = model.coefficients("data", tableau.times)
    c_in = model.network_scale(tableau.times)
    readout = skip.tolist(), scale.tolist()
    each = (len(skip), *(1,) * (state.ndim - 2))  # against the columns of numbers or of vectors
    w1 = torch.zeros_like(skip)
    if data.shape[1] == 1 and model.clip is None:
        state[:, 0] += data[:, 0] * skip.reshape(each)
        data[:, 0] *= scale.reshape(each)
        skip, scale = torch.zeros_like(skip), torch.ones_like(scale)
    following = torch.cat([c_in[1:], c_in.new_zeros(1)])
    head = torch.stack([skip, scale, w1, following], 1)
    head = head.reshape(*head.shape, *each[1:]).expand(-1, -1, *state.shape[2:])
    table = torch.cat([head, state, data, noise], 1)
    if table.shape[1] != HEAD + state.shape[1] + data.shape[1] + noise.shape[1]:
        raise RunFailure("the table's layout is not the kernel's")
    draw0 = first_draw(model.process, tableau.grid)
    t_in = model.network_time(tableau.times)
    rows = torch.arange(tableau.nfe, device=device)
    return Plan(
        table=sent(table, device, dtype),
        draws=sent(tableau.draws + draw0, device) if noise.shape[1] else None,
        draw0=draw0,
        rows=rows,
        each=rows[:, None].unbind(),
        t_in=sent(t_in, device, t_dtype),
        c_in=sent(c_in, device, dtype),
        times=tableau.times.tolist(),
        skip=readout[0],
        scale=readout[1],
        start=float(model.process.sigma(tableau.grid[0])),
        states=state.shape[1] - 1,
        datas=data.shape[1] - 1,
        frame=frame,
        blocks=tableau.blocks,
        key=key_of(table, tableau.draws + draw0, t_in, c_in, f"{dtype} {model.clip}"),
    )


def with_memory(table: Tableau | SpectralTable) -> Tableau | SpectralTable:
    """The table with histories as long as the means of its steps need; zeros fill them up."""
    if not isinstance(table, Tableau) or not table.shares_normals:
        return table
    return as_wide(table, innovations(table).mean)


def key_of(table: Tensor, draws: Tensor, t_in: Tensor, c_in: Tensor, kind: str) -> str:
    """A digest of a run's numbers, float64; of a spectral table's columns their sums."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    for part in (table.flatten(2).sum(2) if table.ndim == 3 else table, draws, t_in, c_in):
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def first_draw(process: Process, grid: Tensor) -> int:
    """The draw index that a run on this grid begins with: 0 where it starts at t_max.

    A run that starts lower, as the second piece of a longer one does, must not meet the normals of
    the pieces above it. It counts on from the number of float32 values between its first time and
    t_max, which is more than the draws of any run that fits between them.
    """
    ends = torch.stack([torch.tensor(process.t_max, dtype=torch.float64, device="cpu"), grid[0]])
    top, first = (int(v) for v in ends.float().view(torch.int32))
    return max(0, top - first)
