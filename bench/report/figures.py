"""The pictures of a run, as PNG and SVG: quality against NFE and against time, and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.data.drawing import line_of, pyplot, save
from ...solvers.store import Record
from ..measures.quality import Measure
from .table import interval, kind

OURS = (
    "#1f5fb4", "#d1495b", "#2a8c6a", "#8a4fbf", "#c77f0a", "#0f8ea3", "#7a5230", "#c23b9b",
    "#6f9a1d", "#12355b", "#e2725b", "#5d5f8f", "#8d0f2d", "#3fb0ac",
)  # fmt: skip
PEER = "#7d8590"
DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
SHOWN_OURS, SHOWN_PEERS = 7, 6

Curve = tuple[str, str, list[Record]]  # library, label, records in order of cost


def curves(records: Sequence[Record], m: Measure) -> list[Curve]:
    """One curve a solver, on the grid where its geometric mean is least, best solvers first; those
    that could run at less than half of the costs last."""
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for r in records:
        if r["status"] == "ok" and kind(r) in m.kinds and r.get(m.field) is not None:
            by_grid = groups.setdefault((r["library"], r["solver"]), {})
            by_grid.setdefault(r["grid"], []).append(r)
    out = []
    for (library, solver), by_grid in groups.items():
        grid, held = min(by_grid.items(), key=lambda item: _level(item[1], m))
        label = f"{solver} · {grid}" if library == "undiffuse" else f"{library} {solver}"
        out.append((_level(held, m), (library, label, sorted(held, key=lambda r: int(r["nfe"])))))
    whole = max((len(held) for _, (_, _, held) in out), default=0)
    out.sort(key=lambda pair: (len(pair[1][2]) < whole / 2, pair[0]))
    return [curve for _, curve in out]


def _level(records: Sequence[Record], m: Measure) -> float:
    return sum(math.log(max(m.off(r[m.field]), 1e-12)) for r in records) / len(records)


def reach(found: Sequence[Curve], m: Measure) -> tuple[float, float, bool]:
    """(low, high) for the axis, and whether anything lies beyond: a run that blew up must not
    flatten the others."""
    held = [r for _, _, records in found for r in records]
    values = sorted(m.off(r[m.field]) for r in held)
    far = max(m.away(interval(r, m.field)).hi for r in held)
    often = 4 * values[len(values) // 2] if m.signed else 30 * values[3 * len(values) // 4]
    top = max(min(1.2 * far, often), 1e-12)
    low = 0.0 if m.signed or m.share else max(values[0] / 2, 1e-12)
    return low, max(top, 2 * low), values[-1] > top


def quality_against(
    x: str,
    path: Path,
    records: Sequence[Record],
    panels: Sequence[tuple[str, Measure]],
    floors: dict[str, dict[str, Any]],
) -> None:
    """Draw a panel for each (problem, measure), titled so; curves carry their names.

    x: "nfe", or "seconds", which the records then have. Shaded: 95 % intervals. floors: problem ->
    field -> (mean, least, largest) of two exact sets.
    """
    plt = pyplot()
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(8.2 * columns, 5.4 * rows), squeeze=False, layout="constrained"
    )
    colors: dict[str, str] = {}
    for ax, (problem, m) in zip(axes.flat, panels, strict=False):
        _panel(ax, x, [r for r in records if r["problem"] == problem], m, colors)
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


def _panel(ax: Any, x: str, records: list[Record], m: Measure, colors: dict[str, str]) -> None:
    found = curves(records, m)
    mine = [c for c in found if c[0].startswith("undiffuse")][:SHOWN_OURS]
    theirs = [c for c in found if not c[0].startswith("undiffuse")][:SHOWN_PEERS]
    ends = []
    for _, label, held in mine:
        color = colors.setdefault(held[0]["solver"], OURS[len(colors) % len(OURS)])
        style = {"color": color, "lw": 1.8, "marker": "o", "ms": 3.5, "zorder": 3}
        ends.append(_draw(ax, x, held, m, label, style))
    for i, (_, label, held) in enumerate(theirs):
        style = {"color": PEER, "lw": 1.2, "ls": DASHES[i % len(DASHES)], "zorder": 2}
        ends.append(_draw(ax, x, held, m, label, style))
    ax.set_xscale("log")
    if x == "nfe":
        costs = sorted({int(r["nfe_asked"]) for r in records})
        ax.set_xticks(costs, [str(n) for n in costs])
        ax.set_xlim(min([r["nfe"] for r in records if "nfe" in r]) * 0.95, max(costs) * 1.03)
    else:
        lo, hi = ax.get_xlim()
        at = [v for v in (d * 10.0**k for k in range(-6, 5) for d in (1, 2, 5)) if lo <= v <= hi]
        ax.set_xticks(at, [f"{v:g}" for v in at])
        ax.set_xlim(lo, hi)
    ax.set_xlabel("network calls (NFE)" if x == "nfe" else "seconds, all samples, on this machine")
    if m.signed:
        ax.set_yscale("symlog", linthresh=0.01)
        ax.axhline(0, color="#444", lw=0.8)
        ax.set_ylim(max(ax.get_ylim()[0], -3), min(ax.get_ylim()[1], 3))
    elif m.share:
        ax.set_ylim(0, 1.02)
    else:
        ax.set_yscale("log")
        ax.set_ylim(top=min(ax.get_ylim()[1], reach([*mine, *theirs], m)[1]))
        lo, hi = ax.get_ylim()
        if hi / lo < 100:  # too few decades for the labels of the powers of ten alone
            ticks = [t * 10**k for k in range(-9, 5) for t in (1, 2, 5)]
            shown = [v for v in ticks if lo <= v <= hi]
            ax.set_yticks(shown, [f"{v:g}" for v in shown])
            ax.set_ylim(lo, hi)
    ax.minorticks_off()
    ax.grid(True, which="major", color="#e6e9ed", lw=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    if m.field == "error":
        _label_ends(ax, ends)


def _draw(
    ax: Any, x: str, held: list[Record], m: Measure, label: str, style: dict[str, Any]
) -> tuple[float, float, str, str]:
    at = [r[x] for r in held]
    y = [r[m.field] for r in held]
    ax.plot(at, y, label=label, **style)
    if style["color"] != PEER:
        lo, hi = ([r[f"{m.field}_{end}"] for r in held] for end in ("lo", "hi"))
        if not (m.signed or m.share):  # an interval down to 0 or below has no place on a log axis
            lo = [max(a, b / 4) for a, b in zip(lo, y, strict=True)]
        ax.fill_between(at, lo, hi, color=style["color"], alpha=0.13, lw=0)
    return at[-1], y[-1], label, style["color"]


def _label_ends(ax: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Names at the right of the axes, pushed apart so that none covers another."""
    ax.figure.canvas.draw()
    to_axes = ax.transData + ax.transAxes.inverted()
    at = sorted((float(to_axes.transform((x, y))[1]), x, label, c) for x, y, label, c in ends)
    heights = _apart([min(max(h, 0.0), 1.0) for h, *_ in at], gap=0.045)
    for height, (h, x, label, color) in zip(heights, at, strict=True):
        ax.annotate(
            label, (float(to_axes.transform((x, 1.0))[0]), h), (1.035, height),
            xycoords="axes fraction", textcoords="axes fraction", color=color, fontsize=9,
            va="center", arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "alpha": 0.6},
        )  # fmt: skip


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
        len(rows), columns, figsize=(wide * columns + 2.6, (wide * high + 0.25) * len(rows)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
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
