"""The command line: sample, likelihood, bench, train, tune, solvers.

Each command parses its options, calls one function of the library and says where it wrote.
Heavy modules are imported by the command that needs them, so that --help is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = (
    "checkpoint of `undiffuse train`, or package.module:function or file.py:function that returns "
    "an undiffuse Checkpoint around any network; default: the digits"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 for bad input (one line, no traceback)."""
    args = _parser().parse_args(argv)
    from .models.trainer import TrainingError
    from .solvers.fitting import FitError
    from .solvers.status import SolverError

    wrong = (
        ValueError, TypeError, FileNotFoundError, ImportError, SolverError, TrainingError, FitError,
    )  # fmt: skip
    try:
        args.run(args)
    except wrong as error:
        print(f"undiffuse {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `undiffuse solvers | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # or the interpreter complains at exit
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="undiffuse",
        description="Diffusion sampling as the numerical integration of reverse-time SDEs and ODEs.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _sample(commands)
    _likelihood(commands)
    _bench(commands)
    _train(commands)
    _tune(commands)
    _statistics(commands)
    _solvers(commands)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _common(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="where to write")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same numbers")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ...; default: the CPU")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"want whole numbers like 5,10,20; got {text!r}") from None


def _checkpoint(path: str | None, device: str | None) -> Any:
    from .models import checkpoint

    loaded = checkpoint.load_default() if path is None else checkpoint.load(path, device)
    if device is not None:
        net: Any = loaded.denoiser.net
        net.to(device)
    return loaded


# --- sample -----------------------------------------------------------------------------------


def _sample(commands: Any) -> None:
    p = _command(commands, "sample", _run_sample, "Draw samples from a network.")
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("--n", type=int, default=64, help="how many")
    p.add_argument("--solver", default="dpmpp-2m",
                   help="see `undiffuse solvers`; ddpm-learned: with the variances that --loss hybrid "
                   "taught; or JSON that `statistics` or `tune` wrote: a tuned table has steps, grid "
                   "and end of its own")  # fmt: skip
    p.add_argument("--steps", type=int, default=20, help="intervals of the grid")
    p.add_argument("--grid", default="karras", help="uniform, log_snr, karras, trailing, ...; or "
                   "equidistributed: measured on the network by 64 calls for 32 samples")  # fmt: skip
    p.add_argument("--final", default="denoise", choices=["denoise", "zero", "t_min"],
                   help="how the last step ends")  # fmt: skip
    p.add_argument("--batch", type=int, default=256, help="samples at a time; changes no sample")
    _common(p, "out/sample")


def _run_sample(args: argparse.Namespace) -> None:
    import torch

    from .models.checkpoint import atomically
    from .solvers import (
        SpectralTable,
        Tableau,
        equidistributed,
        read,
        sample,
        sample_learned_variance,
    )

    if args.n < 1 or args.batch < 1:
        raise ValueError(f"--n and --batch must be >= 1; got {args.n} and {args.batch}")
    loaded = _checkpoint(args.model, args.device)
    solver: Any = args.solver
    if solver.endswith(".json"):
        solver = read(solver, loaded.denoiser.process)
    grid: Any = args.grid
    if grid == "equidistributed":
        grid = equidistributed(loaded.denoiser, (32, *loaded.event_shape), seed=args.seed)
    parts = []
    for first in range(0, args.n, args.batch):
        ids = torch.arange(first, min(first + args.batch, args.n))
        shape = (len(ids), *loaded.event_shape)
        how = {"seed": args.seed, "sample_ids": ids, "final": args.final, "device": args.device}
        if solver == "ddpm-learned":
            x = sample_learned_variance(
                loaded.denoiser, shape, args.steps, grid, progress=True, **how
            ).x
        else:
            x = sample(loaded.denoiser, shape, solver, args.steps, grid, progress=True, **how)
        parts.append(x.cpu())
    x = torch.cat(parts)
    path = atomically(args.out / "samples.pt", lambda part: torch.save(x, part))
    print(f"{len(x)} samples of shape {tuple(x.shape[1:])}: {path}")
    fixed = isinstance(solver, Tableau | SpectralTable)
    cost = f"{solver.nfe} calls" if fixed else f"{args.steps} steps"
    _picture(args.out / "samples.png", x, loaded, f"{Path(args.solver).stem}, {cost}")


