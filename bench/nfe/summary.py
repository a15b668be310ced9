"""What a run comes to: seeds pooled, who is not beaten at each cost, and what is written of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.files import write_text
from ...models.checkpoint import Checkpoint
from ...models.dequantize import dequantised
from ...solvers import store
from ...solvers.intervals import mean_interval
from ...solvers.likelihood.log_prob import log_prob
from ...solvers.sampling.sampler import GRID, SOLVER
from ...solvers.store import Record, Store, environment
from ..measures import claims, quality
from ..measures.quality import MEASURES, Measure
from ..problems.plans import Ours, plan_of
from ..problems.problem import FINER, Inapplicable, Problem, Reference
from ..report import figures, page, table
from ..report.curves import measured
from ..report.figures import draw
from .answer import answer, front, regret
from .campaign import Cell


def summarise(
    posed: Sequence[Problem],
    todo: Sequence[Cell],
    records: Sequence[Record],
    references: dict[str, Reference],
    measures: Sequence[Measure],
) -> dict[str, Any]:
    """The content of summary.json."""
    costs = sorted({c.nfe for c in todo})
    ours = {c.config.name: c.config.solver for c in todo if isinstance(c.config, Ours)}
    problems = {p.name: _problem(p, records, references[p.name], measures) for p in posed}
    return {
        "problems": problems,
        "nfe": costs,
        "metrics": [m.field for m in measures],
        "judged_by": judge(measures).field,
        "best": best(records, costs, judge(measures)),
        "front": (found := front(records, costs)),
        "regret": regret(found),
        "answer": answer(records, costs, judge(measures), problems),
        "broken_claims": [c.sentence() for c in claims.broken(ours, posed[0].process)],
        "notes": [*unresolved(problems), *left_out(records)],
        "cells": len(records),
        "failed": sum(r["status"] == "failed" for r in records),
        "environment": environment(),
    }


def _problem(
    p: Problem, records: Sequence[Record], reference: Reference, measures: Sequence[Measure]
) -> dict[str, Any]:
    mine = [r for r in records if r["problem"] == p.name and r["status"] == "ok"]
    errors = [float(r["error"]) for r in mine if r.get("error")]
    floors = {}
    for m in measures:
        if any(r.get(m.field) is not None for r in mine):
            with suppress(Inapplicable):
                floors[m.field] = list(quality.floor(p, m, len(p.start)))
    return {
        "about": p.about,
        "process": repr(p.process),
        "batch": len(p.start),
        "seeds": [p.seed],
        "r_max": p.r_max,
        "r_min": p.r_min,
        "std": p.std,
        "reference_error": reference.error,
        "smallest_error": min(errors, default=None),
        "floors": floors,
    }


def unresolved(problems: Mapping[str, Any]) -> list[str]:
    """The problems whose reference could not be made fine enough for the least error shown."""
    return [
        f"{name}: the reference's own error, {p['reference_error']:.1e}, is more than 1/{FINER} of "
        f"the least error shown, {p['smallest_error']:.1e}: errors below "
        f"{FINER * p['reference_error']:.1e} are uncertain by as much"
        for name, p in problems.items()
        if p["smallest_error"] is not None and FINER * p["reference_error"] > p["smallest_error"]
    ]


def left_out(records: Sequence[Record]) -> list[str]:
    """Which measures some runs do not have, and why: a line for each reason."""
    found: dict[str, None] = {}
    for r in records:
        for field, why in r.get("left_out", {}).items():
            found[f"{r['problem']}: no {field} of some runs: {why}"] = None
    return list(found)


def judge(measures: Sequence[Measure]) -> Measure:
    """What the advice goes by: the error to the trajectory, or the first measure without it."""
    return next((m for m in measures if m.field == "error"), measures[0])


def best(
    records: Sequence[Record], costs: Sequence[int], m: Measure = quality.MEASURES["error"]
) -> dict[str, dict[str, Any]]:
    """problem -> NFE -> the configurations that no other is shown to beat in this measure."""
    out: dict[str, dict[str, Any]] = {}
    kept = ("library", "solver", "grid", m.field, f"{m.field}_lo", f"{m.field}_hi")
    for name in {r["problem"]: None for r in records}:
        for n in costs:
            mine = [r for r in records if r["problem"] == name and r["nfe_asked"] == n]
            found = [{k: r[k] for k in kept} for r in table.unbeaten(mine, m)]
            if found:
                out.setdefault(name, {})[str(n)] = found
    return out


def _regrets(summary: dict[str, Any]) -> list[str]:
    """A line a problem: the default's row, what the best peer makes of it, the mean."""
    lines = []
    for name, held in summary["regret"].items():
        front_of = summary["front"][name]
        cells = [
            f"{n}: {table.short(front_of[n]['default']['error'])} ({ratio:.2f})"
            for n, ratio in held["by_calls"].items()
        ]
        lines.append(
            f"{name}, the default ({SOLVER} on {GRID}), error by calls (over the best peer's, "
            f"picked afterwards): {', '.join(cells)}; geometric mean {held['mean']:.2f}"
        )
    return lines


