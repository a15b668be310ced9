"""Which grid suits a solver that is named without one: every solver on every grid, on networks.

Errors are distances to each network's own fine solution over the least of all rows at as many
calls, at most `CAP`. A solver's grid is the one of least geometric mean on the *other* networks;
what it does on the network left out is told beside it. `Solver.own_grid` is set by this table where
another grid than the default's is better by `CLEAR` on networks left out.

Written under `out`: own-grids.jsonl, a line a network, appended (a run that was stopped goes on),
own-grids.md; and the references.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..kernels.errors import InvalidValue
from ..kernels.files import write_text
from ..models.checkpoint import Checkpoint, load
from ..models.progress import Bar, bar
from ..solvers.families.registry import get, names
from ..solvers.sampling.budget import in_steps, largest
from ..solvers.sampling.sampler import GRID
from ..solvers.sampling.tuning import network_name
from ..solvers.store import Record, Store
from ..solvers.tables.grids import named
from ..solvers.tables.tableau import Tableau
from .away import MOST, at_most, ends, errors_of, pose
from .problems import problem as problems
from .problems.plans import of_table
from .problems.problem import Problem

GRIDS = ("blend", "log_snr", "karras", "uniform", "quadratic", "cosine", "laplace-wide", "shifted")
NFE = (5, 10, 20)
STARTS = 6
CAP = 100.0
"""Ratio to the least beyond which a row has failed, and by how much is no matter."""
CLEAR = 0.9


def usual() -> list[str]:
    """Registered solvers without noise; those that bring a start of their own are left out."""
    return [
        name
        for name in names(aliases=False)
        if not get(name).stochastic and name != "relay" and not name.endswith("-afs")
    ]


def run(
    networks: Sequence[str | Path],
    out: str | Path,
    *,
    solvers: Sequence[str] | None = None,
    nfe: Sequence[int] | None = None,
    starts: int = STARTS,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Measure, print and write; returns solver -> grid -> the geometric mean on all networks.

    networks: what `load` takes; two at least, to leave one out.
    solvers: names; None: `usual()`.
    nfe: numbers of network calls, each >= 2; None: `NFE`.
    starts: samples of a network, >= 2.
    seed: of the starts. progress: a bar on standard error.

    Raises ValueError for what does not fit and FileNotFoundError for a network that is not there,
    before any work; RunFailure where a network's own flow cannot be solved.
    """
    calls = NFE if nfe is None else tuple(dict.fromkeys(nfe))
    if not calls or any(n != int(n) or n < 2 for n in calls):
        raise InvalidValue(f"nfe must be whole numbers of network calls >= 2; got {nfe}")
    if starts < 2:
        raise InvalidValue(f"starts must be at least 2; got {starts}")
    known = usual() if solvers is None else list(dict.fromkeys(solvers))
    if any(get(name).stochastic for name in known):
        raise InvalidValue("solvers must draw no noise: errors are those of trajectories")
    called = [network_name(str(spec)) for spec in networks]
    if len(called) < 2 or len(set(called)) < len(called):
        raise InvalidValue(f"networks must be two at least, of different names; got {called}")
    loaded: dict[str, Checkpoint] = dict(zip(called, map(load, networks), strict=True))
    store = Store(Path(out), "own-grids.jsonl", needs=("network", "rows"))
    records = []
    with bar(progress) as shown:
        for name, checkpoint in loaded.items():
            posed = pose(name, checkpoint, starts, seed)
            key = json.dumps([name, posed.flow, starts, seed, calls, known])
            if key not in store:
                rows = measure(posed, known, calls, Path(out) / f"grids-{name}.pt", shown)
                store.append({"key": key, "network": name, "rows": rows})
            records.append(store[key])
    text, found = report(records)
    write_text(Path(out) / "own-grids.md", text)
    print(text)
    return found


Made = dict[tuple[object, ...], dict[str, Tableau]]
"""Tables by 'solver|grid', which networks of one process share, by process, t_min and calls."""
_MADE: Made = {}


def _tables(posed: Problem, solvers: Sequence[str], calls: int) -> dict[str, Tableau]:
    times = torch.linspace(posed.model.t_min, posed.process.t_max, 17, dtype=torch.float64)
    key = (repr(posed.process), *posed.process.log_snr(times).tolist(), calls, *solvers)
    if key not in _MADE:
        _MADE[key] = dict(_made(posed, solvers, calls))
    return _MADE[key]


