"""Data sets by name or path, as one float32 tensor of events, and their held-out split.

    load("digits")                        scikit-learn's 1,797 digits, [N, 1, 8, 8] in [-1, 1]
    load("t10k-images-idx3-ubyte.gz")     the format of MNIST
    load("x.npz"), "x.npy", "x.pt", "x.safetensors"
    load("folder/"), load("picture.png")  images of one size, channels first

Integers are taken as quantised and brought to [-1, 1]; floats are left as they are. `spacing` is
the distance of neighbouring levels, which dequantisation and bits/dim need; 0 where the data are
continuous.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError)
"""What torch.load raises for a file that is damaged, or unsafe to open."""


@dataclass(frozen=True, eq=False)
class Data:
    """Events x [N, *event] float32, their range (lo, hi), the spacing of their levels, labels."""

    x: Tensor
    range: tuple[float, float]
    spacing: float = 0.0
    labels: Tensor | None = None
    name: str = "data"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Data:
        labels = None if self.labels is None else self.labels[index]
        return Data(self.x[index], self.range, self.spacing, labels, self.name)

    def to_range(self, lo: float, hi: float) -> Data:
        """Data with levels brought to [lo, hi]; data without, whose range is only what was seen,
        as they are."""
        if not self.spacing or self.range == (lo, hi):
            return self
        scale = (hi - lo) / (self.range[1] - self.range[0])
        x = (self.x - self.range[0]) * scale + lo
        return Data(x, (lo, hi), self.spacing * scale, self.labels, self.name)

    def split(self, held_out: float = 0.2, seed: int = 0) -> tuple[Data, Data]:
        """(training part, held-out part), see `split_indices`."""
        train, held = split_indices(len(self), held_out, seed)
        return self[train], self[held]


def split_indices(n: int, held_out: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(training, held-out) indices of n events, int64, disjoint, each in rising order.

    The round(held_out n) events whose SHA-256 of "seed:index" is least are held out: the split
    depends on no library's generator, so a recorded (held_out, seed) stays good for ever.
    Raises ValueError unless 0 <= held_out < 1 and an event is left to train on.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must lie in [0, 1), the fraction held out; got {held_out}")
    count = round(held_out * n)
    if n - count < 1:
        raise ValueError(f"held_out={held_out} of {n} events leaves none to train on")
    order = sorted(range(n), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    held, train = sorted(order[:count]), sorted(order[count:])
    return torch.tensor(train, dtype=torch.int64), torch.tensor(held, dtype=torch.int64)


def split(x: Tensor, held_out: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(training part, held-out part) of x [N, ...], see `split_indices`."""
    train, held = split_indices(len(x), held_out, seed)
    return x[train], x[held]


def load(spec: str | Path | Tensor | Data) -> Data:
    """The data set `spec`: 'digits', a path (see the module's first lines), or a tensor.

    Raises ValueError for what is no data set, naming what would be one, FileNotFoundError for a
    path that does not exist, and ImportError where an optional reader is not installed.
    """
    if isinstance(spec, Data):
        return spec
    if isinstance(spec, Tensor):
        return _events(spec, "tensor")
    if str(spec) == "digits":
        return _digits()
    path = Path(spec)
    if not path.exists():
        raise FileNotFoundError(f"no data set {str(spec)!r}: not 'digits' and no such file")
    if path.is_dir():
        return _folder(path)
    suffixes = "".join(path.suffixes[-2:])
    for ending, reader in _READERS.items():
        if suffixes.endswith(ending):
            data: Data = reader(path)
            return data
    if "idx" in path.name:
        return _idx(path)
    raise ValueError(
        f"data must be 'digits', a folder of images, or a file that ends in "
        f"{', '.join(_READERS)} or is named *idx*; got {str(spec)!r}"
    )


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "the digits come with scikit-learn: pip install 'undiffuse[bench]'"
        ) from None
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float()[:, None] / 8 - 1  # levels 0..16
    return Data(x, (-1.0, 1.0), 1 / 8, torch.from_numpy(bunch.target).long(), "digits")


def _npz(path: Path) -> Data:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path} is not a readable .npz of plain arrays: {e}") from None
    return _named({k: torch.from_numpy(v) for k, v in arrays.items()}, path)


def _npy(path: Path) -> Data:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise ValueError(f"{path} is not a readable .npy of plain numbers: {e}") from None
    return _events(torch.from_numpy(array), path.name)


def _tensor_file(path: Path) -> Data:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except UNREADABLE as e:
        raise ValueError(f"{path} is not a readable file of tensors: {e}") from None
    if isinstance(content, Tensor):
        return _events(content, path.name)
    if not isinstance(content, dict):
        raise TypeError(f"{path} must hold a tensor or a dict of them; got {type(content)}")
    return _named({k: v for k, v in content.items() if isinstance(v, Tensor)}, path)


