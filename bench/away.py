"""Away from home: networks that no constant was chosen on, each against its own fine solution.

For every network and number of calls: our default; what `ud.tune` finds, and learns; the fixed
setting that errs least on the *other* networks; the best fixed setting and the best peer, both
picked afterwards; diffusers' UniPC as shipped. All start from the same noise, and each run is held
to the exact flow where it ends. What counts is the error over that of the best peer: its geometric
mean over the cells, and the worst.

Written under `out`: away.jsonl, a line a cell, appended (a run that was stopped goes on), and
away.md.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.errors import InvalidValue, RunFailure
from ..kernels.files import write_text
from ..models import Denoiser
from ..models.checkpoint import Checkpoint, load
from ..models.progress import Bar, bar
from ..solvers.sampling import candidates, pilot
from ..solvers.sampling.sampler import Sampler
from ..solvers.sampling.tuning import SMALL_EVENT, network_name
from ..solvers.store import Record, Store, made_by
from ..solvers.tables.grids import Blend
from ..solvers.tables.tableau import Tableau
from .measures.quality import Run, errors
from .peers.samplers import chosen as chosen_peers
from .problems import problem as problems
from .problems.plans import Plan, Unavailable, content, of_table, plan_of
from .problems.problem import FINER, Problem, Reference

NFE = (5, 8, 10, 20)
STARTS, FEW_STARTS = 32, 8
"""Samples of a network; of one that is large, or that has no float64 copy."""
FINEST = 3
"""The last level of the reference that is tried: tolerances of 1e-8 and 1e-9."""
MOST = 20_000
"""Evaluations after which a reference is given up: a flow that is smooth in time takes a few
thousand."""
TRIES = 6000
"""Calls that a pilot spends on candidates, as `ud.tune` does by default."""
BLENDS = (0.2, 0.4, 0.6, 0.8)
LIBRARIES = ("diffusers", "k-diffusion")
SHIPPED = "UniPC (default)"
COLUMNS = ("default", "tuned", "learned", "left out", "best fixed", SHIPPED)
"""What is shown over the best peer."""
HEAD = """\
Errors (each start's root mean square distance to the network's own fine solution, the mean over
starts) over that of the best peer of diffusers and k-diffusion, which is picked afterwards for each
cell; ± half a 95 % interval over starts, which are the same for both. *default*: what `ud.sample`
does. *tuned*: `ud.tune` on other starts. *learned*: `ud.tune(learn=True)`. *left out*: the fixed
setting with the least geometric mean on the other networks at as many calls. *best fixed*: the best
of these {settings} settings, picked afterwards. *{shipped}*: diffusers' as shipped.
"""


def run(
    networks: Sequence[str | Path],
    out: str | Path,
    *,
    nfe: Sequence[int] | None = None,
    starts: int | None = None,
    learn: bool = False,
    tries: int = TRIES,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Measure, print and write; returns each column's geometric mean, worst ratio and cells.

    networks: what `load` takes, each named after its file or function; two at least, to leave one
        out.
    nfe: numbers of network calls, each >= 2; None: `NFE`.
    starts: samples of a network, >= 2; None: `STARTS`, or `FEW_STARTS` of one that is slow.
    learn: also learn a table for every cell, a minute each.
    tries: calls of a batch that each pilot may spend on candidates, >= 1.
    seed: of the starts. progress: a bar on standard error.

    Raises ValueError for what does not fit and FileNotFoundError for a network that is not there,
    before any work; ValueError where no peer can be run, RunFailure where a network's own flow
    cannot be solved in `MOST` evaluations.
    """
    calls = NFE if nfe is None else tuple(dict.fromkeys(nfe))
    if not calls or any(n != int(n) or n < 2 for n in calls):
        raise InvalidValue(f"nfe must be whole numbers of network calls >= 2; got {nfe}")
    if starts is not None and starts < 2:
        raise InvalidValue(f"starts must be at least 2, for intervals; got {starts}")
    if tries < 1:
        raise InvalidValue(f"tries must be at least 1; got {tries}")
    names = [network_name(str(spec)) for spec in networks]
    if len(names) < 2:
        raise InvalidValue(f"networks must be two at least, to leave one out; got {len(names)}")
    if len(set(names)) < len(names):
        raise InvalidValue(f"two networks have one name: {', '.join(names)}; rename a file")
    posed = [
        _pose(name, load(spec), starts, seed) for name, spec in zip(names, networks, strict=True)
    ]
    store = Store(Path(out), "away.jsonl", needs=("network", "nfe", "rows"))
    keys = {(p.name, n): _key(p, n, learn, tries) for p in posed for n in calls}
    with bar(progress) as shown:
        for p in posed:
            due = [n for n in calls if keys[p.name, n] not in store]
            if due:
                for record in measure(p, due, learn, tries, shown):
                    store.append({"key": keys[p.name, record["nfe"]], **record})
    text, found = report([store[key] for key in keys.values()])
    write_text(Path(out) / "away.md", text)
    print(text)
    return found


