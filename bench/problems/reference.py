"""The reference solution that errors are measured against, with a bound on its own error.

With the angle phi = arctan(sigma/alpha) the probability flow of every process is

    dw/dphi = w cot(phi) - D / sin(phi),          w = x / sqrt(alpha^2 + sigma^2),

regular from pure noise (phi = pi/2) down to the data. SciPy's DOP853 integrates it twice, at two
tolerances a factor 10 apart; the tighter is the reference, and the distance between the two bounds
its error. None of our own solvers takes part. The first nodes lie on the trajectory too, so a run
that starts below r_max starts on the reference and is not charged for where it starts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidValue, MissingPackage
from ...solvers.outcome import SolverError, Status
from .problem import ZERO_RATIO, Problem, data_prediction

TOLERANCES = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12)
"""Relative = absolute tolerance of the runs; a reference at level i compares i with i + 1."""


FINER = 20
"""The reference's own error should be this many times below the smallest error shown."""


class Reference:
    """States w of the exact trajectories at the ratios that were asked for.

    error: root mean square distance, in units of the data's standard deviation, between the
    reference and the same integration at a 10 times looser tolerance, the worst over the ratios.
    """

    def __init__(self, states: dict[str, Tensor], error: float, level: int) -> None:
        self._states = states
        self.error = error
        self.level = level

    def at(self, ratio: float) -> Tensor:
        """w [B, *event] at sigma/alpha = ratio; raises KeyError for one that was not asked for."""
        return self._states[_key(ratio)]

    def covers(self, ratios: Iterable[float]) -> bool:
        """Whether `at` knows all of them."""
        return all(_key(r) in self._states for r in ratios)


def solve(
    problem: Problem,
    ratios: Iterable[float],
    level: int = 0,
    tick: Callable[[], object] | None = None,
    loose: Reference | None = None,
) -> Reference:
    """Integrate the problem's starts down to every ratio (0 stands for x(0), or, for a trained
    network, for one denoising jump from its t_min). tick is called after every evaluation.
    loose: the reference of the level below, if there is one that covers the ratios.

    Raises ValueError for a level that does not exist, ImportError without SciPy.
    """
    if not 0 <= level < len(TOLERANCES) - 1:
        raise InvalidValue(f"level must be 0..{len(TOLERANCES) - 2}; got {level}")
    wanted = sorted({*ratios}, reverse=True)
    if loose is not None and loose.level == level - 1 and loose.covers(wanted):
        before = [loose.at(r) for r in wanted]
    else:
        before = _integrate(problem, wanted, TOLERANCES[level], tick)
    tight = _integrate(problem, wanted, TOLERANCES[level + 1], tick)
    gaps = [float((a - b).square().mean().sqrt()) for a, b in zip(before, tight, strict=True)]
    states = {_key(r): w for r, w in zip(wanted, tight, strict=True)}
    return Reference(states, max(gaps) / problem.std, level)


def cached(
    path: Path,
    problem: Problem,
    ratios: Iterable[float],
    level: int = 0,
    tick: Callable[[], object] | None = None,
) -> Reference:
    """`solve`, kept in a file: read back if it is of this flow and knows these ratios."""
    wanted, below = {float(r) for r in ratios}, None
    if path.is_file():
        held = torch.load(path, weights_only=True)
        found = Reference(held["states"], held["error"], held["level"])
        if held.get("flow") == problem.flow:
            if found.level >= level and found.covers(wanted):
                return found
            wanted |= {float(k) for k in held["states"]}
            below = found
    found = solve(problem, wanted, level, tick, below)
    held = {
        "states": {_key(r): found.at(r) for r in wanted},
        "error": found.error,
        "level": level,
        "flow": problem.flow,
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(held, part)
    os.replace(part, path)
    return found


def _integrate(
    problem: Problem, ratios: list[float], tol: float, tick: Callable[[], object] | None
) -> list[Tensor]:
    """w at each of the falling ratios."""
    try:
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise MissingPackage(
            "the reference solution is integrated by SciPy: pip install 'undiffuse[bench]'"
        ) from error
    shape = problem.start.shape
    jump = ratios[-1] == 0.0
    last = ZERO_RATIO if problem.law is not None else problem.r_min
    ends = [last if r == 0.0 else r for r in ratios]

    def slope(phi: float, flat: np.ndarray) -> np.ndarray:
        w = torch.from_numpy(flat).reshape(shape)
        ratio = math.tan(phi) if phi < math.pi / 2 else math.inf
        d = data_prediction(problem.model, w, ratio)
        bad = ~torch.isfinite(d).flatten(1).all(1)
        if bool(bad.any()):  # SciPy would look for a step size for ever
            raise _failed(problem, f"{Status.NETWORK_NOT_FINITE.meaning} at {ratio=:.4g}", bad)
        if tick is not None:
            tick()
        return ((w * math.cos(phi) - d) / math.sin(phi)).flatten().numpy()

    phis = np.arctan(np.array([problem.r_max, *ends]))
    phis = np.minimum(phis, phis[0])  # a start rounded to float32 may lie a hair above r_max
    if phis.min() == phis[0]:
        return [problem.start] * len(ratios)
    with torch.no_grad():
        run = solve_ivp(
            slope, (phis[0], phis[1:].min()), problem.start.flatten().numpy(),
            method="DOP853", rtol=tol, atol=tol, t_eval=np.unique(phis[1:])[::-1],
        )  # fmt: skip
        if not run.success:
            raise _failed(problem, run.message, torch.ones(len(problem.start), dtype=torch.bool))
        by_phi = dict(zip(run.t.tolist(), run.y.T, strict=True))
        out = [torch.from_numpy(by_phi[float(p)].copy()).reshape(shape) for p in phis[1:]]
        if jump:
            out[-1] = data_prediction(problem.model, out[-1], last)
    return out


def _failed(problem: Problem, why: str, which: Tensor) -> SolverError:
    """To be raised: no reference, and why, for the samples of which it is so."""
    return SolverError(
        f"the reference of {problem.name} failed: {why}; {int(which.sum())} of {len(which)} samples",
        which * int(Status.NETWORK_NOT_FINITE),
    )


def _key(ratio: float) -> str:
    return f"{ratio:.9g}"
