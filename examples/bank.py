"""The bank: small networks of many kinds, for `undiffuse bench away`, which this script trains.

    python examples/bank.py out/bank [NAME ...]
    undiffuse bench away out/bank/*.safetensors --out out/away

A recipe is a data set, a process, what is predicted, how time is told, and a network of at most
300 KB; a minute or more each on one core, seeded. The files in `examples/bank/` were made by these
recipes, some of them in an earlier state of the package: other processors give other bits anyway.
MNIST and Fashion need UNDIFFUSE_DATA (mnist_test/, fashion_mnist_sprite/) and are left out without.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from undiffuse.models import EDM, VE, VP, Flow, Process
from undiffuse.models.checkpoint import Checkpoint
from undiffuse.models.data import load
from undiffuse.models.training.train import train

FOLDER = Path(os.environ.get("UNDIFFUSE_DATA", "../shared/data"))
IMAGES = FOLDER / "mnist_test" / "t10k-images-idx3-ubyte.gz"
SPRITE = FOLDER / "fashion_mnist_sprite" / "fashion-mnist-sprite.png"
MLP = {"width": 80, "depth": 2, "embedding": 48}
UNET = {"width": 12, "embedding": 48}
TRANSFORMER = {"width": 48, "depth": 2, "embedding": 48}
SIZES = {"mlp": MLP, "unet": UNET, "transformer": TRANSFORMER}
TRAINING = {
    "mlp": {"steps": 4000, "batch": 256},
    "unet": {"steps": 700, "batch": 64},
    "transformer": {"steps": 2000, "batch": 64},
}
"""By the kind of network."""
LOSSES = {"edm": "edm", "flow": "flow"}
"""By what is predicted; 'simple' otherwise."""


def digits() -> Tensor:
    """UCI's 8 x 8 digits in [-1, 1]."""
    return load("digits").x


def mnist() -> Tensor:
    """The first 6,000 test images of MNIST, averaged to 14 x 14, in [-1, 1]."""
    return F.avg_pool2d(load(IMAGES).x[:6000], 2)


def fashion() -> Tensor:
    """900 images of Fashion-MNIST from one picture of 30 x 30, and their mirror images, averaged to
    14 x 14, in [-1, 1]."""
    from matplotlib.image import imread

    sprite = torch.tensor(imread(SPRITE)[..., 0]).float()
    x = sprite.reshape(30, 28, 30, 28).permute(0, 2, 1, 3).reshape(900, 1, 28, 28) * 2 - 1
    return F.avg_pool2d(torch.cat([x, x.flip(-1)]), 2)


NEEDS = {mnist: IMAGES, fashion: SPRITE}
"""Files of data sets that are no part of the package."""


def checker() -> Tensor:
    """The dark squares of a board of 4 x 4 on [-2, 2]^2."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(16_000, 2, generator=g) * 4 - 2
    return x[x.floor().sum(1) % 2 == 0][:8000]


def moons() -> Tensor:
    """Two half circles, blurred by 0.05, about the origin."""
    from sklearn.datasets import make_moons

    x, _ = make_moons(8000, noise=0.05, random_state=0)
    return torch.tensor(x).float() - torch.tensor([0.5, 0.25])


def rings() -> Tensor:
    """Two circles of radii 1 and 2, blurred by 0.05."""
    g = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(8000, generator=g)
    x = torch.stack([angle.cos(), angle.sin()], 1) * (1 + torch.arange(8000) % 2)[:, None]
    return x + 0.05 * torch.randn(8000, 2, generator=g)


def table() -> Tensor:
    """Wisconsin's 569 tumours, 30 features, each made normal by its quantiles."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import QuantileTransformer

    normal = QuantileTransformer(output_distribution="normal", n_quantiles=200, random_state=0)
    return torch.tensor(normal.fit_transform(load_breast_cancer().data)).float()


def wine() -> Tensor:
    """178 wines, 13 features, standardised."""
    from sklearn.datasets import load_wine
    from sklearn.preprocessing import StandardScaler

    return torch.tensor(StandardScaler().fit_transform(load_wine().data)).float()


def signals() -> Tensor:
    """Sums of two sine waves of random frequency, phase and height at 64 times."""
    g = torch.Generator().manual_seed(0)
    n, u = 6000, torch.linspace(0, 1, 64)
    frequency = 1 + 3 * torch.rand(n, 2, 1, generator=g)
    phase = 2 * math.pi * torch.rand(n, 2, 1, generator=g)
    height = torch.rand(n, 2, 1, generator=g)
    return (height * torch.sin(2 * math.pi * frequency * u + phase)).sum(1)


