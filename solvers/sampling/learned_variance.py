"""Ancestral sampling with the variances a network has learned (Nichol & Dhariwal 2021).

    x_s = a x_t + b D(x_t) + c z,   log c^2 = r log beta + (1 - r) log beta~,  r = (1 + o)/2

with a, b of DDPM's mean and o the second half of the network's output, one for each component.
c depends on the state, so this is no table; the fused step takes o as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import ddpm_step
from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser
from ...models.progress import track
from ...models.variational import VarianceHead, data_and_variance
from .. import arguments
from .judge import Watch, judged
from .sampler import GridLike, sampler_for
from .state import Result


def sample_learned_variance(
    model: Denoiser,
    shape: Sequence[int],
    steps: int | None = 100,
    grid: GridLike = "uniform",
    *,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_init: Tensor | None = None,
    cond: dict[str, Any] | None = None,
    nfe: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    final: str = "denoise",
    progress: bool = False,
    on_failure: str = "raise",
) -> Result:
    """Draw samples [B, ...] of a model whose net is a `VarianceHead`, e.g. trained by 'hybrid'.

    The steps and their normals are those of `sample(model, shape, "ddpm", ...)`, which is what
    this is where o = -1. beta and beta~ are of the grid's own steps, as in strided sampling. A
    last step down to sigma = 0 is the denoising jump, without noise.

    steps, nfe, grid, final: see `Sampler`.
    seed, sample_ids, x_init, cond, dtype, device, progress, on_failure: as in `sample`.

    Raises SolverError where NaN or Inf appeared, TypeError for another net, and ValueError for a
    process with alpha^2 + sigma^2 other than 1.
    """
    arguments.on_failure(on_failure)
    arguments.flag("progress", progress)
    arguments.denoiser(model)
    if not isinstance(model.net, VarianceHead):
        kind = type(model.net).__name__
        raise InvalidType(
            f"learned variances need a VarianceHead, as 'hybrid' trains; net is {kind}"
        )
    sampler = sampler_for(
        model, "ddpm", steps, grid, x_init, nfe=nfe, final=final, dtype=dtype, device=device
    )
    process, nodes = model.process, sampler.tableau.grid
    alpha, sigma = process.alpha(nodes), process.sigma(nodes)
    if bool((alpha.square() + sigma.square() - 1).abs().max() > 1e-6):
        raise InvalidValue(f"learned variances need alpha^2 + sigma^2 = 1; {process} has another")
    bar, draw0 = alpha.square().tolist(), sampler.plan.draw0
    start = sampler.init(shape, seed, sample_ids, x_init)
    model = model.told(cond, len(start.x))

    def run(watch: Watch | None = None) -> Tensor:
        x, times = start.x, nodes[:-1].tolist()
        for i, t in enumerate(track(times, "sampling", len(times), progress and watch is None)):
            d, o = data_and_variance(model, x, t)
            noise = (x - float(alpha[i]) * d) / float(sigma[i])
            x = ddpm_step(
                x,
                noise,
                bar[i],
                bar[i + 1],
                variance=o,
                clip=model.clip,
                seed=start.seed,
                sample_ids=start.sample_ids,
                draw=draw0 + i + 1,
            )
            if watch is not None:
                watch(i, torch.stack([d, o], 1), x)
        return x

    with torch.no_grad():
        x = run()
        x = x if dtype is None else x.to(dtype)
        return judged(x, run, nodes[:-1], sampler.nfe * model.calls, on_failure)
