"""How far what a run found is from what it should have found, a number for every start.

The root mean square over an event is the default. A distance between features follows the eye more
than pixels do, and a classifier needs no exact end at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..kernels.errors import InvalidType, InvalidValue

Function = Callable[[Tensor, Tensor], Tensor]


class Distance(ABC):
    """(found, exact, cond) -> [B] float64 or float32 >= 0, with gradients to `found`.

    words: what it is counted in.
    """

    words: ClassVar[str] = "units of the distance"

    @abstractmethod
    def __call__(self, found: Tensor, exact: Tensor, cond: dict[str, Any]) -> Tensor:
        """found, exact: [B, ...]. cond: the conditions of these samples."""

    def unit(self, ends: Tensor) -> float:
        """What errors are divided by; ends: [B, ...] of the exact flow."""
        return 1.0


@dataclass(frozen=True)
class StateRMS(Distance):
    """The root mean square over an event, in standard deviations of the data."""

    words: ClassVar[str] = "deviations of the data"

    def __call__(self, found: Tensor, exact: Tensor, cond: dict[str, Any]) -> Tensor:
        return (found - exact).flatten(1).square().mean(1).sqrt()

    def unit(self, ends: Tensor) -> float:
        return float(ends.double().flatten(1).var(0).mean().sqrt())


@dataclass(frozen=True)
class Features(Distance):
    """The root mean square between features of both, of every layer by itself.

        d = sqrt(mean_l mean_i |f_l(found)_i - f_l(exact)_i|^2)

    net: x [B, ...] -> features [B, ...], or a sequence of them, one a layer.
    unit_channels: whether each feature vector over the channels (dimension 1) is scaled to length
        1 before, as in LPIPS (Zhang et al. 2018).
    """

    net: Callable[[Tensor], Tensor | Sequence[Tensor]]
    unit_channels: bool = False

    def __call__(self, found: Tensor, exact: Tensor, cond: dict[str, Any]) -> Tensor:
        layers = []
        for a, b in zip(self._of(found), self._of(exact), strict=True):
            layers.append((a - b).flatten(1).square().mean(1))
        return torch.stack(layers).mean(0).sqrt()

    def _of(self, x: Tensor) -> list[Tensor]:
        out = self.net(x)
        layers = [out] if isinstance(out, Tensor) else list(out)
        for f in layers:
            if not isinstance(f, Tensor) or len(f) != len(x):
                raise InvalidValue(
                    f"the features must be tensors of {len(x)} rows, one a sample; "
                    f"got {tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__}"
                )
        if self.unit_channels:
            layers = [f / (f.square().sum(1, keepdim=True) + 1e-10).sqrt() for f in layers]
        return layers


@dataclass(frozen=True)
class Classifier(Distance):
    """- log p(label | found): no exact end is asked for (Dual-Solver's objective without a teacher,
    2026). It draws samples to what the classifier is sure of, so mind their variety.

    net: x [B, ...] -> logits [B, classes].
    label: the condition that holds the labels, int64 [B].
    """

    net: Callable[[Tensor], Tensor]
    label: str = "label"

    words: ClassVar[str] = "nats of the classifier"

    def __call__(self, found: Tensor, exact: Tensor, cond: dict[str, Any]) -> Tensor:
        if self.label not in cond:
            known = ", ".join(map(repr, cond)) or "none"
            raise InvalidValue(
                f"the classifier's label {self.label!r} must be one of the conditions; got {known}"
            )
        labels = torch.as_tensor(cond[self.label], device=found.device).long()
        return torch.nn.functional.cross_entropy(self.net(found), labels, reduction="none")


@dataclass(frozen=True)
class Given(Distance):
    """A function (found, exact) -> [B] of the user's own."""

    function: Function

    def __call__(self, found: Tensor, exact: Tensor, cond: dict[str, Any]) -> Tensor:
        off = self.function(found, exact)
        if not isinstance(off, Tensor) or off.shape != (len(found),):
            got = tuple(off.shape) if isinstance(off, Tensor) else type(off).__name__
            raise InvalidValue(f"distance must return a number a sample, [{len(found)}]; got {got}")
        return off


def distance_of(given: Distance | Function | None) -> Distance:
    """Raises TypeError for what is neither a `Distance`, a function nor None."""
    if given is None:
        return StateRMS()
    if isinstance(given, Distance):
        return given
    if not callable(given):
        raise InvalidType(
            f"distance must be a Distance or a function (found, exact) -> [B]; got {given!r}"
        )
    return Given(given)
