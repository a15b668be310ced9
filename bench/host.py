"""`undiffuse bench host`: what the host spends beside the network, as ratios in one run.

Three questions at five shapes, each beside what a careful person writes by hand and beside the
peers that are installed:

    step     the 20 steps of a run whose network costs nothing, over the loop in place
    sampler  a first and a second `Sampler` of a kind, over diffusers' set_timesteps
    sample   20 calls of a small network, over those calls alone

The contestants of a row take turns, and a ratio is of their medians: a machine that is busy is so
for all of them. bench_host.py has the same loops for pytest-benchmark. Writes host.json and
host.md.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import normal, warm_up
from ..kernels.files import write_text
from ..models import VP, Denoiser
from ..solvers import Sampler
from ..solvers.cache import PLANS
from ..solvers.sampling.sample import sample
from ..solvers.store import environment
from .kernels import step_cost
from .kernels.step_cost import STEPS, Run
from .peers.integrators import k_sampling
from .problems.plans import Unavailable
from .report.table import Table, markdown, show

SHAPES = [(1, 8), (4096, 2), (1, 4, 64, 64), (16, 3, 32, 32), (64, 3, 64, 64)]
ROUNDS, QUICK_ROUNDS = 25, 5  # turns of a row, fewer where they take longer than
BUDGET = 4.0  # seconds


# --- the network costs nothing --------------------------------------------------------------------


def finished(solver: str, shape: tuple[int, ...], out: Tensor) -> Run:
    """A whole run of ours: `Sampler.finish`."""
    sampler = Sampler(Denoiser(lambda x, t: out, VP()), solver, STEPS)
    first = sampler.init(shape)
    return torch.no_grad()(partial(sampler.finish, first))


def k_diffusion_2m(shape: tuple[int, ...], out: Tensor) -> Run:
    """k-diffusion's loop. Raises Unavailable where it is not installed."""
    sampling = k_sampling()
    sigmas = sampling.get_sigmas_karras(STEPS, 0.03, 15.0)
    return torch.no_grad()(
        lambda: sampling.sample_dpmpp_2m(lambda x, sigma: out, out, sigmas, disable=True)
    )


def diffusers_ddpm(shape: tuple[int, ...], out: Tensor) -> Run:
    """diffusers' ancestral scheduler. Raises ImportError where it is not installed."""
    diffusers = importlib.import_module("diffusers")
    return step_cost.scheduled(diffusers.DDPMScheduler(clip_sample=False), out)


DETERMINISTIC: dict[str, Callable[[tuple[int, ...], Tensor], Run]] = {
    "in place": step_cost.by_hand,
    "ours, tell": partial(step_cost.ours, "dpmpp-2m"),
    "ours, finish": partial(finished, "dpmpp-2m"),
    "diffusers": step_cost.diffusers_2m,
    "k-diffusion": k_diffusion_2m,
}
NOISY: dict[str, Callable[[tuple[int, ...], Tensor], Run]] = {
    "in place": step_cost.by_hand_noisy,
    "ours, tell": partial(step_cost.ours, "ddpm"),
    "ours, finish": partial(finished, "ddpm"),
    "diffusers": diffusers_ddpm,
}


# --- a sampler --------------------------------------------------------------------------------


def samplers(solver: str) -> dict[str, Run]:
    """A plan made anew, found again, and what a peer does before its first step."""
    model = Denoiser(lambda x, t: x, VP())

    def anew() -> object:
        PLANS.clear()
        return Sampler(model, solver, STEPS)

    found: dict[str, Run] = {
        "second Sampler": partial(Sampler, model, solver, STEPS),
        "first Sampler": anew,
    }
    try:
        diffusers = importlib.import_module("diffusers")
        scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
        found["diffusers"] = partial(scheduler.set_timesteps, STEPS)
    except ImportError:
        pass
    return found


# --- a small network --------------------------------------------------------------------------


