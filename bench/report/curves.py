"""Which curves a picture shows, and over what range: shared by the page's charts and the files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...solvers.sampling.sampler import GRID, SOLVER
from ...solvers.store import Record
from ..measures.quality import Measure
from .table import interval, kind

DEFAULT = ("undiffuse", SOLVER, GRID)
"""What a call without a solver runs."""
SHOWN_OURS, SHOWN_PEERS = 6, 6


@dataclass(frozen=True)
class Curve:
    """records: of one solver on one grid, in order of cost."""

    records: list[Record]

    @property
    def who(self) -> tuple[str, str, str]:
        """Library, solver, grid."""
        return who(self.records[0])

    @property
    def default(self) -> bool:
        """Whether this is what a call without a solver runs."""
        return self.who == DEFAULT

    @property
    def label(self) -> str:
        """What it is called in a picture."""
        library, solver, grid = self.who
        if self.default:
            return f"the default, {solver} · {grid}"
        return f"{solver} · {grid}" if self.ours else f"{library} {solver}"

    @property
    def ours(self) -> bool:
        """Whether it is ours or a table tuned with ours."""
        return self.who[0].startswith("undiffuse")


def curves(records: Sequence[Record], m: Measure) -> list[Curve]:
    """One curve a solver, on the grid where its geometric mean is least, best solvers first; those
    that could run at less than half of the costs last."""
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for r in measured(records, m):
        by_grid = groups.setdefault((r["library"], r["solver"]), {})
        by_grid.setdefault(r["grid"], []).append(r)
    best = [min(by_grid.values(), key=lambda held: _level(held, m)) for by_grid in groups.values()]
    whole = max(map(len, best), default=0)
    best.sort(key=lambda held: (len(held) < whole / 2, _level(held, m)))
    return [Curve(_by_cost(held)) for held in best]


def shown(records: Sequence[Record], m: Measure) -> list[Curve]:
    """The default, whatever its place, the best of ours, the best of the peers."""
    usual = [r for r in measured(records, m) if who(r) == DEFAULT]
    rest = [c for c in curves(records, m) if not c.default]
    ours, peers = ([c for c in rest if c.ours is mine] for mine in (True, False))
    first = [Curve(_by_cost(usual))] if usual else []
    return [*first, *ours[:SHOWN_OURS], *peers[:SHOWN_PEERS]]


def measured(records: Sequence[Record], m: Measure) -> list[Record]:
    """Those that ran and have the measure."""
    return [
        r
        for r in records
        if r["status"] == "ok" and kind(r) in m.kinds and r.get(m.field) is not None
    ]


def who(r: Mapping[str, Any]) -> tuple[str, str, str]:
    """The record's library, solver and grid."""
    return r["library"], r["solver"], r["grid"]


def _by_cost(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda r: int(r["nfe"]))


def _level(records: Sequence[Record], m: Measure) -> float:
    return sum(math.log(max(m.off(r[m.field]), 1e-12)) for r in records) / len(records)


def reach(found: Sequence[Curve], m: Measure) -> tuple[float, float, bool]:
    """(low, high) for the axis, and whether anything lies beyond: a run that blew up must not
    flatten the others."""
    held = [r for curve in found for r in curve.records]
    values = sorted(m.off(r[m.field]) for r in held)
    far = max(m.away(interval(r, m.field)).hi for r in held)
    often = 4 * values[len(values) // 2] if m.signed else 30 * values[3 * len(values) // 4]
    top = max(min(1.2 * far, often), 1e-12)
    low = 0.0 if m.signed or m.share else max(values[0] / 2, 1e-12)
    return low, max(top, 2 * low), values[-1] > top
