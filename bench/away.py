"""Away from home: networks of many kinds, each against its own fine solution.

For every network and number of calls: our default; the default whose constants were chosen on the
*other* networks; what `ud.tune` finds, and learns; the best fixed setting and the best peer, both
picked afterwards; diffusers' UniPC as shipped. All start from the same noise, and each run is held
to the exact flow where it ends. What counts is the error over that of the best peer: its geometric
mean over the cells, and the worst.

The default is a `Relay` on a `Blend`. `CANDIDATES` are its constants; those with the least `score`
on a set of networks are chosen. What is shipped is the choice of all of them; what may be expected
of it on a network that had no part in it is the column *left out*.

Written under `out`: away.jsonl, a line a cell, appended (a run that was stopped goes on; one after
a change of our tables runs those that changed, and no peer again), away.md and away.json; and the
references, to be read back.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.errors import InvalidValue, RunFailure
from ..kernels.files import write_text
from ..models.checkpoint import Checkpoint, load
from ..models.progress import Bar, bar
from ..solvers.families.relay import Relay
from ..solvers.sampling import candidates, pilot
from ..solvers.sampling.budget import in_steps
from ..solvers.sampling.sampler import Sampler
from ..solvers.sampling.tuning import network_name
from ..solvers.store import Record, Store, made_by
from ..solvers.tables.grids import Blend
from ..solvers.tables.tableau import Tableau
from .away_report import CANDIDATES, by_calls, report, starts_of
from .measures.quality import Run, errors
from .peers.samplers import chosen as chosen_peers
from .problems import problem as problems
from .problems import together
from .problems.plans import Config, Plan, Unavailable, content, of_table, plan_of
from .problems.problem import FINER, Problem, Reference

NFE = (5, 8, 10, 20, 50)
STARTS, FEW_STARTS, NUMBERS = 16, 4, 2048
"""Samples of a network: the most, the least, and the numbers in all of them in between."""
FINEST = 3
"""The last level of the reference that is tried: tolerances of 1e-8 and 1e-9."""
MOST = 20_000
"""Evaluations after which a reference is given up: a flow that is smooth in time takes a few
thousand."""
TRIES = 6000
"""Calls that a pilot spends on candidates, as `ud.tune` does by default."""
LEARNED = 10
"""Most calls of a table that is learned: with more, what is tuned errs little, and a learned one is
dear to find."""
BLENDS = (0.3, 0.6)
LIBRARIES = ("diffusers", "k-diffusion")
PUBLISHED = "published"
"""Learned tables of others, which run on some processes alone."""


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
    starts: samples of a network, >= 2; None: `STARTS`, down to `FEW_STARTS` of large events.
    learn: also learn a table for every cell of at most `LEARNED` calls, half a minute each.
    tries: calls of a batch that each pilot may spend on candidates, >= 1; 0 tunes nothing.
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
    if tries < 0 or (learn and not tries):
        raise InvalidValue(f"tries must be at least 0, and 1 to learn; got {tries}")
    names = [network_name(str(spec)) for spec in networks]
    if len(names) < 2:
        raise InvalidValue(f"networks must be two at least, to leave one out; got {len(names)}")
    if len(set(names)) < len(names):
        raise InvalidValue(f"two networks have one name: {', '.join(names)}; rename a file")
    posed = [
        pose(name, load(spec), starts, seed) for name, spec in zip(names, networks, strict=True)
    ]
    store = Store(Path(out), "away.jsonl", needs=("network", "nfe", "rows"))
    keys = {(p.name, n): _key(p, n, learn, tries) for p in posed for n in calls}
    due = {p.name: [n for n in calls if keys[p.name, n] not in store] for p in posed}
    with bar(progress) as shown:
        shown.total(sum(len(cells) for cells in due.values()))
        for p in posed:
            if cells := due[p.name]:
                kept = Path(out) / f"reference-{p.name}.pt"
                before = {n: _before(store, keys[p.name, n]) for n in cells}
                for record in measure(p, cells, learn, tries, kept, shown, before):
                    store.append({"key": keys[p.name, record["nfe"]], **record})
                    shown.advance()
    records = [store[key] for key in keys.values()]
    text, found = report(records)
    write_text(Path(out) / "away.md", text)
    whole = {"networks": names, "all": found, "by_calls": by_calls(records)}
    write_text(Path(out) / "away.json", json.dumps(whole, indent=1) + "\n")
    print(text)
    return found


def pose(name: str, loaded: Checkpoint, starts: int | None, seed: int) -> Problem:
    """The problem of a network. Errors are in units of 1: ratios have none."""
    shape, model = loaded.event_shape, loaded.denoiser
    unit = torch.tensor([-1.0, 1.0], dtype=torch.float64, device="cpu")
    data = unit.view(2, *[1] * len(shape)).expand(2, *shape) / math.sqrt(2)
    some = min(STARTS, max(FEW_STARTS, NUMBERS // math.prod(shape)))
    return problems.network(name, name, model, data, starts or some, seed)


def _key(posed: Problem, nfe: int, learn: bool, tries: int) -> str:
    """All that determines a cell: starts and network, the tables of today, the peers' versions."""
    tables = [f"{what}: {_content(make)}" for what, make in _shared(posed, nfe)]
    known = _digest("\n".join(tables))
    libraries = [made_by(name) for name in LIBRARIES]
    seen = pilot.starts_for(posed.start.shape[1:]) if learn and nfe <= LEARNED else False
    asked = [len(posed.start), posed.seed, nfe, seen, tries]
    others = [peer.name for peer in chosen_peers([PUBLISHED]) if _runs(peer, posed, nfe)]
    return json.dumps([posed.name, posed.flow, *asked, known, libraries, *others])