class Residual(nn.Sequential):
    """x and a little more, so that a run of a noise network stays at its scale."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + 0.01 * found


def small(shape: tuple[int, ...]) -> nn.Module:
    """Three layers of 16 channels, or of 64 units."""
    torch.manual_seed(0)
    inner = 16 if len(shape) == 4 else 64
    widths = (shape[1], inner, inner, shape[1])
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers.append(nn.Conv2d(a, b, 3, padding=1) if len(shape) == 4 else nn.Linear(a, b))
    return Residual(*layers).requires_grad_(False)


def runs(shape: tuple[int, ...]) -> dict[str, Run]:
    """20 calls of a small network, alone and in everyone's loop."""
    net, x = small(shape), normal(shape, seed=1)
    model = Denoiser(lambda x, t: net(x), VP())
    columns = Sampler(VP(), "dpmpp-2m", STEPS).plan.table.double().tolist()

    def by_hand() -> Tensor:
        y, older = x.clone(), x
        for skip, w0, _, _, a, b0, b1 in columns:
            d = torch.mul(y, skip).add_(net(y), alpha=w0)
            y.mul_(a).add_(d, alpha=b0).add_(older, alpha=b1)
            older = d
        return y

    found: dict[str, Run] = {
        "network alone": partial(step_cost.calls_alone, net, x),
        "in place": by_hand,
        "ours, sample": partial(sample, model, shape, "dpmpp-2m", STEPS),
    }
    for name, peer in step_cost.PEER_LOOPS.items():
        try:
            found[name.split()[0]] = torch.no_grad()(peer(net, x))
        except (ImportError, Unavailable):
            continue
    return found


# --- turns ------------------------------------------------------------------------------------


def in_turn(contestants: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, measured in turn."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + BUDGET
    for k in range(rounds + 1):
        if k > 3 and time.perf_counter() > end:
            break
        for name, run in contestants.items():
            before = time.perf_counter()
            run()
            if k:  # the first round compiles and allocates
                taken[name].append(time.perf_counter() - before)
    return {name: statistics.median(v) for name, v in taken.items()}


def made(shape: tuple[int, ...], loops: dict[str, Callable[..., Run]]) -> dict[str, Run]:
    """The loops that can run here, of one output of the network."""
    out, found = normal(shape, seed=1), {}
    for name, loop in loops.items():
        try:
            found[name] = loop(shape, out)
        except (ImportError, Unavailable):
            continue
    return found


def run(out: str | Path, quick: bool = False) -> dict[str, Any]:
    """Measure, print, and write host.json and host.md into the folder `out`.

    quick: the two smallest shapes, few rounds.
    """
    out, rounds = Path(out), QUICK_ROUNDS if quick else ROUNDS
    shapes = SHAPES[:2] if quick else SHAPES
    warm_up()
    rows: list[dict[str, Any]] = []

    def measure(what: str, base: str, contestants: dict[str, Run]) -> None:
        seconds = in_turn(contestants, rounds)
        rows.append({"what": what, "base": base, "seconds": seconds})

    for shape in shapes:
        size = "x".join(map(str, shape))
        measure(f"20 steps of dpmpp-2m, {size}", "in place", made(shape, DETERMINISTIC))
        measure(f"20 steps of ddpm, {size}", "in place", made(shape, NOISY))
        measure(f"20 calls of a small network, {size}", "network alone", runs(shape))
    for solver in ("dpmpp-2m", "relay"):
        measure(f"a Sampler of {solver}", "second Sampler", samplers(solver))
    result = {
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "rows": rows,
    }
    tables = [
        _table(rows, kind) for kind in ("steps of dpmpp", "steps of ddpm", "calls", "Sampler")
    ]
    show(tables)
    text = f"Ratios of medians, up to {rounds} turns, {result['threads']} thread(s).\n\n"
    write_text(out / "host.md", text + "\n\n".join(map(markdown, tables)) + "\n")
    write_text(out / "host.json", json.dumps(result, indent=1) + "\n")
    return result


def _table(rows: list[dict[str, Any]], kind: str) -> Table:
    rows = [r for r in rows if kind in r["what"]]
    base = rows[0]["base"]
    names = list(dict.fromkeys(name for r in rows for name in r["seconds"]))
    names.remove(base)
    columns = ["", f"{base}, us", *names]
    cells = []
    for r in rows:
        one = r["seconds"][base]
        ratios = [r["seconds"].get(n, math.nan) / one for n in names]
        cells.append([r["what"], f"{one * 1e6:.0f}", *(f"{v:.2f}" for v in ratios)])
    title = f"Times {base}"
    return Table(title, columns, cells, [[False] * len(columns) for _ in cells])