def linear(steps: int = 1000) -> VP:
    """DDPM's betas; fewer steps of the same betas stop early."""
    return VP.from_betas(torch.linspace(1e-4, 0.02, steps, dtype=torch.float64))


@dataclass(frozen=True)
class Recipe:
    """data, process: what make them. predicts, time: as in `Denoiser`. network: a kind, by default
    of the size above; config: more of its arguments; settings: of `train`."""

    data: Callable[[], Tensor]
    process: Callable[[], Process]
    predicts: str
    time: str
    network: str = "mlp"
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def trained(self) -> Checkpoint:
        """The network, by `undiffuse.models.training.train`."""
        x = self.data()
        model = train(
            x,
            self.process(),
            predicts=self.predicts,
            time=self.time,
            loss=LOSSES.get(self.predicts, "simple"),
            network=self.network,
            network_config={**SIZES[self.network], **self.config},
            **{"seed": 0, **TRAINING[self.network], **self.settings},
        )
        config: dict[str, Any] = model.net.config  # type: ignore[attr-defined]
        span = (float(x.min()), float(x.max()))
        return Checkpoint(model, tuple(x.shape[1:]), span, network=(self.network, config))


RECIPES = {
    "digits-linear-noise-unet": Recipe(digits, linear, "noise", "index", "unet"),
    "digits-cosine-v-mlp": Recipe(digits, VP.cosine, "v", "continuous"),
    "mnist-cosine-noise-unet": Recipe(mnist, VP.cosine, "noise", "index", "unet"),
    "mnist-edm-unet": Recipe(mnist, EDM, "edm", "edm", "unet"),
    "fashion-flow-unet": Recipe(fashion, Flow, "flow", "continuous", "unet"),
    "checker-ve-noise-mlp": Recipe(checker, lambda: VE(sigma_max=50.0), "noise", "edm"),
    "moons-flow-mlp": Recipe(moons, Flow, "flow", "continuous"),
    "table-linear-noise-mlp": Recipe(table, linear, "noise", "index"),
    "signals-early-noise-mlp": Recipe(signals, lambda: linear(100), "noise", "index"),
    "signals-linear-data-mlp": Recipe(signals, VP, "data", "continuous"),
    "wine-edm-mlp": Recipe(wine, EDM, "edm", "edm"),
    "digits-early-v-unet": Recipe(digits, lambda: linear(300), "v", "index", "unet"),
    "digits-flow-transformer": Recipe(digits, Flow, "flow", "continuous", "transformer"),
    "signals-cosine-v-transformer": Recipe(
        signals, VP.cosine, "v", "continuous", "transformer", {"patch": 8, "embedding": 40}
    ),
    "table-ve-data-transformer": Recipe(
        table, lambda: VE(sigma_max=50.0), "data", "edm", "transformer", {"patch": 3}
    ),
    "checker-linear-v-mlp": Recipe(checker, linear, "v", "index"),
    "moons-cosine-data-mlp": Recipe(moons, VP.cosine, "data", "continuous"),
    "moons-ve-score-mlp": Recipe(moons, lambda: VE(sigma_max=10.0), "score", "continuous"),
    "signals-ve-edm-mlp": Recipe(signals, lambda: VE(sigma_max=100.0), "edm", "edm"),
    "wine-ve-noise-mlp": Recipe(wine, lambda: VE(sigma_max=50.0), "noise", "continuous"),
    "checker-edm-mlp": Recipe(checker, EDM, "edm", "edm"),
    "rings-ve-data-mlp": Recipe(rings, lambda: VE(sigma_max=20.0), "data", "edm"),
}
"""Named after data, process, what is predicted and network."""


def main(out: str | Path, names: list[str] | None = None, **settings: Any) -> list[Path]:
    """Train the recipes of these names, or all, and write name.safetensors each; returns the files.

    settings: of `train`, over the recipe's own (`steps=100` for a trial). Raises ValueError for a
    name that is no recipe.
    """
    if unknown := [name for name in names or () if name not in RECIPES]:
        raise ValueError(f"names must be among {', '.join(RECIPES)}; got {', '.join(unknown)}")
    made = []
    for name in names or RECIPES:
        recipe = RECIPES[name]
        if (file := NEEDS.get(recipe.data)) is not None and not file.is_file():
            print(f"{name}: left out, no images at {file}")
            continue
        trial = Recipe(**{**recipe.__dict__, "settings": {**recipe.settings, **settings}})
        made.append(trial.trained().save(Path(out, f"{name}.safetensors")))
        print(f"{name}: {made[-1].stat().st_size} bytes", flush=True)
    return made


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/bank.py DIR [NAME ...]")
    main(sys.argv[1], sys.argv[2:])
