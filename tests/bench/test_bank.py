"""The bank's networks and the published ones: what the scripts in examples/ say of them is so."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import undiffuse as ud

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("UNDIFFUSE_DATA", ROOT.parent / "shared" / "data"))
FILES = sorted((ROOT / "examples" / "bank").glob("*.safetensors"))


def script(name):
    spec = importlib.util.spec_from_file_location(f"_examples_{name}", ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bank = script("bank")


def test_every_network_has_its_recipe():
    assert len(FILES) >= 8 and {f.stem for f in FILES} <= bank.RECIPES.keys()


@pytest.mark.filterwarnings("ignore:predicts='noise' at t_max")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_network_is_what_its_recipe_says_and_predicts_better_than_the_mean(path):
    """At sigma/alpha = 1/2 the mean squared error of D is below the mean's, the data's variance."""
    recipe, found = bank.RECIPES[path.stem], ud.load(path)
    model = found.denoiser
    assert path.stat().st_size <= 300_000
    assert repr(model.process) == repr(recipe.process())
    assert (model.predicts, model.time) == (recipe.predicts, recipe.time)
    assert found.network[0] == recipe.network
    if recipe.data is bank.mnist and not bank.IMAGES.is_file():
        pytest.skip(f"no images at {bank.IMAGES}")
    if recipe.data in (bank.digits, bank.moons, bank.table, bank.wine):
        pytest.importorskip("sklearn")
    x0 = recipe.data()[:256]
    assert tuple(x0.shape[1:]) == found.event_shape
    t = float(model.process.inverse_log_snr(torch.tensor(0.6931, dtype=torch.float64)))
    t = min(t, model.process.t_max)
    alpha, sigma = float(model.process.alpha(t)), float(model.process.sigma(t))
    z = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    off = (model(alpha * x0 + sigma * z, t) - x0).square().mean()
    assert off < 0.6 * x0.var(0).mean()


@pytest.mark.filterwarnings("ignore:predicts='noise' at t_max")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_network_is_smooth_in_time(path):
    """Its flow can be integrated: between times a four thousandth of them apart, what it says bends
    by less than 1e-3. One told time at another scale than that of its waves bends by 0.02 to 1.
    """
    found = ud.load(path)
    model, process = found.denoiser.map(lambda net: net.double()), found.denoiser.process
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, *found.event_shape, generator=g, dtype=torch.float64)
    span = process.t_max - process.t_min
    for share in (0.1, 0.5, 0.9):
        t, h = process.t_min + share * span, span / 4000
        scaled = x * float(torch.hypot(process.alpha(t), process.sigma(t)))
        a, b, c = (model.raw(scaled, t + k * h) for k in (-1, 0, 1))
        assert (a - 2 * b + c).square().mean() < 1e-6 * b.square().mean()


def test_training_again_is_seeded_and_writes_a_file_that_loads(tmp_path):
    name = "checker-ve-noise-mlp"
    made = [bank.main(tmp_path / folder, [name], steps=3, warmup=1, batch=16)[0] for folder in "ab"]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert ud.load(made[0]).event_shape == (2,)
    with pytest.raises(ValueError, match="names must be among .*; got nobody"):
        bank.main(tmp_path, ["nobody"])


PUBLISHED = {
    "swiss": ("swiss_ddpm/diffusion_model.pth", (2,), 1.0),
    "signals": ("signals_ddpm/ddpm.pt", (100,), None),
    "hea": ("hea_tabddpm/model_ema.pt", (13,), 1.0),
}


@pytest.mark.filterwarnings("ignore:predicts='noise' at t_max")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_makes_data_of_its_kind(name, monkeypatch):
    """Standardised data have deviation 1; signals, whose noise stops early, are denoised."""
    file, shape, std = PUBLISHED[name]
    if not (DATA / file).is_file():
        pytest.skip(f"no {file} in {DATA}")
    monkeypatch.setenv("UNDIFFUSE_DATA", str(DATA))
    found = ud.load(f"{ROOT / 'examples' / 'published.py'}:{name}")
    model = found.denoiser
    assert found.event_shape == shape
    if std is not None:
        x = ud.sample(model, (128, *shape), nfe=30)
        assert float(x.var(0).mean().sqrt()) == pytest.approx(std, rel=0.2)
        return
    x0 = torch.tensor(np.load(DATA / "signals_ddpm" / "signals.npy")[:128]).float()
    t = model.process.t_max / 2
    alpha, sigma = float(model.process.alpha(t)), float(model.process.sigma(t))
    z = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    off = (model(alpha * x0 + sigma * z, t) - x0).square().mean()
    assert float(off) < 0.8 * (sigma / alpha) ** 2  # that of x/alpha


def test_a_folder_without_the_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDIFFUSE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="swiss_ddpm.*set UNDIFFUSE_DATA"):
        ud.load(f"{ROOT / 'examples' / 'published.py'}:swiss")
