"""The pictures of a run, as PNG and SVG: quality against NFE, samples, paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.data.drawing import is_picture, line_of, pyplot, save
from ...solvers import Sampler, Tableau
from ...solvers.store import Record
from ..measures.quality import MEASURES, Measure
from ..nfe.campaign import Cell, clean, integrate
from ..problems.plans import TUNED, plan_of
from ..problems.problem import Problem, Reference, exact_draw, from_unit
from .curves import DEFAULT, Curve, curves, reach, shown, who

OURS = (
    "#1f5fb4",
    "#d1495b",
    "#2a8c6a",
    "#8a4fbf",
    "#c77f0a",
    "#0f8ea3",
    "#7a5230",
    "#c23b9b",
    "#6f9a1d",
    "#12355b",
    "#e2725b",
    "#5d5f8f",
    "#8d0f2d",
    "#3fb0ac",
)
PEER = "#7d8590"
DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))


def quality_against_calls(
    path: Path,
    records: Sequence[Record],
    panels: Sequence[tuple[str, Measure]],
    floors: dict[str, dict[str, Any]],
) -> None:
    """Draw a panel for each (problem, measure), titled so; curves carry their names.

    Ours is on the best of its grids, picked after the run, but for the default; each peer on its
    one. Shaded: 95 % intervals. floors: problem -> field -> (mean, least, largest) of two exact
    sets.
    """
    plt = pyplot()
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(8.2 * columns, 5.4 * rows), squeeze=False, layout="constrained"
    )
    colors: dict[str, str] = {}
    for ax, (problem, m) in zip(axes.flat, panels, strict=False):
        _panel(ax, [r for r in records if r["problem"] == problem], m, colors)
        floor = floors.get(problem, {}).get(m.field)
        if floor is not None:
            ax.axhspan(*floor[1:], color="#dfe3e8", zorder=0, label="exact samples")
        if m.field != "error":
            ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        ax.set_title(f"{problem}: {m.title}", loc="left", fontsize=11)
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_axis_off()
    save(fig, path)
    plt.close(fig)


def _panel(ax: Any, records: list[Record], m: Measure, colors: dict[str, str]) -> None:
    found = shown(records, m)
    peers = [c for c in found if not c.ours]
    ends = []
    for c in found:
        if c.default:
            style = {"color": "black", "lw": 2.6, "marker": "o", "ms": 4, "zorder": 4}
        elif c.ours:
            color = colors.setdefault(c.who[1], OURS[len(colors) % len(OURS)])
            style = {"color": color, "lw": 1.8, "marker": "o", "ms": 3.5, "zorder": 3}
        else:
            dashes = DASHES[peers.index(c) % len(DASHES)]
            style = {"color": PEER, "lw": 1.2, "ls": dashes, "zorder": 2}
        ends.append(_draw(ax, c, m, style))
    ax.set_xscale("log")
    costs = sorted({int(r["nfe_asked"]) for r in records})
    ax.set_xticks(costs, [str(n) for n in costs])
    ax.set_xlim(min([r["nfe"] for r in records if "nfe" in r]) * 0.95, max(costs) * 1.03)
    ax.set_xlabel("network calls (NFE)")
    if m.signed:
        ax.set_yscale("symlog", linthresh=0.01)
        ax.axhline(0, color="#444", lw=0.8)
        ax.set_ylim(max(ax.get_ylim()[0], -3), min(ax.get_ylim()[1], 3))
    elif m.share:
        ax.set_ylim(0, 1.02)
    else:
        ax.set_yscale("log")
        ax.set_ylim(top=min(ax.get_ylim()[1], reach(found, m)[1]))
        lo, hi = ax.get_ylim()
        if hi / lo < 100:  # too few decades for the labels of the powers of ten alone
            ticks = [t * 10**k for k in range(-9, 5) for t in (1, 2, 5)]
            inside = [v for v in ticks if lo <= v <= hi]
            ax.set_yticks(inside, [f"{v:g}" for v in inside])
            ax.set_ylim(lo, hi)
    ax.minorticks_off()
    ax.grid(True, which="major", color="#e6e9ed", lw=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    if m.field == "error":
        _label_ends(ax, ends)


def _draw(ax: Any, c: Curve, m: Measure, style: dict[str, Any]) -> tuple[float, float, str, str]:
    held = c.records
    at = [int(r["nfe"]) for r in held]
    y = [r[m.field] for r in held]
    ax.plot(at, y, label=c.label, **style)
    if style["color"] != PEER:
        lo, hi = ([r[f"{m.field}_{end}"] for r in held] for end in ("lo", "hi"))
        if not (m.signed or m.share):  # an interval down to 0 or below has no place on a log axis
            lo = [max(a, b / 4) for a, b in zip(lo, y, strict=True)]
        ax.fill_between(at, lo, hi, color=style["color"], alpha=0.13, lw=0)
    return at[-1], y[-1], c.label, style["color"]


def _label_ends(ax: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Names at the right of the axes, pushed apart so that none covers another."""
    ax.figure.canvas.draw()
    to_axes = ax.transData + ax.transAxes.inverted()
    at = sorted((float(to_axes.transform((x, y))[1]), x, label, c) for x, y, label, c in ends)
    heights = _apart([min(max(h, 0.0), 1.0) for h, *_ in at], gap=0.045)
    for height, (h, x, label, color) in zip(heights, at, strict=True):
        ax.annotate(
            label,
            (float(to_axes.transform((x, 1.0))[0]), h),
            (1.035, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "alpha": 0.6},
        )


