"""Samples in one call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser, conditions
from ...models.progress import track
from .. import arguments
from ..carried.result import Density, Sampled
from ..carried.run import carry
from ..outcome import worse
from ..tables.innovations import innovations
from ..tables.tableau import Tableau
from . import entry
from .budget import as_told
from .graph import Repeated
from .judge import FAR, Watch, judged
from .parallel import TOLERANCE
from .pilot import auto
from .pilot_grid import MEASURED, measured
from .sampler import GRID, SOLVER, STEPS, GridLike, Sampler, SolverLike, sampler_for
from .state import Result, State, StepInfo


@overload
def sample(
    model: Denoiser,
    shape: Sequence[int],
    solver: SolverLike = ...,
    steps: int | None = ...,
    grid: GridLike | None = ...,
    seed: int | Tensor = ...,
    *,
    sample_ids: Tensor | Sequence[int] | None = ...,
    x_init: Tensor | None = ...,
    cond: dict[str, Any] | None = ...,
    nfe: int | None = ...,
    dtype: torch.dtype | None = ...,
    device: torch.device | str | None = ...,
    final: str | None = ...,
    progress: bool = ...,
    callback: Callable[[StepInfo], None] | None = ...,
    return_result: bool = ...,
    on_failure: str = ...,
    graph: bool | Literal["auto"] = ...,
    parallel: int | None = ...,
    tolerance: float | None = ...,
    log_prob: Literal[True] | str | Density,
) -> Sampled: ...
@overload
def sample(
    model: Denoiser,
    shape: Sequence[int],
    solver: SolverLike = ...,
    steps: int | None = ...,
    grid: GridLike | None = ...,
    seed: int | Tensor = ...,
    *,
    sample_ids: Tensor | Sequence[int] | None = ...,
    x_init: Tensor | None = ...,
    cond: dict[str, Any] | None = ...,
    nfe: int | None = ...,
    dtype: torch.dtype | None = ...,
    device: torch.device | str | None = ...,
    final: str | None = ...,
    progress: bool = ...,
    callback: Callable[[StepInfo], None] | None = ...,
    return_result: Literal[True],
    on_failure: str = ...,
    graph: bool | Literal["auto"] = ...,
    parallel: int | None = ...,
    tolerance: float | None = ...,
    log_prob: Literal[False] = ...,
) -> Result: ...
@overload
def sample(
    model: Denoiser,
    shape: Sequence[int],
    solver: SolverLike = ...,
    steps: int | None = ...,
    grid: GridLike | None = ...,
    seed: int | Tensor = ...,
    *,
    sample_ids: Tensor | Sequence[int] | None = ...,
    x_init: Tensor | None = ...,
    cond: dict[str, Any] | None = ...,
    nfe: int | None = ...,
    dtype: torch.dtype | None = ...,
    device: torch.device | str | None = ...,
    final: str | None = ...,
    progress: bool = ...,
    callback: Callable[[StepInfo], None] | None = ...,
    return_result: Literal[False] = ...,
    on_failure: str = ...,
    graph: bool | Literal["auto"] = ...,
    parallel: int | None = ...,
    tolerance: float | None = ...,
    log_prob: Literal[False] = ...,
) -> Tensor: ...
def sample(
    model: Denoiser,
    shape: Sequence[int],
    solver: SolverLike = SOLVER,
    steps: int | None = None,
    grid: GridLike | None = None,
    seed: int | Tensor = 0,
    *,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_init: Tensor | None = None,
    cond: dict[str, Any] | None = None,
    nfe: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    final: str | None = None,
    progress: bool = False,
    callback: Callable[[StepInfo], None] | None = None,
    return_result: bool = False,
    on_failure: str = "raise",
    graph: bool | Literal["auto"] = False,
    parallel: int | None = None,
    tolerance: float | None = None,
    log_prob: bool | str | Density = False,
) -> Tensor | Result | Sampled:
    """Draw samples [B, ...]: integrate the reverse ODE or SDE from noise to data.

    model: a `Denoiser`.
    shape: (B, ...).
    solver, steps, nfe, grid, final: what to integrate with and where; see `Sampler`. The default is
        `Relay` with 20 steps, which calls the network once a step. solver 'auto' is what `ud.tune`
        finds for this model at so many calls, by some thousand calls before its first run; grids
        'gits' and 'equidistributed' are measured by some sixty.
    seed, sample_ids: see `Sampler.init`. The same seed gives the same samples, 0 by default.
    x_init: the state at the grid's first time, e.g. of `ud.encode`; by default noise.
    cond: keyword arguments for the network.
    dtype: of the network's input and of the result. By default the network is handed the type of
        its parameters and the result has the state's, float32 or that of a float64 x_init.
    device: by default that of x_init, else the network's.
    progress: draw a bar.
    callback: called after each row with a `StepInfo`.
    return_result: return a `Result` with `nfe` and `status` in the place of the tensor.
    on_failure: 'raise' a `SolverError` that names the step and the samples where NaN or Inf
        appeared, or 'return' what there is, with `status`.
    graph: capture the run in one CUDA graph, without callbacks. For many runs of one shape keep the
        graph: `Sampler.capture`; or 'auto', which captures a run of a network (an nn.Module,
        unguided) that it meets a second time, replays it from then on, and runs all others as ever.
    parallel, tolerance: rows to guess and correct at once, and to what; see `Sampler.sweep`. Fewer
        rounds of larger calls, without callbacks and gradients. By default row by row; tolerance is
        1e-3 by default.
    log_prob: return `Sampled`, with the log-density of each sample by the same network calls. True
        chooses along what ('sde' where the solver draws noise, else 'map' up to 64 components and
        'flow' beyond); a name or a `solvers.Density` says it. x_init counts as a draw of
        N(0, sigma^2). By default a stochastic solver then ends at t_min, where samples have a
        density.

    Gradients flow only if x_init requires them. Raises ValueError and TypeError for bad input,
    before any call.
    """
    arguments.on_failure(on_failure)
    arguments.denoiser(model)
    for name, value in (("progress", progress), ("return_result", return_result)):
        arguments.flag(name, value)
    if not (isinstance(graph, bool) or graph == "auto"):
        raise InvalidType(f"graph must be True, False or 'auto'; got {graph!r}")
    entry.callback(callback)
    if graph is True and callback is not None:
        raise InvalidValue("graph=True leaves no moment between steps to call `callback`")
    if parallel is None and tolerance is not None:
        raise InvalidValue("tolerance is of parallel sweeps: give parallel=, how many rows at once")
    if parallel is not None:
        arguments.whole("parallel", parallel, 1)
        _fit_for_sweeps(graph, callback, x_init)
    density = _density(log_prob, graph, parallel, x_init)
    if isinstance(solver, str) and solver == "auto":
        solver = auto(model, shape, nfe or steps or STEPS, final, cond)
        steps = nfe = None
    if isinstance(grid, str) and grid in MEASURED:
        grid = measured(grid, model, shape, cond)
    if nfe is not None:
        nfe = as_told(model, nfe, cond, arguments.batch_shape("shape", shape)[0])
    sampler = sampler_for(
        model, solver, steps, grid, x_init, nfe=nfe, final=final, dtype=dtype, device=device
    )
    if density is not None and final is None and _ends_without_noise(sampler.tableau):
        sampler = sampler_for(
            model, solver, steps, grid, x_init, nfe=nfe, final="t_min", dtype=dtype, device=device
        )
    first = sampler.init(shape, seed, sample_ids, x_init)

    def run(watch: Watch | None = None) -> Tensor:
        x = first.x
        steps = sampler.steps(first, cond)
        if progress and watch is None:
            steps = track(steps, "sampling", sampler.nfe, True)
        for step in steps:
            x = step.x
            if watch is not None:
                watch(int(step.row), step.out, step.x)
            elif callback is not None:
                callback(step)
        return x

    def by_graph() -> Tensor | None:
        if graph is True:
            return sampler.capture(shape, cond, x_init)(seed, sample_ids)
        seen = model._seen
        seen.repeated = seen.repeated or Repeated()
        plain = callback is None and not progress
        return seen.repeated.run(sampler, shape, seed, sample_ids, x_init, cond) if plain else None

    if density is not None:
        return _with_density(sampler, first, cond, density, callback, progress, on_failure, run)
    swept = None
    with torch.set_grad_enabled(isinstance(x_init, Tensor) and x_init.requires_grad):
        if parallel is not None:
            loose = TOLERANCE if tolerance is None else tolerance
            rounds = sampler.sweeps(first, parallel, loose, cond)
            *_, swept = track(rounds, "sampling", sampler.nfe, progress)
            x = swept.x
        else:
            found = by_graph() if graph else None
            x = run() if found is None else found
    x = x if dtype is None else x.to(dtype)
    table = sampler.tableau
    told = model.given(cond, len(x))
    calls: int | Tensor = model.calls_of(sampler.plan.times, told)
    calls, waits = (calls, table.depth) if swept is None else (swept.nfe, swept.rounds)
    with torch.no_grad():
        other = None if x_init is not None else partial(_steady, sampler, first, cond)
        result = judged(x, run, table.times, calls, on_failure, model.process, table, waits, other)
    return result if return_result else x


HELD: weakref.WeakKeyDictionary[Denoiser, dict[int, tuple[str, float]]] = (
    weakref.WeakKeyDictionary()
)
"""What `_steady` found of a model by number of calls: data that are large ask for it but once."""


def _steady(
    sampler: Sampler, first: State, cond: dict[str, Any] | None, i: int
) -> tuple[str, float]:
    """How to ask for a run that holds, and how far it ends from the noise of sample i at as many
    calls: the default, unless DDIM ends far nearer."""
    model, batch, nfe = sampler.model, len(first.x), max(2, sampler.nfe)
    known = HELD.setdefault(model, {})
    if nfe not in known:
        rows = torch.tensor([i], device="cpu")
        told = conditions.rows(model.told(cond, batch).cond, rows, batch)
        seed = first.seed if first.seed.numel() == 1 else first.seed[i : i + 1]
        ids, shape, ends = first.sample_ids[i : i + 1], (1, *first.x.shape[1:]), []
        for name in (SOLVER, "ddim"):
            one = Sampler(
                model, name, nfe=nfe * model.calls, dtype=sampler.dtype, device=sampler.device
            )
            far = float(one.finish(one.init(shape, seed, ids), told).abs().max())
            ends.append((f"solver={name!r}, grid={GRID!r}", far))
        least = min(far for _, far in ends)
        known[nfe] = next(end for end in ends if end[1] <= FAR * least)
    return known[nfe]


def _density(
    asked: bool | str | Density, graph: bool | str, parallel: int | None, x_init: Tensor | None
) -> Density | None:
    """What `log_prob` asks for; raises for what does not go with it."""
    if not isinstance(asked, bool | str | Density):
        raise InvalidType(
            f"log_prob must be True, 'map', 'flow', 'sde' or a Density; got {asked!r}"
        )
    if asked is False:
        return None
    if graph or parallel is not None:
        what = f"graph={graph!r}" if graph else "parallel"
        raise InvalidValue(f"{what} does not go with log_prob, which follows the run row by row")
    if isinstance(x_init, Tensor) and x_init.requires_grad:
        raise InvalidValue(
            "x_init requires gradients, which do not flow with log_prob: detach it, or see "
            "solvers.likelihood.differentiable_log_prob"
        )
    if isinstance(asked, Density):
        return asked
    return Density() if asked is True else Density(along=asked)


def _ends_without_noise(table: Any) -> bool:
    """Whether a stochastic run's last row is a jump."""
    return (
        bool(table.stochastic)
        and isinstance(table, Tableau)
        and not float(innovations(table).std[-1])
    )


