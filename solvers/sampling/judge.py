"""How a run ended: finished, not finite, or swept away by a table that multiplies its errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ...models import Process
from ..cache import Cache
from ..families.registry import get
from ..outcome import SolverError, Status, verdict
from ..tables.law import gaussian_law, marginal
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau
from .state import Result

REACH = 10.0
"""Deviations of a process on unit data beyond which a state is looked at: no normal of 10^20 is."""
FACTOR = 3.0
"""Growth beyond which a table diverges. Tables whose samples of mixtures end ten deviations away
grow by more, by the few-step runs of all solvers on six processes; sound ones do not."""
VARIANCES = (0.1, 0.25, 1.0)
"""Of the data that a table is tried on: those of pictures in [-1, 1] and of standardised data."""
STEADY = ("relay", "dpmpp-2m", "ddim")
FAR = 10.0
"""How many times farther than another run of the same start a run ends that has diverged."""
ASKED = 100.0
"""Times REACH beyond which another run is made: data of a thousand deviations of 1 pay for none."""
Watch = Callable[[int, Tensor, Tensor], None]
"""watch(row, network output, state)"""
Run = Callable[..., Tensor]
"""run(watch) repeats a run and calls watch after each row."""
Other = Callable[[int], tuple[str, float]]
"""other(i): a run that holds of the start of sample i, in words, and the largest |x| of its end."""


def judged(
    x: Tensor,
    run: Run,
    times: Tensor,
    nfe: int | Tensor,
    on_failure: str,
    process: Process | None = None,
    table: Tableau | SpectralTable | None = None,
    rounds: int | Tensor | None = None,
    other: Other | None = None,
) -> Result:
    """The result of a run that ended at x [B, ...], with the status of each sample.

    Raises SolverError for NaN and Inf unless on_failure is 'return'. Given its table, the run is
    also asked whether it diverged, which is a status and, unless on_failure is 'return', a warning:
    a state is out of reach, and the table is one that grows or, far out of reach and where `other`
    is given, another run of the farthest sample ends `FAR` times nearer. Out of reach alone is no
    fault: data may be large. The host reads one number of the device.
    """
    bound = float("inf")
    if process is not None and isinstance(table, Tableau):
        bound = reach(process, float(table.grid[-1]))
    peak = x.detach().abs().flatten(1).amax(1)
    status = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    message = None
    if not float(peak.max()) <= bound:  # NaN and Inf too
        status, message = verdict(x, run, times.tolist())
        if message is None and process is not None and isinstance(table, Tableau):
            said, least = None, bound
            if (factor := growth(table, process)) > FACTOR:
                said = _diverged(table, process, float(peak.max()), factor)
            elif other is not None and float(peak.max()) > ASKED * bound:
                found = other(int(peak.argmax()))
                least = max(bound, FAR * found[1])
                said = _astray(table, float(peak.max()), *found)
            if said is not None:
                status = torch.where(peak > least, int(Status.DIVERGED), status)
                if on_failure == "raise" and bool((peak > least).any()):
                    warnings.warn(said, UserWarning, stacklevel=3)
    result = Result(x, nfe, times, status, len(times) if rounds is None else rounds)
    if message and on_failure == "raise":
        raise SolverError(message, status, result)
    return result


def reach(process: Process, t: float) -> float:
    """What |x_t| of standardised data stays below."""

    def make() -> float:
        return REACH * math.hypot(float(process.alpha(t)), float(process.sigma(t)))

    return _REACHES.get((process, t), torch.device("cpu"), make)


_REACHES = Cache()


def growth(table: Tableau, process: Process) -> float:
    """The largest ratio of the standard deviations that the table and the process give to the state
    at the table's end, over data N(0, c) with c in VARIANCES: algebra, no samples."""
    c = torch.tensor(VARIANCES, dtype=torch.float64, device="cpu")
    zero = torch.zeros_like(c)
    got = gaussian_law(table, process, zero, c).var
    return float((got / marginal(process, table.grid[-1], zero, c).var).max().sqrt())


def _diverged(table: Tableau, process: Process, peak: float, factor: float) -> str:
    holds = [name for name in STEADY if _holds(name, table, process)]
    other = f"or a solver that holds on this grid, {holds[0]!r}" if holds else "or another grid"
    return (
        f"{table.name} diverges on this grid of {len(table.grid) - 1} steps: |x| reaches "
        f"{peak:.3g}, and the table makes Gaussian data {factor:.3g} times too wide. Take more "
        f"steps, {other}; status names the samples"
    )


def _astray(table: Tableau, peak: float, holds: str, within: float) -> str:
    return (
        f"{table.name} diverges on this network in {len(table.grid) - 1} steps: |x| reaches "
        f"{peak:.3g}, where {holds} takes the same start to {within:.3g}. Use that, or more steps; "
        "status names the samples"
    )


def _holds(name: str, table: Tableau, process: Process) -> bool:
    try:
        return growth(get(name).tableau(process, table.grid), process) <= FACTOR
    except ValueError:  # a grid that it does not take
        return False
