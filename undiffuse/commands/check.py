"""Whether a network is declared right: its prediction, its times, the scale of its data."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .common import MODEL, checkpoint, seeded

KEPT = "nothing was written"
EXAMPLES = """\
  undiffuse check
  undiffuse check net.py:model images/
  undiffuse check model.safetensors --json"""


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?", help=MODEL)
    p.add_argument(
        "data",
        nargs="?",
        help="a folder, .npz, ...: 64 events are taken; default: what the network was trained on, "
        "or its own samples, which find gross mistakes alone",
    )
    p.add_argument("--json", action="store_true", help="the same as JSON")
    seeded(p)


def run(args: argparse.Namespace) -> int:
    """0 where the declaration holds, 1 where it does not."""
    from ..solvers.advice.check import check
    from ..solvers.sampling.tuning import in_float32, network_name, training_data

    loaded = checkpoint(args.model, args.device)
    data = training_data(loaded, args.data)
    events: Any = loaded.event_shape if data is None else data
    found = check(in_float32(loaded.denoiser), events, seed=args.seed)
    if args.json:
        print(json.dumps(found.record(), indent=1))
        return int(not found)
    name, shape = network_name(args.model), "x".join(map(str, loaded.event_shape))
    what = "its own samples" if data is None else "its training data"
    what = str(args.data) if args.data is not None else what
    print(f"{name} ({shape}), {loaded.denoiser.process}\non {what}\n\n{found}")
    return int(not found)
