"""A chart of the report as SVG: a measure against network calls, drawn by hand.

Colours are classes, so that the page's style serves light and dark. Every point has its value as a
title, and the chart a description in words; what the page's script needs stands in the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from ...solvers.store import Record
from ..measures.quality import Measure
from . import table
from .curves import Curve, reach, shown

WIDE, HIGH = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 46
LINEAR = 0.01
"""Up to which a signed measure's axis is linear; logarithmic beyond, on either side."""
Scale = Callable[[float], float]


def chart(name: str, records: Sequence[Record], m: Measure, floor: Sequence[float] | None) -> str:
    """A figure with its legend: the measure of one problem's records, '' where there are none.

    floor: mean, least and largest value of exact samples, drawn as a band.
    """
    found = shown(records, m)
    if not found:
        return ""
    costs = sorted({int(r["nfe_asked"]) for r in records})
    across = _across([int(r["nfe"]) for c in found for r in c.records], costs)
    up, ticks, cut = _up(found, m, math.inf if floor is None else floor[1])
    inside = "inside-" + "".join(c if c.isalnum() else "-" for c in f"{name}-{m.field}")
    parts = [_axes(across, costs, up, ticks, m, inside)]
    if floor is not None:
        low, high = up(floor[1]), up(floor[2])
        parts.append(
            f"<rect class=floor x={LEFT} y={_n(high)} width={WIDE - LEFT - RIGHT} "
            f"height={_n(max(low - high, 1))}><title>exact samples: {table.number(floor[0], m)}"
            "</title></rect>"
        )
    marks = _styles(found)
    # the first is drawn last, on top
    for c, k in reversed(list(zip(found, marks, strict=True))):
        parts.append(f'<g clip-path="url(#{inside})">{_curve(c, k, across, up, m)}</g>')
    title = escape(f"{name}: {m.title}")
    legend = "".join(
        f'<li><button type=button class="{k}" aria-pressed=true>'
        f"<svg width=26 height=10 aria-hidden=true><line class=line x1=0 y1=5 x2=26 y2=5 /></svg>"
        f"{escape(c.label)}</button></li>"
        for c, k in zip(found, marks, strict=True)
    )
    return (
        f"<figure class=chart><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role=img tabindex=0 '
        f'aria-label="{title}. {escape(_described(found, m))}">{"".join(parts)}</svg>'
        f"<ul class=legend>{legend}</ul><p class=note>{escape(_caption(records, m, cut))}</p>"
        "</figure>"
    )


def _n(v: float) -> str:
    return f"{v:.1f}".rstrip("0").rstrip(".")


def _across(calls: Sequence[int], costs: Sequence[int]) -> Scale:
    """Calls to x, logarithmic."""
    low, high = math.log(min([*calls, *costs]) * 0.94), math.log(max([*calls, *costs]) * 1.05)
    wide = WIDE - LEFT - RIGHT
    return lambda n: LEFT + wide * (math.log(n) - low) / (high - low)


def _up(found: Sequence[Curve], m: Measure, floor: float) -> tuple[Scale, list[float], bool]:
    """The measure to y, the ticks, whether a curve leaves the chart."""
    low, high, cut = reach(found, m)
    if m.share:
        return _spread(0.0, 1.0, lambda v: v), [0, 0.25, 0.5, 0.75, 1], False
    if m.signed:
        ends = [r[f"{m.field}_{e}"] for c in found for r in c.records for e in ("lo", "hi")]
        high = min(max(high, LINEAR), 3)
        low = max(min(ends), -high)
        held = [0.0, *(s * LINEAR * 10**k for k in range(4) for s in (-1, 1))]
        ticks = [v for v in held if min(low, 0) <= v <= high]
        return _spread(min(low, 0), high, _both_sides), ticks, cut
    if floor > 0:
        low = min(low, floor / 1.2)
    few = high / low < 100  # too few decades for powers of ten alone
    steps = (1, 2, 5) if few else (1,)
    ticks = [s * 10.0**k for k in range(-12, 8) for s in steps if low <= s * 10.0**k <= high]
    return _spread(low, high, lambda v: math.log(max(v, 1e-12))), ticks, cut


def _both_sides(v: float) -> float:
    return math.copysign(min(abs(v) / LINEAR, 1 + math.log10(max(abs(v) / LINEAR, 1))), v)


