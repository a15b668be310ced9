"""Fit a table to a network: fewer calls for the same error."""

from __future__ import annotations

import argparse

from .common import MODEL, common, default, listed, names, needs_one, numbers, without

KEPT = "the tables that are done are in --out: ask for the other --nfe"


def options(p: argparse.ArgumentParser) -> None:
    from ..models.named_targets import TARGETS
    from ..models.statistics import KINDS
    from ..solvers.sampling import tune as tuning

    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument(
        "--target", default=None, help=f"an exact target instead of a network: {listed(TARGETS)}"
    )
    p.add_argument(
        "--nfe",
        type=numbers,
        default=list(default(tuning.tune, "nfe")),
        metavar="5,8",
        help="network calls",
    )
    p.add_argument(
        "--statistics",
        type=names,
        default=None,
        metavar="A,B",
        help=f"of the data, that may be used: none, {listed(KINDS)}, or files of them; "
        "default: all, by what errs least",
    )
    p.add_argument("--data", default=None, help="data for them; default: the network's own")
    p.add_argument(
        "--starts",
        type=int,
        default=None,
        help=f"trajectories, a quarter held out; default: {tuning.STARTS}, or "
        f"{tuning.LARGE_STARTS} of large events",
    )
    p.add_argument(
        "--iterations", type=int, default=default(tuning.tune, "iterations"), help="optimiser steps"
    )
    p.add_argument("--batch", type=int, default=None, help="trajectories an optimiser step")
    common(p, "out/tune")


def run(args: argparse.Namespace) -> None:
    from ..kernels.files import usable
    from ..solvers.sampling.tune import tune

    needs_one(args, "nfe", "statistics")
    usable(args.out, files=[f"learned-{n}.json" for n in args.nfe])
    tune(**without(args))
