"""The report of a run: one file of HTML that needs no other, the answer first.

Everything is in the text that the browser reads, in order: the answer, charts, tables, pictures,
how it was measured. `page.css` and `page.js` beside this file are copied into it; the script sorts,
filters, copies and shows values, and without it all numbers are there. Nothing is fetched, and the
page's own policy forbids it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ...kernels.errors import InvalidValue
from ...kernels.files import write_text
from ...solvers.store import Record
from ..measures.quality import MEASURES, Measure
from ..nfe import answer
from . import table
from .chart import chart
from .curves import DEFAULT, curves, who

EMBEDDED = 500_000
"""Bytes of pictures in a page, which grow by a third there."""
HOT = 30.0
"""How many times the least of its column a value may be before its cell has no colour."""


@dataclass(frozen=True)
class Report:
    """What a page shows.

    said: of `answer`. records, measures: of the run. floors: problem -> field -> (mean, least,
    largest) of exact samples. pictures: (caption, PNG) each. code: (title, text) to be set as it
    is. method: sentences.
    """

    title: str
    said: Mapping[str, Any]
    records: Sequence[Record]
    measures: Sequence[Measure]
    floors: Mapping[str, Mapping[str, Sequence[float]]]
    pictures: Sequence[tuple[str, Path]] = ()
    code: Sequence[tuple[str, str]] = ()
    method: Sequence[str] = field(default_factory=list)


def write(path: Path, report: Report) -> None:
    """Write the page. Raises InvalidValue where there is no record, FileNotFoundError for a
    picture that is not there; then nothing is written."""
    if not report.records:
        raise InvalidValue(f"no results to report in {path.parent}: run the benchmark first")
    sections = {
        "answer": ("What to use", _answer(report.said)),
        "charts": ("Charts", _charts(report)),
        "rows": ("Every row", _rows(report)),
        "pictures": ("Pictures", _pictures(report.pictures)),
        "code": ("A solver is a table", "".join(_block(*pair, open=False) for pair in report.code)),
        "method": ("How it was measured", "".join(f"<p>{escape(s)}</p>" for s in report.method)),
    }
    held = {name: pair for name, pair in sections.items() if pair[1]}
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in held.items())
    body = "".join(
        f"<section id={name} aria-labelledby={name}-title><h2 id={name}-title>{title}</h2>{text}"
        "</section>"
        for name, (title, text) in held.items()
    )
    style, script = (
        Path(__file__).with_name(f"page.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    title = escape(report.title)
    write_text(
        path,
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name=color-scheme content="light dark">'
        f"<title>{title}</title><style>{style}</style></head><body>"
        '<a class=skip href="#answer">To the answer</a>'
        f"<header id=top><h1>{title}</h1><button type=button id=theme class=needs-script hidden>"
        "Dark or light</button></header>"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav><main>{body}</main>'
        '<footer><a href="#top">Back to the top</a></footer>'
        f"<script>{script}</script></body></html>",
    )


# --- the answer -----------------------------------------------------------------------------------


def _answer(said: Mapping[str, Any]) -> str:
    """The sentences, a table a problem, the lines of Python at a cost that is chosen."""
    m = MEASURES[said["measure"]]
    parts = [f"<p class=lead>{escape(line)}</p>" for line in said["use"]]
    blocks = [_compared(name, p, m) for name, p in said["problems"].items()]
    parts.append(f"<div class=pair>{''.join(blocks)}</div>")
    if not blocks:
        parts.append("<p class=lead>No row ran: the reasons are below.</p>")
    if any(
        answer.elsewhere(r["best"]) != "-" for p in said["problems"].values() for r in p["rows"]
    ):
        parts.append(f"<p class=note>{escape(answer.ELSEWHERE)}</p>")
    for library, why in said["absent"].items():
        parts.append(f"<p class=note>Not run: {escape(library)}: {escape(why)}</p>")
    costs = sorted({row["calls"] for p in said["problems"].values() for row in p["rows"]})
    if costs:
        parts.append(_verdict(said, costs, m))
    return "".join(parts)


def _verdict(said: Mapping[str, Any], costs: Sequence[int], m: Measure) -> str:
    """A choice of calls; each has the line of the default, and of the best row of each problem."""
    usual = min(costs, key=lambda n: abs(n - 10))  # the sentences say ten
    choice, shown, rules = [], [], []
    for n in costs:
        mark = " checked" if n == usual else ""
        choice.append(
            f"<label><input type=radio name=calls id=calls-{n} value={n}{mark}>{n}</label>"
        )
        rules.append(f".verdict:has(#calls-{n}:checked) .at-{n}")
        lines = [_block("The default", f"ud.sample(model, shape, nfe={n})")]
        for name, p in said["problems"].items():
            for row in p["rows"]:
                line = row["best"] and answer.code(row["best"], n)
                if row["calls"] == n and line and who(row["best"]) != DEFAULT:
                    worst = answer.elsewhere(row["best"])
                    note = f"; elsewhere {worst}" if worst != "-" else ""
                    value = table.number(row["best"]["value"], m)
                    lines.append(_block(f"Best on {name}: {value}{note}", line))
        shown.append(f"<div class=at-{n}>{''.join(lines)}</div>")
    return (
        f"<style>{', '.join(rules)} {{ display: block; }}</style>"
        "<div class=verdict><fieldset><legend>Network calls</legend>"
        f"{''.join(choice)}</fieldset>{''.join(shown)}</div>"
    )


def _compared(name: str, p: Mapping[str, Any], m: Measure) -> str:
    """The table of a problem: calls, default, best here, tuned, best peer."""
    sides = [s for s in ("default", "best", "tuned", "peer") if any(r[s] for r in p["rows"])]
    heads = {"default": "default", "best": "best here", "tuned": "tuned", "peer": "best peer"}
    titles = ("calls", *(heads[s] for s in sides))
    head = "".join(f"<th scope=col>{t}</th>" for t in titles)
    rows = (
        f"<tr><th scope=row>{row['calls']}</th>"
        f"{''.join(_side(row[s], m, named=s != 'default') for s in sides)}</tr>"
        for row in p["rows"]
    )
    return (
        f"<div><h3>{escape(name)}</h3><p class=note>{escape(m.title)}, {p['samples']} samples</p>"
        f"<div class=scroll tabindex=0 role=region aria-label={_quoted(name)}>"
        "<table class=compared>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _side(side: Mapping[str, Any] | None, m: Measure, named: bool) -> str:
    if side is None:
        return "<td>-</td>"
    value, low, high = (table.number(side[k], m) for k in ("value", "lo", "hi"))
    worst = answer.elsewhere(side)
    note = answer.config(side) + (f"; elsewhere {worst}" if worst != "-" else "")
    who = f"<small>{escape(note)}</small>" if named else ""
    return f"<td><b>{value}</b> <span class=ends>{low} to {high}</span>{who}</td>"


def _block(title: str, text: str, open: bool = True) -> str:
    """A text to be copied, under its title; a long one is folded."""
    copied = (
        '<button type=button class="copy needs-script" hidden>Copy</button>'
        f"<pre tabindex=0>{escape(text)}</pre>"
    )
    if open:
        return f"<div class=code><p>{escape(title)}</p>{copied}</div>"
    return f"<details class=code><summary>{escape(title)}</summary>{copied}</details>"


# --- charts and pictures --------------------------------------------------------------------------


def _charts(report: Report) -> str:
    drawn = []
    for m in report.measures:
        for name in dict.fromkeys(r["problem"] for r in report.records):
            mine = [r for r in report.records if r["problem"] == name]
            floor = report.floors.get(name, {}).get(m.field)
            drawn.append(chart(name, mine, m, floor))
    return f"<div class=pair>{''.join(drawn)}</div>" if any(drawn) else ""


def _pictures(pictures: Sequence[tuple[str, Path]]) -> str:
    parts, size = [], 0
    for caption, png in pictures:
        size += png.stat().st_size  # raises, naming the file
        text = escape(caption)
        if size > EMBEDDED:  # what does not fit stays a file beside the page
            parts.append(f"<p>{text}: {escape(png.name)}</p>")
            continue
        data = base64.b64encode(png.read_bytes()).decode()
        parts.append(
            f'<figure><figcaption>{text}</figcaption><img alt="{text}" loading=lazy '
            f'src="data:image/png;base64,{data}"></figure>'
        )
    return "".join(parts)


# --- the table ------------------------------------------------------------------------------------


HEADS = ("problem", "measure", "library", "solver", "grid", "from > to", "states")


def _rows(report: Report) -> str:
    """Every row of every measure in one table, with what filters it; below, what did not run."""
    body: list[str] = []
    lost: list[str] = []
    problems = list(dict.fromkeys(r["problem"] for r in report.records))
    costs: list[str] = []
    for name in problems:
        mine = [r for r in report.records if r["problem"] == name]
        for m in report.measures:
            if (found := table.of_measure(mine, m, name)) is not None:
                costs = costs or found.columns[5:]
                picked = {c.who for c in curves(mine, m)}
                body += [_row(line, name, m, picked, low) for line, low in _lines(found, m)]
        if (absent := table.missing(mine, name)) is not None:
            lost.append(_lost(absent))
    if not body:
        return "".join(lost)
    head = "".join(
        f"<th scope=col aria-sort=none><button type=button>{escape(text)}</button></th>"
        for text in (*HEADS, *costs)
    )
    return (
        f"{_filters(problems, report.measures)}"
        '<div class="scroll tall" tabindex=0 role=region aria-label="Every row"><table id=every>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        "<p class=note>Bold: no other row of its problem is shown to be better (95 % intervals). "
        "The more colour, the nearer to the least of the column. (n): calls made, where fewer "
        f"than asked.</p>{''.join(lost)}"
    )


Line = list[tuple[str, bool, str]]


def _lines(found: table.Table, m: Measure) -> list[tuple[Line, list[float]]]:
    """The rows of a table with the least size of each column."""
    rows = list(found.cells())
    sizes = [[_size(text, m) for text, _, _ in row[5:]] for row in rows]
    least = [min(column) for column in zip(*sizes, strict=True)]
    return [(row, least) for row in rows]


def _size(text: str, m: Measure) -> float:
    """How far a cell's number is from the best there is; inf where it holds none."""
    try:
        return m.off(float(text.split()[0]))
    except ValueError:
        return math.inf