def _spread(low: float, high: float, of: Scale) -> Scale:
    """Values to y, [low, high] over the chart's height, not further than a fifth beyond."""
    a, b, tall = of(low), of(high), HIGH - TOP - BOTTOM

    def at(v: float) -> float:
        share = (of(v) - a) / (b - a)
        return TOP + tall * (1 - min(max(share, -0.2), 1.2))

    return at


def _axes(
    across: Scale, costs: Sequence[int], up: Scale, ticks: Sequence[float], m: Measure, inside: str
) -> str:
    right, bottom = WIDE - RIGHT, HIGH - BOTTOM
    parts = [
        (
            f"<clipPath id={inside}><rect x={LEFT} y={TOP} "
            f"width={right - LEFT} height={bottom - TOP} /></clipPath>"
        )
    ]
    for v in ticks:
        y, kind = _n(up(v)), "zero" if m.signed and v == 0 else "grid"
        text = f"{v:+g}" if m.signed and v else f"{v:g}" if abs(v) >= 1e-4 or not v else f"{v:.0e}"
        parts.append(
            f"<line class={kind} x1={LEFT} y1={y} x2={right} y2={y} />"
            f'<text x={LEFT - 7} y={y} dy=".35em" class=end>{text}</text>'
        )
    for n in costs:
        x = _n(across(n))
        parts.append(
            f"<line class=grid x1={x} y1={TOP} x2={x} y2={bottom} />"
            f"<text x={x} y={bottom + 18} class=middle>{n}</text>"
        )
    middle = _n((LEFT + right) / 2)
    return "".join([*parts, f"<text x={middle} y={HIGH - 8} class=middle>network calls</text>"])


def _styles(found: Sequence[Curve]) -> list[str]:
    """A class for each: 'default', 'ours c1' ..., 'peer d1' ..."""
    counts = {True: 0, False: 0}
    out = []
    for c in found:
        if c.default:
            out.append("default")
            continue
        counts[c.ours] += 1
        out.append(f"ours c{counts[True]}" if c.ours else f"peer d{counts[False]}")
    return out


def _curve(c: Curve, style: str, across: Scale, up: Scale, m: Measure) -> str:
    at = [_n(across(int(r["nfe"]))) for r in c.records]
    points = [(x, _n(up(r[m.field]))) for x, r in zip(at, c.records, strict=True)]
    parts = []
    if c.ours:
        ends = {e: [_n(up(r[f"{m.field}_{e}"])) for r in c.records] for e in ("lo", "hi")}
        there = [f"{x},{y}" for x, y in zip(at, ends["hi"], strict=True)]
        back = [f"{x},{y}" for x, y in zip(at, ends["lo"], strict=True)]
        parts.append(f'<polygon class=band points="{" ".join([*there, *reversed(back)])}" />')
    parts.append(f'<polyline class=line points="{" ".join(f"{x},{y}" for x, y in points)}" />')
    for (x, y), r in zip(points, c.records, strict=True):
        held = [r[m.field], r[f"{m.field}_lo"], r[f"{m.field}_hi"]]
        value, low, high = (table.number(float(v), m) for v in held)
        said = f"{value} ({low} to {high})"
        parts.append(
            f'<circle cx={x} cy={y} r=3.2 data-n={r["nfe"]} data-v="{said}">'
            f"<title>{escape(c.label)}, {r['nfe']} calls: {said}</title></circle>"
        )
    name = escape(c.label)
    return f'<g class="curve {style}" data-name="{name}">{"".join(parts)}</g>'


def _described(found: Sequence[Curve], m: Measure) -> str:
    """The chart in words: each curve from its first to its last cost."""
    said = []
    for c in found:
        first, last = c.records[0], c.records[-1]
        ends = (f"{table.number(float(r[m.field]), m)} at {r['nfe']} calls" for r in (first, last))
        said.append(f"{c.label}: {' to '.join(ends)}")
    return "; ".join(said) + "."


def _caption(records: Sequence[Record], m: Measure, cut: bool) -> str:
    grids = {r["grid"] for r in records if r["library"] == "undiffuse"}
    line = (
        f"Each of ours on the best of {len(grids)} grids, picked after the run; each peer on its "
        "one. The default is not picked. Bands: 95 %."
        if len(grids) > 1
        else "Bands: 95 %."
    )
    if m.signed:
        line += f" The axis is linear within {LINEAR:g} and logarithmic beyond."
    return line + (" Curves that leave at the top go on there." if cut else "")
