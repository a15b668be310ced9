"""Data sets that are opened and then read a few events at a time.

    stream("t10k-images-idx3-ubyte.gz")   the format of MNIST, packed or not
    stream("x.npy"), "x.npz", "x.pt", "x.safetensors"
    stream("folder/"), stream("picture.png")  pictures of one size and mode, see pictures.py
    stream("a.tar"), "a.parquet", "a.arrow"   shards of webdataset, and tables; see archives.py and
                                          tables.py
    stream("folder/")                     such files, .npz, .npy or .safetensors as parts of one
                                          data set, or what `Dataset.save_to_disk` or
                                          `sample_to` wrote
    stream("a-{000..017}.tar")            so many of them
    stream("digits"), stream(tensor)      what is in memory already

Plain files are memory-mapped. What is compressed (.gz, an array of an .npz) is unpacked from its
beginning up to the events asked for, so that reading in rising order unpacks it once; only arrays
in Fortran order inside an .npz and files of torch.save's format before 1.6 are read whole.
"""

from __future__ import annotations

import gzip
import json
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue, did_you_mean
from ...kernels.files import read_text
from .archives import tar
from .pictures import ENDINGS, Pictures
from .sources import Fetch, Source, choose, described, joined, label_of
from .tables import saved_dataset, table

UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError)
"""What torch.load raises for a file that is damaged, or unsafe to open."""
DAMAGED = (*UNREADABLE, zipfile.BadZipFile, zlib.error)
INDEX = "index.jsonl"
"""Of the shards of `sample_to`: a line each."""
CHUNK = 1 << 20
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def stream(spec: str | Path | Tensor) -> Source:
    """The data set `spec`: 'digits', a path (see the module's first lines), or a tensor.

    Raises ValueError for what is no data set, naming what would be one, FileNotFoundError for a
    path that does not exist, and ImportError where an optional reader is not installed.
    """
    if isinstance(spec, Tensor):
        return _in_memory(spec, "tensor")
    if str(spec) == "digits":
        return _digits()
    path = Path(spec)
    if BRACES.search(path.name):
        return _several(path.name, _braced(path))
    if not path.exists():
        beside = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(str(path), ["digits", *beside])
        raise FileNotFoundError(f"no data set {str(spec)!r}: not 'digits' and no such file{near}")
    if path.is_dir() and (parts := _parts(path)):
        return _several(path.resolve().name, parts)
    if path.is_dir() or path.suffix.lower() in ENDINGS:
        found = Pictures(path)
        return Source(path.resolve().name, found.shape, 256, found.fetch)
    suffixes = "".join(path.suffixes[-2:])
    for ending, reader in _READERS.items():
        if suffixes.endswith(ending):
            return reader(path)
    if "idx" in path.name:
        return _idx(path)
    raise InvalidValue(
        f"data must be 'digits', a folder of images, or a file that ends in "
        f"{', '.join((*_READERS, *ENDINGS))} or is named *idx*; got {str(spec)!r}"
    )


def _parts(folder: Path) -> list[Path]:
    """The files of a folder that hold a data set in parts; none: they may be pictures."""
    if found := saved_dataset(folder) or _shards(folder):
        return found
    every = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _hidden(p, folder)]
    kinds = {ending: [p for p in every if p.suffix == ending] for ending in PARTS}
    held = {ending: files for ending, files in kinds.items() if files}
    if not held:
        return []
    if len(held) > 1 or any(p.suffix.lower() in ENDINGS for p in every):
        others = [e for e in ENDINGS if any(p.suffix.lower() == e for p in every)]
        raise InvalidValue(
            f"folder {folder} must hold parts of one kind; got {', '.join([*held, *others])}: name "
            "one of the files, or move the others away"
        )
    return next(iter(held.values()))


