"""Pictures of what models can do: python examples/gallery.py [--out DIR] [--steps N] [--seed N]

    class.png       digits drawn by class, without and with classifier-free guidance
    inpaint.png     held-out digits completed from their upper half
    colour.png      tinted digits coloured in from their grey
    annealed.png    digits by annealed and by plain Langevin dynamics
    numbers.json    a number for each picture

Two small networks are trained on the way, into networks/ of the same folder; a run that was killed
takes up their training where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from undiffuse.kernels.files import write_text
from undiffuse.models import EDM, Denoiser, load_default
from undiffuse.models.adapters import retime
from undiffuse.models.data.drawing import sample_grid
from undiffuse.models.data.sets import Data, load
from undiffuse.models.guidance import cfg, inpaint, posterior
from undiffuse.models.ito import langevin
from undiffuse.models.training.train import train
from undiffuse.solvers import annealed_langevin
from undiffuse.solvers.sampling.sample import sample

NOISE = 0.05  # of the measurements of inpainting and colourisation
HOW = ("dpmpp-2m", 40, "karras")
SCALE = 2.0  # of classifier-free guidance
Row = tuple[str, Tensor]


def run(
    out: Path, steps: int = 3000, seed: int = 0, device: str | None = None, progress: bool = True
) -> dict[str, dict[str, float]]:
    """Train, draw, and write into `out`; returns the content of numbers.json.

    steps: optimiser steps of the network by class; the one of tinted digits takes half.
    """
    how = {"seed": seed, "device": device, "progress": progress}
    nets = out / "networks"
    by_class = train("digits", conditional=True, out=nets / "class", steps=steps, **how)
    seen, held = load("digits").split()
    colours = train(
        tinted(seen, range(6)),
        network="unet",
        batch=128,
        held_out=0.0,
        out=nets / "tint",
        steps=steps // 2,
        **how,
    )
    shipped = load_default().denoiser
    found = {
        "class": draw_classes(out / "class.png", by_class, seed, device),
        "inpaint": draw_inpainting(out / "inpaint.png", shipped, seed),
        "colour": draw_colours(out / "colour.png", colours, held, seed, device),
        "annealed": draw_annealed(out / "annealed.png", shipped, seed),
    }
    write_text(out / "numbers.json", json.dumps(found, indent=1) + "\n")
    return found


# --- pictures ---------------------------------------------------------------------------------


def draw_classes(path: Path, model: Denoiser, seed: int, device: str | None) -> dict[str, float]:
    """Ten rows, one a class; the same noise without and with guidance, six of each.

    Returns the share whose nearest training digit has the class that was asked for.
    """
    each, label = 6, torch.arange(10).repeat_interleave(6)
    seen = load("digits").split()[0]
    assert seen.labels is not None
    halves, right = [], {}
    for name, scale in (("plain", 1.0), ("guided", SCALE)):
        x = sample(
            cfg(model, scale),
            (len(label), 1, 8, 8),
            *HOW,
            seed=seed,
            cond={"label": label.to(device or "cpu")},
            device=device,
        ).cpu()
        nearest = torch.cdist(x.flatten(1), seen.x.flatten(1)).argmin(1)
        right[name] = float((seen.labels[nearest] == label).double().mean())
        halves.append(x.reshape(10, each, 1, 8, 8))
    gap = torch.ones(10, 1, 1, 8, 8)
    x = torch.cat([halves[0], gap, halves[1]], 1)
    title = f"Asked for by class: the conditional network, and with guidance {SCALE:g}"
    sample_grid(path, [(f"class {k}", x[k]) for k in range(10)], title)
    return right


def draw_inpainting(path: Path, model: Denoiser, seed: int) -> dict[str, float]:
    """The lower halves of held-out digits, by the covariance-aware posterior and by imputation.

    Returns root mean squares: of the known half's error, and of the other's, beside what free
    samples differ by there.
    """
    truth = load("digits").split()[1].x[:12]
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 4:, :] = 0
    exact = posterior(model, truth * mask, lambda x: x * mask, NOISE)
    drawn = [sample(exact, truth.shape, *HOW, seed=seed + k) for k in range(3)]
    imputed = sample(inpaint(model, truth, mask), truth.shape, "ddpm", 100, "karras", seed=seed)
    free = sample(model, truth.shape, *HOW, seed=seed)
    rows = [("held out", truth), ("what is known", truth * mask)]
    rows += [(f"posterior, draw {k + 1}", x) for k, x in enumerate(drawn)]
    sample_grid(path, [*rows, ("imputation", imputed)], "Completed from the upper half")
    return {
        "known_half": _rms((drawn[0] - truth)[..., :4, :]),
        "completed_half": _rms((drawn[0] - truth)[..., 4:, :]),
        "free_samples": _rms((free - truth)[..., 4:, :]),
    }


def tinted(digits: Data, hues: Sequence[int]) -> Data:
    """Every digit [N, 1, 8, 8] in each of the hues, [hues x N, 3, 8, 8]: (d + 1) tint - 1.

    tint_c = 1/2 + 1/2 cos(2 pi (h/6 - c/3)), c = 0, 1, 2, whose mean is 1/2 at every hue h in
    0..5: the grey of a picture says nothing of its hue.
    """
    x = torch.cat([(digits.x + 1) * tint[:, None, None] - 1 for tint in tints()[list(hues)]])
    return Data(x, digits.range, 0.0, None, "tinted digits")


def tints() -> Tensor:
    """The six tints, [6, 3]."""
    turn = torch.arange(6)[:, None] / 6 - torch.arange(3) / 3
    return 0.5 + 0.5 * torch.cos(2 * torch.pi * turn)


def draw_colours(
    path: Path, model: Denoiser, held: Data, seed: int, device: str | None
) -> dict[str, float]:
    """Held-out tinted digits from their grey alone, three draws.

    Returns the root mean square of the grey's error, what share of the colour is one hue of the
    six (1 for the data), and how many of the six were drawn.
    """
    truth = torch.cat([tinted(held[torch.tensor([k])], [k % 6]).x for k in range(12)])
    grey = truth.mean(1, keepdim=True)
    guided = posterior(model, grey.to(device or "cpu"), lambda x: x.mean(1, keepdim=True), NOISE)
    drawn = [
        sample(guided, truth.shape, "dpmpp-2m", 60, "karras", seed=seed + k, device=device).cpu()
        for k in range(3)
    ]
    rows = [("held out", truth), ("its grey", grey.expand(-1, 3, -1, -1))]
    rows += [(f"posterior, draw {k + 1}", x) for k, x in enumerate(drawn)]
    free = sample(model, truth.shape, "dpmpp-2m", 60, "karras", seed=seed, device=device).cpu()
    rows.append(("free samples", free))
    sample_grid(path, rows, "Coloured in from the grey, which says nothing of the hue")
    x = torch.cat(drawn)
    return {
        "grey_error": _rms(x.mean(1, keepdim=True) - grey.repeat(3, 1, 1, 1)),
        "one_hue": _one_hue(x),
        "one_hue_of_free": _one_hue(free),
        "one_hue_of_data": _one_hue(truth),
        "hues": float(len(set(_hues(x).tolist()))),
    }


def _one_hue(x: Tensor) -> float:
    """Mean share of the chroma's square along the best of the six tints, one for a picture."""
    chroma = (x - x.mean(1, keepdim=True)).square().sum((1, 2, 3))
    return float((_along_tints(x).amax(1) / chroma).mean())


