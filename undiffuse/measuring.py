"""Commands that measure: likelihood, bench, tune, statistics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .kernels.errors import InvalidValue
from .options import MODEL, command, common, dtype, names, numbers, without


def add(commands: Any) -> None:
    """Declare them."""
    _likelihood(commands)
    _bench(commands)
    _tune(commands)
    _statistics(commands)


# --- likelihood -------------------------------------------------------------------------------


def _likelihood(commands: Any) -> None:
    p = command(commands, "likelihood", _run_likelihood,
                 "Bits/dim of data under a network, with error bars; a run that was killed goes on.",
                 "the items that are done are in --out, and the same command goes on")  # fmt: skip
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("data", nargs="?", help="digits, .npz, .npy, idx (.gz), tensor file, picture or "
                   "folder of them, read a batch at a time; default: what the network's training left "
                   "out")  # fmt: skip
    p.add_argument("--limit", type=int, default=None, help="only the first so many items")
    p.add_argument("--method", default="ode", choices=["ode", "elbo", "both"],
                   help="log p of the probability flow, the evidence lower bound, or both compared")  # fmt: skip
    p.add_argument("--dequantize", default=None, help="uniform, none, or variational: "
                   "package.module:function or file.py:function that returns a hook(centres, eps) "
                   "-> (u, log_q); default: uniform for data with levels")  # fmt: skip
    p.add_argument("--convention", default="ends", choices=["ends", "bins"], help="where levels lie: "
                   "the first and last on the range's ends, as DDPM's, or, as score_sde's and VDM's, "
                   "in the middle of bins that fill it (offset 7 for bytes in [-1, 1])")  # fmt: skip
    p.add_argument("--repeats", type=int, default=1, help="draws of noise and probes an item")
    p.add_argument("--target-error", type=float, default=None, metavar="BITS",
                   help="standard error of an item to reach, bits/dim, by probes or draws; what the noise of "
                   "the dequantisation adds, which --repeats shows, only repeats lower")  # fmt: skip
    p.add_argument("--probes", type=int, default=None, help="of ode: Hutchinson's, see log_prob")
    p.add_argument("--rtol", type=float, default=None, help="of ode: tolerance of the path")
    p.add_argument("--atol", type=float, default=None, help="of ode: absolute tolerance of it")
    p.add_argument("--time", default=None, choices=["discrete", "continuous", "i-mmse"],
                   help="of elbo: the chain, its limit, or that of a density; default: the network's, or "
                   "continuous with --method both, since a chain is another model than the flow")  # fmt: skip
    p.add_argument("--steps", type=int, default=None, help="of elbo: calls, or steps of the chain")
    p.add_argument("--calls", type=int, default=None,
                   help="of elbo on a chain: draw so many of its terms; default: all are taken")  # fmt: skip
    p.add_argument("--decoder", default=None, choices=["gaussian", "vdm"], help="of elbo with "
                   "--dequantize none: DDPM's discretised Gaussian (default), or VDM's softmax")  # fmt: skip
    p.add_argument("--conditional", action="store_true",
                   help="log p(x | label), with the data's own labels; default: no label is handed over")  # fmt: skip
    p.add_argument("--batch", type=int, default=64, help="items at a time")
    dtype(p, "float32")
    common(p, "out/likelihood")


def _run_likelihood(args: argparse.Namespace) -> None:
    from .solvers.likelihood.dataset import compare, run

    if args.method == "both":
        compare(**without(args, "method"))
    else:
        run(**without(args))


# --- bench ------------------------------------------------------------------------------------


def _bench(commands: Any) -> None:
    p = command(commands, "bench", _run_bench,
                 "NFE against quality, orders, likelihood and kernels, peers in the same run.",
                 "what is done of NFE against quality is in --out, and the same command goes on "
                 "(orders, adaptive, kernels and likelihood begin anew)")  # fmt: skip
    p.add_argument("what", nargs="?", default="nfe",
                   choices=["nfe", "orders", "adaptive", "kernels", "likelihood", "compare",
                            "merge"],
                   help="nfe: network calls against quality; orders: declared and measured; "
                   "adaptive: steps chosen by each sample or by the batch; kernels; likelihood: "
                   "against exact values; compare: what "
                   "became worse between two results (then the exit code is 1); merge: join run "
                   "folders in --out")  # fmt: skip
    p.add_argument("runs", nargs="*", metavar="MODEL or RESULT", help="of nfe: the network, as "
                   "--checkpoint; of compare: two run folders or files of pytest-benchmark; of merge: "
                   "two run folders or more")  # fmt: skip
    p.add_argument("--checkpoint", default=None, help=MODEL + "; none: no network")
    p.add_argument("--data", default=None, help="data that the network never saw, as for `train`; "
                   "default: what its training held out")  # fmt: skip
    p.add_argument("--solvers", type=names, default=None, metavar="A,B",
                   help="names (see `undiffuse solvers`), package.module:name or file.py:name that "
                   "makes a solver of yours, JSON or folders that `tune` or `statistics` wrote; "
                   "default: a choice of twelve")  # fmt: skip
    p.add_argument("--nfe", type=numbers, default=None, metavar="5,10,20", help="network calls; "
                   "default: 5,8,10,15,20,30")  # fmt: skip
    p.add_argument("--grid", type=names, default=None, metavar="A,B",
                   help="uniform, log_snr, karras, laplace, quadratic, trailing, ...; equidistributed: "
                   "measured by a pilot run; default: log_snr,laplace-wide,laplace,"
                   "quadratic,equidistributed")  # fmt: skip
    p.add_argument("--peers", type=names, default=None, metavar="A,B", help="libraries or rows of "
                   "theirs; '' for none; default: all that are installed")  # fmt: skip
    p.add_argument("--targets", type=names, default=None, metavar="A,B",
                   help="laws with exact scores: digits64, ring2, moons, spiral, checkerboard, "
                   "images192, images768, stiff, lognormal16; '' for none; default: digits64")  # fmt: skip
    p.add_argument("--metrics", type=names, default=None, metavar="A,B",
                   help="error (to the exact trajectory), log_density_gap, sw2, w2, w1, energy, mmd2, "
                   "kl, reverse_kl, js, fisher, modes, frechet, kid, precision, recall, weak_error; "
                   "default: error of deterministic solvers, log_density_gap and sw2 of stochastic "
                   "ones")  # fmt: skip
    p.add_argument("--features", default=None, metavar="NAME", help="of frechet, kid, "
                   "precision, recall: "
                   "package.module:function or file.py:function that returns a network's features; "
                   "default: the components")  # fmt: skip
    p.add_argument("--batch", type=int, default=None, help="samples a cell and seed; "
                   "default: 256, 16 of a network of large events")  # fmt: skip
    p.add_argument("--likelihood", action=argparse.BooleanOptionalAction, default=None,
                   help="bits/dim of held-out data; default: only of small events")  # fmt: skip
    p.add_argument("--seeds", type=numbers, default=None, metavar="0,1,2",
                   help="several, pooled into one row each; default: --seed alone")  # fmt: skip
    p.add_argument("--workers", type=int, default=1, help="processes; changes no "
                   "number, as torchrun does not")  # fmt: skip
    p.add_argument("--quick", action="store_true", help="fewer samples and costs: a smoke test")
    common(p, "out/bench")


def _run_bench(args: argparse.Namespace) -> int | None:
    least, most = {"nfe": (0, 1), "compare": (2, 2), "merge": (2, 10**6)}.get(args.what, (0, 0))
    if not least <= len(args.runs) <= most:
        raise InvalidValue(
            "nfe takes at most one model, compare two results, merge two or more, the others "
            f"nothing; got {len(args.runs)}: {' '.join(args.runs)}"
        )
    if args.what == "compare":
        from .bench.compare import run as run_compare

        return run_compare(*args.runs)
    elif args.what == "merge":
        from .bench.nfe.pooling import merge

        merge(args.runs, args.out)
    elif args.what == "orders":
        from .bench.orders.run import run as run_orders

        run_orders(args.out, solvers=args.solvers)
    elif args.what == "adaptive":
        from .bench.adaptive import run as run_adaptive

        run_adaptive(args.out, batch=args.batch, seed=args.seed, quick=args.quick)
    elif args.what == "likelihood":
        from .bench.likelihood.exact import run as run_likelihood

        run_likelihood(
            args.out, batch=args.batch, seed=args.seed, device=args.device, quick=args.quick
        )
    elif args.what == "kernels":
        from .bench.kernels.run import run as run_kernels

        run_kernels(args.out, args.device)
    else:
        from .bench.nfe.run import run

        if args.runs and args.checkpoint is not None:
            raise InvalidValue(f"two models: {args.runs[0]} and --checkpoint {args.checkpoint}")
        args.checkpoint = args.runs[0] if args.runs else args.checkpoint
        run(**without(args, "what", "runs"))
    return None


# --- tune -------------------------------------------------------------------------------------


def _tune(commands: Any) -> None:
    p = command(commands, "tune", _run_tune,
                 "Fit a table to a network: fewer calls for the same error.",
                 "the tables that are done are in --out: ask for the other --nfe")  # fmt: skip
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("--target", default=None, help="an exact target by name instead of a network")
    p.add_argument("--nfe", type=numbers, default=[8], metavar="5,8", help="network calls")
    p.add_argument("--statistics", type=names, default=None, metavar="A,B",
                   help="of the data, that may be used: none, full, leading, cosine, diagonal, "
                   "scalar, or files of them; default: all, by what errs least")  # fmt: skip
    p.add_argument("--data", default=None, help="data for them; default: the network's own")
    p.add_argument("--starts", type=int, default=None,
                   help="trajectories, a quarter held out; default: 512, or 64 of large events")  # fmt: skip
    p.add_argument("--iterations", type=int, default=300, help="optimiser steps")
    p.add_argument("--batch", type=int, default=None, help="trajectories an optimiser step")
    common(p, "out/tune")


def _run_tune(args: argparse.Namespace) -> None:
    from .solvers.sampling.tune import tune

    tune(**without(args))


def _statistics(commands: Any) -> None:
    p = command(commands, "statistics", _run_statistics,
                 "Mean and covariance of a network's data, for --solver and `tune`.")  # fmt: skip
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("data", nargs="?", help="default: what the network was trained on")
    p.add_argument("--kind", default="leading", help="full, leading, cosine, diagonal or scalar")
    p.add_argument(
        "--out", type=Path, default=None, help="file or folder; default: beside the model"
    )


def _run_statistics(args: argparse.Namespace) -> None:
    from .solvers.sampling.tune import statistics

    print(f"statistics: {statistics(**without(args))}")
