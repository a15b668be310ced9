"""Likelihood against its exact value: error, error bar and cost of every way to compute it.

digits64 and images768 have an exact score and an exact log p, so the error of a single image's
bits/dim is known. Every row scores the same images, drawn from the target; products are vjps.
'solver only' is the rms error against the exact density at t_min with the exact prior at t_max:
what the integrator adds where no probe does, and 'path error' what it is reported to be. 'in 1',
'in 2': the share of errors within one and two reported standard errors, 0.68 and 0.95 if the error
bars are honest. A second table scores images alone and in a batch, a third one real networks on
images they were not trained on.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.files import write_text
from ...models import VP, GaussianMixture
from ...models import named_targets as targets
from ...models.progress import Bar, bar
from ...models.statistics import Statistics
from ..peers.likelihood import Found, Way, by_scipy, by_torchdiffeq, ours
from ..report.table import Table, markdown, short, show

PEERS: dict[str, Way] = {
    "scipy RK45 1e-5, 1 probe (score_sde's way)": by_scipy,
    "torchdiffeq dopri5 1e-5, 1 probe": by_torchdiffeq,
}
OURS: dict[str, Way] = {
    "augmented dopri5 1e-5, 1 probe (classic)": ours(method="augmented"),
    "quadrature, default": ours(),
    "quadrature, 1 probe": ours(probes=1),
    "quadrature, 8 probes": ours(probes=8),
    "quadrature, bosh3 1e-2, 4 probes": ours(solver="bosh3", rtol=1e-2, atol=1e-2),
    "quadrature, target 0.01": ours(target_std_error=0.01),
}
EXACT: dict[str, Way] = {
    "augmented dopri5 1e-5, exact trace": ours(method="augmented", trace="exact"),
    "quadrature, exact trace": ours(trace="exact"),
    "quadrature, exact trace, 4 nodes a step": ours(trace="exact", points=4),
}
SHORT = ("quadrature, default", "quadrature, 8 probes")  # of OURS, for images768
FEW = 2  # images of images768 whose trace is taken exactly: 768 products a node
COLUMNS = [
    "how",
    "images",
    "rms error",
    "mean error",
    "solver only",
    "path error",
    "std error",
    "in 1",
    "in 2",
    "forwards",
    "products",
]


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

    batch: images a row (200; 16 with quick). quick: digits64 alone. Errors
    and standard errors are in bits/dim.
    """
    out, count = Path(out), batch or (16 if quick else 200)
    if count < 2:
        raise InvalidValue(f"batch must be >= 2; got {count}")
    out.mkdir(parents=True, exist_ok=True)
    with bar(progress) as shown:
        digits = _exact("digits64", PEERS | OURS | EXACT, count, count, seed, device, shown)
        found = [digits]
        if not quick:
            some = PEERS | {name: OURS[name] for name in SHORT}
            some["quadrature, exact trace"] = EXACT["quadrature, exact trace"]
            found.append(_exact("images768", some, count, FEW, seed, device, shown))
        shown.say("alone and in a batch")
        coupling = _coupling(seed, device)
    made = [_table(f["target"], f["rows"]) for f in found]
    made += [_coupling_table(coupling)]
    show(made)
    record = {"seed": seed, "targets": found, "coupling": coupling}
    write_text(out / "likelihood.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    write_text(out / "likelihood.md", "\n".join(markdown(t) for t in made) + "\n")
    return record


def _exact(
    name: str,
    ways: dict[str, Way],
    count: int,
    few: int,
    seed: int,
    device: torch.device | str | None,
    shown: Bar,
) -> dict[str, Any]:
    """One target. few: images of the rows with an exact trace."""
    target, process = targets.get(name).law, VP()
    x = target.sample(count, seed=seed + 1).to(device or "cpu")
    model = target.denoiser(process)
    known = Statistics.of(target.sample(5000, seed=seed + 2).to(device or "cpu"))
    ways = ways | {"quadrature, default, Gaussian control": ours(control=known)}
    rows: list[dict[str, Any]] = []
    shown.total(len(ways))
    for how, way in ways.items():
        shown.say(f"{name}: {how}")
        some = x[:few] if how in EXACT else x
        try:
            found = way(model, some, seed)
        except ModuleNotFoundError as error:
            rows.append({"how": how, "skipped": str(error)})
        else:
            rows.append({"how": how, **_row(target, process, some, found, how in EXACT)})
        shown.advance()
    return {"target": name, "process": repr(process), "rows": rows}


def _row(
    target: GaussianMixture, process: VP, x: Tensor, found: Found, exact: bool
) -> dict[str, float | None]:
    d = x[0].numel()
    bits = d * math.log(2)
    error = (found.log_prob - target.log_prob(x)) / bits
    reported = found.std_error / bits
    row = {
        "images": len(x),
        "rms": _rms(error),
        "mean": float(error.mean()),
        "solver": math.nan,
        "path_error": _rms(found.path_error / bits),
        "std_error": _rms(reported),
        "within_1": math.nan,
        "within_2": math.nan,
        "forwards": float(found.forwards.double().mean()),
        "products": float(found.products.double().mean()),
    }
    if exact:
        alpha = process.alpha(found.t_min)
        start = target.log_prob(alpha * x, found.t_min, process) + d * alpha.log()
        end = target.log_prob(found.latent, process.t_max, process)
        gap = end - process.prior.log_prob(found.latent)
        row["solver"] = _rms((found.uncorrected + gap - start) / bits)
    elif not bool(reported.isnan().any()):
        for k in (1, 2):
            row[f"within_{k}"] = float((error.abs() <= k * reported).double().mean())
    return {k: None if math.isnan(v) else v for k, v in row.items()}  # JSON knows no NaN


def _coupling(seed: int, device: torch.device | str | None) -> list[dict[str, Any]]:
    """Largest difference, bits/dim, between an image's value alone and among 16, of the first 4.

    Ours is what the target's own matrix products round otherwise in another batch; with an
    element-wise network it is 0 to the bit (tests/solvers/test_likelihood.py).
    """
    target = targets.digits64().law
    model, x = target.denoiser(VP()), target.sample(16, seed=seed + 1).to(device or "cpu")
    rows: list[dict[str, Any]] = []
    names = "quadrature, default", "augmented dopri5 1e-5, 1 probe (classic)"
    for how, way in (PEERS | {name: OURS[name] for name in names}).items():
        try:
            whole = way(model, x, seed).log_prob
        except ModuleNotFoundError as error:
            rows.append({"how": how, "skipped": str(error)})
            continue
        apart = []
        for k in range(4):  # the first of a batch has the same probe alone: id 0
            order = [k, *(i for i in range(16) if i != k)]
            together = whole if k == 0 else way(model, x[order], seed).log_prob
            alone = way(model, x[[k]], seed).log_prob
            apart.append(float((alone[0] - together[0]).abs()) / (64 * math.log(2)))
        rows.append({"how": how, "largest": max(apart)})
    return rows


def _rms(v: Tensor) -> float:
    return float(v.square().mean().sqrt())


def _table(target: str, rows: list[dict[str, Any]]) -> Table:
    def share(v: float | None) -> str:
        return "" if v is None else f"{v:.2f}"

    def number(v: float | None) -> str:
        return "" if v is None else short(v)

    cells = [
        [r["how"], *[""] * 9, r["skipped"]]
        if "skipped" in r
        else [
            r["how"],
            f"{r['images']}",
            short(r["rms"]),
            f"{r['mean']:+.1e}",
            number(r["solver"]),
            number(r["path_error"]),
            number(r["std_error"]),
            share(r["within_1"]),
            share(r["within_2"]),
            f"{r['forwards']:.0f}",
            f"{r['products']:.0f}",
        ]
        for r in rows
    ]
    title = f"{target}, VP: error of one image's bits/dim"
    return Table(title, COLUMNS, cells, [[False] * len(COLUMNS) for _ in cells])


def _coupling_table(rows: list[dict[str, Any]]) -> Table:
    cells = [[r["how"], r.get("skipped") or short(r["largest"])] for r in rows]
    title = "digits64: an image's bits/dim alone against among 16, largest difference of 4"
    return Table(title, ["how", "difference"], cells, [[False] * 2 for _ in cells])
