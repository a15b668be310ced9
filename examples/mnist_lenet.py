"""Features of the LeNet that Frechet distances on MNIST are customarily taken in, as an example.

    UNDIFFUSE_DATA=folder undiffuse bench --checkpoint examples/mnist_ddpm.py:mnist_cnn \\
        --features examples/mnist_lenet.py:features --metrics frechet,kid,precision,recall

The folder holds metric_lenet_mnist/lenet_tanh.pth (A. F. Ansari, Apache-2.0); it is no part of the
package.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(
    os.environ.get("UNDIFFUSE_DATA", "../shared/data"), "metric_lenet_mnist", "lenet_tanh.pth"
)


class LeNet(nn.Module):
    """LeNet-5 with tanh and max-pooling; forward gives its 84 features of images in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.convnet = nn.ModuleDict(
            {"c1": nn.Conv2d(1, 6, 5), "c3": nn.Conv2d(6, 16, 5), "c5": nn.Conv2d(16, 120, 5)}
        )
        self.fc = nn.ModuleDict({"f6": nn.Linear(120, 84), "f7": nn.Linear(84, 10)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
        for name in ("c1", "c3"):
            x = F.max_pool2d(torch.tanh(self.convnet[name](x)), 2)
        x = torch.tanh(self.convnet["c5"](x)).flatten(1)
        return torch.tanh(self.fc["f6"](x))

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the ten digits, [n, 10]."""
        out: Tensor = self.fc["f7"](self(x))
        return out


def lenet() -> LeNet:
    """The network with its weights. Raises FileNotFoundError where the folder does not hold
    them."""
    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"no weights at {WEIGHTS}; set UNDIFFUSE_DATA to the data folder")
    net = LeNet().requires_grad_(False).eval()
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True, map_location="cpu"))
    return net


def features() -> Callable[[Tensor], Tensor]:
    """Features of images [n, 1, 28, 28] in [-0.5, 0.5], as mnist_ddpm.py makes them; [n, 84]."""
    net = lenet()
    return lambda x: net((x + 0.5).clamp(0, 1))
