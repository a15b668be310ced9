"""Find, or learn, the table that errs least on a network at so many calls."""

from __future__ import annotations

import argparse

from . import words
from .common import MODEL, common, listed, needs_one, numbers, without

KEPT = "the tables that are done are in --out, and the same command goes on from there"
EXAMPLES = """\
  undiffuse tune --nfe 8
  undiffuse tune net.py:model --nfe 5,8,10 --learn --out out/tune
  undiffuse sample net.py:model --solver out/tune/tuned-8.json"""


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument(
        "--target",
        default=None,
        help=f"an exact target instead of a network: {listed(words.TARGETS)}",
    )
    p.add_argument(
        "--nfe",
        type=numbers,
        default=list(words.TUNE["nfe"]),
        metavar="5,8",
        help="network calls",
    )
    p.add_argument(
        "--learn", action="store_true", help="learn the numbers of the best table found, too"
    )
    p.add_argument(
        "--final",
        default=None,
        choices=["t_min", "denoise"],
        help="how the last step ends; default: as errs least",
    )
    p.add_argument(
        "--data",
        default=None,
        help="data whose mean and covariance solvers may use; default: the network's own",
    )
    for name, text in (
        ("starts", "trajectories that --learn learns from; default: 96 to 384, by an event's size"),
        ("iterations", "of --learn"),
        ("calls", "of a batch of eight that trying candidates may take"),
    ):
        p.add_argument(f"--{name}", type=int, default=words.TUNE[name], help=text)
    p.add_argument(
        "--workers", type=int, default=1, help="processes, each for another number of calls"
    )
    p.add_argument("--engine", default=None, help="local, torchrun or ray, which changes no number")
    common(p, "out/tune")


def run(args: argparse.Namespace) -> None:
    from ..kernels.files import usable
    from ..solvers.sampling.tuning import tune

    needs_one(args, "nfe")
    usable(args.out, files=[f"tuned-{n}.json" for n in args.nfe])
    tune(**without(args))