def _pose(name: str, loaded: Checkpoint, starts: int | None, seed: int) -> Problem:
    """The problem of a network. Errors are in units of 1: ratios have none."""
    shape, model = loaded.event_shape, loaded.denoiser
    unit = torch.tensor([-1.0, 1.0], dtype=torch.float64, device="cpu")
    data = unit.view(2, *[1] * len(shape)).expand(2, *shape) / math.sqrt(2)
    posed = problems.network(name, name, model, data, starts or STARTS, seed)
    if starts is None and (posed.narrow or math.prod(shape) > SMALL_EVENT):
        posed = problems.network(name, name, model, data, FEW_STARTS, seed)
    return posed


def _key(posed: Problem, nfe: int, learn: bool, tries: int) -> str:
    """All that determines a cell: starts and network, the tables of today, the peers' versions."""
    tables = [f"{what}: {_content(make)}" for what, make in _ours(posed, nfe)]
    known = hashlib.sha256("\n".join(tables).encode()).hexdigest()[:16]
    libraries = [made_by(name) for name in LIBRARIES]
    asked = [len(posed.start), posed.seed, nfe, learn, tries]
    return json.dumps([posed.name, posed.flow, *asked, known, libraries])


def _content(make: Callable[[], Tableau]) -> str:
    try:
        return content(make())
    except ValueError as error:
        return str(error)


def settings() -> list[candidates.Candidate]:
    """The fixed settings among which the best on the other networks is looked for."""
    return [
        candidates.Candidate.blended(solver, blend, spared)
        for solver in candidates.SOLVERS
        for blend in BLENDS
        for spared in (False, True)
    ]


def _called(setting: candidates.Candidate) -> str:
    spared = " spared" if setting.spared else ""
    assert isinstance(setting.grid, Blend)
    return f"fixed {setting.solver} {setting.grid.w:g}{spared}"


# --- what is run --------------------------------------------------------------------------------


def _ours(posed: Problem, nfe: int) -> Iterator[tuple[str, Callable[[], Tableau]]]:
    """The tables that need no measuring of the network, by what they are called in a record."""
    yield "default", lambda: _plain(Sampler(posed.model, nfe=nfe).tableau)
    for setting in settings():
        yield _called(setting), partial(_table, setting, posed.model, nfe)


def _table(setting: candidates.Candidate, model: Denoiser, nfe: int) -> Tableau:
    return _plain(setting.table(model, nfe))


def _plain(tableau: object) -> Tableau:
    assert isinstance(tableau, Tableau), "these are plain tables"
    return tableau


def _contenders(
    posed: Problem, nfe: int, learn: bool, tries: int
) -> Iterator[tuple[str, Callable[[], Plan]]]:
    def planned(make: Callable[[], Tableau]) -> Plan:
        return of_table(posed.process, make())

    def tuned(learned: bool) -> Plan:
        shape = (1, *posed.start.shape[1:])
        return planned(
            lambda: _plain(pilot.tune(posed.model, shape, nfe, learn=learned, calls=tries).table)
        )

    for what, make in _ours(posed, nfe):
        yield what, partial(planned, make)
    yield "tuned", partial(tuned, False)
    if learn:
        yield "learned", partial(tuned, True)
    for peer in chosen_peers(list(LIBRARIES)):
        if not getattr(peer, "stochastic", False):
            yield f"peer {peer.name}", partial(plan_of, peer, posed, nfe)


