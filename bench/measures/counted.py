"""Which samples a statistic has counted: each id once, whoever counted it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue


class Counted:
    """Ids as stretches [first, last + 1), rising: a few numbers however many samples there are."""

    def __init__(self) -> None:
        self.stretches: list[tuple[int, int]] = []

    def batch(
        self, features: Any, ids: Tensor | Sequence[int] | None, size: int
    ) -> tuple[Tensor, Tensor]:
        """A batch that is checked and entered: features [n, k] and ids [n], on the CPU.

        ids: None: those after the largest so far.
        size: what k must be; 0: whatever comes.

        Raises ValueError and TypeError for what does not fit.
        """
        f = rows_of("features", features)
        if size and f.shape[1] != size:
            raise InvalidValue(f"features must be [n, {size}]; got {list(f.shape)}")
        if ids is None:
            first = self.stretches[-1][1] if self.stretches else 0
            where = torch.arange(first, first + len(f), device="cpu")
        else:
            where = torch.as_tensor(ids).cpu()
        if where.dtype != torch.int64 or where.shape != f.shape[:1]:
            raise InvalidValue(
                f"ids must be int64 [{len(f)}], one a row of features; got {where.dtype} "
                f"{tuple(where.shape)}"
            )
        if int(where.min()) < 0:
            raise InvalidValue(f"ids must be >= 0; got {int(where.min())}")
        rising = where.sort().values
        cuts = (rising.diff() != 1).nonzero().flatten() + 1
        parts = torch.tensor_split(rising, cuts)
        self._enter([(int(part[0]), int(part[-1]) + 1) for part in parts])
        return f, where

    def join(self, other: Counted) -> None:
        """Enter what another counted."""
        self._enter(other.stretches)

    def _enter(self, new: list[tuple[int, int]]) -> None:
        out: list[tuple[int, int]] = []
        for a, b in sorted(self.stretches + new):
            if out and a < out[-1][1]:
                raise InvalidValue(f"ids must be new, each sample counts once; {a} came before")
            if out and a == out[-1][1]:
                out[-1] = (out[-1][0], b)
            else:
                out.append((a, b))
        self.stretches = out


def rows_of(name: str, value: Any) -> Tensor:
    """Finite rows [n, k], float32 or float64, on the CPU."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InvalidType(f"{name} must be a floating tensor [n, k]; got {kind}")
    if value.ndim != 2 or not value.numel():
        raise InvalidValue(f"{name} must be [n, k] with n, k >= 1; got {tuple(value.shape)}")
    bad = int((~torch.isfinite(value)).any(1).sum())
    if bad:
        raise InvalidValue(f"{name} must be finite; {bad} of {len(value)} rows are not")
    rows: Tensor = value.detach().cpu()
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
