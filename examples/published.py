"""Small published networks as benchmarks: nobody trained them for this package.

    UNDIFFUSE_DATA=folder undiffuse bench away examples/published.py:swiss \\
        examples/published.py:signals examples/published.py:hea examples/published.py:mnist_unet

The folder holds swiss_ddpm/, signals_ddpm/, hea_tabddpm/ and ddpm_mnist_unet/ as they were
published (the first two without a licence; P. Kumar's HEA-TabDDPM and B. Pulfer's DDPM under MIT)
and, as held-out data of the last, mnist_test/t10k-images-idx3-ubyte.gz; none is part of the
package.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undiffuse.models import VP, Denoiser
from undiffuse.models.checkpoint import Checkpoint

CLASSES = 4
"""Phases of alloys: intermetallic, BCC, FCC, and both of the last."""


IMAGES = "mnist_test", "t10k-images-idx3-ubyte.gz"


def _data(*parts: str) -> Path:
    """A file below UNDIFFUSE_DATA, by default ../shared/data."""
    return Path(os.environ.get("UNDIFFUSE_DATA", Path("..", "shared", "data")), *parts)


def _weights(*parts: str) -> dict[str, Tensor]:
    """The tensors of a file below UNDIFFUSE_DATA."""
    path = _data(*parts)
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


class _Block(nn.Module):
    """LayerNorm over the whole image, two convolutions, each with a SiLU."""

    def __init__(self, before: int, after: int, size: int, normalise: bool = True) -> None:
        super().__init__()
        self.ln = nn.LayerNorm((before, size, size))
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.normalise = normalise

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln(x) if self.normalise else x
        return F.silu(self.conv2(F.silu(self.conv1(x))))


def _blocks(size: int, *channels: int, last: bool = True) -> nn.Sequential:
    """A block for each pair of neighbours; the last one normalises where asked to."""
    pairs = list(pairwise(channels))
    return nn.Sequential(
        *(_Block(a, b, size, last or i < len(pairs) - 1) for i, (a, b) in enumerate(pairs))
    )


class MnistUNet(nn.Module):
    """Three levels, 28, 14 and 7, and a middle of 3; time is added before each group. Times between
    two whole steps are told by interpolation of its table."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Embedding(1000, 100)
        widths = {"1": 1, "2": 10, "3": 20, "_mid": 40, "4": 80, "5": 40, "_out": 20}
        for name, w in widths.items():
            layers = nn.Sequential(nn.Linear(100, w), nn.SiLU(), nn.Linear(w, w))
            self.add_module(f"te{name}", layers)
        self.b1, self.b2 = _blocks(28, 1, 10, 10, 10), _blocks(14, 10, 20, 20, 20)
        self.b3, self.b_mid = _blocks(7, 20, 40, 40, 40), _blocks(3, 40, 20, 20, 40)
        self.b4, self.b5 = _blocks(7, 80, 40, 20, 20), _blocks(14, 40, 20, 10, 10)
        self.b_out = _blocks(28, 20, 10, 10, 10, last=False)
        self.down1, self.down2 = (nn.Conv2d(c, c, 4, 2, 1) for c in (10, 20))
        self.down3 = nn.Sequential(nn.Conv2d(40, 40, 2), nn.SiLU(), nn.Conv2d(40, 40, 4, 2, 1))
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(40, 40, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(40, 40, 2)
        )
        self.up2, self.up3 = (nn.ConvTranspose2d(c, c, 4, 2, 1) for c in (20, 10))
        self.conv_out = nn.Conv2d(10, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        low = t.floor().clamp(0, 998)
        share = (t - low)[:, None].to(x)
        below, above = (self.time_embed(low.long() + k) for k in (0, 1))
        e = below + share * (above - below)

        def told(name: str, h: Tensor) -> Tensor:
            added: Tensor = getattr(self, f"te{name}")(e)
            return h + added[:, :, None, None]

        h1 = self.b1(told("1", x))
        h2 = self.b2(told("2", self.down1(h1)))
        h3 = self.b3(told("3", self.down2(h2)))
        h = self.b_mid(told("_mid", self.down3(h3)))
        h = self.b4(told("4", torch.cat([h3, self.up1(h)], 1)))
        h = self.b5(told("5", torch.cat([h2, self.up2(h)], 1)))
        h = self.b_out(told("_out", torch.cat([h1, self.up3(h)], 1)))
        y: Tensor = self.conv_out(h)
        return y


def mnist_unet() -> Checkpoint:
    """MNIST in [-1, 1]; 1,000 linear betas, noise, time 0..999. Its first LayerNorm is blind to
    the mean and the scale of x, so that unclipped samples drift in both.

    Raises FileNotFoundError where the folder does not hold the weights.
    """
    held = _weights("ddpm_mnist_unet", "ddpm_mnist.pt")
    net = MnistUNet()
    net.load_state_dict({k.removeprefix("network."): v for k, v in held.items()})
    model = Denoiser(_ready(net), _linear(1000), predicts="noise", time="index")
    record = {"data": str(_data(*IMAGES)), "split": None}
    return Checkpoint(model, (1, 28, 28), (-1.0, 1.0), 2 / 255, training=record)
