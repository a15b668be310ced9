"""The host's cost of a step without the network, beside the loop that a careful person writes.

That loop is in place, with its coefficients as floats; the peers' schedulers are driven as their
documentation does. Shared by bench_step.py and `undiffuse bench kernels`, which on a GPU also times
whole runs of a network.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...kernels import normal
from ...models import VP, Denoiser
from ...solvers import Sampler
from ...solvers.sampling.sample import sample
from ..peers.integrators import k_sampling
from ..problems.plans import Unavailable

SIZES = [(1, 4, 64, 64), (16, 3, 32, 32), (64, 3, 64, 64)]
STEPS = 20
Run = Callable[[], object]


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
    return scheduled(diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True), out)


def scheduled(scheduler: Any, out: Tensor) -> Run:
    """The loop of a pipeline of diffusers whose network returns `out`."""

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS)
        x = out
        for t in scheduler.timesteps:
            x = scheduler.step(out, t, x).prev_sample
        return x

    return run


def whole_runs(seconds: Callable[[Run, torch.device], float]) -> dict[str, float]:
    """Seconds of STEPS calls of a small network on a CUDA device and of runs that make them: by
    the eager loop, by one captured graph, and by the peers, on [16, 1, 8, 8] and [16, 4, 64, 64].

    The network is three convolutions of 64 channels: its kernels are shorter than the host's work
    between two calls, which is what is looked at.
    """
    found: dict[str, float] = {}
    device = torch.device("cuda")
    for shape in ((16, 1, 8, 8), (16, 4, 64, 64)):
        torch.manual_seed(0)
        widths = (shape[1], 64, 64, shape[1])
        layers = [torch.nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
        net = torch.nn.Sequential(*layers).to(device).requires_grad_(False)
        model = Denoiser(lambda x, t, net=net: net(x), VP(), predicts="noise")
        x, size = torch.randn(shape, device=device), "x".join(map(str, shape))
        captured = Sampler(model, "dpmpp-2m", STEPS, "karras", device=device).capture(shape)
        runs: dict[str, Run] = {
            "network alone": partial(calls_alone, net, x),
            "sample": partial(sample, model, shape, "dpmpp-2m", STEPS, "karras", device=device),
            "captured graph": captured,
        }
        for name, peer in PEER_LOOPS.items():
            try:
                runs[name] = peer(net, x)
            except (ImportError, Unavailable):
                continue
        found |= {f"{name}, {size}": seconds(run, device) for name, run in runs.items()}
    return found


def calls_alone(net: torch.nn.Module, x: Tensor) -> Tensor:
    """STEPS calls of the network and nothing else."""
    for _ in range(STEPS - 1):
        net(x)
    out: Tensor = net(x)
    return out


def _diffusers_loop(net: torch.nn.Module, x: Tensor) -> Run:
    scheduler = importlib.import_module("diffusers").DPMSolverMultistepScheduler(
        use_karras_sigmas=True
    )

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS, device=x.device)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(net(scheduler.scale_model_input(y, t)), t, y).prev_sample
        return y

    return run


def _k_diffusion_loop(net: torch.nn.Module, x: Tensor) -> Run:
    sampling = k_sampling()
    sigmas = sampling.get_sigmas_karras(STEPS, 0.03, 15.0, device=x.device)

    def run() -> Tensor:
        found: Tensor = sampling.sample_dpmpp_2m(
            lambda y, sigma: y - sigma[0] * net(y), x * sigmas[0], sigmas, disable=True
        )
        return found

    return run


PEER_LOOPS: dict[str, Callable[[torch.nn.Module, Tensor], Run]] = {
    "diffusers DPM++2M": _diffusers_loop,
    "k-diffusion dpmpp_2m": _k_diffusion_loop,
}


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
