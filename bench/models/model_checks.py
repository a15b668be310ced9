"""What models/ claims, as numbers on laws that are known: the tables of `undiffuse bench models`.

Each function returns a list of rows, dictionaries of plain numbers, for summary.json; `tables`
turns them into text. Errors are standard errors, one standard deviation wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...models import (
    LOSSES,
    READOUTS,
    VP,
    Brownian,
    Denoiser,
    Gaussian,
    GaussianMixture,
    LearnedVP,
    MonotoneOmega,
    Objective,
    Process,
    variational,
)
from ...models.data.sets import load
from ...models.dequantize import dequantised
from ...models.guidance.combine import classifier
from ...models.ito import annealed_langevin, langevin
from ...models.readout import convert
from ...models.training import score_matching as sm
from ...models.training.learned_schedule import ContinuousVLB
from ...models.training.train import train
from ...models.variational import VLB, Hybrid
from ...solvers import sample
from ...solvers.likelihood.elbo import elbo
from ..report.table import Table

Row = dict[str, Any]
F64 = torch.float64

GAUSSIAN = Gaussian([0.4, -0.3], [[0.6, 0.2], [0.2, 0.9]])
OFF = 0.3  # how far the wrong network is from the optimum, in the coefficients of `_shifted`

MEANS = torch.tensor([[1.5, 0.5], [-1.0, 1.0], [0.0, -1.5]], dtype=F64)
COVS = torch.tensor([0.6, 0.9, 0.5], dtype=F64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
WANTED = 1  # the mode that guidance asks for
GAMMAS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)

TWO_MODES = GaussianMixture([0.2, 0.8], [[-4.0], [4.0]], [0.3, 0.3])
RIGHT = 0.8  # weight of the mode at +4


# --- every loss at the known optimum --------------------------------------------------------------


def loss_gradients(n: int = 20_000, seed: int = 0) -> list[Row]:
    """The gradient of every loss at the exact network of a Gaussian, and of a wrong one.

    With P the optimum, the network is P + c_0 P + c_1 + c_2 x; z is the largest of the three
    components of E dL/dc over its Monte-Carlo error: of order one at c = 0 if that is the minimum,
    and large at c = OFF. A row a loss; z by read-out where the loss knows several.
    """
    x_0 = GAUSSIAN.sample(n, seed=seed)
    learned = LearnedVP(MonotoneOmega(-8.0, 5.0).requires_grad_(False))
    losses: dict[str, Callable[..., Tensor]] = {
        # independent times, whose Monte-Carlo error is that of a mean
        **{name: replace(loss, stratified=False) for name, loss in LOSSES.items()},
        "vlb, 100 steps": VLB(100),
        "continuous bound": ContinuousVLB(),
    }
    rows = []
    for name, loss in losses.items():
        at: dict[str, list[float]] = {}
        for predicts in READOUTS:
            process = learned if isinstance(loss, ContinuousVLB) else VP()
            at[predicts] = [_z(_gradients(loss, process, predicts, x_0, c, seed)) for c in (0, OFF)]
        rows.append(_loss_row(name, at))
    rows.append(_loss_row("hybrid, the variance", {"data": _variance_head(x_0, seed)}))
    return rows + [_loss_row(name, {"score": z}) for name, z in _score_matching(x_0, seed)]


def _loss_row(name: str, at: dict[str, list[float]]) -> Row:
    return {
        "loss": name,
        "z": {predicts: z for predicts, (z, _) in at.items()},
        "z_max": max(z for z, _ in at.values()),
        "z_off": min(off for _, off in at.values()),
    }


def _gradients(
    loss: Callable[..., Tensor],
    process: Process,
    predicts: str,
    x_0: Tensor,
    shift: float,
    seed: int,
) -> Tensor:
    """d loss_i/d c_i, [n, 3], at c = shift."""
    c = torch.full((len(x_0), 3), float(shift), dtype=F64, requires_grad=True)
    exact = GAUSSIAN.denoiser(process)
    shell = Denoiser(lambda x, t: x, process, predicts=predicts, time="continuous")

    def net(x_in: Tensor, t: Tensor) -> Tensor:
        skip, scale = convert(process, t, "data", predicts, shell.sigma_data)
        x = x_in / shell.network_scale(t)[:, None]
        return _shifted(skip[:, None] * x + scale[:, None] * exact(x, t), x_in, c)

    value = loss(replace(shell, net=net), x_0, torch.Generator().manual_seed(seed + 1))
    return torch.autograd.grad(value.sum(), c)[0]


def _shifted(p: Tensor, x: Tensor, c: Tensor) -> Tensor:
    return p + c[:, :1] * p + c[:, 1:2] + c[:, 2:] * x


def _variance_head(x_0: Tensor, seed: int, steps: int = 20) -> list[float]:
    """[z at the learned variance's optimum, z off it], by the gradient in o -> o + c.

    The best diagonal variance of p(x_s | x_t) is beta~ + b^2 Var(x_0 | x_t).
    """
    process, hybrid = VP(), Hybrid(steps, weight=1.0, simple=Objective("data"))
    exact, length = GAUSSIAN.denoiser(process), (process.t_max - process.t_min) / (steps - 1)

    def best(t: Tensor) -> Tensor:
        q = variational.posterior(process, torch.where(t > length, t - length, 0.5 * t), t)
        alpha2, sigma2 = process.alpha(t).square(), process.sigma(t).square()
        inner = alpha2[:, None, None] * GAUSSIAN.cov + sigma2[:, None, None] * torch.eye(2)
        left = sigma2[:, None, None] * GAUSSIAN.cov @ torch.linalg.inv(inner)
        v = q.small[:, None] + q.b[:, None].square() * left.diagonal(dim1=1, dim2=2)
        place: Tensor = (v / q.small[:, None]).log() / (q.large / q.small).log()[:, None]
        return 2 * place - 1

    def z(shift: float) -> float:
        c = torch.full((len(x_0), 1), shift, dtype=F64, requires_grad=True)

        class Net(torch.nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return torch.cat([exact(x, t), best(t) + c], 1)

        model = Denoiser(variational.VarianceHead(Net()), process, predicts="data")
        value = hybrid(model, x_0, torch.Generator().manual_seed(seed + 3))
        return _z(torch.autograd.grad(value.sum(), c)[0])

    return [z(0.0), z(OFF)]


def _score_matching(x: Tensor, seed: int) -> list[tuple[str, list[float]]]:
    """[(name, [z at the optimum, z off it])] of the losses that need no process."""
    sigma = 0.5
    smooth = GAUSSIAN.cov + sigma**2 * torch.eye(2, dtype=F64)

    def gen() -> torch.Generator:
        return torch.Generator().manual_seed(seed + 2)

    losses: dict[str, tuple[Callable[[sm.Score], Tensor], Tensor]] = {
        "implicit, exact trace": (lambda s: sm.implicit(s, x), GAUSSIAN.cov),
        "implicit, Hutchinson": (lambda s: sm.implicit(s, x, gen(), probes=2), GAUSSIAN.cov),
        "sliced": (lambda s: sm.sliced(s, x, gen(), probes=2, analytic=False), GAUSSIAN.cov),
        f"denoising, sigma {sigma}": (lambda s: sm.denoising(s, x, sigma, gen()), smooth),
    }

    def z(loss: Callable[[sm.Score], Tensor], precision: Tensor, shift: float) -> float:
        c = torch.full((len(x), 3), float(shift), dtype=F64, requires_grad=True)
        value = loss(lambda y: _shifted(-(y - GAUSSIAN.mean) @ precision, y.flip(1), c))
        return _z(torch.autograd.grad(value.sum(), c)[0])

    found = {name: (loss, torch.linalg.inv(cov)) for name, (loss, cov) in losses.items()}
    return [(name, [z(*case, 0), z(*case, OFF)]) for name, case in found.items()]


def _z(g: Tensor) -> float:
    """Largest component of the mean of g [n, k] over its standard error."""
    return float((g.mean(0) / (g.std(0) / math.sqrt(len(g)))).abs().max())


# --- guidance ---------------------------------------------------------------------------------


def guidance_accuracy(n: int = 4000, seed: int = 0) -> list[Row]:
    """Classifier guidance on an exact mixture: the share of samples that Bayes gives the mode.

    A row a gamma, and one of exact draws of the mode (gamma None), which gamma = 1 must equal.
    """
    process = VP()
    law = GaussianMixture(WEIGHTS, MEANS, COVS)
    modes = [Gaussian(MEANS[k], COVS[k : k + 1]) for k in range(len(WEIGHTS))]

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        return modes[WANTED].log_prob(x, t, process) - law.log_prob(x, t, process)

    def row(gamma: float | None, x: Tensor) -> Row:
        logits = torch.stack([m.log_prob(x) for m in modes], 1) + WEIGHTS.log()
        share = float((logits.argmax(1) == WANTED).double().mean())
        return {
            "gamma": gamma, "accuracy": share,
            "std_error": math.sqrt(max(share * (1 - share), 1 / len(x)) / len(x)),
            "mean_error": float((x.mean(0) - MEANS[WANTED]).norm()),
            "std_ratio": float((x.var(0).mean() / COVS[WANTED]).sqrt()),
        }  # fmt: skip

    rows = []
    for gamma in GAMMAS:
        guided = classifier(law.denoiser(process), log_prob, gamma)
        rows.append(
            row(gamma, sample(guided, (n, 2), "dpmpp-2m", 40, "karras", seed=seed, dtype=F64))
        )
    return [*rows, row(None, modes[WANTED].sample(50 * n, seed=seed))]


# --- Langevin ---------------------------------------------------------------------------------


def langevin_weights(n: int = 4000, seed: int = 0) -> tuple[list[Row], dict[str, Tensor]]:
    """The weight of the mode at +4 by plain and by annealed Langevin, and their samples [n].

    Both start with half of the mass on either side. Plain Langevin leaves it there; the annealed
    one crosses while the noise joins the modes.
    """
    ve = Brownian(1.0, t_max=1e4)  # sigma^2 = t: the mixture at any noise level
    model = TWO_MODES.denoiser(ve)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return model.score(x, sigma**2)

    start = 8 * torch.rand(n, 1, dtype=F64, generator=torch.Generator().manual_seed(seed)) - 4
    small = torch.full((n,), 1e-3, dtype=F64)
    plain = langevin(lambda x: score(x, small), t_max=30.0).simulate(start, 800, seed=seed + 1)
    levels = torch.logspace(1, -1.3, 20, dtype=F64)
    annealed = annealed_langevin(score, 10 * start, levels, steps=40, step_size=0.2, seed=seed + 2)
    found = {"plain": plain.states[-1][:, 0], "annealed": annealed[:, 0]}
    rows = []
    for name, x in found.items():
        share = float((x > 0).double().mean())
        error = math.sqrt(RIGHT * (1 - RIGHT) / n)
        rows.append({"dynamics": name, "steps": 800, "weight": share, "truth": RIGHT,
                     "std_error": error, "mode_variance": float(x[x > 0].var())})  # fmt: skip
    return rows, found


# --- likelihood weighting ----------------------------------------------------------------------


def likelihood_weighting(
    steps: int, seed: int = 0, device: str | None = None, progress: bool = False
) -> list[Row]:
    """Bits/dim of held-out digits under networks that differ in their training loss alone.

    bits_per_dim is the continuous-time bound with uniform dequantisation; every network sees the
    same noise, so `gain`, the bits/dim saved against the first row, has the smaller error.
    """
    losses = {
        "simple: noise, uniform t": Objective("noise", "uniform"),
        "likelihood, uniform t": Objective("likelihood", "uniform"),
        "likelihood, uniform log-SNR": Objective("likelihood", "log_snr"),
        "uniform-snr (the default)": LOSSES["uniform-snr"],
    }
    digits = load("digits")
    x = dequantised(digits.split()[1].x, digits.spacing, seed)
    rows, first = [], None
    for name, loss in losses.items():
        model = train(
            digits, loss=loss, steps=steps, network_config={"width": 64}, seed=seed,
            device=device, progress=progress,
        )  # fmt: skip
        bound = elbo(model, x.to(device or "cpu"), "continuous", 60, seed=seed, t_min=model.t_min)
        bits = bound.bits_per_dim.cpu() - math.log2(digits.spacing)
        first = bits if first is None else first
        gain = first - bits
        rows.append({"loss": name, "steps": steps, "bits_per_dim": float(bits.mean()),
                     "gain": float(gain.mean()),
                     "gain_error": float(gain.std()) / math.sqrt(len(gain))})  # fmt: skip
    return rows


# --- as text ----------------------------------------------------------------------------------


def tables(summary: dict[str, Any]) -> list[Table]:
    """The tables of this file's part of a summary."""
    losses = [
        [r["loss"], *(f"{r['z'][p]:.1f}" if p in r["z"] else "" for p in READOUTS),
         f"{r['z_off']:.0f}"] for r in summary["loss_gradients"]
    ]  # fmt: skip
    guided = [
        ["exact p(x|y)" if r["gamma"] is None else f"{r['gamma']:g}",
         f"{r['accuracy']:.4f} ± {r['std_error']:.4f}", f"{r['mean_error']:.3f}",
         f"{r['std_ratio']:.3f}"] for r in summary["guidance"]
    ]  # fmt: skip
    walks = [
        [r["dynamics"], str(r["steps"]), f"{r['weight']:.3f} ± {r['std_error']:.3f}",
         f"{r['truth']:g}", f"{r['mode_variance']:.3f}"] for r in summary["langevin"]
    ]  # fmt: skip
    bits = [
        [r["loss"], str(r["steps"]), f"{r['bits_per_dim']:.3f}",
         f"{r['gain']:+.3f} ± {r['gain_error']:.3f}"] for r in summary["likelihood_weighting"]
    ]  # fmt: skip
    return [
        _table("Gradient at the known optimum, in Monte-Carlo errors (largest of three), by what "
               "the network predicts; last: away from the optimum, the least",
               ["loss", *READOUTS, f"off by {OFF}"], losses),
        _table("Classifier guidance on the exact mixture: share of samples in the wanted mode",
               ["gamma", "accuracy", "mean error", "std ratio"], guided),
        _table("Langevin on two modes: weight and variance (0.3) of the one at +4",
               ["dynamics", "steps", "weight", "truth", "variance"], walks),
        _table("Held-out digits, bits/dim (upper bound) after equal training",
               ["loss", "steps", "bits/dim", "gain"], bits),
    ]  # fmt: skip


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    return Table(title, columns, rows, [[False] * len(columns) for _ in rows])
