"""Conditions: what a network is told beside x and t, as trees whose leaves may belong to samples.

A tree is any nesting of dicts, lists, tuples, named tuples and dataclasses. Its leaves are

    a tensor or array of length B     a row for each sample: rows follow their samples
    a tensor or array of length 1     shared by all samples, as is one without dimensions
    `shared(value)`                   shared by all samples, whatever its length
    anything else                     numbers, text, None, modules: shared

and a tensor or array of another length is refused, by its path in the tree.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.errors import InvalidType, InvalidValue

Leaf = Callable[[Any, str], Any]
"""(leaf, path) -> what stands in its place."""


class Shared:
    """A condition, or a part of one, that all samples share; made by `shared`."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        kind = type(self.value).__name__
        size = f" {tuple(self.value.shape)}" if _has_rows(self.value) else ""
        return f"shared({kind}{size})"


def shared(value: Any) -> Shared:
    """Mark a condition, or a part of one, as the same for all samples of a batch.

        ud.log_prob(model, x, cond={"context": ud.shared(context)})

    value: handed to the network as it is. Needed for tensors and arrays that are longer than 1:
        their first dimension would be taken for the samples'.
    """
    return value if isinstance(value, Shared) else Shared(value)


def check(cond: Any, batch: int, name: str = "cond") -> None:
    """Raise ValueError for a leaf that neither has `batch` rows nor is shared, naming its path."""

    def leaf(value: Any, path: str) -> Any:
        if isinstance(value, Iterator | AbstractSet | deque) or not _is_dense(value):
            kind = value.layout if isinstance(value, Tensor) else type(value).__name__
            raise InvalidType(
                f"{path} is {kind}, whose rows cannot be told: hand in a dense tensor, a list or a "
                "dict, or mark it as the same for all, ud.shared(...)"
            )
        if _has_rows(value) and value.shape[0] not in (1, batch):
            raise InvalidValue(
                f"{path} has length {len(value)} and the batch has {batch} samples: give it a row "
                f"for each sample or length 1, or mark it as the same for all, ud.shared(...)"
            )
        return value

    try:
        walk(leaf, cond, name)
    except RecursionError:
        raise InvalidValue(f"{name} holds itself: hand in a tree without circles") from None


def refuse_rows(cond: Any) -> None:
    """Raise ValueError for a leaf that is longer than 1 and not marked, naming its path."""

    def leaf(value: Any, path: str) -> Any:
        if _has_rows(value) and len(value) != 1:
            raise InvalidValue(
                f"{path} of the Denoiser has length {len(value)}, which may be the samples' rows "
                "or the same for all: hand rows to the call, cond={...}, or mark it, ud.shared(...)"
            )
        return value

    walk(leaf, cond, "cond")


def named(cond: Any) -> dict[str, Any]:
    """`cond` as a dict; None is none. Raises TypeError for what is no mapping of names."""
    if cond is None:
        return {}
    if not isinstance(cond, Mapping) or not all(isinstance(key, str) for key in cond):
        raise InvalidType(
            "cond must be a dict of keyword arguments for the network, e.g. {'label': labels}; "
            f"got {type(cond).__name__}"
        )
    return dict(cond)


def rows(cond: Any, index: Tensor, batch: int) -> Any:
    """The conditions of the samples `index` (int64 [n]) out of `batch`; what is shared stays."""

    def leaf(value: Any, path: str) -> Any:
        if not _has_rows(value) or value.shape[0] != batch or batch == 1:
            return value
        if isinstance(value, Tensor):
            return value[index.to(value.device)]
        return value[index.cpu().numpy()]

    return walk(leaf, cond)


def plain(cond: dict[str, Any]) -> dict[str, Any]:
    """The same without the marks of `shared`: what the network is handed."""
    return {
        key: value if type(value) is Tensor else walk(_unmarked, value)
        for key, value in cond.items()
    }


def mapped(fn: Callable[[Tensor], Tensor], cond: Any) -> Any:
    """The tree with fn of every tensor, marked ones too."""

    def leaf(value: Any, path: str) -> Any:
        if isinstance(value, Shared):
            return Shared(walk(leaf, value.value, path))
        return fn(value) if isinstance(value, Tensor) else value

    return walk(leaf, cond)


