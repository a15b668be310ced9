"""The curves of the report: Plotly figures as parts of a page that has its script."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...solvers.store import Record
from ..measures.quality import MEASURES, Measure
from . import figures, table

SHOWN = 7
"""Curves of ours, and of the peers, that are drawn at first; the others wait in the legend."""

PEERS = ("#7d8590", "#a0764f", "#6b8f71", "#8c7aa9", "#b08a3e", "#5f8aa3")
"""Colours of the peers: muted, and dashed."""

FRONT = "front: the least at this cost"


def against_calls(
    summary: Mapping[str, Any], records: Sequence[Record], measures: Sequence[Measure]
) -> str:
    """Each measure of each problem against network calls."""
    out = []
    colors: dict[str, str] = {}
    for m in measures:
        for problem, about in summary["problems"].items():
            mine = [r for r in records if r["problem"] == problem]
            found = figures.curves(mine, m)
            if not found:
                continue
            fig = _figure("network calls (NFE)", m, summary["nfe"])
            said = _draw(fig, found, m, colors, lambda r: r["nfe"])
            floor = about["floors"].get(m.field)
            if floor:
                _band(fig, floor[1], floor[2], log=_log(m))
                said += (
                    " The band is what exact samples get, as many of them: whoever is in it cannot "
                    "be told from exact by this measure."
                )
            out.append(_plot(f"{problem}: {m.title}", said, fig))
    return "".join(out)


def against_time(
    summary: Mapping[str, Any], records: Sequence[Record], seconds: Mapping[str, float]
) -> str:
    """The error of each problem against seconds."""
    out, m = [], MEASURES["error"]
    for problem in summary["problems"]:
        mine = [r for r in records if r["problem"] == problem and r["key"] in seconds]
        found = figures.curves(mine, m)
        if not found:
            continue
        fig = _figure("seconds, all samples", m, None)
        said = _draw(fig, found, m, {}, lambda r: seconds[r["key"]])
        said += " One run each, after a warm-up: differences of a few tens of percent are noise."
        out.append(_plot(f"{problem}: error against time on this machine", said, fig))
    return "".join(out)


def _draw(
    fig: Any,
    found: Sequence[figures.Curve],
    m: Measure,
    colors: dict[str, str],
    x: Callable[[Record], float],
) -> str:
    """Add the curves, and the front that they make; returns what to say of the figure."""
    if _log(m):
        fig.add_trace(_front(found, m, x))
    for trace in _traces(found, m, colors, x):
        fig.add_trace(trace)
    low, high, cut = figures.reach(_first(found), m)
    if m.share:
        fig.update_yaxes(range=[0, 1.02])
        best = "1 is best"
    elif m.signed:
        fig.update_yaxes(range=[-high, high])
        best = "0 is right"
    else:
        fig.update_yaxes(range=[math.log10(low), math.log10(high)])
        best = "Lower is better"
    said = f"{best}; bars are 95 % intervals. A click on a name hides or shows its curve."
    if any(trace.visible == "legendonly" for trace in fig.data):
        said += " Pale names are hidden at first."
    if _log(m):
        said += " The broad line is the front: the least value of all for as many calls or fewer."
        said = (
            said.replace("calls or fewer", "seconds or fewer") if "seconds" in _title(fig) else said
        )
    return said + (" Some curves leave the picture at its edge." if cut else "")


def _title(fig: Any) -> str:
    return str(fig.layout.xaxis.title.text)


def _log(m: Measure) -> bool:
    return not (m.signed or m.share)


def _first(found: Sequence[figures.Curve]) -> list[figures.Curve]:
    """The curves that are drawn at first."""
    sides: dict[bool, list[figures.Curve]] = {True: [], False: []}
    for curve in found:
        sides[curve[0].startswith("undiffuse")].append(curve)
    return [*sides[True][:SHOWN], *sides[False][:SHOWN]]


def _band(fig: Any, low: float, high: float, log: bool) -> None:
    """The floor: what exact samples of the same number get, shaded."""
    fig.add_hrect(y0=low, y1=high, fillcolor="#c9d0d8", opacity=0.4, line_width=0, layer="below")
    at = math.log10(max(high, 1e-12)) if log else high
    fig.add_annotation(
        text="exact samples", x=1, xref="paper", xanchor="right", y=at, yanchor="bottom",
        showarrow=False, font={"size": 12, "color": "#5b6773"},
    )  # fmt: skip


def _figure(x_title: str, m: Measure, ticks: Sequence[int] | None) -> Any:
    import plotly.graph_objects as go  # type: ignore[import-untyped,unused-ignore]

    fig = go.Figure()
    fig.update_layout(
        template="plotly_white", height=620, margin={"l": 60, "r": 15, "t": 10, "b": 40},
        legend={"orientation": "h", "y": -0.16, "x": 0, "font": {"size": 12}}, hovermode="closest",
        hoverlabel={"namelength": -1},
    )  # fmt: skip
    fig.update_xaxes(type="log", title=x_title)
    at = list(ticks) if ticks else [d * 10.0**k for k in range(-5, 5) for d in (1, 2, 5)]
    fig.update_xaxes(tickvals=at, ticktext=[f"{n:g}" for n in at])
    if _log(m):
        decades = [d * 10.0**k for k in range(-12, 7) for d in (1, 2, 5)]
        fig.update_yaxes(
            type="log", tickvals=decades,
            ticktext=[table.short(v) if f"{v:e}"[0] == "1" else f"<i>{table.short(v)}</i>"
                      for v in decades],
        )  # fmt: skip
    return fig


def _front(found: Sequence[figures.Curve], m: Measure, x: Callable[[Record], float]) -> Any:
    """The Pareto front of all curves, hidden ones too: a step wherever more cost buys less error."""
    import plotly.graph_objects as go

    points = sorted(
        ((x(r), r[m.field], label) for _, label, held in found for r in held), key=lambda p: p[:2]
    )
    steps: list[tuple[float, float, str]] = []
    for cost, value, label in points:
        if not steps or value < steps[-1][1]:
            steps.append((cost, value, label))
    return go.Scatter(
        x=[s[0] for s in steps], y=[s[1] for s in steps],
        text=[f"{table.short(value)}: {label}" for _, value, label in steps], name=FRONT,
        hovertemplate="%{text}", mode="lines", legendrank=2000,
        line={"color": "rgba(240, 190, 60, 0.55)", "width": 10, "shape": "hv"},
    )  # fmt: skip


def _traces(
    found: Sequence[figures.Curve],
    m: Measure,
    colors: dict[str, str],
    x: Callable[[Record], float],
) -> list[Any]:
    import plotly.graph_objects as go

    dashes = ("dash", "dot", "dashdot", "longdash", "longdashdot")
    counts = {True: 0, False: 0}
    out = []
    for library, label, held in found:
        ours = library.startswith("undiffuse")
        rank = counts[ours]
        counts[ours] += 1
        color = PEERS[rank % len(PEERS)]
        if ours:
            color = colors.setdefault(
                held[0]["solver"], figures.OURS[len(colors) % len(figures.OURS)]
            )
        y = [r[m.field] for r in held]
        text = [
            f"{table.number(r[m.field], m)} ({table.number(r[f'{m.field}_lo'], m)} to "
            f"{table.number(r[f'{m.field}_hi'], m)}), {r['nfe']} NFE" for r in held
        ]  # fmt: skip
        bars = {
            "type": "data", "symmetric": False, "thickness": 1, "width": 2,
            "array": [r[f"{m.field}_hi"] - v for r, v in zip(held, y, strict=True)],
            "arrayminus": [_below(m, v, r[f"{m.field}_lo"]) for r, v in zip(held, y, strict=True)],
        }  # fmt: skip
        line = {"color": color, "width": 2 if ours else 1.4}
        if not ours:
            line["dash"] = dashes[rank % len(dashes)]
        out.append(
            go.Scatter(
                x=[x(r) for r in held], y=y, name=label, text=text, error_y=bars, line=line,
                mode="lines+markers", marker={"size": 5}, hovertemplate="%{text}",
                visible=True if rank < SHOWN else "legendonly",
            )
        )  # fmt: skip
    return out


def _below(m: Measure, value: float, low: float) -> float:
    """Length of the lower bar; on a log axis it stops at a quarter of the value."""
    return value - (max(low, value / 4) if _log(m) else low)


def _plot(title: str, said: str, fig: Any) -> str:
    drawn = fig.to_html(
        full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False}
    )
    return f"<h2>{html.escape(title)}</h2><p class=muted>{html.escape(said)}</p>{drawn}"