def all_tables(
    summary: dict[str, Any], records: Sequence[Record], measures: Sequence[Measure]
) -> list[table.Table]:
    """The tables of every problem; distances carry their floor in the title."""
    shown = []
    for name, p in summary["problems"].items():
        notes = {
            field: f"; exact samples: {value:.3g} ({lo:.3g} to {hi:.3g})"
            for field, (value, lo, hi) in p["floors"].items()
        }
        shown += table.tables(records, name, measures, notes)
    return shown


def write_all(
    out: Path,
    posed: Sequence[Problem],
    todo: Sequence[Cell],
    records: Sequence[Record],
    references: dict[str, Reference],
    measures: Sequence[Measure],
    summary: dict[str, Any],
) -> list[table.Table]:
    """table.md, the pictures and report.html; returns the tables."""
    shown = all_tables(summary, records, measures)
    write_text(out / "table.md", "\n".join(table.markdown(t) for t in shown))
    floors = {name: p["floors"] for name, p in summary["problems"].items()}
    wanted = [(p, m) for m in measures for p in posed if m.field == "error" or p.law is not None]
    panels = [
        (p.name, m)
        for p, m in wanted
        if measured([r for r in records if r["problem"] == p.name], m)
    ]
    if panels:
        figures.quality_against_calls(out / "nfe.png", records, panels, floors)
    best_table = winner(todo, summary)
    page.write(
        out / "report.html",
        page.Report(
            "NFE against quality",
            summary["answer"],
            records,
            measures,
            floors,
            draw(out, posed, todo, records, references, measures),
            [best_table] if best_table else [],
            told(summary),
        ),
    )
    return shown


