"""Bits/dim of a data set by the flow and by the bound, side by side on the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..measures import metrics
from ..report.table import Table, markdown, show
from ..store import parse, write_text
from ..versions import environment
from .dataset import FOREIGN, run

COLUMNS = ["", "bits/dim", "lo", "hi", "error of an item", "calls", "seconds"]


def compare(out: str | Path, **options: Any) -> dict[str, Any]:
    """`run` by the flow and by the bound, under out/ode and out/elbo, on the same noise in the data.

    options: as of `run`; those of one method go to it alone, and time is 'continuous' unless said.
    Writes both.json and both.md: the two, and elbo - ode, item by item, which is >= 0 in the mean
    where the bound is one on the flow's own log p: in continuous time, for a network that is the
    score of what it samples. A discrete chain is another model than the flow, whose decoder may be
    narrower than the blur at t_min: its bound may lie on either side.
    """
    out = Path(out)
    if options.get("time") is None and options.get("calls") is None:
        options["time"] = "continuous"
    found = {
        method: run(
            out / method, method=method,
            **{k: v for k, v in options.items() if k not in foreign},
        )
        for method, foreign in FOREIGN.items()
    }  # fmt: skip
    bits = [_by_item(out / method, summary["head"]) for method, summary in found.items()]
    both = [i for i in bits[0] if i in bits[1]]
    gap = metrics.mean_interval(torch.tensor([bits[1][i] - bits[0][i] for i in both]))
    gaps = {"bits_per_dim": gap.value, "lo": gap.lo, "hi": gap.hi}
    cells = [
        [method, *_interval(s), f"{s['item_std_error']:.4f}", f"{s['nfe']:.0f}",
         f"{s['seconds']:.1f}"] for method, s in found.items()
    ]  # fmt: skip
    cells.append(["elbo - ode", *_interval(gaps), "", "", ""])
    title = f"{len(both)} items, {found['ode']['convention']}; 95 % over items"
    table = Table(title, COLUMNS, cells, [[False] * len(COLUMNS) for _ in cells])
    show([table])
    if options["time"] != "continuous":
        print("the bound is not of the flow in continuous time: it may lie on either side of it")
    record = {**found, "gap": gaps, "environment": environment()}
    write_text(out / "both.json", json.dumps(record, indent=1) + "\n")
    write_text(out / "both.md", markdown(table) + "\n")
    return record


def _by_item(folder: Path, head: str) -> dict[int, float]:
    """Bits/dim of the items that the run of that head could score."""
    rows = parse((folder / "items.jsonl").read_text(encoding="utf-8"))
    return {r["item"]: r["bits_per_dim"] for r in rows
            if r["head"] == head and r["status"] != "failed"}  # fmt: skip


def _interval(s: dict[str, Any]) -> list[str]:
    return [f"{s[k]:.4f}" for k in ("bits_per_dim", "lo", "hi")]