def _shards(folder: Path) -> list[Path]:
    """The shards of a folder that `sample_to` wrote, in the order of their ids; else none.

    Whatever else lies in it, a picture of the samples for one, is no data.
    Raises ValueError for a shard that is not as long as the index says.
    """
    try:
        records = [json.loads(line) for line in read_text(folder / INDEX).splitlines()]
        found = [(folder / record["file"], int(record["bytes"])) for record in records]
    except (OSError, ValueError, TypeError, KeyError):  # not of ours
        return []
    for path, size in found:
        held = path.stat().st_size if path.is_file() else size if path.is_dir() else 0
        if held != size:
            raise InvalidValue(
                f"{path} has {held} bytes where {folder / INDEX} says {size}: sample again, with "
                "the same settings, draws what is lost"
            )
    return [path for path, _ in found]


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _braced(path: Path) -> list[Path]:
    """The paths that a{000..009}.tar stands for."""
    first, last = (m := cast("re.Match[str]", BRACES.search(path.name))).groups()
    if int(last) < int(first):
        raise InvalidValue(f"{path}: {last} comes before {first}")
    found = [
        path.with_name(f"{path.name[: m.start()]}{i:0{len(first)}d}{path.name[m.end() :]}")
        for i in range(int(first), int(last) + 1)
    ]
    if missing := [p.name for p in found if not p.exists()]:
        raise FileNotFoundError(f"{path}: {len(missing)} are not there, {missing[0]} among them")
    return found


def _several(name: str, paths: list[Path]) -> Source:
    return joined(name, [stream(path) for path in paths])


def _in_memory(x: Tensor, name: str, labels: Tensor | None = None) -> Source:
    return described(name, tuple(x.shape), x.dtype, lambda a, b: x[a:b], lambda: labels)


def _digits() -> Source:
    """The UCI digits that ship with the package (see NOTICE): 0 to 16, [1797, 1, 8, 8]."""
    with files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file) as held:
        x, y = torch.from_numpy(held["x"]), torch.from_numpy(held["y"]).long()
    return Source("digits", tuple(x.shape), 17, lambda a, b: x[a:b], lambda: y)


def _npy(path: Path) -> Source:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED as e:
        raise InvalidValue(f"{path} is not a readable .npy of plain numbers: {e}") from None
    if not isinstance(array, np.ndarray):
        raise InvalidType(f"{path} holds several arrays: call it .npz")
    return described(path.name, array.shape, array.dtype, lambda a, b: _tensor(array[a:b]))


def _npz(path: Path) -> Source:
    try:
        archive = zipfile.ZipFile(path)
        heads = {
            member.removesuffix(".npy"): _npy_head(archive, member)
            for member in archive.namelist()
            if member.endswith(".npy")
        }
    except DAMAGED as e:
        raise InvalidValue(f"{path} is not a readable .npz of plain arrays: {e}") from None
    name = choose(heads, path)
    shape, fortran, kind, start = heads[name]

    def whole(key: str) -> Tensor:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return _tensor(arrays[key])
        except DAMAGED as e:
            raise InvalidValue(f"{path} is not a readable .npz of plain arrays: {e}") from None

    def labels() -> Tensor | None:
        found = label_of(heads)
        return None if found is None else whole(found)

    if fortran or kind.hasobject:
        x = whole(name)
        return described(path.name, shape, kind, lambda a, b: x[a:b], labels)
    fetch = _unpacked(archive.open(f"{name}.npy"), start, kind, shape, path)
    return described(path.name, shape, kind, fetch, labels)


