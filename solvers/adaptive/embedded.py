"""What the adaptive integrator asks of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


class Embedded(ABC):
    """What `adaptive_ode` asks of a method: the steps of n samples, each at its own t and h [n].

    x, stages: [n, *event]; the stages k_0, k_1, ... are what the field returned so far in this step,
    and the last belongs to the step's end, so that it is the first of the next.
    """

    order: int

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
