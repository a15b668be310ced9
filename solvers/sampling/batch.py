"""Many runs at once, each with a solver of its own, as rows of one batch.

    rows of all requests -> one call of the network -> one fused step -> those that are done leave

The tables of all solvers at work stand one below the other in one device table, and each sample
points at its own row of it. A column that a solver does not have is 0 there, and a coefficient of 0
takes no part in a step.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.checks import sent
from ...kernels.errors import InvalidValue, RunFailure
from ...kernels.linear_reference import HEAD
from ...kernels.shapes import wide
from ...models import Denoiser, conditions
from ...models.denoiser import Combination
from ...models.guidance.combine import unconditional
from .. import arguments
from ..outcome import SolverError, Status
from ..tables.tableau import Identity
from .loop import Loop
from .plan import Plan
from .sampler import GRID, SOLVER, GridLike, Sampler, SolverLike
from .state import Course, State, join

MOST_ROWS = 1 << 15
"""Of the common table: beyond it the tables of solvers that are no longer at work are dropped."""


class Request(Future):  # type: ignore[type-arg]  # of a Tensor
    """A run in a `ContinuousBatch`; its result is the samples [B, ...].

    A `concurrent.futures.Future`: `done`, `cancel` (also in the middle of its run), `exception`,
    `add_done_callback`, `asyncio.wrap_future`. `result` and `exception` take part in the work: they
    step the batch until this request is done. A run that ends in NaN or Inf has a `SolverError`.

    nfe: rows of its run.
    rows: of them done.
    """

    def __init__(self, batch: ContinuousBatch, sampler: Sampler, state: State) -> None:
        super().__init__()
        self._batch, self._sampler, self._first = batch, sampler, state
        self._cond: dict[str, Any] = {}
        self._uncond: dict[str, Any] | None = None
        self._scale = 1.0
        self.size, self.nfe, self.rows = len(state), sampler.nfe, 0

    @property
    def width(self) -> int:
        """Rows that it takes in a call of the network: two a sample where it is guided."""
        return self.size * (1 if self._uncond is None else 2)

    def result(self, timeout: float | None = None) -> Tensor:
        """The samples [B, ...], after as many ticks as it takes.

        Raises TimeoutError after `timeout` seconds, CancelledError, SolverError, and what the
        network raises.
        """
        found: Tensor = super().result(self._drive(timeout))
        return found

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What went wrong, or None; waits as `result` does."""
        return super().exception(self._drive(timeout))

    def _drive(self, timeout: float | None) -> float | None:
        end = None if timeout is None else time.monotonic() + timeout
        while not self.done() and (end is None or time.monotonic() < end):
            self._batch.step()
        return None if end is None else max(end - time.monotonic(), 0.0)


