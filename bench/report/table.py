"""The results as tables: on the terminal with rich, and as Markdown.

A row is a solver on a grid, a column a number of network calls. 'states' is the solver's memory:
most batches of states alive at once, the network's own aside (`plans.high_water`). In every column
those rows are marked that no other is shown to be better than; where intervals overlap there is no
rank.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...solvers.intervals import Estimate
from ...solvers.store import Record, ratio_of
from ..measures.quality import Measure


@dataclass(frozen=True)
class Table:
    """title, columns, rows of text; best[i][j]: whether that cell is not beaten; spans[i][j]: its
    interval or '', which has no room on a terminal."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    best: list[list[bool]]
    spans: list[list[str]] = field(default_factory=list)

    def cells(self) -> Iterator[list[tuple[str, bool, str]]]:
        """The rows as (text, whether it is not beaten, interval)."""
        spans = self.spans or [[""] * len(self.columns) for _ in self.rows]
        for row, flags, ends in zip(self.rows, self.best, spans, strict=True):
            yield list(zip(row, flags, ends, strict=True))


def tables(
    records: Sequence[Record], problem: str, measures: Sequence[Measure], notes: dict[str, str]
) -> list[Table]:
    """The tables of one problem. notes: field -> what to add to its title (a floor)."""
    mine = [r for r in records if r["problem"] == problem]
    titles = [f"{problem}: {m.title}{notes.get(m.field, '')}" for m in measures]
    made = [of_measure(mine, m, title) for m, title in zip(measures, titles, strict=True)]
    return [t for t in (*made, missing(mine, problem)) if t is not None]


def kind(r: Record) -> str:
    """'ode' or 'sde'."""
    return "sde" if r["stochastic"] else "ode"


def of_measure(records: Sequence[Record], m: Measure, title: str) -> Table | None:
    """The table of one measure of one problem's records; None where no run has it."""
    records = [r for r in records if "stochastic" in r and kind(r) in m.kinds]
    records = [r for r in records if r["status"] != "ok" or r.get(m.field) is not None]
    if not any(r["status"] == "ok" for r in records):
        return None
    costs = sorted({r["nfe_asked"] for r in records})
    curves: dict[tuple[str, ...], dict[int, Record]] = {}
    for r in records:
        curves.setdefault((r["library"], r["solver"], r["grid"]), {})[r["nfe_asked"]] = r
    reach = {n: unbeaten([c[n] for c in curves.values() if n in c], m) for n in costs}
    ordered = sorted(curves.items(), key=lambda item: (_rank(item[1], m), item[0]))
    rows, best, spans = [], [], []
    for curve, by_cost in ordered:
        ends = f"{_span(by_cost, 'start', 3)} > {_span(by_cost, 'end', 2)}"
        held = [r["memory"] for r in by_cost.values() if r.get("memory") is not None]
        states = f"{max(held):.0f}" if held else "-"
        rows.append([*curve, ends, states, *(_text(by_cost.get(n), m) for n in costs)])
        best.append([False] * 5 + [by_cost.get(n) in reach[n] for n in costs])
        spans.append([""] * 5 + [_ends(by_cost.get(n), m) for n in costs])
    columns = ["library", "solver", "grid", "from > to", "states", *(f"{n}" for n in costs)]
    return Table(title, columns, rows, best, spans)


def _span(by_cost: dict[int, Record], field: str, digits: int) -> str:
    """The field's value, or its range where it depends on the cost ('leading' grids)."""
    values = [ratio_of(r, field) for r in by_cost.values()]
    lo, hi = (f"{v:.{digits}g}" for v in (min(values), max(values)))
    return lo if max(values) <= 1.01 * min(values) else f"{lo}-{hi}"


def missing(records: Sequence[Record], problem: str) -> Table | None:
    """Why some rows of a problem are absent, one line for each reason; None where none is."""
    records = [r for r in records if r["status"] != "ok"]
    if not records:
        return None
    reasons: dict[tuple[str, ...], list[str]] = {}
    for r in records:
        why = (r["library"], r["solver"], r["grid"], r["message"])
        reasons.setdefault(why, []).append(str(r["nfe_asked"]))
    rows = [[*k[:3], ", ".join(costs), k[3]] for k, costs in reasons.items()]
    columns = ["library", "solver", "grid", "NFE", "why"]
    return Table(f"{problem}: failed, or could not run", columns, rows, [[False] * 5 for _ in rows])


