"""NFE against quality: which solver, on which grid, with how many network calls.

The main job measures, for every solver, grid and number of network evaluations (NFE),

    error            per-sample RMSE to the exact trajectory / data std (deterministic solvers)
    sw2              sliced Wasserstein-2 distance to exact samples / data std
    log_density_gap  E log p under the samples less under exact ones, nats a dimension

on targets whose score is exact (digits64: the error is the solver's alone) and on a trained
network (the one that ships, or `checkpoint`: error to its own fine solution), with the peers that
are installed in the same run and from the same noise. The network's calls are counted; a solver
that makes more or fewer than it declares is a failed row. Starts and ends are printed with it.

Written under `out`: results.jsonl (a line a cell, appended; a run that was killed goes on where it
stopped), timings.jsonl, summary.json, table.md, nfe.png, samples.png.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..models.checkpoint import Checkpoint, load, load_default
from . import cells, figures, heldout, problems, table
from .bar import Bar, bar
from .cells import Cell
from .peers import chosen
from .plans import Plan, Unavailable, default_solvers, ours
from .problems import Problem
from .reference import TOLERANCES, Reference, cached
from .store import Record, Store, write_text
from .targets import get as get_target

NFE, QUICK_NFE = (5, 8, 10, 15, 20, 30), (5, 10, 20)
BATCH, QUICK_BATCH = 256, 64
GRIDS = ("log_snr", "karras")
FINER = 20
"""The reference's own error must be this many times below the smallest error shown."""


