"""Pictures at 5, 8 and 10 calls, from the same noise: ours, diffusers' and the exact flow.

    python examples/few_calls.py out/few-calls.png examples/bank/fashion-flow-unet.safetensors ...

A column a start. The rows of a network: its fine solution, then at each number of calls our default
and diffusers' UniPC as shipped.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import undiffuse as ud
from undiffuse.bench.peers.samplers import chosen
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import of_table, plan_of
from undiffuse.bench.problems.problem import Problem, signal

CALLS, STARTS = (5, 8, 10), 8


def posed(spec: str) -> Problem:
    """The network from STARTS starts of seed 0."""
    loaded = ud.load(spec)
    data = torch.zeros(2, *loaded.event_shape, dtype=torch.float64)
    data[1] = 1.0  # the unit of errors, which no picture asks for
    return problems.network(Path(spec).stem, spec, loaded.denoiser, data, STARTS)


def rows(p: Problem) -> dict[str, Tensor]:
    """Pictures [B, C, H, W] by the row's name."""
    (unipc,) = chosen(["UniPC (default)"])
    plans = {}
    for n in CALLS:
        table = ud.Sampler(p.model, nfe=n).tableau
        plans[f"{n}: ours"] = of_table(p.process, table)
        plans[f"{n}: UniPC"] = plan_of(unipc, p, n)
    ratios = {r for plan in plans.values() for r in (plan.start, plan.end)}
    exact = problems.solve(p, {*ratios, 0.0}, 0)
    found = {"exact": signal(exact.at(0.0), 0.0)}
    for name, plan in plans.items():
        with torch.no_grad():
            found[name] = signal(plan.run(p.model, exact.at(plan.start), 0), plan.end)
    return found


def draw(out: str | Path, specs: list[str]) -> Path:
    """Write the picture; returns its path."""
    from matplotlib.figure import Figure

    every = [(spec, rows(posed(spec))) for spec in specs]
    count = 1 + 2 * len(CALLS)
    figure = Figure(figsize=(STARTS * len(specs) * 0.62 + 1, count * 0.66 + 0.4))
    axes = figure.subplots(count, len(specs) * STARTS, squeeze=False)
    for i, (spec, held) in enumerate(every):
        for row, (name, x) in enumerate(held.items()):
            for k in range(STARTS):
                at = axes[row, i * STARTS + k]
                at.imshow(x[k, 0], cmap="gray", vmin=-1, vmax=1)
                at.set_xticks([])
                at.set_yticks([])
                if not k and not i:
                    at.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes[0, i * STARTS].set_title(Path(spec).stem, loc="left", fontsize=8)
    figure.subplots_adjust(left=0.06, right=0.995, bottom=0.01, top=0.95, wspace=0.06, hspace=0.06)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return Path(out)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python examples/few_calls.py OUT.png MODEL ...")
    print(draw(sys.argv[1], sys.argv[2:]))
