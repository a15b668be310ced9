"""Predictor-corrector sampling and annealed Langevin dynamics (Song et al. 2021; Song & Ermon 2019).

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
from ...models import Denoiser
from ..tables.solver import Solver
from .sampler import GridLike, Sampler
from .state import Result, State


def predictor_corrector(
    model: Denoiser,
    shape: Sequence[int],
    predictor: str | Solver = "reverse-diffusion",
    steps: int = 1000,
    grid: GridLike = "uniform",
    *,
    snr: float = 0.16,
    corrections: int = 1,
    first: str = "corrector",
    seed: int = 0,
    sample_ids: Tensor | None = None,
    x_init: Tensor | None = None,
    final: str = "denoise",
    cond: dict[str, Any] | None = None,
) -> Result:
    """Draw samples [B, ...] with `corrections` Langevin steps at every node of the grid.

    predictor: any registered solver whose rows need no history (one or several a step would be
    corrected in mid-step, so one row a step). first: 'corrector' (score_sde's loop) or
    'predictor' (the paper's algorithm; no correction after a denoising jump). snr: 0.16, or the
    values that the models were published with. nfe counts every call.
    Raises ValueError for a predictor with history or several stages, and for bad settings.
    """
    if first not in ("corrector", "predictor"):
        raise InvalidValue(f"first must be 'corrector' or 'predictor'; got {first!r}")
    if not snr > 0 or corrections < 0:
        raise InvalidValue(f"snr must be > 0 and corrections >= 0; got {snr} and {corrections}")
    sampler = Sampler(model, predictor, steps, grid, final=final)
    table, process = sampler.tableau, model.process
    if table.nfe != len(table.grid) - 1 or table.state.shape[1] > 1 or table.data.shape[1] > 1:
        raise InvalidValue(
            f"predictor must take one row a step and no history; {table.name} does not: use "
            "'reverse-diffusion', 'euler-maruyama', 'ddpm', 'ddim' or 'euler-ancestral'"
        )
    cond = {**model.cond, **(cond or {})}
    alpha = process.alpha(table.grid)
    # the paper's algorithm corrects after each step, so at the last node too where that has noise
    ends_noisy = first == "predictor" and float(process.sigma(table.grid[-1])) > 0
    decay = (alpha[:-1] / alpha[1:]).square().tolist()

    def corrected(state: State) -> State:
        """The state after the corrections of its node."""
        x, node = state.x, state.row
        t = float(table.grid[node])
        for j in range(corrections):
            score = model.score(x, t, **cond)
            x = langevin_step(
                x, score, snr=snr, alpha=decay[min(node, len(decay) - 1)], seed=seed,
                sample_ids=state.sample_ids, draw=sampler.plan.draw0 + node * corrections + j,
            )  # fmt: skip
        return state.replace(x=x)

    def before(state: State) -> State:
        return corrected(state) if state.row or first == "corrector" else state

    with torch.no_grad():
        state = sampler.init(shape, seed, sample_ids, x_init)
        for step in sampler.steps(state, cond, edit=before):
            state = step.after
        if ends_noisy:
            state = corrected(state)
    nodes = table.nfe - (first == "predictor") + ends_noisy
    nfe = table.nfe + nodes * corrections
    status = (~torch.isfinite(state.x).flatten(1).all(1)).long() * 2
    return Result(state.x, nfe, table.times, status)


def annealed_langevin(
    model: Denoiser,
    shape: Sequence[int],
    levels: GridLike,
    corrections: int = 100,
    *,
    steps: int = 10,
    snr: float = 0.316,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    denoise: bool = True,
) -> Result:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1): `corrections` steps a level.

        x' = x + eps s + sqrt(2 eps) z,   eps = 2 (snr sigma)^2

    levels: a grid of `steps` times, noise to data; denoise: end with D at the last level.
    The step size is fixed by the level, so that on Gaussian data the law is a closed form.
    """
    sampler = Sampler(model, "ddim", steps, levels, final="denoise")
    times = sampler.tableau.times
    with torch.no_grad():
        state = sampler.init(shape, seed, sample_ids)
        x = state.x
        for i, t in enumerate(times.tolist()):
            eps = 2 * (snr * float(model.process.sigma(t))) ** 2
            for j in range(corrections):
                x = langevin_step(
                    x, model.score(x, t), step_size=eps, seed=seed,
                    sample_ids=state.sample_ids, draw=i * corrections + j,
                )  # fmt: skip
        if denoise:
            x = model(x, float(times[-1]))
    status = (~torch.isfinite(x).flatten(1).all(1)).long() * 2
    return Result(x, len(times) * corrections + int(denoise), times, status)
