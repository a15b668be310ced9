"""Likelihood against its exact value: error, error bar and cost of every way to compute it.

digits64 has an exact score and an exact log p, so the error of a single image's bits/dim is known.
Every row scores the same images, drawn from the target; products are vjps, counted with what the
classic run spends them on. 'covered' is the share of errors within two reported standard errors,
0.95 if the error bars are honest.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models import VP, Denoiser
from ..solvers import log_prob
from . import targets
from .bar import bar
from .store import write_text
from .table import Table, markdown, short, show

ROWS: dict[str, dict[str, Any]] = {
    "augmented dopri5 1e-5, 1 probe (classic)": {"method": "augmented", "probes": 1},
    "augmented dopri5 1e-5, exact trace": {"method": "augmented", "trace": "exact"},
    "quadrature, default": {},
    "quadrature, 8 probes": {"probes": 8},
    "quadrature, bosh3 1e-2, 4 probes": {
        "solver": "bosh3", "rtol": 1e-2, "atol": 1e-2, "probes": 4,
    },
    "quadrature, target 0.01": {"target_std_error": 0.01},
    "quadrature, exact trace": {"trace": "exact"},
}  # fmt: skip
COLUMNS = ["how", "rms error", "mean error", "std error", "covered", "forwards", "products"]


def run(
    out: str | Path,
    *,
    batch: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    quick: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure, print and write likelihood.json and likelihood.md; returns what the JSON holds.

    batch: images a row (200; 16 with quick). Errors and standard errors are in bits/dim.
    """
    out, count = Path(out), batch or (16 if quick else 200)
    if count < 2:
        raise ValueError(f"batch must be >= 2; got {count}")
    out.mkdir(parents=True, exist_ok=True)
    target = targets.digits64().law
    x = target.sample(count, seed=seed + 1).to(device or "cpu")
    model, truth = target.denoiser(VP()), target.log_prob(x)
    rows = []
    with bar(progress) as shown:
        shown.total(len(ROWS))
        for name, how in ROWS.items():
            shown.say(name)
            rows.append({"how": name, **_measure(model, x, truth, seed, how)})
            shown.advance()
    table = _table(rows, count)
    show([table])
    record = {"target": "digits64", "process": repr(model.process), "images": count, "rows": rows}
    write_text(out / "likelihood.json", json.dumps(record, indent=1) + "\n")
    write_text(out / "likelihood.md", markdown(table) + "\n")
    return record


def _measure(
    model: Denoiser, x: Tensor, truth: Tensor, seed: int, how: dict[str, Any]
) -> dict[str, float]:
    found = log_prob(model, x, seed=seed, on_failure="return", **how)
    bits = x[0].numel() * math.log(2)
    error = (found.log_prob - truth) / bits
    reported = found.std_error / bits
    within = (error.abs() <= 2 * reported).double().mean()
    return {
        "rms": float(error.square().mean().sqrt()),
        "mean": float(error.mean()),
        "std_error": float(reported.square().mean().sqrt()),
        "covered": float(within) if bool((reported > 0).any()) else math.nan,
        "forwards": float(found.nfe.double().mean()),
        "products": float(found.products.double().mean()),
    }


def _table(rows: list[dict[str, Any]], count: int) -> Table:
    cells = [
        [
            r["how"], short(r["rms"]), f"{r['mean']:+.1e}", short(r["std_error"]),
            "" if math.isnan(r["covered"]) else f"{r['covered']:.2f}",
            f"{r['forwards']:.0f}", f"{r['products']:.0f}",
        ]
        for r in rows
    ]  # fmt: skip
    title = f"digits64, VP, {count} images: error of one image's bits/dim"
    return Table(title, COLUMNS, cells, [[False] * len(COLUMNS) for _ in cells])
