"""Several seeds of one configuration as one record: means, with intervals that shrink accordingly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...kernels.errors import InvalidValue
from ...kernels.files import write_text
from ...solvers import store
from ...solvers.store import Record, Store
from ..measures.quality import MEASURES
from ..report import table

Cell = tuple[Any, ...]


def pooled(records: Sequence[Record]) -> list[Record]:
    """One record for each configuration and cost, in order of first appearance.

    Values are means over the seeds; half widths of their intervals add in quadrature, as those of
    independent samples do (seeds of a network are held against draws from the same finite data, so
    there a distance's interval is a little too short). A failure of one seed fails the whole. Of two
    records of one seed the one of the larger batch counts; of equal ones each adds its measures.

    Raises ValueError for what is not of one kind: see `check`.
    """
    check(records)
    groups: dict[Cell, dict[int, Record]] = {}
    for r in records:
        of = groups.setdefault(_cell(r), {})
        held = of.get(r["seed"])
        if held is None or r["batch"] > held["batch"]:
            of[r["seed"]] = r
        elif r["batch"] == held["batch"] and r["status"] == held["status"] == "ok":
            of[r["seed"]] = {**held, **r, "key": held["key"]}
    return _told_apart([_mean(list(of.values())) for of in groups.values()])


def check(records: Sequence[Record]) -> None:
    """Raises ValueError where a problem's records are of two networks, or a configuration's of
    several versions: those are different numbers, not repetitions of one."""
    networks: dict[str, str] = {}
    versions: dict[Cell, str] = {}
    for r in records:
        if "network" not in r or "versions" not in r:
            raise InvalidValue(f"{r['problem']}: a result of an older format: run it again")
        held = networks.setdefault(r["problem"], r["network"])
        if held != r["network"]:
            raise InvalidValue(
                f"{r['problem']} is the name of two networks or processes here ({held} and "
                f"{r['network']}): their results cannot be joined; `undiffuse bench compare` sets "
                "them side by side"
            )
        before = versions.setdefault(_cell(r), r["versions"])
        if before != r["versions"]:
            raise InvalidValue(
                f"{r['problem']}: {r['library']} {r['solver']} was run with {before}, and with "
                f"{r['versions']}: run it again with one, or see what changed with `undiffuse bench "
                "compare`"
            )


def _cell(r: Record) -> Cell:
    return tuple(r[k] for k in ("problem", "library", "solver", "grid", "final", "nfe_asked"))


def _told_apart(records: list[Record]) -> list[Record]:
    """How a run ends, or which table it was, joins the grid's name where that alone tells two
    configurations apart."""
    ends: dict[Cell, set[Any]] = {}
    for r in records:
        ends.setdefault(_cell(r)[:4], set()).add(r["final"])
    return [
        {**r, "grid": f"{r['grid']}, {r['final']}"} if len(ends[_cell(r)[:4]]) > 1 else r
        for r in records
    ]


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
        "keys": [r["key"] for r in records],
    }
    for field in ("error_max", "reference_error", "memory"):
        held = [r[field] for r in records if r.get(field) is not None]
        out |= {field: max(held)} if held else {}
    out.pop("error_median", None)  # which is no function of the seeds' medians
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

    Raises ValueError for fewer than two folders and for runs that do not belong together (`check`),
    FileNotFoundError for one without results; then nothing is written.
    """
    if len(sources) < 2:
        raise InvalidValue(f"merge joins two folders or more; got {len(sources)}")
    out, folders = Path(out), [Path(source) for source in sources]
    check([r for folder in folders for r in store.records_of(folder)])
    count = store.merge(folders, out)
    records = pooled(list(Store(out).records.values()))
    shown = []
    for problem in dict.fromkeys(r["problem"] for r in records):
        shown += table.tables(records, problem, list(MEASURES.values()), {})
    write_text(out / "table.md", "\n".join(table.markdown(t) for t in shown))
    table.show(shown, [f"{count} cells of {len(sources)} runs, written to {out}"])
    return count
