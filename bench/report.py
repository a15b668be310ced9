"""One HTML file with everything a run found: works offline, needs no server and no other file.

Curves are Plotly's, with its script inside the page (hover for values and intervals, click a name
to hide a curve); pictures are embedded PNGs. Everything else is plain HTML that prints well.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import figures, table
from .quality import MEASURES, Measure
from .store import Record, write_text

SHOWN = 7
"""Curves of ours, and of the peers, that are drawn at first; the others wait in the legend."""

PEERS = ("#7d8590", "#a0764f", "#6b8f71", "#8c7aa9", "#b08a3e", "#5f8aa3")
"""Colours of the peers: muted, and dashed."""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; margin: 0 auto; max-width: 1180px;
       padding: 1rem; }
h1 { font-size: 1.6rem; margin: .3rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .4rem; }
p { max-width: 75ch; } .muted { color: #5b6773; font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e3e7eb; }
th { border-bottom: 2px solid #b8c1ca; } td.text, th.text { text-align: left; }
td.best { font-weight: 700; color: #14713f; } td.why, td.use { white-space: normal; text-align: left; }
td.use { min-width: 9rem; } td.why { min-width: 14rem; } th.wrap { white-space: normal; }
pre { overflow-x: auto; background: #f5f7f9; padding: .8rem; font-size: .78rem; }
img { max-width: 100%; height: auto; } details > summary { cursor: pointer; margin: .4rem 0; }
"""


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    records: Sequence[Record],
    seconds: Mapping[str, float],
    measures: Sequence[Measure],
    tables: Sequence[table.Table],
    pictures: Sequence[tuple[str, Path]],
    tableau: tuple[str, str] | None,
) -> None:
    """Write the page. seconds: by cell key. pictures: (caption, PNG). tableau: (title, text) of
    the winner. Raises ImportError, naming the extra, without plotly."""
    try:
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError(
            "the HTML report needs plotly: pip install 'undiffuse[bench]'"
        ) from error
    parts = [
        "<h1>NFE against quality</h1>",
        (f"<p class=muted>undiffuse {_esc(summary['environment']['undiffuse'])}, "
        f"{summary['cells']} cells, {summary['failed']} failed.</p>"),
        _advice(summary),
        _curves(summary, records, measures),
        _time_curves(summary, records, seconds),
        *(_picture(caption, png) for caption, png in pictures if png.is_file()),
    ]
    if tableau is not None:
        parts.append(f"<h2>{_esc(tableau[0])}</h2><pre>{_esc(tableau[1])}</pre>")
    parts.append("<h2>Every number</h2>" + "".join(_table(t) for t in tables))
    parts.append(_conventions(summary))
    body = "\n".join(parts)
    write_text(
        path,
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<link rel=icon href=data:,>"
        f"<title>undiffuse: NFE against quality</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>{body}</body></html>",
    )


# --- words ----------------------------------------------------------------------------------------


def _advice(summary: Mapping[str, Any]) -> str:
    """The plain-language table: at this many calls, use this."""
    out, m = ["<h2>What to use</h2>"], MEASURES[summary["judged_by"]]
    for problem, by_cost in summary["best"].items():
        rows = []
        for cost, ties in by_cost.items():
            names = [_config(t) for t in ties]
            more = f" (not told apart from it: {', '.join(names[1:4])}" if names[1:] else ""
            more += f" and {len(names) - 4} more)" if names[4:] else ")" if more else ""
            row = [f"at {cost}", names[0] + more, table.short(float(ties[0][m.field]))]
            if m.field == "error":
                other = summary["front"][problem][cost]["peers"]
                row += [_config(other), table.short(float(other["error"]))] if other else ["-", "-"]
            rows.append(row)
        columns, title = ["network calls", "use", m.title], f"{problem}: by {m.title}"
        if m.field == "error":
            columns = [*columns[:2], "error / data std", "best of the others", "its error"]
            title = f"{problem}: how to come nearest to the exact trajectory"
        flat = [[False] * len(columns) for _ in rows]
        out.append(_table(table.Table(title, columns, rows, flat)))
    out += [f"<p><b>Broken:</b> {_esc(s)}</p>" for s in summary["broken_claims"]]
    if "likelihood" in summary:
        b = summary["likelihood"]
        out.append(
            f"<p>{b['count']} held-out events cost the network {b['bits_per_dim']:.3f} bits/dim "
            f"(95 % interval {b['lo']:.3f} to {b['hi']:.3f}; {b['trace']} trace, {b['nfe']} calls).</p>"
        )
    return "".join(out)


