"""A table from a sampler written as ordinary code: the code runs once, on symbols.

    run = Trace()
    x = run.start
    for t, s in pairs:
        x, d = run.call(x, t)              # the state that the network is called on, and D there
        x = a * x + b * d + c * run.normal()
    table = run.table(x, grid, "mine")

Every state of a published sampler is a combination of earlier states, predictions and normals, so
what its own lines compute on symbols are the columns of its table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from .tableau import Tableau

Symbol = tuple[Literal["x", "D", "z"], int]
START: Symbol = ("x", -1)


@dataclass(frozen=True)
class Linear:
    """A combination of states, predictions and normals, by symbol."""

    terms: Mapping[Symbol, float]

    def __add__(self, other: Linear) -> Linear:
        made = dict(self.terms)
        for symbol, c in other.terms.items():
            made[symbol] = made.get(symbol, 0.0) + c
        return Linear(made)

    def __mul__(self, factor: float) -> Linear:
        return Linear({symbol: float(factor) * c for symbol, c in self.terms.items()})

    __rmul__ = __mul__

    def __sub__(self, other: Linear) -> Linear:
        return self + (-1.0) * other

    def __truediv__(self, divisor: float) -> Linear:
        return self * (1.0 / float(divisor))


class Trace:
    """The calls and normals of one run on symbols."""

    def __init__(self) -> None:
        self.start = Linear({START: 1.0})
        self._told: list[float] = []
        self._values: list[Linear] = []
        self._normals = 0

    def normal(self) -> Linear:
        """A fresh normal."""
        self._normals += 1
        return Linear({("z", self._normals): 1.0})

    def call(self, x: Linear, t: float) -> tuple[Linear, Linear]:
        """The state as the table knows it from here on, and the data prediction D(x, t)."""
        i = len(self._told)
        self._told.append(float(t))
        self._values.append(x)
        return Linear({("x", i): 1.0}), Linear({("D", i): 1.0})

    def table(
        self,
        end: Linear,
        grid: Tensor,
        name: str,
        *,
        order: float | None = None,
        weak_order: float | None = None,
    ) -> Tableau:
        """The table of a run that ends in `end`; grid: the times it was asked to step through.

        Raises ValueError for a run without calls, one that draws a normal or forgets its start
        before the first, or coefficients that are not finite.
        """
        if not self._told:
            raise InvalidValue(f"{name} calls the network nowhere")
        first = self._values[0].terms
        scale = first.get(START, 0.0)
        if any(c for symbol, c in first.items() if symbol != START) or not scale:
            raise InvalidValue(f"{name} must call the network first at a multiple of its start")
        n = len(self._told)
        state, data = (torch.zeros(n, n, dtype=torch.float64, device="cpu") for _ in range(2))
        normals: list[list[tuple[int, float]]] = []
        for i, value in enumerate([*self._values[1:], end]):
            drawn = []
            for (kind, k), c in value.terms.items():
                if not math.isfinite(c):
                    raise InvalidValue(f"row {i} of {name} has the coefficient {c}")
                if (kind, k) == START:
                    state[i, i] += c / scale
                elif kind == "z":
                    drawn.append((k, c))
                else:
                    (state if kind == "x" else data)[i, i - k] += c
            normals.append(sorted(d for d in drawn if d[1] != 0.0))
        width = max(map(len, normals))
        noise = torch.zeros(n, width, dtype=torch.float64, device="cpu")
        draws = torch.zeros(n, width, dtype=torch.int64, device="cpu")
        for i, row in enumerate(normals):
            for m, (draw, c) in enumerate(row):
                noise[i, m], draws[i, m] = c, draw
        told = torch.tensor(self._told, dtype=torch.float64, device="cpu")
        entry = (scale, 0.0)
        return Tableau(
            told, state, data, noise, draws, grid, entry, name, order, weak_order
        ).trimmed()
