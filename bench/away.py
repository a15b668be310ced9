"""`undiffuse bench away`: networks that no constant was chosen on, each against its own fine solution.

For every network and number of calls: our default, what `ud.tune` finds (and learns), the fixed
setting that errs least on the *other* networks, the best fixed setting and the best peer, both picked
afterwards, and diffusers' UniPC as shipped. All start from the same noise; ends are matched. What
counts is the error over that of the best peer: its geometric mean over the cells, and the worst.

Written under `out`: away.jsonl, a line a row, appended (a run that was stopped goes on), and away.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.errors import InvalidValue
from ..kernels.files import write_text
from ..models.checkpoint import Checkpoint, load
from ..models.progress import track
from ..solvers.sampling import pilot
from ..solvers.sampling.sampler import Sampler
from ..solvers.sampling.tune import network_name, training_data
from ..solvers.tables.tableau import Tableau
from .peers.samplers import chosen as chosen_peers
from .problems import problem as problems
from .problems.plans import Plan, Unavailable, _plan, planned
from .problems.reference import Reference, solve

NFE = (5, 8, 10, 20)
STARTS, LARGE_STARTS = 32, 8
SHIPPED = "UniPC (default)"
BLENDS = (0.2, 0.4, 0.6, 0.8)
ROWS = ("default", "tuned", "learned", "left out", "best fixed", SHIPPED)
"""What the table shows, over the best peer."""


@dataclass(frozen=True)
class Row:
    """One run: what, how far off in deviations of the data, and half a 95 % interval of it."""

    network: str
    nfe: int
    what: str
    error: float
    half_width: float


def run(
    networks: Sequence[str | Path],
    out: str | Path,
    *,
    nfe: Sequence[int] = NFE,
    starts: int | None = None,
    learn: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Measure, print and write; returns each row's geometric mean and worst ratio to the best peer.

    networks: checkpoints, or file.py:function that makes one; two at least, to leave one out.
    nfe: numbers of calls. starts: samples of a network; by default 32, or 8 of large events.
    learn: also learn a table for every cell, a minute each. seed: of the starts.
    Raises ValueError for what does not fit, before any work.
    """
    if len(networks) < 2:
        raise InvalidValue(f"networks must be two or more, to leave one out; got {len(networks)}")
    if not nfe or min(nfe) < 2:
        raise InvalidValue(f"nfe must be numbers of calls >= 2; got {list(nfe)}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "away.jsonl"
    rows = _read(store)
    for spec in networks:
        name = network_name(str(spec))
        missing = [n for n in nfe if (name, n, "done") not in rows]
        if not missing:
            continue
        cells = list(_cells(load(spec), name, missing, starts, learn, seed, progress))
        with store.open("a", encoding="utf-8") as file:
            for row in cells:
                rows[row.network, row.nfe, row.what] = row
                file.write(json.dumps(row.__dict__) + "\n")
    names = [network_name(str(s)) for s in networks]
    text, found = report(rows, names, nfe)
    write_text(folder / "away.md", text)
    print(text)
    return found


def _cells(
    loaded: Checkpoint, name: str, nfe: Sequence[int], starts: int | None, learn: bool, seed: int,
    progress: bool,
) -> Iterator[Row]:  # fmt: skip
    model, event = loaded.denoiser, loaded.event_shape
    large = math.prod(event) > pilot.LARGE
    count = starts or (LARGE_STARTS if large else STARTS)
    data = training_data(loaded)
    if data is None:
        data = _ends(model, event, count)
    posed = problems.network(name, name, model, data, count, seed)
    plans: dict[tuple[int, str], Plan] = {}
    for n in nfe:
        for what, make in _contenders(posed, n, learn):
            try:
                plans[n, what] = make()
            except (Unavailable, ValueError):  # no table of so few calls, a peer that cannot
                continue
    ends = {r for p in plans.values() for r in (p.start, p.end)}
    reference = solve(posed, ends)
    shown = track(plans.items(), name, len(plans), progress)
    for (n, what), plan in shown:
        with torch.no_grad():
            w = plan.run(model, reference.at(plan.start), seed)
        off = _error(posed, w, reference, plan.end)
        half = 1.96 * float(off.std()) / math.sqrt(len(off))
        yield Row(name, n, what, float(off.mean()), half)
    yield from (Row(name, n, "done", 0.0, 0.0) for n in nfe)


def _ends(model: Any, event: tuple[int, ...], count: int) -> Tensor:
    """What the network itself makes, where it does not say what it was trained on."""
    return pilot.fine_run(model, event, max(count, 32))


def _contenders(
    posed: problems.Problem, n: int, learn: bool
) -> Iterator[tuple[str, Callable[[], Plan]]]:
    model, process = posed.model, posed.process
    shape = (8, *posed.start.shape[1:])

    def of(table: Tableau) -> Plan:
        return _plan(process, table)

    yield "default", lambda: of(Sampler(model, nfe=n).tableau)  # type: ignore[arg-type]
    yield "tuned", lambda: of(pilot.tune(model, shape, n).table)
    if learn:
        yield "learned", lambda: of(pilot.tune(model, shape, n, learn=True).table)
    for fixed in settings():
        yield f"fixed {fixed}", lambda fixed=fixed: of(fixed.table(model, n))
    for peer in chosen_peers(["diffusers", "k-diffusion"]):
        if not getattr(peer, "stochastic", False):
            yield f"peer {peer.name}", lambda peer=peer: planned(peer, posed, n)


def settings() -> list[pilot.Candidate]:
    """The fixed settings among which the best on the other networks is looked for."""
    return [
        pilot.Candidate(solver, blend, spared)
        for solver in pilot.SOLVERS
        for blend in BLENDS
        for spared in (False, True)
    ]


def _error(posed: problems.Problem, w: Tensor, reference: Reference, end: float) -> Tensor:
    off = problems.signal(w, end) - problems.signal(reference.at(end), end)
    found = off.flatten(1).square().mean(1).sqrt() / posed.std
    return torch.where(found.isfinite(), found, math.inf)


def _read(store: Path) -> dict[tuple[str, int, str], Row]:
    if not store.exists():
        return {}
    lines = store.read_text(encoding="utf-8").splitlines()
    made = [Row(**json.loads(line)) for line in lines if line.strip()]
    return {(r.network, r.nfe, r.what): r for r in made}


def report(
    rows: dict[tuple[str, int, str], Row], names: Sequence[str], nfe: Sequence[int]
) -> tuple[str, dict[str, dict[str, float]]]:
    """The table in Markdown, and for every kind of row its geometric mean and worst ratio."""
    ratios: dict[str, list[float]] = {what: [] for what in ROWS}
    lines = [
        "| network | calls | best peer | its error | " + " | ".join(ROWS) + " |",
        "|---" * (4 + len(ROWS)) + "|",
    ]
    for name in names:
        for n in nfe:
            here = {what: r for (a, b, what), r in rows.items() if (a, b) == (name, n)}
            peers = {w: r for w, r in here.items() if w.startswith("peer ")}
            if not peers:
                continue
            best = min(peers.values(), key=lambda r: r.error)
            shown = {
                "default": here.get("default"),
                "tuned": here.get("tuned"),
                "learned": here.get("learned"),
                "left out": here.get(_left_out(rows, names, name, n)),
                "best fixed": min(
                    (r for w, r in here.items() if w.startswith("fixed ")),
                    key=lambda r: r.error, default=None,
                ),
                SHIPPED: here.get(f"peer {SHIPPED}"),
            }  # fmt: skip
            cells = []
            for what, row in shown.items():
                if row is None:
                    cells.append("")
                    continue
                ratio = row.error / best.error
                ratios[what].append(ratio)
                cells.append(f"{ratio:.2f} ± {row.half_width / best.error:.2f}")
            told = best.what.removeprefix("peer ")
            lines.append(f"| {name} | {n} | {told} | {best.error:.2g} | " + " | ".join(cells) + " |")
    found = {
        what: {"mean": _geometric(v), "worst": max(v), "cells": len(v)}
        for what, v in ratios.items()
        if v
    }
    cells = [f"{found[w]['mean']:.2f} ({found[w]['worst']:.2g})" if w in found else "" for w in ROWS]
    lines.append("| **geometric mean (worst)** | | | | " + " | ".join(cells) + " |")
    head = (
        "Errors over that of the best peer, which is picked afterwards for each cell; ± half a 95 % "
        "interval over starts. *left out*: the fixed setting with the least geometric mean on the "
        "other networks. *best fixed*: picked afterwards.\n\n"
    )
    return head + "\n".join(lines) + "\n", found


def _left_out(
    rows: dict[tuple[str, int, str], Row], names: Sequence[str], name: str, n: int
) -> tuple[Any, ...] | str:
    """The fixed setting with the least geometric mean over the others, at as many calls."""
    scores: dict[str, list[float]] = {}
    others = [other for other in names if other != name]
    for other in others:
        here = {w: r for (a, b, w), r in rows.items() if (a, b) == (other, n)}
        peers = [r.error for w, r in here.items() if w.startswith("peer ")]
        for what, row in here.items():
            if peers and what.startswith("fixed "):
                scores.setdefault(what, []).append(row.error / min(peers))
    known = {what: v for what, v in scores.items() if len(v) == max(map(len, scores.values()))}
    return min(known, key=lambda what: _geometric(known[what]), default="")


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(v, 1e-12)) for v in values) / len(values))