def _row(
    line: Line, name: str, m: Measure, picked: set[tuple[str, str, str]], least: Sequence[float]
) -> str:
    library, solver, grid = (text for text, _, _ in line[:3])
    side = "ours" if library.startswith("undiffuse") else "peer"
    kind = f"data-problem={_quoted(name)} data-measure={m.field} data-side={side}"
    best = " data-best" if (library, solver, grid) in picked else ""
    cells = [f"<td>{escape(text)}</td>" for text in (name, m.field, library, solver, grid)]
    cells += [f"<td>{escape(text)}</td>" for text, _, _ in line[3:5]]
    for (text, unbeaten, span), low in zip(line[5:], least, strict=True):
        size = _size(text, m)
        value = f"<b>{text}</b>" if unbeaten else text
        ends = f"<span class=ends>{span}</span>" if span else ""
        cells.append(f'<td data-v={size:.6g} style="--heat:{_heat(size, low)}">{value}{ends}</td>')
    return f"<tr {kind}{best}>{''.join(cells)}</tr>"


def _heat(size: float, least: float) -> str:
    """From 1 for the least of a column to 0 for HOT times as much."""
    if not math.isfinite(size) or least <= 0 or size <= 0:
        return "1" if size == least else "0"
    return f"{max(0.0, 1 - math.log(size / least) / math.log(HOT)):.2f}"


