"""List the solvers, or print one as a table."""

from __future__ import annotations

import argparse

from ..kernels.errors import InvalidValue
from .common import listed

KEPT = "nothing was written"
STEPS = 10


def options(p: argparse.ArgumentParser) -> None:
    from ..models import PROCESSES
    from ..solvers.sampling.sampler import GRID
    from ..solvers.tables.grids import GRIDS

    p.add_argument("name", nargs="?", help="print this solver's tableau")
    p.add_argument("--steps", type=int, default=5, help="steps of the printed tableau")
    p.add_argument("--process", default="vp", help=listed(PROCESSES))
    p.add_argument(
        "--grid", default=GRID, help=f"of the printed tableau: {listed(GRIDS)}"
    )


def run(args: argparse.Namespace) -> None:
    from ..models.processes.registry import make
    from ..solvers import get, names, times

    process = make(args.process)
    if args.name:
        print(get(args.name).tableau(process, times(args.grid, process, args.steps)))
        return
    print(f"{'name':24} {'order':>5} {'weak':>5} {f'calls for {STEPS} steps':>19}  what it is")
    for name in names():
        solver = get(name)
        try:
            table = solver.tableau(process, times("log_snr", process, STEPS))
        except InvalidValue as error:  # one that is singular there; the others are not
            print(f"{name:24} {'-':>5} {'-':>5} {'-':>19}  not on this process: {error}")
            continue
        law = f"{table.weak_order:g}" if table.stochastic else "-"
        print(f"{name:24} {table.order:5g} {law:>5} {table.nfe:19d}  {solver}")
