"""Folders of pictures, and single ones, as bytes [N, C, H, W] that are exactly what the files hold.

Read are 8 bits a channel: grey, colour, and palettes, whose colours are looked up. Refused, by name
and with a remedy, is what could only be read by dropping or rescaling something: 16, 4, 2 and 1
bits (Pillow cuts 48-bit colour to 24 and stretches 4-bit grey to 8 in silence), transparency, other
colour spaces, moving pictures, and pictures of another size than the first.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidValue, MissingPackage

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
OTHERS = (".tif", ".tiff", ".gif", ".jp2", ".avif", ".heic", ".ppm", ".pgm", ".tga")
REMEDIES = {
    "1": "two levels: convert('L') makes them 0 and 255 of 256",
    "LA": "transparency is no channel of a density: flatten it, convert('L')",
    "PA": "transparency is no channel of a density: flatten it, convert('RGB')",
    "RGBA": "transparency is no channel of a density: flatten it, convert('RGB')",
    "CMYK": "of another colour space: convert('RGB')",
    "YCbCr": "of another colour space: convert('RGB')",
}
DEPTH = (
    "not 8 bits a channel: bring it to 8 bits, or hand in an .npy of floats in the network's range"
)


class Pictures:
    """The pictures of a folder and its sub-folders in the order of their names, or a single one.

    Their headers are looked at when it is made; pixels are read by `fetch`. Raises ValueError for a
    folder without pictures, or with any in a format that is not read, for one that is not read as
    it is, or of another size than the first, and ImportError without Pillow.
    """

    def __init__(self, path: Path) -> None:
        self.files = [path]
        if path.is_dir():
            every = sorted(path.rglob("*"))
            self.files = [p for p in every if p.suffix.lower() in ENDINGS]
            if other := next((p for p in every if p.suffix.lower() in OTHERS), None):
                raise InvalidValue(
                    f"{other} would be passed over: pictures are read as {', '.join(ENDINGS)}; "
                    "save it as .png, or move it away"
                )
        if not self.files:
            raise InvalidValue(f"folder {path} holds no image ({', '.join(ENDINGS)})")
        self.event = event = _shape(self.files[0])
        for file in self.files[1:]:
            if (shape := _shape(file)) != event:
                raise InvalidValue(
                    f"images must have one size and mode; {self.files[0]} is {event} (channels, "
                    f"height, width), {file} is {shape}: crop, resize or convert it, or move it "
                    "away"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self.files), *self.event)

    def fetch(self, a: int, b: int) -> Tensor:
        """Pictures a ... b - 1, uint8 [n, C, H, W]."""
        x = torch.from_numpy(np.stack([_pixels(file) for file in self.files[a:b]]))
        return x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()


def _shape(path: Path | io.BytesIO, name: str | None = None) -> tuple[int, int, int]:
    """(C, H, W) by the header. Raises ValueError for what is not read as it is."""
    name = name or str(path)
    with _opened(path, name) as image:
        mode, tile = image.mode, getattr(image, "tile", None)
        stored = tile[0][3] if tile else mode
        stored = stored[0] if isinstance(stored, tuple) else stored
        wrong = REMEDIES.get(mode)
        if wrong is None and (mode not in ("L", "RGB", "P") or (mode != "P" and ";" in stored)):
            wrong = DEPTH
        if wrong is None and "transparency" in image.info:
            wrong = REMEDIES["RGBA"]
        if wrong is None and getattr(image, "n_frames", 1) > 1:
            wrong = f"{image.n_frames} frames: save the one that is meant"
        if wrong is not None:
            raise InvalidValue(f"{name} is of mode {mode} ({stored}), {wrong}")
        return (1 if mode == "L" else 3), image.height, image.width


def picture(content: bytes, name: str) -> np.ndarray[Any, Any]:
    """A picture that is in memory, uint8 [C, H, W]; name: what messages call it.

    Raises what `Pictures` raises.
    """
    _shape(io.BytesIO(content), name)
    x = _pixels(io.BytesIO(content), name)
    return x[None] if x.ndim == 2 else np.ascontiguousarray(x.transpose(2, 0, 1))


def _pixels(path: Path | io.BytesIO, name: str | None = None) -> np.ndarray[Any, Any]:
    """uint8 [H, W], or [H, W, 3] of colour and palettes."""
    name = name or str(path)
    try:
        with _opened(path, name) as image:
            return np.array(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, SyntaxError) as e:  # SyntaxError: Pillow's word for a damaged PNG
        raise InvalidValue(f"{name} is not a readable image: {e}") from None


def _opened(path: Path | io.BytesIO, name: str) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingPackage(
            "reading images needs pillow: pip install 'undiffuse[bench]'"
        ) from None
    try:
        return Image.open(path)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as e:
        raise InvalidValue(f"{name} is not a readable image: {e}") from None
