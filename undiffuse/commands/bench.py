"""Compare solvers with each other and with other libraries: errors, orders, costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import words
from .common import (
    MODEL,
    Help,
    commas,
    invalid,
    listed,
    names,
    needs_one,
    numbers,
    rows_format,
    seeded,
    without,
)

KEPT = (
    "what is done of nfe, away and grids is in --out, and the same command goes on; the others "
    "begin anew"
)
EXAMPLES = """\
  undiffuse bench                                   shipped networks, 2 minutes
  undiffuse bench nfe net.py:model --data images/   a network of yours
  undiffuse bench nfe --all                         every row, as in table.md
  undiffuse bench orders --solvers heun,dpmpp-2m
  undiffuse bench compare out/before out/after      exit code 1: what is worse

`undiffuse bench` alone is `undiffuse bench nfe`.
`undiffuse bench KIND --help` has the options."""
MANY = 10**6
KINDS = {
    "nfe": (0, 1, "the error of every solver against its network calls, peers in the same run"),
    "orders": (0, 0, "the order that every solver declares, and the one that is measured"),
    "adaptive": (0, 0, "steps chosen by each sample, or by the batch"),
    "kernels": (0, 0, "how fast the steps are on this machine"),
    "host": (0, 0, "what the host spends beside the network"),
    "likelihood": (
        0,
        MANY,
        "log-likelihoods and their error bars against exact values, or of networks of yours",
    ),
    "away": (2, MANY, "the default and `tune` over the best peer, on networks of yours"),
    "grids": (2, MANY, "which grid suits a solver that is named without one, on networks of yours"),
    "compare": (2, 2, "what became worse between two results (then the exit code is 1)"),
    "merge": (2, MANY, "join run folders in --out"),
}
"""Of each kind: how many results or models it takes, at least and at most, and what it measures."""


def options(p: argparse.ArgumentParser) -> None:
    kinds = p.add_subparsers(
        dest="what", required=True, metavar="KIND", parser_class=type(p), title="kinds"
    )
    made = {}
    for kind, (_, most, text) in KINDS.items():
        made[kind] = kinds.add_parser(
            kind, help=text, description=f"Measures {text}.", formatter_class=Help
        )
        if most:
            models = kind not in ("compare", "merge")
            made[kind].add_argument(
                "runs",
                nargs="*",
                metavar="MODEL" if models else "RESULT",
                help=MODEL if models else "folder of a run",
            )
        if kind != "compare":
            made[kind].add_argument(
                "--out",
                type=Path,
                default=Path("out/bench"),
                metavar="DIR",
                help="where to write",
            )
    _nfe_options(made["nfe"])
    _against(made["nfe"])
    for kind in ("orders", "grids"):
        made[kind].add_argument("--solvers", type=names, default=None, metavar="A,B")
    for kind in ("adaptive", "likelihood"):
        made[kind].add_argument("--batch", type=int, default=None, help="samples")
    for kind in ("adaptive", "likelihood", "nfe", "kernels"):
        seeded(made[kind])
    for kind in ("adaptive", "likelihood", "nfe", "host"):
        made[kind].add_argument(
            "--quick", action="store_true", help="fewer samples and costs: a smoke test"
        )
    for kind in ("away", "grids"):
        p = made[kind]
        p.add_argument("--nfe", type=numbers, default=None, metavar="5,10,20", help="network calls")
        p.add_argument("--batch", type=int, default=None, help="samples of a network")
        p.add_argument("--seed", type=int, default=0, help="64 bits; same seed, same numbers")
    away = made["away"]
    away.add_argument("--learn", action="store_true", help="learn tables too, of up to ten calls")
    away.add_argument(
        "--choose",
        action="store_true",
        help="only choose the default's constants, on all networks and on all but each",
    )


def _nfe_options(p: argparse.ArgumentParser) -> None:
    """What is measured, and how it is shown."""
    p.add_argument("--checkpoint", default=None, help=MODEL + "; none: no network")
    p.add_argument("--all", action="store_true", help="print every row, as table.md has them")
    p.add_argument("--json", action="store_true", help="print summary.json instead")
    p.add_argument("--fresh", action="store_true", help="measure what --out has already, too")
    p.add_argument(
        "--data",
        default=None,
        help="data that the network never saw, as for `train`; default: what its training held out",
    )
    p.add_argument(
        "--solvers",
        type=names,
        default=None,
        metavar="A,B",
        help="names (see `undiffuse solvers`), package.module:name or file.py:name that "
        "makes a solver of yours, JSON or folders that `tune` or `statistics` wrote; "
        "default: a choice of twelve",
    )
    p.add_argument(
        "--nfe",
        type=numbers,
        default=None,
        metavar="5,10,20",
        help=f"network calls; default: {commas(words.BENCH['nfe'])}",
    )
    p.add_argument(
        "--grid",
        type=names,
        default=None,
        metavar="A,B",
        help=f"{listed(words.GRIDS)}; equidistributed: measured by a pilot run; "
        f"default: {commas(words.BENCH['grids'])}",
    )


def _against(p: argparse.ArgumentParser) -> None:
    """What is run beside, measured of it, and how much of it."""
    p.add_argument(
        "--peers",
        type=names,
        default=None,
        metavar="A,B",
        help="libraries or "
        f"rows of theirs ({listed(words.LIBRARIES)}), .pkl files of EPD, AdaSDE or DyWeight; "
        "'' for none; default: all that are installed",
    )
    p.add_argument(
        "--targets",
        type=names,
        default=None,
        metavar="A,B",
        help=f"laws with exact scores: {listed(words.TARGETS)}; '' for none; default: digits64",
    )
    p.add_argument(
        "--metrics",
        type=names,
        default=None,
        metavar="A,B",
        help=f"{listed(words.MEASURES)}; default: error (to the exact trajectory) of "
        "deterministic solvers, log_density_gap and sw2 of stochastic ones",
    )
    p.add_argument(
        "--features",
        default=None,
        metavar="NAME",
        help="of frechet, kid, precision, recall, density, coverage: "
        f"{listed(words.EXTRACTORS)}, hf:NAME of transformers, package.module:function or "
        "file.py:function that returns a network's features; default: the components",
    )
    p.add_argument(
        "--batch",
        type=int,
        default=None,
        help="samples a cell and seed; "
        f"default: {words.BENCH['batch']}, {words.BENCH['large_batch']} of a network of large "
        "events",
    )
    p.add_argument(
        "--likelihood",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="bits/dim of held-out data; default: only of small events",
    )
    p.add_argument(
        "--seeds",
        type=numbers,
        default=None,
        metavar="0,1,2",
        help="several, pooled into one row each; default: --seed alone",
    )
    p.add_argument(
        "--workers", type=int, default=1, help="processes; changes no number, as torchrun does not"
    )
    p.add_argument("--engine", default=None, help="local, torchrun or ray, which changes no number")
    rows_format(p, "results")


def run(args: argparse.Namespace) -> int | None:
    least, most, _ = KINDS[args.what]
    runs = getattr(args, "runs", [])
    if not least <= len(runs) <= most:
        raise invalid(
            "nfe takes at most one model, away and grids two or more, compare two results, merge "
            f"two or more; got {len(runs)}: {' '.join(runs)}"
        )
    if args.what == "nfe":
        needs_one(args, "nfe", "grid", "metrics", "seeds")
    batch = getattr(args, "batch", None)
    if batch is not None and batch < 1:
        raise invalid(f"--batch must be >= 1; got {batch}")
    if args.what != "compare":
        from ..kernels.files import usable

        usable(args.out)
    return _RUNS[args.what](args)


def _nfe(args: argparse.Namespace) -> None:
    from ..bench.nfe.run import run as measure
    from ..solvers.tables.grids import named

    if args.runs and args.checkpoint is not None:
        raise invalid(f"two models: {args.runs[0]} and --checkpoint {args.checkpoint}")
    for grid in args.grid or ():
        if grid != "equidistributed":
            named(grid)
    args.checkpoint = args.runs[0] if args.runs else args.checkpoint
    show = "json" if args.json else "all" if args.all else "answer"
    measure(**without(args, "runs", "json", "all"), show=show, progress=not args.json)


def _away(args: argparse.Namespace) -> None:
    from ..bench.away import TRIES
    from ..bench.away import run as measure

    if args.choose and args.learn:
        raise invalid("--choose tunes nothing, and --learn needs it: give one of them")
    tries = 0 if args.choose else TRIES
    measure(
        args.runs,
        args.out,
        nfe=args.nfe,
        starts=args.batch,
        learn=args.learn,
        tries=tries,
        seed=args.seed,
    )


def _grids(args: argparse.Namespace) -> None:
    from ..bench.own_grids import STARTS
    from ..bench.own_grids import run as measure

    starts = STARTS if args.batch is None else args.batch
    measure(args.runs, args.out, solvers=args.solvers, nfe=args.nfe, starts=starts, seed=args.seed)


def _orders(args: argparse.Namespace) -> None:
    from ..bench.orders.run import run as measure

    measure(args.out, solvers=args.solvers)


def _adaptive(args: argparse.Namespace) -> None:
    from ..bench.adaptive import run as measure

    measure(args.out, batch=args.batch, seed=args.seed, quick=args.quick)


def _kernels(args: argparse.Namespace) -> None:
    from ..bench.kernels.run import run as measure

    measure(args.out, args.device)


def _host(args: argparse.Namespace) -> None:
    from ..bench.host import run as measure

    measure(args.out, quick=args.quick)


def _likelihood(args: argparse.Namespace) -> None:
    if args.runs:
        from ..bench.likelihood.networks import run as networks

        networks(args.runs, args.out, batch=args.batch, seed=args.seed, device=args.device)
        return
    from ..bench.likelihood.exact import run as measure

    measure(args.out, batch=args.batch, seed=args.seed, device=args.device, quick=args.quick)


def _compare(args: argparse.Namespace) -> int:
    from ..bench.compare import run as compare

    return compare(*args.runs)


def _merge(args: argparse.Namespace) -> None:
    from ..bench.nfe.summary import merge

    merge(args.runs, args.out)


_RUNS = {
    "nfe": _nfe,
    "orders": _orders,
    "adaptive": _adaptive,
    "kernels": _kernels,
    "host": _host,
    "likelihood": _likelihood,
    "away": _away,
    "grids": _grids,
    "compare": _compare,
    "merge": _merge,
}
