"""Learning a table: every number of it follows the gradient of the error that a run makes.

A deterministic table of one call a step is, in x^ = x/alpha and s = sigma/alpha,

    x^_{i+1} = x^_i + (s_{i+1} - s_i) sum_h C[i, h] eps_{i-h},  eps_j = (x_j - alpha_j D_j)/sigma_j.

Adams-Bashforth's C makes it iPNDM (Liu et al. 2022; Zhang & Chen 2023). Free are C, without the
rule that a row sums to one, the nodes s_i, and the noise level that the network is told at each
call, which need not be the state's (as in time-shifted and learned samplers: Li et al. 2023, Tong
et al. 2024). A state told another level is scaled to it, so what comes out is an ordinary
`Tableau`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser, Process, conditions
from ...models.progress import track
from ...models.statistics import Statistics
from ..distances import Distance, Function, distance_of
from ..families.multistep_engine import weights
from ..families.preconditioned import GaussianPreconditioned, residual_weights
from ..families.tuned import Learned, reach
from ..tables.solver import Path
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau

ADAMS = {1: (1.0,), 2: (1.5, -0.5), 3: (23 / 12, -16 / 12, 5 / 12)}
"""Adams-Bashforth's weights, by points."""
CHECK = 20
"""Steps of Adam between two looks at the starts that are not learned from."""


