"""Sampling: the loop, and the same loop turned inside out for callers who own it.

    tableau (float64, host) -> folded with the read-out -> one small device table ->
    loop: [network] -> linear_step(x, out, history, table, row) -> ...

Between two network calls there is one operator: it reads its row through a pointer, draws its
normals where they are used, and writes the next state and network input. Nothing in the loop reads
a tensor's value on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.checks import as_seed, check_batch
from ...kernels.errors import InvalidType, InvalidValue, RunFailure
from ...kernels.streams import ENTRY, INITIAL
from ...models import Denoiser, Process, notebook
from .. import arguments
from ..cache import PLANS
from ..families.preconditioned import GaussianPreconditioned
from ..families.registry import get, on_its_grid
from ..families.tuned import FILES, read
from ..portable.exported import export
from ..portable.unrolled import Unrolled
from ..tables import grids
from ..tables.solver import Solver
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau
from . import entry
from .budget import in_steps, largest
from .density import Densities
from .graph import GraphedRun
from .parallel import Sweeps
from .plan import Plan, compose, with_memory
from .state import Course, State, join

SolverLike = str | Solver | GaussianPreconditioned | Tableau | SpectralTable
GridLike = str | grids.Grid | Sequence[float] | Tensor
SOLVER, GRID, STEPS = "relay", "blend", 20  # where the user names none


class Sampler(Densities, Sweeps):
    """A solver on a grid for a model, with the loop left to the caller.

        state = sampler.init(shape, seed=0)
        while not state.done:
            state = sampler.tell(state, net(state.x_in, state.t_in))
        state.x

    model: a `Denoiser`, or a `Process` together with `predicts` where the network lives elsewhere.
    solver: a name, ours or that of another library ('DPM++ 2M Karras'), a `Solver`, a
        `GaussianPreconditioned`, or a table of either, or its JSON file, which brings steps, grid
        and end of its own.
    steps: intervals of the grid, by default 20.
    nfe: network calls to spend at most, in the place of steps; as many steps as they pay for.
    grid: a name, a `Grid` or times; by default the solver's own (`Solver.own_grid`), 'blend' of
        most.
    final: how the last step ends. See `ud.solvers.times`.
    dtype: of the network's input; by default that of its parameters. The state is float64 with
        float64 and float32 with all others; float64 keeps the state alone in it where the
        parameters are narrower.
    device: by default the network's.

    Raises ValueError and TypeError for what does not fit, before any call.
    """

    def __init__(
        self,
        model: Denoiser | Process,
        solver: SolverLike = SOLVER,
        steps: int | None = None,
        grid: GridLike | None = None,
        *,
        nfe: int | None = None,
        final: str | None = None,
        predicts: str = "noise",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(model, Process):
            model = _without_network(model, predicts)
        if not isinstance(model, Denoiser):
            raise InvalidType(f"model must be a Denoiser or a Process; got {type(model).__name__}")
        self.model = model
        self.device = entry.place(model, device)
        self.dtype, self.net_dtype, t_dtype = entry.types(model, dtype)
        self.tableau, self.plan = _planned(
            model, solver, steps, nfe, grid, final, self.device, self.dtype, t_dtype
        )
        self.t_dtype = t_dtype
        self.weighed: dict[float, Tensor] = {}
        self.course = Course(self.plan.key, self.plan.t_in, self.plan.c_in, self.net_dtype)

    join = staticmethod(join)

    def _facts(self) -> notebook.Facts:
        net = self.model.net
        name = getattr(net, "__name__", type(net).__name__)
        name = name if net is not _no_network else "the caller's"
        told = f"predicts={self.model.predicts!r}, time={self.model.time!r}"
        draws = "draws noise" if self.tableau.stochastic else "draws no noise after the start"
        return [
            ("network", f"{name}, {told}"),
            ("process", str(self.model.process)),
            ("table", f"{self.tableau.name}, {self.nfe} calls, {draws}"),
            ("states", f"{self.dtype} on {self.device}".removeprefix("torch.")),
        ]

    def __repr__(self) -> str:
        return notebook.lines("Sampler", self._facts())

    def _repr_html_(self) -> str:
        table = self.tableau
        shown = table._repr_html_() if isinstance(table, Tableau) else ""
        return notebook.table("Sampler", (), self._facts()) + shown

    def init(
        self,
        shape: Sequence[int],
        seed: int | Tensor = 0,
        sample_ids: Tensor | Sequence[int] | None = None,
        x_init: Tensor | None = None,
        row: int = 0,
        noise: Tensor | None = None,
    ) -> State:
        """The state before the first call: x_init, or sigma(t_0) z with z of draw 0, 'initial'.

        shape: (B, ...).
        seed: an int, or int64 [B], one a sample.
        sample_ids: integers [B], global ids, by default 0 to B - 1. The same (seed, sample id)
            gives the same sample in any batch, order or shard.
        x_init: the state [B, ...] where the run starts.
        row: rows done already, of a run in pieces whose x_init is the state after them; it goes on
            with the normals that the whole run draws there.
        noise: [B, ...], the caller's own normal for what the table adds at its entry, before the
            first call (churn does); refused where it adds none.

        Raises ValueError where later rows look back at states before `row`: go on from a kept
        `State` then.
        """
        shape = arguments.batch_shape("shape", shape)
        entry.allocatable(shape, self.dtype, self.device)
        ids = arguments.sample_ids(sample_ids, shape[0], self.device)
        seed = as_seed(seed, self.device)
        check_batch("seed", seed, shape[0])
        self.plan.frame.fits(shape)
        self._starts_at(row, x_init)
        if x_init is None:
            z = normal(shape, seed, ids, **INITIAL.at(), device=self.device)
            x = z.to(self.dtype) * self.plan.start
        else:
            x = entry.start_state(x_init, shape, self.device).to(self.device, self.dtype)
            x = x.contiguous()

        if noise is not None:
            entry.own_noise(noise, x, self.tableau)

        def z0() -> Tensor:
            """The normal of the table's entry."""
            if noise is not None:
                return noise.to(self.dtype)
            place = ENTRY.at()
            place["draw"] += self.plan.draw0
            return normal(shape, seed, ids, **place, device=self.device).to(self.dtype)

        frame = self.plan.frame
        u = frame.into(x, row) if row else frame.enter(x, z0)
        # views of their own: a compiler takes equal tensors for one
        states, datas = (
            tuple(u.view_as(u) for _ in range(n)) for n in (self.plan.states, self.plan.datas)
        )
        state = self._state(u, None, row, states, datas, seed, ids)
        # a compiled `tell` takes rows as a tensor, so that one graph serves all of them
        return state if torch.compiler.is_compiling() else replace(state, at=state.row)

    def _starts_at(self, row: int, x_init: Tensor | None) -> None:
        """Raises ValueError unless a run can start at this row, with or without x_init."""
        table, row = self.tableau, arguments.whole("row", row, 0)
        if row not in range(self.nfe):
            raise InvalidValue(f"row must lie in 0..{self.nfe - 1}, the rows of the run; got {row}")
        if x_init is None and (row or table.grid[0] < table.grid[-1]):
            where = f"at row {row}" if row else "from data"
            raise InvalidValue(f"{table.name} starts {where}: give the state there as x_init")
        for i in range(row, self.nfe) if row else ():
            past = torch.cat([table.state[i, i - row + 1 :], table.data[i, i - row + 1 :]])
            if bool((past != 0).any()):
                raise InvalidValue(
                    f"row {i} of {table.name} looks back at what was before row {row}: keep the "
                    "State of the first piece and go on from it with steps(state)"
                )

    def export(self, path: str | Path) -> Path:
        """Write the run to one file that describes itself, for loops in any language.

        It holds the table, the read-out, what the network is told, the draws and the format of the
        noise. docs/export.md has every key, examples/runners the loops. `Tableau.load` reads the
        same table back, `SpectralTable.load` one over components.

        path: ends in .json or .npz.
        Returns the path. Raises ValueError for another ending, and OSError where it cannot be
        written.
        """
        dtypes = {"state": self.dtype, "network": self.net_dtype}
        return export(path, self.tableau, self.model, self.plan.draw0, dtypes)

    def module(self) -> Unrolled:
        """The whole run as one module of PyTorch's own operators, for torch.export and ONNX."""
        return Unrolled(self)

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

        def run(seed: Tensor, sample_ids: Tensor, start: Tensor | None) -> Tensor:
            return self.finish(self.init(shape, seed, sample_ids, start), cond)

        return GraphedRun(run, int(shape[0]), self.device, x_init)


