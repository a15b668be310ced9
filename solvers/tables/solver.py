"""What a solver is: a frozen dataclass that fills a tableau for a grid."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, SupportsFloat

from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue, UndiffuseError
from ...models import VP, Process
from .grids import as_times, checked, times
from .tableau import Tableau

NO_DATA = 1e-5  # alpha at the start below which float32 states hold no data; diffusers has 1e-6
CANCELS = 10.0  # coefficients of states above which rows that start there cancel


@dataclass(frozen=True)
class Path:
    """alpha, sigma and lambda at the n + 1 nodes of a grid, float64.

    Where the grid ends in a denoising jump the last node has sigma = 0 and lambda = inf; where it
    starts in pure noise the first has alpha = 0 and lambda = -inf. Written with expm1 of -h, the
    exponential integrators need no special case for either.
    """

    process: Process
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    lam: Tensor

    @classmethod
    def of(cls, process: Process, t: Tensor) -> Path:
        return cls(process, t, process.alpha(t), process.sigma(t), process.log_snr(t))

    @property
    def h(self) -> Tensor:
        """Steps of lambda, [n], > 0; inf on an interval with an infinite end."""
        return self.lam[1:] - self.lam[:-1]

    @property
    def ends_clean(self) -> bool:
        return float(self.sigma[-1]) == 0.0

    def from_pure_noise(self) -> Path:
        """The same with no data in its first node, alpha = 0 and lambda = -inf."""
        alpha, lam = self.alpha.clone(), self.lam.clone()
        alpha[0], lam[0] = 0.0, -math.inf
        return Path(self.process, self.t, alpha, self.sigma, lam)


class Solver(ABC):
    """A family member: `tableau(process, grid)` is all that the rest of the package asks of it.

    order: global order of the deterministic part (strong order for additive noise), weak_order:
    that of the law. Both are declared here and measured by the tests.

    Options that are no numbers where numbers are asked for raise TypeError by name, NaN ValueError,
    before the family's own checks.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__post_init__")

        def made(self: Solver) -> None:
            self._check_numbers()
            if own is None:
                return
            try:
                own(self)
            except UndiffuseError:
                raise
            except (TypeError, ValueError, IndexError, OverflowError) as error:
                raise InvalidType(f"no solver has the options of {self!r}: {error}") from error

        if own is not None or not hasattr(cls, "__post_init__"):
            cls.__post_init__ = made  # type: ignore[attr-defined]

    def _check_numbers(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if one.type not in ("float", "int"):
                continue
            if isinstance(value, bool) or not isinstance(value, SupportsFloat):
                raise InvalidType(f"{one.name} must be a number; got {value!r}")
            if math.isnan(float(value)):
                raise InvalidValue(f"{one.name} must be a number; got nan")

    @property
    @abstractmethod
    def order(self) -> float:
        """Declared global order."""

    @property
    def weak_order(self) -> float:
        """Declared order of the law; `order` unless a solver says another."""
        return self.order

    @property
    def stochastic(self) -> bool:
        """Whether its tables draw normals."""
        process = VP()
        return self.tableau(process, times("log_snr", process, 4)).stochastic

    @property
    def own_grid(self) -> str:
        """The grid of a run that names none."""
        return "blend"

    def on(self, process: Process, steps: int) -> tuple[Solver, int, str]:
        """The solver that runs in so many steps, its intervals, and its end by default.

        Itself, as many, and 'denoise', but for solvers that choose by the length of the run.
        """
        return self, steps, "denoise"

    def tableau(self, process: Process, grid: Sequence[float] | Tensor) -> Tableau:
        """The table for these times: float64, strictly falling, ending at `process.t_clean` for a
        denoising jump (see `grids.times`). Raises ValueError for a grid that does not fit."""
        t = as_times(grid)
        if t.ndim != 1:
            raise InvalidValue(f"grid must be one-dimensional; got shape {tuple(t.shape)}")
        t = checked(t, process, t_min=process.t_clean)
        return self.filled(Path.of(process, t)).of(process, self.order, self.weak_order)

    def filled(self, path: Path) -> Tableau:
        """`rows`, or those from pure noise where a start next to it makes rows that cancel."""
        table = self.rows(path)
        if 0 < float(path.alpha[0]) < NO_DATA and float(table.state.abs().max()) > CANCELS:
            return self.rows(path.from_pure_noise())
        return table

    @abstractmethod
    def rows(self, path: Path) -> Tableau:
        """Fill the table; `path.t` has been checked. An order left out is the solver's."""
