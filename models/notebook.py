"""How values show themselves: a few lines in a console; in a notebook small HTML tables, without
styles of their own, and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..kernels.errors import optional

NEEDED = "plots need matplotlib: pip install 'undiffuse[bench]'"
Facts = Sequence[tuple[str, str]]
"""Names and what there is to say of each."""


def lines(title: str, facts: Facts) -> str:
    """A title, and a line for each fact below it."""
    width = max(len(name) for name, _ in facts)
    return "\n".join([title, *(f"  {name:{width}}  {words}" for name, words in facts)])


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """An HTML table; cells are text, of which nothing is taken for markup.

    title: above it.
    head: names of the columns; without any there is no line for them.
    rows: their cells.
    note: a line below.
    """
    top = "".join(f"<th>{escape(str(name))}</th>" for name in head)
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    under = f"<p>{escape(note)}</p>" if note else ""
    return (
        f"<div><p><b>{escape(title)}</b></p><table>{top}<tbody>{body}</tbody></table>{under}</div>"
    )


def figure(panels: int = 1) -> tuple[Any, Any]:
    """A matplotlib figure and its axes, side by side, in the reader's own backend.

    In a notebook a cell that returns the figure shows it once; in a script `plt.show()` does.
    Raises MissingPackage without matplotlib.
    """
    optional("matplotlib", NEEDED)
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, panels, figsize=(5.2 * panels, 3.4), layout="constrained")
    if "inline" in plt.get_backend():  # which would show it a second time where the cell ends
        plt.close(fig)
    return fig, axes


def finished(fig: Any, path: str | Path | None) -> Any:
    """The figure, written to path where one is given, in the format of its ending."""
    if path is not None:
        fig.savefig(path, dpi=150)
    return fig
