"""`undiffuse bench models`: what models/ can do, as pictures and as numbers on known laws.

    class.png       digits drawn by class, without and with classifier-free guidance
    inpaint.png     held-out digits completed from their upper half
    colour.png      tinted digits coloured in from their grey
    annealed.png    digits by annealed and by plain Langevin dynamics
    weights.png     the same two on a mixture of known weights
    summary.json, table.md    the tables of model_checks.py, posterior_checks.py, ito_checks.py
                    and learned_checks.py, and a number for each picture

Small networks are trained on the way, into networks/ of the same folder; a run that was killed
takes up their training where it was.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.files import atomically, write_text
from ...models import EDM, Denoiser, load_default
from ...models.adapters import retime
from ...models.data.drawing import pyplot, sample_grid
from ...models.data.sets import Data, load
from ...models.guidance.combine import cfg, inpaint, posterior
from ...models.ito import annealed_langevin, langevin
from ...models.training.train import train
from ...solvers import sample
from ...solvers.store import environment
from ..report.table import Table, markdown, plain
from . import ito_checks, learned_checks, model_checks, posterior_checks

STEPS = 3000
NOISE = 0.05  # of the measurements of inpainting and colourisation
HOW = ("dpmpp-2m", 40, "karras")
SCALE = 2.0  # of classifier-free guidance
Row = tuple[str, Tensor]


def run(
    out: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    device: str | None = None,
    progress: bool = True,
    quick: bool = False,
) -> dict[str, Any]:
    """Train, draw and measure; writes into `out` and returns the content of summary.json.

    steps: optimiser steps of the network by class, 3,000 by default; the others take half. quick: a
    tenth of the training, fewer samples: the pictures are then poor. Raises ValueError for steps <
    2, and where `out` holds networks of another run.
    """
    if steps is not None and steps < 2:
        raise InvalidValue(f"steps must be >= 2; got {steps}")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # small states: more threads only wait for each other
        return _run(out, seed, steps or (STEPS // 10 if quick else STEPS), device, progress, quick)
    finally:
        torch.set_num_threads(before)


def _run(
    out: Path, seed: int, steps: int, device: str | None, progress: bool, quick: bool
) -> dict[str, Any]:
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    few = 2000 if quick else 4000

    def say(what: str) -> None:
        if progress:
            print(f"{time.monotonic() - began:5.0f} s  {what}", file=sys.stderr)

    say("losses, guidance, posteriors and reversed diffusions on exact targets")
    walks, found = model_checks.langevin_weights(few, seed)
    summary: dict[str, Any] = {
        "seed": seed, "steps": steps, "environment": environment(),
        "loss_gradients": model_checks.loss_gradients(seed=seed),
        "guidance": model_checks.guidance_accuracy(few, seed),
        "langevin": walks,
        "posterior": posterior_checks.posterior_errors(few, seed),
        "ito": ito_checks.zoo(5 * few, seed),
    }  # fmt: skip
    draw_weights(out / "weights.png", found)
    say(f"a class-conditional network of the digits, {steps} steps")
    nets, half = out / "networks", steps // 2
    how: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}
    by_class = train("digits", conditional=True, out=nets / "class", steps=steps, **how)
    say(f"a network of tinted digits, {half} steps")
    seen, held = load("digits").split()
    colours = train(
        tinted(seen, range(6)), network="unet", batch=128, held_out=0.0,
        out=nets / "tint", steps=half, **how,
    )  # fmt: skip
    say("pictures")
    shipped = load_default().denoiser
    summary["pictures"] = {
        "class": draw_classes(out / "class.png", by_class, seed, device),
        "inpaint": draw_inpainting(out / "inpaint.png", shipped, seed),
        "colour": draw_colours(out / "colour.png", colours, held, seed, device),
        "annealed": draw_annealed(out / "annealed.png", shipped, seed),
    }
    say(f"likelihood weighting, {half} steps")
    summary["likelihood_weighting"] = model_checks.likelihood_weighting(half, **how)
    say(f"learned variances and a learned schedule, {half} steps")
    summary["variances"] = learned_checks.variances(half, nets, **how)
    summary["schedules"] = learned_checks.schedules(half, nets, **how)
    report(out, summary)
    say(f"written to {out}")
    return summary


def report(out: Path, summary: dict[str, Any]) -> None:
    """Write table.md and summary.json, and print the tables."""
    shown = [
        *model_checks.tables(summary),
        posterior_checks.table(summary["posterior"]),
        ito_checks.table(summary["ito"]),
        *learned_checks.tables(summary["variances"], summary["schedules"]),
        _pictures(summary["pictures"]),
    ]
    write_text(out / "table.md", "\n".join(markdown(t) for t in shown))
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    print("\n\n".join(plain(t) for t in shown))


def _pictures(numbers: dict[str, dict[str, float]]) -> Table:
    """What each picture's function returned."""
    rows = [
        [f"{name}.png", ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in found.items())]
        for name, found in numbers.items()
    ]
    return Table("Of the pictures", ["picture", "numbers"], rows, [[False] * 2 for _ in rows])


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
            cfg(model, scale), (len(label), 1, 8, 8), *HOW, seed=seed,
            cond={"label": label.to(device or "cpu")}, device=device,
        ).cpu()  # fmt: skip
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
    return {"grey_error": _rms(x.mean(1, keepdim=True) - grey.repeat(3, 1, 1, 1)),
            "one_hue": _one_hue(x), "one_hue_of_free": _one_hue(free),
            "one_hue_of_data": _one_hue(truth), "hues": float(len(set(_hues(x).tolist())))}  # fmt: skip


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

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return network.score(x.reshape(-1, 1, 8, 8), sigma).flatten(1)

    noise = torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        annealed = annealed_langevin(score, 20 * noise, levels, each, size, seed + 1)
        at = torch.full((n,), low, dtype=torch.float64)
        steps = each * len(levels)
        still = langevin(lambda x: score(x, at), t_max=steps * size * low**2)
        plain_end = still.simulate(noise, steps, seed + 1).states[-1]
        found = {
            "annealed": network(annealed.reshape(n, 1, 8, 8), float(levels[-1])),
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


def draw_weights(path: Path, found: dict[str, Tensor]) -> None:
    """Histograms of plain and annealed Langevin on two modes, over the exact density."""
    plt = pyplot()
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    grid = torch.linspace(-7, 7, 400, dtype=torch.float64)
    density = model_checks.TWO_MODES.log_prob(grid[:, None]).exp()
    for ax, (name, x) in zip(axes, found.items(), strict=True):
        ax.hist(x.numpy(), bins=70, range=(-7, 7), density=True, color="#a9bfd8")
        ax.plot(grid, density, color="#1f5fb4", lw=1.6)
        share = float((x > 0).double().mean())
        ax.set_title(f"{name}: {share:.2f} of the mass at +4", loc="left", fontsize=11)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("density")
    axes[1].text(-6.8, 0.5, f"line: exact,\n{model_checks.RIGHT:g} at +4", color="#1f5fb4")
    atomically(path, lambda part: fig.savefig(part, dpi=120, format="png"))
    plt.close(fig)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