def measure(
    posed: Problem, nfe: Sequence[int], learn: bool, tries: int, shown: Bar
) -> Iterator[Record]:
    """A record for every number of calls: {'rows': {what: [error, half a 95 % interval of its ratio
    to the best peer]}, 'absent': {what: why}, ...}."""
    plans: dict[int, dict[str, Plan]] = {}
    absent: dict[int, dict[str, str]] = {}
    for n in nfe:
        plans[n], absent[n] = {}, {}
        contenders = list(_contenders(posed, n, learn, tries))
        shown.total(len(contenders))
        for what, make in contenders:
            shown.say(f"{posed.name}, {n} calls: {what}")
            try:
                plans[n][what] = make()
            except (Unavailable, ValueError) as error:  # no table of so few calls, no such peer
                absent[n][what] = str(error)
            shown.advance()
        if not any(what.startswith("peer ") for what in plans[n]):
            whys = "; ".join(sorted({w for p, w in absent[n].items() if p.startswith("peer ")}))
            raise InvalidValue(f"no peer can be run at {n} calls on {posed.name}: {whys}")
    shown.say(f"{posed.name}: reference")
    every = [plan for made in plans.values() for plan in made.values()]
    ratios = {r for plan in every for r in (plan.start, plan.end)}
    found: tuple[Reference, dict[int, dict[str, Tensor]]] | None = None
    for level in range(1 if posed.narrow else FINEST + 1):
        try:
            before = None if found is None else found[0]
            reference = problems.solve(posed, ratios, level, _at_most(MOST, posed.name), before)
        except RunFailure:
            if found is None:
                raise
            break
        off = {
            n: {what: _errors(posed, plan, reference) for what, plan in made.items()}
            for n, made in plans.items()
        }
        found = reference, off
        least = min(float(e.mean()) for errs in off.values() for e in errs.values())
        if least >= FINER * reference.error:
            break
    assert found is not None
    reference, off = found
    for n in nfe:
        peers = [e for what, e in off[n].items() if what.startswith("peer ")]
        best = min(peers, key=lambda e: float(e.mean()))
        rows = {what: [_short(e.mean()), _half_width(e, best)] for what, e in off[n].items()}
        yield {
            "network": posed.name,
            "nfe": n,
            "starts": len(posed.start),
            "rows": rows,
            "absent": absent[n],
            "reference_error": _short(reference.error),
        }


def _at_most(calls: int, name: str) -> Callable[[], None]:
    """To be called at every evaluation. Raises RunFailure after so many."""
    counter = iter(range(calls))

    def tick() -> None:
        if next(counter, None) is None:
            raise RunFailure(
                f"{calls} evaluations do not solve the flow of {name}: its network is not smooth "
                "in time; is it trained at whole times alone, or told time at another scale?"
            )

    return tick


def _errors(posed: Problem, plan: Plan, reference: Reference) -> Tensor:
    """Each start's distance to the exact flow where the plan ends; inf where it is not finite."""
    with torch.no_grad():
        w = plan.run(posed.model, reference.at(plan.start), posed.seed)
    off = errors(Run(posed, w, plan.end, reference))
    return torch.where(off.isfinite(), off, math.inf)


def _half_width(error: Tensor, best: Tensor) -> float:
    """Half a 95 % interval of mean(error) / mean(best) over starts, by the delta method."""
    ratio = error.mean() / best.mean()
    return _short(1.96 * ((error - ratio * best) / best.mean()).std() / math.sqrt(len(error)))


def _short(value: float | Tensor) -> float:
    return float(f"{float(value):.4g}")


# --- what is shown ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """An error over that of the best peer, and half a 95 % interval of it."""

    value: float
    half_width: float


