"""Whether a network is what its `Denoiser` says: prediction, time, scale of time.

D(x_t, t) = E[x_0 | x_t] errs less than any other estimate of x_0, the best linear one included,

    E|x_0 - D|^2 <= c sigma^2 / (alpha^2 c + sigma^2),     c the variance of the data.

What is declared is held to this at a few noise levels, beside the other declarations there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.errors import InvalidValue
from ...kernels.streams import USER
from ...models import READOUTS, Denoiser, notebook
from ...models.readout import TIME_CONVENTIONS
from .. import arguments
from ..sampling.sample import sample

LEVELS = (0.15, 0.4, 1.0, 2.5, 6.0)
"""sigma/alpha over the deviation of the data."""
MARGIN = 0.05
"""Of the mean log ratio by which another declaration must be better to be named."""
DRAWS, STEPS = 64, 20
"""Samples of the network's own, and their calls, where no data are given."""


@dataclass(frozen=True)
class Check:
    """What `check` found; true where the declaration holds.

    holds: whether nothing speaks against what is declared.
    declared, fits: (predicts, time) as declared, and as fits the data best; None without data.
    score: mean log ratio of D's squared error to that of the best linear estimate; below 0 is good.
    scores: of all declarations on the data, best first; empty without data.
    words: the finding in a sentence.
    """

    holds: bool
    declared: tuple[str, str]
    fits: tuple[str, str] | None
    score: float
    scores: tuple[tuple[str, str, float], ...]
    words: str

    def __bool__(self) -> bool:
        return self.holds

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        rows = [(p, t, f"{s:.2f}") for p, t, s in self.scores[:6]]
        return notebook.table("Declarations", ("predicts", "time", "score"), rows, self.words)


def _thousands(t: Tensor) -> Tensor:
    return 1000 * t


def _thousandths(t: Tensor) -> Tensor:
    return t / 1000


SCALED: dict[str, Callable[[Tensor], Tensor]] = {
    "lambda t: 1000 * t": _thousands,
    "lambda t: t / 1000": _thousandths,
}


def check(model: Denoiser, x: Tensor | None = None, *, seed: int = 0) -> Check:
    """Hold a network to what its `Denoiser` declares, and name the declaration that fits.

    model: a `Denoiser` of one network without conditions of its own.
    x: data [B, *event] of the network's kind, 16 events or more; some dozens will do. Without data
        pass the shape of an event as a tuple: the network's own samples are used, which find gross
        mistakes alone (a wrong declaration may agree with itself) and name none.
    seed: of the noise.

    Raises ValueError or TypeError for bad arguments.
    """
    arguments.denoiser(model)
    own = isinstance(x, tuple | list)
    if own:
        shape = arguments.batch_shape("x", (DRAWS, *x))  # type: ignore[misc]
        x = sample(model, shape, nfe=STEPS, seed=seed, on_failure="return")
    if not isinstance(x, Tensor):
        raise InvalidValue("x must be data [B, *event], or the shape of an event; got None")
    if not own:
        arguments.event_batch("x", x)
        if len(x) < 16:
            raise InvalidValue(f"x must hold 16 events or more; got {len(x)}")
    told = model.time if isinstance(model.time, str) else "a function"
    declared = (model.predicts, told)
    score = score_of(model, x, seed)
    if own:
        holds = score < 0
        words = (
            f"predicts={declared[0]!r}, time={declared[1]!r} agrees with its own samples"
            if holds
            else f"predicts={declared[0]!r}, time={declared[1]!r} denoises its own samples worse "
            "than a linear estimate: hand in data, x=, to have the declaration named that fits"
        )
        return Check(holds, declared, None, score, (), words)
    scores = [(*declared, score)]
    for predicts in READOUTS:
        for time in (*TIME_CONVENTIONS, *SCALED):
            if (predicts, time) == declared:
                continue
            try:
                other = replace(model, predicts=predicts, time=SCALED.get(time, time))
            except ValueError:  # no such times on this process
                continue
            scores.append((predicts, time, score_of(other, x, seed)))
    scores.sort(key=lambda s: s[2])
    *fits, best = scores[0]
    holds = score < 0 and score - best <= MARGIN
    words = f"predicts={declared[0]!r}, time={declared[1]!r} fits the data"
    if not holds and score - best > MARGIN and best < 0:
        time = fits[1] if fits[1] in SCALED else repr(fits[1])
        words = f"declare predicts={fits[0]!r}, time={time}: it fits the data, and {declared} not"
    elif not holds:
        words = (
            f"no declaration fits: all of them denoise x worse than a linear estimate ({score:.2g})"
        )
    fit = declared if holds else (str(fits[0]), str(fits[1]))
    return Check(holds, declared, fit, score, tuple(scores), words)


def score_of(model: Denoiser, x: Tensor, seed: int = 0) -> float:
    """Mean over noise levels of log(E|x_0 - D|^2 / the best linear estimate's); inf where D is not
    finite or does not exist."""
    variance = float(x.var(0).mean())
    if not (math.isfinite(variance) and variance > 0):
        return math.inf
    process, total = model.process, 0.0
    for i, level in enumerate(LEVELS):
        ratio = level * math.sqrt(variance)
        lam = torch.tensor(-math.log(ratio), dtype=torch.float64, device="cpu")
        t = min(max(float(process.inverse_log_snr(lam)), model.t_min), process.t_max)
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        z = normal(tuple(x.shape), seed, None, **_place(i), device=x.device).to(x.dtype)
        try:
            with torch.no_grad():
                off = float((model(alpha * x + sigma * z, t) - x).square().mean())
        except ValueError:  # no such read-out there
            return math.inf
        linear = variance * sigma**2 / (alpha**2 * variance + sigma**2)
        if not (math.isfinite(off) and off > 0):
            return math.inf
        total += math.log(off / linear)
    return total / len(LEVELS)


def _place(draw: int) -> Any:
    return USER.at(draw)
