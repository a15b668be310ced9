"""Mean and covariance of a network's data, for --solver and `tune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import MODEL, default, listed, without

KEPT = "nothing was written"


def options(p: argparse.ArgumentParser) -> None:
    from ..models.statistics import KINDS
    from ..solvers.sampling.tuning import statistics

    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("data", nargs="?", help="default: what the network was trained on")
    p.add_argument("--kind", default=default(statistics, "kind"), help=listed(KINDS))
    p.add_argument(
        "--out", type=Path, default=None, help="file or folder; default: beside the model"
    )


def run(args: argparse.Namespace) -> None:
    from ..kernels.files import usable
    from ..solvers.sampling.tuning import statistics

    if args.out is not None:
        usable(args.out if args.out.is_dir() else args.out.parent)
    print(f"statistics: {statistics(**without(args))}")