def ratios(records: Sequence[Record]) -> dict[tuple[str, int], dict[str, Ratio]]:
    """Of every cell all rows over the best peer's; a run that was not finite is inf."""
    found = {}
    for r in records:
        held = {w: math.inf if e is None else float(e) for w, (e, _) in r["rows"].items()}
        best = min(e for what, e in held.items() if what.startswith("peer "))
        half = {w: math.inf if h is None else float(h) for w, (_, h) in r["rows"].items()}
        found[r["network"], r["nfe"]] = {w: Ratio(e / best, half[w]) for w, e in held.items()}
    return found


def left_out(cells: dict[tuple[str, int], dict[str, Ratio]], network: str, nfe: int) -> str | None:
    """The fixed setting with the least geometric mean over the other networks at as many calls."""
    others = [c for (name, n), c in cells.items() if n == nfe and name != network]
    known = [w for w in map(_called, settings()) if all(w in c for c in others)]
    if not others or not known:
        return None
    return min(known, key=lambda what: _mean([c[what].value for c in others]))


def report(records: Sequence[Record]) -> tuple[str, dict[str, dict[str, float]]]:
    """The table in Markdown, and each column's geometric mean, factor, worst ratio and cells."""
    cells = ratios(records)
    columns: dict[str, list[tuple[str, Ratio]]] = {what: [] for what in COLUMNS}
    head = ["network", "calls", "best peer", "its error / reference's", *COLUMNS]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for r in records:
        name, n = r["network"], r["nfe"]
        cell = cells[name, n]
        best = min((w for w in cell if w.startswith("peer ")), key=lambda w: cell[w].value)
        fixed = [w for w in cell if w.startswith("fixed ")]
        chosen = left_out(cells, name, n)
        unrun = None if chosen is None else Ratio(math.inf, math.inf)
        shown = {
            **{w: cell.get(w) for w in ("default", "tuned", "learned")},
            "left out": unrun if chosen is None else cell.get(chosen, unrun),
            "best fixed": min((cell[w] for w in fixed), key=lambda q: q.value, default=None),
            SHIPPED: cell.get(f"peer {SHIPPED}"),
        }
        for what, ratio in shown.items():
            if ratio is not None:
                columns[what].append((name, ratio))
        texts = [_text(ratio) for ratio in shown.values()]
        above = r["rows"][best][0] / max(r["reference_error"], 1e-300)
        told = [name, str(n), best.removeprefix("peer "), f"{above:.2g}", *texts]
        lines.append(f"| {' | '.join(told)} |")
    found = {what: _summary(held) for what, held in columns.items() if held}
    told = ["" if w not in found else _line(found[w]) for w in COLUMNS]
    lines.append(f"| **geometric mean (worst)** | | | | {' | '.join(told)} |")
    starts = ", ".join(sorted({str(r["starts"]) for r in records}, key=int))
    words = HEAD.format(settings=len(settings()), shipped=SHIPPED)
    return f"{words}\nStarts of a network: {starts}.\n\n" + "\n".join(lines) + "\n", found


def _summary(held: Sequence[tuple[str, Ratio]]) -> dict[str, float]:
    """factor: the geometric mean's 95 % interval is mean / factor to mean * factor. The cells of a
    network share their starts, so their errors are added; those of different networks' squares."""
    values = [q.value for _, q in held]
    relative: dict[str, float] = {}
    for name, q in held:
        share = q.half_width / q.value if 0 < q.value < math.inf else math.inf
        relative[name] = relative.get(name, 0.0) + share
    off = math.sqrt(sum(v * v for v in relative.values())) / len(held)
    factor = math.exp(off) if off < 700 else math.inf
    return {"mean": _mean(values), "factor": factor, "worst": max(values), "cells": len(values)}


def _mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(max(v, 1e-12)) for v in values) / len(values))


def _text(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{_told(ratio.value)} ± {_told(ratio.half_width)}"


def _told(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.2g}"


def _line(s: dict[str, float]) -> str:
    lo, hi = s["mean"] / s["factor"], s["mean"] * s["factor"]
    return f"**{s['mean']:.2f}** [{lo:.2f}, {hi:.2f}] ({s['worst']:.2g})"