class Common(Loop):
    """Tables of several solvers as one: `offsets` says at which row each begins, by its key."""

    def __init__(self, model: Denoiser) -> None:
        self.model = model
        self.offsets: dict[str, int] = {}

    @property
    def nfe(self) -> int:
        """Rows of all tables together."""
        return len(self.plan.t_in)

    def hold(self, samplers: Sequence[Sampler]) -> None:
        """Make room for the tables of these samplers, which are all that are at work."""
        plans = {s.plan.key: s.plan for s in samplers}
        new = [plan for key, plan in plans.items() if key not in self.offsets]
        if not new:
            return
        merged = [self.plan, *new] if self.offsets else new
        if sum(len(p.t_in) for p in merged) > MOST_ROWS:
            self.offsets, merged = {}, list(plans.values())
            new = merged
        row = sum(len(p.t_in) for p in merged) - sum(len(p.t_in) for p in new)
        for plan in new:
            self.offsets[plan.key] = row
            row += len(plan.t_in)
        self._merge(merged, samplers[0])

    def _merge(self, plans: Sequence[Plan], like: Sampler) -> None:
        states, datas = max(p.states for p in plans), max(p.datas for p in plans)
        normals = [0 if p.draws is None else p.draws.shape[1] for p in plans]
        most = max(normals)
        tables, draws = [], []
        for plan, m in zip(plans, normals, strict=True):
            parts = torch.split(plan.table, [HEAD, plan.states + 1, plan.datas + 1, m], 1)
            widths = (HEAD, states + 1, datas + 1, most)
            filled = [pad(v, (0, n - v.shape[1])) for v, n in zip(parts, widths, strict=True)]
            tables.append(torch.cat(filled, 1))
            if plan.draws is None:
                rows, device = len(plan.t_in), plan.table.device
                draws.append(torch.zeros(rows, most, dtype=torch.int64, device=device))
            else:
                draws.append(pad(plan.draws, (0, most - m)))
        table = torch.cat(tables)
        times = [t for plan in plans for t in plan.times]
        self.dtype, self.net_dtype = like.dtype, like.net_dtype
        self.plan = replace(
            plans[0],
            table=table,
            draws=torch.cat(draws) if most else None,
            rows=torch.arange(len(table), device=table.device),
            t_in=torch.cat([p.t_in for p in plans]),
            c_in=torch.cat([p.c_in for p in plans]),
            times=times,
            skip=[v for plan in plans for v in plan.skip],
            scale=[v for plan in plans for v in plan.scale],
            states=states,
            datas=datas,
            frame=Identity((1.0, 0.0)),
            key="common",
        )
        self.course = Course("common", self.plan.t_in, self.plan.c_in, self.net_dtype)

    def adopt(self, state: State, at: Tensor) -> State:
        """The state as one of the common table's, at these rows of it."""

        def filled(history: tuple[Tensor, ...], length: int) -> tuple[Tensor, ...]:
            return history + (state.x,) * (length - len(history))  # with coefficients of 0

        states, datas = filled(state.states, self.plan.states), filled(state.datas, self.plan.datas)
        return replace(state, at=at, states=states, datas=datas, course=self.course)


