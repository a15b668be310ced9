"""The density of a stochastic run's samples from the laws of its steps.

A run draws x_1, ..., x_N by its own transitions; the forward process would have drawn
the same states from x_N by q(x_i | x_{i+1}) = N(a x_{i+1}, sigma_i^2 - a^2 sigma_{i+1}^2) with
a = alpha_i/alpha_{i+1}. So

    log p(x_N) ~ log N(x_0) + sum_i [log p(x_{i+1} | x_0 ... x_i) - log q(x_i | x_{i+1})],

whose exponential, turned over, is an unbiased weight of the path (Doucet et al. 2022; Vargas et al.
2023) and which tends to log p itself as steps shrink, as its continuous form d log p does
(Karczewski et al. 2025). Nothing but the run's own calls is needed. In x^ = x/alpha a step of
variance v, where the forward step has h, errs by (1 - v/h + v H) in the quadratic form of its
normal, H being the Hessian of log p after it; and the score is a martingale of the reverse run, so
that H times the step's noise is the score's change. Hence the error bar

    std_error^2 = V + (V/2)^2,    V = sum_i 1/2 |(1 - v/h) z_i + sqrt(v) (score_{i+1} - score_i)|^2,

V/2 being how far log p is then off on the average.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Process
from ..tables.innovations import innovations
from ..tables.tableau import Tableau


class AlongSDE:
    """The sums of a run, told step by step."""

    def __init__(self, table: Tableau, process: Process) -> None:
        _fits(table, process)
        times = torch.cat([table.times, table.grid[-1:]])
        self.alpha = process.alpha(times).tolist()
        self.sigma = process.sigma(times).tolist()
        self.total: Tensor | float = 0.0
        self.spread: Tensor | float = 0.0
        self.kept: tuple[Tensor, Tensor, float, float] | None = None
        self.steep: Tensor | None = None  # H times the last normal but one
        self.products = 0

    def row(
        self, i: int, before: Tensor, after: Tensor, mean: Tensor, std: float, d: Tensor
    ) -> None:
        """Take row i: the states around it, the law it drew from, and D before it."""
        old, new, data = (v.double().flatten(1) for v in (before, after, d))
        a = self.alpha[i] / self.alpha[i + 1]
        width = math.sqrt(self.sigma[i] ** 2 - a**2 * self.sigma[i + 1] ** 2)
        z = (new - mean.double().flatten(1)) / std
        back = (old - a * new) / width
        n = old.shape[1]
        step = 0.5 * (back.square() - z.square()).sum(1) + n * (math.log(width) - math.log(std))
        self.total = self.total + step
        score = (self.alpha[i] ** 2 * data - self.alpha[i] * old) / self.sigma[i] ** 2
        if self.kept is not None:
            z_before, score_before, root, share = self.kept
            change = root * (score - score_before)
            self.spread = self.spread + 0.5 * ((1 - share) * z_before + change).square().sum(1)
            self.steep = change / root**2
        root = std / self.alpha[i + 1]
        share = (std * a / width) ** 2
        self.kept = z, score, root, share

    def end(self, x: Tensor, base: Tensor) -> dict[str, Any]:
        """log p of the samples, given log N of their starts, [B]."""
        assert self.kept is not None
        z, _, root, share = self.kept
        last = (1 - share) * z
        if self.steep is not None:  # no call is made at the sample itself
            last = last + root**2 * self.steep
        spread = self.spread + 0.5 * last.square().sum(1)
        return {
            "log_prob": base + self.total,
            "std_error": (spread + 0.25 * spread.square()).sqrt(),
            "path_error": torch.zeros_like(base),
            "doubt": None,
        }


def _fits(table: Tableau, process: Process) -> None:
    """Raises ValueError unless every row draws noise and goes on towards the data."""
    times = torch.cat([table.times, table.grid[-1:]])
    ratio = process.log_snr(times)
    std, alpha, sigma = innovations(table).std, process.alpha(times), process.sigma(times)
    if table.entry[1] != 0 or not bool((ratio[1:] > ratio[:-1]).all()):
        raise InvalidValue(
            f"{table.name} goes back in time between its rows, so that its steps have no density "
            "against the forward process: take a solver that steps straight on, e.g. 'ddpm-large'"
        )
    still = (std == 0).nonzero().flatten().tolist()
    if still:
        rows = ", ".join(map(str, still[:8]))
        raise InvalidValue(
            f"row {rows} of {table.name} draws no noise, so that its sample has no density along "
            "the SDE: end with final='t_min', or take a solver that draws noise in every row"
        )
    a = alpha[:-1] / alpha[1:]
    share = (std * a).square() / (sigma[:-1].square() - (a * sigma[1:]).square())
    least = 0.5 * torch.exp(-2 * (ratio[1:] - ratio[:-1]))
    far = ((share < least) | (share > 2)).nonzero().flatten().tolist()
    if far:
        raise InvalidValue(
            f"row {far[0]} of {table.name} draws {float(share[far[0]]):.3g} times the variance of "
            f"the forward step, where the reverse SDE has {float(2 * least[far[0]]):.3g} to 1: the "
            "weight of such a path says nothing; take 'ddpm-large' or 'reverse-diffusion'"
        )