def _config(r: Mapping[str, Any]) -> str:
    name = f"{r['solver']} on {r['grid']}"
    return name if r["library"] == "undiffuse" else f"{r['library']} {name}"


def _conventions(summary: Mapping[str, Any]) -> str:
    lines = [
        f"{name}: {p['about']}; process {p['process']}; {p['batch']} samples of "
        f"each seed ({', '.join(map(str, p['seeds']))}); "
        f"sigma/alpha from {p['r_max']:.5g} to {p['r_min']:.3g}; data std {p['std']:.4g}; the "
        f"reference's own error is at most {p['reference_error']:.1e}."
        for name, p in summary["problems"].items()
    ]
    lines += [
        ("All runs of a problem start from the same noise, on the reference at their own first "
        "sigma/alpha, and are compared with it at their own last one ('from > to' in the tables), "
        "so ends that do not match are not counted as errors."),
        ("The network is told the exact noise level of every call. diffusers rounds most of its "
        "timesteps to integers; a network of continuous time would see those schedulers worse."),
        ("NFE are counted calls; '(n)' follows a number whose run made n calls, fewer than asked. "
        "A run that makes another number than it declares is a failed row."),
        ("Intervals are 95 %: bootstrap over samples for means, delete-a-group jackknife for "
        "distances. Bold green: no other row of the column is shown to be better."),
    ]
    versions = ", ".join(f"{k} {v}" for k, v in summary["environment"].items())
    items = "".join(f"<li>{_esc(line)}</li>" for line in [*lines, versions])
    return f"<h2>How it was measured</h2><ul>{items}</ul>"


# --- curves ---------------------------------------------------------------------------------------


