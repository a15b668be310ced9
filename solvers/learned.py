"""Learned tables: a grid and residual weights fitted to a model's own trajectories.

In the coordinates of `spectral` every step is

    y_{i+1} = y_i + kappa_i sum_h theta[i,h] r_{i-h},   kappa_i = int dlambda / sqrt(c + e^{-2 lambda})

with theta lower triangular (all history, another row for every step: a bespoke non-stationary
solver, Shaul et al. 2024) and the nodes lambda_i free. Both start from the classical choice that
errs least on the model (`best_initial`) and are fitted by Adam to reference end points. Without
statistics the result is an ordinary `Tableau`; otherwise a `SpectralTable`. Any sampler runs both.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from ..models import Denoiser, Process
from .base import Path
from .grids import times
from .progress import track
from .sampler import sample
from .spectral import (
    GaussianPreconditioned,
    SpectralTable,
    Statistics,
    closed_form,
    residual_weights,
    whitened_columns,
)
from .tableau import Tableau


@dataclass(frozen=True, eq=False)
class Learned:
    """lam [n + 1] the nodes, theta [n, n] the residual weights (column h: h steps back), stats.

    t_start: where the state is handed over; the flow from there to the first node is closed form.
    notes: what is worth knowing of its making, in words and numbers that JSON can hold.
    """

    lam: Tensor
    theta: Tensor
    stats: Statistics
    t_start: float
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def nfe(self) -> int:
        return len(self.theta)

    def tableau(self, process: Process) -> Tableau | SpectralTable:
        """What a sampler runs, for the process whose model was fitted or any other: an ordinary
        table if no mean or variance is in it."""
        table = self.spectral(process)
        if bool(self.stats.mean.any()) or bool(self.stats.variances.any()):
            return table
        none = table.times.new_zeros(self.nfe, 0)
        return Tableau(
            table.times, table.state[:, :, 0], table.data[:, :, 0], none, none.long(), table.grid,
            (float(table.entry[0]), 0.0), table.name,
        ).trimmed()  # fmt: skip

    def spectral(self, process: Process) -> SpectralTable:
        """The table over components, differentiable in lam and theta."""
        t = process.inverse_log_snr(self.lam)
        path = Path(process, t, process.alpha(t), process.sigma(t), self.lam)
        c = self.stats.variances
        weights = self.theta[..., None] * reach(self.lam, c)[:, None]
        state, data = whitened_columns(path, c, weights)
        start = torch.tensor([self.t_start], dtype=torch.float64)
        entry = closed_form(process, start, t[:1], c)[0]
        ends = torch.cat([start, t[-1:]])
        return SpectralTable(
            process, self.stats, t[:-1], state, data, entry, ends, f"learned-{self.nfe}"
        )

    def to_json(self) -> str:
        """Exact text form."""
        record = {
            "lam": self.lam.tolist(),
            "theta": self.theta.tolist(),
            "statistics": self.stats.record(),
            "t_start": self.t_start,
            "notes": self.notes,
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Learned:
        """Inverse of `to_json`. Raises ValueError for other text."""
        try:
            r = json.loads(text)
            lam, theta = (torch.tensor(r[k], dtype=torch.float64) for k in ("lam", "theta"))
            stats = Statistics.from_record(r["statistics"])
            return cls(lam, theta, stats, float(r["t_start"]), r.get("notes", {}))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a learned table in JSON: {error!r}") from error

    def write(self, path: str | FilePath) -> None:
        """Write `to_json` to a file."""
        FilePath(path).write_text(self.to_json(), encoding="utf-8")


def read(
    path: str | FilePath, process: Process
) -> Tableau | SpectralTable | GaussianPreconditioned:
    """What a JSON file holds, as a solver for a model's process: a learned table, a plain one, or
    statistics, which make the Gaussian-preconditioned integrator of order 2.

    Raises FileNotFoundError, or ValueError for another file.
    """
    text = FilePath(path).read_text(encoding="utf-8")
    try:
        keys = set(json.loads(text))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} holds no table: {error}") from error
    if "theta" in keys:
        return Learned.from_json(text).tableau(process)
    if "variances" in keys:
        return GaussianPreconditioned(Statistics.from_record(json.loads(text)))
    return Tableau.from_json(text)


class FitError(RuntimeError):
    """A fit that does not beat its initialisation on the starts it never saw."""


@dataclass(frozen=True, eq=False)
class Fit:
    """learned: the table; before, after: held-out mean error of initialisation and result."""

    learned: Learned
    before: float
    after: float


def reach(lam: Tensor, c: Tensor) -> Tensor:
    """kappa: int dlambda/sqrt(c + e^{-2 lambda}) = asinh(sqrt(c) e^lambda)/sqrt(c), [n, d]."""
    z, root = torch.exp(lam)[:, None], torch.sqrt(c.clamp(min=1e-12))
    return torch.diff(torch.asinh(root * z) / root, dim=0)


@dataclass(frozen=True)
class Choice:
    """An initialisation: statistics by name, the points extrapolated through, a grid, and the ratio
    sigma/alpha that the first call is made at (None: where the state is handed over)."""

    statistics: str = "none"
    points: int = 2
    grid: str = "log_snr"
    start: float | None = None


POINTS = (1, 2, 3)
SPACINGS = ("log_snr", "karras", "laplace", "uniform", "quadratic")
STARTS = (None, 64.0, 32.0, 16.0, 8.0, 4.0)


def initial(
    process: Process, t_start: float, t_end: float, nfe: int, stats: Statistics,
    choice: Choice = Choice(),
) -> Learned:  # fmt: skip
    """The classical table of a choice, as a start for `fit`.

    The grid's nodes are those from t_start to t_end, squeezed in lambda where the first call is
    made later; the weights are those of `choice.points` points for the mean variance.
    """
    first = float(process.log_snr(t_start))
    if choice.start is not None:
        first = max(first, -math.log(choice.start))
    if not math.isfinite(first):
        raise ValueError(f"the flow starts in pure noise at t={t_start:g}: give a start ratio")
    lam = process.log_snr(times(choice.grid, process, nfe, "t_min", t_end))
    share = (lam - lam[0]) / (lam[-1] - lam[0])
    if not bool(torch.isfinite(share).all()):  # the grid's own start is pure noise
        share = torch.linspace(0, 1, nfe + 1, dtype=torch.float64)
    lam = first + share * (float(process.log_snr(t_end)) - first)
    c = stats.variances.mean()[None]
    points = min(choice.points, nfe)
    theta = torch.zeros(nfe, nfe, dtype=torch.float64)
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
    """The choice that errs least on the starts x [B, ...], one coordinate changed at a time, twice.

    statistics: what may be used, by name. Points, grids and starts are POINTS, SPACINGS, STARTS (a
    start only with statistics: without, nothing is known of the flow above it).
    """
    process = model.process
    pure = math.isinf(float(process.log_snr(t_start)))
    tried: dict[Choice, tuple[float, Learned]] = {}

    def error(choice: Choice) -> float:
        if choice not in tried:
            table = initial(process, t_start, t_end, nfe, statistics[choice.statistics], choice)
            y = sample(
                model, x.shape, table.tableau(process), x_init=x, dtype=x.dtype,
                on_failure="return",
            )  # fmt: skip
            off = float((y - ends).flatten(1).square().mean(1).sqrt().mean())
            tried[choice] = (off if math.isfinite(off) else math.inf, table)
        return tried[choice][0]

    def changed(c: Choice, axis: int) -> list[Choice]:
        starts = [s for s in STARTS if not (pure and s is None)]
        return [
            [Choice(k, c.points, c.grid, c.start) for k in statistics],
            [Choice(c.statistics, c.points, c.grid, s) for s in starts],
            [Choice(c.statistics, p, c.grid, c.start) for p in POINTS],
            [Choice(c.statistics, c.points, g, c.start) for g in SPACINGS],
        ][axis]

    best = Choice(next(iter(statistics)), start=STARTS[1] if pure else None)
    for axis in track([0, 1, 2, 3] * 2, "choosing", 8, progress):
        best = min(changed(best, axis), key=error)
    return tried[best][1], best


def references(
    model: Denoiser, x: Tensor, t_start: float, t_end: float, steps: int = 200
) -> Tensor:
    """End points of the probability flow by UniPC-3 at many steps, equal in lambda; x [B, ...]."""
    process = model.process
    t = times("log_snr", process, steps, "t_min", t_end)
    if t_start != process.t_max:
        first, last = process.log_snr(torch.tensor([t_start, t_end], dtype=torch.float64)).tolist()
        t = process.inverse_log_snr(torch.linspace(first, last, steps + 1, dtype=torch.float64))
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

    Minimises the log of the mean per-sample RMS error by Adam, cosine rate. Raises FitError
    if the result does not beat `init` on the starts it never saw, ValueError for too few.
    """
    count = seen(len(x), held_out)
    if count < 1 or ends.shape != x.shape:
        raise ValueError(f"x and ends must be [B, ...] alike with B >= 2; got {tuple(x.shape)}")
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

    def error(chosen: Tensor) -> Tensor:
        y = run_differentiably(current(), model, x[chosen])
        return (y - ends[chosen]).flatten(1).square().mean(1).sqrt().mean()

    adam = torch.optim.Adam([theta, gaps, first], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations, rate / 50)
    before = held_out_error(init, model, x, ends, held_out)
    for _ in track(range(iterations), "fitting", iterations, progress):
        chosen = torch.randint(count, (min(batch, count),), generator=generator)
        loss = error(chosen).log()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    with torch.no_grad():
        found = current()
    made = Learned(found.lam.detach(), found.theta.detach(), init.stats, init.t_start)
    after = held_out_error(made, model, x, ends, held_out)
    if not after < 0.99 * before:  # a change within rounding is none
        raise FitError(
            f"the fitted table has a held-out error of {after:.3g}, its initialisation {before:.3g}: "
            "give it more starts or iterations, or keep the initialisation"
        )
    return Fit(made, before, after)


def held_out_error(
    table: Learned, model: Denoiser, x: Tensor, ends: Tensor, held_out: float = 0.25
) -> float:
    """Mean over the held-out starts of the RMS distance to their ends, as a sampler has it."""
    unseen = slice(seen(len(x), held_out), None)
    y = sample(
        model, x[unseen].shape, table.tableau(model.process), x_init=x[unseen], dtype=x.dtype,
        on_failure="return",
    )  # fmt: skip
    return float((y - ends[unseen]).flatten(1).square().mean(1).sqrt().mean())


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
