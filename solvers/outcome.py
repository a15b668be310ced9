"""How a run ended, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from ..kernels.errors import RunFailure


class Status(IntEnum):
    """One code a sample; 0 is success."""

    OK = 0
    NETWORK_NOT_FINITE = 1
    STATE_NOT_FINITE = 2
    STEP_TOO_SMALL = 3
    TOO_MANY_STEPS = 4
    TARGET_NOT_MET = 5


MEANING = {
    Status.OK: "finished",
    Status.NETWORK_NOT_FINITE: "the network returned NaN or Inf",
    Status.STATE_NOT_FINITE: "the state overflowed though the network's outputs were finite: "
    "the scheme is unstable on this grid; use more steps or another solver",
    Status.STEP_TOO_SMALL: "the step size underflowed: loosen rtol/atol or raise t_min",
    Status.TOO_MANY_STEPS: "max_steps was reached: loosen rtol/atol or raise max_steps",
    Status.TARGET_NOT_MET: "target_std_error was not reached: raise it or max_probes, or lower "
    "rtol and atol where it is solver_error that exceeds it",
}


class SolverError(RunFailure):
    """A run failed for some samples. `status` is [B], `result` what had been computed."""

    def __init__(self, message: str, status: Tensor, result: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.result = result


def verdict(x: Tensor, run: Callable[..., Tensor], times: list[float]) -> tuple[Tensor, str | None]:
    """Status of each sample, and a sentence if any failed.

    NaN and Inf survive every later step, so one look at the end is enough; only after a failure is
    the run repeated (the noise is the same) to find the step at which they appeared.
    """
    finite = torch.isfinite(x).flatten(1).all(1)
    status = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if bool(finite.all()):
        return status, None
    first: dict[int, tuple[int, Status]] = {}

    def watch(i: int, out: Tensor, state: Tensor) -> None:
        for code, v in ((Status.NETWORK_NOT_FINITE, out), (Status.STATE_NOT_FINITE, state)):
            for j in (~torch.isfinite(v).flatten(1).all(1)).nonzero().flatten().tolist():
                first.setdefault(j, (i, code))

    run(watch)
    failed = (~finite).nonzero().flatten().tolist()
    sentences = []
    for j in failed:
        i, code = first.get(j, (len(times) - 1, Status.STATE_NOT_FINITE))
        status[j] = code
        sentences.append((i, code, j))
    i, code, _ = min(sentences)
    same = [j for (k, c, j) in sentences if (k, c) == (i, code)]
    shown = ", ".join(map(str, same[:8])) + (", ..." if len(same) > 8 else "")
    return status, (
        f"{MEANING[code]} at step {i} (t={times[i]:g}) for sample {shown}; "
        f"{len(failed)} of {len(x)} samples failed in all"
    )