def _made(posed: Problem, solvers: Sequence[str], calls: int) -> Iterator[tuple[str, Tableau]]:
    for solver in solvers:
        for grid in GRIDS:
            try:
                table = in_steps(get(solver), posed.model, named(grid), None, calls)
                if table.nfe != calls:  # not one call a step
                    table = largest(get(solver), posed.model, named(grid), None, calls)
            except (ValueError, NotImplementedError):  # no table of so few calls, or on this grid
                continue
            assert isinstance(table, Tableau), "registered solvers fill plain tables"
            yield f"{solver}|{grid}", table


def measure(
    posed: Problem, solvers: Sequence[str], nfe: Sequence[int], kept: Path, shown: Bar
) -> dict[str, float]:
    """'solver|grid|calls' -> the mean error over the starts; inf where it is not finite."""
    rows: dict[str, float] = {}
    shown.say(f"{posed.name}: reference")
    ratios = {posed.r_max, posed.r_min, 0.0}
    reference = problems.cached(kept, posed, ratios, 0, at_most(MOST, posed.name))
    for n in nfe:
        shown.say(f"{posed.name}: {n} calls")
        by_cost: dict[int, dict[str, Tableau]] = {}
        for what, table in _tables(posed, solvers, n).items():
            by_cost.setdefault(table.nfe, {})[what] = table
        for tables in by_cost.values():
            for what, w in ends(posed, tables).items():
                plan = of_table(posed.process, tables[what])
                off = errors_of(posed, plan, reference, w)
                rows[f"{what}|{n}"] = float(f"{float(off.mean()):.4g}")
    return rows


# --- what it says -------------------------------------------------------------------------------

Logs = dict[str, dict[str, dict[str, float]]]
"""solver -> grid -> network -> the mean log ratio over the numbers of calls."""


def logs(records: Sequence[Record]) -> Logs:
    """Over the least row of each network and number of calls; only grids that ran everywhere."""
    out: Logs = {}
    for r in records:
        held = {k: math.inf if v is None else float(v) for k, v in r["rows"].items()}
        least: dict[str, float] = {}
        for key, value in held.items():
            n = key.rpartition("|")[2]
            least[n] = min(value, least.get(n, math.inf))
        sums: dict[tuple[str, str], list[float]] = {}
        for key, value in held.items():
            solver, grid, n = key.split("|")
            ratio = min(CAP, value / least[n])
            sums.setdefault((solver, grid), []).append(math.log(max(ratio, 1.0)))
        for (solver, grid), values in sums.items():
            by_grid = out.setdefault(solver, {})
            by_grid.setdefault(grid, {})[r["network"]] = sum(values) / len(values)
    return {
        solver: {g: held for g, held in by_grid.items() if len(held) == len(records)}
        for solver, by_grid in out.items()
    }


def left_out(by_grid: dict[str, dict[str, float]]) -> tuple[dict[str, str], float]:
    """Of one solver the grid that is chosen without each network, and the geometric mean of what
    these do on the networks that they were chosen without."""
    networks = list(next(iter(by_grid.values())))
    chosen = {
        x: min(by_grid, key=lambda g: sum(v for y, v in by_grid[g].items() if y != x))
        for x in networks
    }
    return chosen, math.exp(sum(by_grid[g][x] for x, g in chosen.items()) / len(networks))


def report(records: Sequence[Record]) -> tuple[str, dict[str, dict[str, float]]]:
    """The table in Markdown, and solver -> grid -> the geometric mean on all networks."""
    head = ["solver", *GRIDS, "chosen without each network", "on it", "its own"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    found: dict[str, dict[str, float]] = {}
    for solver, by_grid in sorted(logs(records).items()):
        means = {g: math.exp(sum(held.values()) / len(held)) for g, held in by_grid.items()}
        found[solver] = means
        chosen, value = left_out(by_grid)
        picked = {g: list(chosen.values()).count(g) for g in means if g in chosen.values()}
        told = ", ".join(f"{g} {n}" for g, n in sorted(picked.items(), key=lambda p: -p[1]))
        cells = [f"{means[g]:.2f}" if g in means else "" for g in GRIDS]
        line = [solver, *cells, told, f"{value:.2f}", get(solver).own_grid]
        lines.append(f"| {' | '.join(line)} |")
    count = len(records)
    return f"{HEAD.format(count=count, default=GRID)}\n" + "\n".join(lines) + "\n", found


HEAD = """\
Errors of solvers on grids over the least of all rows at as many calls, the geometric mean over
{count} networks; a row that fails counts as 100. *Chosen without each network*: the grid of least
mean on the others, and for how many networks it is that; *on it*: the mean of what these do on the
networks that they were chosen without. *Its own*: what a run takes that names no grid. That is
{default} unless another is better by a tenth on networks left out.
"""
