"""Memory of a run's earlier steps, written again where nobody holds it any more.

A large allocation is new pages each time, and the first write to them costs more than the step. So
a run hands its results out again; a tensor that anybody else can still reach is never among them,
as the counts of references to it, to its storage and to what torch keeps of it tell.
"""

from __future__ import annotations

import sys
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

WORTH = 1 << 12  # elements: below it the allocator has them at hand
MOST = 12  # tensors of one run

_torch: Any = torch._C
_uses = getattr(_torch, "_storage_Use_Count", None)


def _counts(kept: list[Tensor], i: int) -> tuple[int, ...]:
    """How many hold kept[i]: in Python, in torch, and its storage in both."""
    tensor: Any = kept[i]
    storage = tensor.untyped_storage()
    found = tensor._use_count(), _uses(storage._cdata), sys.getrefcount(storage)  # type: ignore[misc]
    del tensor, storage
    return sys.getrefcount(kept[i]), *found


def _alone() -> tuple[int, ...] | None:
    """The counts of a tensor that the list alone holds; None where this torch does not count."""
    try:
        return _counts([torch.empty(1, dtype=torch.float32, device="cpu")], 0)
    except (AttributeError, TypeError):
        return None


ALONE = _alone()


class Spare:
    """Tensors of one run on a CPU, for the thread that made it."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._next, self._thread = 0, get_ident()

    def like(self, x: Tensor) -> Tensor:
        """Contiguous memory of x's shape and type that nobody else can reach."""
        kept = self._kept
        n = len(kept) if self._thread == get_ident() and ALONE is not None else 0
        for k in range(n):  # from the one that was handed out first
            i = (self._next + k) % n
            if (
                _counts(kept, i) == ALONE
                and kept[i].shape == x.shape
                and kept[i].dtype == x.dtype
                and kept[i].is_inference() == torch.is_inference_mode_enabled()
            ):
                self._next = i + 1
                return kept[i]
        made = torch.empty_like(x, memory_format=torch.contiguous_format)
        if len(kept) < MOST and self._thread == get_ident():
            kept.append(made)
        return made