def _picture(path: Path, x: Any, loaded: Any, title: str) -> None:
    """The first 64 samples as rows of eight, where they are pictures."""
    from .bench.figures import is_picture, sample_grid

    if not is_picture(loaded.event_shape):
        return
    lo, hi = loaded.data_range
    shown = (x[:64] - lo) * (2 / (hi - lo)) - 1
    rows = [("", shown[i : i + 8]) for i in range(0, len(shown), 8)]
    sample_grid(path, rows, title)
    print(f"picture: {path}")


# --- likelihood -------------------------------------------------------------------------------


def _likelihood(commands: Any) -> None:
    p = _command(commands, "likelihood", _run_likelihood,
                 "Bits/dim of data under a network, with error bars.")  # fmt: skip
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("data", nargs="?", help="digits, .npz, .npy, idx, tensor file or image folder; "
                   "default: the digits that the shipped network never saw")  # fmt: skip
    p.add_argument("--limit", type=int, default=None, help="only the first so many items")
    p.add_argument("--method", default="ode", choices=["ode", "elbo", "both"],
                   help="log p of the probability flow, the evidence lower bound, or both compared")  # fmt: skip
    p.add_argument("--dequantize", default=None, help="uniform, none, or variational: "
                   "package.module:function or file.py:function that returns a hook(centres, eps) "
                   "-> (u, log_q); default: uniform for data with levels")  # fmt: skip
    p.add_argument("--convention", default="ends", choices=["ends", "bins"], help="where levels lie: "
                   "the first and last on the range's ends, or score_sde's, in the middle of bins "
                   "that fill it (offset 7 for bytes in [-1, 1])")  # fmt: skip
    p.add_argument("--repeats", type=int, default=1, help="draws of noise and probes an item")
    p.add_argument("--target-error", type=float, default=None, metavar="BITS",
                   help="standard error of an item to reach, bits/dim, by probes or draws")  # fmt: skip
    p.add_argument("--probes", type=int, default=None, help="of ode: Hutchinson's, see log_prob")
    p.add_argument("--rtol", type=float, default=None, help="of ode: tolerance of the path")
    p.add_argument("--atol", type=float, default=None, help="of ode: absolute tolerance of it")
    p.add_argument("--time", default=None, choices=["discrete", "continuous", "i-mmse"],
                   help="of elbo: the chain, its limit, or that of a density; default: the network's")  # fmt: skip
    p.add_argument("--steps", type=int, default=None, help="of elbo: calls, or steps of the chain")
    p.add_argument("--calls", type=int, default=None,
                   help="of elbo on a chain: draw so many of its terms; default: all are taken")  # fmt: skip
    p.add_argument("--batch", type=int, default=64, help="items at a time")
    _common(p, "out/likelihood")


def _run_likelihood(args: argparse.Namespace) -> None:
    from .bench.dataset_likelihood import run
    from .bench.flow_and_bound import compare

    if args.method == "both":
        compare(**_without(args, "run", "command", "method"))
    else:
        run(**_without(args, "run", "command"))


# --- bench ------------------------------------------------------------------------------------


