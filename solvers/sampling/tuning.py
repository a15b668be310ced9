"""Fitting a table to a model: the classical choice that errs least, then Adam.

    starts x and their ends -> best_initial: statistics, first noise level, points, grid -> fit

Every error is the mean over starts of the RMS distance to the end of the exact flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue, RunFailure
from ...models import Denoiser, Process
from ...models.progress import track
from ...models.statistics import Statistics
from .. import arguments
from ..families.preconditioned import residual_weights
from ..families.tuned import Learned, reach, read
from ..tables.grids import times
from .sample import sample

__all__ = ["Fit", "FitError", "Learned", "fit", "read", "references"]


def __dir__() -> list[str]:
    return __all__


class FitError(RunFailure):
    """A fit that does not beat its initialisation on the starts it never saw."""


@dataclass(frozen=True, eq=False)
class Fit:
    """What `fit` found.

    learned: the table.
    before, after: held-out mean error of the initialisation and of the table.
    """

    learned: Learned
    before: float
    after: float


@dataclass(frozen=True)
class Choice:
    """An initialisation of a fit.

    statistics: by name; 'none' makes an ordinary table.
    points: residuals that a step goes through.
    grid: the name of the grid.
    start: sigma/alpha of the first call; None: where the state is handed over.
    """

    statistics: str = "none"
    points: int = 2
    grid: str = "log_snr"
    start: float | None = None


POINTS = (1, 2, 3)
SPACINGS = ("log_snr", "karras", "laplace", "uniform", "quadratic")
STARTS = (None, 64.0, 32.0, 16.0, 8.0, 4.0)


def initial(
    process: Process,
    t_start: float,
    t_end: float,
    nfe: int,
    stats: Statistics,
    choice: Choice = Choice(),
) -> Learned:
    """The classical table of a choice, as a start for `fit`.

    process: of the model.
    t_start, t_end: between which the nodes lie, squeezed in lambda where the first call is later.
    nfe: network calls.
    stats: of the data; the weights are those of `choice.points` points for its mean variance.
    choice: the initialisation.
    Raises ValueError for a flow that starts in pure noise, where the choice has no start.
    """
    first = float(process.log_snr(t_start))
    if choice.start is not None:
        first = max(first, -math.log(choice.start))
    if not math.isfinite(first):
        raise InvalidValue(f"the flow starts in pure noise at t={t_start:g}: give a start ratio")
    lam = process.log_snr(times(choice.grid, process, nfe, "t_min", t_end))
    share = (lam - lam[0]) / (lam[-1] - lam[0])
    if not bool(torch.isfinite(share).all()):  # the grid's own start is pure noise
        share = torch.linspace(0, 1, nfe + 1, dtype=torch.float64, device="cpu")
    lam = first + share * (float(process.log_snr(t_end)) - first)
    c = stats.variances.mean()[None]
    points = min(choice.points, nfe)
    theta = torch.zeros(nfe, nfe, dtype=torch.float64, device="cpu")
    theta[:, :points] = residual_weights(lam, c, points)[:, :, 0] / reach(lam, c)
    return Learned(lam, theta, stats, t_start)


def best_initial(
    model: Denoiser,
    x: Tensor,
    ends: Tensor,
    t_start: float,
    t_end: float,
    nfe: int,
    statistics: dict[str, Statistics],
    progress: bool = False,
) -> tuple[Learned, Choice]:
    """The choice that errs least on the starts, one coordinate changed at a time, twice.

    Tried are POINTS, SPACINGS and STARTS. Above a choice's start the flow is the statistics' own.

    model: whose flow it is.
    x, ends: [B, ...], where the flow starts and where it leads.
    t_start, t_end: its times.
    nfe: network calls.
    statistics: what may be used, by name.
    progress: whether to show a bar.
    """
    process = model.process
    pure = math.isinf(float(process.log_snr(t_start)))
    tried: dict[Choice, tuple[float, Learned]] = {}

    def error(choice: Choice) -> float:
        if choice not in tried:
            table = initial(process, t_start, t_end, nfe, statistics[choice.statistics], choice)
            tried[choice] = (distance(table, model, x, ends), table)
        return tried[choice][0]

    values: dict[str, Any] = {
        "statistics": list(statistics),
        "start": [s for s in STARTS if not (pure and s is None)],
        "points": POINTS,
        "grid": SPACINGS,
    }
    best = Choice(next(iter(statistics)), start=STARTS[1] if pure else None)
    for name in track([*values] * 2, "choosing", 2 * len(values), progress):
        best = min((replace(best, **{name: value}) for value in values[name]), key=error)
    return tried[best][1], best


def references(
    model: Denoiser, x: Tensor, t_start: float, t_end: float, steps: int = 200
) -> Tensor:
    """End points of the probability flow by UniPC-3, equal steps of lambda.

    x: [B, ...], the states at t_start.
    t_start, t_end: t_max >= t_start > t_end >= t_min of the model's process.
    steps: network calls.
    Raises ValueError for other times.
    """
    process = arguments.denoiser(model).process
    if not process.t_min <= t_end < t_start <= process.t_max:
        raise InvalidValue(
            f"t_end must be below t_start, both in [{process.t_min:g}, {process.t_max:g}]; "
            f"got t_start={t_start}, t_end={t_end}"
        )
    t = times("log_snr", process, steps, "t_min", t_end)
    if t_start != process.t_max:
        first, last = process.log_snr(
            torch.tensor([t_start, t_end], dtype=torch.float64, device="cpu")
        ).tolist()
        t = process.inverse_log_snr(
            torch.linspace(first, last, steps + 1, dtype=torch.float64, device="cpu")
        )
        t[0], t[-1] = t_start, t_end
    return sample(model, x.shape, "unipc-3", None, t, x_init=x, dtype=x.dtype, final="t_min")


def fit(
    model: Denoiser,
    x: Tensor,
    ends: Tensor,
    init: Learned,
    *,
    iterations: int = 500,
    batch: int = 96,
    rate: float = 0.01,
    held_out: float = 0.25,
    seed: int = 0,
    progress: bool = False,
) -> Fit:
    """Fit nodes and weights so that starts x [B, ...] reach `ends`; the last share is held out.

    Minimises the log of the mean per-sample RMS error by Adam, cosine rate; where that does not
    halve the error of the starts it learns from, at a fifth of the rate, and once more; the best on
    them is kept.

    model: whose flow it is.
    x, ends: [B, ...], B >= 2, where the flow starts and where it leads.
    init: the table that the fit starts from.
    iterations: steps of Adam >= 0.
    batch: starts a step.
    rate: of Adam, > 0.
    held_out: share in (0, 1) of the starts that are not learnt from.
    seed: of the choice of batches.
    progress: whether to show a bar.
    Raises FitError if the result does not beat `init` on the starts it never saw, ValueError or
    TypeError for arguments that do not fit.
    """
    arguments.denoiser(model)
    if not isinstance(init, Learned):
        raise InvalidType(f"init must be a Learned table; got {init!r}")
    arguments.whole("iterations", iterations, 0)
    arguments.whole("batch", batch)
    arguments.positive("rate", rate)
    if arguments.positive("held_out", held_out) >= 1:
        raise InvalidValue(f"held_out must be below 1; got {held_out}")
    if not isinstance(x, Tensor) or not isinstance(ends, Tensor):
        raise InvalidType("x and ends must be tensors [B, ...]")
    count = seen(len(x), held_out)
    if count < 1 or ends.shape != x.shape:
        raise InvalidValue(f"x and ends must be [B, ...] alike with B >= 2; got {tuple(x.shape)}")
    before = held_out_error(init, model, x, ends, held_out)
    kept, least = init, distance(init, model, x[:count], ends[:count])
    half = 0.5 * least
    for r in (rate, rate / 5, rate / 25):  # near its optimum a table bears small steps alone
        made = _descend(model, x[:count], ends[:count], init, iterations, batch, r, seed, progress)
        found = distance(made, model, x[:count], ends[:count])
        if found < least:
            kept, least = made, found
        if least < half:
            break
    after = held_out_error(kept, model, x, ends, held_out)
    if not after < 0.99 * before:  # a change within rounding is none
        raise FitError(
            f"the fitted table has a held-out error of {after:.3g}, its initialisation "
            f"{before:.3g}: give it more starts or iterations, or keep the initialisation"
        )
    return Fit(kept, before, after)


def _descend(
    model: Denoiser,
    x: Tensor,
    ends: Tensor,
    init: Learned,
    iterations: int,
    batch: int,
    rate: float,
    seed: int,
    progress: bool,
) -> Learned:
    """Nodes and weights after so many steps of Adam on all of x."""
    gaps = torch.log(torch.diff(init.lam)).requires_grad_()
    first = init.lam[:1].clone().requires_grad_()
    top = model.process.log_snr(init.t_start)
    theta = init.theta.clone().requires_grad_()
    below = torch.tril(torch.ones_like(init.theta))
    generator = torch.Generator().manual_seed(seed)

    def current() -> Learned:
        last = init.lam[-1:]
        shares = torch.cumsum(torch.softmax(gaps, 0), 0)
        begin = torch.maximum(first, top)  # no call before the state is handed over
        lam = torch.cat([begin, begin + shares * (last - begin)])
        return Learned(lam, theta * below, init.stats, init.t_start)

    adam = torch.optim.Adam([theta, gaps, first], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations, rate / 50)
    for _ in track(range(iterations), "fitting", iterations, progress):
        chosen = torch.randint(len(x), (min(batch, len(x)),), generator=generator, device="cpu")
        y = run_differentiably(current(), model, x[chosen])
        loss = (y - ends[chosen]).flatten(1).square().mean(1).sqrt().mean().log()
        adam.zero_grad()
        loss.backward(inputs=[theta, gaps, first])  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    with torch.no_grad():
        found = current()
    return Learned(found.lam.detach(), found.theta.detach(), init.stats, init.t_start)


def held_out_error(
    table: Learned, model: Denoiser, x: Tensor, ends: Tensor, held_out: float = 0.25
) -> float:
    """`distance` of the held-out starts."""
    unseen = slice(seen(len(x), held_out), None)
    return distance(table, model, x[unseen], ends[unseen])


def distance(table: Learned, model: Denoiser, x: Tensor, ends: Tensor) -> float:
    """Mean over starts x of the RMS distance to their ends, as a sampler has it; inf for none."""
    y = sample(
        model, x.shape, table.tableau(model.process), x_init=x, dtype=x.dtype, on_failure="return"
    )
    off = float((y - ends).flatten(1).square().mean(1).sqrt().mean())
    return off if math.isfinite(off) else math.inf


def seen(count: int, held_out: float = 0.25) -> int:
    """How many of so many starts `fit` learns from."""
    return count - max(1, round(held_out * count))


def run_differentiably(table: Learned, model: Denoiser, x: Tensor) -> Tensor:
    """The table's run as a function of its nodes and weights, through the network."""
    process, stats = model.process, table.stats
    spectral = table.spectral(process)
    mean, shape = stats.mean.to(x), x.shape
    times = torch.cat([spectral.grid[:1], spectral.times, spectral.grid[-1:]])
    alpha = process.alpha(times).to(x)

    def leave(u: Tensor, i: int) -> Tensor:
        return (stats.q.back(u) + alpha[i] * mean).reshape(shape)

    u = stats.q.into(x.flatten(1) - alpha[0] * mean) * spectral.entry.to(x)
    states: list[Tensor] = [u]
    datas: list[Tensor] = []
    for i, t in enumerate(spectral.times):
        datas.append(stats.q.into(model(leave(states[-1], i + 1), t).flatten(1) - mean))
        u = torch.zeros_like(u)
        for columns, terms in ((spectral.state[i], states), (spectral.data[i], datas)):
            for h in range(min(len(columns), i + 1)):
                u = u + columns[h].to(x) * terms[i - h]
        states.append(u)
    return leave(u, -1)
