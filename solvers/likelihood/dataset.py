"""Bits/dim of a data set under a network, item by item, with error bars.

Data with levels are dequantised, and bits/dim carry the offset of their spacing:
models/dequantize.py has the conventions, bits.py what is averaged. Each item's noise and probes
depend on the seed and its index alone, so neither --batch nor --limit changes a number.

The data are gone through twice, a few items at a time, whatever their number: once to see that all
of them fit, and what an earlier run has done, and once for what is left to do; for the bound up to
16,384 of them once more, for its control variate.

Written under `out`: items.jsonl (a line an item, on the disk before the next batch begins; a run
that was killed goes on where it stopped), summary.json, bits.png.
"""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ...kernels.errors import InvalidValue
from ...kernels.files import atomically, write_text
from ...models.checkpoint import Checkpoint, load
from ...models.data.drawing import pyplot
from ...models.progress import Bar, bar
from ..arguments import whole
from ..intervals import mean_interval
from ..outcome import SolverError, Status
from ..store import Record, Store, environment, read, rows_format, write_rows
from ..work.engines import engine_of, perform
from ..work.processes import own_device, rank, world_size
from .items import Items, remark
from .scores import (
    FIELDS,
    FOREIGN,
    OUTCOMES,
    TYPES,
    Scores,
    Settings,
    dequantisation,
    digest,
    prepared,
)