def run(
    out: str | Path,
    *,
    checkpoint: str | Path | None = None,
    solvers: Sequence[str] | None = None,
    nfe: Sequence[int] | None = None,
    grid: str | Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    seed: int = 0,
    batch: int | None = None,
    device: torch.device | str | None = None,
    final: str = "t_min",
    quick: bool = False,
    likelihood: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure, print and write; returns the summary that summary.json holds.

    checkpoint: a file of `models.checkpoint`; None is the network that ships, 'none' leaves the
    network out. solvers, nfe, grid: what to run (None: a choice that fits two minutes). peers: by
    library or name; None is all that are installed, [] none. targets: exact ones by name, [] for
    none. batch: samples. device: of the trained network. final: how our grids end. quick: fewer
    samples and costs. likelihood: bits/dim of held-out data. progress: a bar on standard error.

    Raises ValueError for what does not fit, before any work.
    """
    out = Path(out)
    costs = _costs(nfe, quick)
    batch = batch if batch is not None else QUICK_BATCH if quick else BATCH
    grids = [grid] if isinstance(grid, str) else list(grid or GRIDS)
    others = chosen(None if peers is None else list(peers))
    named = None if solvers is None else ours(list(solvers), grids, final)
    trained = _checkpoint(checkpoint, device)
    posed = [problems.exact(get_target(t), batch, seed) for t in _targets(targets)]
    if trained is not None:
        name = "digits network" if checkpoint is None else Path(checkpoint).stem
        posed.append(_network(trained, name, batch, seed))
    if not posed:
        raise ValueError("nothing to measure: name a target or a checkpoint")
    todo: list[Cell] = []
    for p in posed:
        configs = [*(named or ours(default_solvers(p.process), grids, final)), *others]
        todo += [Cell(p, c, n) for c in configs for n in costs]

    began = time.perf_counter()
    store, references = Store(out), {}
    with bar(progress) as shown:
        for p in posed:
            mine = [c for c in todo if c.problem is p]
            references[p.name] = _measure(p, mine, store, shown)
        summary = _summary(posed, [store[c.key] for c in todo], references, costs)
        if trained is not None and likelihood:
            shown.say("bits/dim of held-out data")
            held = heldout.held_out(trained)
            summary["likelihood"] = heldout.bits_per_dim(trained, held, 8 if quick else 32)
    records = [store[c.key] for c in todo]
    shown_tables = _write(out, posed, todo, records, references, summary)
    summary["seconds"] = round(time.perf_counter() - began, 1)
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    table.show(shown_tables, _closing(out, summary))
    return summary


# --- what to run ------------------------------------------------------------------------------


def _costs(nfe: Sequence[int] | None, quick: bool) -> list[int]:
    costs = sorted(set(nfe if nfe is not None else QUICK_NFE if quick else NFE))
    if not costs or any(n != int(n) or n < 1 for n in costs):
        raise ValueError(f"nfe must be whole numbers of network calls >= 1; got {nfe}")
    return costs


def _targets(names: Sequence[str] | None) -> Sequence[str]:
    return ("digits64",) if names is None else names


def _checkpoint(path: str | Path | None, device: Any) -> Checkpoint | None:
    if str(path) == "none":
        return None
    return load_default() if path is None else load(path, device)


def _network(trained: Checkpoint, name: str, batch: int, seed: int) -> Problem:
    """The checkpoint on its held-out data, dequantised as in training."""
    data = heldout.dequantised(heldout.held_out(trained), trained.spacing, seed)
    about = f"a trained network, {trained.denoiser.process}"
    return problems.network(name, about, trained.denoiser, data, batch, seed)


# --- measuring --------------------------------------------------------------------------------


def _measure(problem: Problem, todo: list[Cell], store: Store, shown: Bar) -> Reference:
    """Run the cells that the store has not got; returns the reference they were held to."""
    timings = Store(store.path.parent, "timings.jsonl")
    shown.total(len(todo))
    planned: dict[str, Plan] = {}
    for cell in todo:
        try:
            planned[cell.key] = _inside(cell.config.plan(problem, cell.nfe), problem)
        except Unavailable as error:
            record = cells.unavailable(cell, error)
            if cell.key not in store or store[cell.key] != record:
                store.append(record)
            shown.advance()
    ratios = {r for plan in planned.values() for r in (plan.start, plan.end)} | {0.0}
    file = store.path.parent / f"reference-{problem.name.replace(' ', '-')}.pt"
    for level in range(len(TOLERANCES) - 1):
        shown.say(f"{problem.name}: reference solution")
        reference = cached(file, problem, ratios, level)
        for cell in todo:
            if cell.key not in planned or _settled(store, cell.key, reference):
                continue
            shown.say(f"{problem.name}: {cell.config.library} {cell.config.name}, {cell.nfe} NFE")
            record, seconds = cells.run(cell, planned[cell.key], reference)
            timings.append({"key": cell.key, "seconds": round(seconds, 4)})
            store.append(record)
            shown.advance()
        if all(_settled(store, key, reference) for key in planned):
            break
    return reference


def _inside(plan: Plan, problem: Problem) -> Plan:
    """The plan, if it starts where the model is defined. Raises Unavailable otherwise."""
    if plan.start > problem.r_max * (1 + 1e-3):
        raise Unavailable(
            f"starts at sigma/alpha = {plan.start:.4g}, above the model's {problem.r_max:.4g}"
        )
    return plan


def _settled(store: Store, key: str, reference: Reference) -> bool:
    """Whether the cell is done, and not so accurate that a finer reference could change it."""
    if key not in store or store[key]["status"] == "unavailable":
        return False
    record = store[key]
    if record["status"] != "ok" or record.get("error") is None:
        return True
    held_to = record["reference_error"]
    return bool(record["error"] >= FINER * held_to or held_to <= reference.error)


# --- writing ----------------------------------------------------------------------------------


def _summary(
    posed: list[Problem], records: list[Record], references: dict[str, Reference], costs: list[int]
) -> dict[str, Any]:
    errors = {
        p.name: [r["error"] for r in records
                 if r["problem"] == p.name and r["status"] == "ok" and r.get("error")]
        for p in posed
    }  # fmt: skip
    return {
        "problems": {
            p.name: {
                "about": p.about,
                "process": repr(p.process),
                "batch": len(p.start),
                "seed": p.seed,
                "r_max": p.r_max,
                "r_min": p.r_min,
                "std": p.std,
                "reference_error": references[p.name].error,
                "smallest_error": min(errors[p.name], default=None),
                "sw2_floor": list(cells.distance_floor(p, len(p.start))),
            }
            for p in posed
        },
        "nfe": costs,
        "best": _best(records, costs),
        "cells": len(records),
        "failed": sum(r["status"] == "failed" for r in records),
        "environment": environment(),
    }


def _best(records: list[Record], costs: list[int]) -> dict[str, dict[str, Any]]:
    """problem -> NFE -> the deterministic configurations that no other is shown to beat."""
    out: dict[str, dict[str, Any]] = {}
    for name in {r["problem"]: None for r in records}:
        for n in costs:
            done = [r for r in records if r["problem"] == name and r["nfe_asked"] == n
                    and r["status"] == "ok" and r.get("error") is not None]  # fmt: skip
            if not done:
                continue
            first = min(done, key=lambda r: float(r["error"]))
            reach = table.interval(first, "error")
            ties = [r for r in done if table.interval(r, "error").overlaps(reach)]
            ties.sort(key=lambda r: float(r["error"]))
            out.setdefault(name, {})[str(n)] = [
                {k: r[k] for k in ("library", "solver", "grid", "error", "error_lo", "error_hi")}
                for r in ties
            ]
    return out


def environment() -> dict[str, str]:
    """Versions that the numbers may depend on."""
    packages = ("undiffuse", "torch", "numpy", "scipy", "diffusers", "k-diffusion")
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _write(
    out: Path,
    posed: list[Problem],
    todo: list[Cell],
    records: list[Record],
    references: dict[str, Reference],
    summary: dict[str, Any],
) -> list[table.Table]:
    """Tables and pictures; returns the tables."""
    shown: list[table.Table] = []
    for p in posed:
        value, lo, hi = summary["problems"][p.name]["sw2_floor"]
        note = {"sw2": f"; two exact sets: {value:.3f} ({lo:.3f} to {hi:.3f})"}
        shown += table.tables(records, p.name, note)
    write_text(out / "table.md", "\n".join(table.markdown(t) for t in shown))
    panels = [(p.name, "error") for p in posed]
    panels += [(p.name, f) for p in posed if p.law is not None for f in ("log_density_gap", "sw2")]
    drawn = [
        (p, f) for p, f in panels if any(
            r["problem"] == p and r["status"] == "ok" and r.get(f) is not None
            and r["stochastic"] is (f != "error") for r in records
        )
    ]  # fmt: skip
    floors = {p.name: summary["problems"][p.name]["sw2_floor"] for p in posed}
    if drawn:
        figures.error_against_nfe(out / "nfe.png", records, drawn, floors)
    pictured = [p for p in posed if figures.is_picture(p.start.shape[1:])]
    if pictured:
        _pictures(out / "samples.png", pictured[-1], todo, references[pictured[-1].name])
    return shown


def _pictures(path: Path, problem: Problem, todo: list[Cell], reference: Reference) -> None:
    """Samples of the same starts by a few of our solvers, coarse to fine, above the exact ones."""
    mine = {(c.config.name, c.nfe): c for c in todo
            if c.problem is problem and c.config.library == "undiffuse"}  # fmt: skip
    names = list(dict.fromkeys(name for name, _ in mine))
    costs = sorted({n for _, n in mine})
    few = [costs[0], costs[len(costs) // 2], costs[-1]] if len(costs) > 2 else costs
    rows = []
    for name in [n for n in ("ddim", "dpmpp-2m", "ddpm") if n in names] or names[:2]:
        for n in few:
            try:
                plan = mine[name, n].config.plan(problem, n)
                w = cells.integrate(problem, plan, reference.at(plan.start))
            except (Unavailable, KeyError, RuntimeError):
                continue
            rows.append((f"{name}, {plan.calls} NFE", cells.clean(problem, w, plan.end)[:16]))
    rows.append(("reference", reference.at(0.0)[:16]))
    if problem.data is not None:
        rows.append(("held-out data", problem.data[:16]))
    figures.sample_grid(path, rows, f"{problem.name}: the same noise in every row")


def _closing(out: Path, summary: dict[str, Any]) -> list[str]:
    """The lines under the tables."""
    lines = ["*: no other row of the column is shown to be better (95 % intervals)."]
    for name, p in summary["problems"].items():
        lines.append(
            f"{name}: {p['about']}; {p['batch']} samples, sigma/alpha {p['r_max']:.4g} to "
            f"{p['r_min']:.2g}; the reference's own error is {p['reference_error']:.1e}"
        )
    if "likelihood" in summary:
        b = summary["likelihood"]
        lines.append(
            f"bits/dim of {b['count']} held-out events: {b['bits_per_dim']:.3f} "
            f"({b['lo']:.3f} to {b['hi']:.3f}), {b['nfe']} NFE, exact trace"
        )
    failed = summary["failed"]
    lines.append(f"{summary['cells']} cells" + (f", {failed} failed" if failed else ""))
    lines.append(f"{summary['seconds']} s; written to {out}")
    return lines