def sampler_for(
    model: Denoiser,
    solver: SolverLike,
    steps: int | None,
    grid: GridLike | None,
    x_init: Tensor | None,
    *,
    nfe: int | None = None,
    final: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Sampler:
    """The sampler of a whole run: by default on the device of x_init, and as wide as a float64 one.

    Raises ValueError for the meta device, whose tensors hold no numbers.
    """
    if isinstance(x_init, Tensor):
        device = x_init.device if device is None else device
        dtype = torch.float64 if dtype is None and x_init.dtype == torch.float64 else dtype
    sampler = Sampler(model, solver, steps, grid, nfe=nfe, final=final, dtype=dtype, device=device)
    if sampler.device.type == "meta":
        raise InvalidValue("device is 'meta', which holds no numbers: choose another device")
    return sampler


def _planned(
    model: Denoiser,
    solver: SolverLike,
    steps: int | None,
    nfe: int | None,
    grid: GridLike | None,
    final: str | None,
    device: torch.device,
    dtype: torch.dtype,
    t_dtype: torch.dtype,
) -> tuple[Tableau | SpectralTable, Plan]:
    """The table of a run and its plan, or those that equal arguments have had before."""
    if isinstance(solver, str):
        solver, own = _by_name(solver, model)
        grid = own if grid is None else grid
    if not isinstance(solver, Tableau | SpectralTable):
        solver = get(solver)
    grid = _for_model(_own(solver) if grid is None else grid, model)

    def make() -> tuple[Tableau | SpectralTable, Plan]:
        table = _table(solver, model, steps, nfe, grid, final)
        return table, compose(with_memory(table), model, device, dtype, t_dtype)

    # of the model all that a table and a plan are made of; never the network
    read = type(model), model.process, model.predicts, model.time, model.steps, model.sigma_data
    counts = model.clip, model.calls if nfe is not None else 0
    asked = solver, steps, nfe, grid, final, dtype, t_dtype
    return PLANS.get((*asked, *read, *counts), device, make)


def _by_name(name: str, model: Denoiser) -> tuple[SolverLike, str | None]:
    """What a name stands for, and its grid where it has one: 'heun', 'DPM++ 2M Karras', the file of
    a table."""
    if name.endswith(FILES):
        return read(name, model.process), None
    return on_its_grid(name)


def _table(
    solver: SolverLike,
    model: Denoiser,
    steps: int | None,
    nfe: int | None,
    grid: GridLike,
    final: str | None,
) -> Tableau | SpectralTable:
    """The table that a run goes by."""
    if nfe is not None and steps is not None:
        raise InvalidValue(f"steps={steps} and nfe={nfe} were both given: leave one out")
    given = isinstance(solver, Tableau | SpectralTable)
    if nfe is not None and (given or not isinstance(grid, grids.Grid)):
        what = "table" if given else "grid"
        raise InvalidValue(
            f"nfe={nfe} chooses the number of steps, but this {what} has its own: leave nfe out"
        )
    steps = None if steps is None else entry.count("steps", steps)
    if isinstance(solver, Tableau | SpectralTable):
        _agree(steps, f"{solver.name} is a table", len(solver.grid) - 1, solver.nfe)
        return solver
    if nfe is not None and isinstance(grid, grids.Grid):
        nfe = entry.count("nfe", nfe)
        return largest(get(solver), model, grid, final, nfe // model.calls)
    if isinstance(grid, grids.Grid):
        return in_steps(get(solver), model, grid, final, steps or STEPS)
    t = grids.times(grid, model.process, steps or STEPS, final or "denoise", model.t_min)
    _agree(steps, "grid has times", len(t) - 1, len(grid) - 1)
    return get(solver).tableau(model.process, t)


def _agree(steps: int | None, what: str, *held: int) -> None:
    """Raise ValueError where steps that were asked for are not those that are there."""
    if steps is not None and steps not in held:
        raise InvalidValue(f"steps={steps}, but {what} of {held[0]} steps: leave steps out")


def _own(solver: SolverLike) -> str:
    """The grid of a run that names none."""
    named = get(solver) if isinstance(solver, str) else solver
    return named.own_grid if isinstance(named, Solver) else GRID


def _for_model(grid: GridLike, model: Denoiser) -> GridLike:
    """A discrete spacing counts the network's own steps where it has any."""
    if isinstance(grid, str):
        grid = grids.named(grid)
    if isinstance(grid, grids.Discrete) and grid.train_steps is None and model.time == "index":
        return replace(grid, train_steps=model.steps)
    return grid


def _without_network(process: Process, predicts: str) -> Denoiser:
    """A denoiser for a network that is called elsewhere."""

    def make() -> Denoiser:
        return Denoiser(_no_network, process, predicts=predicts)

    found = PLANS.get(("no network", process, predicts), torch.device("cpu"), make)
    return found._with(process=process)  # not the one that was equal when it was planned


def _no_network(x: Tensor, t: Tensor) -> Tensor:
    raise RunFailure("this Sampler was made for a Process: call the network yourself")
