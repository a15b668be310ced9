"""A published MNIST U-Net that cannot see the mean or the scale of its input: clipping matters.

The weights are not part of the project: UNDIFFUSE_DATA names the folder that holds
ddpm_mnist_unet/ddpm_mnist.pt (B. Pulfer, MIT licence), by default ../shared/data.
"""

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import undiffuse as ud
from undiffuse.models.data import sets as data

DATA = Path(os.environ.get("UNDIFFUSE_DATA", Path(__file__).parents[2] / "../shared/data"))
WEIGHTS = DATA / "ddpm_mnist_unet" / "ddpm_mnist.pt"
IMAGES = DATA / "mnist_test" / "t10k-images-idx3-ubyte.gz"
pytestmark = pytest.mark.skipif(
    not WEIGHTS.exists(), reason=f"{WEIGHTS} is absent; set UNDIFFUSE_DATA to the data folder"
)


class Block(nn.Module):
    """LayerNorm over the whole image, two convolutions, each with a SiLU."""

    def __init__(self, before: int, after: int, size: int, normalise: bool = True) -> None:
        super().__init__()
        self.ln = nn.LayerNorm((before, size, size))
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.normalise = normalise

    def forward(self, x):
        x = self.ln(x) if self.normalise else x
        silu = nn.functional.silu
        return silu(self.conv2(silu(self.conv1(x))))


def blocks(size, *channels, last=True):
    pairs = list(pairwise(channels))
    return nn.Sequential(
        *(Block(a, b, size, last or i < len(pairs) - 1) for i, (a, b) in enumerate(pairs))
    )


class UNet(nn.Module):
    """Three levels, 28, 14 and 7, and a middle of 3; time is added before each group."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Embedding(1000, 100)
        widths = {"1": 1, "2": 10, "3": 20, "_mid": 40, "4": 80, "5": 40, "_out": 20}
        for name, w in widths.items():
            layers = nn.Sequential(nn.Linear(100, w), nn.SiLU(), nn.Linear(w, w))
            self.add_module(f"te{name}", layers)
        self.b1, self.b2 = blocks(28, 1, 10, 10, 10), blocks(14, 10, 20, 20, 20)
        self.b3, self.b_mid = blocks(7, 20, 40, 40, 40), blocks(3, 40, 20, 20, 40)
        self.b4, self.b5 = blocks(7, 80, 40, 20, 20), blocks(14, 40, 20, 10, 10)
        self.b_out = blocks(28, 20, 10, 10, 10, last=False)
        self.down1, self.down2 = (nn.Conv2d(c, c, 4, 2, 1) for c in (10, 20))
        self.down3 = nn.Sequential(nn.Conv2d(40, 40, 2), nn.SiLU(), nn.Conv2d(40, 40, 4, 2, 1))
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(40, 40, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(40, 40, 2)
        )
        self.up2, self.up3 = (nn.ConvTranspose2d(c, c, 4, 2, 1) for c in (20, 10))
        self.conv_out = nn.Conv2d(10, 1, 3, padding=1)

    def forward(self, x, i):
        e = self.time_embed(i.round().long())

        def told(name, h):
            return h + getattr(self, f"te{name}")(e)[:, :, None, None]

        h1 = self.b1(told("1", x))
        h2 = self.b2(told("2", self.down1(h1)))
        h3 = self.b3(told("3", self.down2(h2)))
        h = self.b_mid(told("_mid", self.down3(h3)))
        h = self.b4(told("4", torch.cat([h3, self.up1(h)], 1)))
        h = self.b5(told("5", torch.cat([h2, self.up2(h)], 1)))
        h = self.b_out(told("_out", torch.cat([h1, self.up3(h)], 1)))
        return self.conv_out(h)


def denoiser(**options):
    weights = torch.load(WEIGHTS, weights_only=True, map_location="cpu")
    net = UNet()
    net.load_state_dict({k.removeprefix("network."): v for k, v in weights.items()})
    process = ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    net.eval().requires_grad_(False)
    return ud.Denoiser(net, process, predicts="noise", time="index", **options)


def test_it_is_the_published_network_and_blind_to_mean_and_scale():
    model = denoiser()
    g = torch.Generator().manual_seed(0)
    x, i = torch.randn(2, 1, 28, 28, generator=g), torch.tensor([100.0, 700.0])
    out = model.net(x, i)
    for changed in (x + 1, 2 * x):  # a first LayerNorm over the whole input
        assert (model.net(changed, i) - out).abs().max() < 1e-4 * out.abs().max()


@pytest.mark.skipif(not IMAGES.exists(), reason=f"{IMAGES} is absent")
def test_it_predicts_the_noise_of_real_digits():
    x_0, model = data.load(IMAGES).x[:32], denoiser()
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    error = {}
    for t in (0.1, 0.5, 0.9):
        alpha, sigma = float(model.process.alpha(t)), float(model.process.sigma(t))
        error[t] = float((model.noise(alpha * x_0 + sigma * eps, t) - eps).square().mean())
    # predicting nothing would give 1; a wrong schedule or time convention 0.3 and more
    assert error[0.1] < 0.1 and error[0.5] < 0.02 and error[0.9] < 0.01, error


def test_clipping_keeps_its_samples_in_range():
    shape = (4, 1, 28, 28)
    free = ud.sample(denoiser(), shape, "ddim", steps=40, grid="trailing", seed=0)
    model = denoiser(clip=(-1.0, 1.0))
    clipped = ud.sample(model, shape, "ddim", steps=40, grid="trailing", seed=0)
    dynamic = ud.guidance.threshold(denoiser(), 0.995)
    thresholded = ud.sample(dynamic, shape, "ddim", steps=40, grid="trailing", seed=0)
    # unclipped, the mean of a picture is an integral that nothing pulls back: measured up to 30
    assert free.abs().max() > 3 and free.flatten(1).mean(1).std() > 1
    for x in (clipped, thresholded):
        assert x.abs().max() <= 1.0 + 1e-5
        # a few strokes, brighter than the rest by much: what the free samples have lost
        strokes = (x > x.flatten(1).median(1).values[:, None, None, None] + 0.5).flatten(1)
        assert (strokes.float().mean(1) > 0.02).float().mean() >= 0.75
    assert "clip=(-1.0, 1.0)" in repr(model) and "clip=None" in repr(denoiser())
