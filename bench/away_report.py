"""What `away` measured, as a table: ratios to the best peer, the choice of constants, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import median

import torch
from torch import Tensor

from ..solvers.families.relay import Relay
from ..solvers.store import Record
from ..solvers.tables.grids import Blend

SHIPPED = "UniPC (default)"
COLUMNS = ("default", "left out", "tuned", "learned", "best fixed", SHIPPED)
"""What is shown over the best peer."""
RESAMPLES = 200
"""Of the starts, for intervals of the means: constants and best rows are chosen anew in each."""
HEAD = """\
Errors (each start's root mean square distance to the network's own fine solution, the mean over
starts) over that of the best peer of diffusers and k-diffusion, which is picked afterwards for each
cell; ± half a 95 % interval over starts, which are the same for both. *default*: what `ud.sample`
does, its constants chosen on all of these. *left out*: the default with the constants that are
chosen on the other networks. *tuned*: `ud.tune` on other starts. *learned*: `ud.tune(learn=True)`.
*best fixed*: the best of {settings} settings, picked afterwards. *{shipped}*: diffusers' own.
"""
CANDIDATES: dict[str, tuple[Relay, Blend]] = {
    f"pace {pace:g}, kept {thirds}/3, w {w:g}, of short runs {short:g}": (
        Relay(pace, kept=thirds / 3),
        Blend(w, short=short),
    )
    for pace, thirds, w, short in product(
        (1.0, 2.0, 4.0), (1, 2), (0.5, 0.6, 0.7), (0.3, 0.45, 0.6)
    )
}
"""Constants of the default. Its form, `few` and `many` were made with some of these networks in
sight."""


def score(values: Sequence[float]) -> float:
    """What constants are chosen by, of ratios to the best peer: their root mean square. It weighs
    the worst cells more than the geometric mean does, and the others more than the worst does."""
    return math.sqrt(sum(v * v for v in values) / len(values))


Cells = dict[tuple[str, int], dict[str, float]]
"""Of every network and number of calls, the ratios of its rows to the best peer."""


Errors = tuple[list[str], Tensor]
"""The names of a record's rows, and [rows, starts] their errors."""


def starts_of(record: Record) -> Errors:
    """A run that was not finite, null in a file, is infinitely far."""
    held = [[math.inf if v is None else v for v in row] for row in record["rows"].values()]
    return list(record["rows"]), torch.tensor(held, dtype=torch.float64)


def ratios(records: Sequence[Record]) -> Cells:
    """Of the mean errors over all starts."""
    means = [(names, off.mean(1)) for names, off in map(starts_of, records)]
    return _over_the_best(records, means)


def _over_the_best(records: Sequence[Record], means: Sequence[Errors]) -> Cells:
    found = {}
    for r, (names, mean) in zip(records, means, strict=True):
        held = dict(zip(names, mean.tolist(), strict=True))
        best = min(e for what, e in held.items() if what.startswith("peer "))
        found[r["network"], r["nfe"]] = {what: e / best for what, e in held.items()}
    return found


def choices(cells: Cells) -> dict[str | None, str | None]:
    """The candidate of least score on all networks but each, and, under None, on all; None where no
    candidate has run on all of them."""
    known = [w for w in CANDIDATES if all(w in c for c in cells.values())]
    squares: dict[str, list[float]] = {}
    for (name, _), cell in cells.items():
        before = squares.get(name, [0.0] * len(known))
        squares[name] = [s + cell[w] ** 2 for s, w in zip(before, known, strict=True)]
    found: dict[str | None, str | None] = {}
    for without in (None, *squares):
        others = [s for name, s in squares.items() if name != without]
        sums = [sum(each) for each in zip(*others, strict=True)]
        found[without] = known[sums.index(min(sums))] if sums else None
    return found


def columns(cells: Cells) -> dict[str, list[tuple[str, int, float]]]:
    """Of each column (network, calls, ratio) of every cell; what did not run where it was chosen
    is infinitely far."""
    out: dict[str, list[tuple[str, int, float]]] = {what: [] for what in COLUMNS}
    others = choices(cells)
    for (name, n), cell in cells.items():
        fixed = [v for w, v in cell.items() if w.startswith("fixed ")]
        chosen = others[name]
        values = {
            **{w: cell.get(w) for w in ("default", "tuned", "learned")},
            "left out": None if chosen is None else cell.get(chosen, math.inf),
            "best fixed": min(fixed, default=None),
            SHIPPED: cell.get(f"peer {SHIPPED}"),
        }
        for what, value in values.items():
            if value is not None:
                out[what].append((name, n, value))
    return {what: held for what, held in out.items() if held}


