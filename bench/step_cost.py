"""The host's cost of a step without the network, beside the loop that a careful person writes.

That loop is in place, with its coefficients as floats; the peers' schedulers are driven as their
documentation does. Shared by bench_step.py and `undiffuse bench kernels`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import normal
from ..models import VP
from ..solvers import Sampler

SIZES = [(1, 4, 64, 64), (16, 3, 32, 32), (64, 3, 64, 64)]
STEPS = 20
Run = Callable[[], Tensor]


def ours(solver: str, shape: tuple[int, ...], out: Tensor) -> Run:
    """The whole loop of a `Sampler`, the network's output given."""
    sampler = Sampler(VP(), solver, STEPS, predicts="noise")
    first = sampler.init(shape)

    def run() -> Tensor:
        state = first
        while not state.done:
            state = sampler.tell(state, out)
        return state.x

    return run


def by_hand(shape: tuple[int, ...], out: Tensor) -> Run:
    """DPM-Solver++ 2M of a noise network: D, then three terms, in place."""
    columns = Sampler(VP(), "dpmpp-2m", STEPS, predicts="noise").plan.table.double().tolist()
    first = torch.randn(shape)

    def run() -> Tensor:
        x, older = first.clone(), out
        for skip, w0, _, _, a, b0, b1 in columns:
            d = torch.mul(x, skip).add_(out, alpha=w0)
            x.mul_(a).add_(d, alpha=b0).add_(older, alpha=b1)
            older = d
        return x

    return run


def by_hand_noisy(shape: tuple[int, ...], out: Tensor) -> Run:
    """DDPM of a noise network, folded to three terms, in place."""
    columns = Sampler(VP(), "ddpm", STEPS, predicts="noise").plan.table.double().tolist()
    first = torch.randn(shape)

    def run() -> Tensor:
        x = first.clone()
        for *_, a, b, c in columns:
            x.mul_(a).add_(out, alpha=b).add_(torch.randn_like(x), alpha=c)
        return x

    return run


def diffusers_2m(shape: tuple[int, ...], out: Tensor) -> Run:
    """diffusers' multistep scheduler. Raises ImportError where it is not installed."""
    diffusers = importlib.import_module("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS)
        x = out
        for t in scheduler.timesteps:
            x = scheduler.step(out, t, x).prev_sample
        return x

    return run


def ratios(seconds: Callable[[Run, torch.device], float]) -> dict[str, float]:
    """Our loop over the hand-written one, and the scheduler over ours, by size."""
    found, cpu = {}, torch.device("cpu")
    for shape in SIZES:
        out, size = normal(shape, seed=1), "x".join(map(str, shape))
        plain, noisy = seconds(by_hand(shape, out), cpu), seconds(by_hand_noisy(shape, out), cpu)
        mine = seconds(ours("dpmpp-2m", shape, out), cpu)
        found[f"dpmpp-2m / in-place loop, {size}"] = mine / plain
        found[f"ddpm / in-place loop with torch.randn, {size}"] = (
            seconds(ours("ddpm", shape, out), cpu) / noisy
        )
        try:
            found[f"diffusers DPM++2M / ours, {size}"] = (
                seconds(diffusers_2m(shape, out), cpu) / mine
            )
        except ImportError:
            continue
    return found
