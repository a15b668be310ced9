"""Frechet distances and their friends: solvers by calls, or samples that are there."""

from __future__ import annotations

import argparse
from typing import Any

from . import words
from .common import (
    MODEL,
    commas,
    common,
    engines,
    listed,
    names,
    needs_one,
    numbers,
    rows_format,
    without,
)
from .sample import _conditions, _told

KEPT = "the runs that are done are in --out, and the same command goes on"
EXAMPLES = """\
  undiffuse fid --solvers relay,dpmpp-2m --nfe 5,10
  undiffuse fid net.py:model --reference images/ --features clean-fid
  undiffuse fid --samples out/sample --reference images/"""


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument(
        "--samples",
        default=None,
        metavar="DATA",
        help="measure these in the place of a model's: what `sample` wrote, or any data set",
    )
    p.add_argument(
        "--reference",
        default=None,
        metavar="FILE",
        help="statistics (.npz of ours, pytorch-fid, clean-fid, EDM), or a data set; default: what "
        "the network was trained on",
    )
    p.add_argument(
        "--features",
        default=None,
        metavar="NAME",
        help=f"{listed(words.EXTRACTORS)}, hf:NAME of transformers, package.module:function or "
        "file.py:function that returns a network's features; default: the components",
    )
    p.add_argument(
        "--solvers",
        type=names,
        default=None,
        metavar="A,B",
        help=f"names (see `undiffuse solvers`), or JSON that `tune` wrote; default: {words.SOLVER}",
    )
    p.add_argument(
        "--nfe",
        type=numbers,
        default=None,
        metavar="5,10,20",
        help=f"network calls; default: {commas(words.FID['nfe'])}",
    )
    p.add_argument("--grid", default=None, help=f"{listed(words.GRIDS)}; default: the solver's own")
    p.add_argument(
        "--n", type=int, default=None, help=f"samples; default: {words.FID['n']}, of --samples all"
    )
    p.add_argument("--repeats", type=int, default=None, help="runs, each of new ids; default: 1")
    p.add_argument(
        "--protocol",
        default=None,
        help=f"{listed(words.FID['protocols'])}: 50,000 samples, three times, "
        "and the least distance",
    )
    p.add_argument(
        "--metrics",
        type=names,
        default=None,
        metavar="A,B",
        help=f"{listed(words.FID['metrics'])}; default: {commas(words.FID['default'])}, "
        "or fid alone where the reference has no features",
    )
    p.add_argument(
        "--keep",
        type=int,
        default=words.FID["keep"],
        help="features of either side that neighbours and kernels are asked about",
    )
    p.add_argument(
        "--batch",
        type=int,
        default=words.FID["batch"],
        help="samples in memory at a time; changes no number",
    )
    _conditions(p)
    rows_format(p, "results")
    engines(p)
    common(p, "out/fid")


def run(args: argparse.Namespace) -> None:
    from ..bench import fid

    needs_one(args, "solvers", "nfe", "metrics")

    def cond(loaded: Any, n: int) -> dict[str, Any] | None:
        return _told(args, loaded, n)

    fid.run(**without(args, "cond", "classes"), cond=cond)
