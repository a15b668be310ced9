"""Results on disk: one JSON line a cell, appended as it finishes, so that a kill loses nothing.

`results.jsonl` holds what is computed and is the same whenever and wherever it is run;
`timings.jsonl` holds seconds, which are not. A cell is known by its key, the text of everything
that determines it; a file that was cut in the middle of a line loses that line alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Store:
    """The records of a folder, by key. Creates the folder; repairs a cut last line. writes: False
    keeps what is appended in memory alone."""

    def __init__(self, folder: Path, name: str = "results.jsonl", writes: bool = True) -> None:
        self.writes = writes
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self.records: dict[str, Record] = {}
        if self.path.is_file():
            text = self.path.read_text(encoding="utf-8")
            for record in parse(text):
                self.records[record["key"]] = record
            if writes and text and not text.endswith("\n"):
                write_text(self.path, lines(self.records.values()))

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def __getitem__(self, key: str) -> Record:
        return self.records[key]

    def append(self, record: Record) -> None:
        """Keep the record and write its line through to the disk."""
        self.records[record["key"]] = record
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(lines([record]))
            file.flush()
            os.fsync(file.fileno())


def ratio_of(record: Record, end: str) -> float:
    """The record's 'start' or 'end', sigma/alpha: null, which stands for what JSON has not, is inf."""
    value = record[end]
    return math.inf if value is None else float(value)


def parse(text: str) -> list[Record]:
    """Records of JSON lines; lines that are cut or not records are left out."""
    out = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("key"), str):
            out.append(record)
    return out


def lines(records: Iterable[Record]) -> str:
    """JSON lines with sorted keys; numbers that are not finite become null."""
    return "".join(json.dumps(_plain(r), sort_keys=True, allow_nan=False) + "\n" for r in records)


def records_of(folder: Path) -> list[Record]:
    """The records of a run's folder. Raises FileNotFoundError for one without results."""
    path = folder / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no results.jsonl in {folder}: is it a benchmark's --out?")
    return parse(path.read_text(encoding="utf-8"))


def merge(sources: Iterable[Path], out: Path) -> int:
    """Join the results of several run folders into `out`; returns the number of distinct cells.

    A cell that several have is taken from the last that succeeded. Raises FileNotFoundError for a
    folder without results, before anything is written.
    """
    sources = list(sources)
    for folder in sources:
        records_of(folder)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("timings.jsonl", "results.jsonl"):
        joined: dict[str, Record] = {}
        for folder in sources:
            path = folder / name
            for record in parse(path.read_text(encoding="utf-8")) if path.is_file() else []:
                held = joined.get(record["key"])
                if held is None or record.get("status", "ok") == "ok":
                    joined[record["key"]] = record
        write_text(out / name, lines(joined.values()))
    return len(joined)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a temporary file of the same suffix beside `path`, then rename it."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        fill(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
