"""A run in a file: the table, and all that a loop in any language needs besides.

    x_0     = start_sigma z(start_stream),  then  x_0 <- a x_0 + c z(entry_stream), entry = (a, c)
    D_i     = skip[i] x_i + scale[i] net(c_in[i] x_i, t_in[i]),  clamped to `clip`
    x_{i+1} = sum_k state[i,k] x_{i-k} + sum_h data[i,h] D_{i-h}
              + sum_m noise[i,m] z(rows_tag, draw0 + draws[i,m])

A table over components does the same with u = Q^T (x - alpha m); docs/export.md has both loops and
every key, docs/noise-format.md the normals z.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.streams import ENTRY, INITIAL, ROWS, Stream, tag_of
from ...models import Denoiser
from ...models.bases import Leading
from ...models.processes import registry
from ..tables.files import suffix_of, write_record
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau

NOISE_FORMAT = "undiffuse-philox-1"
NOISE_LAYOUT = (
    "Philox4x32-10; key = low, high word of the seed; counter = element // 4, low word of the "
    "sample id, draw, tag | high 16 bits of the sample id << 16; lane = element % 4; lanes 2j, "
    "2j + 1 = sqrt(-2 ln u) (sin, cos)(2 pi v), u and v = (word + 1/2) 2^-32 of words 2j and 2j + 1"
)


def run_record(
    table: Tableau | SpectralTable, model: Denoiser, draw0: int, dtypes: dict[str, torch.dtype]
) -> dict[str, Any]:
    """The table's record and what a run with this model needs; every number in float64.

    draw0: added to the draw indices of the table; see `first_draw`.
    dtypes: of 'state' and 'network', as this run has them; a reader may take others.
    Raises ValueError for a model of another process, or a read-out that is not finite.
    """
    table.check(model.process)
    skip, scale = model.coefficients("data", table.times)
    told = {
        "t_in": model.network_time(table.times),
        "c_in": model.network_scale(table.times),
        "skip": skip,
        "scale": scale,
    }
    for name, values in told.items():
        if not bool(torch.isfinite(values).all()):
            raise InvalidValue(f"{name} must be finite at every call to be written; got {values}")
    falls = bool(table.grid[0] > table.grid[-1])
    made = {
        **table.record(),
        **{name: values.detach().tolist() for name, values in told.items()},
        "clip": None if model.clip is None else list(model.clip),
        "predicts": model.predicts,
        "time": model.time if isinstance(model.time, str) else "custom",
        "train_steps": model.steps,
        "starts_from": "noise" if falls else "data",
        "start_sigma": float(model.process.sigma(table.grid[0])),
        "noise_format": NOISE_FORMAT,
        "noise_layout": NOISE_LAYOUT,
        "start_stream": _place(INITIAL),
        "entry_stream": _place(ENTRY, draw0),
        "rows_tag": _place(ROWS)[0],
        "draw0": draw0,
        **{f"{name}_dtype": str(t).removeprefix("torch.") for name, t in dtypes.items()},
    }
    if isinstance(table, SpectralTable):
        made |= _frame(table, model)
    return made | {"process": _process(model)}  # last: its keys are its own


def export(
    path: str | Path,
    table: Tableau | SpectralTable,
    model: Denoiser,
    draw0: int,
    dtypes: dict[str, torch.dtype],
) -> Path:
    """Write `run_record` to a .json or .npz; returns the path. Raises ValueError for another."""
    suffix_of(path)
    return write_record(path, run_record(table, model, draw0, dtypes))


def _place(stream: Stream, draw0: int = 0) -> list[int]:
    """[tag, draw] of the counter."""
    place = stream.at()
    return [tag_of(place["purpose"], place["subdraw"]), place["draw"] + draw0]


def _frame(table: SpectralTable, model: Denoiser) -> dict[str, Any]:
    """What takes samples to components; the basis of leading directions as I - W T W^T."""
    alpha, shift = table.means(model)
    q = table.stats.q
    w: tuple[Tensor | None, Tensor | None] = q.factors if isinstance(q, Leading) else (None, None)
    return {
        "frame_alpha": alpha.detach().tolist(),
        "frame_shift": shift.detach().tolist(),
        "basis_w": None if w[0] is None else w[0].tolist(),
        "basis_t": None if w[1] is None else w[1].tolist(),
    }


def _process(model: Denoiser) -> dict[str, Any] | None:
    """{'name', 'args'}, or None for a process that has no name; a run needs it not."""
    try:
        return registry.to_dict(model.process)
    except InvalidValue:
        return None
