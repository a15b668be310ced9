"""Results on disk: one JSON line a result, appended as it finishes, so that a kill loses nothing.

A result is known by its key, the text of everything that determines it. A file that was cut in the
middle of a line loses that line alone; a line that does not read is computed again.
`environment` names the versions that a result was made with.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from ..kernels.errors import optional
from ..kernels.files import atomically, usable, write_text
from .arguments import choice

Record = dict[str, Any]


class Store:
    """The records of a folder, by key. Creates the folder; leaves out what does not read.

    needs: entries that a record must have; one without is computed again.
    writes: False keeps what is appended in memory alone.

    Raises UnusableFolder, an OSError, for a folder that cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "results.jsonl",
        writes: bool = True,
        needs: Sequence[str] = (),
    ) -> None:
        self.writes = writes
        self.path = usable(folder, files=[name]) / name
        self.records: dict[str, Record] = {}
        if self.path.is_file():
            data = self.path.read_bytes()
            found = [r for r in read(self.path) if all(n in r for n in needs)]
            self.records = {r["key"]: r for r in found}
            whole = data.endswith(b"\n") and len(found) == len(data.splitlines())
            if writes and data and not whole:
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
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines([record]))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a write does not say of what file
            raise OSError(error.errno, error.strerror, str(self.path)) from None


def ratio_of(record: Record, end: str) -> float:
    """The record's 'start' or 'end', sigma/alpha: null, which stands for what JSON has not, is
    inf."""
    value = record[end]
    return math.inf if value is None else float(value)


def read(path: Path) -> list[Record]:
    """The records of a file; bytes that are no UTF-8 spoil their own line."""
    return parse(path.read_bytes().decode("utf-8", "replace"))


def parse(text: str) -> list[Record]:
    """Records of JSON lines; lines that are cut or not records are left out."""
    out = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        good = isinstance(record, dict) and isinstance(record.get("key"), str)
        if good and "\ufffd" not in line:
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
    return read(path)


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
            for record in read(path) if path.is_file() else []:
                held = joined.get(record["key"])
                if held is None or record.get("status", "ok") == "ok":
                    joined[record["key"]] = record
        write_text(out / name, lines(joined.values()))
    return len(joined)


FORMATS = ("jsonl", "parquet")
"""Of result rows: JSON lines, which runs are kept in and go on from; or a table beside them."""


def rows_format(name: Any) -> str:
    """A format of `FORMATS`, whose package is here. Raises ValueError or ImportError otherwise."""
    if choice("format", name, FORMATS) == "parquet":
        _pyarrow()
    return str(name)


def write_rows(path: Path, records: Iterable[Record], format: str) -> None:
    """Write result rows as a table beside their JSON lines; of 'jsonl' nothing more is written.

    path: of the table, whose ending is put to it. A column an entry of the records, null where one
    has not that entry; numbers that are not finite stay as they are.
    """
    if rows_format(format) == "jsonl":
        return
    arrow = _pyarrow()
    from pyarrow import parquet

    rows = list(records)
    names = sorted({name for row in rows for name in row})
    made = arrow.table({name: [row.get(name) for row in rows] for name in names})
    atomically(path.with_suffix(".parquet"), lambda part: parquet.write_table(made, part))


def _pyarrow() -> Any:
    return optional("pyarrow", "rows as Parquet need pyarrow: pip install 'undiffuse[data]'")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


# --- versions ---------------------------------------------------------------------------------

LIBRARIES = (
    "undiffuse",
    "torch",
    "numpy",
    "scipy",
    "diffusers",
    "k-diffusion",
    "torchdiffeq",
    "torchsde",
)


@cache
def version(library: str) -> str:
    """Its installed version, or 'absent'."""
    try:
        return installed(library)
    except PackageNotFoundError:
        return "absent"


def environment() -> dict[str, str]:
    """Versions that the numbers may depend on."""
    about = {"python": platform.python_version(), "machine": platform.machine()}
    return about | {name: version(name) for name in LIBRARIES}


def made_by(library: str) -> str:
    """What a cell of that library's solver is made with: 'undiffuse 0.1.0, torch 2.13.0, ...'."""
    own = {"undiffuse", "torch", library} & set(LIBRARIES)
    names = [name for name in LIBRARIES if name in own]
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)
