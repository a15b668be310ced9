"""The answer of a run, before its tables: what to use at each number of network calls.

Of every problem and cost it holds the default, the best of our rows and the best peer, and how the
best row fares on the other problems: a row that is the least of many here may be poor elsewhere.
`screen` says it in 80 columns; the report's first screen says the same.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...solvers.sampling.sampler import GRID, SOLVER
from ...solvers.store import Record
from ..measures.quality import MEASURES, Measure
from ..problems.plans import TUNED
from ..report import table
from ..report.curves import DEFAULT, measured, who

SIDES = {"undiffuse": "ours", TUNED: "tuned"}
SHOWN = {"default": "default", "best": "ours", "tuned": "tuned", "peer": "peers"}
WIDTH = 80


def front(
    records: Sequence[Record], costs: Sequence[int], m: Measure = MEASURES["error"]
) -> dict[str, dict[str, Any]]:
    """problem -> NFE -> the least value of ours, of tables tuned to the problem, and of the peers,
    and that of the default; None for none."""
    out: dict[str, dict[str, Any]] = {}
    kept = ("library", "solver", "grid", "final", "nfe", *_value(m))
    for name in {r["problem"]: None for r in records}:
        for n in costs:
            here = [r for r in records if (r["problem"], r["nfe_asked"]) == (name, n)]
            done = measured(here, m)
            least: dict[str, Any] = {}
            for side in ("ours", "tuned", "peers"):
                mine = [r for r in done if SIDES.get(r["library"], "peers") == side]
                best = min(mine, key=lambda r: m.off(float(r[m.field])), default=None)
                least[side] = best and {k: best[k] for k in kept}
            usual = [r for r in done if who(r) == DEFAULT]
            least["default"] = {k: usual[0][k] for k in kept} if usual else None
            if done:
                out.setdefault(name, {})[str(n)] = least
    return out


def _value(m: Measure) -> tuple[str, str, str]:
    return m.field, f"{m.field}_lo", f"{m.field}_hi"


def regret(found: Mapping[str, Any], field: str = "error") -> dict[str, dict[str, Any]]:
    """problem -> the default's value over the least of the peers', which is picked after the run:
    by number of calls, and the geometric mean of these. Problems without both are left out."""
    m, out = MEASURES[field], {}
    for name, by_cost in found.items():
        ratios = {
            n: m.off(sides["default"][field]) / m.off(sides["peers"][field])
            for n, sides in by_cost.items()
            if sides["default"] and sides["peers"] and m.off(sides["peers"][field]) > 0
        }
        if ratios:
            out[name] = {"by_calls": ratios, "mean": _mean(list(ratios.values()))}
    return out


def _mean(ratios: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(math.log(max(v, 1e-300)) for v in ratios) / len(ratios))


def answer(
    records: Sequence[Record], costs: Sequence[int], m: Measure, about: Mapping[str, Any]
) -> dict[str, Any]:
    """What `screen` and the report say, as plain numbers.

    about: problem -> what holds its 'batch', the number of samples.

    Returns the measure's field and title; 'problems': name -> 'samples', 'rows'; 'use', sentences;
    'absent': library -> why. A row has the calls and four sides, each None or library, solver,
    grid, final, value, lo, hi: 'default', 'best' of ours, 'tuned', 'peer'. The 'elsewhere' of a
    best that is not the default is its value over the default's on the problem where that is worst,
    and that problem: {'problem', 'ratio'}; the ratio is None where it failed; the whole is None
    where there is no other problem.
    """
    found = front(records, costs, m)
    problems: dict[str, Any] = {}
    for name, by_cost in found.items():
        rows = []
        for n, sides in by_cost.items():
            row: dict[str, Any] = {"calls": int(n)}
            row |= {shown: _side(sides[side], m) for shown, side in SHOWN.items()}
            if row["best"] and who(row["best"]) != DEFAULT:
                row["best"]["elsewhere"] = _elsewhere(records, row["best"], name, int(n), found, m)
            rows.append(row)
        problems[name] = {"samples": about[name]["batch"], "rows": rows}
    return {
        "measure": m.field,
        "title": m.title,
        "problems": problems,
        "use": _use(regret(found, m.field), m),
        "absent": absent(records),
    }


def _side(r: Record | None, m: Measure) -> dict[str, Any] | None:
    if r is None:
        return None
    ends = {end: float(r[f"{m.field}_{end}"]) for end in ("lo", "hi")}
    row = {k: r[k] for k in ("library", "solver", "grid", "final")}
    return {**row, "value": float(r[m.field]), **ends}


def _elsewhere(
    records: Sequence[Record],
    best: Mapping[str, Any],
    here: str,
    n: int,
    found: Mapping[str, Any],
    m: Measure,
) -> dict[str, Any] | None:
    """Where the row does worst beside the default, of the other problems."""
    out: list[dict[str, Any]] = []
    for r in records:
        if r["problem"] == here or r["nfe_asked"] != n or who(r) != who(best):
            continue
        usual = found.get(r["problem"], {}).get(str(n), {}).get("default")
        if r["status"] == "failed":
            out.append({"problem": r["problem"], "ratio": None})
        elif usual and measured([r], m) and m.off(usual[m.field]) > 0:
            ratio = m.off(r[m.field]) / m.off(usual[m.field])
            out.append({"problem": r["problem"], "ratio": ratio})
    return max(out, key=lambda e: math.inf if e["ratio"] is None else e["ratio"], default=None)


def _use(regrets: Mapping[str, Any], m: Measure) -> list[str]:
    """What to use: the default, and what the best peer makes of it."""
    line = "Use the default: ud.sample(model, shape, nfe=10)."
    cells = [ratio for held in regrets.values() for ratio in held["by_calls"].values()]
    if cells:
        line += (
            f" Its {m.field} is {_times(_mean(cells))} of the best peer's, picked after "
            f"the run (mean of {len(cells)} cells; {_times(min(cells))} to {_times(max(cells))})."
        )
    return [
        line,
        "For less at the same calls, fit a table to your network: undiffuse tune --nfe 10",
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.3g}"


def absent(records: Sequence[Record]) -> dict[str, str]:
    """library -> why none of its rows could run."""
    ran = {r["library"] for r in records if r["status"] != "unavailable"}
    return {
        r["library"]: r["message"]
        for r in records
        if r["status"] == "unavailable" and r["library"] not in ran
    }


def code(side: Mapping[str, Any], calls: int) -> str | None:
    """The Python line that runs this row; None for a peer's and for what a file holds."""
    final = "" if side["final"] is None else f', final="{side["final"]}"'
    if who(side) == DEFAULT:
        return f"ud.sample(model, shape, nfe={calls}{final})"
    if side["library"] != "undiffuse" or not side["solver"].replace("-", "").isalnum():
        return None
    grid = side["grid"].partition(",")[0]
    return f'ud.sample(model, shape, "{side["solver"]}", nfe={calls}, grid="{grid}"{final})'