def _with_density(
    sampler: Sampler,
    first: State,
    cond: dict[str, Any] | None,
    density: Density,
    callback: Callable[[StepInfo], None] | None,
    progress: bool,
    on_failure: str,
    run: Callable[..., Tensor],
) -> Sampled:
    """The run, row by row, with the density of its samples."""
    bar = track(iter(range(sampler.nfe)), "sampling", sampler.nfe, progress)

    def after_row(step: StepInfo) -> None:
        next(bar, None)
        if callback is not None:
            callback(step)

    with torch.no_grad():
        found = carry(sampler, first, cond, density, after_row)
    next(bar, None)
    model, table = sampler.model, sampler.tableau
    calls = model.calls_of(sampler.plan.times, model.given(cond, len(found.x)))
    with torch.no_grad():
        ended = judged(
            found.x, run, table.times, calls, on_failure, model.process, table, table.depth
        )
    status = ended.status if found.doubt is None else worse(ended.status, found.doubt)
    return Sampled(
        found.x,
        found.log_prob,
        found.std_error,
        found.path_error,
        found.along,
        ended.nfe,
        found.products,
        ended.times,
        status,
        len(table.times),
    )


def _fit_for_sweeps(graph: bool | str, callback: object, x_init: Tensor | None) -> None:
    """Raises ValueError for what sweeps over many rows cannot do."""
    if graph or callback is not None:
        what = f"graph={graph!r}" if graph else "callback"
        raise InvalidValue(f"{what} does not go with parallel=: the rows come as the samples do")
    if isinstance(x_init, Tensor) and x_init.requires_grad:
        raise InvalidValue("x_init requires gradients, which do not flow through parallel= sweeps")
