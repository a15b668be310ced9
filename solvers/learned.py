"""Learned tables: a grid and residual weights fitted to a model's own trajectories.

In the coordinates of `spectral` every step is

    y_{i+1} = y_i + kappa_i sum_h theta[i,h] r_{i-h},   kappa_i = int dlambda / sqrt(c + e^{-2 lambda})

with theta lower triangular (all history, another row for every step: a bespoke non-stationary
solver, Shaul et al. 2024) and the nodes lambda_i free. Both start from the best classical choice,
two points and equal steps of lambda, and are fitted by Adam to reference end points. c = 0 gives an
ordinary `Tableau`, that any sampler runs; otherwise a `SpectralTable`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import Denoiser, Process
from .base import Path
from .progress import track
from .spectral import SpectralTable, Statistics, closed_form, whitened_columns
from .tableau import Tableau
from .unipc import UniPC


@dataclass(frozen=True, eq=False)
class Learned:
    """lam [n + 1] the nodes, theta [n, n] the residual weights (column h: h steps back), stats.

    t_start: where the state is handed over; the flow from there to the first node is closed form.
    """

    lam: Tensor
    theta: Tensor
    stats: Statistics
    t_start: float

    @property
    def nfe(self) -> int:
        return len(self.theta)

    def table(self, process: Process) -> SpectralTable:
        """The table over components, for the process whose model was fitted or any other."""
        t = process.inverse_log_snr(self.lam)
        path = Path(process, t, process.alpha(t), process.sigma(t), self.lam)
        c = self.stats.variances
        weights = self.theta[..., None] * reach(self.lam, c)[:, None]
        state, data = whitened_columns(path, c, weights)
        start = torch.tensor([self.t_start], dtype=torch.float64)
        entry = closed_form(process, start, t[:1], c)[0]
        return SpectralTable(
            process, self.stats, t[:-1], state, data, entry, torch.cat([start, t[-1:]])
        )

    def tableau(self, process: Process) -> Tableau:
        """The same as an ordinary table. Raises ValueError if mean or covariance is in it."""
        if bool(self.stats.mean.any()) or bool(self.stats.variances.any()):
            raise ValueError("a table with statistics acts on components; use table(process).run")
        t = self.table(process)
        none = t.times.new_zeros(self.nfe, 0)
        return Tableau(
            t.times, t.state[:, :, 0], t.data[:, :, 0], none, none.long(), t.grid,
            (float(t.entry[0]), 0.0), f"learned-{self.nfe}",
        ).trimmed()  # fmt: skip

    def to_json(self) -> str:
        """Exact text form."""
        s = self.stats
        record = {
            "lam": self.lam.tolist(),
            "theta": self.theta.tolist(),
            "mean": s.mean.tolist(),
            "variances": s.variances.tolist(),
            "basis": None if s.basis is None else s.basis.tolist(),
            "t_start": self.t_start,
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Learned:
        """Inverse of `to_json`. Raises ValueError for other text."""
        try:
            r = json.loads(text)
            lam, theta, mean, variances = (
                torch.tensor(r[k], dtype=torch.float64)
                for k in ("lam", "theta", "mean", "variances")
            )
            basis = None if r["basis"] is None else torch.tensor(r["basis"], dtype=torch.float64)
            return cls(lam, theta, Statistics(mean, variances, basis), float(r["t_start"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a learned table in JSON: {error}") from error


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


def initial(process: Process, t_start: float, t_end: float, nfe: int, stats: Statistics,
            start: float | None = None) -> Learned:  # fmt: skip
    """Two points, equal steps of lambda from the ratio `start` (None: from t_start)."""
    ends = process.log_snr(torch.tensor([t_start, t_end], dtype=torch.float64)).tolist()
    first = ends[0] if start is None else max(ends[0], -math.log(start))
    lam = torch.linspace(first, ends[1], nfe + 1, dtype=torch.float64)
    theta = torch.zeros(nfe, nfe, dtype=torch.float64)
    theta[:, 0] = 1.0
    theta[1:, 0] += 0.5
    theta[1:, 1:2] -= 0.5
    return Learned(lam, theta, stats, t_start)


def references(
    model: Denoiser, x: Tensor, t_start: float, t_end: float, steps: int = 200
) -> Tensor:
    """End points of the probability flow by UniPC-3 at many steps, equal in lambda; x [B, ...]."""
    process = model.process
    first, last = process.log_snr(torch.tensor([t_start, t_end], dtype=torch.float64)).tolist()
    t = process.inverse_log_snr(torch.linspace(first, last, steps + 1, dtype=torch.float64))
    t[0], t[-1] = t_start, t_end
    table = UniPC(3).tableau(process, t)
    states = x
    datas: list[Tensor] = []
    for i, now in enumerate(table.times.tolist()):
        datas.insert(0, model(states, now))
        del datas[table.data.shape[1] :]
        states = table.state[i, 0].item() * states + sum(
            w * d for w, d in zip(table.data[i].tolist(), datas, strict=False)
        )
    return states


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
    count = len(x) - max(1, round(held_out * len(x)))
    if count < 1 or ends.shape != x.shape:
        raise ValueError(f"x and ends must be [B, ...] alike with B >= 2; got {tuple(x.shape)}")
    process = model.process
    gaps = torch.log(torch.diff(init.lam)).requires_grad_()
    first = init.lam[:1].clone().requires_grad_(bool(init.stats.variances.any()))
    theta = init.theta.clone().requires_grad_()
    below = torch.tril(torch.ones_like(init.theta))
    generator = torch.Generator().manual_seed(seed)

    def current() -> Learned:
        last = init.lam[-1:]
        shares = torch.cumsum(torch.softmax(gaps, 0), 0)
        lam = torch.cat([first, first + shares * (last - first)])
        return Learned(lam, theta * below, init.stats, init.t_start)

    def error(table: Learned, chosen: Tensor | slice) -> Tensor:
        y = run_differentiably(table, process, model, x[chosen])
        return (y - ends[chosen]).flatten(1).square().mean(1).sqrt().mean()

    groups = [{"params": [theta]}, {"params": [gaps, first] if first.requires_grad else [gaps]}]
    adam = torch.optim.Adam(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations, rate / 50)
    unseen = slice(count, None)
    with torch.no_grad():
        before = float(error(init, unseen))
    for _ in track(range(iterations), "fitting", iterations, progress):
        chosen = torch.randint(count, (min(batch, count),), generator=generator)
        loss = error(current(), chosen).log()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    with torch.no_grad():
        found = current()
        made = Learned(found.lam.detach(), found.theta.detach(), init.stats, init.t_start)
        after = float(error(made, unseen))
    if not after < 0.99 * before:  # a change within rounding is none
        raise FitError(
            f"the fitted table has a held-out error of {after:.3g}, its initialisation {before:.3g}: "
            "give it more starts or iterations, or keep the initialisation"
        )
    return Fit(made, before, after)


def run_differentiably(table: Learned, process: Process, model: Denoiser, x: Tensor) -> Tensor:
    """The table's run as a function of its nodes and weights, through the network."""
    spectral = table.table(process)
    mean = table.stats.mean
    alpha = process.alpha(torch.cat([spectral.grid[:1], spectral.times, spectral.grid[-1:]]))
    q = table.stats.basis
    shape = x.shape

    def turn(v: Tensor, back: bool = False) -> Tensor:
        return v if q is None else v @ ((q.T if back else q).to(v.dtype))

    states = [turn(x.flatten(1) - (alpha[0] * mean).to(x.dtype)) * spectral.entry.to(x.dtype)]
    datas: list[Tensor] = []
    for i, t in enumerate(spectral.times):
        at = turn(states[-1], back=True) + (alpha[i + 1] * mean).to(x.dtype)
        d = model(at.reshape(shape), t).flatten(1) - mean.to(x.dtype)
        datas.append(turn(d))
        u = torch.zeros_like(states[0])
        for columns, terms in ((spectral.state[i], states), (spectral.data[i], datas)):
            for h in range(min(len(columns), i + 1)):
                u = u + columns[h].to(x.dtype) * terms[i - h]
        states.append(u)
    return (turn(states[-1], back=True) + (alpha[-1] * mean).to(x.dtype)).reshape(shape)