def summary(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Of each column the geometric mean with its bootstrap interval over starts (lo, hi), the
    worst ratio and the number of cells."""
    whole = columns(ratios(records))
    g, drawn, known = torch.Generator().manual_seed(0), [], [starts_of(r) for r in records]
    for _ in range(RESAMPLES):
        rows: dict[str, Tensor] = {}  # all cells of a network have the same starts
        means = []
        for r, (names, off) in zip(records, known, strict=True):
            count = off.shape[1]
            if r["network"] not in rows:
                rows[r["network"]] = torch.randint(count, (count,), generator=g, device="cpu")
            means.append((names, off[:, rows[r["network"]]].mean(1)))
        drawn.append(columns(_over_the_best(records, means)))
    found: dict[str, dict[str, float]] = {}
    for what, held in whole.items():
        spread = sorted(_mean([v for *_, v in d[what]]) for d in drawn if what in d)
        found[what] = {
            "mean": _mean([v for *_, v in held]),
            "lo": spread[int(0.025 * len(spread))],
            "hi": spread[int(0.975 * (len(spread) - 1))],
            "worst": max(v for *_, v in held),
            "cells": len(held),
        }
    return found


def by_calls(records: Sequence[Record]) -> dict[str, dict[str, dict[str, float]]]:
    """Of each number of calls and column the geometric mean and the worst ratio."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    held = columns(ratios(records))
    for n in dict.fromkeys(r["nfe"] for r in records):
        values = {what: [v for _, m, v in cells if m == n] for what, cells in held.items()}
        out[str(n)] = {w: {"mean": _mean(v), "worst": max(v)} for w, v in values.items() if v}
    return out


def report(records: Sequence[Record]) -> tuple[str, dict[str, dict[str, float]]]:
    """The table in Markdown, and the summary."""
    cells, found = ratios(records), summary(records)
    chosen = choices(cells)
    by_column = {
        what: {(name, n): value for name, n, value in held} for what, held in columns(cells).items()
    }
    head = ["network", "calls", "best peer", "its error / reference's", *COLUMNS]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for r in records:
        at, off = (r["network"], r["nfe"]), dict(zip(*starts_of(r), strict=True))
        best = min((w for w in off if w.startswith("peer ")), key=lambda w: float(off[w].mean()))
        fixed = [w for w in off if w.startswith("fixed ")]
        row = {w: w for w in ("default", "tuned", "learned")}
        row |= {"left out": chosen[at[0]] or "", SHIPPED: f"peer {SHIPPED}"}
        row["best fixed"] = min(fixed, key=lambda w: float(off[w].mean()), default="")
        texts = []
        for what in COLUMNS:
            value = by_column.get(what, {}).get(at)
            half = _half_width(off[row[what]], off[best]) if row[what] in off else math.inf
            texts.append("" if value is None else f"{_told(value)} ± {_told(half)}")
        above = float(off[best].mean()) / max(r["reference_error"], 1e-300)
        told = [at[0], str(at[1]), best.removeprefix("peer "), f"{above:.2g}", *texts]
        lines.append(f"| {' | '.join(told)} |")
    told = ["" if w not in found else _line(found[w]) for w in COLUMNS]
    lines.append(f"| **geometric mean (worst)** | | | | {' | '.join(told)} |")
    starts = ", ".join(sorted({str(r["starts"]) for r in records}, key=int))
    tried = {w for r in records for w in r["rows"] if w.startswith("fixed ")}
    words = HEAD.format(settings=len(tried), shipped=SHIPPED)
    text = (
        f"{words}\nStarts of a network: {starts}.{_pilots(records)}\n\n" + "\n".join(lines) + "\n"
    )
    return f"{text}\n{_choices(chosen)}", found


def _choices(chosen: Mapping[str | None, str | None]) -> str:
    """Which constants are chosen on the others of each network, and on all."""
    grouped: dict[str | None, list[str]] = {}
    for name, what in chosen.items():
        if name is not None:
            grouped.setdefault(what, []).append(name)
    lines = [f"Of {len(CANDIDATES)} sets of constants of the default, by the least score:", ""]
    lines.append(f"- on all networks: {chosen[None] or 'none'}")
    lines += [
        f"- on all but {', '.join(names)}, each in its turn: {what or 'none'}"
        for what, names in grouped.items()
    ]
    return "\n".join(lines) + "\n"


def _pilots(records: Sequence[Record]) -> str:
    """How long it took to ask the networks, of the cells that say so."""
    asked: dict[str, list[float]] = {}
    for r in records:
        if notes := r.get("tuning"):
            asked.setdefault("learned" if "learned" in r["rows"] else "tuned", []).append(
                notes["seconds"]
            )
    told = [f"{what} {median(held):.0f} (at most {max(held):.0f})" for what, held in asked.items()]
    words = " Seconds of one core that a cell took to be {}, the pilot included, in the median."
    return words.format("; ".join(told)) if told else ""


def _mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(max(v, 1e-12)) for v in values) / len(values))


def _told(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.2g}"


def _line(s: Mapping[str, float]) -> str:
    return f"**{s['mean']:.2f}** [{s['lo']:.2f}, {s['hi']:.2f}] ({s['worst']:.2g})"


def _half_width(error: Tensor, best: Tensor) -> float:
    """Half a 95 % interval of mean(error) / mean(best) over starts, by the delta method."""
    ratio = error.mean() / best.mean()
    return float(1.96 * ((error - ratio * best) / best.mean()).std() / math.sqrt(len(error)))
