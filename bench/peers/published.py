"""Tables that others learned and published, as peers: NeuralSolver's as they are printed, and files
of EPD, AdaSDE and DyWeight. They were learned on other networks than the one that they run on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...kernels.errors import InvalidValue
from ...models import Process
from ...solvers.portable.printed import NEURAL_SOLVER
from ...solvers.portable.published import neural_solver, read_published
from ...solvers.tables.tableau import Tableau
from ..problems.plans import Plan, Unavailable, of_table
from ..problems.problem import Problem

FILES = (".pkl",)
"""Endings of the files that EPD, AdaSDE and DyWeight save."""


@dataclass(frozen=True)
class PublishedPeer:
    """Learned tables of one origin.

    name: of the row. path: of the file that holds the table, `network-snapshot-*.pkl`; None:
    NeuralSolver's, of which the one with the most steps is taken. final: a digest of the file.
    """

    name: str
    path: str | None = None
    final: str | None = None  # in the cell's key: another file is another cell
    library: str = "published"
    grid: str = "its own"

    @classmethod
    def of(cls, path: str) -> PublishedPeer:
        """Raises FileNotFoundError where there is no file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"peers: no file {path}")
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
        return cls(Path(path).stem, path, digest)

    def plan(self, problem: Problem, nfe: int) -> Plan:
        try:
            table = self._table(problem.process, nfe)
        except ValueError as error:
            raise Unavailable(str(error)) from error
        if table.nfe > nfe:
            raise Unavailable(f"its table makes {table.nfe} calls, not within {nfe}")
        return of_table(problem.process, table)

    def _table(self, process: Process, nfe: int) -> Tableau:
        pure = float(process.alpha(process.t_max)) == 0  # as flows start
        if self.path is not None:
            return read_published(self.path, process, clock="flow" if pure else "ratio")
        if not pure:
            raise InvalidValue(f"{process} starts with signal: these tables start in pure noise")
        fits = [n for n in NEURAL_SOLVER if n <= nfe]
        if not fits:
            least = min(NEURAL_SOLVER)
            raise InvalidValue(f"its tables make {least} calls or more, not within {nfe}")
        return neural_solver(process, max(fits))


PRINTED = PublishedPeer("NeuralSolver")
"""Of flow matching on ImageNet (Wang et al. 2025), 5 to 10 steps."""
