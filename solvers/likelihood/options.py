"""The options of `log_prob`: one object that checks them all before the first network call."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypedDict

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models.statistics import Statistics
from .. import arguments
from ..adaptive.pairs import PAIRS

METHODS = {"quadrature": ("tsit5", 1e-3, 4.0), "augmented": ("dopri5", 1e-5, 1.0)}
"""Methods, with their default solver, tolerance and probes."""
TRACES = ("hutchinson", "gaussian", "exact")
BACKENDS = ("native", "torchdiffeq")
PRIORS = ("matched", "normal")
SMALL = 8  # components up to which the trace is exact: it costs at most two blocks of four probes
FINE = 1e-4
"""Default tolerance where the trace is exact, so that the path is the only error, and of guided
flows, whose paths part between modes."""
LEAST = {torch.float32: 1e-5, torch.float64: 1e-11}
"""The least target by dtype, bits/dim: a hundred times the rounding of a state of scale 1."""
MOST_POINTS = 64  # Gauss nodes a step: beyond them a step is better halved


class SharedOptions(TypedDict, total=False):
    """The options of `log_prob` that `bits_per_dim` hands on, for type checkers."""

    method: str | None
    solver: str | None
    rtol: float | None
    atol: float | None
    max_steps: int
    t_min: float | None
    backend: str
    trace: str
    probes: float | None
    max_probes: float
    points: int | None
    control: Statistics | None
    max_rows: int | None
    target_solver_error: float | None
    prior: str
    truncation: bool
    offset: float


class Options(SharedOptions, total=False):
    """The options of `log_prob` by name, for type checkers: the fields of `Likelihood`."""

    target_std_error: float | None


@dataclass(frozen=True, eq=False)
class Likelihood:
    """How `log_prob` computes: every option, checked when it is made, before any network call.

    The path
        method: 'quadrature' integrates the path first and then the trace at Gauss nodes with probes
            of their own; 'augmented' integrates x and log p as one ODE, with the same probes all
            along. Default: 'quadrature'; but 'augmented' of a network whose field is no density's
            score, guided or of velocities that are integrated in their own time, where d <= 8 and
            no option needs 'quadrature'.
        solver: 'bosh3', 'dopri5', 'tsit5' or 'dopri8'. Default: tsit5, or dopri5 if 'augmented'.
        rtol, atol: tolerances of a step, in the flow's scaled coordinates. Default: 1e-3, or 1e-4
            where the trace is exact or the network is guided, or 1e-5 if 'augmented'. Not below
            what x's dtype can hold.
        max_steps: attempted steps of a sample at most, >= 1; default 1000.
        t_min: where time starts, in (0, t_max). Default: 1e-5 for processes in closed form down to
            t = 0 (sub-VP: 1e-4), else the model's own.
        backend: 'native', or 'torchdiffeq' for method='augmented'.
    The trace
        trace: 'hutchinson' (default, Rademacher probes), 'exact' (d products a node), or 'gaussian'
            for method='augmented'. It is always exact where d <= 8, or where d <= probes and no
            target_std_error is given.
        probes: probes of the path ('augmented', whole; default 1), or their mean number at a node
            ('quadrature', default 4).
        max_probes: with target_std_error, their mean number at a node at most; default 64.
        points: Gauss nodes a step, 1 to 64. Default: as few as the path itself says are needed.
        control: mean and covariance of the data, `Statistics.of(data)`: the Jacobian of that
            Gaussian is known and is not probed ('quadrature').
        max_rows: events that the network is given at once at the nodes. Default: as many as x has,
            or 2^18 numbers. It bounds memory and changes no result.
    The targets, bits/dim ('quadrature')
        target_std_error: what std_error is to reach, by as many probes as it takes.
        target_solver_error: what solver_error is to reach, by a smaller tolerance where it must be
            (unless rtol or atol is given). Default: target_std_error.
    The report
        prior: 'matched' (default): of the data's own moments at t_max, where the network tells
            them; or 'normal', N(0, sigma^2), as other code has it.
        truncation: correct for the noise at t_min where it can be told (default); where the data
            are tighter than it the status is BLURRED.
        offset: added to bits_per_dim, -log2 of the levels' spacing for dequantised data: 7 for 256
            levels on [-1, 1], 8 on [0, 1].

    Raises ValueError or TypeError for an option that does not fit.
    """

    method: str | None = None
    solver: str | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 1000
    t_min: float | None = None
    backend: str = "native"
    trace: str = "hutchinson"
    probes: float | None = None
    max_probes: float = 64
    points: int | None = None
    control: Statistics | None = None
    max_rows: int | None = None
    target_std_error: float | None = None
    target_solver_error: float | None = None
    prior: str = "matched"
    truncation: bool = True
    offset: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("backend", BACKENDS), ("trace", TRACES), ("prior", PRIORS)):
            arguments.choice(name, getattr(self, name), known)
        for name in ("rtol", "atol", "target_std_error", "target_solver_error"):
            if getattr(self, name) is not None:
                arguments.positive(name, getattr(self, name))
        if self.t_min is not None and arguments.finite("t_min", self.t_min) < 0:
            raise InvalidValue(f"t_min must be >= 0, or the process's own; got {self.t_min}")
        for name in ("max_rows", "points"):
            if getattr(self, name) is not None:
                arguments.whole(
                    name, getattr(self, name), 1, MOST_POINTS if name == "points" else None
                )
        arguments.whole("max_steps", self.max_steps)
        arguments.finite("offset", self.offset)
        arguments.flag("truncation", self.truncation)
        if self.probes is not None and arguments.finite("probes", self.probes) < 1:
            raise InvalidValue(
                f"probes must be >= 1; got {self.probes}; use trace='exact' for none"
            )
        if arguments.finite("max_probes", self.max_probes) < 1:
            raise InvalidValue(f"max_probes must be >= 1; got {self.max_probes}")
        if self.solver is not None:
            arguments.lookup("solver", self.solver, PAIRS)
        if self.control is not None and not isinstance(self.control, Statistics):
            raise InvalidType(f"control must be a Statistics; got {type(self.control).__name__}")
        if self.way == "quadrature":
            if self.backend == "torchdiffeq":
                raise InvalidValue("backend='torchdiffeq' needs method='augmented'")
            if self.trace == "gaussian":
                raise InvalidValue(
                    "trace='gaussian' needs method='augmented'; Rademacher is better"
                )
            return
        for name in ("target_std_error", "target_solver_error", "control"):
            if getattr(self, name) is not None:
                raise InvalidValue(f"{name} needs method='quadrature'")
        if self.probes is not None and self.probes != int(self.probes):
            raise InvalidValue(f"probes must be whole with method='augmented'; got {self.probes}")

    @property
    def way(self) -> str:
        """The method by its name."""
        if self.method is None:
            coupled = self.backend == "torchdiffeq" or self.trace == "gaussian"
            return "augmented" if coupled else "quadrature"
        arguments.lookup("method", self.method, METHODS)
        return self.method.lower()

    def resolved(self, x: Tensor, guided: bool = False, own_time: bool = False) -> Chosen:
        """The same with every default decided for data x [B, *event].

        guided: whether the field is that of no density.
        own_time: whether the network gives velocities that are smooth in time.
        """
        d, way = x[0].numel(), self.way
        needs = self.points, self.target_std_error, self.target_solver_error, self.control
        free = self.method is None and all(v is None for v in needs)
        if (guided or own_time) and free and d <= SMALL:
            way = "augmented"
        solver, tolerance, probes = METHODS[way]
        probes = probes if self.probes is None else self.probes
        if self.control is not None and self.control.mean.numel() != d:
            raise InvalidValue(
                f"control must be of a mean of {d} components, as x has; "
                f"got {self.control.mean.numel()}"
            )
        full = d <= SMALL or (self.target_std_error is None and probes >= d)
        trace = "exact" if full else self.trace
        if trace == "exact" or guided:
            tolerance = min(tolerance, FINE)
        rtol, atol = (tolerance if v is None else v for v in (self.rtol, self.atol))
        target = self.target_solver_error
        for name in ("target_std_error", "target_solver_error"):
            asked, least = getattr(self, name), LEAST[x.dtype]
            if asked is not None and asked < least:
                raise InvalidValue(
                    f"{name} must be at least {least:g} bits/dim for data in {str(x.dtype)[6:]}, "
                    f"whose rounding is all that is left below it; got {asked:g}"
                    + ("; hand over a float64 network and data" if least > 1e-8 else "")
                )
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return Chosen(
            **{
                **given,
                "method": way,
                "solver": arguments.lookup("solver", self.solver or solver, PAIRS).name,
                "rtol": arguments.tolerance("rtol", rtol, x.dtype),
                "atol": arguments.tolerance("atol", atol, x.dtype),
                "trace": trace,
                "probes": probes,
                "target_solver_error": self.target_std_error if target is None else target,
            }
        )


@dataclass(frozen=True, eq=False)
class Chosen(Likelihood):
    """Options without open defaults; made by `Likelihood.resolved`."""

    method: str = "quadrature"
    solver: str = "tsit5"
    rtol: float = 1e-3
    atol: float = 1e-3
    probes: float = 4.0
