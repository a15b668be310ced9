"""What a run comes to: the problems, who is not beaten at each cost, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...kernels.files import write_text
from ...solvers.sampling.sampler import GRID, SOLVER
from ...solvers.store import Record, Store, environment
from ..measures import claims, quality
from ..measures.quality import Measure
from ..problems.exact import Inapplicable
from ..problems.plans import TUNED, Ours, planned
from ..problems.problem import Problem
from ..problems.reference import FINER, Reference
from ..report import figures, table
from ..report.page import write_report
from .cells import Cell
from .pictures import draw


def summarise(
    posed: Sequence[Problem],
    todo: Sequence[Cell],
    records: Sequence[Record],
    references: dict[str, Reference],
    measures: Sequence[Measure],
) -> dict[str, Any]:
    """The content of summary.json."""
    costs = sorted({c.nfe for c in todo})
    ours = {c.config.name: c.config.solver for c in todo if isinstance(c.config, Ours)}
    problems = {p.name: _problem(p, records, references[p.name], measures) for p in posed}
    return {
        "problems": problems,
        "nfe": costs,
        "metrics": [m.field for m in measures],
        "judged_by": judge(measures).field,
        "best": best(records, costs, judge(measures)),
        "front": front(records, costs),
        "broken_claims": [c.sentence() for c in claims.broken(ours, posed[0].process)],
        "notes": [*unresolved(problems), *left_out(records)],
        "cells": len(records),
        "failed": sum(r["status"] == "failed" for r in records),
        "environment": environment(),
    }


def _problem(
    p: Problem, records: Sequence[Record], reference: Reference, measures: Sequence[Measure]
) -> dict[str, Any]:
    mine = [r for r in records if r["problem"] == p.name and r["status"] == "ok"]
    errors = [float(r["error"]) for r in mine if r.get("error")]
    floors = {}
    for m in measures:
        if any(r.get(m.field) is not None for r in mine):
            with suppress(Inapplicable):
                floors[m.field] = list(quality.floor(p, m, len(p.start)))
    return {
        "about": p.about, "process": repr(p.process), "batch": len(p.start), "seeds": [p.seed],
        "r_max": p.r_max, "r_min": p.r_min, "std": p.std, "reference_error": reference.error,
        "smallest_error": min(errors, default=None), "floors": floors,
    }  # fmt: skip


def unresolved(problems: Mapping[str, Any]) -> list[str]:
    """The problems whose reference could not be made fine enough for the least error shown."""
    return [
        f"{name}: the reference's own error, {p['reference_error']:.1e}, is more than 1/{FINER} of the "
        f"least error shown, {p['smallest_error']:.1e}: errors below {FINER * p['reference_error']:.1e} "
        "are uncertain by as much"
        for name, p in problems.items()
        if p["smallest_error"] is not None and FINER * p["reference_error"] > p["smallest_error"]
    ]


def left_out(records: Sequence[Record]) -> list[str]:
    """Which measures some runs do not have, and why: a line for each reason."""
    found: dict[str, None] = {}
    for r in records:
        for field, why in r.get("left_out", {}).items():
            found[f"{r['problem']}: no {field} of some runs: {why}"] = None
    return list(found)


def judge(measures: Sequence[Measure]) -> Measure:
    """What the advice goes by: the error to the trajectory, or the first measure without it."""
    return next((m for m in measures if m.field == "error"), measures[0])


def best(
    records: Sequence[Record], costs: Sequence[int], m: Measure = quality.MEASURES["error"]
) -> dict[str, dict[str, Any]]:
    """problem -> NFE -> the configurations that no other is shown to beat in this measure."""
    out: dict[str, dict[str, Any]] = {}
    kept = ("library", "solver", "grid", m.field, f"{m.field}_lo", f"{m.field}_hi")
    for name in {r["problem"]: None for r in records}:
        for n in costs:
            mine = [r for r in records if r["problem"] == name and r["nfe_asked"] == n]
            found = [{k: r[k] for k in kept} for r in table.unbeaten(mine, m)]
            if found:
                out.setdefault(name, {})[str(n)] = found
    return out


SIDES = {"undiffuse": "ours", TUNED: "tuned"}
DEFAULT = ("undiffuse", SOLVER, GRID)


def front(records: Sequence[Record], costs: Sequence[int]) -> dict[str, dict[str, Any]]:
    """problem -> NFE -> the least error of ours, of tables tuned to the problem, and of the peers,
    deterministic, and that of the default; None for none."""
    out: dict[str, dict[str, Any]] = {}
    kept = ("library", "solver", "grid", "nfe", "error", "error_lo", "error_hi")
    for name in {r["problem"]: None for r in records}:
        for n in costs:
            done = [r for r in records if r["problem"] == name and r["nfe_asked"] == n
                    and r["status"] == "ok" and r.get("error") is not None]  # fmt: skip
            least = {}
            for side in ("ours", "tuned", "peers"):
                mine = [r for r in done if SIDES.get(r["library"], "peers") == side]
                best_one = min(mine, key=lambda r: float(r["error"]), default=None)
                least[side] = best_one and {k: best_one[k] for k in kept}
            usual = [r for r in done if (r["library"], r["solver"], r["grid"]) == DEFAULT]
            least["default"] = {k: usual[0][k] for k in kept} if usual else None
            if done:
                out.setdefault(name, {})[str(n)] = least
    return out


def all_tables(
    summary: dict[str, Any], records: Sequence[Record], measures: Sequence[Measure]
) -> list[table.Table]:
    """The tables of every problem; distances carry their floor in the title."""
    shown = []
    for name, p in summary["problems"].items():
        notes = {
            field: f"; exact samples: {value:.3g} ({lo:.3g} to {hi:.3g})"
            for field, (value, lo, hi) in p["floors"].items()
        }
        shown += table.tables(records, name, measures, notes)
    return shown


def write_all(
    out: Path,
    posed: Sequence[Problem],
    todo: Sequence[Cell],
    records: Sequence[Record],
    references: dict[str, Reference],
    measures: Sequence[Measure],
    summary: dict[str, Any],
) -> list[table.Table]:
    """table.md, the pictures and, where plotly is installed, report.html; returns the tables."""
    shown = all_tables(summary, records, measures)
    seconds = _seconds(Store(out, "timings.jsonl"), records)
    write_text(out / "table.md", "\n".join(table.markdown(t) for t in shown))
    wanted = [(p, m) for m in measures for p in posed if m.field == "error" or p.law is not None]
    panels = [
        (p.name, m) for p, m in wanted
        if any(r["problem"] == p.name and r["status"] == "ok" and r.get(m.field) is not None
               and table.kind(r) in m.kinds for r in records)
    ]  # fmt: skip
    if panels:
        floors = {name: p["floors"] for name, p in summary["problems"].items()}
        figures.quality_against("nfe", out / "nfe.png", records, panels, floors)
    timed = [{**r, "seconds": seconds[r["key"]]} for r in records if r["key"] in seconds]
    errors = [(name, m) for name, m in panels if m.field == "error"]
    if timed and errors:
        figures.quality_against("seconds", out / "time.png", timed, errors, {})
    pictures = draw(out, posed, todo, records, references, measures)
    _report(out, todo, records, measures, summary, shown, seconds, pictures)
    return shown


def _seconds(timings: Store, records: Sequence[Record]) -> dict[str, float]:
    """What each record's samples took in all, by its key."""
    found = {}
    for r in records:
        keys = r.get("keys", [r["key"]])
        if all(k in timings for k in keys):
            found[r["key"]] = sum(float(timings[k]["seconds"]) for k in keys)
    return found