def _bench(commands: Any) -> None:
    p = _command(commands, "bench", _run_bench,
                 "NFE against quality, orders, likelihood and kernels, peers in the same run.")  # fmt: skip
    p.add_argument("what", nargs="?", default="nfe",
                   choices=["nfe", "orders", "adaptive", "kernels", "likelihood", "models", "compare",
                            "merge"],
                   help="NFE against quality; orders: declared and measured; adaptive: steps chosen "
                   "by each sample or by the batch; kernels; likelihood against exact values; "
                   "models: losses, guidance and their pictures; "
                   "or what changed between two results, or run folders joined in --out")  # fmt: skip
    p.add_argument("runs", nargs="*", type=Path, help="results for `compare` (two) or `merge`")
    p.add_argument("--checkpoint", default=None, help=MODEL)
    p.add_argument("--data", default=None, help="data that the network never saw, as for `train`; "
                   "default: what its training held out")  # fmt: skip
    p.add_argument("--solvers", type=_names, default=None, metavar="A,B", help="default: a choice")
    p.add_argument("--nfe", type=_numbers, default=None, metavar="5,10,20", help="network calls")
    p.add_argument("--grid", type=_names, default=None, metavar="A,B",
                   help="names, or equidistributed: measured by a pilot run; default: a choice")  # fmt: skip
    p.add_argument("--peers", type=_names, default=None, metavar="A,B", help="'' for none")
    p.add_argument("--targets", type=_names, default=None, metavar="A,B", help="exact targets")
    p.add_argument("--metrics", type=_names, default=None, metavar="A,B", help="default: a choice")
    p.add_argument("--features", default=None, metavar="MODULE:FUNCTION", help="of frechet, kid, "
                   "precision, recall: package.module:function or file.py:function that returns a "
                   "network's features; default: the components")  # fmt: skip
    p.add_argument("--batch", type=int, default=None, help="samples a cell")
    p.add_argument("--likelihood", action=argparse.BooleanOptionalAction, default=None,
                   help="bits/dim of held-out data; default: only of small events")  # fmt: skip
    p.add_argument("--seeds", type=_numbers, default=None, metavar="0,1,2",
                   help="several, pooled into one row each; default: --seed alone")  # fmt: skip
    p.add_argument("--workers", type=int, default=1, help="processes; changes no number")
    p.add_argument("--quick", action="store_true", help="fewer samples and costs: a smoke test")
    _common(p, "out/bench")


def _run_bench(args: argparse.Namespace) -> None:
    few = {"compare": 2, "merge": 2}.get(args.what, 0)
    if len(args.runs) < few or (len(args.runs) > few and args.what != "merge"):
        raise ValueError(
            f"compare takes two results, merge two or more, the others none; got {len(args.runs)}"
        )
    if args.what == "compare":
        from .bench.compare import run as run_compare

        run_compare(*args.runs)
    elif args.what == "merge":
        from .bench.pooling import merge

        merge(args.runs, args.out)
    elif args.what == "orders":
        from .bench.orders import run as run_orders

        run_orders(args.out, solvers=args.solvers)
    elif args.what == "adaptive":
        from .bench.adaptive import run as run_adaptive

        run_adaptive(args.out, batch=args.batch, seed=args.seed, quick=args.quick)
    elif args.what == "likelihood":
        from .bench.exact_likelihood import run as run_likelihood

        run_likelihood(
            args.out, batch=args.batch, seed=args.seed, device=args.device, quick=args.quick
        )
    elif args.what == "kernels":
        from .bench.kernels import run as run_kernels

        run_kernels(args.out, args.device)
    elif args.what == "models":
        from .bench.gallery import run as run_models

        run_models(args.out / "models", seed=args.seed, device=args.device, quick=args.quick)
    else:
        from .bench.nfe import run

        run(**_without(args, "run", "command", "what", "runs"))


