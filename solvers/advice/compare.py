"""Which solver suits a network at a few numbers of calls: the default, the best here, the others'.

It stands on the pilot of `ud.tune`: the same fine run, the same candidates, fewer of them, and one
fine run for all numbers of calls.
"""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser, notebook
from .. import arguments
from ..families.registry import get
from ..sampling.candidates import NOISY, PEERS, SOLVERS, SPARE, Candidate
from ..sampling.pilot import FEW, MORE, UNSEEN, Entry, Pilot, Search, posed, seen_more
from ..tables.grids import Blend

Table = Any
BLENDS = (0.5, 0.3, 0.7)
"""Shares of equal steps of lambda that are tried: the likeliest of the pilot's."""
FINALISTS = 6
"""Candidates that are run on more starts before one is called the best here."""
DEFAULT, HERE, OTHERS = "default", "best here", "others"
KINDS = {
    DEFAULT: "what `ud.sample` does",
    HERE: "least error of all that were tried, on other starts than those that chose it",
    OTHERS: "the best of what diffusers and k-diffusion do by default or at their best",
}


@dataclass(frozen=True)
class Row:
    """One setting at one number of calls.

    nfe: network calls.
    kind: 'default', 'best here', or 'others' for the best of other libraries' settings.
    setting: solver and grid in words.
    code: the line that draws samples by it.
    error: mean distance to the end of the exact flow over starts that chose nothing, in deviations
        of the data.
    half_width: of its 95 % interval.
    better: whether it is shown to err less than the default, on the same starts, at 95 %.
    table: what `sample` takes as its solver.
    """

    nfe: int
    kind: str
    setting: str
    code: str
    error: float
    half_width: float
    better: bool
    table: Table = field(repr=False, compare=False)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; prints itself as a table.

    rows: three a number of calls, see `Row`.
    tried: number of calls -> (setting, error on the first starts) of all candidates, best first.
    fine_error: how far the run that stands for the exact flow may itself be off, in the same unit.
    calls, seconds: what it took, calls of a batch of some dozens.
    """

    rows: tuple[Row, ...]
    tried: dict[int, tuple[tuple[str, float], ...]] = field(repr=False)
    fine_error: float
    calls: int
    seconds: float

    @property
    def nfe(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(row.nfe for row in self.rows))

    def row(self, nfe: int, kind: str) -> Row:
        """The row of a kind, 'default', 'best here' or 'others', at a number of calls."""
        arguments.choice("kind", kind, KINDS)
        for row in self.rows:
            if (row.nfe, row.kind) == (nfe, kind):
                return row
        raise InvalidValue(f"nfe must be one of {', '.join(map(str, self.nfe))}; got {nfe}")

    def advised(self, nfe: int) -> Row:
        """The best here where it is shown to err less than the default, else the default."""
        best = self.row(nfe, HERE)
        return best if best.better else self.row(nfe, DEFAULT)

    def best(self, nfe: int) -> Table:
        """The table to use at so many calls: `ud.sample(model, shape, found.best(10))`.

        That of `advised`. Raises ValueError for a number of calls that was not compared.
        """
        return self.advised(nfe).table

    def record(self) -> dict[str, Any]:
        """All of it but the tables, for JSON."""
        rows = [
            {k: v for k, v in vars(row).items() if k != "table"} | {"words": KINDS[row.kind]}
            for row in self.rows
        ]
        advised = {str(n): asdict_of(self.advised(n)) for n in self.nfe}
        return {
            "rows": rows,
            "advised": advised,
            "tried": {str(n): [list(t) for t in found] for n, found in self.tried.items()},
            "fine_error": self.fine_error,
            "calls": self.calls,
            "seconds": round(self.seconds, 2),
        }

    def __repr__(self) -> str:
        cells = {n: [_cell(self.row(n, kind)) for kind in KINDS] for n in self.nfe}
        wide = max(14, *(len(cell) for row in cells.values() for cell in row)) + 2
        lines = [f"{'calls':>5}  {DEFAULT:{wide}}{HERE:{wide}}others at best"]
        for n, row in cells.items():
            lines.append(f"{n:5}  " + "".join(f"{cell:{wide}}" for cell in row).rstrip())
        lines.append("")
        for n in self.nfe:
            lines.append(f"{n:5}  best here: {self.row(n, HERE).setting}")
            lines.append(f"{'':5}  others:    {self.row(n, OTHERS).setting}")
        lines.append("")
        for n in self.nfe:
            lines += _wrapped(f"{n:5}  use ", self.advised(n).code)
        lines += ["", *self._notes()]
        return "\n".join(lines)

    def _notes(self) -> list[str]:
        return [
            "Errors in deviations of the data over starts that chose nothing, ± 95 %;",
            f"they may be off by {_short(self.fine_error)}, the fine run's own.",
            f"It took {self.calls} calls, {self.seconds:.1f} s.",
            "`ud.tune` looks further, and learns.",
        ]

    def _repr_html_(self) -> str:
        body = [
            (n, *(f"{_cell(self.row(n, k))} {self.row(n, k).setting}" for k in KINDS))
            for n in self.nfe
        ]
        head = ("calls", DEFAULT, HERE, "others at best")
        return notebook.table("Error by solver", head, body, " ".join(self._notes()))

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw errors against network calls; returns matplotlib's figure, written if a path is
        given. Raises MissingPackage without matplotlib."""
        fig, ax = notebook.figure()
        for kind, style in zip(KINDS, ("o-", "s-", "^--"), strict=True):
            mine = [self.row(n, kind) for n in self.nfe]
            ax.errorbar(
                self.nfe,
                [row.error for row in mine],
                [row.half_width for row in mine],
                fmt=style,
                label=kind if kind != OTHERS else "others at best",
                capsize=3,
            )
        ax.set_yscale("log")
        ax.set_xlabel("network calls")
        ax.set_ylabel("error / data std")
        ax.legend(frameon=False)
        return notebook.finished(fig, path)


