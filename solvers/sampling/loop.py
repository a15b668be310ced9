"""The loop of a run, and the same loop turned inside out for callers who own it.

    tableau (float64, host) -> folded with the read-out -> one small device table ->
    loop: [network] -> linear_step(x, out, history, table, row) -> ...

Between two network calls there is one operator: it reads its row through a pointer, draws its
normals where they are used, and writes the next state and network input. Nothing in the loop reads
a tensor's value on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...kernels import linear_step
from ...kernels.buffers import WORTH, Spare
from ...kernels.checks import FLOATS, sent
from ...kernels.errors import InvalidValue
from ...kernels.linear import trusted_step
from ...kernels.linear_reference import W0, W1
from ...kernels.shapes import column, wide
from ...models import Denoiser, conditions
from ...models.calling import Pair
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau
from .plan import Plan
from .state import Course, Made, Noise, State, StepInfo, join, network_input, writes

_make: Any = object.__new__  # of values that need no checks: no frame of Python is spent on them
_tuple: Any = tuple.__new__


def weighed(table: Tensor, w: float) -> Tensor:
    """The table for two outputs in the place of one, w one + (1 - w) other."""
    table = table.clone()
    table[:, W1] = table[:, W0] * (1.0 - w)
    table[:, W0] *= w
    return table


class Loop:
    """The rows of a plan, run for a model; see `Sampler`."""

    model: Denoiser
    tableau: Tableau | SpectralTable
    plan: Plan
    course: Course
    device: torch.device
    dtype: torch.dtype
    net_dtype: torch.dtype
    weighed: dict[float, Tensor]  # the plan's table for pairs, by their w

    @property
    def nfe(self) -> int:
        """Network calls of one run."""
        return self.tableau.nfe

    def tell(self, state: State, out: Tensor | Pair, *, noise: Noise | None = None) -> State:
        """Take the network's output at (state.x_in, state.t_in) and step to the next row.

        out: [B, ...], floating, or the `Pair` of `model.hear`. Samples that are finished already
            stay as they are; for them it does not matter.
        noise: the caller's own normals in the place of those of (seed, sample id): a tensor of x's
            shape, or, for a table that draws several normals a row (M columns of
            `sampler.tableau.noise`), a sequence of M of them, where None stands for one whose
            coefficient is 0. Two rows share a normal where `sampler.tableau.draws` says the same
            number: hand in the same tensor there.

        Raises ValueError if all runs are over, `out` or `noise` has another shape than the state,
        or the state is of another sampler.
        """
        compiling = torch.compiler.is_compiling()
        if noise is None and not compiling and self._plain(state, out):
            return self._told(state, state.uniform, out)  # type: ignore[arg-type]
        if not compiling and state.done:
            raise InvalidValue(f"the run is over after {self.nfe} network calls; start with init()")
        for one in out[:2] if isinstance(out, Pair) else (out,):
            self._fits(state, one)
        self._check(state)
        row = state.at if compiling else state.uniform
        zs = () if noise is None else self._given(noise, state)
        if isinstance(row, int):
            return self._step(state, row, out, zs)
        return self._step_apart(state, out, zs)

    def _told(self, state: State, i: int, out: Tensor) -> State:
        """`_step` of a state whose run's memory goes with it, to the last row."""
        large = state.x.is_cpu and state.x.numel() >= WORTH
        spare = state.__dict__.get("_spare") or Spare() if large else None
        after = self._step(state, i, out, (), True, spare)
        if large and i + 1 < len(self.plan.times):
            after.__dict__["_spare"] = spare
        return after

    def _plain(self, state: State, out: Tensor | Pair) -> bool:
        """Whether all of a step's operands are as this sampler's own loop has them: then the
        operator has nothing to check."""
        x, i = state.x, state.uniform
        if state.course is not self.course or type(out) is not Tensor or i is None:
            return False
        shape, device, seed, ids = x.shape, x.device, state.seed, state.sample_ids
        if out.shape != shape or out.device != device or out.layout is not torch.strided:
            return False
        if out.dtype not in FLOATS or x.dtype is not self.dtype or device != self.device:
            return False
        for v in (*state.states, *state.datas):
            if v.shape != shape or v.dtype is not x.dtype or v.device != device:
                return False
        if len(state.states) != self.plan.states or len(state.datas) != self.plan.datas:
            return False
        if seed.dtype is not torch.int64 or seed.shape not in ((1,), (len(x),)):
            return False
        return (
            0 <= i < len(self.plan.times)
            and ids.dtype is torch.int64
            and seed.device == ids.device == device
            and seed.is_contiguous()
            and ids.is_contiguous()
        )

    @staticmethod
    def _fits(state: State, out: Tensor) -> None:
        if not isinstance(out, Tensor) or out.shape != state.x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InvalidValue(
                f"out, what the network returned, must have the shape of x {tuple(state.x.shape)}; "
                f"got {got}"
            )
        if out.device != state.x.device:
            raise InvalidValue(
                f"out, what the network returned, must be on the device of x, {state.x.device}; "
                f"got {out.device}"
            )

    def _weighed(self, out: Tensor | Pair) -> tuple[tuple[Tensor, ...], Tensor]:
        """The outputs that the kernel reads, and the table whose columns w0 and w1 weigh them."""
        if not isinstance(out, Pair):
            return (out,), self.plan.table
        if not self.plan.frame.fused:  # which turns one output into components, not two
            return (out.combined(),), self.plan.table
        table = self.weighed.get(out.w)
        if table is None:
            table = weighed(self.plan.table, out.w)
            if not torch.compiler.is_compiling():
                self.weighed[out.w] = table  # never let go: a captured graph may read it
        return out[:2], table

    def _check(self, state: State) -> None:
        if state.course.key != self.plan.key:
            raise InvalidValue(
                f"state is of another sampler than this one of {self.tableau.name} in {self.nfe} "
                "calls: solver, grid, model and dtype must be the same"
            )

    def _given(self, noise: Noise, state: State) -> tuple[Tensor, ...]:
        """The caller's normals, one for each noise column."""
        x, columns = state.x, self.tableau.noise.shape[1]
        given = [noise] if isinstance(noise, Tensor) and columns == 1 else list(noise)
        if len(given) != columns:
            raise InvalidValue(
                f"noise must be {columns} normals, one for each noise column of "
                f"{self.tableau.name}; got {len(given)}"
            )
        found = []
        for m, z in enumerate(given):
            if z is None:
                rows = state.row[~state.finished]
                if bool((self.tableau.noise[rows, m] != 0).any()):
                    raise InvalidValue(f"noise[{m}] is None, but this row of the table draws it")
                z = x  # with a coefficient of 0
            fits = isinstance(z, Tensor) and z.shape == x.shape and z.device == x.device
            if not fits or not z.is_floating_point():
                got = f"{tuple(z.shape)} {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
                raise InvalidValue(
                    f"noise must be floating, {tuple(x.shape)} on {x.device} like x; got {got}"
                )
            found.append(z.to(x.dtype))
        return tuple(found)

    def _step(
        self,
        state: State,
        i: int,
        out: Tensor | Pair,
        zs: tuple[Tensor, ...] = (),
        trusted: bool = False,
        spare: Spare | None = None,
    ) -> State:
        """`tell` where all samples are at row i.

        trusted: the state is this sampler's own and `out` was checked, outside compilers.
        spare: memory for the results, of a trusted run.
        """
        plan, frame, x = self.plan, self.plan.frame, state.x
        last, data = i == len(plan.times) - 1, state.datas
        u = x
        outs, table = ((out,), plan.table) if isinstance(out, Tensor) else self._weighed(out)
        if not frame.fused:
            made = state.made
            asis = made is not None and made.holds(x)
            u = made.components if made is not None and asis else frame.into(x, i)
            outs = (frame.heard(outs[0], i, self.dtype),)
        keep, following = plan.datas > 0 and not last, self.net_dtype
        dtype = following if frame.fused and not last else None
        row = plan.each[i] if trusted else plan.rows[i : i + 1]
        draws, clip = plan.draws, self.model.clip
        seed, ids, states = state.seed, state.sample_ids, state.states
        if zs:
            data, draws = (*data, *zs), None  # the columns of noise come after those of data
        if trusted:
            new, d, x_in = trusted_step(
                u, outs, table, row, states, data, draws, seed, ids, keep, dtype, clip, spare
            )
        else:
            new, d, x_in = linear_step(
                u,
                outs,
                table,
                row,
                states=states,
                data=data,
                draws=draws,
                seed=seed,
                sample_ids=ids,
                keep_data=keep,
                next_dtype=dtype,
                clip=clip,
            )
        states = (u, *states)[: plan.states]
        datas = state.datas if d is None else (d, *state.datas)[: plan.datas]
        if not (trusted and frame.fused):
            return self._state(new, x_in, i + 1, states, datas, seed, ids)
        after: State = _make(State)
        count = 0 if new.is_inference() else new._version
        made = None if x_in is None else _tuple(Made, (new, x_in, new, count))
        after.__dict__.update(
            x=new,
            at=i + 1,
            states=states,
            datas=datas,
            seed=seed,
            sample_ids=ids,
            course=state.course,
            made=made,
        )
        return after

    def _step_apart(
        self,
        state: State,
        out: Tensor | Pair,
        zs: tuple[Tensor, ...] = (),
        trusted: bool = False,
    ) -> State:
        """`tell` where each sample is at a row of its own, some perhaps at their end."""
        plan, made, frame = self.plan, state.made, self.plan.frame
        compiling, inside = torch.compiler.is_compiling(), state.inside
        if isinstance(inside, int):  # uniform after all
            if not trusted:
                return self._step(state, inside, out, zs)
            inside = sent(state.row, state.x.device)
        asis = made is not None and made.holds(state.x)
        u = made.components if made is not None and asis else frame.into(state.x, inside)
        outs, table = self._weighed(out)
        outs = tuple(frame.heard(v, inside, self.dtype) for v in outs)
        dtype = self.net_dtype if frame.fused else None
        data, draws, seed, ids = state.datas, plan.draws, state.seed, state.sample_ids
        keep, clip = plan.datas > 0, self.model.clip
        if zs:
            data, draws = (*data, *zs), None  # the columns of noise come after those of data
        if trusted:
            new, d, x_in = trusted_step(
                u, outs, table, inside, state.states, data, draws, seed, ids, keep, dtype, clip
            )
        else:
            new, d, x_in = linear_step(
                u,
                outs,
                table,
                inside,
                states=state.states,
                data=data,
                draws=draws,
                seed=seed,
                sample_ids=ids,
                keep_data=keep,
                next_dtype=dtype,
                clip=clip,
            )
        x = frame.sample(new, inside + 1)
        at = (state.row + 1).clamp(max=self.nfe)
        if compiling or (state.row.numpy() >= self.nfe).any():  # host memory, without an operator
            over = column(sent(state.finished, x.device), x)
            same, x = x is new, torch.where(over, state.x, x)
            new, x_in = x if same else torch.where(over, u, new), None
        states = (u, *state.states)[: plan.states]
        datas = state.datas if d is None else (d, *state.datas)[: plan.datas]
        after = State(x, at, states, datas, seed, ids, self.course)
        if x_in is None:
            x_in = network_input(x, after.c_in, self.net_dtype)
        return replace(after, made=Made(x, x_in, new, writes(x)))

    def steps(
        self,
        state: State,
        cond: dict[str, Any] | None = None,
        *,
        call: Callable[[State], Tensor] | None = None,
        edit: Callable[[State], State] | None = None,
    ) -> Iterator[StepInfo]:
        """Run on from a state, row by row: the one loop that every caller of a table uses.

        state: of `init`, of an earlier row, or edited.
        cond: keyword arguments for the network.
        call: State -> the network's output; by default the model's own network.
        edit: State -> State, applied before each call.
        """
        given = self.model.given(cond, len(state.x))
        eager = not torch.compiler.is_compiling()
        if call is None and edit is None and eager and state.uniform is not None:
            self._check(state)
            if len(self.plan.blocks) < self.nfe:
                return self._blocks(state, given)
            return self._quick(state, state.uniform, given)
        return self._any(state, given, call, edit)

    def _quick(self, state: State, i: int, given: dict[str, Any]) -> Iterator[StepInfo]:
        """`steps` from row i of all samples, by the model's network: what the sampler and the
        network's caller have made is not checked again."""
        plan, clip, size = self.plan, self.model.clip, len(state.x)
        ask, spare = self.model.repeated(given), Spare()
        told_times = plan.t_in[:, None].expand(-1, size).unbind()
        while i < len(plan.times):
            made, x, t = state.made, state.x, plan.times[i]
            fine = made is not None and made.of is x
            fine = fine and (x.is_inference() or x._version <= made.writes)  # type: ignore[union-attr]
            x_in = made.x_in if made is not None and fine else state.x_in
            out = ask(x_in, told_times[i], t)  # type: ignore[arg-type]
            after = self._step(state, i, out, (), True, spare)
            readout = plan.skip[i], plan.scale[i]
            told = [_tuple(StepInfo, (i, t, after.x, out, state, after, readout, clip, self))]
            state, i = after, i + 1
            del made, x, x_in, out, after  # so that what the caller lets go is free meanwhile
            yield told.pop()

    def ahead(self, state: State) -> list[State]:
        """This state and those that follow it whose network calls can be made at once.

        A table whose stages are independent asks the network about them together, K B rows in one
        call; which they are the zeros of the table say (`Tableau.blocks`).

            states = sampler.ahead(state)
            for out in outputs_of(states):
                state = sampler.tell(state, out)

        Of samples at rows of their own, and where nothing is independent, it is [state].
        Raises ValueError where the run is over or the state is of another sampler.
        """
        self._check(state)
        found, i, end = [state], state.uniform, 0
        if i is None:
            return found
        if i >= self.nfe:
            raise InvalidValue(f"the run is over after {self.nfe} network calls")
        for length in self.plan.blocks:
            end += length
            if end > i:
                break
        nothing = torch.zeros_like(state.x)  # no row but the last reads what the network says
        for _ in range(i + 1, end):
            found.append(self.tell(found[-1], nothing))
        return found

    def _blocks(self, state: State, given: dict[str, Any]) -> Iterator[StepInfo]:
        """`steps` of a table with independent rows: each block of them is one network call."""
        size = len(state)
        while not state.done:
            states = self.ahead(state)
            both, model, cond = join(states), self.model, given
            if len(states) > 1:
                index = torch.arange(size, device=state.x.device).repeat(len(states))
                model, cond = model.rows(index, size), conditions.rows(given, index, size)
            x_in, t_in = both.x_in, both.t_in
            told = model.hear(x_in, t_in, cond, self._times(both), fresh=True)  # type: ignore[arg-type]
            many = len(states)
            del states, both
            for k in range(many):
                rows, before = slice(k * size, (k + 1) * size), state
                if isinstance(told, Pair):
                    heard: Tensor | Pair = Pair(told.one[rows], told.other[rows], told.w)
                else:
                    heard = told[rows]
                state = self.tell(before, heard)
                yield self._info(before, heard, state)

    def _any(
        self,
        state: State,
        given: dict[str, Any],
        call: Callable[[State], Tensor] | None,
        edit: Callable[[State], State] | None,
    ) -> Iterator[StepInfo]:
        """`steps` of any state, by any caller."""
        while not state.done:
            before = state if edit is None else edit(state)
            if call is None:
                x_in, t_in = before.x_in, before.t_in
                if x_in is None or t_in is None:
                    return  # `edit` ended the run
                out = self.model.hear(x_in, t_in, given, self._times(before), fresh=True)
            else:
                out = call(before)
            state = self.tell(before, out)
            told = [self._info(before, out, state)]
            del before, out  # so that what the caller lets go is free during the next call
            yield told.pop()

    def _times(self, state: State) -> float | Tensor:
        """Where the network is called next, float64 [B] on x's device where rows differ."""
        i = state.inside
        if isinstance(i, int):
            return self.plan.times[i]
        times = torch.tensor(self.plan.times, dtype=wide(state.x), device="cpu")
        return sent(times, state.x.device)[i]

    def _info(self, before: State, out: Tensor | Pair, after: State) -> StepInfo:
        plan, clip, i = self.plan, self.model.clip, before.uniform
        if i is not None:
            readout: tuple[float | Tensor, float | Tensor] = plan.skip[i], plan.scale[i]
            return StepInfo(i, plan.times[i], after.x, out, before, after, readout, clip, self)
        row = before.row.clamp(max=self.nfe - 1)
        t, skip, scale = (
            torch.tensor(v, dtype=torch.float64, device="cpu")[row]
            for v in (plan.times, plan.skip, plan.scale)
        )
        readout = column(skip, after.x), column(scale, after.x)
        return StepInfo(before.row, t, after.x, out, before, after, readout, clip, self)

    def finish(self, state: State, cond: dict[str, Any] | None = None) -> Tensor:
        """The sample [B, ...] that the run ends with."""
        steps, x = self.steps(state, cond), state.x
        del state
        for step in steps:
            x = step.x
            del step
        return x

    def _state(
        self,
        u: Tensor,
        x_in: Tensor | None,
        row: int,
        states: tuple[Tensor, ...],
        datas: tuple[Tensor, ...],
        seed: Tensor,
        ids: Tensor,
    ) -> State:
        """The state before `row` whose components are u; x_in: as the step made it."""
        x = self.plan.frame.sample(u, row)
        if x_in is None and row < len(self.plan.times):
            x_in = network_input(x, self.plan.c_in[row], self.net_dtype)
        made = None if x_in is None else Made(x, x_in, u, writes(x))
        return State(x, row, states, datas, seed, ids, self.course, made)
