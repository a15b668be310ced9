"""Small networks F(x, t) for examples, tests and the digits that ship with the package.

They are plain on purpose: for larger ones, hand the network of another library to `Denoiser`.
Each is rebuilt from `name` and `config` (JSON), which is what a checkpoint holds of it.

Times come as whatever the denoiser's `time` convention says. The embedding

    e(t) = [cos(2 pi w_k s t), sin(2 pi w_k s t)],   w_k geometric from 1/8 to 8,

is smooth over s t of order one, which log(sigma/alpha)/4 ('edm') and t itself ('continuous') are;
`time_scale` s brings any other convention there (1/1000 for 'index' of 1000 steps).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """t [B] -> [B, width]: Fourier features of time_scale * t, then two linear maps."""

    frequencies: Tensor

    def __init__(self, width: int, features: int = 32, time_scale: float = 1.0) -> None:
        super().__init__()
        w = torch.logspace(-3, 3, features // 2, base=2.0, dtype=torch.float64)
        phases = (2 * math.pi * time_scale * w).float()
        self.register_buffer("frequencies", phases, persistent=False)
        self.net = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None].to(self.frequencies.dtype) * self.frequencies
        out: Tensor = self.net(torch.cat([phase.cos(), phase.sin()], 1))
        return out


class LabelEmbedding(nn.Embedding):
    """label [B] int64 in 0..classes-1 -> [B, width]; -1, or no label at all, is 'unconditional'."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)
        self.classes = classes

    def of(self, label: Tensor | None, batch: int) -> Tensor:
        if label is None:
            return self.weight[-1].expand(batch, -1)
        index = label.to(self.weight.device)
        if index.shape != (batch,) or index.is_floating_point():
            raise ValueError(
                f"label must hold integers of shape {(batch,)}; "
                f"got {index.dtype} of shape {tuple(index.shape)}"
            )
        return super().forward(torch.where(index < 0, self.classes, index))


class _ResidualBlock(nn.Module):
    """h + W_2 silu(scale(e) * W_1 norm(h) + shift(e)), e the embedding of time and label."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.film = nn.Linear(embedding, 2 * width)
        self.down = nn.Linear(width, width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.film(e).chunk(2, 1)
        inner = nn.functional.silu(self.up(self.norm(h)) * (1 + scale) + shift)
        out: Tensor = h + self.down(inner)
        return out


class MLP(nn.Module):
    """Residual network on flattened events, conditioned on time and, if asked, on a class.

    dim: components of one event (64 for 8 x 8 digits); x may have any shape [B, ...] of as many.
    width, depth: of the residual trunk; embedding: width of the time embedding.
    classes: number of labels; 0 for an unconditional network.
    time_scale: brings the denoiser's time to order one, see the module's first lines.

    The last layer starts at zero, so that training starts from the preconditioning's own answer.
    Raises ValueError for sizes below one and for an x of another number of components.
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 4,
        embedding: int = 64,
        classes: int = 0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _at_least_one(dim=dim, width=width, depth=depth, embedding=embedding)
        self.config = {
            "dim": dim,
            "width": width,
            "depth": depth,
            "embedding": embedding,
            "classes": classes,
            "time_scale": time_scale,
        }
        self.time = TimeEmbedding(embedding, time_scale=time_scale)
        self.label = LabelEmbedding(classes, embedding) if classes else None
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_ResidualBlock(width, embedding) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.config["dim"]:
            raise ValueError(
                f"x must have {self.config['dim']} components per sample; got {tuple(x.shape)}"
            )
        e = self.time(t)
        if self.label is not None:
            e = e + self.label.of(label, len(x))
        elif label is not None:
            raise ValueError("label was given to a network without classes; build it with classes=")
        e = nn.functional.silu(e)
        h = self.enter(flat)
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.leave(self.norm(h))
        return out.reshape(x.shape)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP}
"""Networks by the name that checkpoints and the command line use."""


def build(name: str, config: dict[str, Any]) -> nn.Module:
    """The network `name` with the arguments `config`; raises ValueError for what is not known."""
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {name!r}")
    try:
        return NETWORKS[name](**config)
    except TypeError as e:
        raise ValueError(f"network {name!r} cannot be built from {config}: {e}") from None


def network_for(name: str, event_shape: Sequence[int], **config: Any) -> nn.Module:
    """The network `name` sized for events of this shape; other arguments as in its class."""
    if name == "mlp":
        config = {"dim": math.prod(event_shape), **config}
    return build(name, config)


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be >= 1; got {size}")
