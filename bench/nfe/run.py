"""NFE against quality: which solver, on which grid, with how many network calls.

The main job measures, for every solver, grid and number of network evaluations (NFE), the error to
the exact trajectory of deterministic solvers, and the law of the samples of stochastic ones (all
measures: quality.py). It does so on targets whose score is exact (digits64: the error is the
solver's alone) and on a trained network (the one that ships, or `checkpoint`: error to its own fine
solution), with the peers that are installed in the same run and from the same noise. The network's
calls are counted; a solver that makes more or fewer than it declares is a failed row. Where each
row starts and ends is printed with it.

Written under `out`: results.jsonl (a line a cell, appended; a run that was killed goes on where it
stopped), timings.jsonl, summary.json, table.md, nfe.png, samples.png (paths.png for targets
in the plane; -NAME.png of further problems), each also as .svg, and report.html, one page that
needs no other file.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...kernels.errors import InvalidValue
from ...kernels.files import write_text
from ...models.checkpoint import Checkpoint
from ...models.progress import bar
from ...solvers import Solver
from ...solvers.sampling.sampler import GRID
from ...solvers.sampling.tuning import SMALL_EVENT
from ...solvers.store import Store, rows_format, write_rows
from ...solvers.work.engines import engine_of
from ...solvers.work.processes import own_device, rank
from ..measures.metrics import Features
from ..measures.quality import Measure
from ..measures.quality import chosen as chosen_measures
from ..peers.samplers import chosen as chosen_peers
from ..problems.plans import DEFAULT, Config, default_solvers, ours
from ..problems.problem import Problem, Reference
from ..report import table
from . import campaign, summary
from .answer import WIDTH, screen
from .campaign import Cell, Spec, first_of_all, together
from .summary import pooled

NFE, QUICK_NFE = (5, 8, 10, 15, 20, 30), (5, 10, 20)
BATCH, QUICK_BATCH = 256, 64
LARGE_BATCH, QUICK_LARGE_BATCH = 16, 8
"""Samples of a network whose events have more than SMALL_EVENT components."""
GRIDS = ("log_snr", "laplace-wide", "laplace", "quadratic", "equidistributed")
WIDEST = 100
"""Columns of the screen at most: longer lines are hard to read."""
SHOW = ("answer", "all", "json")
SMALL = 2**16
"""Components of a batch up to which one thread is faster than two."""


def run(
    out: str | Path,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    data: torch.Tensor | str | None = None,
    solvers: Sequence[str | Solver] | None = None,
    nfe: Sequence[int] | None = None,
    grid: str | Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    features: str | Features | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    batch: int | None = None,
    device: torch.device | str | None = None,
    final: str | None = None,
    quick: bool = False,
    likelihood: bool | None = None,
    workers: int = 1,
    engine: str | None = None,
    progress: bool = True,
    format: str = "jsonl",
    show: str = "all",
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure, print and write; returns the summary that summary.json holds ({} in the processes of
    torchrun but the first).

    checkpoint: a file of `models.checkpoint`, or a `Checkpoint` around any denoiser; None: the
        network that ships; 'none': no network.
    data: [M, *event], real data of the network's kind; None: what the checkpoint's training held
        out.
    solvers: by name, by file.py:name of one's own, or themselves; None: a choice of twelve.
    nfe: network calls; None: a choice that fits two minutes.
    grid: names; None: `GRIDS`.
    peers: by library or name; None: all that are installed; []: none.
    targets: exact ones by name; []: none.
    metrics: names in quality.py; None: trajectories of deterministic solvers, laws of stochastic
        ones.
    features: of frechet, kid, precision and recall, "module:function" or a callable; None:
        components.
    seed, seeds: several seeds have samples of their own and are shown as one (`summary.pooled`).
    batch: samples of a seed; None: 256, or 16 for a network of large events.
    device: of the trained network.
    final: how our grids end; None: at t_min, and the default as `sample` ends it.
    quick: fewer samples and costs.
    likelihood: bits/dim of held-out data; None: of networks of small events, others take minutes.
    workers: processes; the numbers do not depend on them.
    engine: who they are: 'local', 'torchrun' or 'ray'.
    progress: a bar on standard error.
    format: 'parquet' writes results.parquet, too.
    show: what is printed: 'answer', one screen; 'all', every table; 'json', the summary.
    fresh: measure again what `out` holds already.

    Raises ValueError for what does not fit, before any work.
    """
    out = Path(out)
    if show not in SHOW:
        raise InvalidValue(f"show must be one of {', '.join(SHOW)}; got {show!r}")
    costs = _costs(nfe, quick)
    rows_format(format)
    apart = engine_of(engine, workers) == "ray" or workers > 1
    grids = [grid] if isinstance(grid, str) else list(grid or GRIDS)
    others = chosen_peers(None if peers is None else list(peers))
    measures = chosen_measures(metrics)
    named = None if solvers is None else ours(list(solvers), grids, final)
    every_seed = list(dict.fromkeys(seeds if seeds is not None else [seed]))
    if not every_seed:
        raise InvalidValue("seeds must name at least one; got none")
    specs = [
        s
        for n in every_seed
        for s in _specs(checkpoint, data, targets, batch, n, device, features, quick)
    ]
    if apart and isinstance(checkpoint, Checkpoint):
        raise InvalidValue("workers need a checkpoint's file: save it and give its path")
    if apart and callable(features):
        raise InvalidValue("workers need the features by name: give module:function")
    posed = [spec.build() for spec in specs]
    called = [p.name for p in posed[: len(posed) // len(every_seed)]]
    if len(set(called)) < len(called):
        raise InvalidValue(
            f"a target and the network have one name: {', '.join(called)}; rename the file"
        )
    todo = []
    for p in posed:
        own = ours(default_solvers(p.process), grids, final) if named is None else named
        if named is None and GRID not in grids:
            own = [DEFAULT, *own]  # the default is always there
        if not own and not others:
            raise InvalidValue("nothing to measure: name a solver or a peer")
        todo.append(_cells(p, [*own, *others], costs, measures))

    wanted = not posed[-1].large if likelihood is None else likelihood
    scored = wanted and specs[-1].target is None
    began = time.perf_counter()
    writes = rank() == 0
    references: dict[str, Reference] = {}
    worst: dict[str, float] = {}
    names = None if metrics is None else list(metrics)
    with bar(progress and writes) as shown, _threads(posed), together():
        store = first_of_all(partial(Store, out, writes=writes))
        if fresh:
            store.records.clear()  # the file keeps its lines, of which the last counts
        cells = [c for mine in todo for c in mine]
        new = _reused(cells, store, out, writes and show != "json")
        phases = campaign.REFERENCE * len(specs) + campaign.SUMMARY
        shown.total(new + phases + campaign.LIKELIHOOD * scored)
        for spec, problem, mine in zip(specs, posed, todo, strict=True):
            found = campaign.measure(spec, mine, store, shown, workers, names, engine)
            references.setdefault(problem.name, found)
            worst[problem.name] = max(worst.get(problem.name, 0.0), found.error)
        if not writes:
            return {}
        records = pooled([store[c.key] for mine in todo for c in mine])
        posed = posed[: len(references)]  # of the first seed: pictures and floors
        every = [c for mine in todo[: len(posed)] for c in mine]
        shown.say("summary")
        result = summary.summarise(posed, every, records, references, measures)
        for name, about in result["problems"].items():
            about |= {"seeds": every_seed, "reference_error": worst[name]}
        shown.advance(campaign.SUMMARY)
        if scored:
            shown.say("bits/dim of held-out data")
            trained, held = specs[-1].trained(), specs[-1].held()
            result["likelihood"] = summary.held_out_bits(trained, held, 8 if quick else 32)
        tables = summary.write_all(out, posed, every, records, references, measures, result)
    result["seconds"] = round(time.perf_counter() - began, 1)
    write_rows(out / "results", records, format)
    write_text(out / "summary.json", json.dumps(result, indent=1) + "\n")
    _print(show, result, out, tables)
    return result


def _reused(cells: Sequence[Cell], store: Store, out: Path, say: bool) -> int:
    """How many cells are to be run; says how many are there already."""
    kept = sum(c.key in store for c in cells)
    new = len(cells) - kept
    if kept and say:
        again = "" if new else "; --fresh measures again"
        print(f"{len(cells)} runs: {kept} from the earlier run in {out}, {new} new{again}")
    return new


def _print(show: str, result: dict[str, Any], out: Path, tables: Sequence[table.Table]) -> None:
    if show == "json":
        print(json.dumps(result, indent=1))
    elif show == "answer":
        wide = shutil.get_terminal_size((WIDTH, 24)).columns
        broken = [f"broken: {sentence}" for sentence in result["broken_claims"]]
        lines = screen(result["answer"], out, min(wide, WIDEST))
        print("\n".join([*lines, *result["notes"], *broken]))
    else:
        table.show(tables, summary.closing(out, result))


@contextmanager
def _threads(posed: Sequence[Problem]) -> Iterator[None]:
    """One thread where all states are small: more only wait for one another there, and on a busy
    machine they wait long. The numbers then do not depend on the number of cores either."""
    before = torch.get_num_threads()
    if all(p.start.numel() <= SMALL for p in posed):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _costs(nfe: Sequence[int] | None, quick: bool) -> list[int]:
    costs = sorted(set(nfe if nfe is not None else QUICK_NFE if quick else NFE))
    if not costs or any(n != int(n) or n < 1 for n in costs):
        raise InvalidValue(f"nfe must be whole numbers of network calls >= 1; got {nfe}")
    return costs


def _specs(
    checkpoint: str | Path | Checkpoint | None,
    data: torch.Tensor | str | None,
    targets: Sequence[str] | None,
    batch: int | None,
    seed: int,
    device: torch.device | str | None,
    features: str | Features | None,
    quick: bool,
) -> list[Spec]:
    """The problems to pose: the targets, then the network."""
    small = batch if batch is not None else QUICK_BATCH if quick else BATCH
    names = ("digits64",) if targets is None else tuple(dict.fromkeys(targets))
    specs = [Spec(small, seed, target=t, features=features) for t in names]
    if str(checkpoint) != "none":
        given = str(checkpoint) if isinstance(checkpoint, Path) else checkpoint
        on = own_device(None if device is None else str(device))
        spec = Spec(small, seed, None, given, on, data, features)
        if batch is None and math.prod(spec.trained().event_shape) > SMALL_EVENT:
            spec = replace(spec, batch=QUICK_LARGE_BATCH if quick else LARGE_BATCH)
        specs.append(spec)
    if not specs:
        raise InvalidValue("nothing to measure: name a target or a checkpoint")
    return specs


def _cells(
    problem: Problem, configs: list[Config], costs: list[int], measures: tuple[Measure, ...]
) -> list[Cell]:
    return [Cell(problem, c, n, measures) for c in configs for n in costs]