def _report(
    out: Path,
    todo: Sequence[Cell],
    records: Sequence[Record],
    measures: Sequence[Measure],
    summary: dict[str, Any],
    tables: Sequence[table.Table],
    seconds: dict[str, float],
    pictures: Sequence[tuple[str, Path]],
) -> None:
    try:
        import plotly  # type: ignore[import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        return
    write_report(
        out / "report.html", summary, records, seconds, measures, tables, pictures,
        winner(todo, summary),
    )  # fmt: skip


def winner(todo: Sequence[Cell], summary: dict[str, Any]) -> tuple[str, str] | None:
    """(title, text) of the tableau of ours with the least error of the first problem, at the cost
    in the middle of the run."""
    costs = summary["nfe"]
    n = costs[len(costs) // 2]
    for name, by_cost in summary["best"].items():
        ours = [t for t in by_cost.get(str(n), ()) if t["library"] == "undiffuse"]
        for cell in todo:
            at = (cell.problem.name, cell.nfe, cell.config.library)
            if ours and at == (name, n, "undiffuse"):
                c = cell.config
                if (c.name, c.grid) == (ours[0]["solver"], ours[0]["grid"]):
                    text = repr(planned(c, cell.problem, n).tableau)
                    return f"The table of {c.name} on {c.grid} at {n} NFE ({name})", text
    return None


def closing(out: Path, summary: dict[str, Any]) -> list[str]:
    """The lines under the tables."""
    lines = ["*: no other row of the column is shown to be better (95 % intervals)."]
    for name, p in summary["problems"].items():
        lines.append(
            f"{name}: {p['about']}; {p['batch']} samples, sigma/alpha {p['r_max']:.4g} to "
            f"{p['r_min']:.2g}; the reference's own error is {p['reference_error']:.1e}"
        )
    lines += summary["notes"]
    lines += [f"broken: {sentence}" for sentence in summary["broken_claims"]]
    if "likelihood" in summary:
        b = summary["likelihood"]
        lines.append(
            f"bits/dim of {b['count']} held-out events: {b['bits_per_dim']:.3f} "
            f"({b['lo']:.3f} to {b['hi']:.3f}), {b['nfe']} NFE, {b['trace']} trace"
        )
    failed = f", {summary['failed']} failed" if summary["failed"] else ""
    lines.append(f"{summary['cells']} cells{failed}; {summary['seconds']} s; written to {out}")
    return lines
