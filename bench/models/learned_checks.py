"""What learning the variances and the noise schedule buys, on held-out digits.

Variances (Nichol & Dhariwal 2021): one network trained by 'hybrid', its chain of n steps with
beta~ ('small'), beta ('large') and what it learned: the bound of that chain in bits/dim, and the
energy distance of its samples to the held-out digits. Schedule (Kingma et al. 2021): the same
network trained by the continuous bound, omega as it starts, and omega learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models import Denoiser, LearnedVP, MonotoneOmega
from ...models.data.sets import load
from ...models.dequantize import dequantised
from ...models.training.learned_schedule import ContinuousVLB, LearnedSchedule
from ...models.training.train import train
from ...models.variational import VLB
from ...solvers import Result, sample, sample_learned_variance
from ..measures.metrics import energy_distance
from ..report.table import Table

Row = dict[str, Any]
CHAINS = (10, 25, 100)
DRAWS = 4  # of the noise, for each held-out digit and time


def variances(
    steps: int, out: Path, seed: int = 0, device: str | None = None, progress: bool = False
) -> list[Row]:
    """A row a chain length and variance, and one of the training digits in the place of samples."""
    digits = load("digits")
    seen, held = digits.split()
    model = train(
        digits, loss="hybrid", predicts="noise", steps=steps, seed=seed, out=out / "hybrid",
        device=device, progress=progress,
    )  # fmt: skip
    x = dequantised(held.x, held.spacing, seed).to(device or "cpu")
    drawn: dict[str, Callable[..., Result]] = {
        "small": partial(sample, solver="ddpm", return_result=True),
        "large": partial(sample, solver="ddpm-large", return_result=True),
        "learned": sample_learned_variance,
    }
    rows: list[Row] = [
        {"steps": 0, "variance": "training digits", "energy": energy_distance(seen.x, held.x)}
    ]
    for n in CHAINS:
        for variance, draw in drawn.items():
            r = draw(model, (1000, 1, 8, 8), steps=n, grid="uniform", seed=seed, device=device)
            rows.append({
                "steps": n, "variance": variance,
                "bits_per_dim": chain_bits(model, x, n, variance, held.spacing, seed),
                "energy": energy_distance(r.x.cpu(), held.x),
            })  # fmt: skip
    return rows


@torch.no_grad()
def chain_bits(
    model: Denoiser, x: Tensor, n: int, variance: str, spacing: float, seed: int
) -> float:
    """Mean bound of the chain of n visits on levels `spacing` apart, bits/dim, every term taken."""
    bound, g = VLB(n, variance), torch.Generator().manual_seed(seed)
    total = 0.0
    for i in range(1, n + 1):
        for _ in range(DRAWS):
            eps = torch.randn(x.shape, generator=g).to(x.device)
            at = torch.full((len(x),), i, device=x.device)
            total += float(bound.at(model, x, at, eps).mean()) / DRAWS
    prior = ContinuousVLB().prior_term(model.process, x).mean()
    return (total + float(prior)) / math.log(2) - math.log2(spacing)


def schedules(
    steps: int, out: Path, seed: int = 0, device: str | None = None, progress: bool = False
) -> list[Row]:
    """A row for omega as it starts and one for omega learned, the network trained as long."""
    digits = load("digits")
    held = digits.split()[1]
    x = dequantised(held.x, held.spacing, seed).repeat(DRAWS, 1, 1, 1).to(device or "cpu")
    bound, fixed = ContinuousVLB(), MonotoneOmega().requires_grad_(False)
    rows = []
    for name, omega, loss in (
        ("as it starts", fixed, bound), ("learned", MonotoneOmega(), LearnedSchedule())
    ):  # fmt: skip
        model = train(
            digits, LearnedVP(omega), predicts="noise", loss=loss, steps=steps, seed=seed,
            out=out / f"schedule-{name.split()[0]}", device=device, progress=progress,
        )  # fmt: skip
        with torch.no_grad():
            terms = bound(model, x, torch.Generator().manual_seed(seed)) / math.log(2)
        assert isinstance(model.process, LearnedVP)
        at = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device or "cpu")
        ends = model.process.omega(at).tolist()
        rows.append({
            "schedule": name, "steps": steps,
            "bits_per_dim": float(terms.mean()) - math.log2(held.spacing),
            "std_error": float(terms.std()) / math.sqrt(len(terms)),
            "deviation": float(terms.std()), "omega_0": ends[0], "omega_1": ends[1],
        })  # fmt: skip
    return rows


def tables(variance_rows: list[Row], schedule_rows: list[Row]) -> list[Table]:
    """As text."""
    chains = [
        [r["variance"], str(r["steps"] or "-"),
         f"{r['bits_per_dim']:.3f}" if "bits_per_dim" in r else "", f"{r['energy']:.4f}"]
        for r in variance_rows
    ]  # fmt: skip
    omegas = [
        [r["schedule"], str(r["steps"]), f"{r['omega_0']:.2f} to {r['omega_1']:.2f}",
         f"{r['bits_per_dim']:.3f} ± {r['std_error']:.3f}", f"{r['deviation']:.2f}"]
        for r in schedule_rows
    ]  # fmt: skip
    return [
        _table("Ancestral sampling of one network with each variance, held-out digits",
               ["variance", "steps", "bits/dim of the chain", "energy distance"], chains),
        _table("The noise schedule omega = -log SNR: the bound on held-out digits, and the standard "
               "deviation of its one-draw estimate",
               ["schedule", "trained for", "omega", "bits/dim", "deviation"], omegas),
    ]  # fmt: skip


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    return Table(title, columns, rows, [[False] * len(columns) for _ in rows])
