"""Formats of a shard: the samples of a range of ids in one file, or in one folder of pictures.

A shard holds `ids` [n], `x` [n, ...] and the rows of the conditions, `cond.NAME` [n, ...]. Equal
contents give equal bytes. FORMATS is the registry: a format is one entry.

    safetensors     tensors by name
    npz             arrays by name, uncompressed
    webdataset      a tar with ID.x.npy, and ID.json with what is known of the sample, one a sample
    png             a folder with ID.png a sample: levels 0 to 255 of the data's range, rounded and,
                    outside it, cut
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.files import atomically, read_text
from .. import arguments

Entries = dict[str, Tensor]
DIGITS = 9
"""Of an id in a name, at least: names sort as ids do."""


@dataclass(frozen=True)
class Format:
    """How shards are written and read.

    ending: of a shard's name.
    write: (path, entries, data_range) writes one, whole or not at all.
    read: (path) -> entries; None where what was written is less than what was drawn.
    """

    ending: str
    write: Callable[[Path, Entries, tuple[float, float]], None]
    read: Callable[[Path], Entries] | None


def get(name: str) -> Format:
    """A format by name. Raises ValueError for an unknown one."""
    return arguments.lookup("format", name, FORMATS)


def sha256(path: Path) -> str:
    """Of a file, or of the files of a folder in the order of their names."""
    found = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                found.update(part)
    return found.hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


# --- tensors by name ------------------------------------------------------------------------------


def _safetensors(path: Path, entries: Entries, data_range: tuple[float, float]) -> None:
    atomically(path, lambda part: part.write_bytes(save(entries)))


def _read_safetensors(path: Path) -> Entries:
    found: Entries = load(path.read_bytes())
    return found


def _npz(path: Path, entries: Entries, data_range: tuple[float, float]) -> None:
    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w") as packed:
            for name, value in entries.items():
                # without a date of its own an entry would have the clock's
                packed.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(value))

    atomically(path, write)


def _read_npz(path: Path) -> Entries:
    with np.load(path) as found:
        return {name: torch.from_numpy(found[name]) for name in found.files}


def _read_json(path: Path) -> Entries:
    found = json.loads(read_text(path))
    if not isinstance(found, dict):
        raise InvalidValue("it must be an object, {name: numbers}")
    return {name: _numbers(name, value) for name, value in found.items()}


def _numbers(name: str, value: Any) -> Tensor:
    held = np.asarray(value)  # ValueError for rows that are not as long as each other
    if held.dtype.kind == "f":
        return torch.from_numpy(held.astype(np.float32))
    if held.dtype.kind not in "bi":
        raise InvalidValue(f"{name!r} must be a number, or lists of numbers; got {value!r:.60}")
    return torch.from_numpy(held)


def _npy(value: Tensor) -> bytes:
    held = io.BytesIO()
    np.save(held, np.ascontiguousarray(value.numpy()))
    return held.getvalue()


# --- a file a sample ------------------------------------------------------------------------------


def _named(entries: Entries) -> Iterator[tuple[str, int]]:
    for i, sample in enumerate(entries["ids"].tolist()):
        yield f"{sample:0{DIGITS}d}", i


def _known(entries: Entries, i: int) -> dict[str, Any]:
    """The id and the conditions of a sample, as JSON takes them."""
    return {
        ("id" if name == "ids" else name): value[i].tolist()
        for name, value in entries.items()
        if name != "x"
    }


def _webdataset(path: Path, entries: Entries, data_range: tuple[float, float]) -> None:
    def write(part: Path) -> None:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as packed:
            for name, i in _named(entries):
                known = json.dumps(_known(entries, i), sort_keys=True).encode()
                for ending, content in (("x.npy", _npy(entries["x"][i])), ("json", known)):
                    head = tarfile.TarInfo(f"{name}.{ending}")  # dated 1970, of nobody
                    head.size = len(content)
                    packed.addfile(head, io.BytesIO(content))

    atomically(path, write)


def _read_webdataset(path: Path) -> Entries:
    rows: list[Tensor] = []
    known: list[Mapping[str, Any]] = []
    with tarfile.open(path) as packed:
        for head in packed:
            opened = packed.extractfile(head)
            content = b"" if opened is None else opened.read()
            if head.name.endswith(".json"):
                known.append(json.loads(content))
            else:
                rows.append(torch.from_numpy(np.load(io.BytesIO(content))))
    every = {name: torch.tensor([k[name] for k in known], device="cpu") for name in known[0]}
    return {"ids": every.pop("id"), "x": torch.stack(rows), **every}


# --- pictures -------------------------------------------------------------------------------------


def _png(path: Path, entries: Entries, data_range: tuple[float, float]) -> None:
    """The folder is filled under another name and renamed: only the holder of its claim writes.

    Its files are not flushed one by one, which would take longer than drawing them: what a power
    cut spoils is found by its sha256.
    """
    lo, hi = data_range
    levels = ((entries["x"].double() - lo) * (255 / (hi - lo))).round().clamp(0, 255)
    pixels = levels.to(torch.uint8).movedim(1, -1).contiguous().numpy()
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name, i in _named(entries):
            (part / f"{name}.png").write_bytes(_picture(pixels[i]))
        os.replace(part, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _picture(pixels: np.ndarray[Any, Any]) -> bytes:
    """[H, W, 1 or 3] bytes as PNG (ISO/IEC 15948): 8 bits, unfiltered rows, one IDAT."""
    height, width, channels = pixels.shape
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


FORMATS = {
    "safetensors": Format(".safetensors", _safetensors, _read_safetensors),
    "npz": Format(".npz", _npz, _read_npz),
    "webdataset": Format(".tar", _webdataset, _read_webdataset),
    "png": Format("", _png, None),
}


# --- conditions -----------------------------------------------------------------------------------


def conditions(path: Path) -> Entries:
    """Tensors by name from a .safetensors, .npz, .json or .pt file.

    JSON holds numbers, or lists of them as long as each other: whole ones become int64, others
    float32.

    Raises FileNotFoundError where there is none, and ValueError for what is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of conditions at {str(path)!r}")
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".json": _read_json,
        ".pt": lambda p: torch.load(p, map_location="cpu", weights_only=True),
    }
    if path.suffix not in readers:
        raise InvalidValue(
            f"cond must be a file that ends in {', '.join(readers)}; got {str(path)!r}"
        )
    try:
        found = readers[path.suffix](path)
    except Exception as error:  # noqa: BLE001 each reader raises its own
        raise InvalidValue(f"{path} does not read: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InvalidValue(f"{path} must hold tensors by name, the network's conditions")
    return found
