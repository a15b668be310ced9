"""The pictures of a run: which solvers are shown, and their samples and paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...models.data.drawing import is_picture
from ...solvers.store import Record
from ..measures.quality import MEASURES, Measure
from ..problems.plans import TUNED, planned
from ..problems.problem import Problem
from ..problems.reference import Reference
from ..report import figures
from . import cells, trajectories
from .cells import Cell

SHOWN = 12
"""Samples a panel."""
Row = tuple[str, dict[int, Cell]]


def draw(
    out: Path,
    posed: Sequence[Problem],
    todo: Sequence[Cell],
    records: Sequence[Record],
    references: dict[str, Reference],
    measures: Sequence[Measure],
) -> list[tuple[str, Path]]:
    """Samples of every problem of pictures, paths of every one in the plane; (caption, PNG) each.

    The last problem's samples are samples.png, the first one's paths paths.png; those of others carry
    their problem's name.
    """
    made = []
    pictured = [p for p in posed if is_picture(p.start.shape[1:])]
    for p in pictured:
        file = out / ("samples.png" if p is pictured[-1] else f"samples-{_slug(p.name)}.png")
        lines = [_panels(p, row, references[p.name]) for row in lineup(p, todo, records, measures)]
        lines.append(_truth(p, references[p.name]))
        shown = [(n, [(t, _in_range(p, x)) for t, x in panels]) for n, panels in lines if panels]
        figures.sample_panels(file, shown)
        made.append((f"{p.name}: samples from the same noise", file))
    flat = [p for p in posed if tuple(p.start.shape[1:]) == (2,)]
    for p in flat:
        file = out / ("paths.png" if p is flat[0] else f"paths-{_slug(p.name)}.png")
        rows = lineup(p, todo, records, measures)
        if trajectories.draw(file, p, references[p.name], rows):
            made.append((f"{p.name}: paths in the plane", file))
    return made


def lineup(
    p: Problem, todo: Sequence[Cell], records: Sequence[Record], measures: Sequence[Measure]
) -> list[Row]:
    """Who is shown: the best of ours, of tuned tables and of the peers, the customary two, the best that draws noise;
    each on its best grid, with its cells of three costs among those that ran."""
    mine = [r for r in records if r["problem"] == p.name and r["status"] == "ok"]
    ran = {key for r in mine for key in r.get("keys", [r["key"]])}
    wanted = [m for m in (MEASURES["error"], *measures) if any(r.get(m.field) for r in mine)]
    found = [held[0] for m in wanted for _, _, held in figures.curves(mine, m)]
    steady = [r for r in found if not r["stochastic"]]
    ours = [r for r in steady if r["library"] == "undiffuse"]
    best = [
        *ours[:1],
        *[r for r in steady if r["library"] == TUNED][:1],
        *[r for r in steady if not r["library"].startswith("undiffuse")][:1],
        *[r for r in ours if r["solver"] in ("ddim", "dpmpp-2m")],
        *[r for r in found if r["stochastic"]][:1],
    ]
    out: dict[str, dict[int, Cell]] = {}
    for r in best:
        who = (r["library"], r["solver"])
        held = {c.nfe: c for c in todo if c.key in ran and (c.config.library, c.config.name) == who
                and r["grid"].startswith(c.config.grid)}  # fmt: skip
        costs = sorted(held)
        few = sorted({costs[0], costs[len(costs) // 2], costs[-1]}) if costs else []
        library = "" if r["library"] == "undiffuse" else f"{r['library']} "
        out.setdefault(f"{library}{r['solver']}\non {r['grid']}", {n: held[n] for n in few})
    return list(out.items())


def _panels(p: Problem, row: Row, reference: Reference) -> tuple[str, list[tuple[str, Tensor]]]:
    """The row's samples at each of its costs."""
    name, by_cost = row
    out = []
    for n, cell in by_cost.items():
        plan = planned(cell.config, p, n)
        w = cells.integrate(p, plan, reference.at(plan.start)[:SHOWN])
        out.append((f"{plan.calls} NFE", cells.clean(p, w, plan.end)))
    return name, out


def _in_range(p: Problem, x: Tensor) -> Tensor:
    """x with the data's least and largest value at -1 and 1; an exact target's are there."""
    if p.data is None:
        return x
    low, high = float(p.data.min()), float(p.data.max())
    return (x - low) / max(high - low, 1e-12) * 2 - 1


def _truth(p: Problem, reference: Reference) -> tuple[str, list[tuple[str, Tensor]]]:
    """What the others should look like."""
    out, count = [], min(SHOWN, len(p.start))
    if reference.covers([0.0]):
        out.append(("exact trajectory", reference.at(0.0)[:SHOWN]))
    if p.data is not None:
        out.append(("held-out data", p.data[:count]))
    elif p.law is not None:
        out.append(("exact samples", p.law.sample(count, seed=p.seed + 1)))
    return "to compare", out


def _slug(name: str) -> str:
    return name.replace(" ", "-")