def _curves(
    summary: Mapping[str, Any], records: Sequence[Record], measures: Sequence[Measure]
) -> str:
    out = []
    colors: dict[str, str] = {}
    for m in measures:
        for problem, about in summary["problems"].items():
            mine = [r for r in records if r["problem"] == problem]
            found = figures.curves(mine, m)
            if not found:
                continue
            fig = _figure("network calls (NFE)", m, summary["nfe"])
            for trace in _traces(found, m, colors, lambda r: r["nfe"]):
                fig.add_trace(trace)
            floor = about["floors"].get(m.field)
            if floor:
                _band(fig, floor[1], floor[2], log=not (m.signed or m.share))
            if m.signed:  # one run that blew up must not flatten the others
                reach = sorted(abs(r[m.field]) for _, _, held in found for r in held)
                top = 2 * reach[len(reach) // 2] + 1e-3
                fig.update_yaxes(range=[-top, top])
            out.append(_plot(f"{problem}: {m.title}", fig))
    return "".join(out)


def _band(fig: Any, low: float, high: float, log: bool) -> None:
    """The floor: what exact samples of the same number get, shaded."""
    fig.add_hrect(y0=low, y1=high, fillcolor="#c9d0d8", opacity=0.4, line_width=0, layer="below")
    at = math.log10(max(high, 1e-12)) if log else high
    fig.add_annotation(
        text="exact samples", x=1, xref="paper", xanchor="right", y=at, yanchor="bottom",
        showarrow=False, font={"size": 12, "color": "#5b6773"},
    )  # fmt: skip


def _time_curves(
    summary: Mapping[str, Any], records: Sequence[Record], seconds: Mapping[str, float]
) -> str:
    out = []
    for problem in summary["problems"]:
        mine = [r for r in records if r["problem"] == problem and r["key"] in seconds]
        found = figures.curves(mine, MEASURES["error"])
        if not found:
            continue
        fig = _figure("seconds, all samples", MEASURES["error"], None)
        for trace in _traces(found, MEASURES["error"], {}, lambda r: seconds[r["key"]]):
            fig.add_trace(trace)
        out.append(_plot(f"{problem}: error against time on this machine", fig))
    return "".join(out)


def _figure(x_title: str, m: Measure, ticks: Sequence[int] | None) -> Any:
    import plotly.graph_objects as go  # type: ignore[import-untyped,unused-ignore]

    fig = go.Figure()
    fig.update_layout(
        template="plotly_white", height=620, margin={"l": 60, "r": 15, "t": 10, "b": 40},
        legend={"orientation": "h", "y": -0.16, "x": 0, "font": {"size": 12}}, hovermode="closest",
    )  # fmt: skip
    fig.update_xaxes(type="log", title=x_title)
    at = list(ticks) if ticks else [d * 10.0**k for k in range(-5, 5) for d in (1, 2, 5)]
    fig.update_xaxes(tickvals=at, ticktext=[f"{n:g}" for n in at])
    if m.share:
        fig.update_yaxes(range=[0, 1.02])
    elif not m.signed:
        fig.update_yaxes(type="log", exponentformat="power", dtick=1)
    return fig


def _traces(
    found: Sequence[figures.Curve], m: Measure, colors: dict[str, str], x: Any
) -> list[Any]:
    import plotly.graph_objects as go  # type: ignore[import-untyped,unused-ignore]

    dashes = ("dash", "dot", "dashdot", "longdash", "longdashdot")
    counts = {True: 0, False: 0}
    out = []
    for library, label, held in found:
        ours = library.startswith("undiffuse")
        rank = counts[ours]
        counts[ours] += 1
        color = PEERS[rank % len(PEERS)]
        if ours:
            color = colors.setdefault(held[0]["solver"], figures.OURS[len(colors) % len(figures.OURS)])
        y = [r[m.field] for r in held]
        text = [
            f"{table.short(r[m.field])} ({table.short(r[f'{m.field}_lo'])} to "
            f"{table.short(r[f'{m.field}_hi'])}), {r['nfe']} NFE" for r in held
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
    return value - (low if m.signed or m.share else max(low, value / 4))


def _plot(title: str, fig: Any) -> str:
    drawn = fig.to_html(
        full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False}
    )
    return f"<h2>{_esc(title)}</h2>{drawn}"


# --- the rest -------------------------------------------------------------------------------------


def _table(t: table.Table) -> str:
    text = {"library", "solver", "grid", "use", "why", "from > to", "best of the others"}

    def kind(name: str, flag: bool) -> str:
        names = ["best"] * flag + ["text"] * (name in text)
        names += [name] * (name in ("why", "use")) + ["use"] * (name == "best of the others")
        names += ["wrap"] * (" " in name and name != "from > to")
        return f' class="{" ".join(names)}"' if names else ""

    head = "".join(f"<th{kind(c, False)}>{_esc(c)}</th>" for c in t.columns)
    rows = "".join(
        "<tr>" + "".join(
            f"<td{kind(c, b)}>{_esc(v)}</td>"
            for c, v, b in zip(t.columns, row, flags, strict=True)
        ) + "</tr>"
        for row, flags in zip(t.rows, t.best, strict=True)
    )  # fmt: skip
    return (
        f"<p><b>{_esc(t.title)}</b></p><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _picture(caption: str, png: Path) -> str:
    data = base64.b64encode(png.read_bytes()).decode()
    return f'<h2>{_esc(caption)}</h2><img alt="{_esc(caption)}" src="data:image/png;base64,{data}">'


def _esc(text: Any) -> str:
    return html.escape(str(text))
