"""Likelihood of real networks against tight references: error, error bars, cost and wall time.

A network's log p is that of its own flow, whatever density it was trained on. The reference of an
item is the mean of both methods at tolerance 1e-5, with the exact trace up to EXACT components and
`PROBES` probes beyond; half of what they differ by, and their probes' own error, is the reference's
error, which every coverage counts. The items are those that the network never saw, or draws of its
own where it does not say which those are. All rows leave out what happens at the two ends of the
flow (`prior_gap`, `truncation`), as other code does.

'rms', 'mean': of the errors, bits/dim. 'std in 1', 'in 2': the share of errors within one and two
std_error; 'total in 1', 'in 2': within total_error. 's': seconds an item, of the batch together.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.files import write_text
from ...models import Denoiser
from ...models.checkpoint import Checkpoint, load
from ...models.dequantize import dequantised
from ...models.progress import Bar, bar
from ...solvers.likelihood.items import held_out
from ...solvers.likelihood.log_prob import log_prob
from ...solvers.sampling.sample import sample
from ...solvers.sampling.tuning import network_name
from ..peers.likelihood import Way, by_scipy, by_torchdiffeq, ours
from ..report.table import Table, markdown, short, show

EXACT = 128  # components up to which a reference takes the exact trace
PROBES = {"quadrature": 16, "augmented": 4}  # of a reference beyond
TIGHT = 1e-5  # tolerance of a reference
NUMBERS = 8192, 6, 300  # numbers in all items of a network; its fewest items, its most
UNSURE = 0.05  # bits/dim of a reference's error, from which on its item is left out
FLOW: dict[str, Any] = {"prior": "normal", "truncation": False}
WAYS: dict[str, Way] = {
    "scipy RK45 1e-5, 1 probe": by_scipy,
    "scipy RK45 1e-3, 1 probe": partial(by_scipy, tolerance=1e-3),
    "torchdiffeq dopri5 1e-5, 1 probe": by_torchdiffeq,
    "torchdiffeq dopri5 1e-3, 1 probe": partial(by_torchdiffeq, tolerance=1e-3),
    "default": ours(**FLOW),
    "target 0.01": ours(target_std_error=0.01, **FLOW),
    "target 0.005": ours(target_std_error=0.005, **FLOW),
}
COLUMNS = ["how", "rms", "mean", "std error", "total error", "std in 1", "in 2"]
COLUMNS += ["total in 1", "in 2", "forwards", "products", "s"]


def run(
    networks: Sequence[str | Path],
    out: str | Path,
    *,
    batch: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure, print and write networks.json and networks.md; returns what the JSON holds.

    networks: what `load` takes, each named after its file or function.
    batch: items of a network, >= 2; None: 8,192 numbers in all, 6 to 300 items.
    References are kept as reference-NAME.pt under `out` and read back.

    Raises ValueError for what does not fit and FileNotFoundError for a network that is not there.
    """
    if batch is not None and batch < 2:
        raise InvalidValue(f"batch must be >= 2; got {batch}")
    names = [network_name(str(spec)) for spec in networks]
    if len(set(names)) < len(names):
        raise InvalidValue(f"two networks have one name: {', '.join(names)}; rename a file")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    found = []
    with bar(progress) as shown:
        shown.total(len(names) * (1 + len(WAYS)))
        for name, spec in zip(names, networks, strict=True):
            checkpoint = load(spec, device)
            model, x = checkpoint.denoiser, _items(checkpoint, batch, seed).to(device or "cpu")
            shown.say(f"{name}: reference")
            truth, unsure = _reference(model, x, out / f"reference-{name}.pt", seed)
            known = unsure <= UNSURE * _bits(x)  # no number, or two
            x, truth, unsure = x[known.to(x.device)], truth[known], unsure[known]
            shown.advance()
            rows = [
                _row(how, way, model, x, truth, unsure, seed, shown) for how, way in WAYS.items()
            ]
            found.append(
                {
                    "network": name,
                    "items": len(x),
                    "unsure": int((~known).sum()),
                    "components": x[0].numel(),
                }
            )
            found[-1] |= {"reference_error": _rms(unsure / _bits(x)), "rows": rows}
    made = [_table(f) for f in found]
    show(made)
    record = {"seed": seed, "networks": found}
    write_text(out / "networks.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    write_text(out / "networks.md", "\n".join(markdown(t) for t in made) + "\n")
    return record


def _items(checkpoint: Checkpoint, batch: int | None, seed: int) -> Tensor:
    """What the network never saw, dequantised as it was trained, or draws of its own."""
    d, (numbers, least, most) = math.prod(checkpoint.event_shape), NUMBERS
    count = min(most, max(least, numbers // d)) if batch is None else batch
    model = checkpoint.denoiser
    if checkpoint.training.get("data"):
        x = held_out(checkpoint)[:count]
        return dequantised(x, checkpoint.spacing, seed)
    x = sample(model, (count, *checkpoint.event_shape), nfe=60, seed=seed, final="t_min")
    return x / float(model.process.alpha(model.t_min))


def _reference(model: Denoiser, x: Tensor, kept: Path, seed: int) -> tuple[Tensor, Tensor]:
    """log p of x, nats, and its error, [B] each; read back where it was made of the same x."""
    mark = hashlib.sha256(x.cpu().numpy().tobytes() + f"{TIGHT} {PROBES}".encode()).hexdigest()
    if kept.is_file():
        held: dict[str, Any] = torch.load(kept, weights_only=True)
        if held["mark"] == mark:
            value: Tensor = held["value"]
            return value, held["error"]
    values, squares = [], []
    for method, probes in PROBES.items():
        how: dict[str, Any] = {"method": method, "rtol": TIGHT, "atol": TIGHT, **FLOW}
        how |= {"trace": "exact"} if x[0].numel() <= EXACT else {"probes": probes}
        r = log_prob(model, x, seed=seed + 1000, on_failure="return", **how)
        values.append(r.log_prob.cpu())
        squares.append(r.std_error.square().cpu())
    a, b = squares
    weight = torch.where(a + b > 0, b / (a + b).clamp(min=1e-300), 0.5)
    value = weight * values[0] + (1 - weight) * values[1]
    noise = weight.square() * a + (1 - weight).square() * b
    apart = (0.25 * ((values[0] - values[1]).square() - a - b)).clamp(min=0)
    error = (noise + apart).sqrt()
    torch.save({"mark": mark, "value": value, "error": error}, kept)
    return value, error


def _row(
    how: str,
    way: Way,
    model: Denoiser,
    x: Tensor,
    truth: Tensor,
    unsure: Tensor,
    seed: int,
    shown: Bar,
) -> dict[str, Any]:
    shown.say(how)
    began = time.perf_counter()
    try:
        found = way(model, x, seed)
    except ModuleNotFoundError as missing:
        shown.advance()
        return {"how": how, "skipped": str(missing)}
    seconds = (time.perf_counter() - began) / len(x)
    shown.advance()
    error = found.log_prob.cpu() - truth
    fine = torch.isfinite(error)
    error, bits = error[fine], _bits(x)
    row: dict[str, Any] = {
        "how": how,
        "failed": int((~fine).sum()),
        "rms": _rms(error / bits),
        "mean": float(error.mean()) / bits,
        "forwards": float(found.forwards.double().mean()),
        "products": float(found.products.double().mean()),
        "seconds": seconds,
    }
    std = found.std_error.cpu()[fine]
    if not bool(std.isnan().any()):
        for name, own in (("std", std), ("total", found.total_error.cpu()[fine])):
            row[f"{name}_error"] = float(own.median()) / bits
            if bool(own.any()):
                reported = torch.hypot(own, unsure[fine])
                for k in (1, 2):
                    share = (error.abs() <= k * reported).double().mean()
                    row[f"{name}_within_{k}"] = float(share)
    return row


def _bits(x: Tensor) -> float:
    return x[0].numel() * math.log(2)


def _rms(v: Tensor) -> float:
    return float(v.square().mean().sqrt())


def _table(found: dict[str, Any]) -> Table:
    cells = []
    for r in found["rows"]:
        if "skipped" in r:
            cells.append([r["how"], *[""] * (len(COLUMNS) - 2), r["skipped"]])
            continue
        own = [short(r[k]) if k in r else "" for k in ("std_error", "total_error")]
        shares = [f"{n}_within_{k}" for n in ("std", "total") for k in (1, 2)]
        inside = [f"{r[k]:.2f}" if k in r else "" for k in shares]
        cost = [f"{r['forwards']:.0f}", f"{r['products']:.0f}", short(r["seconds"])]
        how = r["how"] + (f" ({r['failed']} failed)" if r["failed"] else "")
        cells.append([how, short(r["rms"]), f"{r['mean']:+.1e}", *own, *inside, *cost])
    title = (
        f"{found['network']}: {found['items']} items of {found['components']} components, "
        f"reference good to {short(found['reference_error'])} bits/dim"
        + (f"; {found['unsure']} left out without one" if found["unsure"] else "")
    )
    return Table(title, COLUMNS, cells, [[False] * len(COLUMNS) for _ in cells])
