"""Which solver suits a network at so many calls: one answer, in seconds for a small one."""

from __future__ import annotations

import argparse
import json

from .common import MODEL, checkpoint, commas, names, needs_one, numbers, seeded

KEPT = "nothing was written"
NFE = (5, 10, 20)
EXAMPLES = """\
  undiffuse which --nfe 10
  undiffuse which net.py:model --nfe 5,10,20
  undiffuse which net.py:model --solvers unipc-3,heun --json"""


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument(
        "--nfe",
        type=numbers,
        default=list(NFE),
        metavar="5,10",
        help=f"network calls; default: {commas(NFE)}",
    )
    p.add_argument(
        "--solvers", type=names, default=[], metavar="A,B", help="further ones to be tried"
    )
    p.add_argument("--json", action="store_true", help="the same as JSON")
    seeded(p)


def run(args: argparse.Namespace) -> None:
    from ..solvers.advice.compare import compare
    from ..solvers.sampling.tuning import in_float32, network_name

    needs_one(args, "nfe")
    loaded = checkpoint(args.model, args.device)
    found = compare(
        in_float32(loaded.denoiser),
        (8, *loaded.event_shape),
        args.nfe,
        solvers=args.solvers,
        seed=args.seed,
        device=args.device,
        progress=not args.json,
    )
    if args.json:
        print(json.dumps(found.record(), indent=1))
        return
    shape = "x".join(map(str, loaded.event_shape))
    print(f"{network_name(args.model)} ({shape}), {loaded.denoiser.process}\n\n{found}")
    where = "ud.load_default()" if args.model is None else f"ud.load({args.model!r})"
    print(f"with model = {where}.denoiser, shape = {(8, *loaded.event_shape)}")
