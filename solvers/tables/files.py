"""A table's record in a file: one JSON object, or the same keys as arrays of one npz.

A record is flat: every value is a number, a text, None, or nested lists of numbers as long as each
other, so that a reader in another language needs a few lines. `process`, an object, is JSON text in
an npz. What is None is left out of an npz.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.files import atomically, read_text, write_text

FORMAT, VERSION = "undiffuse-table", 1
"""Of the files; a reader refuses a later version."""
NOT_LISTS = ("name", "order", "weak_order")
"""Keys that a table always has and whose value may be None."""


def suffix_of(path: str | Path) -> str:
    """'.json' or '.npz'. Raises ValueError for a path that ends in neither."""
    try:
        suffix = Path(path).suffix.lower()
    except TypeError as error:
        raise InvalidValue(f"path must end in .json or .npz; got {path!r}") from error
    if suffix not in (".json", ".npz"):
        raise InvalidValue(f"path must end in .json or .npz; got {str(path)!r}")
    return suffix


def to_text(record: dict[str, Any]) -> str:
    """JSON with Python's shortest floats, which read back to the same bits."""
    return json.dumps(record, allow_nan=False)


def write_record(path: str | Path, record: dict[str, Any]) -> Path:
    """Write a record, as JSON unless the path ends in .npz; returns the path."""
    if Path(path).suffix.lower() != ".npz":
        return write_text(path, to_text(record))
    arrays = {key: _array(value) for key, value in record.items() if value is not None}

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)

    return atomically(path, write)


def _array(value: Any) -> Any:
    if isinstance(value, dict):
        value = json.dumps(value)
    if isinstance(value, list) and any(v in ("inf", "-inf") for v in value):
        value = [float(v) for v in value]
    return np.asarray(value)


def read_record(path: str | Path, what: str) -> dict[str, Any]:
    """The record in a file. Raises ValueError for a file that holds none, naming the path."""
    if str(path).lower().endswith(".npz"):
        return _read_npz(path, what)
    return parse(read_text(path), what)


def _read_npz(path: str | Path, what: str) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            record = {key: arrays[key].tolist() for key in arrays.files}
        if isinstance(record.get("process"), str):
            record["process"] = json.loads(record["process"])
    except (OSError, TypeError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise InvalidValue(f"{path} holds no {what}: {error}") from error
    return {key: None for key in NOT_LISTS} | checked(record)


def parse(text: str, what: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object with these keys. Raises ValueError for other text: not `what` in JSON."""
    try:
        record = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidValue(f"not {what} in JSON: {error}") from error
    if not isinstance(record, dict):
        raise InvalidValue(f"not {what} in JSON: it is a {type(record).__name__}, not an object")
    need(record, what, keys)
    return checked(record)


def need(record: dict[str, Any], what: str, keys: Sequence[str]) -> None:
    """Raises ValueError unless the record has these keys."""
    if missing := [key for key in keys if key not in record]:
        raise InvalidValue(f"not {what} in JSON: it has no {missing[0]!r}")


def checked(record: dict[str, Any]) -> dict[str, Any]:
    """The record, if this release can read its version. Raises ValueError for a later one."""
    version = record.get("version", VERSION)
    if version != VERSION or record.get("format", FORMAT) != FORMAT:
        raise InvalidValue(
            f"the file is of format {record.get('format')!r}, version {version!r}; this release "
            f"reads {FORMAT!r}, version {VERSION}: write it again with this release, or read it "
            "with the one that wrote it"
        )
    return record


def numbers(record: dict[str, Any], key: str, ndim: int, *, integers: bool = False) -> Tensor:
    """record[key] as a tensor of 1 to 3 dimensions: float64, or int64. Raises ValueError."""
    kinds = (int,) if integers else (int, float)
    kind = "whole numbers" if integers else "numbers"
    wanted = f"{key} must be a list of {kind}" + (" a row, all rows as long" if ndim > 1 else "")

    def real(v: Any) -> Any:
        if key == "grid" and v in ("inf", "-inf"):
            return float(v)
        if isinstance(v, bool) or not isinstance(v, kinds):
            raise InvalidValue(f"{wanted}; got {v!r} in it")
        return v

    if ndim == 3:
        pages = record[key] if isinstance(record[key], list) else [record[key]]
        found3 = [numbers({key: page}, key, 2) for page in pages]
        if len({page.shape for page in found3}) != 1:
            raise InvalidValue(f"{key} must be pages of one shape; got {len(found3)} that differ")
        return torch.stack(found3)
    rows = record[key] if ndim == 2 else [record[key]]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise InvalidValue(f"{wanted}; got {type(record[key]).__name__}")
    if len({len(row) for row in rows}) > 1:
        raise InvalidValue(f"{wanted}; got rows of {sorted({len(row) for row in rows})}")
    dtype, values = torch.int64 if integers else torch.float64, [[*map(real, row)] for row in rows]
    try:
        found = torch.tensor(values, dtype=dtype, device="cpu")
    except (OverflowError, RuntimeError, ValueError) as error:
        raise InvalidValue(f"{wanted}; one is too large: {error}") from error
    return found if ndim == 2 else found[0]