def _without(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {k: v for k, v in vars(args).items() if k not in names}


# --- train ------------------------------------------------------------------------------------


def _train(commands: Any) -> None:
    p = _command(commands, "train", _run_train,
                 "Train a small network; a run that was killed goes on.")  # fmt: skip
    p.add_argument("data", help="digits, .npz, .npy, idx, tensor file or image folder")
    p.add_argument("--process", default="vp", help="vp, vp-cosine, subvp, ve, edm, flow, "
                   "brownian, or learned: a noise schedule that is trained with the network")  # fmt: skip
    p.add_argument("--predicts", default="edm", help="edm, noise, data, score, v or flow")
    p.add_argument("--loss", default=None, help="simple, likelihood, snr, min-snr, edm, flow, "
                   "uniform-snr, vlb, hybrid (learned variances) or learned (the schedule's own); "
                   "default: uniform-snr, or learned")  # fmt: skip
    p.add_argument("--network", default="mlp", help="a name in undiffuse.models.NETWORKS")
    p.add_argument("--width", type=int, default=None, help="of the network; default: its own")
    p.add_argument("--steps", type=int, default=None, help="optimiser steps")
    p.add_argument("--batch", type=int, default=None, help="events a step")
    p.add_argument("--lr", type=float, default=None, help="peak learning rate")
    p.add_argument("--every", type=int, default=None, help="steps between checkpoints")
    p.add_argument("--conditional", action="store_true", help="give the network the labels")
    p.add_argument("--restart", action="store_true", help="do not go on from --out")
    _common(p, "out/train")


def _run_train(args: argparse.Namespace) -> None:
    from .models.checkpoint import load
    from .models.training import train
    from .solvers import sample

    asked = {k: getattr(args, k) for k in ("steps", "batch", "lr", "every")}
    settings = {k: v for k, v in asked.items() if v is not None}
    train(
        args.data, args.process, predicts=args.predicts, loss=args.loss, network=args.network,
        out=args.out, device=args.device, progress=True, resume=not args.restart, seed=args.seed,
        conditional=args.conditional, **settings,
        network_config={} if args.width is None else {"width": args.width},
    )  # fmt: skip
    loaded = load(args.out / "model.safetensors", args.device)
    if "held_out" in loaded.training:
        print(f"held-out loss: {loaded.training['held_out']:.4f}")
    print(f"network: {args.out / 'model.safetensors'}")
    shape = (32, *loaded.event_shape)
    x = sample(loaded.denoiser, shape, seed=args.seed, device=args.device).cpu()
    _picture(args.out / "samples.png", x, loaded, f"after {loaded.training['step']} steps")


# --- tune -------------------------------------------------------------------------------------


def _tune(commands: Any) -> None:
    p = _command(commands, "tune", _run_tune,
                 "Fit a table to a network: fewer calls for the same error.")  # fmt: skip
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("--target", default=None, help="an exact target by name instead of a network")
    p.add_argument("--nfe", type=_numbers, default=[8], metavar="5,8", help="network calls")
    p.add_argument("--statistics", type=_names, default=None, metavar="A,B",
                   help="of the data, that may be used: none, full, leading, cosine, diagonal, "
                   "scalar, or files of them; default: all, by what errs least")  # fmt: skip
    p.add_argument("--data", default=None, help="data for them; default: the network's own")
    p.add_argument("--starts", type=int, default=None,
                   help="trajectories, a quarter held out; default: 512, or 64 of large events")  # fmt: skip
    p.add_argument("--iterations", type=int, default=300, help="optimiser steps")
    p.add_argument("--batch", type=int, default=None, help="trajectories an optimiser step")
    _common(p, "out/tune")


def _run_tune(args: argparse.Namespace) -> None:
    from .bench.tuning import tune

    tune(**_without(args, "run", "command"))


def _statistics(commands: Any) -> None:
    p = _command(commands, "statistics", _run_statistics,
                 "Mean and covariance of a network's data, for --solver and `tune`.")  # fmt: skip
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("data", nargs="?", help="default: what the network was trained on")
    p.add_argument("--kind", default="leading", help="full, leading, cosine, diagonal or scalar")
    p.add_argument("--out", type=Path, default=None, help="file or folder; default: beside the model")


def _run_statistics(args: argparse.Namespace) -> None:
    from .bench.tuning import statistics

    print(f"statistics: {statistics(**_without(args, 'run', 'command'))}")


# --- solvers ----------------------------------------------------------------------------------


def _solvers(commands: Any) -> None:
    p = _command(commands, "solvers", _run_solvers, "List the solvers, or print one as a table.")
    p.add_argument("name", nargs="?", help="print this solver's tableau")
    p.add_argument("--steps", type=int, default=5, help="steps of the printed tableau")
    p.add_argument("--process", default="vp", help="process of the printed tableau")
    p.add_argument("--grid", default="karras", help="grid of the printed tableau")


def _run_solvers(args: argparse.Namespace) -> None:
    from .models import PROCESSES
    from .solvers import get, names, times
    from .solvers.grids import lookup

    process = lookup("process", args.process, PROCESSES)()
    if args.name:
        print(get(args.name).tableau(process, times(args.grid, process, args.steps)))
        return
    print(f"{'name':24} {'order':>5} {'weak':>5} {'calls for 10 steps':>19}  what it is")
    for name in names():
        solver = get(name)
        table = solver.tableau(process, times("log_snr", process, 10))
        law = f"{table.weak_order:g}" if table.stochastic else "-"
        print(f"{name:24} {table.order:5g} {law:>5} {table.nfe:19d}  {solver}")


if __name__ == "__main__":
    sys.exit(main())