def _npy_head(
    archive: zipfile.ZipFile, member: str
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether it is in Fortran order, type, and where the numbers begin."""
    with archive.open(member) as file:
        one = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
        return *read(file), file.tell()


def _idx(path: Path) -> Source:
    """The format of MNIST: magic 0 0 type rank, big-endian sizes, then the numbers."""
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    kinds = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            head = file.read(4)
            sizes = file.read(4 * head[3]) if len(head) == 4 else b""
        except DAMAGED as e:
            raise InvalidValue(f"{path} is a damaged gzip file: {e}") from None
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in kinds:
        raise InvalidValue(f"{path} is not an idx file: it starts with {head.hex()}")
    shape = struct.unpack(f">{head[3]}I", sizes) if len(sizes) == 4 * head[3] else ()
    if not shape or not all(shape):
        raise InvalidValue(f"{path} is cut short or empty: {len(sizes)} bytes of sizes, {shape}")
    if len(shape) > 8 or math.prod(shape) > 2**48:
        raise InvalidValue(f"{path} is damaged: its header declares events of shape {shape[:9]}")
    kind, start = np.dtype(kinds[head[2]]), 4 + len(sizes)
    if packed:
        fetch = _unpacked(gzip.GzipFile(path), start, kind, shape, path)
    else:
        wanted = start + _bytes(shape, kind)
        if (held := path.stat().st_size) != wanted:
            raise InvalidValue(f"{path} is cut short: {held} bytes of {wanted} for shape {shape}")
        array = np.memmap(path, kind, "r", start, shape)
        fetch = lambda a, b: _tensor(array[a:b])
    if len(shape) != 3:
        return described(path.name, shape, kind, fetch)
    wide = (shape[0], 1, *shape[1:])  # images get their channel
    return described(path.name, wide, kind, lambda a, b: fetch(a, b)[:, None])


def _unpacked(
    file: IO[bytes] | gzip.GzipFile,
    start: int,
    kind: np.dtype[Any],
    shape: tuple[int, ...],
    path: Path,
) -> Fetch:
    """Events out of a compressed stream, which is gone through once now, in pieces: what is damaged
    is found before any work."""
    wanted, found = start + _bytes(shape, kind), 0
    try:
        file.seek(0)
        while part := file.read(CHUNK):
            found += len(part)
    except DAMAGED as e:
        raise InvalidValue(f"{path} is damaged, not readable to its end: {e}") from None
    if found != wanted:
        raise InvalidValue(f"{path} is cut short: {found} bytes of {wanted} for shape {shape}")

    def fetch(a: int, b: int) -> Tensor:
        size = _bytes((b - a, *shape[1:]), kind)
        file.seek(start + _bytes((a, *shape[1:]), kind))
        return _tensor(np.frombuffer(file.read(size), kind).reshape(b - a, *shape[1:]))

    return fetch


def _bytes(shape: tuple[int, ...], kind: np.dtype[Any]) -> int:
    return math.prod(shape) * kind.itemsize


def _tensor_file(path: Path) -> Source:
    mapped = zipfile.is_zipfile(path)  # the format since torch 1.6
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except UNREADABLE as e:
        raise InvalidValue(f"{path} is not a readable file of tensors: {e}") from None
    if isinstance(content, Tensor):
        return _in_memory(content, path.name)
    if not isinstance(content, dict):
        raise InvalidType(f"{path} must hold a tensor or a dict of them; got {type(content)}")
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    label = label_of(tensors)
    return _in_memory(
        tensors[choose(tensors, path)], path.name, None if label is None else tensors[label]
    )


def _safetensors(path: Path) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
        names = list(file.keys())
    except (SafetensorError, OSError) as e:
        raise InvalidValue(f"{path} is not a readable safetensors file: {e}") from None
    part = file.get_slice(choose(dict.fromkeys(names), path))
    shape = tuple(part.get_shape())
    kind = part[:0].dtype if shape else torch.float32
    label = label_of(dict.fromkeys(names))
    return described(
        path.name,
        shape,
        kind,
        lambda a, b: part[a:b],
        lambda: None if label is None else file.get_tensor(label),
    )


_READERS: dict[str, Callable[[Path], Source]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".pt": _tensor_file,
    ".pth": _tensor_file,
    ".safetensors": _safetensors,
    ".idx": _idx,
    ".idx.gz": _idx,
    "-ubyte": _idx,
    "-ubyte.gz": _idx,
    ".tar": tar,
    ".parquet": table,
    ".arrow": table,
    ".feather": table,
}
PARTS = (".tar", ".parquet", ".arrow", ".safetensors", ".npz", ".npy")
"""Endings of files that together are one data set where they lie in one folder."""


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A copy in the machine's byte order."""
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
