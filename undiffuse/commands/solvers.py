"""List the solvers with what they are good for, or print one as a table of numbers."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from . import words
from .common import columns, listed

KEPT = "nothing was written"
EXAMPLES = """\
  undiffuse solvers                       all of them
  undiffuse solvers dpmpp-2m --steps 6    what it is, and its table on a grid
  undiffuse solvers "DPM++ 2M Karras"     by the name of another program
  undiffuse solvers --json"""
STEPS = 10
LEGEND = (
    "order: of the trajectory, by how much the error falls with the step; law: that of the "
    "samples' law where the solver draws noise. calls: of the network in ten steps. * is the "
    "default."
)


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", help="print what this solver is, and its tableau")
    p.add_argument("--steps", type=int, default=5, help="steps of the printed tableau")
    p.add_argument("--process", default="vp", help=listed(words.PROCESSES))
    p.add_argument(
        "--grid",
        default=words.GRID,
        help=f"of the printed tableau: {listed(words.GRIDS)}",
    )
    p.add_argument("--json", action="store_true", help="the same as JSON")


def run(args: argparse.Namespace) -> None:
    from ..models.processes.registry import make
    from ..solvers import times
    from ..solvers.families.registry import on_its_grid

    process = make(args.process)
    if args.name:
        solver, grid = on_its_grid(args.name)
        table = solver.tableau(process, times(grid or args.grid, process, args.steps))
        if args.json:
            print(table.to_json())
            return
        print(f"{solver}\n\n{textwrap.dedent('    ' + (type(solver).__doc__ or ''))}\n{table}")
        return
    rows = [described(name, process) for name in _ordered()]
    print(json.dumps(rows, indent=1) if args.json else drawn(rows, columns()))


def _ordered() -> list[str]:
    """The default, then the others by their name; those whose table is another's are its aliases,
    but all can be found."""
    from ..solvers import names

    return [words.SOLVER, *(name for name in names() if name != words.SOLVER)]


def described(name: str, process: Any) -> dict[str, Any]:
    """What there is to say of a solver: name, also, order, law, calls, kind, good, paper."""
    from ..kernels.errors import InvalidValue
    from ..solvers import get, times
    from ..solvers.catalogue import about, names_of
    from ..solvers.families.registry import ALIASES

    solver, (good, paper) = get(name), about(name)
    same = [a for a, own in ALIASES.items() if own == name]
    same += [ALIASES[name]] if name in ALIASES else []
    row: dict[str, Any] = {"name": name, "also": [*same, *names_of(name)]}
    try:
        table = solver.tableau(process, times("log_snr", process, STEPS))
    except InvalidValue as error:  # one that is singular there; the others are not
        return {**row, "order": None, "law": None, "calls": None, "kind": None,
                "good": f"not on this process: {error}", "paper": paper}  # fmt: skip
    return {
        **row,
        "order": table.order,
        "law": table.weak_order if table.stochastic else None,
        "calls": table.nfe,
        "kind": "SDE" if table.stochastic else "ODE",
        "good": good,
        "paper": paper,
    }


def drawn(rows: list[dict[str, Any]], width: int) -> str:
    """One line a solver, with what goes on in lines below it where the width does not do."""
    widest = max(len(r["name"]) for r in rows) + 1
    head = f"{'name':{widest}} order law calls kind  "
    indent = " " * len(head)
    lines = [f"{head}good for (paper); also known as"]
    for r in rows:
        numbers = [
            f"{'-' if r[k] is None else format(r[k], 'g'):>{w}}"
            for k, w in (("order", 5), ("law", 3), ("calls", 5))
        ]
        name = r["name"] + "*" * (r["name"] == words.SOLVER)
        front = f"{name:{widest}} {' '.join(numbers)} {r['kind'] or '-':4}  "
        also = f"; also {', '.join(r['also'])}" if r["also"] else ""
        paper = f" ({r['paper']})" if r["paper"] else ""
        text = f"{r['good']}{paper}{also}"
        lines += textwrap.wrap(
            front + text,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join([*lines, "", *textwrap.wrap(LEGEND, width)])
