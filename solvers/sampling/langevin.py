"""Predictor-corrector sampling (Song et al. 2021), annealed Langevin (Song & Ermon 2019).

    corrector   x' = x + eps s + sqrt(2 eps) z,   eps = 2 a (snr |z|/|s|)^2

with the norms of each sample alone and a = (alpha_t/alpha_s)^2 of the step at hand, 1 - beta for VP
and 1 for VE. Not linear in x, so no table: it runs between the rows of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import langevin_step
from ...kernels.errors import InvalidValue
from ...kernels.langevin import NORMS
from ...models import Denoiser
from .. import arguments
from ..tables.solver import Solver
from .judge import Watch, judged
from .sampler import GridLike, sampler_for
from .state import Result, State


def predictor_corrector(
    model: Denoiser,
    shape: Sequence[int],
    predictor: str | Solver = "reverse-diffusion",
    steps: int | None = 1000,
    grid: GridLike = "uniform",
    *,
    snr: float = 0.16,
    corrections: int = 1,
    first: str = "corrector",
    norm: str = "sample",
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_init: Tensor | None = None,
    cond: dict[str, Any] | None = None,
    nfe: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    final: str = "denoise",
    on_failure: str = "raise",
) -> Result:
    """Draw samples [B, ...] with `corrections` Langevin steps at every node of the grid.

    predictor: a solver whose rows take one step each and need no history, e.g. 'reverse-diffusion',
        'euler-maruyama', 'ddpm', 'ddim' or 'euler-ancestral'.
    steps, nfe, grid, final: see `Sampler`; nfe here counts the predictor's calls.
    snr: ratio r of a correction's noise to its score, in (0, 1]. On Gaussian data a correction
        multiplies x by 1 - 2 r^2, which overshoots beyond 1. Published models name theirs.
    corrections: Langevin steps at each node, >= 0; each calls the network once.
    first: 'corrector', score_sde's loop, or 'predictor', the paper's algorithm, which corrects
        after each step but not after a denoising jump.
    norm: 'sample' takes the norms |z| and |s| of each sample alone; 'batch' their means over the
        batch, as score_sde does, and then a sample depends on its neighbours.
    seed, sample_ids, x_init, cond, dtype, device, on_failure: as in `sample`.

    `Result.nfe` counts every call. Raises ValueError for a predictor with history or several
    stages and for bad settings, SolverError where NaN or Inf appeared.
    """
    if first not in ("corrector", "predictor"):
        raise InvalidValue(f"first must be 'corrector' or 'predictor'; got {first!r}")
    arguments.choice("norm", norm, NORMS)
    arguments.positive("snr", snr, 1.0)
    arguments.whole("corrections", corrections, 0)
    arguments.on_failure(on_failure)
    arguments.denoiser(model)
    sampler = sampler_for(
        model, predictor, steps, grid, x_init, nfe=nfe, final=final, dtype=dtype, device=device
    )
    table, process = sampler.tableau, model.process
    if table.nfe != len(table.grid) - 1 or table.state.shape[1] > 1 or table.data.shape[1] > 1:
        raise InvalidValue(
            f"predictor must take one row a step and no history; {table.name} does not: use "
            "'reverse-diffusion', 'euler-maruyama', 'ddpm', 'ddim' or 'euler-ancestral'"
        )
    alpha = process.alpha(table.grid)
    # the paper's algorithm corrects after each step, so at the last node too where that has noise
    ends_noisy = first == "predictor" and float(process.sigma(table.grid[-1])) > 0
    decay = (alpha[:-1] / alpha[1:]).square().tolist()

    def corrected(state: State) -> State:
        """The state after the corrections of its node."""
        x, node = state.x, state.uniform or 0
        t = float(table.grid[node])
        for j in range(corrections):
            score = model.score(x, t)
            x = langevin_step(
                x,
                score,
                snr=snr,
                alpha=decay[min(node, len(decay) - 1)],
                norm=norm,
                seed=state.seed,
                sample_ids=state.sample_ids,
                draw=sampler.plan.draw0 + node * corrections + j,
            )
        return state.replace(x=x)

    def before(state: State) -> State:
        return corrected(state) if state.uniform or first == "corrector" else state

    start = sampler.init(shape, seed, sample_ids, x_init)
    model = model.told(cond, len(start.x))

    def run(watch: Watch | None = None) -> Tensor:
        state = start
        for step in sampler.steps(state, cond, edit=before):
            state = step.after
            if watch is not None:
                watch(int(step.row), step.out, state.x)
        return corrected(state).x if ends_noisy else state.x

    at = table.grid.tolist()
    at = at[first == "predictor" : table.nfe] + at[table.nfe :] * ends_noisy
    calls = sum(model.calls_at(t, model.cond) for t in [*sampler.plan.times, *at * corrections])
    with torch.no_grad():
        x = run()
        x = x if dtype is None else x.to(dtype)
        return judged(x, run, table.times, calls, on_failure, process, table)


def annealed_langevin(
    model: Denoiser,
    shape: Sequence[int],
    levels: GridLike,
    corrections: int = 100,
    *,
    steps: int = 10,
    snr: float = 0.316,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_init: Tensor | None = None,
    cond: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    denoise: bool = True,
    on_failure: str = "raise",
) -> Result:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1): `corrections` steps a level.

        x' = x + eps s + sqrt(2 eps) z,   eps = 2 (snr sigma)^2

    levels: a grid of `steps` times, noise to data.
    corrections: Langevin steps at each level, >= 1.
    snr: in (0, 1]; beyond 1 a step overshoots where the data are narrow.
    denoise: end with D at the last level.
    seed, sample_ids, x_init, cond, dtype, device, on_failure: as in `sample`.

    The step size is fixed by the level, so that on Gaussian data the law is a closed form. Raises
    ValueError for bad settings, SolverError where NaN or Inf appeared.
    """
    arguments.whole("corrections", corrections)
    arguments.positive("snr", snr, 1.0)
    arguments.flag("denoise", denoise)
    arguments.on_failure(on_failure)
    arguments.denoiser(model)
    sampler = sampler_for(model, "ddim", steps, levels, x_init, dtype=dtype, device=device)
    times, start = sampler.tableau.times, sampler.init(shape, seed, sample_ids, x_init)
    model = model.told(cond, len(start.x))

    def run(watch: Watch | None = None) -> Tensor:
        x = start.x
        for i, t in enumerate(times.tolist()):
            eps = 2 * (snr * float(model.process.sigma(t))) ** 2
            for j in range(corrections):
                score = model.score(x, t)
                x = langevin_step(
                    x,
                    score,
                    step_size=eps,
                    seed=start.seed,
                    sample_ids=start.sample_ids,
                    draw=sampler.plan.draw0 + i * corrections + j,
                )
                if watch is not None:
                    watch(i, score, x)
        return model(x, float(times[-1])) if denoise else x

    at = times.tolist() * corrections + times[-1:].tolist() * denoise
    calls = sum(model.calls_at(t, model.cond) for t in at)
    with torch.no_grad():
        x = run()
        x = x if dtype is None else x.to(dtype)
        return judged(x, run, times, calls, on_failure)
