"""How a run ended, sample by sample."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from torch import Tensor


class Status(IntEnum):
    """One code a sample; 0 is success."""

    OK = 0
    NETWORK_NOT_FINITE = 1
    STATE_NOT_FINITE = 2
    STEP_TOO_SMALL = 3
    TOO_MANY_STEPS = 4


MEANING = {
    Status.OK: "finished",
    Status.NETWORK_NOT_FINITE: "the network returned NaN or Inf",
    Status.STATE_NOT_FINITE: "the state overflowed though the network's outputs were finite: "
    "the scheme is unstable on this grid; use more steps or another solver",
    Status.STEP_TOO_SMALL: "the step size underflowed: loosen rtol/atol or raise t_min",
    Status.TOO_MANY_STEPS: "max_steps was reached: loosen rtol/atol or raise max_steps",
}


class SolverError(RuntimeError):
    """A run failed for some samples. `status` is [B], `result` what had been computed."""

    def __init__(self, message: str, status: Tensor, result: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.result = result