def moved(cond: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Tensors moved or cast as `torch.Tensor.to` does it; integers are not cast."""
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)

    def to(value: Tensor) -> Tensor:
        kind = dtype if value.is_floating_point() else None
        return value.to(device, kind, non_blocking)

    found: dict[str, Any] = mapped(to, cond)
    return found


def joined(a: Any, b: Any, batch: int) -> Any:
    """One tree of 2 B rows, those of `a` and then those of `b`; raises `CannotJoin`.

    Leaves of equal kind, type and trailing shape are joined; numbers, text and marked leaves must
    be the same in both.
    """
    return stacked([a, b], [batch, batch])


def stacked(trees: Sequence[Any], sizes: Sequence[int]) -> Any:
    """One tree of the rows of all trees, of so many samples each; raises `CannotJoin` as `joined`.

    A leaf of length 1, which all samples of its own tree share, is repeated for each of them.
    """
    a = trees[0]
    if isinstance(a, Shared) or not _has_rows(a):
        inner = None if isinstance(a, Shared) else _children(a)
        if inner is None:
            if all(a is b or _same(a, b) for b in trees[1:]):
                return a
            raise CannotJoin
        parts = [_children(b) for b in trees]
        fits = [p is not None and list(p) == list(inner) for p in parts]
        if not all(fits) or any(type(b) is not type(a) for b in trees):
            raise CannotJoin
        rows = {key: stacked([p[key] for p in parts if p is not None], sizes) for key in inner}
        return _rebuilt(a, rows)
    if a.shape[0] == 1 and all(b is a for b in trees):
        return a
    for v, size in zip(trees, sizes, strict=True):
        if not isinstance(v, Tensor) or v.ndim == 0 or not isinstance(a, Tensor):
            raise CannotJoin
        if v.shape[1:] != a.shape[1:] or (v.dtype, v.device) != (a.dtype, a.device):
            raise CannotJoin
        if v.shape[0] not in (1, size):
            raise CannotJoin
    return torch.cat([v.expand(n, *v.shape[1:]) for v, n in zip(trees, sizes, strict=True)])


def together(trees: Sequence[Any], sizes: Sequence[int]) -> list[tuple[list[int], Any]]:
    """The trees in as few groups as can be stacked: (which of them, their tree) for each group."""
    groups: list[list[int]] = []
    for i, tree in enumerate(trees):
        for group in groups:
            try:  # the first of a group stands for all
                stacked([trees[group[0]], tree], [sizes[group[0]], sizes[i]])
            except CannotJoin:
                continue
            group.append(i)
            break
        else:
            groups.append([i])
    return [(g, stacked([trees[i] for i in g], [sizes[i] for i in g])) for g in groups]


class CannotJoin(Exception):
    """Two trees of conditions have no common batch."""


def walk(leaf: Leaf, value: Any, path: str = "cond") -> Any:
    """The tree with every leaf replaced; parts in which nothing changes stay the same objects."""
    inner = _children(value)
    if inner is None:
        return leaf(value, path)
    changed = {key: walk(leaf, part, path + _step(value, key)) for key, part in inner.items()}
    if all(changed[key] is part for key, part in inner.items()):
        return value
    return _rebuilt(value, changed)


def length(leaf: Any) -> int:
    """Rows of a tensor or array with dimensions; 1 of anything else."""
    return leaf.shape[0] if _has_rows(leaf) else 1


def _unmarked(value: Any, path: str) -> Any:
    return value.value if isinstance(value, Shared) else value


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def _is_dense(value: Any) -> bool:
    return not isinstance(value, Tensor) or (value.layout == torch.strided and not value.is_nested)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Shared) and isinstance(b, Shared):
        return a.value is b.value
    simple = (int, float, complex, str, bytes, bool, type(None))
    return isinstance(a, simple) and type(a) is type(b) and a == b


def _children(value: Any) -> dict[Any, Any] | None:
    """The parts of a container by key, index or field; None for a leaf."""
    if isinstance(value, Tensor | str | nn.Module | type):
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return None


def _step(value: Any, key: Any) -> str:
    return f".{key}" if is_dataclass(value) and not isinstance(value, Mapping) else f"[{key!r}]"


def _rebuilt(value: Any, parts: dict[Any, Any]) -> Any:
    """A container like `value` of these parts."""
    if isinstance(value, tuple):
        made = parts.values()
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if type(value) in (dict, list):
        return parts if isinstance(value, dict) else list(parts.values())
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return type(value)(parts)  # type: ignore[call-arg]
    again = copy.copy(value)
    for key, part in parts.items():
        if isinstance(value, Mapping | list):
            again[key] = part
        else:
            object.__setattr__(again, key, part)
    return again
