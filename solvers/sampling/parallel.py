"""Many rows of a run at once: sweeps over a window of guessed states.

The states x_1, ..., x_N of a run solve N equations, the rows of its table, in which the network
occurs as D_j = D(x_j). A sweep asks the network about all guessed states of a window in one call
and then runs the table through it, without the network, on

    D_j = D(g_j) + J_j (x_j - g_j),

g_j the guess and J_j what is known of the network's Jacobian. J = 0 is Picard's iteration
(ParaDiGMS, Shih et al. 2023, algorithm 1). Here J is a number, that of Gaussian data, corrected
along the last change of the guess by what the network said before and after it (Broyden 1965). As
in the triangular Anderson acceleration of ParaTAA (Tang et al. 2024) no row learns from later ones.
The normals of a row are functions of (seed, sample id, row), so stochastic tables are swept like
others. The first row of a window is always right, since its state is no guess. The window goes on
with every row that the sweep has hardly moved. Each sample has a window of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.checks import sent
from ...kernels.errors import InvalidValue
from ...kernels.shapes import column, wide
from ...models import Denoiser
from .. import arguments
from .loop import Loop
from .state import State, join, network_input

VARIANCE = 0.1
"""Of the data that J is taken for first. Of 0, 0.01, 0.03, 0.1, 0.3 and 1 the one with the fewest
rounds on the network of digits that ships with the package, 20 and 100 steps of ddim, dpmpp-2m and
ddpm; pictures in [-1, 1] have about that much that their neighbours do not tell."""
TOLERANCE = 1e-3
SAFETY = 8.0
"""What a state may move last is the tolerance over this: of 2, 8 and 20 the smallest with which the
result kept to the tolerance on the networks of bench/results/parallel.md."""


class Swept(NamedTuple):
    """What sweeps have come to.

    x: [B, ...], the samples.
    rounds: int64 [B] on the host, network calls one after the other.
    nfe: int64 [B] on the host, network calls about states of the sample, of which guidance makes
        several at each.
    """

    x: Tensor
    rounds: Tensor
    nfe: Tensor


class Sweeps(Loop):
    """What a `Sampler` does with many rows at once."""

    def sweep(
        self,
        state: State,
        window: int,
        tolerance: float = TOLERANCE,
        cond: dict[str, Any] | None = None,
    ) -> Swept:
        """The sample that `finish` ends with, to `tolerance`, in fewer rounds of larger calls.

        state: of `init`, or of any row.
        window: rows at a time, >= 1: the network is called with window x B states, and as many
            states, outputs and their predecessors are kept. 1 is the run row by row.
        tolerance: of the result, root mean square relative to sqrt(alpha^2 + sigma^2), >= 0. A
            state counts as found when its last sweep moved it by an eighth of that; what is left
            can grow on the way to the data. With 0 no bit may have moved: the result has the bits
            of the run row by row, where the network's own do not depend on the batch.
        cond: keyword arguments for the network.

        A run of N rows takes at most N rounds. Gradients do not flow.
        Raises ValueError and TypeError for bad input, before any call.
        """
        *_, found = self.sweeps(state, window, tolerance, cond)
        return found

    def sweeps(
        self,
        state: State,
        window: int,
        tolerance: float = TOLERANCE,
        cond: dict[str, Any] | None = None,
    ) -> Iterator[Swept]:
        """`sweep`, told after each round; a sample is there when its rounds no longer grow."""
        window = arguments.whole("window", window, 1)
        tolerance = arguments.finite("tolerance", tolerance)
        if tolerance < 0:
            raise InvalidValue(f"tolerance must be >= 0; got {tolerance}")
        self._check(state)
        return self._rounds(state, window, tolerance, cond)

    def _rounds(
        self, state: State, window: int, tolerance: float, cond: dict[str, Any] | None
    ) -> Iterator[Swept]:
        """The rounds of `sweeps`, whose arguments are right."""
        model, batch, times = self.model.told(cond, len(state)), len(state), self.plan.times
        given = model.given(None, batch)
        cost = torch.tensor([model.calls_at(t, given) for t in times], device="cpu")
        rounds = torch.zeros(batch, dtype=torch.int64, device="cpu")
        calls, x = rounds.clone(), state.x.detach().clone()
        alive = (~state.finished).nonzero()[:, 0]  # places in the batch of those that go on
        if not len(alive):
            yield Swept(x, rounds, calls)
            return
        with torch.no_grad():
            run = _Window(self, state[alive], window)
        while len(alive):
            with torch.no_grad():
                asked = run.ask(model, alive, batch, cost)
                run.sweep(tolerance / SAFETY)
            rounds[alive] += 1
            calls[alive] += asked
            over = run.base.finished
            if bool(over.any()):
                x[sent(alive[over], x.device)] = run.base.x[sent(over, x.device)]
                alive = alive[~over]
                run.keep((~over).nonzero()[:, 0])
            yield Swept(x, rounds, calls)


class _Window:
    """The guesses at the `size` rows from `base` on, each sample's own.

    guess: at rows base + k, k = 0 .. size - 1; guess[0] is base.x.
    outs: what the network said of them.
    past: guess and output of the round before.
    fresh: [n], samples whose row was not in the window then.
    """

    def __init__(self, loop: Loop, base: State, size: int) -> None:
        self.loop, self.base, self.rows = loop, base, loop.nfe
        self.size = min(size, self.rows)
        process, plan = loop.model.process, loop.plan
        t = torch.tensor(plan.times, dtype=torch.float64, device="cpu")
        alpha, sigma = process.alpha(t), process.sigma(t)
        jacobian = alpha * VARIANCE / (alpha.square() * VARIANCE + sigma.square())
        skip, scale = (
            torch.tensor(v, dtype=torch.float64, device="cpu") for v in (plan.skip, plan.scale)
        )
        # D = skip x + scale out: what J is to the output, and the state's natural size
        gain = torch.nan_to_num((jacobian - skip) / scale, 0.0, 0.0, 0.0)
        size_of = torch.sqrt(alpha.square() + sigma.square())
        numbers = torch.stack([gain, skip, scale, size_of], 1)
        self.numbers = sent(numbers, base.x.device, base.x.dtype)
        self.guess: list[Tensor] = []
        self.outs: list[Tensor] = []
        self.past: list[tuple[Tensor, Tensor]] = []
        self.fresh = [torch.zeros(len(base), dtype=torch.bool, device=base.x.device)] * self.size
        self._start()

    def _start(self) -> None:
        """Guesses by the table alone, with D = J x."""
        state = self.base
        for k in range(self.size):
            self.guess.append(state.x)
            if k + 1 < self.size and not state.done:
                state = self.loop.tell(state, self._of(k)[0] * state.x)

    def _of(self, k: int) -> tuple[Tensor, ...]:
        """gain, skip, scale and size at rows base + k, each [n, 1, ...]."""
        places = (self.base.row + k).clamp(max=self.rows - 1)
        found = self.numbers[sent(places, self.base.x.device)]
        return tuple(column(c, self.base.x) for c in found.unbind(1))

    def ask(self, model: Denoiser, alive: Tensor, batch: int, cost: Tensor) -> Tensor:
        """Ask the network about all guesses at once; what each sample's cost, `cost` a row."""
        at = self.base.row[None] + torch.arange(self.size, device="cpu")[:, None]
        real = at < self.rows  # [size, n]
        k, sample = real.nonzero().unbind(1)
        row = at[real]
        device, course, plan = self.base.x.device, self.base.course, self.loop.plan
        there = sent(row, device)
        x = torch.stack(self.guess)[sent(k, device), sent(sample, device)]
        x_in = network_input(x, column(course.c_in[there], x), course.dtype)
        times = sent(torch.tensor(plan.times, dtype=wide(x), device="cpu")[row], device)
        part = model.rows(sent(alive[sample], device), batch)
        given = part.given(None, len(row))
        out = part.call(x_in, course.t_in[there], given, times, fresh=True).to(x.dtype)
        whole = out.new_zeros(self.size, len(self.base), *out.shape[1:])
        whole[sent(k, device), sent(sample, device)] = out
        self.outs = list(whole)
        return torch.where(real, cost[at.clamp(max=self.rows - 1)], 0).sum(0)

    def sweep(self, tolerance: float) -> None:
        """Run the table through the window and move it on as far as it stands still."""
        state, loop = self.base, self.loop
        states, new, moved = [state], [state.x], []
        past = self.past or list(zip(self.guess, self.outs, strict=True))
        for k in range(self.size):
            if k:
                gain, _, _, size = self._of(k)
                step = state.x - self.guess[k]
                out = self._secant(k, step, past[k], gain)
                moved.append(step.square().flatten(1).mean(1).sqrt() / size.flatten())
            else:
                out = self.outs[0]
            if state.done:
                states.append(state)
            else:
                states.append(loop.tell(state, out))
            state = states[-1]
            new.append(state.x)
        still = torch.ones(len(state), 1, dtype=torch.bool, device=state.x.device)
        if moved:
            fine = torch.stack(moved, 1) <= tolerance
            still = torch.cat([still, fine.cumprod(1).bool()], 1)
        strides = still.sum(1).cpu()  # the one number of each sample that the host reads a round
        self._extend(new, state, int(strides.max()))
        self._move(states, new, strides)

    def _secant(self, k: int, step: Tensor, past: tuple[Tensor, Tensor], gain: Tensor) -> Tensor:
        """The network's output at guess + step: by J, and along the last change of the guess by
        what the network said before and after it."""
        out = self.outs[k] + gain * step
        change = self.guess[k] - past[0]
        heard = self.outs[k] - past[1] - gain * change
        length = change.square().flatten(1).sum(1)
        # a change of rounding alone tells nothing
        least = (64 * torch.finfo(step.dtype).eps) ** 2 * self.guess[k].square().flatten(1).sum(1)
        along = (step * change).flatten(1).sum(1)
        told = (length > least) & ~self.fresh[k]
        share = torch.where(told, along / length.clamp(min=1e-30), 0.0)
        return torch.where(column(share, step) != 0, out + column(share, step) * heard, out)

    def _extend(self, new: list[Tensor], state: State, more: int) -> None:
        """Guesses past the window, with D as at its last row."""
        last = self.size - 1
        _, skip, scale, _ = self._of(last)
        d = skip * self.guess[last] + scale * self.outs[last]
        for k in range(self.size, self.size + more - 1):
            if not state.done:
                _, skip, scale, _ = self._of(k)
                state = self.loop.tell(state, (d - skip * state.x) / scale)
            new.append(state.x)

    def _move(self, states: list[State], new: list[Tensor], strides: Tensor) -> None:
        """Each sample's window starts `strides` rows later."""
        distinct = sorted(set(strides.tolist()))
        groups = [(strides == s).nonzero()[:, 0] for s in distinct]
        order = torch.cat(groups).argsort()
        parts = [states[s][g] for s, g in zip(distinct, groups, strict=True)]
        asked = list(zip(self.guess, self.outs, strict=True))
        self.base = parts[0] if len(parts) == 1 else join(parts)[order]
        device = self.base.x.device
        start, samples = sent(strides, device), torch.arange(len(strides), device=device)

        def later(stack: Tensor, k: int) -> Tensor:
            return stack[(start + k).clamp(max=len(stack) - 1), samples]

        stacked = torch.stack(new)
        guesses, outs = (torch.stack([pair[i] for pair in asked]) for i in (0, 1))
        self.guess = [self.base.x, *(later(stacked, k) for k in range(1, self.size))]
        self.past = [(later(guesses, k), later(outs, k)) for k in range(self.size)]
        self.fresh = [sent(strides + k >= self.size, device) for k in range(self.size)]

    def keep(self, places: Tensor) -> None:
        """Go on with these samples alone."""
        there = sent(places, self.base.x.device)
        self.base = self.base[places]
        self.guess = [v[there] for v in self.guess]
        self.past = [(a[there], b[there]) for a, b in self.past]
        self.fresh = [v[there] for v in self.fresh]