class Group:
    """Requests that one loop steps together: all of ordinary tables, or those of one table over
    components, whose steps turn them into their basis and back."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.requests: list[Request] = []
        self.state: State

    def admit(self, requests: Sequence[Request]) -> None:
        """Join these to the others; each starts where its run does."""
        states = [request._first for request in requests]
        if self.requests:
            states.insert(0, self.state)
        self.requests += requests
        if isinstance(self.loop, Common):
            loop = self.loop
            loop.hold([request._sampler for request in self.requests])
            rows = torch.split(self._rows(loop), [len(state) for state in states])
            states = [loop.adopt(state, at) for state, at in zip(states, rows, strict=True)]
        self.state = join(states)

    def _rows(self, loop: Common) -> Tensor:
        """Where each sample is in the common table, int64 [B] on the host."""
        first = [loop.offsets[r._sampler.plan.key] + r.rows for r in self.requests]
        sizes = torch.tensor([r.size for r in self.requests], dtype=torch.int64, device="cpu")
        places = torch.tensor(first, dtype=torch.int64, device="cpu")
        return places.repeat_interleave(sizes)

    def keep(self, kept: Sequence[Request]) -> None:
        """Let the others go."""
        spans, at = {}, 0
        for request in self.requests:
            spans[request] = range(at, at := at + request.size)
        self.requests = list(kept)
        if kept:
            self.state = self.state[[i for request in kept for i in spans[request]]]

    def tell(self, out: Tensor) -> list[tuple[Request, Tensor]]:
        """Step; what is finished leaves, with its samples."""
        self.state = self.loop._step_apart(self.state, out, trusted=True)
        over, kept, at = [], [], 0
        for request in self.requests:
            request.rows, start, at = request.rows + 1, at, at + request.size
            if request.rows == request.nfe:
                over.append((request, self.state.x[start:at].clone()))
            else:
                kept.append(request)
        if over:
            self.keep(kept)
        return over


class Call(NamedTuple):
    """One call of the network.

    rows: which of the rows of a tick, int64 on their device; None for all.
    cond: of those.
    """

    rows: Tensor | None
    cond: dict[str, Any]


class ContinuousBatch:
    """Runs of many requests at once: one network call and one step for all of them a tick.

        batch = ud.ContinuousBatch(model, max_batch=64)
        a = batch.add((4, 1, 28, 28), "dpmpp-2m", steps=20, seed=1)
        b = batch.add((1, 1, 28, 28), "ddpm", steps=100, grid="uniform", seed=2)
        a.result()          # steps the batch until a is done; b has come as far
        batch.run()         # until all are done

    A request joins at the next tick in which there is room for it, first come, first served, and
    leaves when it is done; neither stops the others. Its samples are those of `ud.sample` with the
    same arguments, bit for bit where the network rounds a sample in any batch alike. (Products with
    the basis of a table over components round, as matrix products in networks do.) What fails in
    one request, NaN or Inf, is that request's alone.

    model: a `Denoiser`, the same for all.
    max_batch: rows of a network call at most, in 1 or more. A guided sample takes two.
    uncond: conditions of the unconditional call of guided requests; see `ud.guidance.cfg`.
    dtype, device: see `Sampler`.

    The network is called once a tick where the conditions of all requests can be joined, tensors of
    equal type and trailing shape, and once for each kind of them otherwise. All requests at work
    have samples of one shape. Methods may be called from any thread; ticks happen one at a time, in
    the thread that asks for them. An error that the network raises comes out there, and leaves all
    requests as they were before the tick.
    """

    def __init__(
        self,
        model: Denoiser,
        max_batch: int = 64,
        *,
        uncond: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.model = arguments.denoiser(model)
        self.max_batch = arguments.whole("max_batch", max_batch)
        self.uncond = None if uncond is None else conditions.named(uncond)
        self.dtype, self.device = dtype, device
        self.ticks = self.calls = 0
        self._groups: dict[str, Group] = {}
        self._waiting: deque[Request] = deque()
        self._asked: list[Call] | None = None  # None: who is in the batch has changed
        self._guided: Tensor | None = None
        self._scales: Tensor
        self._lock = threading.RLock()

    # --- requests -----------------------------------------------------------------------------

    def add(
        self,
        shape: Sequence[int],
        solver: SolverLike = SOLVER,
        steps: int | None = None,
        grid: GridLike = GRID,
        seed: int | Tensor = 0,
        *,
        sample_ids: Tensor | Sequence[int] | None = None,
        x_init: Tensor | None = None,
        cond: dict[str, Any] | None = None,
        guidance: float | None = None,
        uncond: dict[str, Any] | None = None,
        nfe: int | None = None,
        final: str | None = None,
    ) -> Request:
        """Queue a run; the arguments are those of `ud.sample`.

        guidance: scale of classifier-free guidance, `cfg(model, guidance)`; None: none.
        uncond: conditions of its unconditional call, by default the batch's.

        Raises ValueError and TypeError as `ud.sample`, for more samples than `max_batch` holds, and
        for samples of another shape than those at work.
        """
        sampler = Sampler(
            self.model, solver, steps, grid, nfe=nfe, final=final,
            dtype=self.dtype, device=self.device,
        )  # fmt: skip
        with torch.no_grad():
            request = Request(self, sampler, sampler.init(shape, seed, sample_ids, x_init))
        given = self.model.given(cond, request.size)
        self.model.refuse_rows(conditions.named(cond))
        if guidance is not None and arguments.finite("guidance", guidance) != 1.0:
            other = unconditional(given, self.uncond if uncond is None else uncond)
            conditions.check(other, request.size, "uncond")
            if guidance == 0:
                given = other
            else:
                request._uncond, request._scale = other, float(guidance)
        elif uncond is not None and guidance is None:
            raise InvalidValue("uncond is for guided requests: give guidance= a scale")
        request._cond = given
        if request.width > self.max_batch:
            raise InvalidValue(
                f"the request takes {request.width} rows of a network call and max_batch is "
                f"{self.max_batch}: ask for fewer samples at a time"
            )
        with self._lock:
            self._same_shape(request)
            self._waiting.append(request)
        return request

    def _same_shape(self, request: Request) -> None:
        at_work = next(iter([*self._requests, *self._waiting]), None)
        shape = request._first.x.shape[1:]
        if at_work is not None and at_work._first.x.shape[1:] != shape:
            raise InvalidValue(
                f"shape must be (B, {', '.join(map(str, at_work._first.x.shape[1:]))}) while "
                f"requests of it are at work; got samples of {tuple(shape)}: a ContinuousBatch of "
                "its own runs those"
            )

    @property
    def _requests(self) -> list[Request]:
        return [request for group in self._groups.values() for request in group.requests]

    def __len__(self) -> int:
        """Requests that are not done: at work or waiting."""
        with self._lock:
            return len(self._requests) + len(self._waiting)

    @property
    def width(self) -> int:
        """Rows of the next network call, without those that are still to be admitted."""
        return sum(request.width for request in self._requests)

    # --- ticks --------------------------------------------------------------------------------

    def run(self) -> None:
        """Tick until nothing is left to do."""
        while len(self):
            self.step()

    def step(self) -> list[Request]:
        """One tick: admit who fits, call the network, step. Returns the requests that it ended.

        Does nothing where there is no request.
        """
        with self._lock, torch.no_grad():
            self._let_go()
            self._admit()
            groups = list(self._groups.values())
            if not groups:
                return []
            out, over, at = self._network(groups), [], 0
            for group in groups:
                start, at = at, at + len(group.state)
                over += group.tell(out[start:at])
            self.ticks += 1
            if over:
                self._asked = None
                self._groups = {k: g for k, g in self._groups.items() if g.requests}
            finite = [x.flatten(1).isfinite().all(1) for _, x in over]
            found: list[bool] = torch.cat(finite).tolist() if over else []
        ended, at = [], 0
        for request, x in over:
            fine = found[at : (at := at + request.size)]
            if request.set_running_or_notify_cancel():
                _resolve(request, x, fine)
                ended.append(request)
        return ended

    def _let_go(self) -> None:
        """Drop what was cancelled."""
        for group in self._groups.values():
            kept = [request for request in group.requests if not request.cancelled()]
            if len(kept) < len(group.requests):
                for request in group.requests:
                    if request.cancelled():
                        request.set_running_or_notify_cancel()
                group.keep(kept)
                self._asked = None
        self._groups = {k: g for k, g in self._groups.items() if g.requests}

    def _admit(self) -> None:
        """Take in who waits, in order, as long as there is room."""
        room, new = self.max_batch - self.width, []
        while self._waiting and (self._waiting[0].cancelled() or self._waiting[0].width <= room):
            request = self._waiting.popleft()
            if request.cancelled():
                request.set_running_or_notify_cancel()
                continue
            room -= request.width
            new.append(request)
        joining: dict[str, list[Request]] = {}
        for request in new:
            fused = request._sampler.plan.frame.fused
            joining.setdefault("" if fused else request._sampler.plan.key, []).append(request)
        for key, requests in joining.items():
            if key not in self._groups:
                loop = requests[0]._sampler if key else Common(self.model)
                self._groups[key] = Group(loop)
            self._groups[key].admit(requests)
            self._asked = None

    # --- the network --------------------------------------------------------------------------

    def _network(self, groups: Sequence[Group]) -> Tensor:
        """What the network says of all rows, guided ones combined, [rows, ...]."""
        states = [group.state for group in groups]
        if self._asked is None:
            self._arrange(groups)
        x_in = _cat([state.x_in for state in states])
        t_in = _cat([state.t_in for state in states])
        t = self._times(groups) if isinstance(self.model.net, Combination) else None
        rows, guided = len(x_in), self._guided
        if guided is not None:
            x_in, t_in = (torch.cat([v, v.index_select(0, guided)]) for v in (x_in, t_in))
            t = None if t is None else torch.cat([t, t.index_select(0, guided)])
        out = self._call(x_in, t_in, t)
        if guided is None:
            return out
        out, without = out[:rows], out[rows:]
        with_c = out.index_select(0, guided)
        w = self._scales.reshape(-1, *(1,) * (out.ndim - 1))
        change = (w * (with_c - without)).to(out.dtype)  # as a number times a half type rounds
        return out.index_copy(0, guided, without + change)

    def _call(self, x_in: Tensor, t_in: Tensor, t: Tensor | None) -> Tensor:
        found: Tensor | None = None
        for rows, cond in self._asked or ():
            self.calls += 1
            if rows is None:
                return self.model.call(x_in, t_in, cond, t, fresh=True)
            at = None if t is None else t.index_select(0, rows)
            x, told = x_in.index_select(0, rows), t_in.index_select(0, rows)
            out = self.model.call(x, told, cond, at, fresh=True)
            found = out.new_empty(x_in.shape) if found is None else found
            found.index_copy_(0, rows, out)
        if found is None:
            raise RunFailure("a tick without requests has called the network")
        return found

    def _times(self, groups: Sequence[Group]) -> Tensor:
        """The process's times of all rows, as guidance asks for them."""
        found = []
        for group in groups:
            t = group.loop._times(group.state)
            if not isinstance(t, Tensor):
                x = group.state.x
                t = torch.full((len(x),), t, dtype=wide(x), device=x.device)
            found.append(t)
        return torch.cat(found)

    def _arrange(self, groups: Sequence[Group]) -> None:
        """Which rows are called together, under which conditions."""
        requests = [request for group in groups for request in group.requests]
        starts = [sum(r.size for r in requests[:i]) for i in range(len(requests))]
        places = [range(at, at + r.size) for at, r in zip(starts, requests, strict=True)]
        trees = [request._cond for request in requests]
        guided: list[int] = []
        scales: list[float] = []
        end = sum(r.size for r in requests)
        for rows, request in zip(list(places), requests, strict=True):
            if request._uncond is not None:
                guided += rows
                scales += [request._scale] * request.size
                places.append(range(end, end := end + request.size))
                trees.append(request._uncond)
        device, dtype = groups[0].state.x.device, groups[0].state.x.dtype
        self._asked = []
        for members, cond in conditions.together(trees, [len(rows) for rows in places]):
            index = torch.tensor([i for m in members for i in places[m]], device="cpu")
            all_rows = len(members) == len(trees)
            self._asked.append(Call(None if all_rows else sent(index, device), cond))
        self._guided, self._scales = None, torch.zeros(0, dtype=dtype, device=device)
        if guided:
            self._guided = sent(torch.tensor(guided, device="cpu"), device)
            self._scales = sent(torch.tensor(scales, dtype=dtype, device="cpu"), device)


def _cat(parts: Sequence[Tensor | None]) -> Tensor:
    found = [v for v in parts if v is not None]
    return found[0] if len(found) == 1 else torch.cat(found)


def _resolve(request: Request, x: Tensor, finite: Sequence[bool]) -> None:
    """Hand over the samples, or say which of them failed."""
    bad = [i for i, fine in enumerate(finite) if not fine]
    if not bad:
        request.set_result(x)
        return
    status = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    status[bad] = int(Status.NETWORK_NOT_FINITE)
    more = ", ..." if len(bad) > 8 else ""
    request.set_exception(
        SolverError(
            f"NaN or Inf in sample {', '.join(map(str, bad[:8]))}{more} of the request, "
            f"{len(bad)} of {len(x)}: the network's or of an unstable scheme; `ud.sample` with the "
            "same arguments names the step",
            status,
            x,
        )
    )
