"""Rows of Parquet and Arrow files, and of data sets that Hugging Face `datasets` saved.

An event is a column of lists of numbers (nested lists have the shape of their nesting) or of
pictures (bytes, or a struct with them); where there is no such column, the floats of all columns
but the label are the events, [N, k], and no column is left out. Arrow files are mapped into memory;
of Parquet a few rows of the column are decoded at a time. pyarrow reads both; `datasets` is not
needed.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue, optional
from .pictures import picture
from .sources import LABEL_NAMES, Source, choose, described

ROWS = 256
"""Rows of a Parquet file that are decoded at a time."""


def saved_dataset(folder: Path) -> list[Path] | None:
    """The files of a folder that `Dataset.save_to_disk` wrote, in their order; None: it is none.

    Raises ValueError for a folder of several splits.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        raise InvalidValue(
            f"{folder} holds the splits {', '.join(splits)}: name one, {folder / splits[0]}"
        )
    state = folder / "state.json"
    if not (state.is_file() and (folder / "dataset_info.json").is_file()):
        return None
    return [folder / f["filename"] for f in json.loads(state.read_text())["_data_files"]]


def table(path: Path) -> Source:
    """The rows of one file.

    Raises ImportError without pyarrow, ValueError for a file that does not read, for no column or
    several that could be the events, missing values, and lists of several lengths.
    """
    arrow = _pyarrow()
    try:
        opened = _Parquet(path) if path.suffix == ".parquet" else _mapped(path)
        schema, count, read = opened.schema, opened.count, opened.read
    except (arrow.ArrowInvalid, OSError) as error:
        raise InvalidValue(f"{path} is not a readable table: {error}") from None
    events, label = _columns(schema, path)

    def fetch(a: int, b: int) -> Tensor:
        try:
            part = read(events, a, b)
        except (arrow.ArrowInvalid, OSError) as error:
            raise InvalidValue(f"{path} is damaged: {error}") from None
        columns = [_numbers(part.column(name), f"{path}, column {name}") for name in events]
        x = columns[0] if columns[0].ndim > 1 else np.stack(columns, 1)
        return torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("=")))

    def labels() -> Tensor | None:
        if label is None:
            return None
        found = _numbers(read([label], 0, count).column(label), f"{path}, column {label}")
        return torch.from_numpy(found.astype(np.int64))

    if not count:
        raise InvalidValue(f"{path} holds no rows")
    one = fetch(0, 1)
    return described(path.name, (count, *one.shape[1:]), one.dtype, fetch, labels)


def _pyarrow() -> Any:
    words = "tables of Parquet and Arrow need pyarrow: pip install 'undiffuse[data]'"
    return optional("pyarrow", words)


# --- columns --------------------------------------------------------------------------------------


def _columns(schema: Any, path: Path) -> tuple[list[str], str | None]:
    """The columns of the events, and that of the labels."""
    types = _pyarrow().types
    held = {field.name: getattr(field.type, "storage_type", field.type) for field in schema}
    lower = {name.lower(): name for name in held}
    label = next((lower[n] for n in LABEL_NAMES if n in lower), None)
    if label is not None and not types.is_integer(held[label]):
        label = None

    def is_event(kind: Any) -> bool:
        pictures = types.is_binary(kind) or types.is_large_binary(kind) or _is_picture(kind)
        lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        return bool(pictures or lists)

    if events := {name: kind for name, kind in held.items() if is_event(kind)}:
        return [choose(events, path)], label
    numeric = [
        name
        for name, kind in held.items()
        if name != label and (types.is_floating(kind) or types.is_integer(kind))
    ]
    whole = [name for name in numeric if types.is_integer(held[name])]
    other = [f"{name} ({held[name]})" for name in held if name != label and name not in numeric]
    if not numeric or whole or other:
        wrong = [f"{', '.join(whole)} are whole numbers"] if whole else []
        wrong += [f"{', '.join(other)} no numbers"] if other else []
        raise InvalidValue(
            f"{path} must hold a column of lists or pictures, or columns of floats; "
            f"{'; '.join(wrong) or 'got a label alone'}: make them floats, or leave them out"
        )
    return numeric, label