def run(
    out: str | Path,
    *,
    model: str | Path | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    batch: int = 64,
    device: torch.device | str | None = None,
    progress: bool = True,
    format: str = "jsonl",
    threads: int = 1,
    workers: int = 1,
    engine: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measure, print and write; returns the summary that summary.json holds ({} in the processes of
    torchrun but the first).

    model: a checkpoint; None is the network that ships.
    data: what `formats.stream` takes; None is the part of the checkpoint's own data that its
        training never saw.
    limit: score the first so many items, >= 1; None scores all.
    batch: items at a time, >= 1.
    device: where the network runs; None: where `load` puts it.
    progress: whether to show a bar.
    format: 'parquet' writes items.parquet, too.
    threads: of a process on the CPU, default 1: more processes rather than more threads.
    workers, engine: who does it, as of `perform`; no number depends on it.
    settings: the fields of `Settings`.

    Raises ValueError for what does not fit, before any work.
    """
    out, how = Path(out), Settings(**settings)
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise InvalidValue(f"{name} must be >= 1; got {value}")
    rows_format(format)
    whole("threads", threads, 1)
    progress = progress and rank() == 0
    engine = engine_of(engine, workers)
    device = own_device(str(device)) if device is not None else None
    model = "digits" if model is None else model
    trained = load(model, device)
    items = Items.of(trained, data, how.convention, how.dequantize is not None, how.levels)
    levels, dtype, fill = items.levels, TYPES[how.dtype], dequantisation(how, items.levels)
    denoiser = prepared(trained.denoiser, device, dtype)
    settings = {k: v for k, v in vars(how).items() if k != "levels"}  # `levels` says them
    head = json.dumps([_identity(model, trained), str(levels), settings])
    count = len(items) if limit is None else min(limit, len(items))
    labels = items.labels()[:count] if how.conditional else None
    with bar(progress) as shown:
        shown.total(count)
        shown.say("reading the data")
        seen = items.look(count, dtype, shown.advance)
        own = how.options()
        if how.method == "elbo":  # the law of all items: --limit changes no number
            own["reference"] = items.law()
    if progress and (note := remark(items, trained, seen)):
        print(note)
    if progress and labels is None and trained.network[1].get("classes"):
        print(
            "note: the network takes labels and is given none; --conditional gives the data's own"
        )

    keys = [f"{digest(head.encode())} {i} {mark}" for i, mark in enumerate(seen.marks)]
    if labels is not None:
        keys = [f"{key} {label}" for key, label in zip(keys, labels.tolist(), strict=True)]
    store = Store(out, "items.jsonl", writes=rank() == 0, needs=FIELDS)
    began = time.perf_counter()
    work = Scores(out, model, data, device, how, keys, head, labels, own, threads)
    work.parts = (items, denoiser, fill)
    work.find(store, batch)
    told = _Running([store[key] for key in keys if key in store], count, progress)

    def take(shown: Bar, unit: range) -> None:
        for record in work.enter(store, unit):
            told.add(record)
        shown.say(told.sentence())

    perform(work, workers=workers, engine=engine, progress=progress, label="log p", told=take)
    if rank() != 0:
        return {}
    for unit in work.todo:  # what other processes did
        work.enter(store, unit)
    if world_size() == 1:
        work.ledger.clear()
    records = [store[key] for key in keys]
    write_rows(out / "items", records, format)
    offset = 0.0 if levels is None else levels.offset
    counted = records[0]["convention"]
    summary = _summary(records, offset, 0.0 if levels is None else levels.spacing, how.seed)
    summary |= {"convention": counted, "method": how.method, "dtype": how.dtype}
    summary |= {"repeats": how.repeats, "head": head, "t_min": denoiser.t_min}
    summary["blur"] = math.exp(-float(denoiser.process.log_snr(denoiser.t_min)))
    summary["seconds"] = round(time.perf_counter() - began, 1)
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(_lines(summary, items.source.name, out))
    try:
        _histogram(
            out / "bits.png", [r["bits_per_dim"] for r in records if r["status"] != "failed"]
        )
    except ImportError as error:
        print(f"no bits.png: {error}")
    return summary


class _Running:
    """Mean +- its error over the items so far, said ten times in a run."""

    def __init__(self, records: list[Record], total: int, show: bool) -> None:
        self.bits: list[float] = []
        self.total, self.show, self.said = total, False, 0
        for record in records:
            self.add(record)
        if records and show:
            print(f"goes on after {len(records)} of {total} items")
        self.show, self.said = show, 10 * len(self.bits) // total

    def add(self, record: Record) -> None:
        if record["status"] != "failed":
            self.bits.append(record["bits_per_dim"])
        tenth = 10 * len(self.bits) // self.total
        if self.show and tenth > self.said:
            self.said = tenth
            print(f"{len(self.bits)} of {self.total} items: {self.sentence()}", flush=True)

    def sentence(self) -> str:
        n = len(self.bits)
        if n < 2:
            return f"bits/dim {self.bits[0]:.4f}" if n else "none yet"
        values = torch.tensor(self.bits, dtype=torch.float64, device="cpu")
        return f"bits/dim {float(values.mean()):.4f} +- {float(values.std()) / math.sqrt(n):.4f}"


def _identity(model: str | Path, trained: Checkpoint) -> str:
    """The checkpoint by its name and content, so that no row of another is taken for its own; of
    one that is no file the content is the process, what the networks and the conditions hold, and
    their code's file."""
    content, path = hashlib.sha256(), Path(model)
    if not path.is_file():
        path, denoiser = Path(str(model).rpartition(":")[0]), trained.denoiser
        content.update(repr((denoiser.process, denoiser.predicts, denoiser.clip)).encode())
        values = [
            v
            for n in denoiser.networks
            if isinstance(n, torch.nn.Module)
            for v in n.state_dict().values()
        ]
        for value in [*values, *denoiser.cond.values()]:
            if isinstance(value, torch.Tensor):
                held = value.detach().cpu().contiguous().flatten()
                content.update(held.view(torch.uint8).numpy().tobytes())
            else:
                content.update(repr(value).encode())
    if path.is_file():
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                content.update(part)
    return f"{model} {content.hexdigest()[:12]}"


def _summary(records: list[Record], offset: float, spacing: float, seed: int) -> dict[str, Any]:
    done = [r for r in records if r["status"] != "failed"]
    if not done:
        code = {code.meaning: code for code in Status}
        status = torch.tensor([int(code[r["why"]]) for r in records], device="cpu")
        why, _ = Counter(r["why"] for r in records).most_common(1)[0]
        raise SolverError(f"none of the {len(records)} items could be integrated: {why}", status)
    bits = torch.tensor([r["bits_per_dim"] for r in done], dtype=torch.float64, device="cpu")
    own = torch.tensor([r["std_error"] for r in done], dtype=torch.float64, device="cpu")
    path = torch.tensor([r["solver_error"] for r in done], dtype=torch.float64, device="cpu")
    e = mean_interval(bits, seed=seed)
    return {
        "bits_per_dim": e.value,
        "lo": e.lo,
        "hi": e.hi,
        "items": len(done),
        "failed": len(records) - len(done),
        "failures": dict(Counter(r["why"] for r in records if r["status"] == "failed")),
        "target_not_met": sum(r["status"] == OUTCOMES[Status.TARGET_NOT_MET] for r in done),
        "item_std": float(bits.std()) if len(bits) > 1 else 0.0,
        "item_std_error": float(own.square().mean().sqrt()),
        "item_solver_error": float(path.square().mean().sqrt()),
        "nfe": sum(r["nfe"] for r in done) / len(done),
        "offset": offset,
        "spacing": spacing,
    }


def _histogram(path: Path, bits: list[float]) -> None:
    """How bits/dim is spread over the items."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    ax.hist(bits, bins=min(40, max(5, len(bits) // 8)), color="#1f5fb4")
    ax.axvline(sum(bits) / len(bits), color="#444", lw=1)
    ax.set_xlabel("bits/dim (line: mean)")
    ax.set_ylabel("items")
    ax.spines[["top", "right"]].set_visible(False)
    atomically(path, lambda part: fig.savefig(part, dpi=120, format="png"))
    plt.close(fig)


def _lines(s: dict[str, Any], data: str, out: Path) -> str:
    """What was found: the data, bits/dim, what one item may be off by, the cost; what failed."""
    one = f"±{s['item_std_error']:.4f} by draws"
    if s["method"] == "ode":
        one += f", ±{s['item_solver_error']:.4f} by the solver"
    if s["repeats"] == 1 and s["convention"].endswith("dequantisation"):
        one += "; dequantised once: --repeats"
    spread = f"95 % over items {s['lo']:.4f} to {s['hi']:.4f}"
    lines = [
        ("data", f"{s['items']} items of {data}; {s['convention']}"),
        ("bits/dim", f"{s['bits_per_dim']:.4f}, {spread if s['items'] > 1 else 'of one item'}"),
        ("one item", one),
        ("cost", f"{s['nfe']:.0f} network calls an item, {s['seconds']} s; {out}/summary.json"),
    ]
    if s["method"] == "ode":
        at = f"noise {s['blur']:.3g} at t_min={s['t_min']:g}"
        lines[1] = ("bits/dim", f"{lines[1][1]}; {at}")
    if s["bits_per_dim"] < 0:
        lines.append(("note", "below 0: a density of continuous data may exceed 1"))
    lines += [("left out", f"{n} items: {why}") for why, n in s["failures"].items()]
    if s["target_not_met"]:
        lines.append(("missed", f"{s['target_not_met']} items missed the target"))
    return "\n".join(
        textwrap.fill(
            f"{name:9} {text}",
            80,
            subsequent_indent=10 * " ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in lines
    )


# --- both methods -----------------------------------------------------------------------------


def compare(out: str | Path, **options: Any) -> dict[str, Any]:
    """`run` by the flow (out/ode) and by the bound (out/elbo), on the same noise in the data.

    out: the folder. both.json and both.md in it hold the two and elbo - ode, item by item.
    options: as of `run`. Those of one method go to it alone. time is 'continuous' by default.

    In continuous time, for a network that is the score of what it samples, the bound is one on the
    flow's own log p, and the mean of elbo - ode is >= 0. A discrete chain is another model than the
    flow. Its decoder may be narrower than the blur at t_min, so its bound may lie on either side.
    """
    out = Path(out)
    if options.get("time") is None and options.get("calls") is None:
        options["time"] = "continuous"
    found = {
        method: run(
            out / method,
            method=method,
            **{k: v for k, v in options.items() if k not in foreign},
        )
        for method, foreign in FOREIGN.items()
    }
    if rank() != 0:
        return {}
    bits = [_by_item(out / method, summary["head"]) for method, summary in found.items()]
    both = [i for i in bits[0] if i in bits[1]]
    gap = mean_interval(torch.tensor([bits[1][i] - bits[0][i] for i in both], device="cpu"))
    gaps = {"bits_per_dim": gap.value, "lo": gap.lo, "hi": gap.hi}
    rows: list[tuple[str, ...]] = [
        ("", "bits/dim", "lo", "hi", "error of an item", "calls", "seconds"),
        ("---",) * 7,
    ]
    rows += [
        (
            method,
            *_interval(s),
            f"{s['item_std_error']:.4f}",
            f"{s['nfe']:.0f}",
            f"{s['seconds']:.1f}",
        )
        for method, s in found.items()
    ]
    rows.append(("elbo - ode", *_interval(gaps), "", "", ""))
    title = f"**{len(both)} items, {found['ode']['convention']}; 95 % over items**"
    table = "\n".join([title, "", *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
    print(table)
    if options["time"] != "continuous":
        print("the bound is not of the flow in continuous time: it may lie on either side of it")
    record = {**found, "gap": gaps, "environment": environment()}
    write_text(out / "both.json", json.dumps(record, indent=1) + "\n")
    write_text(out / "both.md", table)
    return record


def _by_item(folder: Path, head: str) -> dict[int, float]:
    """Bits/dim of the items that the run of that head could score."""
    rows = read(folder / "items.jsonl")
    return {
        r["item"]: r["bits_per_dim"] for r in rows if r["head"] == head and r["status"] != "failed"
    }


def _interval(s: dict[str, Any]) -> list[str]:
    return [f"{s[k]:.4f}" for k in ("bits_per_dim", "lo", "hi")]
