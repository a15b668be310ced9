"""Mean and covariance of a network's data, for --solver and `tune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import words
from .common import MODEL, listed, without

KEPT = "nothing was written"
EXAMPLES = """\
  undiffuse statistics model.safetensors
  undiffuse statistics net.py:model images/ --kind cosine --out out"""


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument(
        "data", nargs="?", help="a folder, .npz, ...; default: what the network was trained on"
    )
    p.add_argument(
        "--kind", default=words.STATISTIC, help=f"of the covariance: {listed(words.STATISTICS)}"
    )
    p.add_argument(
        "--out", type=Path, default=None, help="file or folder; default: beside the model"
    )


def run(args: argparse.Namespace) -> None:
    from ..kernels.files import usable
    from ..solvers.sampling.tuning import statistics

    if args.out is not None:
        usable(args.out if args.out.is_dir() else args.out.parent)
    print(f"statistics: {statistics(**without(args))}")