def _size(r: Record, m: Measure) -> float:
    return m.off(float(r[m.field]))


def _rank(by_cost: dict[int, Record], m: Measure) -> float:
    """Order of the rows: geometric mean of the sizes, failures last."""
    sizes = [_size(r, m) for r in by_cost.values() if r["status"] == "ok"]
    if not sizes:
        return math.inf
    return sum(math.log(max(s, 1e-300)) for s in sizes) / len(sizes)


def unbeaten(records: Sequence[Record], m: Measure) -> list[Record]:
    """Those that no other is shown to be better than, the best value first: their intervals reach
    down to the least upper end of all."""
    done = [r for r in records if r["status"] == "ok" and r.get(m.field) is not None]
    done.sort(key=lambda r: _size(r, m))
    least = min((m.away(interval(r, m.field)).hi for r in done), default=0.0)
    return [r for r in done if m.away(interval(r, m.field)).lo <= least]


def interval(r: Record, field: str) -> Estimate:
    """The record's value with its interval."""
    return Estimate(r[field], r[f"{field}_lo"], r[f"{field}_hi"])


def _text(r: Record | None, m: Measure) -> str:
    if r is None or r["status"] == "unavailable":
        return "-"
    if r["status"] == "failed":
        return "failed"
    value = number(float(r[m.field]), m)
    return value if r["nfe"] == r["nfe_asked"] else f"{value} ({r['nfe']})"


def _ends(r: Record | None, m: Measure) -> str:
    """The ends of the record's interval: '0.066 to 0.1'."""
    if r is None or r["status"] != "ok":
        return ""
    return " to ".join(number(float(r[f"{m.field}_{end}"]), m) for end in ("lo", "hi"))


def number(v: float, m: Measure) -> str:
    """A value of the measure: with its sign where 0 is right and not least."""
    if not m.signed:
        return short(v)
    return f"{v:+.1e}" if abs(v) < 5e-4 else f"{v:+.3f}" if abs(v) < 9.9995 else f"{v:+.0f}"


def short(v: float) -> str:
    """Two significant digits: 0.28, 0.0056, 5.3, 36, 2.4e-05."""
    return f"{float(f'{v:.2g}'):.6g}" if 1e-4 <= abs(v) < 1e4 or v == 0 else f"{v:.1e}"


def markdown(t: Table) -> str:
    """A Markdown table; unbeaten cells are bold, intervals in brackets."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

    body = [
        [(f"**{c}**" if best else c) + (f" ({span})" if span else "") for c, best, span in line]
        for line in t.cells()
    ]
    rule = "|" + "|".join("---" for _ in t.columns) + "|"
    return "\n".join([f"**{t.title}**", "", row(t.columns), rule, *(row(r) for r in body), ""])


def show(shown: Sequence[Table], lines: Sequence[str] = ()) -> None:
    """Print on standard output: with rich where it is installed, else as Markdown. A table that is
    wider than the terminal is printed whole: no number is cut."""
    try:
        from rich import box
        from rich.console import Console
        from rich.measure import Measurement
        from rich.table import Table as RichTable
        from rich.text import Text
    except ImportError:
        sys.stdout.write("\n\n".join([*map(markdown, shown), "\n".join(lines)]) + "\n")
        return
    for t in shown:
        drawn = RichTable(title=t.title, title_justify="left", title_style="bold", box=box.SIMPLE)
        for j, name in enumerate(t.columns):
            left = j < 4 or t.columns[-1] == "why"
            drawn.add_column(name, no_wrap=True, justify="left" if left else "right")
        for row, flags in zip(t.rows, t.best, strict=True):
            style = "" if row[0].startswith("undiffuse") else "dim"
            cells = zip(row, flags, strict=True)
            drawn.add_row(*(Text(c + "*" * b, "bold green" if b else style) for c, b in cells))
        wide = Console(width=10_000)
        needed = Measurement.get(wide, wide.options, drawn).maximum
        Console(width=max(Console().width, needed)).print(drawn, crop=False)
    sys.stdout.write("\n".join(lines) + "\n" * bool(lines))
