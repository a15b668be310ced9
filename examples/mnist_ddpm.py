"""A published MNIST DDPM as a benchmark: a real network that nobody trained for this package.

    UNDIFFUSE_DATA=folder undiffuse bench --checkpoint examples/mnist_ddpm.py:mnist_cnn

The folder holds ddpm_mnist_cnn/ddpm_mnist_starter.pth (Y. Zhang, MIT licence) and, as held-out
data, mnist_test/t10k-images-idx3-ubyte.gz; neither is part of the package.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from undiffuse.models import VP, Denoiser
from undiffuse.models.checkpoint import Checkpoint

WEIGHTS = Path("ddpm_mnist_cnn", "ddpm_mnist_starter.pth")
IMAGES = Path("mnist_test", "t10k-images-idx3-ubyte.gz")


def folder() -> Path:
    """The folder that UNDIFFUSE_DATA names, by default ../shared/data."""
    return Path(os.environ.get("UNDIFFUSE_DATA", Path("..", "shared", "data")))


class Block(nn.Module):
    """Convolution 7x7, LayerNorm over (C, 28, 28), GELU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(before, after, 7, padding=3), nn.LayerNorm((after, 28, 28)), nn.GELU()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class MnistNet(nn.Module):
    """Four blocks of widths 16, 32, 32, 16 and a 3x3 convolution; time enters after the first."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.zeros(16))
        widths = (1, 16, 32, 32, 16)
        self.blocks = nn.ModuleList(
            [*(Block(a, b) for a, b in pairwise(widths)), nn.Conv2d(16, 1, 3, padding=1)]
        )
        hidden = (32, 128, 128, 128, 16)
        layers = [m for a, b in pairwise(hidden) for m in (nn.Linear(a, b), nn.GELU())]
        self.time_embed = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = self.frequencies * t[:, None]
        embedded = self.time_embed(torch.cat([angle.sin(), angle.cos() - 1], -1))
        x = self.blocks[0](x) + embedded[:, :, None, None]
        for block in list(self.blocks)[1:]:
            x = block(x)
        return x


def mnist_cnn() -> Checkpoint:
    """The network with its own noise schedule; data [B, 1, 28, 28] in [-0.5, 0.5].

    Raises FileNotFoundError where the folder does not hold the weights.
    """
    path = folder() / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; set UNDIFFUSE_DATA to the data folder")
    weights = torch.load(path, weights_only=True, map_location="cpu")
    net = MnistNet()
    net.load_state_dict(
        {k.removeprefix("gt."): v for k, v in weights.items() if k.startswith("gt.")}
    )
    # entry i of the table is alpha_bar at step i = 1..1000, where the network is told i/1000
    bar = weights["alpha_t"].double()[1:]
    betas = 1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])
    model = Denoiser(net.eval().requires_grad_(False), VP.from_betas(betas), predicts="noise")
    record = {"data": str(folder() / IMAGES), "split": None}
    return Checkpoint(model, (1, 28, 28), (-0.5, 0.5), 1 / 255, training=record)