@dataclass
class FreeTable:
    """The numbers of one table, differentiable.

    process: whose x the table steps.
    ends: (t_max, t_min), where a run starts and ends.
    first [1]: lambda of the first node with signal that the network is asked at.
    gaps [k]: logarithms of the shares of lambda's range that the steps from there take.
    told [k]: what is added to lambda where the network is told its time.
    mix [n, n]: C above, by step and by the step whose noise is taken, lower triangular.
    spared: the step to `first` is taken without a call, with x/sigma for the noise (AFS, Dockhorn
        et al. 2022). With alpha(t_max) = 0 it is taken with one, and mix[0, 0] is D's share of it.
    points, clock: of the Adams-Bashforth weights that mix began with, see `adams`.
    """

    process: Process
    ends: tuple[float, float]
    first: Tensor
    gaps: Tensor
    told: Tensor
    mix: Tensor
    spared: bool = False
    points: int = 2
    clock: str | None = None

    @classmethod
    def on(
        cls,
        process: Process,
        grid: Tensor,
        points: int = 2,
        spared: bool = False,
        clock: str | None = None,
    ) -> FreeTable:
        """Adams-Bashforth of 1 to 3 points on a grid [n + 1] from t_max to an end with sigma > 0:
        iPNDM where `clock` is None, else with the grid's own weights."""
        lam = process.log_snr(grid)
        body = lam[int(spared or not bool(torch.isfinite(lam[0]))) :]
        if len(body) < 2 or not bool(torch.isfinite(body).all()):
            raise InvalidValue(
                f"grid must have two steps or more from noise to an end with sigma > 0; got {grid}"
            )
        mix = adams(process, lam, points, clock)
        told = torch.zeros(len(body) - 1, dtype=torch.float64, device="cpu")
        ends = (float(grid[0]), float(grid[-1]))
        gaps = torch.diff(body).log()
        return cls(process, ends, body[:1].clone(), gaps, told, mix, spared, points, clock)

    def _begun(self, lam: Tensor) -> Tensor:
        """`mix` as it began, on nodes lam from `first` on."""
        if self.spared or self.pure:
            lam = torch.cat([self.process.log_snr(lam.new_tensor(self.ends[:1])), lam])
        return adams(self.process, lam, self.points, self.clock)

    def at(self, nfe: int) -> FreeTable:
        """The same numbers carried over to a table of nfe calls >= 2.

        Nodes are interpolated along the run, and what is added where the network is told its time
        in proportion to the step. C is Adams-Bashforth's there: what learning added to it belongs
        to its own steps, and errs on others.
        """
        k = nfe - (1 if self.pure else 0)
        with torch.no_grad():
            end = self.process.log_snr(self.ends[1])
            share = torch.softmax(self.gaps, 0).cumsum(0)
            lam = torch.cat([self.first, self.first + share * (end - self.first)])
            made = stretched(lam, k + 1)
            told = stretched(self.told / torch.diff(lam), k) * torch.diff(made)
            mix = self._begun(made)
        gaps = torch.diff(made).log()
        first = made[:1].clone()
        return FreeTable(self.process, self.ends, first, gaps, told, mix, self.spared, self.points)

    @property
    def pure(self) -> bool:
        """Whether a run starts where alpha = 0, with a call there."""
        return not self.spared and len(self.mix) > len(self.gaps)

    @property
    def free(self) -> list[Tensor]:
        """What is learned: `first` too, where it is not the start itself."""
        apart = self.spared or self.pure
        return [self.mix, self.gaps, self.told, *([self.first] if apart else [])]

    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """times, state, data of a `Tableau` and the factor of its entry, with their gradients.

        Matrices are by row and by call until the end, where columns become steps back.
        """
        process, (t0, t1), pure = self.process, self.ends, self.pure
        end, k = process.log_snr(t1), len(self.gaps)
        inner = self.first + torch.softmax(self.gaps, 0).cumsum(0) * (end - self.first)
        lam = torch.cat([self.first, inner])
        s, t = torch.exp(-lam), process.inverse_log_snr(lam[:-1])
        told = process.inverse_log_snr(lam[:-1] + self.told).clamp(t1, t0)
        a, b = process.alpha(told), process.sigma(told)
        # the table's state is x at the level that the network is told, m x^
        scale = torch.hypot(a, b) / torch.hypot(process.alpha(t), process.sigma(t))
        m = torch.cat([scale * process.alpha(t), process.alpha(t1)[None]])
        sigma0 = float(process.sigma(t0))
        # the noise of every step: of_x times the states less of_d times the predictions
        of_x, of_d = torch.diag(1 / b), torch.diag(a / b)
        if pure:  # the first state is noise alone
            of_x = _below(of_x.new_tensor([[1 / sigma0]]), of_x)
            of_d = _below(of_d.new_zeros(1, 1), of_d)
        if self.spared:  # so was the one that came to the first call as m s x/sigma
            known = torch.nn.functional.pad(1 / (m[:1] * s[:1]), (0, k - 1))
            of_x, of_d = torch.cat([known[None], of_x]), torch.cat([of_d.new_zeros(1, k), of_d])
        mixed = torch.tril(self.mix)[-k:] * (m[1:] * torch.diff(s))[:, None]
        state = torch.diag(m[1:] / m[:-1])
        state = torch.nn.functional.pad(state, (int(pure), 0)) + mixed @ of_x
        data = -mixed @ of_d
        entry = m[0] / process.alpha(t0)
        if pure:
            ahead = torch.stack([m[0] * s[0] / sigma0, m[0] * self.mix[0, 0]])
            ahead = torch.nn.functional.pad(ahead[:, None], (0, k))
            state, data = torch.cat([ahead[:1], state]), torch.cat([ahead[1:], data])
            told, entry = torch.cat([told.new_tensor([t0]), told]), entry.new_ones(())
        elif self.spared:
            entry = m[0] * s[0] / sigma0
        return told, _back(state), _back(data), entry

    def run(self, model: Denoiser, x: Tensor, cond: dict[str, Any] | None = None) -> Tensor:
        """x [B, ...] at t_max -> its end, through the network, with gradients to `free`."""
        times, state, data, entry = self.columns()
        states, datas = [entry.to(x) * x], list[Tensor]()
        for i in range(len(times)):
            datas.append(model(states[-1], times[i], **(cond or {})))
            y = torch.zeros_like(x)
            for columns, terms in ((state[i], states), (data[i], datas)):
                for h in range(i + 1):
                    y = y + columns[h].to(x) * terms[i - h]
            states.append(y)
        return states[-1]

    def tableau(self, name: str) -> Tableau:
        """The table as it stands."""
        with torch.no_grad():
            times, state, data, entry = self.columns()
        none = times.new_zeros(len(times), 0)
        grid = torch.tensor([*self.ends], dtype=torch.float64, device="cpu")
        inner = times[1:] if float(times[0]) == self.ends[0] else times
        grid = torch.cat([grid[:1], inner.clamp(self.ends[1], self.ends[0]), grid[1:]])
        falls = torch.as_tensor(
            sorted(set(grid.tolist()), reverse=True), dtype=torch.float64, device="cpu"
        )
        return Tableau(
            times, state, data, none, none.long(), falls, (float(entry), 0.0), name
        ).trimmed()


