"""A published MNIST DDPM, sampled through the public API.

The weights are not part of the project: UNDIFFUSE_DATA names the folder that holds
ddpm_mnist_cnn/ddpm_mnist_starter.pth (Y. Zhang, MIT licence), by default ../shared/data.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import undiffuse as ud

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("UNDIFFUSE_DATA", ROOT / "../shared/data"))
WEIGHTS = DATA / "ddpm_mnist_cnn" / "ddpm_mnist_starter.pth"
pytestmark = pytest.mark.skipif(
    not WEIGHTS.exists(), reason=f"{WEIGHTS} is absent; set UNDIFFUSE_DATA to the data folder"
)


@pytest.fixture(scope="module")
def model() -> ud.Denoiser:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDIFFUSE_DATA", str(DATA))
        return ud.load(f"{ROOT / 'examples/mnist_ddpm.py'}:mnist_cnn").denoiser


def test_the_published_noise_error_is_met(model):
    # the provenance notes measure the MSE of the noise on MNIST: 0.043 at step 100, 0.0052 at 500
    images = _mnist(64)
    z = ud.kernels.normal(images.shape, seed=1)
    for step, mse in ((100, 0.043), (500, 0.0052)):
        t = step / 1000
        x = float(model.process.alpha(t)) * images + float(model.process.sigma(t)) * z
        assert (model.noise(x, t) - z).square().mean() == pytest.approx(mse, rel=0.25)


def test_ddim_converges_at_first_order_to_its_own_thousand_steps(model):
    # nodes uniform in log-SNR down to t_min, so that only the integrator's error is left
    def run(n):
        return ud.sample(
            model, (4, 1, 28, 28), solver="ddim", steps=n, grid="log_snr", final="t_min", seed=3
        )

    steps, fine = np.array([10, 20, 40, 80]), run(1000)
    error = [(run(n) - fine).square().flatten(1).mean(1).sqrt().median() for n in steps]
    # an error c/n, measured against n = 1000, shows as c (1/n - 1/1000)
    shown = 1 / steps - 1 / 1000
    slopes = np.diff(np.log(error)) / np.diff(np.log(shown))
    assert np.abs(slopes - 1).max() < 0.2, (error, slopes)


@pytest.mark.slow
def test_samples_look_like_digits_and_are_written_to_disk(model, tmp_path):
    out = Path(os.environ.get("UNDIFFUSE_OUT", tmp_path))
    for solver, steps, grid in (
        ("ddim", 10, "log_snr"),
        ("ddim", 50, "log_snr"),
        ("dpmpp-2m", 10, "log_snr"),
        ("dpmpp-2m", 20, "log_snr"),
        ("ddpm", 100, "trailing"),
        ("ddpm", 1000, "trailing"),
    ):
        x = ud.sample(model, (16, 1, 28, 28), solver=solver, steps=steps, grid=grid, seed=0)
        _write_grid(out / f"mnist-{solver}-{steps}.png", x)
        # data lie in [-0.5, 0.5], a digit covers 19 % of its picture: mean ink 0.13, background
        # at -0.5 for most pixels
        ink = (x + 0.5).clamp(0, 1)
        assert 0.05 < ink.mean() < 0.3
        assert (ink < 0.1).float().mean() > 0.55


def _mnist(n: int) -> torch.Tensor:
    import gzip

    path = DATA / "mnist_test" / "t10k-images-idx3-ubyte.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    raw = gzip.decompress(path.read_bytes())[16 : 16 + n * 784]
    return torch.tensor(list(raw)).view(n, 1, 28, 28) / 255 - 0.5


def _write_grid(path: Path, x: torch.Tensor) -> None:
    plt = pytest.importorskip("matplotlib.image")
    rows = ((x + 0.5).clamp(0, 1)).view(2, 8, 28, 28).permute(0, 2, 1, 3).reshape(56, 224)
    plt.imsave(path, rows.numpy(), cmap="gray")
    assert path.stat().st_size > 1000
