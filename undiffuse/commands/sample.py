"""Draw samples from a network, in shards; a run that was killed goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import words
from .common import MODEL, checkpoint, common, draw_picture, dtype, engines, invalid, listed

KEPT = "the shards that are done are in --out, and the same command goes on"
EXAMPLES = """\
  undiffuse sample --n 16 --nfe 10
  undiffuse sample model.safetensors --solver dpmpp-2m --steps 20 --grid karras
  undiffuse sample net.py:model --solver out/tune/tuned-8.json --out out/mine"""
SHOWN = 64


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("--n", type=int, default=None, help="how many; default: 64, or the end of --ids")
    p.add_argument(
        "--ids", type=_ids, default=None, metavar="A:B", help="draw only the ids A to B - 1 of them"
    )
    p.add_argument(
        "--solver",
        default=words.SOLVER,
        help=f"see `undiffuse solvers`; {words.LEARNED}: with the variances that --loss "
        "hybrid taught; or JSON that `statistics` or `tune` wrote: a tuned table has "
        "steps, grid and end of its own",
    )
    p.add_argument(
        "--steps", type=int, default=None, help=f"intervals of the grid; default: {words.STEPS}"
    )
    p.add_argument("--nfe", type=int, default=None, help="network calls, in the place of --steps")
    p.add_argument(
        "--grid",
        default=None,
        help=f"{listed(words.GRIDS)}; or measured on the network: {listed(words.MEASURED)}; "
        "default: the solver's own",
    )
    p.add_argument(
        "--final",
        default=None,
        choices=words.FINALS,
        help="how the last step ends; default: as is best for the solver and so many steps",
    )
    p.add_argument(
        "--parallel",
        type=int,
        default=None,
        help="rows of the run to guess and correct at once: fewer rounds of larger calls",
    )
    p.add_argument(
        "--tolerance", type=float, default=None, help=f"of --parallel; default: {words.TOLERANCE}"
    )
    _conditions(p)
    _shards(p)
    engines(p)
    dtype(p, None)
    common(p, "out/sample")


def _conditions(p: argparse.ArgumentParser) -> None:
    """What the network is told beside x and t."""
    p.add_argument(
        "--cond",
        type=Path,
        default=None,
        metavar="FILE",
        help=".safetensors, .npz, .json or .pt with the network's conditions by name: n rows, one "
        "for each id, or one for all",
    )
    p.add_argument(
        "--class",
        dest="classes",
        default=None,
        metavar="K",
        help="the network's `label`: one class, several (0,3,5) or all, in turn: id i is of "
        "the i-th, and round again",
    )


def _shards(p: argparse.ArgumentParser) -> None:
    """How samples are written."""
    p.add_argument(
        "--format",
        default=words.SAMPLE["format"],
        help=f"of the shards: {listed(words.SHARDS)}",
    )
    p.add_argument(
        "--shard", type=int, default=None, help="ids to a shard; default: 1024, fewer of large ones"
    )
    p.add_argument(
        "--batch",
        type=int,
        default=words.SAMPLE["batch"],
        help="samples in memory at a time; changes no byte",
    )
    p.add_argument(
        "--rows",
        type=int,
        default=words.SAMPLE["rows"],
        help="samples that the network is asked about at a time",
    )


def run(args: argparse.Namespace) -> None:
    import torch

    from ..kernels.files import write_tensors
    from ..solvers.families.tuned import FILES, read
    from ..solvers.shards.sample_to import sample_to
    from ..solvers.work.processes import rank

    n = args.n if args.n is not None else args.ids[1] if args.ids else SHOWN
    if n < 1 or args.batch < 1:
        raise invalid(f"--n and --batch must be >= 1; got {n} and {args.batch}")
    loaded = checkpoint(args.model, args.device, args.dtype)
    solver: Any = args.solver
    if solver.endswith(FILES):
        solver = read(solver, loaded.denoiser.process)
    found = sample_to(
        args.out,
        "digits" if args.model is None else args.model,
        loaded.event_shape,
        n,
        solver,
        args.steps,
        args.grid,
        args.seed,
        ids=args.ids,
        cond=_told(args, loaded, n),
        nfe=args.nfe,
        final=args.final,
        dtype=None if args.dtype is None else getattr(torch, args.dtype),
        device=args.device,
        parallel=args.parallel,
        tolerance=args.tolerance,
        format=args.format,
        shard=args.shard,
        batch=args.batch,
        rows=args.rows,
        threads=args.threads,
        workers=args.workers,
        engine=args.engine,
        progress=True,
    )
    if rank() != 0:
        return
    print(f"{len(found)} samples of shape {loaded.event_shape} in {args.out}")
    if args.format == "png":
        return
    x = found.first(max(SHOWN, n if len(found.records) == 1 else 0))
    if len(found.records) == 1:  # few enough for one file that torch.load reads
        print(f"all of them: {write_tensors(args.out / 'samples.pt', x)}")
    calls = found.records[0]["nfe"]
    draw_picture(args.out / "samples.png", x, loaded, f"{Path(args.solver).stem}, {calls} calls")


def _ids(text: str) -> tuple[int, int]:
    """'0:1000' -> (0, 1000)."""
    first, _, last = text.partition(":")
    try:
        return int(first), int(last)
    except ValueError:
        raise argparse.ArgumentTypeError(f"want two whole numbers, A:B; got {text!r}") from None


def _told(args: argparse.Namespace, loaded: Any, n: int) -> dict[str, Any] | None:
    """The conditions of --cond and --class."""
    from ..solvers.shards.formats import conditions

    told = {} if args.cond is None else conditions(args.cond)
    if args.classes is not None:
        if "label" in told:
            raise invalid(f"--class says what {args.cond} says as 'label': leave one out")
        told["label"] = _labels(args.classes, loaded.network[1].get("classes"), n)
    return told or None


def _labels(text: str, known: int | None, n: int) -> Any:
    """A label for each of n ids."""
    import torch

    if text == "all":
        if not known:
            raise invalid(
                "--class all: the network does not say how many classes it has: name them, 0,1,2"
            )
        each = list(range(known))
    else:
        try:
            each = [int(k) for k in text.split(",")]
        except ValueError:
            raise invalid(
                f"--class must be numbers like 3 or 0,3,5, or all; got {text!r}"
            ) from None
    for k in each:
        if k < 0 or (known is not None and k >= known):
            most = "" if known is None else f" and < {known}, the network's classes"
            raise invalid(f"--class must be >= 0{most}; got {k}")
    return torch.tensor(each, dtype=torch.int64, device="cpu").repeat(-(-n // len(each)))[:n]