def _apart(rising: list[float], gap: float) -> list[float]:
    """Move sorted heights as little as a two-way sweep needs for neighbours to be gap apart."""
    out = list(rising)
    for _ in range(200):
        moved = False
        for i in range(1, len(out)):
            lack = gap - (out[i] - out[i - 1])
            if lack > 1e-6:
                out[i - 1], out[i] = out[i - 1] - lack / 2, out[i] + lack / 2
                moved = True
        if not moved:
            break
    return out


Panels = Sequence[tuple[str, Tensor]]  # title, pictures [n, C, H, W] in [-1, 1]


def sample_panels(path: Path, rows: Sequence[tuple[str, Panels]], across: int = 4) -> None:
    """A row a name, its panels side by side: in each its pictures, `across` of them a line."""
    plt = pyplot()
    columns = max(len(panels) for _, panels in rows)
    tiles = [[_tile(x, across) for _, x in panels] for _, panels in rows]
    high = max(t.shape[0] / t.shape[1] for line in tiles for t in line)
    wide = 2.3  # inches a panel
    fig, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(wide * columns + 2.6, (wide * high + 0.25) * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for line, (name, panels), pictures in zip(axes, rows, tiles, strict=True):
        for ax, (title, _), tile in zip(line, panels, pictures, strict=False):
            ax.imshow(tile.numpy(), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
            ax.set_title(title, fontsize=9)
        line[0].text(
            -0.06, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9
        )
    save(fig, path)
    plt.close(fig)


def _tile(x: Tensor, across: int) -> Tensor:
    """Pictures [n, C, H, W] as lines of `across`."""
    return torch.cat([line_of(part, across) for part in torch.split(x, across)])


ACROSS, LINES, TIMES = 4, 2, 8
"""Pictures a line, lines a panel; how much differences are enlarged."""
SHOWN = ACROSS * LINES
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

    The last problem's samples are samples.png, the first one's paths paths.png; those of others
    carry their problem's name.
    """
    made = []
    pictured = [p for p in posed if is_picture(p.start.shape[1:])]
    for p in pictured:
        file = out / ("samples.png" if p is pictured[-1] else f"samples-{_slug(p.name)}.png")
        reference = references[p.name]
        rows = lineup(p, todo, records, measures)
        lines = [_with_differences(p, row, reference) for row in rows]
        name, truth = _truth(p, reference)
        lines.append((name, [(title, _in_range(p, x)) for title, x in truth]))
        sample_panels(file, [(name, panels) for name, panels in lines if panels], ACROSS)
        said = f"samples from the same noise; below each, its difference from the exact, {TIMES}x"
        made.append((f"{p.name}: {said}", file))
    flat = [p for p in posed if tuple(p.start.shape[1:]) == (2,)]
    for p in flat:
        file = out / ("paths.png" if p is flat[0] else f"paths-{_slug(p.name)}.png")
        rows = lineup(p, todo, records, measures)
        if draw_paths(file, p, references[p.name], rows):
            made.append((f"{p.name}: paths in the plane", file))
    return made


def lineup(
    p: Problem, todo: Sequence[Cell], records: Sequence[Record], measures: Sequence[Measure]
) -> list[Row]:
    """Who is shown: the default, the best of ours, of tuned tables and of the peers, the customary
    two, the best that draws noise; each on its best grid, with its cells of three costs among those
    that ran."""
    mine = [r for r in records if r["problem"] == p.name and r["status"] == "ok"]
    ran = {key for r in mine for key in r.get("keys", [r["key"]])}
    wanted = [m for m in (MEASURES["error"], *measures) if any(r.get(m.field) for r in mine)]
    found = [c.records[0] for m in wanted for c in curves(mine, m)]
    steady = [r for r in found if not r["stochastic"]]
    ours = [r for r in steady if r["library"] == "undiffuse"]
    best = [
        *[r for r in mine if who(r) == DEFAULT],
        *ours[:1],
        *[r for r in steady if r["library"] == TUNED][:1],
        *[r for r in steady if not r["library"].startswith("undiffuse")][:1],
        *[r for r in ours if r["solver"] in ("ddim", "dpmpp-2m")],
        *[r for r in found if r["stochastic"]][:1],
    ]
    out: dict[str, dict[int, Cell]] = {}
    for r in best:
        named = (r["library"], r["solver"])
        held = {
            c.nfe: c
            for c in todo
            if c.key in ran
            and (c.config.library, c.config.name) == named
            and r["grid"].startswith(c.config.grid)
        }
        costs = sorted(held)
        few = sorted({costs[0], costs[len(costs) // 2], costs[-1]}) if costs else []
        library = "" if r["library"] == "undiffuse" else f"{r['library']} "
        name = f"{library}{r['solver']}\non {r['grid']}"
        if who(r) == DEFAULT:
            name = f"the default,\n{name}"
        out.setdefault(name, {n: held[n] for n in few})
    return list(out.items())


def _panels(p: Problem, row: Row, reference: Reference) -> tuple[str, list[tuple[str, Tensor]]]:
    """The row's samples at each of its costs."""
    name, by_cost = row
    out = []
    for n, cell in by_cost.items():
        plan = plan_of(cell.config, p, n)
        w = integrate(p, plan, reference.at(plan.start)[:SHOWN])
        out.append((f"{plan.calls} NFE", clean(p, w, plan.end)))
    return name, out


def _with_differences(p: Problem, row: Row, reference: Reference) -> tuple[str, Panels]:
    """The row's samples; of a solver that draws no noise a line of them, and below each its
    difference from the exact trajectory's end, TIMES as large: grey is none."""
    name, panels = _panels(p, row, reference)
    out = []
    for (title, x), (n, cell) in zip(panels, row[1].items(), strict=True):
        plan = plan_of(cell.config, p, n)
        pictures = _in_range(p, x)
        if not plan.stochastic and reference.covers([plan.end]):
            exact = _in_range(p, clean(p, reference.at(plan.end)[:SHOWN], plan.end))
            differences = TIMES * (pictures - exact)
            pictures = torch.cat([pictures[:ACROSS], differences[:ACROSS]])
        out.append((title, pictures))
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


def path(problem: Problem, tableau: Tableau, count: int) -> Tensor:
    """States x/alpha after every row for the first `count` samples, [rows + 1, count, d].

    The states of a multi-stage method include its stages.
    """
    process = problem.process
    nodes = [*tableau.times.tolist(), float(tableau.grid[-1])]
    w = problem.start[:count]
    sampler = Sampler(problem.model, tableau, dtype=torch.float64)
    state = sampler.init(w.shape, problem.seed, x_init=from_unit(process, w, nodes[0]))
    with torch.no_grad():
        states = [state.x, *(step.x for step in sampler.steps(state))]
    alphas = [float(process.alpha(t)) for t in nodes]
    return torch.stack([x / a for x, a in zip(states, alphas, strict=True)])


PATHS = 40  # drawn of a solver


def draw_paths(
    file: Path,
    problem: Problem,
    reference: Reference,
    rows: Sequence[tuple[str, Mapping[int, Cell]]],
) -> bool:
    """A panel for each solver that has a table (rows) and each cost (columns), over exact samples
    in grey; a ring marks where the exact trajectory ends. Returns whether there was any to draw."""
    shown = []
    for name, by_cost in rows:
        made = {n: plan_of(cell.config, problem, n).tableau for n, cell in by_cost.items()}
        tables = {n: table for n, table in made.items() if table is not None}
        if tables:
            shown.append((name.replace("\n", " "), tables))
    if not shown or not reference.covers([0.0]):
        return False
    plt = pyplot()
    exact = exact_draw(problem, 0.0, 1500, 5)
    ends = reference.at(0.0)[:PATHS]
    reach = 1.35 * float(exact.abs().max())
    columns = max(len(tables) for _, tables in shown)
    fig, axes = plt.subplots(
        len(shown),
        columns,
        figsize=(2.6 * columns, 2.75 * len(shown)),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for row, (name, tables) in zip(axes, shown, strict=True):
        for ax, (nfe, tableau) in zip(row, tables.items(), strict=False):
            ax.set_aspect("equal")
            ax.set_xlim(-reach, reach)
            ax.set_ylim(-reach, reach)
            ax.set_title(f"{name}, {nfe} NFE", fontsize=8)
            ax.scatter(*exact.T, s=1, color="#d5dae0", lw=0, rasterized=True)
            states = path(problem, tableau, PATHS)
            for j in range(states.shape[1]):
                ax.plot(*states[:, j].T, color=OURS[0], lw=0.5, alpha=0.55)
            ax.scatter(*states[-1].T, s=7, color=OURS[1], zorder=3, lw=0)
            ax.scatter(*ends.T, s=7, facecolor="none", edgecolor="#222", lw=0.5, zorder=4)
    fig.suptitle(
        f"{problem.name}: paths (blue), their ends (red), where the exact ones end (rings)",
        fontsize=10,
    )
    save(fig, file)
    plt.close(fig)
    return True
