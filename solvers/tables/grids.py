"""Grids: where in time the network is called.

A grid is a float64 sequence of times that falls strictly from noise to data. `times` lays one out
by name, by object (`Karras(rho=5)`) or takes the user's own sequence, and says how it ends:

    final='denoise'  steps nodes from t_max to t_min, then one denoising jump: x = D(x, t_min)
    final='zero'     the last node is sigma = 0 itself: steps + 1 nodes down to t = 0 for a grid
                     laid in t; one laid in sigma/alpha never gets there and jumps, as above
    final='t_min'    steps + 1 nodes from t_max to t_min; x at t_min is what is returned

A denoising jump is an interval that ends where sigma = 0 (`process.t_clean`), so a grid is just its
times: no flag travels with it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Process
from .spacing import (
    Beta,
    Cosine,
    Discrete,
    Grid,
    Karras,
    Laplace,
    LogSNR,
    Quadratic,
    Shifted,
    Uniform,
)

__all__ = [
    "GRIDS",
    "Beta",
    "Cosine",
    "Discrete",
    "Grid",
    "Karras",
    "Laplace",
    "LogSNR",
    "Quadratic",
    "Shifted",
    "Uniform",
    "check",
    "lookup",
    "named",
    "times",
]

FINALS = ("denoise", "zero", "t_min")


GRIDS: dict[str, Grid] = {
    "uniform": Uniform(),
    "quadratic": Quadratic(),
    "log_snr": LogSNR(),
    "exponential": LogSNR(),
    "karras": Karras(),
    "cosine": Cosine(),
    "laplace": Laplace(),
    "laplace-wide": Laplace(0.0, 5.0),
    "beta": Beta(),
    "shifted": Shifted(),
    "linspace": Discrete("linspace"),
    "leading": Discrete("leading"),
    "trailing": Discrete("trailing"),
}
"""Grids by the name that users type; 'laplace-wide' is used where none is named."""


def times(
    grid: str | Grid | Sequence[float] | Tensor,
    process: Process,
    steps: int | None = 20,
    final: str = "denoise",
    t_min: float | None = None,
) -> Tensor:
    """The times a solver steps through, float64, strictly falling, noise to data.

    grid: a name, a `Grid`, or times of the user's own from at most t_max down to t_min (or to
    `process.t_clean`); with times given, `steps` is their number and `final='denoise'` appends
    the jump. t_min: overrides the process's. Raises ValueError naming what does not fit.
    """
    if final not in FINALS:
        raise InvalidValue(f"final must be one of {', '.join(map(repr, FINALS))}; got {final!r}")
    t_min = process.t_min if t_min is None else t_min
    if isinstance(grid, str):
        grid = named(grid)
    if not isinstance(grid, Grid):
        return _users(as_times(grid), process, final, t_min)
    if steps is None or steps != int(steps) or steps < 1:
        raise InvalidValue(f"steps must be a whole number >= 1; got {steps}")
    discrete = isinstance(grid, Discrete)
    laid_to_zero = final == "zero" and grid.reaches_zero and process.t_clean == 0
    jump = final != "t_min" and not laid_to_zero
    end = 0.0 if laid_to_zero else t_min
    t = grid.nodes(process, int(steps) + (not jump), process.t_max, end)
    if not discrete:  # the ends exactly, not to the rounding of a formula
        t[0] = process.t_max
        t[-1] = end if len(t) > 1 else process.t_max
    if jump:
        t = torch.cat([t, t.new_tensor([process.t_clean])])
    check(t, process)
    return t


def as_times(grid: object) -> Tensor:
    """A sequence of times as float64. Raises TypeError for anything else."""
    try:
        return torch.as_tensor(grid, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidType(
            f"grid must be a sequence of times here; got {grid!r}: "
            "lay one out with ud.solvers.times(grid, process, steps)"
        ) from None


def _users(t: Tensor, process: Process, final: str, t_min: float) -> Tensor:
    if t.ndim != 1 or len(t) < 1:
        raise InvalidValue(f"grid must be a sequence of times; got shape {tuple(t.shape)}")
    clean = float(t[-1]) == process.t_clean
    if final == "t_min" and clean:
        raise InvalidValue(
            f"final='t_min' returns x at the grid's last time, but the grid ends at {float(t[-1]):g}, "
            "a denoising jump: leave that time out, or use final='denoise'"
        )
    if final != "t_min" and not clean:
        t = torch.cat([t, t.new_tensor([process.t_clean])])
    check(t, process, t_min)
    return t


def check(t: Tensor, process: Process, t_min: float | None = None) -> None:
    """Raises ValueError unless t falls strictly within [t_min or t_clean, t_max], 2 nodes or more."""
    first, last = float(t[0]), float(t[-1])
    least = process.t_min if t_min is None else t_min
    body = t[:-1] if last == process.t_clean else t
    hint = (
        f"grid must fall strictly from at most t_max={process.t_max:g} to at least "
        f"t_min={least:g} (or end at {process.t_clean:g} for a denoising jump); "
    )
    if len(t) < 2:
        raise InvalidValue(hint + f"got {len(t)} node; a step needs two")
    if bool(torch.isnan(t).any()) or not bool((t[1:] < t[:-1]).all()):
        i = int((~(t[1:] < t[:-1])).nonzero()[0])
        raise InvalidValue(hint + f"got {float(t[i]):g} -> {float(t[i + 1]):g} at node {i + 1}")
    slack = 1e-9
    if first > process.t_max * (1 + slack) or float(body[-1]) < least - slack * abs(least):
        raise InvalidValue(hint + f"got {first:g} -> {last:g}")


def named(name: str) -> Grid:
    """The grid of that name. Raises ValueError with the nearest known name otherwise."""
    return lookup("grid", name, GRIDS)


T = TypeVar("T")


def lookup(what: str, name: str, table: dict[str, T]) -> T:
    """table[name], or a ValueError that suggests the nearest known name."""
    if not isinstance(name, str):
        raise InvalidType(f"{what} must be a name or an object of that kind; got {name!r}")
    key = name.lower().replace("_", "-")
    for known, value in table.items():
        if known.replace("_", "-") == key:
            return value
    near = difflib.get_close_matches(key, [k.replace("_", "-") for k in table], 1, 0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidValue(f"unknown {what} {name!r}; {hint}known: {', '.join(table)}")
