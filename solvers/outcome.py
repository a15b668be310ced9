"""How a run ended, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from ..kernels.errors import RunFailure


class Status(IntEnum):
    """How the run of one sample ended; 0 is success. `Status.OK.meaning` says it in words."""

    OK = 0
    NETWORK_NOT_FINITE = 1
    STATE_NOT_FINITE = 2
    STEP_TOO_SMALL = 3
    TOO_MANY_STEPS = 4
    TARGET_NOT_MET = 5
    NOT_DIFFERENTIABLE = 6
    BLURRED = 7
    DIVERGED = 8
    FOLDED = 9
    UNMIXED = 10

    @property
    def meaning(self) -> str:
        """What happened, and what to do."""
        return _MEANING[self]


_MEANING = {
    Status.OK: "finished",
    Status.NETWORK_NOT_FINITE: "the network returned NaN or Inf",
    Status.STATE_NOT_FINITE: "the state overflowed though the network's outputs were finite: "
    "the scheme is unstable on this grid; use more steps or another solver",
    Status.STEP_TOO_SMALL: "the step size underflowed: loosen rtol/atol or raise t_min",
    Status.TOO_MANY_STEPS: "max_steps was reached: loosen rtol/atol or raise max_steps",
    Status.TARGET_NOT_MET: "the target was not reached",
    Status.NOT_DIFFERENTIABLE: "the network's gradient is not that of its values, so its trace is "
    "wrong: take no_grad, detach and straight-through parts out of the network",
    Status.BLURRED: "the data are tighter than the noise at t_min, so log p of the data themselves "
    "cannot be told and log_prob is that of the blurred data: lower t_min for less noise",
    Status.DIVERGED: "the state left what the process and data can reach: the solver multiplies "
    "its errors on this grid; use more steps or another solver",
    Status.FOLDED: "the solver's map folds here (its Jacobian has a determinant <= 0), so that "
    "other starts lead to the same sample and log_prob leaves them out: use more steps",
    Status.UNMIXED: "the noise at t_max does not hide the data, whose density there cannot be "
    "told, so log_prob has N(0, sigma^2) in its place; ends_error says about what that is worth",
}
DESCRIBED = (Status.BLURRED, Status.UNMIXED)
"""Statuses of samples whose value is another than what was asked for, and exactly what they say."""
VALUED = (Status.OK, Status.TARGET_NOT_MET, *DESCRIBED, Status.DIVERGED, Status.FOLDED)
"""Statuses of samples that have a value: those that finished, whatever it is worth."""


class SolverError(RunFailure):
    """A run failed for some samples. `status` is [B], `result` what had been computed."""

    def __init__(self, message: str, status: Tensor, result: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.status, self.result)


def status_failed(status: Tensor) -> Tensor:
    """Samples that stopped before the end and have no value, bool [B]."""
    return ~torch.isin(status, torch.tensor(VALUED, dtype=status.dtype, device=status.device))


def worse(a: Tensor, b: Tensor) -> Tensor:
    """The worse of two statuses, sample by sample: the first without a value, else the first that
    is not OK."""
    stopped = torch.where(status_failed(a), a, b)
    doubtful = torch.where(a != Status.OK, a, b)
    return torch.where(status_failed(a) | status_failed(b), stopped, doubtful)


def raise_if_failed(
    status: Tensor, result: Any, on_failure: str, words: Mapping[Status, str] | None = None
) -> None:
    """Raises SolverError, naming the first failed samples, unless on_failure is 'return'. A sample
    that is BLURRED or UNMIXED has a value, which is what it says, and is not raised for.

    words: what a status means in this run, where that is more than `Status.meaning`.
    """
    fine = torch.tensor((Status.OK, *DESCRIBED), dtype=status.dtype, device=status.device)
    failed = (~torch.isin(status, fine)).nonzero().flatten().tolist()
    if failed and on_failure == "raise":
        code = Status(int(status[failed[0]]))
        raise SolverError(
            f"{(words or {}).get(code, code.meaning)} for sample {_shown(failed)}; "
            f"{len(failed)} of {len(status)} failed in all",
            status,
            result,
        )


def verdict(x: Tensor, run: Callable[..., Tensor], times: list[float]) -> tuple[Tensor, str | None]:
    """Status of each sample, and a sentence if any failed.

    NaN and Inf survive every later step, so one look at the end is enough. Only after a failure is
    the run repeated, with the same noise, to find the step at which they appeared.
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
    return status, (
        f"{code.meaning} at step {i} (t={times[i]:g}) for sample {_shown(same)}; "
        f"{len(failed)} of {len(x)} samples failed in all"
    )


def _shown(samples: list[int]) -> str:
    return ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