def _runs(peer: Config, posed: Problem, nfe: int) -> bool:
    try:
        plan_of(peer, posed, nfe)
    except Unavailable:
        return False
    return True


def _before(store: Store, key: str) -> Record:
    """The last record from the same starts with the same peers, whatever our tables were."""

    def same(other: str) -> list[Any]:
        parts: list[Any] = json.loads(other)
        return parts[:5] + parts[8:]  # but for learn, tries and the tables

    found = [r for k, r in store.records.items() if same(k) == same(key)]
    return found[-1] if found else {"rows": {}, "absent": {}, "tables": {}}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    for name, (solver, grid) in CANDIDATES.items():
        yield name, partial(_default_of, posed, solver, grid, nfe)
    for setting in settings():
        if not setting.spared or nfe < candidates.SPARE:
            yield _called(setting), partial(_fixed, setting, posed, nfe)


MADE: dict[tuple[object, ...], dict[str, Tableau | ValueError]] = {}
"""Tables of `_ours`, which networks of one process share, by process, t_min and calls."""


def _shared(posed: Problem, nfe: int) -> Iterator[tuple[str, Callable[[], Tableau]]]:
    times = torch.linspace(posed.model.t_min, posed.process.t_max, 17, dtype=torch.float64)
    key = (repr(posed.process), *posed.process.log_snr(times).tolist(), nfe)
    if key not in MADE:
        MADE[key] = {}
        for what, make in _ours(posed, nfe):
            try:
                MADE[key][what] = make()
            except ValueError as error:  # no table of so few calls
                MADE[key][what] = error
    for what, table in MADE[key].items():
        yield what, partial(_given, table)


def _given(table: Tableau | ValueError) -> Tableau:
    if isinstance(table, ValueError):
        raise table
    return table


def _fixed(setting: candidates.Candidate, posed: Problem, nfe: int) -> Tableau:
    return _plain(setting.table(posed.model, nfe))


def _default_of(posed: Problem, solver: Relay, grid: Blend, nfe: int) -> Tableau:
    return _plain(in_steps(solver, posed.model, grid, None, nfe))


def _plain(tableau: object) -> Tableau:
    assert isinstance(tableau, Tableau), "these are plain tables"
    return tableau


def _asked(
    posed: Problem, nfe: int, learn: bool, tries: int, notes: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], Tableau]]]:
    """The tables that the network itself chooses, by one pilot; what it took is added to notes."""

    @cache
    def found() -> pilot.Tuned:
        began = time.process_time()
        made = pilot.tune(posed.model, (1, *posed.start.shape[1:]), nfe, learn=learn, calls=tries)
        notes.update(seconds=_short(time.process_time() - began), choice=made.choice)
        return made

    def chosen() -> Tableau:
        candidate = found().candidate
        assert candidate is not None
        return _plain(candidate.table(posed.model, nfe))

    if tries:
        yield "tuned", chosen
    if learn:
        yield "learned", lambda: _plain(found().table)


def _peers(posed: Problem, nfe: int) -> Iterator[tuple[str, Callable[[], Plan]]]:
    for peer in chosen_peers([*LIBRARIES, PUBLISHED]):
        if not getattr(peer, "stochastic", False):
            yield f"peer {peer.name}", partial(plan_of, peer, posed, nfe)


