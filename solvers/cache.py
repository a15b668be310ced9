"""What was planned before, found again by the values it was made of.

A plan depends on the solver, the grid, the process, the read-out and where it goes. All of these
are small values, so a second `Sampler` of the same kind takes the first one's plan. A key holds the
values themselves, never an object's identity: a process that was changed in place makes another
key. What cannot be told by value is planned anew each time: networks, functions, what learns, long
tensors and classes from outside this package.
"""

from __future__ import annotations

import threading
from abc import ABCMeta
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..kernels import dispatch

T = TypeVar("T")
MOST = 32  # plans kept
LONG = 16  # numbers from which a sequence is compared as bytes
LONGEST = 1 << 16  # elements of a tensor that is compared by value, or kept
_PLAIN = {int, float, str, bool, bytes, type(None), type, ABCMeta, torch.dtype, torch.device}
_OURS = __name__.partition(".")[0] + "."


class Unknown(Exception):
    """A value that nothing can be found by."""


def value(v: Any) -> Hashable:
    """Equal for equal values and for no others. Raises Unknown."""
    kind = type(v)
    if kind in _PLAIN:
        return kind, v
    if kind in (tuple, list):
        return _sequence(v)
    if kind is Tensor or kind is np.ndarray:
        return _numbers(v)
    parts = getattr(v, "__dict__", None)
    if parts is None or not kind.__module__.startswith(_OURS) or isinstance(v, torch.nn.Module):
        raise Unknown
    return kind, *[(name, value(part)) for name, part in parts.items()]


_long: dict[int, tuple[tuple[float, ...], Hashable]] = {}  # tuples of numbers never change


def _sequence(v: Any) -> Hashable:
    kept = _long.get(id(v))
    if kept is not None and kept[0] is v:
        return kept[1]
    if len(v) < LONG or set(map(type, v)) != {float}:
        return type(v), tuple(map(value, v))
    found = type(v), array("d", v).tobytes()
    if type(v) is tuple:
        if len(_long) >= MOST:
            _long.clear()
        _long[id(v)] = v, found
    return found


def _numbers(v: Any) -> Hashable:
    if isinstance(v, Tensor):
        if v.device.type != "cpu" or v.requires_grad or v.layout != torch.strided:
            raise Unknown
        if v.dtype == torch.bfloat16:
            raise Unknown  # numpy has none
        v = v.numpy()
    if v.size > LONGEST or v.dtype == object:
        raise Unknown
    return v.dtype.str, v.shape, v.tobytes()


class Cache:
    """The results kept last, with the writes that torch has counted for their tensors: one that was
    written to since is made again."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, list[tuple[Tensor, int]]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def get(self, parts: tuple[Any, ...], device: torch.device, make: Callable[[], T]) -> T:
        """make(), or what it gave for equal parts.

        device: where its tensors are. Those of one stream are not handed to another, and none are
        kept that a trace, a capture or a transform has made.
        """
        if not _ordinary(device):
            return make()
        try:
            where = _stream(device), torch.is_inference_mode_enabled()
            key = (where, value(device), *map(value, parts))
        except Unknown:
            return make()
        with self._lock:
            found = self._kept.get(key)
            for t, writes in found[1] if found is not None else ():
                if t._version != writes:
                    found = None
            if found is not None:
                self._kept.move_to_end(key)
                kept: T = found[0]
                return kept
        made = make()
        all_of_it = _tensors(made)
        bases = {id(t) for t in all_of_it}
        tensors = [t for t in all_of_it if id(t._base) not in bases]  # views count with their base
        if sum(t.numel() for t in tensors) <= LONGEST and not any(
            t.is_inference() for t in tensors
        ):
            with self._lock:
                self._kept[key] = made, [(t, t._version) for t in tensors]
                self._kept.move_to_end(key)
                while len(self._kept) > self.most:
                    self._kept.popitem(last=False)
        return made


def _ordinary(device: torch.device) -> bool:
    """Whether tensors made now are memory that stays."""
    if not dispatch.unobserved():
        return False
    return device.type == "cpu" or (
        device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    )


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _tensors(made: Any) -> list[Tensor]:
    """All tensors of results that are tuples of tensors and objects that hold some."""
    if isinstance(made, Tensor):
        return [made]
    parts = made if isinstance(made, tuple) else getattr(made, "__dict__", {}).values()
    return [t for part in parts if type(part) not in _PLAIN for t in _tensors(part)]


PLANS = Cache()
