"""Which of our solvers run: those that are named, or a choice among the registered ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...kernels.errors import InvalidValue
from ...models import Process
from ...solvers import Solver, get, names
from ...solvers.tables import grids as grid_rules
from ..problems.plans import MEASURED, Config, Ours, Tuned, content, solver_of

COMMON = (
    "relay", "ddim", "heun", "dpmpp-2m", "dpmpp-3m-compat", "unipc-3", "unipc-3-noise", "vab-4",
    "ipndm-3", "ipndm-2-afs", "ddpm", "dpmpp-2m-sde",
)  # fmt: skip
"""Looked at first: the default, then what people type."""


def default_solvers(process: Process, limit: int = 12) -> list[str]:
    """The common ones, then of each other family its member of the highest declared order.

    Families are classes of solvers; deterministic and stochastic members count apart. Left out of
    them: stages (at few calls, what follows from one call a step is ahead), tables that the process
    does not have, and those that another name has already ('euler-ancestral' is 'ddpm').
    """
    t = grid_rules.times("log_snr", process, 8, "t_min")
    tables: dict[str, str] = {}
    families: dict[tuple[str, bool], list[tuple[float, str]]] = {}
    for name in [n for n in COMMON if n in names()] + [n for n in names() if n not in COMMON]:
        solver = get(name)
        try:
            tableau = solver.tableau(process, t)
        except (ValueError, NotImplementedError):
            continue
        if tables.setdefault(content(tableau), name) != name:
            continue
        if tableau.nfe > len(t) - 1 and name not in COMMON:
            continue
        order = solver.weak_order if tableau.stochastic else solver.order
        family = families.setdefault((type(solver).__name__, tableau.stochastic), [])
        family.append((-float(order or 0.0), name))
    chosen = [n for n in COMMON if n in tables.values()]
    for members in families.values():
        if not any(name in chosen for _, name in members):
            chosen.append(min(members)[1])
    return chosen[:limit]


def ours(
    solvers: Sequence[str | Solver], grids: Sequence[str], final: str = "t_min"
) -> list[Config]:
    """Every solver on every grid, and every file or folder of tables among them on its own.

    solvers: by name, file.py:name (see `solver_of`), or themselves. Raises ValueError, naming the
    nearest, for unknown names, TypeError for what is no solver.
    """
    files = [s for s in solvers if isinstance(s, str) and _is_table(s)]
    made: list[tuple[str, Solver | None]] = []
    for s in solvers:
        if isinstance(s, Solver):
            made.append((repr(s), s))
        elif s not in files:
            solver_of(s)
            made.append((s, None))
    for name in grids:
        if name != MEASURED:
            grid_rules.named(name)
    if final not in grid_rules.FINALS:
        known = ", ".join(map(repr, grid_rules.FINALS))
        raise InvalidValue(f"final must be one of {known}; got {final!r}")
    tables = [Ours(name, g, final, given=solver) for name, solver in made for g in grids]
    return [*tables, *map(Tuned.of, files)]


def _is_table(name: str) -> bool:
    return name.endswith(".json") or (Path(name).is_dir() and name not in names())