def measure(
    posed: Problem,
    nfe: Sequence[int],
    learn: bool,
    tries: int,
    kept: Path,
    shown: Bar,
    before: Mapping[int, Record],
) -> Iterator[Record]:
    """A record for every number of calls: {'rows': {what: [each start's error]}, 'tables': {what:
    digest}, 'absent': {what: why}, 'tuning': what the pilot chose, in how many seconds of a
    processor, 'seconds': of a processor that the cell took, its share of the reference's among
    them, ...}.

    kept: the file of the reference.
    before: records from the same starts; the rows of their peers, and of equal tables, count.
    """
    began = time.process_time()
    tables: dict[int, dict[str, Tableau]] = {}
    peers: dict[int, dict[str, Plan]] = {}
    absent: dict[int, dict[str, str]] = {n: {} for n in nfe}
    notes: dict[int, dict[str, Any]] = {n: {} for n in nfe}
    digests: dict[int, dict[str, str]] = {}
    done: dict[int, dict[str, Tensor]] = {}

    def made(n: int, makers: Iterator[tuple[str, Callable[[], Any]]]) -> dict[str, Any]:
        held = {}
        for what, make in makers:
            shown.say(f"{posed.name}, {n} calls: {what}")
            try:
                held[what] = make()
            except (Unavailable, ValueError) as error:  # no table of so few calls, no such peer
                absent[n][what] = str(error)
        return held

    for n in nfe:
        was = before[n]
        old = dict(zip(*starts_of(was), strict=True)) if was["rows"] else {}
        done[n] = {w: off for w, off in old.items() if w.startswith("peer ")}
        absent[n] |= {w: why for w, why in was["absent"].items() if w.startswith("peer ")}
        if not done[n]:
            peers[n] = made(n, _peers(posed, n))
        if not done[n] and not peers[n]:
            whys = "; ".join(sorted(set(absent[n].values())))
            raise InvalidValue(f"no peer can be run at {n} calls on {posed.name}: {whys}")
        asked = _asked(posed, n, learn and n <= LEARNED, tries, notes[n])
        every = made(n, chain(_shared(posed, n), asked))
        digests[n] = {what: _digest(content(table)) for what, table in every.items()}
        held = {d: old[w] for w, d in was.get("tables", {}).items() if w in old}
        done[n] |= {w: held[d] for w, d in digests[n].items() if d in held}
        tables[n] = {w: table for w, table in every.items() if w not in done[n]}
    shown.say(f"{posed.name}: our runs")
    ended = {n: ends(posed, held) for n, held in tables.items()}
    shown.say(f"{posed.name}: reference and peers")
    reference, off = _resolved(posed, tables, ended, peers, done, kept)
    spent = (time.process_time() - began) / len(nfe)  # a network's runs are made together
    for n in nfe:
        yield {
            "network": posed.name,
            "nfe": n,
            "starts": len(posed.start),
            "rows": {what: [_short(v) for v in e.tolist()] for what, e in off[n].items()},
            "tables": digests[n],
            "absent": absent[n],
            "reference_error": _short(reference.error),
            "tuning": notes[n],
            "seconds": _short(spent),
        }


def ends(posed: Problem, tables: Mapping[str, Tableau]) -> dict[str, Tensor]:
    """Where each table takes the problem's starts, in the problem's unit w; equal tables once."""
    process, unique = posed.process, {content(t): t for t in tables.values()}
    x = problems.from_unit(process, posed.start, process.t_max)
    found = together.ends(posed.model, list(unique.values()), x)
    by_content = dict(zip(unique, found, strict=True))
    ended = {}
    for what, table in tables.items():
        x, clean = by_content[content(table)], float(table.grid[-1]) == process.t_clean
        ended[what] = x if clean else problems.to_unit(process, x, float(table.grid[-1]))
    return ended


def _resolved(
    posed: Problem,
    tables: Mapping[int, Mapping[str, Tableau]],
    ended: Mapping[int, Mapping[str, Tensor]],
    peers: Mapping[int, Mapping[str, Plan]],
    done: Mapping[int, Mapping[str, Tensor]],
    kept: Path,
) -> tuple[Reference, dict[int, dict[str, Tensor]]]:
    """A reference fine enough for the least error, or the finest that can be made, and all errors
    against it, those that are `done` among them. Raises RunFailure where none can be made."""
    ours = {
        n: {what: of_table(posed.process, t) for what, t in held.items()}
        for n, held in tables.items()
    }
    every = [p for held in (*ours.values(), *peers.values()) for p in held.values()]
    ratios = {r for plan in every for r in (plan.start, plan.end)} or {posed.r_min}
    found: tuple[Reference, dict[int, dict[str, Tensor]]] | None = None
    for level in range(1 if posed.narrow else FINEST + 1):
        try:
            reference = problems.cached(kept, posed, ratios, level, at_most(MOST, posed.name))
        except RunFailure:
            if found is None:
                raise
            break
        off: dict[int, dict[str, Tensor]] = {}
        for n, held in ours.items():
            off[n] = {w: errors_of(posed, p, reference, ended[n][w]) for w, p in held.items()}
            off[n] |= {w: errors_of(posed, p, reference) for w, p in peers.get(n, {}).items()}
            off[n] |= done[n]
        found = reference, off
        least = min(float(e.mean()) for errs in off.values() for e in errs.values())
        if least >= FINER * reference.error:
            break
    assert found is not None
    return found


def at_most(calls: int, name: str) -> Callable[[], None]:
    """To be called at every evaluation. Raises RunFailure after so many."""
    counter = iter(range(calls))

    def tick() -> None:
        if next(counter, None) is None:
            raise RunFailure(
                f"{calls} evaluations do not solve the flow of {name}: its network is not smooth "
                "in time; is it trained at whole times alone, or told time at another scale?"
            )

    return tick


def errors_of(posed: Problem, plan: Plan, reference: Reference, w: Tensor | None = None) -> Tensor:
    """Each start's distance to the exact flow where the plan ends, there at w where it is known;
    inf where it is not finite."""
    if w is None:
        with torch.no_grad():
            w = plan.run(posed.model, reference.at(plan.start), posed.seed)
    off = errors(Run(posed, w, plan.end, reference))
    return torch.where(off.isfinite(), off, math.inf)


def _short(value: float | Tensor) -> float:
    return float(f"{float(value):.4g}")
