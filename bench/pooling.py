"""Several seeds of one configuration as one record: means, with intervals that shrink accordingly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import store, table
from .quality import MEASURES
from .store import Record, Store, write_text

Cell = tuple[Any, ...]


def pooled(records: Sequence[Record]) -> list[Record]:
    """One record for each configuration and cost, in order of first appearance.

    Values are means over the seeds; half widths of their intervals, which are of independent
    samples, add in quadrature. A failure of one seed fails the whole. Of two records of one seed the
    one of the larger batch counts.
    """
    groups: dict[Cell, dict[int, Record]] = {}
    for r in records:
        of = groups.setdefault(_cell(r), {})
        held = of.get(r["seed"])
        if held is None or r["batch"] > held["batch"]:
            of[r["seed"]] = r
    return [_mean(list(of.values())) for of in groups.values()]


def _cell(r: Record) -> Cell:
    return tuple(r[k] for k in ("problem", "library", "solver", "grid", "final", "nfe_asked"))


def _mean(records: list[Record]) -> Record:
    if len(records) == 1:
        return records[0]
    for r in records:
        if r["status"] != "ok":
            return {**r, "message": f"seed {r['seed']}: {r['message']}"}
    out = {
        **records[0],
        "nfe": max(r["nfe"] for r in records),
        "batch": sum(r["batch"] for r in records),
        "seed": [r["seed"] for r in records],
    }
    for field in MEASURES:
        if all(r.get(field) is not None for r in records):
            value = sum(r[field] for r in records) / len(records)
            below, above = (
                math.hypot(*(r[f"{field}_{end}"] - r[field] for r in records)) / len(records)
                for end in ("lo", "hi")
            )
            out |= {field: value, f"{field}_lo": value - below, f"{field}_hi": value + above}
    return out


def merge(sources: Sequence[str | Path], out: str | Path) -> int:
    """Join run folders into `out` (results, timings, table.md) and print the tables; returns the
    number of distinct cells. `undiffuse bench --out` of the joined folder repeats none of them.

    Raises ValueError for fewer than two folders, FileNotFoundError for one without results.
    """
    if len(sources) < 2:
        raise ValueError(f"merge joins two folders or more; got {len(sources)}")
    out = Path(out)
    count = store.merge(map(Path, sources), out)
    records = pooled(list(Store(out).records.values()))
    shown = []
    for problem in dict.fromkeys(r["problem"] for r in records):
        shown += table.tables(records, problem, list(MEASURES.values()), {})
    write_text(out / "table.md", "\n".join(table.markdown(t) for t in shown))
    table.show(shown, [f"{count} cells of {len(sources)} runs, written to {out}"])
    return count