def config(side: Mapping[str, Any]) -> str:
    """The row's name: 'ddim on karras', 'diffusers DDIM (default)'."""
    if who(side) == DEFAULT:
        return f"the default, {SOLVER} on {GRID}"
    if side["library"].startswith("undiffuse"):
        return f"{side['solver']} on {side['grid']}"
    return f"{side['library']} {side['solver']}"


def screen(said: Mapping[str, Any], out: str | Path, width: int = WIDTH) -> list[str]:
    """The answer as lines of at most `width` columns, numbers whole: a table a problem, what to
    use, what could not run, where the rest is."""
    m = MEASURES[said["measure"]]
    lines: list[str] = []
    for name, p in said["problems"].items():
        lines += _block(name, p, m, width)
    if any(elsewhere(row["best"]) != "-" for p in said["problems"].values() for row in p["rows"]):
        lines += _wrapped(ELSEWHERE, width)
    for sentence in said["use"]:
        lines += _wrapped(sentence, width)
    for library, why in said["absent"].items():
        lines += _wrapped(f"Not run: {library}: {why}", width)
    lines += _wrapped(f"Every row: {Path(out) / 'table.md'}, or --all here.", width)
    return [*lines, *_wrapped(f"Report: {Path(out) / 'report.html'}", width)]


ELSEWHERE = "elsewhere: the same row over the default on the other problems, the worst ratio."
HELD = "\u00a0"
"""A space at which no line is broken."""
HEADS = ("calls", "default", "best here", "elsewhere", "best peer")


def _block(name: str, p: Mapping[str, Any], m: Measure, width: int) -> list[str]:
    """A problem's table, its rows named by letters below it: a name has no room beside numbers."""
    letters: dict[str, str] = {}

    def named(side: Mapping[str, Any] | None) -> tuple[str, str]:
        if side is None:
            return "-", " "
        letter = letters.setdefault(config(side), _letter(len(letters)))
        return table.number(side["value"], m), letter

    tuned = any(row["tuned"] for row in p["rows"])
    heads = [*HEADS[:4], *(["tuned"] if tuned else []), HEADS[4]]
    body = []
    for row in p["rows"]:
        usual = table.number(row["default"]["value"], m) if row["default"] else "-"
        cells = [str(row["calls"]), usual, " ".join(named(row["best"])), elsewhere(row["best"])]
        cells += [" ".join(named(row["tuned"]))] if tuned else []
        body.append([*cells, " ".join(named(row["peer"]))])
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    lines = _wrapped(f"{name}: {m.title}, {p['samples']} samples", width)
    for cells in (heads, *body):
        line = "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))
        lines.append(line.rstrip())
    notes = [f"{letter} {who}".replace(" ", HELD) for who, letter in letters.items()]
    legend = _wrapped("  ".join(notes), width, "  ")
    return [*lines, *(line.replace(HELD, " ") for line in legend), ""]


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 26 else f"z{i - 25}"


def elsewhere(side: Mapping[str, Any] | None) -> str:
    """The worst ratio on the other problems as text."""
    worst = side and side.get("elsewhere")
    if not worst:
        return "-"
    return "fails" if worst["ratio"] is None else f"{_times(worst['ratio'])}x"


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
