"""Events as pictures, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import optional
from ...kernels.files import atomically
from ..notebook import NEEDED


def is_picture(shape: Sequence[int]) -> bool:
    """Whether an event [C, H, W] can be drawn: one channel or three."""
    return len(shape) == 3 and shape[0] in (1, 3)


def pyplot() -> Any:
    """matplotlib without a display. Raises ImportError naming the extra."""
    optional("matplotlib", NEEDED).use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(fig: Any, path: Path) -> None:
    """Write the figure to path, a .png, and as .svg beside it."""
    for suffix in (".png", ".svg"):
        atomically(
            path.with_suffix(suffix),
            partial(fig.savefig, dpi=120, format=suffix[1:]),
        )
        fig.set_layout_engine("none")  # laid out once


def sample_grid(path: Path, rows: Sequence[tuple[str, Tensor]], title: str) -> None:
    """One line of pictures a row, [n, C, H, W] in [-1, 1], the row's name at its left."""
    plt = pyplot()
    n = max(len(x) for _, x in rows)
    strips = [line_of(x, n) for _, x in rows]
    margin, unit = 1.9, 0.62
    wide, high = unit * n + margin, unit * len(rows) + 0.45
    fig = plt.figure(figsize=(wide, high))
    for i, ((name, _), strip) in enumerate(zip(rows, strips, strict=True)):
        bottom = (len(rows) - 1 - i) * unit / high
        ax = fig.add_axes((margin / wide, bottom, unit * n / wide, unit / high))
        ax.imshow(
            strip.numpy(), vmin=0, vmax=1, cmap="gray", interpolation="nearest", aspect="auto"
        )
        ax.set_axis_off()
        fig.text(
            (margin - 0.12) / wide,
            bottom + unit / high / 2,
            name,
            ha="right",
            va="center",
            fontsize=9,
        )
    fig.text(0.12 / wide, 1 - 0.22 / high, title, ha="left", va="center", fontsize=10)
    save(fig, path)
    plt.close(fig)


def line_of(x: Tensor, n: int) -> Tensor:
    """Pictures [m, C, H, W] side by side with white rims: [H + 1, n (W + 1), C or none]."""
    image = (x.detach().float().cpu().clamp(-1, 1) + 1) / 2
    missing = n - len(image)
    image = torch.nn.functional.pad(image, (0, 0, 0, 0, 0, 0, 0, missing), value=1.0)
    scale = max(1, 48 // image.shape[-1])  # rims stay thin whatever the resolution
    image = image.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    image = torch.nn.functional.pad(image, (0, 3, 0, 3), value=1.0)
    line = torch.cat(list(image), 2).permute(1, 2, 0)
    return line[..., 0] if line.shape[-1] == 1 else line
