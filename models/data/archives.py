"""Tar shards, as webdataset lays them out: the members of one sample share their name up to its
first dot, and what follows says what each is.

    000017.x.npy, 000017.cls        an array, and its label
    a/cat.jpg, a/cat.json           a picture, and an object with its label

An archive is walked once, from header to header, when it is opened; samples are then read where
they lie, so archives must not be compressed.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from .pictures import ENDINGS, picture
from .sources import LABEL_NAMES, Source, choose, described

Place = tuple[int, int]


def tar(path: Path) -> Source:
    """The samples of one archive, in the order of their first members.

    Raises ValueError for an archive that is compressed or cut short, and where a sample has not
    what the first one has.
    """
    samples = _indexed(path)
    first = next(iter(samples.values()))
    arrays = [key for key in first if key.endswith(".npy") or key == "npy"]
    images = [key for key in first if f".{key.rpartition('.')[2].lower()}" in ENDINGS]
    names = {key.rpartition(".")[0] or key: key for key in (arrays or images)}
    if not names:
        raise InvalidValue(
            f"{path} must hold arrays (.npy) or pictures ({', '.join(ENDINGS)}); the first sample "
            f"has {', '.join(first)}"
        )
    kind = names[choose(names, path)]
    if missing := next((name for name, sample in samples.items() if kind not in sample), None):
        raise InvalidValue(f"{path}: sample {missing} has no {kind}, which the first one has")
    label = next((key for key in ("cls", *LABEL_NAMES, "json") if key in first), None)
    places = np.array([sample[kind] for sample in samples.values()], np.int64)
    keys = list(samples)
    decode = _array if kind in arrays else picture

    def fetch(a: int, b: int) -> Tensor:
        found = _read(path, places[a:b], keys[a:b], kind, decode)
        if any(x.shape != found[0].shape or x.dtype != found[0].dtype for x in found):
            raise InvalidValue(
                f"{path}: samples must have one shape and type; {keys[a]} to {keys[b - 1]} differ"
            )
        return torch.from_numpy(np.stack(found))

    def labels() -> Tensor | None:
        if label is None or any(label not in sample for sample in samples.values()):
            return None
        where = np.array([sample[label] for sample in samples.values()], np.int64)
        found = _read(path, where, keys, label, _label)
        return None if None in found else torch.tensor(found, dtype=torch.int64, device="cpu")

    one = fetch(0, 1)
    return described(path.name, (len(samples), *one.shape[1:]), one.dtype, fetch, labels)


def _indexed(path: Path) -> dict[str, dict[str, Place]]:
    """{sample: {what: (offset, size)}}."""
    samples: dict[str, dict[str, Place]] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for head in archive:
                folder, slash, name = head.name.rpartition("/")
                key, dot, what = name.partition(".")
                if not head.isfile() or not (key and dot):
                    continue
                sample = samples.setdefault(folder + slash + key, {})
                if what in sample:
                    raise InvalidValue(f"{path} holds {head.name} twice")
                sample[what] = (head.offset_data, head.size)
            file.seek(archive.offset)
            whole = file.read(512) == bytes(512)
    except (tarfile.TarError, EOFError) as error:
        raise InvalidValue(
            f"{path} is not a readable tar: {error} (one that is compressed cannot be read in "
            "places: gunzip it)"
        ) from None
    if not whole:
        raise InvalidValue(f"{path} is cut short: it has no end")
    if not samples:
        raise InvalidValue(f"{path} holds no samples: files named SAMPLE.WHAT")
    return samples


def _read(
    path: Path,
    places: np.ndarray[Any, Any],
    keys: Sequence[str],
    kind: str,
    decode: Callable[[bytes, str], Any],
) -> list[Any]:
    with path.open("rb") as file:
        found = []
        for (offset, size), key in zip(places.tolist(), keys, strict=True):
            file.seek(offset)
            found.append(decode(file.read(size), f"{path}: {key}.{kind}"))
    return found


def _array(content: bytes, name: str) -> np.ndarray[Any, Any]:
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidValue(f"{name} is not a readable array: {error}") from None
    if not isinstance(found, np.ndarray):
        raise InvalidType(f"{name} must hold one array; got an archive of them")
    return found.astype(found.dtype.newbyteorder("="))


def _label(content: bytes, name: str) -> int | None:
    """A whole number as text, or one that a JSON object calls a label; None: an object without."""
    try:
        found = json.loads(content)
        if isinstance(found, dict):
            found = next((found[k] for k in LABEL_NAMES if k in found), None)
    except ValueError as error:
        raise InvalidValue(f"{name} is not a readable label: {error}") from None
    if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
        raise InvalidValue(f"{name} must be a whole number, a label; got {found!r}")
    return found
