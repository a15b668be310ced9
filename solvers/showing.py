"""What results and tables say of themselves: a few lines, and a plot of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models import notebook
from .outcome import Status

VALUES = 72  # cells of a plotted table up to which their numbers are written into them


def ended(status: Tensor, words: Mapping[Status, str] | None = None) -> list[str]:
    """'2 of 8: what that means', for each status but OK.

    words: what a status means here, where that is more than `Status.meaning`.
    """
    codes = status[status != Status.OK].tolist()
    return [
        f"{codes.count(c)} of {len(status)}: {(words or {}).get(c, Status(c).meaning)}"
        for c in sorted(set(codes))
    ]


def values(x: Tensor) -> str:
    """Shape, type, place and span of a tensor."""
    what = f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"
    if not x.numel() or x.is_meta:
        return what
    low, high = (float(v) for v in x.detach().float().aminmax())
    return f"{what}, {low:.3g} .. {high:.3g}, mean {float(x.detach().float().mean()):.3g}"


def counts(n: int | Tensor) -> str:
    """'10', or '8 .. 14' where samples differ."""
    if not isinstance(n, Tensor):
        return str(n)
    low, high = (int(v) for v in n.aminmax()) if n.numel() else (0, 0)
    return str(low) if low == high else f"{low} .. {high}"


def run(
    x: Tensor, nfe: int | Tensor, status: Tensor, times: Tensor | None = None
) -> notebook.Facts:
    """Samples, calls, times and statuses of a run."""
    told = [("x", values(x)), ("nfe", f"{counts(nfe)} network calls a sample")]
    if times is not None and len(times):
        told.append(("times", f"{float(times[0]):.4g} .. {float(times[-1]):.4g}"))
    return [*told, ("status", "; ".join(ended(status)) or "all finished")]


def plot_table(
    name: str,
    rows: Sequence[float],
    what: str,
    columns: Sequence[str],
    cells: Tensor,
    path: str | Path | None,
) -> Any:
    """The grid of a table and its coefficients, side by side.

    name: of the table.
    rows, what: where each row calls the network, and in which unit.
    columns, cells: names [n] and coefficients [N, n].
    path: where to write the figure, if anywhere.
    """
    fig, (left, right) = notebook.figure(2)
    left.plot(range(len(rows)), rows, "o-", ms=4)
    if min(rows) > 0 and what != "t":
        left.set_yscale("log")
    left.set(xlabel="row", ylabel=what, title=f"{name}: where it calls the network")
    most = max(float(cells.abs().max()), 1e-12)
    shown = cells.masked_fill(cells == 0, math.nan).numpy()
    image = right.imshow(shown, cmap="coolwarm", vmin=-most, vmax=most, aspect="auto")
    if cells.numel() <= VALUES:
        for i, row in enumerate(cells.tolist()):
            for j, value in enumerate(row):
                if value:
                    dark = "white" if abs(value) > 0.6 * most else "black"
                    right.text(
                        j, i, f"{value:.3g}", ha="center", va="center", color=dark, fontsize=7
                    )
    every = max(1, len(columns) // 12)
    right.set_xticks(range(0, len(columns), every), columns[::every])
    right.set(ylabel="row", title="coefficients")
    fig.colorbar(image, ax=right)
    return notebook.finished(fig, path)
