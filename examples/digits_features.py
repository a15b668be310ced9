"""A small network that reads the digits that ship, whose 32 features distances are taken in.

    undiffuse fid --features examples/digits_features.py:features
    python examples/digits_features.py           # trains it again, some seconds

A few thousand weights lie beside this file. They were fitted to the part of the digits that the
shipped diffusion network was trained on, so what both never saw is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_suffix(".safetensors")


class Reader(nn.Module):
    """Digits [n, 1, 8, 8] in [-1, 1] to 32 features; `logits` are the scores of the ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(), nn.Flatten(), nn.Linear(512, 32), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out

    def logits(self, x: Tensor) -> Tensor:
        """Scores [n, 10]."""
        out: Tensor = self.head(self(x))
        return out


def reader() -> Reader:
    """The network with its weights."""
    net = Reader().requires_grad_(False).eval()
    net.load_state_dict(load_file(WEIGHTS))
    return net


def features() -> Callable[[Tensor], Tensor]:
    """Features of digits in [-1, 1], [n, 32]."""
    net = reader()
    return lambda x: net(x.clamp(-1, 1))


def fit() -> None:
    """Train on the digits that were not held out, with dequantisation noise; write the weights."""
    from undiffuse.models.data import load

    train, held = load("digits").split(held_out=0.2, seed=0)
    torch.manual_seed(0)
    net = Reader()
    rate = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
    steps = 1500
    slower = torch.optim.lr_scheduler.OneCycleLR(rate, 3e-3, steps)
    for _ in range(steps):
        pick = torch.randint(len(train), (128,))
        x = train.x[pick] + (torch.rand(128, 1, 8, 8) - 0.5) / 8
        loss = nn.functional.cross_entropy(net.logits(x), train.labels[pick], label_smoothing=0.05)
        rate.zero_grad()
        loss.backward()
        rate.step()
        slower.step()
    right = (net.logits(held.x).argmax(1) == held.labels).double().mean()
    print(f"reads {float(right):.3f} of the digits that it never saw")
    save_file(net.state_dict(), WEIGHTS)


if __name__ == "__main__":
    fit()