def _quoted(text: str) -> str:
    return f'"{escape(text)}"'


def _filters(problems: Sequence[str], measures: Sequence[Measure]) -> str:
    def choice(name: str, label: str, options: Sequence[tuple[str, str]]) -> str:
        held = "".join(f"<option value={_quoted(v)}>{escape(t)}</option>" for v, t in options)
        return f"<label>{label} <select name={name}>{held}</select></label>"

    every = ("", "all")
    return (
        '<form id=filters class=needs-script hidden aria-label="Filters of the table">'
        + choice("problem", "Problem", [*((p, p) for p in problems), every])
        + choice("measure", "Measure", [*((m.field, m.field) for m in measures), every])
        + choice("side", "Whose", [every, ("ours", "ours"), ("peer", "the peers'")])
        + '<label>Find <input type=search name=find placeholder="solver, grid, library"></label>'
        "<label><input type=checkbox name=best checked> best grid of each solver only</label>"
        "<button type=button id=csv>Download CSV</button> <output name=count></output></form>"
    )


def _lost(lost: table.Table) -> str:
    head = "".join(f"<th scope=col>{escape(c)}</th>" for c in lost.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in lost.rows)
    return (
        f"<details><summary>{escape(lost.title)} ({len(lost.rows)})</summary><div class=scroll "
        f"tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