@dataclass
class FreeSpectral:
    """The numbers of a table that knows the data's mean and covariance, differentiable.

    process, stats, t_start: of the `Learned` table that it makes.
    first [1], gaps [n]: lambda of the first call, and logarithms of the steps' shares from there.
    end [1]: lambda of the end.
    theta [n, n]: the residual weights, by step and by how many steps back.
    points: residuals of the weights that theta began with.
    """

    process: Process
    stats: Statistics
    t_start: float
    first: Tensor
    gaps: Tensor
    end: Tensor
    theta: Tensor
    points: int = 2

    @classmethod
    def on(cls, table: SpectralTable, solver: GaussianPreconditioned) -> FreeSpectral:
        """The solver's own numbers on a table's nodes, which end where sigma > 0."""
        process, stats = table.process, solver.stats
        lam = process.log_snr(torch.cat([table.times, table.grid[-1:]]))
        theta = classical(lam, stats, solver.points)
        t_start, gaps = float(table.grid[0]), torch.diff(lam).log()
        first, end = lam[:1].clone(), lam[-1:].clone()
        return cls(process, stats, t_start, first, gaps, end, theta, solver.points)

    @property
    def free(self) -> list[Tensor]:
        """What is learned."""
        return [self.theta, self.gaps, self.first]

    def learned(self) -> Learned:
        """The table as it stands, with the gradients of its numbers where those are asked for."""
        begin = torch.maximum(self.first, self.process.log_snr(self.t_start))  # no call before it
        share = torch.softmax(self.gaps, 0).cumsum(0)
        lam = torch.cat([begin, begin + share * (self.end - begin)])
        back = torch.arange(len(self.theta), device="cpu")
        below = back[:, None] >= back
        return Learned(lam, torch.where(below, self.theta, 0.0), self.stats, self.t_start)

    def run(self, model: Denoiser, x: Tensor, cond: dict[str, Any] | None = None) -> Tensor:
        """x [B, ...] at t_max -> its end, through the network, with gradients to `free`."""
        stats, spectral = self.stats, self.learned().spectral(self.process)
        mean, shape = stats.mean.to(x), x.shape
        times = torch.cat([spectral.grid[:1], spectral.times, spectral.grid[-1:]])
        alpha = self.process.alpha(times).to(x)

        def leave(u: Tensor, i: int) -> Tensor:
            return (stats.q.back(u) + alpha[i] * mean).reshape(shape)

        u = stats.q.into(x.flatten(1) - alpha[0] * mean) * spectral.entry.to(x)
        states, datas = [u], list[Tensor]()
        for i, t in enumerate(spectral.times):
            data = model(leave(states[-1], i + 1), t, **(cond or {}))
            datas.append(stats.q.into(data.flatten(1) - mean))
            u = torch.zeros_like(u)
            for columns, terms in ((spectral.state[i], states), (spectral.data[i], datas)):
                for h in range(min(len(columns), i + 1)):
                    u = u + columns[h].to(x) * terms[i - h]
            states.append(u)
        return leave(u, -1)

    def tableau(self, name: str) -> SpectralTable | Tableau:
        """The table as it stands."""
        with torch.no_grad():
            return replace(self.learned().tableau(self.process), name=name)

    def at(self, nfe: int) -> FreeSpectral:
        """The same numbers carried over to nfe calls, as `FreeTable.at`."""
        with torch.no_grad():
            lam = stretched(self.learned().lam, nfe + 1)
            theta = classical(lam, self.stats, self.points)
        gaps = torch.diff(lam).log()
        return replace(self, first=lam[:1].clone(), gaps=gaps, theta=theta)


Free = FreeTable | FreeSpectral
"""What can be learned."""


