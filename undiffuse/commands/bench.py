"""NFE against quality, orders, likelihood and kernels, peers in the same run."""

from __future__ import annotations

import argparse

from ..kernels.errors import InvalidValue
from .common import MODEL, commas, common, listed, names, needs_one, numbers, rows_format, without

KEPT = (
    "what is done of NFE against quality is in --out, and the same command goes on "
    "(orders, adaptive, kernels, host and likelihood begin anew)"
)
MANY = 10**6
KINDS = {
    "nfe": (0, 1),
    "orders": (0, 0),
    "adaptive": (0, 0),
    "kernels": (0, 0),
    "host": (0, 0),
    "likelihood": (0, 0),
    "away": (2, MANY),
    "compare": (2, 2),
    "merge": (2, MANY),
}
"""What is measured, and how many results or models it takes: at least and at most."""


def options(p: argparse.ArgumentParser) -> None:
    from ..bench.nfe import run as nfe
    from ..solvers.tables.grids import GRIDS

    p.add_argument(
        "what",
        nargs="?",
        default="nfe",
        choices=list(KINDS),
        help="nfe: network calls against quality; orders: declared and measured; "
        "adaptive: steps chosen by each sample or by the batch; kernels; "
        "host: what the host spends beside the network; likelihood: "
        "against exact values; away: the default, what `ud.tune` finds and the fixed setting "
        "chosen on the other networks, over the best peer; compare: what became worse "
        "between two results (then the "
        "exit code is 1); merge: join run folders in --out",
    )
    p.add_argument(
        "runs",
        nargs="*",
        metavar="MODEL or RESULT",
        help="of nfe: the network, as "
        "--checkpoint; of away: two networks or more; of compare: two run folders or files of "
        "pytest-benchmark; of "
        "merge: two run folders or more",
    )
    p.add_argument("--checkpoint", default=None, help=MODEL + "; none: no network")
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
        help=f"network calls; default: {commas(nfe.NFE)}",
    )
    p.add_argument(
        "--grid",
        type=names,
        default=None,
        metavar="A,B",
        help=f"{listed(GRIDS)}; equidistributed: measured by a pilot run; "
        f"default: {commas(nfe.GRIDS)}",
    )
    _against(p)
    common(p, "out/bench")


def _against(p: argparse.ArgumentParser) -> None:
    """What is run beside, measured of it, and how much of it."""
    from ..bench.measures.quality import MEASURES
    from ..bench.nfe import run as nfe
    from ..bench.peers.samplers import PEERS
    from ..models.named_targets import TARGETS

    p.add_argument(
        "--peers",
        type=names,
        default=None,
        metavar="A,B",
        help="libraries or "
        f"rows of theirs ({listed(sorted({q.library for q in PEERS}))}); '' for none; "
        "default: all that are installed",
    )
    p.add_argument(
        "--targets",
        type=names,
        default=None,
        metavar="A,B",
        help=f"laws with exact scores: {listed(TARGETS)}; '' for none; default: digits64",
    )
    p.add_argument(
        "--metrics",
        type=names,
        default=None,
        metavar="A,B",
        help=f"{listed(MEASURES)}; default: error (to the exact trajectory) of "
        "deterministic solvers, log_density_gap and sw2 of stochastic ones",
    )
    p.add_argument(
        "--features",
        default=None,
        metavar="NAME",
        help="of frechet, kid, "
        "precision, recall: package.module:function or file.py:function that returns a "
        "network's features; default: the components",
    )
    p.add_argument(
        "--batch",
        type=int,
        default=None,
        help="samples a cell and seed; "
        f"default: {nfe.BATCH}, {nfe.LARGE_BATCH} of a network of large "
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
    p.add_argument(
        "--engine", default=None, help="of nfe: local, torchrun or ray, which changes no number"
    )
    p.add_argument("--learn", action="store_true", help="of away: learn a table for each cell too")
    p.add_argument(
        "--choose",
        action="store_true",
        help="of away: only choose the default's constants, on all networks and on all but each",
    )
    rows_format(p, "of nfe: results")
    p.add_argument("--quick", action="store_true", help="fewer samples and costs: a smoke test")


def run(args: argparse.Namespace) -> int | None:
    least, most = KINDS[args.what]
    if not least <= len(args.runs) <= most:
        raise InvalidValue(
            "nfe takes at most one model, away two or more, compare two results, merge two or "
            "more, the others "
            f"nothing; got {len(args.runs)}: {' '.join(args.runs)}"
        )
    needs_one(args, "nfe", "grid", "metrics", "seeds")
    if args.batch is not None and args.batch < 1:
        raise InvalidValue(f"--batch must be >= 1; got {args.batch}")
    if args.format != "jsonl" and args.what != "nfe":
        raise InvalidValue(f"--format {args.format} is of nfe; {args.what} writes no such rows")
    if args.what != "compare":
        from ..kernels.files import usable

        usable(args.out)
    return _RUNS[args.what](args)


def _nfe(args: argparse.Namespace) -> None:
    from ..bench.nfe.run import run as measure
    from ..solvers.tables.grids import named

    if args.runs and args.checkpoint is not None:
        raise InvalidValue(f"two models: {args.runs[0]} and --checkpoint {args.checkpoint}")
    for grid in args.grid or ():
        if grid != "equidistributed":
            named(grid)
    args.checkpoint = args.runs[0] if args.runs else args.checkpoint
    measure(**without(args, "what", "runs", "learn", "choose"))


def _away(args: argparse.Namespace) -> None:
    from ..bench.away import TRIES
    from ..bench.away import run as measure

    if args.choose and args.learn:
        raise InvalidValue("--choose tunes nothing, and --learn needs it: give one of them")
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
    "compare": _compare,
    "merge": _merge,
}