def _hues(x: Tensor) -> Tensor:
    """The nearest hue of each picture, [B]."""
    return _along_tints(x).argmax(1)


def _along_tints(x: Tensor) -> Tensor:
    """Square of the chroma along each of the six tints, [B, 6]."""
    chroma = (x - x.mean(1, keepdim=True)).flatten(2)
    axis = tints() - 0.5
    along = torch.einsum("hc,bcp->bhp", axis / axis.norm(dim=1, keepdim=True), chroma)
    return along.clamp(min=0).square().sum(2)


def draw_annealed(path: Path, model: Denoiser, seed: int) -> dict[str, float]:
    """Digits by Langevin dynamics of as many steps, annealed and at the least noise alone.

    Returns the median root mean square distance of each to its nearest training digit.
    """
    network = retime(model, EDM(0.011, 80.0))
    levels = torch.logspace(1.3, -1.7, 16, dtype=torch.float64)
    low, each, size, n = 0.1, 40, 0.15, 24

    def score(x: Tensor) -> Tensor:
        return network.score(x.reshape(-1, 1, 8, 8), low).flatten(1)

    noise = torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        annealed = annealed_langevin(
            network,
            (n, 1, 8, 8),
            levels,
            each,
            snr=(size / 2) ** 0.5,
            seed=seed + 1,
            denoise=False,
            x_init=20 * noise.reshape(n, 1, 8, 8),
        ).x
        steps = each * len(levels)
        still = langevin(score, t_max=steps * size * low**2)
        plain_end = still.simulate(noise, steps, seed + 1).states[-1]
        found = {
            "annealed": network(annealed, float(levels[-1])),
            "plain": network(plain_end.reshape(n, 1, 8, 8), low),
        }
    rows: list[Row] = []
    for name, x in found.items():
        rows += [(name, x[: n // 2]), ("", x[n // 2 :])]
    sample_grid(path, rows, f"Langevin dynamics of {steps} steps from noise, then D of the end")
    seen = load("digits").split()[0].x.flatten(1)
    return {
        name: float(torch.cdist(x.flatten(1), seen).amin(1).median()) / 8
        for name, x in found.items()
    }


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/gallery"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None)
    print(json.dumps(run(**vars(parser.parse_args())), indent=1))