def adams(process: Process, lam: Tensor, points: int, clock: str | None = None) -> Tensor:
    """C of Adams-Bashforth on nodes lam [n + 1], [n, n], with the points there are.

    clock: None takes the weights of equal steps, as iPNDM does; else those that are exact for a
        polynomial in that variable, see `multistep_engine`. A first node of pure noise counts not.
    """
    n = len(lam) - 1
    mix = torch.zeros(n, n, dtype=torch.float64, device="cpu")
    skip = int(clock is not None and not bool(torch.isfinite(lam[0])))
    own = mix
    if clock is not None:
        path = Path.of(process, process.inverse_log_snr(lam[skip:]))
        exact = weights(path, points, "noise", clock).points
        own = exact / weights(path, 1, "noise").points
    for i in range(n):
        row = torch.tensor(ADAMS[min(points, i + 1)], dtype=torch.float64, device="cpu")
        if clock is not None:
            row = own[i - skip, : i - skip + 1] if i >= skip else torch.ones_like(row[:1])
        mix[i, i + 1 - len(row) : i + 1] = row.flip(0)
    return mix


def classical(lam: Tensor, stats: Statistics, points: int) -> Tensor:
    """theta of `points` residuals for the data's mean variance, on nodes lam [n + 1]."""
    n, c = len(lam) - 1, stats.variances.mean()[None]
    points = min(points, n)
    theta = torch.zeros(n, n, dtype=torch.float64, device="cpu")
    theta[:, :points] = residual_weights(lam, c, points)[:, :, 0] / reach(lam, c)
    return theta


def stretched(values: Tensor, n: int) -> Tensor:
    """[m] numbers along a run -> n of them, linear between."""
    old, new = np.linspace(0, 1, len(values)), np.linspace(0, 1, n)
    return torch.from_numpy(np.interp(new, old, values.numpy()))


def _below(first: Tensor, rest: Tensor) -> Tensor:
    """A block-diagonal matrix of two."""
    made: Tensor = torch.block_diag(first, rest)  # type: ignore[no-untyped-call]
    return made


def _back(matrix: Tensor) -> Tensor:
    """Columns by call -> by how many calls ago: [i, h] is [i, i - h]."""
    i = torch.arange(len(matrix), device="cpu")
    ago = i[:, None] - i
    return torch.where(ago >= 0, matrix.gather(1, ago.clamp(min=0)), 0.0)


def learn(
    table: Free,
    model: Denoiser,
    x: Tensor,
    ends: Tensor,
    *,
    cond: dict[str, Any] | None = None,
    iterations: int = 400,
    rate: float = 0.01,
    batch: int = 32,
    held_out: float = 0.25,
    distance: Distance | Function | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[float, float]:
    """Adam on the log of the mean distance to `ends`; the table keeps its best numbers.

    x, ends: [B, ...], starts at t_max and where the exact flow takes them at t_min.
    cond: conditions of these starts.
    iterations: of Adam, with a cosine rate from `rate`.
    batch: starts an iteration.
    held_out: the share of the starts that is not learned from; the numbers that err least on them
        are kept, those that the table began with among them (early stopping).
    distance: a `Distance`, or (found, ends) -> [B]; by default the root mean square over an event.

    Returns the held-out distance before and after; the second is never larger.
    """
    far = distance_of(distance)
    count = len(x) - max(1, round(held_out * len(x)))
    if count < 1 or ends.shape != x.shape:
        raise InvalidValue(f"x and ends must be [B, ...] alike with B >= 2; got {tuple(x.shape)}")
    generator = torch.Generator().manual_seed(seed)
    for p in table.free:
        p.requires_grad_()

    def run(index: Tensor) -> Tensor:
        part = conditions.rows(cond or {}, index, len(x))
        return far(table.run(model, x[index], part), ends[index], part)

    def unseen() -> float:
        with torch.no_grad():
            off = float(run(torch.arange(count, len(x), device="cpu")).mean())
        return off if math.isfinite(off) else math.inf

    before = least = unseen()
    kept = [p.detach().clone() for p in table.free]
    adam = torch.optim.Adam(table.free, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for i in track(range(iterations), "learning", iterations, progress):
        chosen = torch.randint(count, (min(batch, count),), generator=generator, device="cpu")
        loss = run(chosen).mean().clamp(min=1e-30).log()
        adam.zero_grad()
        loss.backward(inputs=table.free)  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(table.free, 1.0)
        if not bool(norm.isfinite()):
            break  # what was best before stays
        adam.step()
        schedule.step()
        if i % CHECK == CHECK - 1 and (off := unseen()) < least:
            least, kept = off, [p.detach().clone() for p in table.free]
    with torch.no_grad():
        for p, best in zip(table.free, kept, strict=True):
            p.requires_grad_(False)
            p.copy_(best)
    return before, least