def asdict_of(row: Row) -> dict[str, Any]:
    """The setting and the code of a row."""
    return {"setting": row.setting, "code": row.code}


def _wrapped(front: str, code: str) -> list[str]:
    """The code behind some words, in lines of 80 columns."""
    indent = " " * len(front)
    return textwrap.wrap(
        front + code, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _short(value: float) -> str:
    return f"{value:.2g}"


def _cell(row: Row) -> str:
    return f"{_short(row.error)} ±{_short(row.half_width)}"


def compare(
    model: Denoiser,
    shape: Sequence[int],
    nfe: Sequence[int] = (5, 10, 20),
    *,
    solvers: Sequence[str] = (),
    cond: dict[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare solvers on this very network: seconds for a small one.

    Each runs from the same starts and is held to the end of a fine run. No data are needed, and no
    solver that draws noise is tried: its samples have no end to be held to.

    model: a `Denoiser`, guided or not.
    shape: (B, *event), as for `sample`; the starts are its own.
    nfe: numbers of network calls, each >= 2.
    solvers: names of further solvers to be tried, on their own grid and on all blends.
    cond: the conditions of these B samples, used in turn.
    seed: of the starts' noise, which is that of no sample of `sample`.
    device: where it runs; by default the network's.
    progress: whether to show a bar.

    Returns a `Comparison`: `.best(10)` is what `sample` takes as its solver.
    Raises ValueError or TypeError for bad arguments, RunFailure where the network is not finite on
    a fine run.
    """
    began = time.perf_counter()
    arguments.denoiser(model)
    arguments.batch_shape("shape", shape)
    if isinstance(nfe, str | bytes) or not isinstance(nfe, Sequence) or not nfe:
        raise InvalidValue(f"nfe must be numbers of network calls, e.g. (5, 10, 20); got {nfe!r}")
    costs = sorted({arguments.whole("nfe", n, 2) for n in nfe})
    for name in solvers:
        get(name)
    pilot, _ = posed(model, shape, FEW + MORE + UNSEEN, cond=cond, seed=seed, device=device)
    rows: list[Row] = []
    tried: dict[int, tuple[tuple[str, float], ...]] = {}
    for n in costs:
        search = Search(pilot, n, 10**9, progress)
        search.try_all(f"{n} calls", candidates(model, n, solvers))
        if not search.found:
            raise InvalidValue(f"no solver has a table of nfe={n} calls on {model.process}")
        rows += _rows(pilot, search, n)
        tried[n] = tuple((str(e.candidate), e.error) for e in search.best(len(search.found)))
    spent = time.perf_counter() - began
    return Comparison(tuple(rows), tried, pilot.fine_error, pilot.calls, spent)


def candidates(model: Denoiser, nfe: int, solvers: Sequence[str] = ()) -> Iterator[Candidate]:
    """The default, what other libraries do, the solvers asked for, and the pilot's usual ones."""
    yield Candidate("relay", "blend", final=None)
    for solver, grid in PEERS:
        yield Candidate(solver, grid, final="denoise")
    noisy = math.exp(-float(model.process.log_snr(model.process.t_max))) > NOISY
    for solver in solvers:
        yield Candidate(solver, "blend", final=None)
    for blend in BLENDS:
        for solver in (*solvers, *SOLVERS):
            for spared in (True, False) if noisy and nfe < SPARE else (False,):
                yield Candidate.blended(solver, blend, spared)


def _rows(pilot: Pilot, search: Search, nfe: int) -> list[Row]:
    """The three rows of a number of calls, told on starts that chose nothing."""
    more, unseen = slice(FEW, FEW + MORE), slice(FEW + MORE, FEW + MORE + UNSEEN)
    entries = search.best(len(search.found))
    by_rule = {
        DEFAULT: [e for e in entries if e.candidate == Candidate("relay", "blend", final=None)],
        HERE: entries[:FINALISTS],
        OTHERS: [e for e in entries if e.candidate in _of_others()],
    }
    told: dict[str, tuple[Entry, Tensor]] = {}
    for kind, some in by_rule.items():
        if some:
            best = min((seen_more(pilot, e, more) for e in some), key=lambda e: e.rank)
            told[kind] = best, pilot.errors(best.table, unseen)
    rows = []
    for kind, (entry, off) in told.items():
        less = told[DEFAULT][1] - off if DEFAULT in told else off.new_zeros(len(off))
        sure = float(less.mean()) > 1.96 * float(less.std()) / math.sqrt(len(less))
        rows.append(
            Row(
                nfe,
                kind,
                str(entry.candidate) if kind != DEFAULT else "relay on blend",
                code_of(entry.candidate, nfe),
                float(off.mean()),
                1.96 * float(off.std()) / math.sqrt(len(off)),
                kind != DEFAULT and sure,
                entry.table,
            )
        )
    return rows


def _of_others() -> list[Candidate]:
    return [Candidate(solver, grid, final="denoise") for solver, grid in PEERS]


def code_of(candidate: Candidate, nfe: int) -> str:
    """The Python that draws samples by a candidate of n calls."""
    if candidate == Candidate("relay", "blend", final=None):
        return f"ud.sample(model, shape, nfe={nfe})"
    solver, grid = repr(candidate.solver), repr(candidate.grid)
    if isinstance(candidate.grid, Blend):
        low = "" if candidate.grid.pure is None else f", {candidate.grid.pure:g}"
        grid = f"ud.solvers.grids.Blend({candidate.grid.w:g}{low})"
    if candidate.spared:
        solver = f"ud.solvers.SparedStart(ud.solvers.get({solver}))"
    final = "" if candidate.final is None else f", final={candidate.final!r}"
    return f"ud.sample(model, shape, {solver}, nfe={nfe}, grid={grid}{final})"
