"""How values show themselves in a notebook: small HTML tables, without styles of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """An HTML table; cells are text, of which nothing is taken for markup.

    title: above it. head: names of the columns. rows: their cells. note: a line below.
    """
    top = "".join(f"<th>{escape(str(name))}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    under = f"<p>{escape(note)}</p>" if note else ""
    return (
        f"<div><p><b>{escape(title)}</b></p>"
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{under}</div>"
    )
