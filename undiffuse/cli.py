"""The command line: sample, train, solvers here, the commands that measure in measuring.py.

Each command parses its options, calls one function of the library and says where it wrote.
Heavy modules are imported by the command that needs them, so that --help is quick.

What can be expected to go wrong ends in one line on standard error; what cannot, in a traceback:
it is a mistake of this package, or of code that was handed to it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import measuring
from .kernels.errors import InvalidValue, UndiffuseError
from .models import PROCESSES
from .options import MODEL, checkpoint, command, common, dtype, usable


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0; 1 where `bench compare` finds something worse; 2 for
    what was to be expected, in one line; 130 where it was interrupted, 141 where nobody reads its
    output any more."""
    args = _parser().parse_args(argv)
    try:
        usable(getattr(args, "device", None))
        code = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `undiffuse solvers | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # or the interpreter complains at exit
        return 141
    except KeyboardInterrupt:
        print(f"\nundiffuse {args.command}: interrupted; {args.kept}", file=sys.stderr)
        return 130
    except Exception as error:
        if (line := _expected(error)) is None:
            raise
        print(f"undiffuse {args.command}: {' '.join(line.split())}", file=sys.stderr)
        return 2
    return int(code or 0)


def _expected(error: Exception) -> str | None:
    """One line about a failure that is no bug: this package's own refusals and unfinished runs,
    files, optional packages and memory. None of any other."""
    import torch

    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, UndiffuseError | OSError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return None if (error.name or "").startswith("undiffuse") else str(error)
    full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if full or "DefaultCPUAllocator" in str(error):
        return f"out of memory, a smaller --batch needs less: {error}"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="undiffuse",
        description="Diffusion sampling as the numerical integration of reverse-time SDEs and ODEs.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _sample(commands)
    measuring.add(commands)
    _train(commands)
    _solvers(commands)
    return parser


# --- sample -----------------------------------------------------------------------------------


def _sample(commands: Any) -> None:
    p = command(commands, "sample", _run_sample, "Draw samples from a network.",
                "nothing was written: samples are when all are drawn")  # fmt: skip
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("--n", type=int, default=64, help="how many")
    p.add_argument("--solver", default="relay",
                   help="see `undiffuse solvers`; ddpm-learned: with the variances "
                   "that --loss hybrid taught; or JSON that `statistics` or `tune` wrote: a tuned "
                   "table has steps, grid and end of its own")  # fmt: skip
    p.add_argument("--steps", type=int, default=20, help="intervals of the grid")
    p.add_argument("--grid", default="laplace-wide",
                   help="uniform, log_snr, karras, trailing, ...; or "
                   "equidistributed: measured on the network by 64 calls for 32 samples")  # fmt: skip
    p.add_argument("--final", default="denoise", choices=["denoise", "zero", "t_min"],
                   help="how the last step ends")  # fmt: skip
    p.add_argument("--batch", type=int, default=256, help="samples at a time; changes no sample")
    dtype(p, None)
    common(p, "out/sample")


def _run_sample(args: argparse.Namespace) -> None:
    import torch

    from .kernels.files import write_tensors
    from .solvers import (
        SpectralTable,
        Tableau,
        equidistributed,
        read,
        sample,
        sample_learned_variance,
    )

    if args.n < 1 or args.batch < 1:
        raise InvalidValue(f"--n and --batch must be >= 1; got {args.n} and {args.batch}")
    loaded = checkpoint(args.model, args.device, args.dtype)
    args.out.mkdir(parents=True, exist_ok=True)  # or hours later
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
    path = write_tensors(args.out / "samples.pt", x)
    print(f"{len(x)} samples of shape {tuple(x.shape[1:])}: {path}")
    fixed = isinstance(solver, Tableau | SpectralTable)
    cost = f"{solver.nfe} calls" if fixed else f"{args.steps} steps"
    _picture(args.out / "samples.png", x, loaded, f"{Path(args.solver).stem}, {cost}")


def _picture(path: Path, x: Any, loaded: Any, title: str) -> None:
    """The first 64 samples as rows of eight, where they are pictures."""
    from .models.data.drawing import is_picture, sample_grid

    if not is_picture(loaded.event_shape):
        return
    lo, hi = loaded.data_range
    shown = (x[:64] - lo) * (2 / (hi - lo)) - 1
    rows = [("", shown[i : i + 8]) for i in range(0, len(shown), 8)]
    try:
        sample_grid(path, rows, title)
    except ImportError as error:  # the samples are there
        print(f"no {path.name}: {error}")
    else:
        print(f"picture: {path}")


# --- train ------------------------------------------------------------------------------------


def _train(commands: Any) -> None:
    p = command(commands, "train", _run_train,
                 "Train a small network; a run that was killed goes on.",
                 "the same command goes on from the last checkpoint in --out")  # fmt: skip
    p.add_argument("data", help="digits, .npz, .npy, idx, tensor file or image folder")
    p.add_argument("--process", default="vp", help="of the noise: " + ", ".join(PROCESSES))
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
    common(p, "out/train")


def _run_train(args: argparse.Namespace) -> None:
    from .models.checkpoint import load
    from .models.training.train import train
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


# --- solvers ----------------------------------------------------------------------------------


def _solvers(commands: Any) -> None:
    p = command(commands, "solvers", _run_solvers, "List the solvers, or print one as a table.")
    p.add_argument("name", nargs="?", help="print this solver's tableau")
    p.add_argument("--steps", type=int, default=5, help="steps of the printed tableau")
    p.add_argument("--process", default="vp", help="process of the printed tableau")
    p.add_argument("--grid", default="laplace-wide", help="grid of the printed tableau")


def _run_solvers(args: argparse.Namespace) -> None:
    from .solvers import get, names, times
    from .solvers.arguments import lookup

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
