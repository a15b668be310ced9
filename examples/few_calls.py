"""Pictures at 5, 8 and 10 calls, from the same noise: others' samplers, our default, the table that
`ud.tune` finds for the network, and the one that it learns.

    python examples/few_calls.py out/few-calls.png [MODEL ...] [--nfe 5,8,10] [--starts 5]

Above all is the network's own fine solution. Below the pictures of every other row is what
separates them from it, enlarged; the title has its root mean square over 64 starts. Models are what
`ud.load` takes; where none is named, the digits network that ships.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import undiffuse as ud
from undiffuse.bench.nfe.campaign import clean
from undiffuse.bench.peers.samplers import chosen
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import Plan, Unavailable, of_table, plan_of
from undiffuse.bench.problems.problem import Problem
from undiffuse.bench.report.figures import Panels, sample_panels
from undiffuse.models.data.drawing import is_picture

PEERS = {
    "k-diffusion\nDPM++2M, karras": "dpmpp_2m",
    "diffusers\nDPM++2M": "DPM++2M (default)",
    "diffusers\nUniPC": "UniPC (default)",
}
TIMES = 3
"""How much differences are enlarged."""
COUNTED = 64
"""Starts whose errors are told."""


def posed(spec: str | None) -> Problem:
    """The network from COUNTED starts of seed 0."""
    loaded = ud.load_default() if spec is None else ud.load(spec)
    if not is_picture(loaded.event_shape):
        raise ValueError(f"{spec} draws events of shape {loaded.event_shape}, no pictures")
    data = torch.zeros(2, *loaded.event_shape, dtype=torch.float64)
    data[1] = 1.0  # the unit of errors, which no picture asks for
    name = "digits" if spec is None else Path(spec).stem
    return problems.network(name, name, loaded.denoiser, data, COUNTED)


def planned(p: Problem, nfe: int) -> dict[str, Plan]:
    """What is run, by the row's name; what a library cannot run here is left out."""
    plans = {}
    for name, peer in PEERS.items():
        try:
            plans[name] = plan_of(chosen([peer])[0], p, nfe)
        except Unavailable as error:
            print(f"{p.name}, {nfe} calls: {peer}: {error}")
    found = ud.tune(p.model, p.start.shape, nfe=nfe, learn=True)
    print(p.name, found, sep=": ", flush=True)
    candidate = found.candidate
    assert candidate is not None, "a result that was not read from a file knows its choice"
    plans["undiffuse\ndefault"] = of_table(p.process, ud.Sampler(p.model, nfe=nfe).tableau)
    plans["undiffuse\ntuned"] = of_table(p.process, candidate.table(p.model, nfe))
    plans["undiffuse\nlearned"] = of_table(p.process, found.table)
    return plans


def rows(p: Problem, calls: list[int], starts: int) -> dict[str, Panels]:
    """Pictures [2 starts, C, H, W] with their differences, of every number of calls, by row."""
    every = {n: planned(p, n) for n in calls}
    ratios = {r for plans in every.values() for v in plans.values() for r in (v.start, v.end)}
    exact = problems.solve(p, {*ratios, 0.0}, 0)

    def ends(ratio: float) -> Tensor:
        return clean(p, exact.at(ratio), ratio)

    found: dict[str, list[tuple[str, Tensor]]] = {
        f"{p.name}\nexact": [(f"{n} calls", ends(0.0)[:starts]) for n in calls]
    }
    for plans in every.values():
        for name, plan in plans.items():
            with torch.no_grad():
                x = clean(p, plan.run(p.model, exact.at(plan.start), 0), plan.end)
            off = x - ends(plan.end)
            error = float(off.flatten(1).square().mean(1).sqrt().mean())
            shown = torch.cat([x[:starts], TIMES * off[:starts]])
            found.setdefault(name, []).append((f"{error:.3f}", shown))
    return dict(found)


def draw(
    out: str | Path, specs: list[str | None], calls: list[int] | None = None, starts: int = 5
) -> Path:
    """Write the picture; returns its path."""
    lines = []
    for spec in specs:
        lines += list(rows(posed(spec), calls or [5, 8, 10], starts).items())
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    sample_panels(Path(out), lines, starts)
    return Path(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--nfe", default="5,8,10")
    parser.add_argument("--starts", type=int, default=5)
    args = parser.parse_args()
    calls = [int(n) for n in args.nfe.split(",")]
    print(draw(args.out, args.models or [None], calls, args.starts))


if __name__ == "__main__":
    main()
