"""Bits/dim of a data set under a network, item by item, with error bars.

Data with levels are dequantised: with u uniform in a level's width, E log p(x + u) + d log spacing
bounds the log probability of the levels from below, so bits/dim carries the offset -log2(spacing).
Each item's noise and probes depend on the seed and its index alone, so neither --batch nor --limit
changes a number.

Written under `out`: items.jsonl (a line an item, appended; a run that was killed goes on where it
stopped), summary.json, bits.png.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.checkpoint import Checkpoint, load, load_default
from ..models.data import load as load_data
from ..solvers.likelihood import log_prob
from . import figures, heldout, metrics
from .bar import bar
from .store import Record, Store, write, write_text


def run(
    out: str | Path,
    *,
    model: str | Path | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    batch: int = 64,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure, print and write; returns the summary that summary.json holds.

    model: a checkpoint; None is the network that ships. data: what `models.data.load` takes; None
    is the part of the checkpoint's own data that its training never saw. limit: the first so many
    items. probes, rtol, atol: as in `log_prob`, whose defaults None takes. batch: items at a time.

    Raises ValueError for what does not fit, before any work.
    """
    out = Path(out)
    for name, value in (("limit", limit), ("probes", probes), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1; got {value}")
    trained = load_default() if model is None else load(model, device)
    x, spacing = _items(trained, data)
    x = heldout.dequantised(x, spacing, seed)[:limit]
    offset = -math.log2(spacing) if spacing else 0.0

    store = Store(out, "items.jsonl")
    head = json.dumps([str(model), str(data), probes, rtol, atol, seed])
    keys = [f"{head} {i}" for i in range(len(x))]
    todo = [i for i, key in enumerate(keys) if key not in store]
    began = time.perf_counter()
    with bar(progress) as shown:
        shown.total(len(todo))
        shown.say("log p")
        for first in range(0, len(todo), batch):
            ids = torch.tensor(todo[first : first + batch])
            found = log_prob(
                trained.denoiser, x[ids].to(device or "cpu"), rtol=rtol, atol=atol, probes=probes,
                seed=seed, sample_ids=ids, offset=offset, on_failure="return",
                t_min=trained.denoiser.t_min,  # it was not trained below
            )  # fmt: skip
            for record in _records(ids.tolist(), keys, found, x[0].numel()):
                store.append(record)
                shown.advance()
    records = [store[key] for key in keys]
    summary = _summary(records, offset, spacing, seed)
    summary["seconds"] = round(time.perf_counter() - began, 1)
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    _histogram(out / "bits.png", [r["bits_per_dim"] for r in records if r["status"] == "ok"])
    print(_sentence(summary, out))
    return summary


def _items(trained: Checkpoint, data: str | Path | None) -> tuple[Tensor, float]:
    """Items [N, *event] and the spacing of their levels; ValueError for another event shape."""
    if data is None:
        return heldout.held_out(trained), trained.spacing
    loaded = load_data(data).to_range(*trained.data_range)
    if loaded.event_shape != trained.event_shape:
        raise ValueError(
            f"data must hold items of shape {trained.event_shape}, which the network was trained "
            f"on; {data} holds {loaded.event_shape}"
        )
    return loaded.x, loaded.spacing


def _records(ids: list[int], keys: list[str], found: Any, dim: int) -> list[Record]:
    rows = zip(
        ids, found.log_prob.tolist(), found.bits_per_dim.tolist(), found.std_error.tolist(),
        found.status.tolist(), strict=True,
    )  # fmt: skip
    calls = torch.as_tensor(found.nfe).expand(len(ids)).tolist()
    return [
        {
            "key": keys[i],
            "item": i,
            "log_prob": nats,
            "bits_per_dim": bits,
            "std_error": error / (dim * math.log(2)),
            "nfe": n,
            "status": "ok" if code == 0 else "failed",
        }
        for (i, nats, bits, error, code), n in zip(rows, calls, strict=True)
    ]


def _summary(records: list[Record], offset: float, spacing: float, seed: int) -> dict[str, Any]:
    done = [r for r in records if r["status"] == "ok"]
    if not done:
        raise RuntimeError(f"none of the {len(records)} items could be integrated")
    bits = torch.tensor([r["bits_per_dim"] for r in done], dtype=torch.float64)
    probe = torch.tensor([r["std_error"] for r in done], dtype=torch.float64)
    e = metrics.mean_interval(bits, seed=seed)
    return {
        "bits_per_dim": e.value, "lo": e.lo, "hi": e.hi, "items": len(done),
        "failed": len(records) - len(done),
        "item_std": float(bits.std()) if len(bits) > 1 else 0.0,
        "probe_std_error": float(probe.square().mean().sqrt()),
        "nfe": sum(r["nfe"] for r in done) / len(done),
        "offset": offset, "spacing": spacing,
    }  # fmt: skip


def _histogram(path: Path, bits: list[float]) -> None:
    """How bits/dim is spread over the items."""
    plt = figures.pyplot()
    fig, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    ax.hist(bits, bins=min(40, max(5, len(bits) // 8)), color=figures.OURS[0])
    ax.axvline(sum(bits) / len(bits), color="#444", lw=1)
    ax.set_xlabel("bits/dim (line: mean)")
    ax.set_ylabel("items")
    ax.spines[["top", "right"]].set_visible(False)
    write(path, lambda part: fig.savefig(part, dpi=120))
    plt.close(fig)


def _sentence(s: dict[str, Any], out: Path) -> str:
    levels = f", {s['offset']:g} of them for levels {s['spacing']:g} apart" if s["spacing"] else ""
    failed = f"; {s['failed']} items failed" if s["failed"] else ""
    probes = f"probes {s['probe_std_error']:.3f} an item"
    return (
        f"bits/dim {s['bits_per_dim']:.4f} ({s['lo']:.4f} to {s['hi']:.4f}, 95 % over "
        f"{s['items']} items{levels}); {probes}, {s['nfe']:.0f} network evaluations{failed}\n"
        f"{s['seconds']} s; written to {out}"
    )
