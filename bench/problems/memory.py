"""How much memory a solver holds beside its network: states alive at once, counted, not timed."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .plans import Plan
from .problem import Problem


def high_water(problem: Problem, plan: Plan, w: Tensor) -> float:
    """Most bytes of states alive at once while the plan runs from w, over the bytes of w.

    A state is any tensor of a whole number of batches, a stored path included; tables of the grid
    are not. The network is replaced by one that halves its input, so its own memory is left out;
    what lives inside one operation (a fused step has nothing there) and NumPy's arrays are not seen.
    """

    def halved(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x * 0.5

    watch = _Watch(w)
    with torch.no_grad(), watch:
        plan.run(replace(problem.model, net=halved), w, problem.seed)
    return watch.most / (w.numel() * w.element_size())


class _Watch(TorchDispatchMode):
    """Counts the bytes of every storage of states that an operation returns, until it is freed."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.most = 0
        self._batch = w.numel()
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._meet(w)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._meet(leaf)
        return out

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.numel() == 0 or tensor.numel() % self._batch or storage in self._known:
            return
        self._known.add(storage)
        self.live += storage.nbytes()
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.live -= size