def _safetensors(path: Path) -> Data:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _named(load_file(path), path)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path} is not a readable safetensors file: {e}") from None


def _idx(path: Path) -> Data:
    """The format of MNIST: magic 0 0 type rank, big-endian sizes, then the numbers."""
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as e:
        raise ValueError(f"{path} is a damaged gzip file: {e}") from None
    kinds = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in kinds:
        raise ValueError(f"{path} is not an idx file: it starts with {raw[:4].hex()}")
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:start]) if len(raw) >= start else ()
    kind = np.dtype(kinds[raw[2]])
    wanted = start + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if not shape or len(raw) != wanted:
        raise ValueError(f"{path} is cut short: {len(raw)} bytes of {wanted} for shape {shape}")
    array = np.frombuffer(raw, kind, offset=start).reshape(shape)
    x = torch.from_numpy(array.astype(kind.newbyteorder("=")))
    return _events(x[:, None] if x.ndim == 3 else x, path.name)  # images get their channel


def _folder(path: Path) -> Data:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _PICTURES)
    if not files:
        raise ValueError(f"folder {path} holds no image ({', '.join(_PICTURES)})")
    pictures = [_picture(p) for p in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise ValueError(
                f"images must have one size and mode; {files[0].name} is "
                f"{tuple(pictures[0].shape)}, {file.name} is {tuple(picture.shape)}"
            )
    return _events(torch.stack(pictures), path.name)


def _picture(path: Path) -> Tensor:
    """One image file as uint8 [C, H, W], C = 1 for grey and 3 otherwise."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("reading images needs pillow: pip install 'undiffuse[bench]'") from None
    try:
        with Image.open(path) as image:
            grey = image.mode in ("1", "L", "I;16")
            array = np.array(image.convert("L" if grey else "RGB"))
    except (OSError, UnidentifiedImageError) as e:
        raise ValueError(f"{path} is not a readable image: {e}") from None
    x = torch.from_numpy(array)
    return x[None] if grey else x.permute(2, 0, 1)


_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_READERS: dict[str, Any] = {
    ".npz": _npz,
    ".npy": _npy,
    ".pt": _tensor_file,
    ".pth": _tensor_file,
    ".safetensors": _safetensors,
    ".idx": _idx,
    ".idx.gz": _idx,
    "-ubyte": _idx,
    "-ubyte.gz": _idx,
    **{ending: lambda path: _events(_picture(path)[None], path.name) for ending in _PICTURES},
}
_DATA_NAMES: Sequence[str] = ("x", "data", "images", "x_train", "samples", "arr_0")
_LABEL_NAMES: Sequence[str] = ("y", "labels", "label", "targets", "y_train", "arr_1")


def _named(tensors: dict[str, Tensor], path: Path) -> Data:
    """The one tensor of a file, or the one with a customary name, with labels if there are."""
    lower = {k.lower(): v for k, v in tensors.items()}
    found = next((lower[k] for k in _DATA_NAMES if k in lower), None)
    if found is None and len(tensors) == 1:
        found = next(iter(tensors.values()))
    if found is None:
        raise ValueError(
            f"{path} must hold one tensor, or one called {', '.join(_DATA_NAMES)}; "
            f"got {', '.join(tensors) or 'none'}"
        )
    labels = next((lower[k] for k in _LABEL_NAMES if k in lower), None)
    return _events(found, path.name, labels)


def _events(x: Tensor, name: str, labels: Tensor | None = None) -> Data:
    """A tensor as data: bytes to [-1, 1] in steps of 2/255, floats as they are."""
    if x.ndim < 2 or x.shape[0] < 1 or x[0].numel() < 1:
        raise ValueError(f"{name} must be [N, ...] with N >= 1 events; got shape {tuple(x.shape)}")
    if labels is not None and (labels.shape != x.shape[:1] or labels.is_floating_point()):
        raise ValueError(
            f"labels of {name} must be {x.shape[0]} integers; "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    labels = None if labels is None else labels.long()
    if x.dtype == torch.uint8:
        return Data(x.float() / 127.5 - 1, (-1.0, 1.0), 2 / 255, labels, name)
    if not x.is_floating_point():
        raise ValueError(
            f"{name} must hold floats or bytes (uint8); got {x.dtype}, whose range is not "
            "known: bring it to floats yourself"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"{name} must be finite; {int((~torch.isfinite(x)).sum())} entries are not"
        )
    x = x.float()
    return Data(x, (float(x.min()), float(x.max())), 0.0, labels, name)
