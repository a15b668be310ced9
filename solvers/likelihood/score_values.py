"""Score-matching values of a network at one time: what it would be told if it were trained there.

    explicit   F = E |s - s*|^2 / 2, the Fisher divergence to a known score s*
    implicit   J = E [tr grad s + |s|^2 / 2]                        (Hyvarinen 2005), F = J + const
    sliced     E_v E [v^T grad s v + (v^T s)^2 / 2]                 (Song et al. 2019)

The constant is E |s*|^2/2 of the data, so J compares networks where s* is not known. The sliced
form's second term may be taken over v exactly (|s|^2/2), which is its variance-reduced version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser
from ...models.training import score_matching
from .. import arguments


@dataclass(frozen=True, eq=False)
class ScoreMatch:
    """Values of one form at x_t [B, *event]; float64 [B].

    values: of each sample.
    probe_error: what the probes contribute to its standard error, 0 for exact traces, nan for a
        single probe, which cannot tell.
    mean, std_error: over the samples, the probes' noise included; of one sample std_error is nan.
    """

    values: Tensor
    probe_error: Tensor

    @property
    def mean(self) -> float:
        """The expectation over x_t."""
        return float(self.values.mean())

    @property
    def std_error(self) -> float:
        """Of the mean, from the spread of the values."""
        n = len(self.values)
        return float(self.values.std()) / math.sqrt(n) if n > 1 else math.nan

    def __repr__(self) -> str:
        return f"{self.mean:.6g} +- {self.std_error:.2g} over {len(self.values)} samples"


def fisher_divergence(
    model: Denoiser,
    score: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: float | Tensor,
    cond: dict[str, Any] | None = None,
) -> ScoreMatch:
    """|s(x, t) - score(x, t)|^2/2 of each x_t.

    model: a `Denoiser`, whose score is s.
    score: a callable (x, t), the score that it is held against.
    x: [B, *event], states at t.
    t: a float or [B].
    cond: conditions of the network.
    Raises ValueError for a score of another shape, and times that are not the process's.
    """
    times = _times(model, x, t)
    with torch.no_grad():
        known = score(x, times)
        if known.shape != x.shape:
            raise InvalidValue(
                f"score must return x's shape {tuple(x.shape)}; got {tuple(known.shape)}"
            )
        gap = model.score(x, times, **(cond or {})) - known
    values = 0.5 * gap.double().square().flatten(1).sum(1)
    return ScoreMatch(values, torch.zeros_like(values))


def implicit_score_matching(
    model: Denoiser,
    x: Tensor,
    t: float | Tensor,
    trace: str = "exact",
    probes: int = 1,
    seed: int | Tensor = 0,
    *,
    sample_ids: Tensor | Sequence[int] | None = None,
    sliced: bool = False,
    cond: dict[str, Any] | None = None,
) -> ScoreMatch:
    """tr grad s + |s|^2/2 of each x_t [B, *event].

    t: the time, a number or [B], in (0, t_max].
    trace: 'exact', or 'hutchinson' with `probes` >= 1 Rademacher probes.
    seed, sample_ids: of the probes, as in `sample`.
    sliced: (v^T s)^2/2 in place of |s|^2/2, the first form of sliced score matching; needs
        'hutchinson'.
    cond: conditions of the network.

    Raises TypeError or ValueError for others, before the network is called.
    """
    times = _times(model, x, t)
    probes = arguments.whole("probes", probes)
    arguments.choice("trace", trace, ("exact", "hutchinson"))
    if sliced and trace == "exact":
        raise InvalidValue("sliced=True needs trace='hutchinson'")
    count = 0 if trace == "exact" else arguments.whole("probes", probes)
    with torch.no_grad():
        values = score_matching.terms(
            lambda v: model.score(v, times, **(cond or {})),
            x,
            count,
            seed,
            sample_ids,
            sliced=sliced,
            dtype=torch.float64,
        )
    if count == 0:
        return ScoreMatch(values[0], torch.zeros_like(values[0]))
    unknown = torch.full_like(values[0], math.nan)
    error = values.std(0) / math.sqrt(count) if count > 1 else unknown
    return ScoreMatch(values.mean(0), error)


def _times(model: Denoiser, x: Tensor, t: float | Tensor) -> Tensor:
    """t as float64 [B]; raises TypeError or ValueError for what no score is known of."""
    arguments.data(model, x)
    times = torch.as_tensor(t, dtype=torch.float64, device=x.device)
    if times.shape not in ((), (1,), (len(x),)):
        raise InvalidValue(f"t must be a number or [{len(x)}]; got {tuple(times.shape)}")
    last = model.process.t_max
    if not bool(((times > 0) & (times <= last)).all()):
        raise InvalidValue(f"t must lie in (0, t_max={last:g}]; got {times.flatten().tolist()[:4]}")
    return times.expand(len(x))
