"""One HTML file with everything a run found: works offline, needs no server and no other file.

Curves are Plotly's, with its script inside the page (hover for values and intervals, click a name
to hide a curve); pictures are embedded PNGs. Everything else is plain HTML that prints well.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...kernels.errors import MissingPackage
from ...kernels.files import write_text
from ...solvers.store import Record
from ..measures.quality import Measure
from . import curves as report_curves
from . import table
from . import words as report_words
from .words import esc

TABLEAU = (
    "A solver here is a table of numbers. Row i calls the network at time t on the state x_i and makes "
    "the next state: the sum of states x, data predictions D (what the network takes the finished "
    "sample to be) and, where there are any, normals z, each times its number in the row."
)
NUMBERS = (
    "A row is a solver on a grid, a column a number of network calls; under each value its 95 % "
    "interval. 'from &gt; to': the noise levels sigma/alpha of its first and last node. 'states': its "
    "memory. Bold green: no other row of the column is shown to be better."
)

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
td.best { font-weight: 700; color: #14713f; }
td.why { white-space: normal; text-align: left; min-width: 14rem; }
small { color: #5b6773; font-weight: 400; } td small { white-space: nowrap; }
h3 { font-size: 1rem; margin: 1.2rem 0 0; } .bad { color: #a11d2f; }
.advice td, .advice th { text-align: left; white-space: normal; vertical-align: top; }
@media (max-width: 640px) {
  .advice thead { display: none; } .advice tr { display: block; padding: .5rem 0; }
  .advice td { display: flex; border: 0; padding: .1rem 0; }
  .advice td::before { content: attr(data-label); flex: 0 0 8.2rem; color: #5b6773; }
  .advice tr { border-bottom: 1px solid #b8c1ca; } .scroll img { max-width: none; width: 720px; }
  .numbers td:nth-child(2), .numbers th:nth-child(2) { position: sticky; left: 0; background: #fff;
    white-space: normal; min-width: 6.5rem; max-width: 7rem; }
}
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
        raise MissingPackage(
            "the HTML report needs plotly: pip install 'undiffuse[bench]'"
        ) from error
    parts = [
        report_words.opening(summary),
        report_words.advice(summary),
        report_curves.against_calls(summary, records, measures),
        report_curves.against_time(summary, records, seconds),
        *(_picture(caption, png) for caption, png in pictures if png.is_file()),
    ]
    if tableau is not None:
        parts.append(
            f"<h2>{esc(tableau[0])}</h2><p class=muted>{TABLEAU}</p><pre>{esc(tableau[1])}</pre>"
        )
    parts.append(f"<h2>Every number</h2><p class=muted>{NUMBERS}</p>")
    parts += [_table(t) for t in tables]
    parts.append(report_words.how(summary))
    body = "\n".join(parts)
    write_text(
        path,
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<link rel=icon href=data:,>"
        f"<title>undiffuse: NFE against quality</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>{body}</body></html>",
    )


# --- the rest -------------------------------------------------------------------------------------


def _table(t: table.Table) -> str:
    text = {"library", "solver", "grid", "why", "from > to"}

    def kind(name: str, flag: bool) -> str:
        names = ["best"] * flag + ["text"] * (name in text) + ["why"] * (name == "why")
        return f' class="{" ".join(names)}"' if names else ""

    head = "".join(f"<th{kind(c, False)}>{esc(c)}</th>" for c in t.columns)
    rows = "".join(
        "<tr>" + "".join(
            f"<td{kind(c, b)}>{esc(v)}" + (f"<br><small>{esc(ends)}</small>" if ends else "") + "</td>"
            for c, (v, b, ends) in zip(t.columns, line, strict=True)
        ) + "</tr>"
        for line in t.cells()
    )  # fmt: skip
    return (
        f"<p><b>{esc(t.title)}</b></p><div class=scroll><table class=numbers><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _picture(caption: str, png: Path) -> str:
    data = base64.b64encode(png.read_bytes()).decode()
    image = f'<img alt="{esc(caption)}" src="data:image/png;base64,{data}">'
    return f"<h2>{esc(caption)}</h2><div class=scroll>{image}</div>"
