"""Sampling: the loop, and the same loop turned inside out for callers who own it.

    tableau (float64, host) -> folded with the read-out -> one small device table ->
    loop: [network] -> linear_step(x, out, history, table, row) -> ...

Between two network calls there is one operator: it reads its row through a pointer, draws its
normals where they are used, and writes the next state and network input. Nothing in the loop reads
a tensor's value on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from ...kernels import linear_step, normal
from ...kernels.checks import as_seed, check_batch, ids_or_places
from ...kernels.errors import InvalidType, InvalidValue, RunFailure
from ...kernels.streams import ENTRY, INITIAL
from ...models import Denoiser, Process
from ...models.guidance.rule import calls_of
from ...models.progress import track
from ..arguments import device_of, dtype_of
from ..families.preconditioned import GaussianPreconditioned
from ..families.registry import get
from ..outcome import SolverError, verdict
from ..tables import grids
from ..tables.solver import Solver
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau
from .graph import GraphedRun
from .plan import compose

SolverLike = str | Solver | GaussianPreconditioned | Tableau | SpectralTable
GridLike = str | grids.Grid | Sequence[float] | Tensor
SOLVER, GRID = "relay", "laplace-wide"  # where the user names none


class State(NamedTuple):
    """All that a run needs to go on; `Sampler.tell` returns a new one, so it can be kept or forked.

    x [B, ...]: the state (of a spectral table: its components); after the last row, the sample.
    x_in, t_in [B]: what to call the network with (None when done). row: rows done. states, datas:
    history, most recent first. seed int64 [1] or [B], sample_ids int64 [B]: whose noise this is.
    """

    x: Tensor
    x_in: Tensor | None
    t_in: Tensor | None
    row: int
    states: tuple[Tensor, ...]
    datas: tuple[Tensor, ...]
    seed: Tensor
    sample_ids: Tensor

    @property
    def done(self) -> bool:
        """Whether `x` is the sample."""
        return self.x_in is None


class StepInfo(NamedTuple):
    """What a callback sees after each row: x is the new state, out the network's output at t."""

    row: int
    t: float
    x: Tensor
    out: Tensor


class Result(NamedTuple):
    """x [B, ...]; nfe: network calls, of which guidance makes several at each of the float64 times
    [N]; status int64 [B]."""

    x: Tensor
    nfe: int
    times: Tensor
    status: Tensor


