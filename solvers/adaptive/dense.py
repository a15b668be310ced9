"""x(t) between the steps of an adaptive run: one polynomial a step, looked up sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.shapes import wide


class Recorder:
    """Collects the accepted steps of a run (see `adaptive_ode`)."""

    def __init__(self, x0: Tensor) -> None:
        self.x0 = x0
        self.rows: list[Tensor] = []
        self.start: list[Tensor] = []
        self.h: list[Tensor] = []
        self.pieces: list[Tensor] = []

    def add(self, accept: Tensor, rows: Tensor, t: Tensor, h: Tensor, piece: list[Tensor]) -> None:
        """Keep x(t + theta h) = sum_p theta^p piece[p] of the accepted steps."""
        self.rows.append(rows[accept])
        self.start.append(t[accept])
        self.h.append(h[accept])
        self.pieces.append(torch.stack(piece, 1)[accept])

    def path(self) -> DensePath:
        batch, x0 = len(self.x0), self.x0
        if not self.rows:
            none = torch.zeros(batch, 0, dtype=wide(x0), device=x0.device)
            return DensePath(x0[:, None], none, none, x0)
        rows = torch.cat(self.rows)
        order = torch.sort(rows, stable=True).indices  # by sample, steps in the order taken
        counts = torch.bincount(rows, minlength=batch)
        place = (
            torch.arange(len(rows), dtype=torch.int64, device=rows.device)
            - (counts.cumsum(0) - counts)[rows[order]]
        )
        size = (batch, int(counts.max()))
        start = torch.full(size, torch.nan, dtype=self.start[0].dtype, device=rows.device)
        h, index = start.clone(), torch.zeros_like(start, dtype=torch.int64)
        start[rows[order], place] = torch.cat(self.start)[order]
        h[rows[order], place] = torch.cat(self.h)[order]
        index[rows[order], place] = order
        return DensePath(torch.cat(self.pieces), start, h, x0, index)


class DensePath:
    """path(t): x at times t, [J] for all samples or [B, J] for each; [B, J, *event].

    Between the ends of a sample's run it is the step's interpolant; outside, the nearest step's
    polynomial goes on. path.slope(t) is its derivative dx/dt.
    """

    def __init__(
        self, pieces: Tensor, start: Tensor, h: Tensor, x0: Tensor, index: Tensor | None = None
    ) -> None:
        self._pieces, self._start, self._h, self._x0, self._index = pieces, start, h, x0, index

    @property
    def start(self) -> Tensor:
        """Where each sample's steps begin, float64 [B, P], NaN where a sample took fewer."""
        return self._start

    @property
    def h(self) -> Tensor:
        """Their sizes, float64 [B, P], NaN likewise."""
        return self._h

    def __call__(self, t: Tensor) -> Tensor:
        return self._evaluate(t, slope=False)

    def slope(self, t: Tensor) -> Tensor:
        return self._evaluate(t, slope=True)

    def _evaluate(self, t: Tensor, slope: bool) -> Tensor:
        batch, event = len(self._x0), self._x0.shape[1:]
        t = torch.as_tensor(t, dtype=wide(self._x0), device=self._x0.device)
        t = t.expand(batch, -1) if t.ndim == 1 else t
        if t.ndim != 2 or len(t) != batch:
            raise InvalidValue(f"t must be [J] or [{batch}, J]; got {tuple(t.shape)}")
        if self._index is None:
            still = self._x0[:, None].expand(batch, t.shape[1], *event)
            return torch.zeros_like(still) if slope else still.clone()
        steps = (~torch.isnan(self._h)).sum(1, keepdim=True)
        sign = torch.nan_to_num(self._h[:, :1]).sign()
        # the last step that starts at or before t, in the direction of the run
        passed = (sign[..., None] * self._start[:, None] <= (sign * t)[..., None]).sum(2)
        step = (passed - 1).clamp(min=0).minimum((steps - 1).clamp(min=0))
        h = self._h.gather(1, step)
        theta = (t - self._start.gather(1, step)) / h
        piece = self._pieces[self._index.gather(1, step)]  # [B, J, q + 1, *event]
        x = torch.zeros_like(piece[:, :, 0])
        q = piece.shape[2] - 1
        column = theta.to(x.dtype).reshape(*theta.shape, *(1,) * len(event))
        for p in range(q, 0 if slope else -1, -1):  # Horner
            x = x * column + (p if slope else 1) * piece[:, :, p]
        if slope:
            x = x / h.to(x.dtype).reshape(column.shape)
        nowhere = (steps == 0).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(nowhere, self._x0[:, None] * (0.0 if slope else 1.0), x)
