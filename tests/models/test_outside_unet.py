"""A published MNIST U-Net that cannot see the mean or the scale of its input: clipping matters.

The weights are not part of the project: UNDIFFUSE_DATA names the folder that holds
ddpm_mnist_unet/ddpm_mnist.pt (B. Pulfer, MIT licence), by default ../shared/data.
"""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

import undiffuse as ud
from undiffuse.models.data import sets as data

DATA = Path(os.environ.get("UNDIFFUSE_DATA", Path(__file__).parents[2] / "../shared/data"))
WEIGHTS = DATA / "ddpm_mnist_unet" / "ddpm_mnist.pt"
IMAGES = DATA / "mnist_test" / "t10k-images-idx3-ubyte.gz"
pytestmark = pytest.mark.skipif(
    not WEIGHTS.exists(), reason=f"{WEIGHTS} is absent; set UNDIFFUSE_DATA to the data folder"
)


def denoiser(**options):
    path = Path(__file__).parents[2] / "examples" / "published.py"
    model = ud.load(f"{path}:mnist_unet").denoiser
    return dataclasses.replace(model, **options)


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