class Sampler:
    """A solver on a grid for a model, with the loop left to the caller.

        state = sampler.init(shape, seed=0)
        while not state.done:
            state = sampler.tell(state, net(state.x_in, state.t_in))
        state.x

    model: a `Denoiser`, or a `Process` together with `predicts` where the network lives elsewhere.
    solver: a name, a `Solver`, a `Tableau`, or what `spectral` has of either. steps, grid, final:
    see `grids.times`. dtype: float32 (default) or float64 for the state; a half type keeps state
    and times in float32 and hands the network its x in that type. Raises ValueError for what does
    not fit, before any call.
    """

    def __init__(
        self,
        model: Denoiser | Process,
        solver: SolverLike = SOLVER,
        steps: int | None = 20,
        grid: GridLike = GRID,
        *,
        final: str = "denoise",
        predicts: str = "noise",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(model, Process):
            model = Denoiser(_no_network, model, predicts=predicts)
        if not isinstance(model, Denoiser):
            raise InvalidType(f"model must be a Denoiser or a Process; got {type(model).__name__}")
        if dtype is not None and not dtype.is_floating_point:
            raise InvalidValue(f"dtype must be a floating type; got {dtype}")
        dtype = dtype or dtype_of(model)
        self.model = model
        self.device = torch.device(device or device_of(model))
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.net_dtype = dtype
        if isinstance(solver, Tableau | SpectralTable):
            self.tableau = solver
        else:
            t = grids.times(_for_model(grid, model), model.process, steps, final, model.t_min)
            self.tableau = get(solver).tableau(model.process, t)
        self.plan = compose(self.tableau, model, self.device, self.dtype)

    @property
    def nfe(self) -> int:
        """Network calls of one run."""
        return self.tableau.nfe

    def init(
        self,
        shape: Sequence[int],
        seed: int | Tensor = 0,
        sample_ids: Tensor | Sequence[int] | None = None,
        x_init: Tensor | None = None,
    ) -> State:
        """The state before the first call: x_init, or sigma(t_0) z with z of draw 0, 'initial'.

        shape: (B, ...). seed: int or int64 [B]; sample_ids: int64 [B], global ids, by default
        0..B-1. The same (seed, sample id) gives the same sample in any batch, order or shard.
        """
        if not isinstance(shape, Sequence):
            raise InvalidType(f"shape must be (batch, ...); got {shape!r}")
        shape = tuple(int(n) for n in shape)
        if len(shape) < 2 or min(shape) < 1:
            raise InvalidValue(f"shape must be (batch, ...) of positive sizes; got {shape}")
        ids = ids_or_places(sample_ids, shape[0], self.device)
        seed = as_seed(seed, self.device)
        check_batch("seed", seed, shape[0])
        if x_init is None and self.tableau.grid[0] < self.tableau.grid[-1]:
            raise InvalidValue(f"{self.tableau.name} starts from data: give them as x_init")
        if x_init is None:
            z = normal(shape, seed, ids, **INITIAL.at(), device=self.device)
            x = z.to(self.dtype) * float(self.model.process.sigma(self.tableau.grid[0]))
        elif not isinstance(x_init, Tensor) or tuple(x_init.shape) != shape:
            got = tuple(getattr(x_init, "shape", ())) or type(x_init).__name__
            raise InvalidValue(f"x_init must be a tensor of shape {shape}; got {got}")
        else:
            x = x_init.to(self.device, self.dtype).contiguous()
        frame = self.plan.frame
        if frame is not None:
            frame.fits(shape)
            x = frame.enter(x)
            x_in = frame.asked(x, 0)
        else:
            scale, noise = self.tableau.entry
            if (scale, noise) != (1.0, 0.0):
                z = normal(shape, seed, ids, **ENTRY.at(), device=self.device)
                x = scale * x + noise * z.to(self.dtype)
            x_in = x * self.plan.c_in0 if self.plan.scaled else x
        x_in = x_in.to(self.net_dtype)
        return State(x, x_in, self.plan.t_in[0].expand(shape[0]), 0, (), (), seed, ids)

    def tell(self, state: State, out: Tensor) -> State:
        """Take the network's output at (state.x_in, state.t_in) and step to the next row.

        Raises ValueError if the run is over or `out` has another shape than the state.
        """
        if state.x_in is None:
            raise InvalidValue(f"the run is over after {self.nfe} network calls; start with init()")
        if not isinstance(out, Tensor) or out.shape != state.x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InvalidValue(
                f"out, what the network returned, must have the shape of x {tuple(state.x.shape)}; "
                f"got {got}"
            )
        plan, i = self.plan, state.row
        last, frame = i == self.nfe - 1, plan.frame
        fresh = plan.scaled or (self.net_dtype != state.x.dtype and frame is None)
        step = linear_step(  # fresh: x_in is not x itself
            state.x,
            out if frame is None else frame.heard(out, i, self.dtype),
            plan.table,
            plan.rows[i],
            states=_padded(state.states, plan.states, state.x),
            data=_padded(state.datas, plan.datas, state.x),
            draws=plan.draws,
            seed=state.seed,
            sample_ids=state.sample_ids,
            keep_data=plan.datas > 0 and not last,
            next_dtype=self.net_dtype if fresh and not last else None,
            clip=self.model.clip,
        )
        states = (state.x, *state.states)[: plan.states]
        datas = () if step.data is None else (step.data, *state.datas)[: plan.datas]
        if last:
            x = step.x if frame is None else frame.leave(step.x)
            return State(x, None, None, i + 1, states, datas, state.seed, state.sample_ids)
        x_in = step.x_in if fresh else step.x
        if frame is not None:
            x_in = frame.asked(step.x, i + 1).to(self.net_dtype)
        t_in = plan.t_in[i + 1].expand(len(step.x))
        return State(step.x, x_in, t_in, i + 1, states, datas, state.seed, state.sample_ids)

    def sample_of(self, state: State) -> Tensor:
        """x of a state, at the time of its row: of a spectral table too, which keeps components."""
        frame = self.plan.frame
        return state.x if frame is None or state.done else frame.sample(state.x, state.row + 1)

    def capture(
        self,
        shape: Sequence[int],
        cond: dict[str, Any] | None = None,
        x_init: Tensor | None = None,
    ) -> GraphedRun:
        """Capture the whole run of `model.net` in one CUDA graph; replay as often as you like.

            run = sampler.capture(shape)
            x = run(seed=1)          # new seeds and sample ids are written into its buffers

        Raises ValueError where the sampler is not on a CUDA device.
        """
        return GraphedRun(self, self.model.net, shape, {**self.model.cond, **(cond or {})}, x_init)


@overload
def sample(
    model: Denoiser, shape: Sequence[int], solver: SolverLike = ...,
    steps: int | None = ..., grid: GridLike = ..., *, return_result: Literal[True], **rest: Any,
) -> Result: ...  # fmt: skip
@overload
def sample(
    model: Denoiser, shape: Sequence[int], solver: SolverLike = ...,
    steps: int | None = ..., grid: GridLike = ..., seed: int | Tensor = ..., **rest: Any,
) -> Tensor: ...  # fmt: skip
def sample(  # type: ignore[misc]  # **rest stands for the arguments spelled out here
    model: Denoiser,
    shape: Sequence[int],
    solver: SolverLike = SOLVER,
    steps: int | None = 20,
    grid: GridLike = GRID,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_init: Tensor | None = None,
    cond: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    final: str = "denoise",
    progress: bool = False,
    callback: Callable[[StepInfo], None] | None = None,
    return_result: bool = False,
    on_failure: str = "raise",
    graph: bool = False,
) -> Tensor | Result:
    """Draw samples [B, ...]: integrate the reverse ODE or SDE from noise to data.

    model: a `Denoiser`. shape: (B, ...). solver, steps, grid, final: what to integrate with and
    where (`ud.solvers.names()`, `ud.solvers.GRIDS`; how the last step ends: `grids.times`); by
    default `Relay`, which calls the network once a step.
    seed, sample_ids: see `Sampler.init`. x_init: the state at the grid's first time, e.g. from
    `ud.encode`. dtype: of the network's input and of the result; by default the network's own for
    the one (float64 for a float64 x_init) and the state's, float32 at least, for the other. A table
    has steps, grid and end of its own: with one those three are not looked at. cond: keyword
    arguments for the network. callback: called after each row with a `StepInfo`. on_failure: 'raise'
    a `SolverError` that names step and samples where NaN or Inf appeared, or 'return' what there is,
    with `status`. graph: capture the run in one CUDA graph (for many runs of one shape keep the graph
    instead: `Sampler.capture`); no callback then.

    Gradients flow only if x_init requires them. Raises ValueError for bad input before any call.
    """
    if on_failure not in ("raise", "return"):
        raise InvalidValue(f"on_failure must be 'raise' or 'return'; got {on_failure!r}")
    if not isinstance(model, Denoiser):
        raise InvalidType(f"model must be a Denoiser; got {type(model).__name__}")
    if isinstance(x_init, Tensor):
        device = x_init.device if device is None else device
        wide = x_init.dtype == torch.float64 and dtype is None
    else:
        wide = False
    if graph and callback is not None:
        raise InvalidValue("graph=True leaves no moment between steps to call `callback`")
    state_dtype = torch.float64 if wide else dtype
    sampler = Sampler(model, solver, steps, grid, final=final, dtype=state_dtype, device=device)
    cond = {**model.cond, **(cond or {})}
    times = sampler.tableau.times.tolist()

    def run(watch: Callable[[int, Tensor, Tensor], None] | None = None) -> Tensor:
        state = sampler.init(shape, seed, sample_ids, x_init)
        for i, t in enumerate(track(times, "sampling", sampler.nfe, progress and watch is None)):
            out = model.net(state.x_in, state.t_in, **cond)
            state = sampler.tell(state, out)
            if watch is not None:
                watch(i, out, state.x)
            elif callback is not None:
                callback(StepInfo(i, t, sampler.sample_of(state), out))
        return state.x

    with torch.set_grad_enabled(isinstance(x_init, Tensor) and x_init.requires_grad):
        x = sampler.capture(shape, cond, x_init)(seed, sample_ids) if graph else run()
        status, message = verdict(x, run, times)
    x = x if dtype is None else x.to(dtype)
    calls = sampler.nfe * calls_of(model.net)
    result = Result(x, calls, sampler.tableau.times, status)
    if message and on_failure == "raise":
        raise SolverError(message, status, result)
    return result if return_result else x


def _padded(history: tuple[Tensor, ...], size: int, x: Tensor) -> tuple[Tensor, ...]:
    """Fill missing history with x: its coefficients are 0, so it does not take part."""
    return history + (x,) * (size - len(history))


def _for_model(grid: GridLike, model: Denoiser) -> GridLike:
    """A discrete spacing counts the network's own steps where it has any."""
    if isinstance(grid, str):
        grid = grids.named(grid)
    if isinstance(grid, grids.Discrete) and grid.count is None and model.time == "index":
        return replace(grid, count=model.steps)
    return grid


def _no_network(x: Tensor, t: Tensor) -> Tensor:
    raise RunFailure("this Sampler was made for a Process: call the network yourself")
