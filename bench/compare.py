"""Two runs side by side: what became slower, less accurate, or changed at all, beyond noise.

Takes folders or results of `undiffuse bench` (quality and memory by cell, seconds from
timings.jsonl) and files of pytest-benchmark (`--benchmark-json`). Cells are matched by what was
run, not by the versions or the network that ran it: those are what is compared. A quality is worse
when the intervals of the two runs do not overlap. The seconds of a cell are one-off, so they are
compared by solver: the mean ratio over its cells is worse when its whole 95 % interval lies above
1 + `tolerance`. A time of pytest-benchmark is worse when it grew by more than `tolerance` and by
more than the spread of both runs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..kernels.errors import InvalidValue
from ..solvers.intervals import mean_interval
from ..solvers.store import Record, read
from .measures.quality import MEASURES
from .report.table import Table, interval, short, show

WHAT = ("problem", "library", "solver", "grid", "final", "nfe_asked", "seed", "batch")
"""What says that two cells are of the same question."""


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
        raise InvalidValue(f"tolerance must be > 0; got {tolerance}")
    (kind_a, before), (kind_b, after) = _read(Path(a)), _read(Path(b))
    if kind_a != kind_b:
        raise InvalidValue(f"{a} is a {kind_a} and {b} a {kind_b}; compare two of one kind")
    of = _cells if kind_a == "run of undiffuse bench" else _timings
    changes = of(before, after, tolerance)
    if not changes:
        raise InvalidValue(f"{a} and {b} have no number in common")
    return changes


def run(a: str | Path, b: str | Path, *, tolerance: float = 0.25) -> int:
    """Print what changed; returns 1 if anything became worse, else 0 (an exit status)."""
    changes = compare(a, b, tolerance=tolerance)
    moved = [c for c in changes if c.verdict != "same"]
    moved.sort(key=lambda c: (c.verdict != "worse", -abs(c.ratio - 1)))
    rows = [[c.what, short(c.before), short(c.after), f"{c.ratio:.2f}", c.verdict] for c in moved]
    columns = ["what", "before", "after", "ratio", "verdict"]
    title = f"{len(moved)} of {len(changes)} numbers changed beyond noise"
    about = [
        f"{name}: {', '.join(_made(Path(path)))}" for name, path in (("before", a), ("after", b))
    ]
    worse = sum(c.verdict == "worse" for c in moved)
    tables = [Table(title, columns, rows, [[False] * 5 for _ in rows])] if rows else []
    about += [f"{p}: the two runs are of different networks" for p in _changed(Path(a), Path(b))]
    show(tables, [*about, f"{title}; {worse} became worse"])
    return 1 if worse else 0


def _made(path: Path) -> list[str]:
    """Which versions made a run, or which commit and machine a file of pytest-benchmark is of."""
    kind, found = _read(path)
    if kind == "run of undiffuse bench":
        seen = [part for r in found.values() for part in r.get("versions", "").split(", ")]
        return list(dict.fromkeys(filter(None, seen))) or ["unknown versions"]
    about = json.loads(path.read_text(encoding="utf-8"))
    commit, machine = about.get("commit_info", {}).get("id"), about.get("machine_info", {})
    return [str(commit or "unknown commit"), str(machine.get("node", "unknown machine"))]


def _changed(a: Path, b: Path) -> list[str]:
    """The problems of two runs whose network, or process, is not the same."""
    (kind, before), (_, after) = _read(a), _read(b)
    if kind != "run of undiffuse bench":
        return []
    one, two = ({r["problem"]: r.get("network") for r in of.values()} for of in (before, after))
    return [p for p in one if p in two and one[p] != two[p]]


def _read(path: Path) -> tuple[str, Any]:
    if path.is_dir():
        path = path / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no results at {str(path)!r}")
    if path.suffix == ".jsonl":
        records = {r["key"]: r for r in read(path) if "problem" in r}
        times = path.with_name("timings.jsonl")
        if times.is_file():
            for r in read(times):
                if r["key"] in records and "seconds" in r:
                    records[r["key"]] = {**records[r["key"]], "seconds": r["seconds"]}
        found: dict[Any, Record] = {}
        for r in records.values():  # a cell that was measured twice, by other measures, is one
            what = tuple(r.get(k) for k in WHAT)
            found[what] = {**found.get(what, {}), **r}
        return "run of undiffuse bench", found
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        return "file of pytest-benchmark", {b["fullname"]: b["stats"] for b in made["benchmarks"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidValue(
            f"{path} holds no results: it is neither a results.jsonl nor a file of "
            f"pytest-benchmark ({error!r:.80})"
        ) from None


def _cells(before: dict[Any, Record], after: dict[Any, Record], tolerance: float) -> list[Change]:
    out = []
    growth: dict[str, list[tuple[float, float]]] = {}
    for what in before.keys() & after.keys():
        a, b = before[what], after[what]
        who = f"{a['problem']}: {a['library']} {a['solver']}"
        name = f"{who} on {a['grid']}, {a['nfe_asked']} NFE"
        if a.get("seed") not in (None, 0):
            name += f", seed {a['seed']}"
        if a["status"] == "ok" and b["status"] != "ok":
            out.append(Change(f"{name}: {b['status']} ({b.get('message')})", 0.0, 0.0, "worse"))
        if not a["status"] == b["status"] == "ok":
            continue
        for field, m in MEASURES.items():
            if a.get(field) is not None and b.get(field) is not None:
                was, now = (m.away(interval(r, field)) for r in (a, b))
                apart = not was.overlaps(now)
                out.append(
                    Change(
                        f"{name}: {field}",
                        was.value,
                        now.value,
                        _verdict(was.value, now.value, apart),
                    )
                )
        if a.get("memory") and b.get("memory"):  # counted states: any whole one more is one more
            held = float(a["memory"]), float(b["memory"])
            apart = abs(held[1] - held[0]) >= 0.5
            out.append(Change(f"{name}: states", *held, _verdict(*held, apart)))
        if a.get("seconds") and b.get("seconds"):
            growth.setdefault(who, []).append((float(a["seconds"]), float(b["seconds"])))
    for who, pairs in growth.items():
        ratio = mean_interval(torch.tensor([math.log(b / a) for a, b in sorted(pairs)]))
        apart = (
            min(abs(ratio.lo), abs(ratio.hi)) > math.log1p(tolerance) and ratio.lo * ratio.hi > 0
        )
        was, now = (sum(t) / len(pairs) for t in zip(*pairs, strict=True))
        what = f"{who}: seconds, mean of {len(pairs)} cells"
        out.append(Change(what, was, now, _verdict(0.0, ratio.value, apart)))
    return sorted(out, key=lambda c: c.what)


def _timings(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> list[Change]:
    """pytest-benchmark's medians; noise is both runs' interquartile ranges."""
    out = []
    for name in sorted(before.keys() & after.keys()):
        a, b = before[name], after[name]
        gap = abs(b["median"] - a["median"])
        apart = gap > tolerance * a["median"] and gap > a["iqr"] + b["iqr"]
        out.append(
            Change(name, a["median"], b["median"], _verdict(a["median"], b["median"], apart))
        )
    return out


def _verdict(before: float, after: float, apart: bool) -> str:
    if not apart or before == after:
        return "same"
    return "worse" if after > before else "better"
