"""Many runs at once, each with a solver of its own, as rows of one batch.

    rows of all requests -> one call of the network -> one fused step -> those that are done leave

The tables of all solvers at work stand one below the other in one device table (see merged.py), and
each sample points at its own row of it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.checks import sent
from ...kernels.errors import InvalidValue, RunFailure
from ...kernels.shapes import wide
from ...models import Denoiser, conditions
from ...models.calling import Pair
from ...models.denoiser import Combination
from ...models.guidance.combine import cfg, unconditional
from .. import arguments
from ..outcome import SolverError, Status
from ..sampling.budget import as_told
from ..sampling.loop import Loop
from ..sampling.sampler import SOLVER, GridLike, Sampler, SolverLike
from ..sampling.state import State, join
from .merged import Common, Key


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
    def table(self) -> Key:
        """Which table it goes by."""
        return self._sampler.plan.key, None if self._uncond is None else self._scale

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
            loop.hold({request.table: request._sampler for request in self.requests})
            rows = torch.split(self._rows(loop), [len(state) for state in states])
            states = [loop.adopt(state, at) for state, at in zip(states, rows, strict=True)]
        self.state = join(states)

    def _rows(self, loop: Common) -> Tensor:
        """Where each sample is in the common table, int64 [B] on the host."""
        first = [loop.offsets[r.table] + r.rows for r in self.requests]
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

    def combined(self, out: Pair) -> Tensor:
        """The one output of each request, by its own scale."""
        parts, at = [], 0
        for request in self.requests:
            rows, at = slice(at, at + request.size), at + request.size
            pair = Pair(out.one[rows], out.other[rows], request._scale)
            parts.append(pair.one if request._uncond is None else pair.combined())
        return torch.cat(parts)

    def tell(self, out: Tensor | Pair) -> list[tuple[Request, Tensor]]:
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
        self._lock = threading.RLock()

    # --- requests -----------------------------------------------------------------------------

    def add(
        self,
        shape: Sequence[int],
        solver: SolverLike = SOLVER,
        steps: int | None = None,
        grid: GridLike | None = None,
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
        asked = self.model
        if guidance is not None and nfe is not None:
            arguments.finite("guidance", guidance)
            asked = cfg(asked, guidance, uncond=self.uncond if uncond is None else uncond)
        told = as_told(asked, nfe, cond, arguments.batch_shape("shape", shape)[0])
        told = told if told is None else told // asked.calls * self.model.calls
        sampler = Sampler(
            self.model, solver, steps, grid, nfe=told, final=final,
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
            over = []
            for group, out in zip(groups, self._network(groups), strict=True):
                over += group.tell(out)
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

    def _network(self, groups: Sequence[Group]) -> list[Tensor | Pair]:
        """What the network says of the rows of each group."""
        states = [group.state for group in groups]
        if self._asked is None:
            self._arrange(groups)
        x_in = _cat([state.x_in for state in states])
        t_in = _cat([state.t_in for state in states])
        t = self._times(groups) if isinstance(self.model.net, Combination) else None
        rows, guided = len(x_in), self._guided
        if guided is None:
            return _parts(self._call(x_in, t_in, t), [len(state) for state in states])
        x_in, t_in = (torch.cat([v, v.index_select(0, guided)]) for v in (x_in, t_in))
        t = None if t is None else torch.cat([t, t.index_select(0, guided)])
        out = self._call(x_in, t_in, t)
        out = out if isinstance(out, Tensor) else out.combined()
        other = torch.zeros_like(out[:rows]).index_copy(0, guided, out[rows:])
        told = _parts(Pair(out[:rows], other, math.nan), [len(state) for state in states])
        for i, group in enumerate(groups):
            if not isinstance(group.loop, Common):
                told[i] = group.combined(told[i])  # type: ignore[arg-type]
        return told

    def _call(self, x_in: Tensor, t_in: Tensor, t: Tensor | None) -> Tensor | Pair:
        found: Tensor | None = None
        for rows, cond in self._asked or ():
            self.calls += 1
            if rows is None:
                return self.model.hear(x_in, t_in, cond, t, fresh=True)
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
        end = sum(r.size for r in requests)
        for rows, request in zip(list(places), requests, strict=True):
            if request._uncond is not None:
                guided += rows
                places.append(range(end, end := end + request.size))
                trees.append(request._uncond)
        device = groups[0].state.x.device
        self._asked = []
        for members, cond in conditions.together(trees, [len(rows) for rows in places]):
            index = torch.tensor([i for m in members for i in places[m]], device="cpu")
            all_rows = len(members) == len(trees)
            self._asked.append(Call(None if all_rows else sent(index, device), cond))
        self._guided = sent(torch.tensor(guided, device="cpu"), device) if guided else None


def _parts(out: Tensor | Pair, sizes: Sequence[int]) -> list[Tensor | Pair]:
    """The outputs of each group."""
    if isinstance(out, Pair):
        one, other = (torch.split(v, list(sizes)) for v in out[:2])
        return [Pair(*both, out.w) for both in zip(one, other, strict=True)]
    return list(torch.split(out, list(sizes)))


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
