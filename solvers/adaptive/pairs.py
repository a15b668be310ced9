"""What the adaptive integrator asks of a method, and Runge-Kutta pairs as such methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...kernels import runge_kutta_step
from ...kernels.errors import InvalidValue
from ...kernels.shapes import column
from ..tables import butcher
from ..tables.butcher import Butcher, Matrix


class Embedded(ABC):
    """What `integrate` asks of a method: the steps of n samples, each at its own t and h [n].

    x, stages: [n, *event]; the stages k_0, k_1, ... are what the field returned so far in this
    step, and the last belongs to the step's end, so that it is the first of the next.
    """

    order: float

    @property
    @abstractmethod
    def c(self) -> Matrix:
        """Shares of h at which the stages are called; the last is 1."""

    @abstractmethod
    def state(self, i: int, t: Tensor, x: Tensor, h: Tensor, stages: list[Tensor]) -> Tensor:
        """Where stage i >= 1 is called; for the last, the step's end x'."""

    @abstractmethod
    def defect(self, t: Tensor, h: Tensor, stages: list[Tensor]) -> Tensor:
        """x' less the embedded solution."""

    @abstractmethod
    def slope(self, t: Tensor, x: Tensor, k: Tensor) -> Tensor:
        """dx/dt where the field returned k."""

    @abstractmethod
    def piece(
        self, t: Tensor, x: Tensor, end: Tensor, h: Tensor, stages: list[Tensor]
    ) -> list[Tensor]:
        """Coefficients of theta^0, theta^1, ... of x(t + theta h), of one length for every step."""


@dataclass(frozen=True)
class Pair(Embedded):
    """An embedded Runge-Kutta pair: its table, stepped by the fused kernel, one launch a stage.

    Raises ValueError for a table without an embedded solution.
    """

    table: Butcher

    def __post_init__(self) -> None:
        if not self.table.embedded:
            raise InvalidValue(
                f"{self.table.name} has no embedded solution, and so no error to choose steps by: "
                f"use one of {', '.join(butcher.PAIRS)}, or fixed steps by RungeKutta"
            )

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def order(self) -> float:  # type: ignore[override]
        return self.table.order

    @property
    def c(self) -> Matrix:
        return self.table.c

    def state(self, i: int, t: Tensor, x: Tensor, h: Tensor, stages: list[Tensor]) -> Tensor:
        return self._moved(x, h, stages, i)

    def defect(self, t: Tensor, h: Tensor, stages: list[Tensor]) -> Tensor:
        return self._moved(torch.zeros_like(stages[0]), h, stages, -1)

    def slope(self, t: Tensor, x: Tensor, k: Tensor) -> Tensor:
        return k

    def piece(
        self, t: Tensor, x: Tensor, end: Tensor, h: Tensor, stages: list[Tensor]
    ) -> list[Tensor]:
        columns = self.table.dense.T.tolist()
        return [x, *(column(h, x) * butcher.weighted(c, stages) for c in columns)]

    def judged(
        self, x: Tensor, h: Tensor, stages: list[Tensor], rtol: float, atol: float
    ) -> Tensor:
        """The norm of the scaled error of a step from x, [n], in one launch."""
        weights, error = (_weights(self.table, i, x.dtype, x.device, True) for i in (-2, -1))
        step = runge_kutta_step(x, stages, weights, h, error=error, rtol=rtol, atol=atol)
        assert step.error is not None
        return step.error

    def _moved(self, x: Tensor, h: Tensor, stages: list[Tensor], i: int) -> Tensor:
        """x + h sum_j a_ij k_j; for i = -1 with the weights of the error instead."""
        weights = _weights(self.table, i, x.dtype, x.device)
        return runge_kutta_step(x, stages[: len(weights)], weights, h).x


@lru_cache(maxsize=256)
def _weights(
    table: Butcher, i: int, dtype: torch.dtype, device: torch.device, whole: bool = False
) -> Tensor:
    """Row i of the table's matrix, b for i = -2, b - b^ for i = -1; up to the last weight that is
    not 0 unless `whole`."""
    row = table.error if i == -1 else table.b if i == -2 else table.matrix[i]
    used = len(row) if whole else int(row.nonzero()[0].max()) + 1
    return torch.tensor(row[:used], dtype=dtype, device=device)


PAIRS: dict[str, Pair] = {name: Pair(table) for name, table in butcher.PAIRS.items()}
"""Pairs by the name that users type."""
