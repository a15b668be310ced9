"""Draw samples from a network."""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

from ..kernels.errors import InvalidValue, RunFailure
from .common import MODEL, checkpoint, common, default, draw_picture, dtype, listed

KEPT = "nothing was written: samples are when all are drawn"
LEARNED = "ddpm-learned"
PILOT = 32


def options(p: argparse.ArgumentParser) -> None:
    from ..solvers.sampling.parallel import TOLERANCE
    from ..solvers.sampling.sample import sample
    from ..solvers.sampling.sampler import STEPS
    from ..solvers.tables.grids import GRIDS

    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument("--n", type=int, default=64, help="how many")
    p.add_argument(
        "--solver",
        default=default(sample, "solver"),
        help=f"see `undiffuse solvers`; {LEARNED}: with the variances that --loss "
        "hybrid taught; or JSON that `statistics` or `tune` wrote: a tuned table has "
        "steps, grid and end of its own",
    )
    p.add_argument(
        "--steps", type=int, default=None, help=f"intervals of the grid; default: {STEPS}"
    )
    p.add_argument("--nfe", type=int, default=None, help="network calls, in the place of --steps")
    p.add_argument(
        "--grid",
        default=None,
        help=f"{listed(GRIDS)}; or equidistributed: measured on the network by 64 calls "
        f"for {PILOT} samples; default: the solver's own",
    )
    p.add_argument(
        "--final",
        default=default(sample, "final"),
        choices=["denoise", "zero", "t_min"],
        help="how the last step ends",
    )
    p.add_argument(
        "--parallel",
        type=int,
        default=None,
        help="rows of the run to guess and correct at once: fewer rounds of larger calls",
    )
    p.add_argument(
        "--tolerance", type=float, default=None, help=f"of --parallel; default: {TOLERANCE}"
    )
    p.add_argument("--batch", type=int, default=256, help="samples at a time; changes no sample")
    dtype(p, None)
    common(p, "out/sample")


def run(args: argparse.Namespace) -> None:
    import torch

    from ..kernels.files import usable
    from ..solvers import Sampler, equidistributed, sample_learned_variance
    from ..solvers.families.tuned import read
    from ..solvers.sampling.sample import sample
    from ..solvers.sampling.sampler import GRID, STEPS

    if args.n < 1 or args.batch < 1:
        raise InvalidValue(f"--n and --batch must be >= 1; got {args.n} and {args.batch}")
    loaded = checkpoint(args.model, args.device, args.dtype)
    solver: Any = args.solver
    if solver.endswith(".json"):
        solver = read(solver, loaded.denoiser.process)
    grid: Any = args.grid
    measured, steps = grid == "equidistributed", args.steps
    if solver == LEARNED:
        if args.nfe is not None:
            raise InvalidValue(f"--solver {LEARNED} calls the network once a step: give --steps")
        if args.parallel is not None:
            raise InvalidValue(f"--parallel sweeps tables, and --solver {LEARNED} is none")
        steps = STEPS if steps is None else steps
    else:  # what does not fit is found before the first call
        Sampler(
            loaded.denoiser,
            solver,
            steps,
            GRID if measured else grid,
            nfe=args.nfe,
            final=args.final,
        )
    size = 8 if args.dtype == "float64" else 4
    usable(args.out, size * args.n * math.prod(loaded.event_shape), ["samples.pt", "samples.png"])
    if measured:
        grid = equidistributed(loaded.denoiser, (PILOT, *loaded.event_shape), seed=args.seed)
    parts, calls = [], 0
    for first in range(0, args.n, args.batch):
        ids = torch.arange(first, min(first + args.batch, args.n))
        shape = (len(ids), *loaded.event_shape)
        how = {"seed": args.seed, "sample_ids": ids, "final": args.final, "device": args.device}
        if solver == LEARNED:
            drawn = sample_learned_variance(
                loaded.denoiser, shape, steps, grid or GRID, progress=True, **how
            )
        else:
            drawn = sample(
                loaded.denoiser,
                shape,
                solver,
                steps,
                grid,
                nfe=args.nfe,
                progress=True,
                return_result=True,
                parallel=args.parallel,
                tolerance=args.tolerance,
                **how,
            )
        parts.append(drawn.x.cpu())
        calls = int(torch.as_tensor(drawn.nfe).max())
    x = torch.cat(parts)
    path = _kept(args.out / "samples.pt", x)
    print(f"{len(x)} samples of shape {tuple(x.shape[1:])}: {path}")
    draw_picture(args.out / "samples.png", x, loaded, f"{Path(args.solver).stem}, {calls} calls")


def _kept(path: Path, x: Any) -> Path:
    """Write the samples; where the disk is full, elsewhere: they may have taken hours."""
    from ..kernels.files import write_tensors

    try:
        return write_tensors(path, x)
    except OSError as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="undiffuse-")) / path.name
        try:
            write_tensors(elsewhere, x)
        except OSError:
            elsewhere.parent.rmdir()
            raise error from None
        raise RunFailure(
            f"{error.strerror}: {path}; the samples are in {elsewhere}: move them to where there "
            "is room"
        ) from None