def winner(todo: Sequence[Cell], summary: dict[str, Any]) -> tuple[str, str] | None:
    """(title, text) of the tableau of ours with the least error of the first problem, at the cost
    in the middle of the run."""
    costs = summary["nfe"]
    n = costs[len(costs) // 2]
    for name, by_cost in summary["best"].items():
        ours = [t for t in by_cost.get(str(n), ()) if t["library"] == "undiffuse"]
        for cell in todo:
            at = (cell.problem.name, cell.nfe, cell.config.library)
            if ours and at == (name, n, "undiffuse"):
                c = cell.config
                if (c.name, c.grid) == (ours[0]["solver"], ours[0]["grid"]):
                    text = repr(plan_of(c, cell.problem, n).tableau)
                    return f"The table of {c.name} on {c.grid} at {n} NFE ({name})", text
    return None


METHOD = (
    (
        "All runs of a problem start from the same noise, on the reference at their own first "
        "sigma/alpha, and are compared with it at their own last one ('from > to' in the tables), "
        "so ends that do not match are not counted as errors."
    ),
    "The reference is SciPy's DOP853, refined until its own error is small beside the least shown.",
    (
        "The network is told the exact noise level of every call. diffusers rounds most of its "
        "timesteps to integers; a network of continuous time would see those schedulers worse."
    ),
    (
        "NFE are counted calls; '(n)' follows a number whose run made n calls, fewer than asked. A "
        "run that makes another number than it declares is a failed row. 'states' are the most "
        "batches alive at once beside the network, counted."
    ),
    (
        "The grid 'equidistributed' is laid by a pilot run of 64 calls, which is not charged to "
        "the rows. Rows of 'undiffuse tune' were fitted to the problem."
    ),
    (
        "Our rows end at t_min, but for the default's: it is what ud.sample runs where no solver "
        "is named, and ends longer runs with a denoising jump."
    ),
    (
        "Intervals are 95 %: bootstrap over samples for means, delete-a-group jackknife for "
        "distances. The best of many rows is picked after the run."
    ),
)


def told(summary: dict[str, Any]) -> list[str]:
    """What was measured and how, in sentences."""
    said = [
        (
            "A diffusion model draws a sample by calling its network again and again. NFE, the "
            "number of calls, is what a sample costs; a solver on a grid of noise levels decides "
            "what is gained by each."
        ),
        *(f"{field}: {quality.MEASURES[field].meaning}." for field in summary["metrics"]),
    ]
    for name, p in summary["problems"].items():
        seeds = ", ".join(map(str, p["seeds"]))
        said.append(f"{name}: process {p['process']}, samples of each seed ({seeds}).")
    versions = ", ".join(f"{k} {v}" for k, v in summary["environment"].items())
    return [
        *said,
        *_regrets(summary),
        *_about(summary),
        *METHOD,
        f"Made on {date.today()} with {versions}.",
    ]


def closing(out: Path, summary: dict[str, Any]) -> list[str]:
    """The lines under the tables."""
    lines = ["*: no other row of the column is shown to be better (95 % intervals)."]
    lines += [*_regrets(summary), *_about(summary)]
    failed = f", {summary['failed']} failed" if summary["failed"] else ""
    lines.append(f"{summary['cells']} cells{failed}; {summary['seconds']} s; written to {out}")
    return lines


def _about(summary: dict[str, Any]) -> list[str]:
    """What the problems were, and what must be known of the numbers."""
    lines = []
    for name, p in summary["problems"].items():
        lines.append(
            f"{name}: {p['about']}; {p['batch']} samples, sigma/alpha {p['r_max']:.4g} to "
            f"{p['r_min']:.2g}; the reference's own error is {p['reference_error']:.1e}"
        )
    lines += summary["notes"]
    lines += [f"broken: {sentence}" for sentence in summary["broken_claims"]]
    if "likelihood" in summary:
        b = summary["likelihood"]
        lines.append(
            f"bits/dim of {b['count']} held-out events: {b['bits_per_dim']:.3f} "
            f"({b['lo']:.3f} to {b['hi']:.3f}), {b['nfe']} NFE, {b['trace']} trace"
        )
    return lines


Question = tuple[Any, ...]


def pooled(records: Sequence[Record]) -> list[Record]:
    """One record for each configuration and cost, in order of first appearance.

    Values are means over the seeds; half widths of their intervals add in quadrature, as those of
    independent samples do (seeds of a network are held against draws from the same finite data, so
    there a distance's interval is a little too short). A failure of one seed fails the whole. Of
    two records of one seed the one of the larger batch counts; of equal ones each adds its
    measures.

    Raises ValueError for what is not of one kind: see `check`.
    """
    check(records)
    groups: dict[Question, dict[int, Record]] = {}
    for r in records:
        of = groups.setdefault(_question(r), {})
        held = of.get(r["seed"])
        if held is None or r["batch"] > held["batch"]:
            of[r["seed"]] = r
        elif r["batch"] == held["batch"] and r["status"] == held["status"] == "ok":
            of[r["seed"]] = {**held, **r, "key": held["key"]}
    return _told_apart([_mean(list(of.values())) for of in groups.values()])


def check(records: Sequence[Record]) -> None:
    """Raises ValueError where a problem's records are of two networks, or a configuration's of
    several versions: those are different numbers, not repetitions of one."""
    networks: dict[str, str] = {}
    versions: dict[Question, str] = {}
    for r in records:
        if "network" not in r or "versions" not in r:
            raise InvalidValue(f"{r['problem']}: a result of an older format: run it again")
        held = networks.setdefault(r["problem"], r["network"])
        if held != r["network"]:
            raise InvalidValue(
                f"{r['problem']} is the name of two networks or processes here ({held} and "
                f"{r['network']}): their results cannot be joined; `undiffuse bench compare` sets "
                "them side by side"
            )
        before = versions.setdefault(_question(r), r["versions"])
        if before != r["versions"]:
            raise InvalidValue(
                f"{r['problem']}: {r['library']} {r['solver']} was run with {before}, and with "
                f"{r['versions']}: run it again with one, or see what changed with `undiffuse "
                "bench compare`"
            )


def _question(r: Record) -> Question:
    return tuple(r[k] for k in ("problem", "library", "solver", "grid", "final", "nfe_asked"))


def _told_apart(records: list[Record]) -> list[Record]:
    """How a run ends, or which table it was, joins the grid's name where that alone tells two
    configurations apart."""
    ends: dict[Question, set[Any]] = {}
    for r in records:
        ends.setdefault(_question(r)[:4], set()).add(r["final"])
    return [
        {**r, "grid": f"{r['grid']}, {r['final']}"}
        if r["final"] is not None and len(ends[_question(r)[:4]]) > 1
        else r
        for r in records
    ]


def _mean(records: list[Record]) -> Record:
    if len(records) == 1:
        return records[0]
    for r in records:
        if r["status"] != "ok":
            return {**r, "message": f"seed {r['seed']}: {r['message']}"}
    out = {
        **records[0],
        "nfe": max(r["nfe"] for r in records),
        "batch": sum(r["batch"] for r in records),
        "seed": [r["seed"] for r in records],
        "keys": [r["key"] for r in records],
    }
    for field in ("error_max", "reference_error", "memory"):
        held = [r[field] for r in records if r.get(field) is not None]
        out |= {field: max(held)} if held else {}
    out.pop("error_median", None)  # which is no function of the seeds' medians
    for field in MEASURES:
        if all(r.get(field) is not None for r in records):
            value = sum(r[field] for r in records) / len(records)
            below, above = (
                math.hypot(*(r[f"{field}_{end}"] - r[field] for r in records)) / len(records)
                for end in ("lo", "hi")
            )
            out |= {field: value, f"{field}_lo": value - below, f"{field}_hi": value + above}
    return out


def merge(sources: Sequence[str | Path], out: str | Path) -> int:
    """Join run folders into `out` (results, timings, table.md, report.html) and print the tables;
    returns the number of distinct cells. `undiffuse bench --out` of the joined folder repeats none
    of them, and adds the pictures.

    Raises ValueError for fewer than two folders, for runs that do not belong together (`check`) and
    where no run holds a result, FileNotFoundError for one without a file of results; then nothing
    is written.
    """
    if len(sources) < 2:
        raise InvalidValue(f"merge joins two folders or more; got {len(sources)}")
    out, folders = Path(out), [Path(source) for source in sources]
    found = [r for folder in folders for r in store.records_of(folder)]
    if not found:
        raise InvalidValue(
            f"no result that reads in {', '.join(map(str, folders))}: run them again"
        )
    check(found)
    count = store.merge(folders, out)
    records = pooled(list(Store(out).records.values()))
    shown = []
    for problem in dict.fromkeys(r["problem"] for r in records):
        shown += table.tables(records, problem, list(MEASURES.values()), {})
    write_text(out / "table.md", "\n".join(table.markdown(t) for t in shown))
    measures = [m for m in MEASURES.values() if any(r.get(m.field) is not None for r in records)]
    if measures:
        costs = sorted({r["nfe_asked"] for r in records})
        said = answer(records, costs, judge(measures), {r["problem"]: r for r in records})
        report = page.Report(
            f"{len(sources)} runs, joined", said, records, measures, {}, (), (), METHOD
        )
        page.write(out / "report.html", report)
    table.show(shown, [f"{count} cells of {len(sources)} runs, written to {out}"])
    return count


# --- bits/dim of held-out data ------------------------------------------------------------------

EXACT_DIM = 128


def held_out_bits(
    checkpoint: Checkpoint, x: Tensor, count: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Mean bits/dim of the first `count` events of x [M, *event], its 95 % interval over events.

    Returns bits_per_dim, lo, hi, count, nfe, trace, offset (bits added for the levels), t_min and
    blur (where time is cut off, and the noise left there).
    """
    spacing = checkpoint.spacing
    x = dequantised(x[:count], spacing, seed)
    offset = -math.log2(spacing) if spacing else 0.0
    exact = x[0].numel() <= EXACT_DIM
    how: dict[str, Any] = {"trace": "exact", "rtol": 1e-4, "atol": 1e-4} if exact else {}
    model = checkpoint.denoiser
    if isinstance(model.net, torch.nn.Module):
        x = x.to(next(model.net.parameters(), x).device)
    found = log_prob(model, x, offset=offset, t_min=model.t_min, **how)  # not trained below
    e = mean_interval(found.bits_per_dim.cpu(), seed=seed)
    calls = found.nfe if isinstance(found.nfe, int) else int(found.nfe.max())
    return {
        "bits_per_dim": e.value,
        "lo": e.lo,
        "hi": e.hi,
        "count": len(x),
        "nfe": calls,
        "trace": "exact" if exact else "estimated",
        "offset": offset,
        "t_min": found.t_min,
        "blur": found.blur,
    }
