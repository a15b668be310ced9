"""Bits/dim of data under a network, with error bars; a run that was killed goes on."""

from __future__ import annotations

import argparse

from .common import MODEL, common, dtype, engines, rows_format, without

KEPT = "the items that are done are in --out, and the same command goes on"
EXAMPLES = """\
  undiffuse likelihood --limit 32
  undiffuse likelihood model.safetensors images/ --levels 17
  undiffuse likelihood net.py:model images/ --target-error 0.01 --out out/mine"""


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument(
        "data",
        nargs="?",
        help="digits, .npz, .npy, idx (.gz), tensor file, tar of webdataset, .parquet, .arrow, "
        "picture, or folder of any of them, read a batch at a time; default: what the network's "
        "training left out",
    )
    p.add_argument("--limit", type=int, default=None, help="only the first so many items")
    p.add_argument(
        "--method",
        default="ode",
        choices=["ode", "elbo", "both"],
        help="log p of the probability flow, the evidence lower bound, or both compared",
    )
    p.add_argument(
        "--dequantize",
        default=None,
        help="uniform, none, or variational: "
        "package.module:function or file.py:function that returns a hook(centres, eps) "
        "-> (u, log_q); default: uniform for data with levels",
    )
    p.add_argument(
        "--convention",
        default="ends",
        choices=["ends", "bins"],
        help="where levels "
        "lie: the first and last on the range's ends, as DDPM's, or, as score_sde's and "
        "VDM's, in the middle of bins that fill it (offset 7 for bytes in [-1, "
        "1])",
    )
    p.add_argument(
        "--levels",
        type=int,
        default=None,
        help="how many levels the data have, where their file could hold more: 17 of the digits as "
        "PNG; default: as many as it can, 256 of bytes",
    )
    p.add_argument("--repeats", type=int, default=1, help="draws of noise and probes an item")
    p.add_argument(
        "--target-error",
        type=float,
        default=None,
        metavar="BITS",
        help="standard error of an item to reach, bits/dim, by probes or draws; what "
        "the noise of the dequantisation adds, which --repeats shows, only repeats "
        "lower",
    )
    p.add_argument("--probes", type=int, default=None, help="of ode: Hutchinson's, see log_prob")
    p.add_argument("--rtol", type=float, default=None, help="of ode: tolerance of the path")
    p.add_argument("--atol", type=float, default=None, help="of ode: absolute tolerance of it")
    p.add_argument(
        "--time",
        default=None,
        choices=["discrete", "continuous", "i-mmse"],
        help="of elbo: the chain, its limit, or that of a density; default: the "
        "network's, or continuous with --method both, since a chain is another model "
        "than the flow",
    )
    p.add_argument("--steps", type=int, default=None, help="of elbo: calls, or steps of the chain")
    p.add_argument(
        "--calls",
        type=int,
        default=None,
        help="of elbo on a chain: draw so many of its terms; default: all are taken",
    )
    p.add_argument(
        "--decoder",
        default=None,
        choices=["gaussian", "vdm"],
        help="of elbo with "
        "--dequantize none: DDPM's discretised Gaussian (default), or VDM's "
        "softmax",
    )
    p.add_argument(
        "--conditional",
        action="store_true",
        help="log p(x | label), with the data's own labels; default: no label is handed over",
    )
    p.add_argument("--batch", type=int, default=64, help="items at a time")
    engines(p)
    rows_format(p, "items")
    dtype(p, "float32")
    common(p, "out/likelihood")


def run(args: argparse.Namespace) -> None:
    from ..kernels.files import usable
    from ..solvers.likelihood import dataset

    usable(args.out, files=["items.jsonl", "summary.json"])

    if args.method == "both":
        dataset.compare(**without(args, "method"))
    else:
        dataset.run(**without(args))
