"""Two runs side by side: what became slower, less accurate, or changed at all, beyond noise.

Takes folders or results of `undiffuse bench` (quality and memory by cell, seconds from
timings.jsonl) and files of pytest-benchmark (`--benchmark-json`). A quality is worse when the
intervals of the two runs do not overlap. A time is worse when it grew by more than `tolerance` and
by more than the spread of both runs; one-off seconds have no spread, so for those tolerance alone
decides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .quality import MEASURES
from .store import Record, parse
from .table import Table, interval, short, show


@dataclass(frozen=True)
class Change:
    """One number of both runs. verdict: 'worse', 'better' or 'same'."""

    what: str
    before: float
    after: float
    verdict: str

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else float("nan")


def compare(a: str | Path, b: str | Path, *, tolerance: float = 0.25) -> list[Change]:
    """Every number that both runs have. tolerance: of times, relative.

    Raises FileNotFoundError for what is not there, ValueError where the two are of different
    kinds, share nothing, or are neither of the two formats.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0; got {tolerance}")
    (kind_a, before), (kind_b, after) = _read(Path(a)), _read(Path(b))
    if kind_a != kind_b:
        raise ValueError(f"{a} is a {kind_a} and {b} a {kind_b}; compare two of one kind")
    of = _cells if kind_a == "run of undiffuse bench" else _timings
    changes = of(before, after, tolerance)
    if not changes:
        raise ValueError(f"{a} and {b} have no number in common")
    return changes


def run(a: str | Path, b: str | Path, *, tolerance: float = 0.25) -> int:
    """Print what changed; returns 1 if anything became worse, else 0 (an exit status)."""
    changes = compare(a, b, tolerance=tolerance)
    moved = [c for c in changes if c.verdict != "same"]
    moved.sort(key=lambda c: (c.verdict != "worse", -abs(c.ratio - 1)))
    rows = [[c.what, short(c.before), short(c.after), f"{c.ratio:.2f}", c.verdict] for c in moved]
    columns = ["what", "before", "after", "ratio", "verdict"]
    title = f"{len(moved)} of {len(changes)} numbers changed beyond noise"
    worse = sum(c.verdict == "worse" for c in moved)
    tables = [Table(title, columns, rows, [[False] * 5 for _ in rows])] if rows else []
    show(tables, [f"{title}; {worse} became worse"])
    return 1 if worse else 0


def _read(path: Path) -> tuple[str, Any]:
    if path.is_dir():
        path = path / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no results at {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} holds no results: {error}") from error
    if path.suffix == ".jsonl":
        records = {r["key"]: r for r in parse(text)}
        times = path.with_name("timings.jsonl")
        if times.is_file():
            for r in parse(times.read_text(encoding="utf-8")):
                if r["key"] in records:
                    records[r["key"]] = {**records[r["key"]], "seconds": r["seconds"]}
        return "run of undiffuse bench", records
    try:
        made = json.loads(text)
        return "file of pytest-benchmark", {b["fullname"]: b["stats"] for b in made["benchmarks"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is neither a results.jsonl nor a file of pytest-benchmark: {error!r}"
        ) from None


def _cells(before: dict[str, Record], after: dict[str, Record], tolerance: float) -> list[Change]:
    out = []
    for key in before.keys() & after.keys():
        a, b = before[key], after[key]
        name = f"{a['problem']}: {a['library']} {a['solver']} on {a['grid']}, {a['nfe_asked']} NFE"
        if a["status"] == "ok" and b["status"] != "ok":
            out.append(Change(f"{name}: {b['status']}", 0.0, 0.0, "worse"))
            continue
        if "ok" not in (a["status"], b["status"]):
            continue
        for field, m in MEASURES.items():
            if a.get(field) is not None and b.get(field) is not None:
                sizes = m.off(a[field]), m.off(b[field])
                apart = not interval(a, field).overlaps(interval(b, field))
                out.append(Change(f"{name}: {field}", *sizes, _verdict(*sizes, apart)))
        if a.get("memory") and b.get("memory"):  # counted states: any whole one more is one more
            held = float(a["memory"]), float(b["memory"])
            apart = abs(held[1] - held[0]) >= 0.5
            out.append(Change(f"{name}: states", *held, _verdict(*held, apart)))
        if "seconds" in a and "seconds" in b:
            times = float(a["seconds"]), float(b["seconds"])
            apart = abs(times[1] - times[0]) > tolerance * min(times)
            out.append(Change(f"{name}: seconds", *times, _verdict(*times, apart)))
    return sorted(out, key=lambda c: c.what)


def _timings(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> list[Change]:
    """pytest-benchmark's medians; noise is both runs' interquartile ranges."""
    out = []
    for name in sorted(before.keys() & after.keys()):
        a, b = before[name], after[name]
        gap = abs(b["median"] - a["median"])
        apart = gap > tolerance * a["median"] and gap > a["iqr"] + b["iqr"]
        out.append(Change(name, a["median"], b["median"], _verdict(a["median"], b["median"], apart)))
    return out


def _verdict(before: float, after: float, apart: bool) -> str:
    if not apart or before == after:
        return "same"
    return "worse" if after > before else "better"
