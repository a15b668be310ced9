"""Small published networks as benchmarks: nobody trained them for this package.

    UNDIFFUSE_DATA=folder undiffuse bench away examples/published.py:swiss \\
        examples/published.py:signals examples/published.py:hea

The folder holds swiss_ddpm/, signals_ddpm/ and hea_tabddpm/ as they were published (the first two
without a licence; P. Kumar's HEA-TabDDPM under MIT); none is part of the package.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undiffuse.models import VP, Denoiser
from undiffuse.models.checkpoint import Checkpoint

CLASSES = 4
"""Phases of alloys: intermetallic, BCC, FCC, and both of the last."""


def _weights(*parts: str) -> dict[str, Tensor]:
    """The tensors of a file below UNDIFFUSE_DATA, by default ../shared/data."""
    path = Path(os.environ.get("UNDIFFUSE_DATA", Path("..", "shared", "data")), *parts)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; set UNDIFFUSE_DATA to the data folder")
    held = torch.load(path, weights_only=True, map_location="cpu")
    found: dict[str, Tensor] = held.get("model_state_dict", held.get("model", held))
    return found


def _linear(steps: int) -> VP:
    return VP.from_betas(torch.linspace(1e-4, 0.02, steps, dtype=torch.float64))


def _ready(net: nn.Module) -> nn.Module:
    return net.eval().requires_grad_(False)


class Waves(nn.Module):
    """[sin, cos] or [cos, sin] of t at `count` frequencies from 1 down to nearly 1e-4."""

    frequencies: Tensor

    def __init__(self, count: int, cosine_first: bool) -> None:
        super().__init__()
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(count) / count))
        self.cosine_first = cosine_first

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies
        both = (angle.cos(), angle.sin()) if self.cosine_first else (angle.sin(), angle.cos())
        return torch.cat(both, 1)


class SwissNet(nn.Module):
    """The point and the time, each through its own layers; two more layers on both."""

    def __init__(self) -> None:
        super().__init__()
        self.input_net = nn.Sequential(
            nn.Linear(2, 256), nn.LayerNorm(256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU()
        )
        self.time_emb = Waves(32, cosine_first=False)
        self.time_net = nn.Sequential(nn.Linear(64, 256), nn.SiLU())
        self.output_net = nn.Sequential(nn.Linear(512, 256), nn.SiLU(), nn.Linear(256, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        told = self.time_net(self.time_emb(t))
        y: Tensor = self.output_net(torch.cat([self.input_net(x), told], 1))
        return y


def swiss() -> Checkpoint:
    """A Swiss roll in the plane, standardised; 1,000 linear betas, noise, time 0..999.

    Raises FileNotFoundError where the folder does not hold the weights.
    """
    held = _weights("swiss_ddpm", "diffusion_model.pth")
    net = SwissNet()
    names = {k: k.replace("inv_freq", "frequencies") for k in held}
    net.load_state_dict({names[k]: v for k, v in held.items()})
    model = Denoiser(_ready(net), _linear(1000), predicts="noise", time="index")
    return Checkpoint(model, (2,), (-2.5, 2.5))


class SignalsNet(nn.Module):
    """One hidden layer on the signal and t/100."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(101, 128), nn.ReLU(), nn.Linear(128, 100))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y: Tensor = self.net(torch.cat([x, t[:, None] / 100], 1))
        return y


def signals() -> Checkpoint:
    """Signals of length 100; 100 linear betas that stop at sigma/alpha 1.3, noise, time 0..99.

    Raises FileNotFoundError where the folder does not hold the weights.
    """
    held = _weights("signals_ddpm", "ddpm.pt")
    net = SignalsNet()
    net.load_state_dict({k: v for k, v in held.items() if k.startswith("net.")})
    model = Denoiser(_ready(net), _linear(100), predicts="noise", time="index", steps=100)
    return Checkpoint(model, (100,), (-4.5, 4.5))


class AlloysNet(nn.Module):
    """A projection, plus time and label, through two layers of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(13, 128)
        self.label_emb = nn.Embedding(CLASSES, 128)
        self.waves = Waves(64, cosine_first=True)
        self.time_embed = nn.Sequential(nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128))
        self.hidden = nn.ModuleList([nn.Linear(128, 256), nn.Linear(256, 256)])
        self.head = nn.Linear(256, 13)

    def forward(self, x: Tensor, t: Tensor, y: int | Tensor = 0) -> Tensor:
        label = torch.as_tensor(y, device=x.device).expand(len(x))
        h = self.proj(x) + self.time_embed(self.waves(t)) + F.silu(self.label_emb(label))
        for layer in self.hidden:
            h = F.relu(layer(h))
        out: Tensor = self.head(h)
        return out


def hea() -> Checkpoint:
    """High-entropy alloys: 13 features, each made normal by its quantiles, of the first of four
    classes (condition y); 1,000 cosine betas, noise, time 0..999.

    Raises FileNotFoundError where the folder does not hold the weights.
    """
    held = _weights("hea_tabddpm", "model_ema.pt")
    net = AlloysNet()
    for old, new in (("mlp.blocks.", "hidden."), (".linear.", "."), ("mlp.head.", "head.")):
        held = {k.replace(old, new): v for k, v in held.items()}
    net.load_state_dict({**held, "waves.frequencies": net.waves.frequencies})
    model = Denoiser(
        _ready(net), VP.cosine(), predicts="noise", time="index", cond={"y": 0}
    )  # the labels of a batch: sample(..., cond={"y": labels})
    return Checkpoint(model, (13,), (-5.2, 5.2))