def _is_picture(kind: Any) -> bool:
    """Whether it is a struct with `bytes`, as `datasets` keeps pictures."""
    return bool(_pyarrow().types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _numbers(column: Any, name: str) -> np.ndarray[Any, Any]:
    """A column as numbers [n, *event]; pictures as bytes [n, C, H, W]."""
    types = _pyarrow().types
    array = column.combine_chunks()
    array = getattr(array, "storage", array)
    if array.null_count:
        raise InvalidValue(f"{name}: {array.null_count} values are missing")
    if types.is_struct(array.type):
        array = array.field(array.type.get_field_index("bytes"))
        if array.null_count:
            raise InvalidValue(
                f"{name}: pictures must lie in the table; {array.null_count} are names of files"
            )
    if types.is_binary(array.type) or types.is_large_binary(array.type):
        found = [picture(v.as_py(), f"{name}, item {i}") for i, v in enumerate(array)]
        if len({x.shape for x in found}) > 1:
            raise InvalidValue(f"{name}: pictures must have one size and mode; some differ")
        return np.stack(found)
    shape = [len(array)]
    while types.is_list(array.type) or types.is_large_list(array.type) or (
        types.is_fixed_size_list(array.type)
    ):  # fmt: skip
        flat = array.flatten()
        size = len(flat) // len(array)
        lengths = array.value_lengths() if hasattr(array, "value_lengths") else None
        if flat.null_count or len(flat) != size * len(array) or (
            lengths is not None and any(v.as_py() != size for v in lengths)
        ):  # fmt: skip
            raise InvalidValue(f"{name}: lists must be of one length, without missing values")
        shape.append(size)
        array = flat
    if not (types.is_floating(array.type) or types.is_integer(array.type)):
        raise InvalidType(f"{name} must hold numbers or pictures; got {array.type}")
    numbers: np.ndarray[Any, Any] = array.to_numpy(zero_copy_only=False)
    return numbers.reshape(shape)


# --- files ----------------------------------------------------------------------------------------


class _Mapped:
    """An Arrow file whose rows stay where they are on the disk."""

    def __init__(self, held: Any) -> None:
        self.schema, self.count, self._held = held.schema, held.num_rows, held

    def read(self, columns: Sequence[str], a: int, b: int) -> Any:
        return self._held.select(list(columns)).slice(a, b - a)


def _mapped(path: Path) -> _Mapped:
    arrow = _pyarrow()
    from pyarrow import ipc

    mapped = arrow.memory_map(str(path))
    try:
        return _Mapped(ipc.open_file(mapped).read_all())
    except arrow.ArrowInvalid:  # of the streaming kind, as `datasets` writes
        mapped.seek(0)
        return _Mapped(ipc.open_stream(mapped).read_all())


class _Parquet:
    """Rows of a Parquet file. Rising reads decode each row once."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self.path = path
        with parquet.ParquetFile(path) as file:
            self.schema, self.count = file.schema_arrow, file.metadata.num_rows
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = [0, *itertools.accumulate(groups)]
        self._key: tuple[str, ...] = ()
        self._parts: Iterator[tuple[int, Any]] = iter(())
        self._at = 0
        self._held: Any = None

    def read(self, columns: Sequence[str], a: int, b: int) -> Any:
        if self._held is None or self._key != tuple(columns) or a < self._at:
            self._key, self._parts = tuple(columns), self._from(list(columns), a)
            self._at, self._held = next(self._parts)
        found = []
        while True:
            end = self._at + self._held.num_rows
            if end > a:
                found.append(self._held.slice(a - self._at, b - a))
                a = min(b, end)
            if a == b:
                return _pyarrow().Table.from_batches(found)
            self._at, self._held = next(self._parts)

    def _from(self, columns: list[str], a: int) -> Iterator[tuple[int, Any]]:
        """(first row, rows) from the row group on that holds row a."""
        from pyarrow import parquet

        group = bisect.bisect_right(self._starts, a) - 1
        at = self._starts[group]
        with parquet.ParquetFile(self.path) as file:
            chosen = list(range(group, file.num_row_groups))
            for part in file.iter_batches(ROWS, row_groups=chosen, columns=columns):
                yield at, part
                at += part.num_rows
