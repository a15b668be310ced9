"""Whether a network is what its `Denoiser` says: prediction, time, scale of the data.

D(x_t, t) = E[x_0 | x_t] errs less than any other estimate of x_0, that of a Gaussian included,

    E|x_0 - D|^2 <= c sigma^2 / (alpha^2 c + sigma^2),     c the variance of the data.

What is declared is held to this at a few noise levels, beside the other declarations there are,
the usual processes, and data of other scales. `bench/results/check.md` has how often that is right.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.errors import InvalidType, InvalidValue, UndiffuseError
from ...kernels.streams import USER
from ...models import READOUTS, VE, VP, Denoiser, Flow, Process, conditions, notebook
from ...models.denoiser import Combination
from ...models.readout import TIME_CONVENTIONS
from .. import arguments
from ..outcome import status_failed
from ..sampling.sample import sample

SAME = 0.05  # of log(alpha/sigma), between processes that count as one
LEVELS = (0.15, 0.4, 1.0, 2.5, 6.0)
"""sigma/alpha over the deviation of the data."""


class Limits(NamedTuple):
    """What decides, in scores.

    other: by how much another declaration must be lower to be named.
    scale: the same for another scale of the data.
    worst: above this nothing is said to fit: D is worse than what needs no network. One that has
        learned little comes near 0.
    """

    other: float
    scale: float
    worst: float


LIMITS = Limits(0.01, 0.1, 0.1)
"""Chosen by `examples/check_rates.py` on its networks. What to expect on others is told in its
results, where half of the networks choose and the rest report."""
EVENTS, FIRST, STEPS = 64, 16, 20
"""Events that are denoised; those that a declaration is first looked at with; calls of a network's
own samples."""
FINALISTS = 6
"""Declarations that are seen on all events."""
SIGMA_DATA = (0.5, 1.0)
"""Deviations of the data that networks of 'edm' are often told, beside the declared and the own."""
USUAL_FIRST = 0.25
"""By which the scale of the own samples must be better than a usual one to be named."""
NEARBY = (0.7, 0.8, 0.9, 1.1, 1.25, 1.4)
"""Factors of `sigma_data` that are tried about the best of them."""
NO_SHIFT = 0.1
"""Shift of the mean, in deviations of the samples, that chance may have made."""
USUAL = {
    "2 * x - 1": (2.0, -1.0),
    "(x + 1) / 2": (0.5, 0.5),
    "x / 127.5 - 1": (1 / 127.5, -1.0),
    "127.5 * (x + 1)": (127.5, 127.5),
    "x / 255": (1 / 255, 0.0),
    "255 * x": (255.0, 0.0),
    "2 * x": (2.0, 0.0),
    "x / 2": (0.5, 0.0),
}
"""Changes of scale that are usual: words, factor, shift."""


def _thousands(t: Tensor) -> Tensor:
    return 1000 * t


def _thousandths(t: Tensor) -> Tensor:
    return t / 1000


SCALED: dict[str, Callable[[Tensor], Tensor]] = {
    "lambda t: 1000 * t": _thousands,
    "lambda t: t / 1000": _thousandths,
}


PROCESSES: dict[str, Callable[[int], Process]] = {
    "ud.VP()": lambda n: VP(),
    "ud.VP.from_betas(torch.linspace(1e-4, 0.02, {n}))": (
        lambda n: VP.from_betas(torch.linspace(1e-4, 0.02, n, dtype=torch.float64, device="cpu"))
    ),
    "ud.VP.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, {n})**2)": lambda n: VP.from_betas(
        torch.linspace(0.00085**0.5, 0.012**0.5, n, dtype=torch.float64, device="cpu") ** 2
    ),
    "ud.VP.cosine(steps={n})": lambda n: VP.cosine(steps=n),
    "ud.Flow()": lambda n: Flow(),
    "ud.VE()": lambda n: VE(),
}
"""Processes that are usual, by the Python that makes them for n training steps (Ho et al. 2020;
Rombach et al. 2022; Nichol & Dhariwal 2021; Liu et al. 2023; Song et al. 2021)."""
BY_LEVEL = ("edm", "sigma")
"""Conventions of time that tell the network the level itself: the process is not seen in it."""


class Declaration(NamedTuple):
    """What a network may be declared to be, and how that fits.

    predicts, time: as of `Denoiser`; a time of one's own is 'a function'.
    scale: what the data must be multiplied by and moved to, in Python: 'x', 'x / 127.5 - 1'.
    sigma_data: of 'edm', else None.
    score: mean log ratio of D's squared error to a Gaussian's; below 0 is good.
    process: in Python, where it is another than the model's.
    """

    predicts: str
    time: str
    scale: str
    sigma_data: float | None
    score: float
    process: str | None = None

    @property
    def code(self) -> str:
        """The arguments of `Denoiser`, and what becomes of the data."""
        time = self.time if self.time in (*SCALED, "a function") else repr(self.time)
        words = "" if self.process is None else f"{self.process}, "
        words += f"predicts={self.predicts!r}, time={time}"
        words += f", sigma_data={self.sigma_data:.3g}" if self.sigma_data is not None else ""
        return words + (f", data {self.scale}" if self.scale != "x" else "")


@dataclass(frozen=True)
class Check:
    """What `check` found; true where the declaration holds.

    holds: whether nothing speaks against what is declared.
    declared, fits: (predicts, time) as declared, and as fits the data best; None without data.
    score: mean log ratio of D's squared error to that of a Gaussian; below 0 is good.
    scores: the declarations that fit the data best and the declared one, best first; empty without
        data.
    words: the finding in a sentence; where nothing beats a Gaussian, that no declaration fits.
    scale: what makes data of x that fit: 'x' as they are, or 'x / 127.5 - 1' and its like.
    process: the process that fits, in Python; None: the model's.
    """

    holds: bool
    declared: tuple[str, str]
    fits: tuple[str, str] | None
    score: float
    scores: tuple[Declaration, ...]
    words: str
    scale: str = "x"
    process: str | None = None

    def __bool__(self) -> bool:
        return self.holds

    def __repr__(self) -> str:
        lines = textwrap.wrap(self.words, 80, break_on_hyphens=False, break_long_words=False)
        if not self.scores:
            return "\n".join(lines)
        lines += ["", f"{'score':>6}  declaration ({NOTE})"]
        for row in self.scores:
            front = f"{row.score:6.2f}{'*' if row == self._mine else ' '} "
            lines += textwrap.wrap(front + row.code, 80, subsequent_indent=9 * " ")
        return "\n".join([*lines, "", "* is declared"])

    def record(self) -> dict[str, Any]:
        """All of it, for JSON; a score that is infinite is None."""
        rows = [row._asdict() for row in self.scores]
        for row in (whole := vars(self) | {"scores": rows}), *rows:
            row["score"] = row["score"] if math.isfinite(row["score"]) else None
        return whole

    @property
    def _mine(self) -> Declaration | None:
        told = (*self.declared, "x")
        mine = [
            r for r in self.scores if r[:3] == told and r.score == self.score and r.process is None
        ]
        return mine[0] if mine else None

    def _repr_html_(self) -> str:
        rows = [
            (f"{r.score:.2f}", r.code, "declared" if r == self._mine else "") for r in self.scores
        ]
        return notebook.table(self.words, ("score", "declaration", "") if rows else (), rows, NOTE)


NOTE = "below 0: D beats a Gaussian"


class Seen(NamedTuple):
    """What a declaration is scored on: events, the seed of their noise, their conditions."""

    x: Tensor
    seed: int
    cond: dict[str, Any]


def check(
    model: Denoiser,
    x: Tensor | Sequence[int] | None = None,
    *,
    cond: dict[str, Any] | None = None,
    seed: int = 0,
) -> Check:
    """Hold a network to what its `Denoiser` declares, and name the declaration that fits.

    It asks for other predictions, other times, another `sigma_data`, the usual processes and data
    of another scale. It takes some 200 calls of 16 events and a few of 64.

    model: a `Denoiser` of one network; of guidance check each network by itself.
    x: data [B, *event] of the network's kind, 16 events or more, of which 64 are taken. Without
        data pass the shape of an event as a tuple: the network's own samples are used, which find
        gross mistakes alone (a wrong declaration may agree with itself) and name none.
    cond: conditions of these events, as for `sample`.
    seed: of the noise.

    Raises ValueError or TypeError for bad arguments.
    """
    arguments.denoiser(model)
    if isinstance(model.net, Combination):
        raise InvalidType(
            f"model must be a Denoiser of one network, got guidance of {len(model.networks)}: "
            "check each of them by itself"
        )
    told = model.time if isinstance(model.time, str) else "a function"
    declared = (model.predicts, told)
    if not isinstance(x, Tensor):
        if x is None:
            raise InvalidValue("x must be data [B, *event], or the shape of an event; got None")
        shape = arguments.batch_shape("x", (EVENTS, *x))
        own = _own_samples(model, shape, model.given(cond, EVENTS), seed)
        return _on_its_own(model, declared, own, model.given(cond, EVENTS), seed)
    if not x.is_floating_point():
        raise InvalidType(
            "x must be numbers of the scale that the network was trained on, of bytes for example "
            f"x / 127.5 - 1; got {x.dtype}"
        )
    arguments.event_batch("x", x)
    if len(x) < FIRST:
        raise InvalidValue(f"x must hold {FIRST} events or more; got {len(x)}")
    if not float(x.var(0).mean()) > 0:
        raise InvalidValue(f"x must hold events that differ; got {len(x)} that are the same")
    given = model.given(cond, len(x))
    seen = part(Seen(x.to(arguments.device_of(model)), seed, given), EVENTS)
    return judged(*candidates(model, seen))


def candidates(model: Denoiser, seen: Seen) -> tuple[Declaration, list[Declaration]]:
    """The model's own declaration, and those that fit best beside it."""
    mine = _declaration(model, "x", score_of(model, *seen))
    return mine, [
        *_others(model, seen), *_processes(model, mine, seen), *_rescaled(model, mine, seen)
    ]  # fmt: skip


def judged(mine: Declaration, others: Sequence[Declaration], limits: Limits = LIMITS) -> Check:
    """The finding about a declaration, from its score and those of others."""
    best = mine
    for other in sorted(others, key=lambda d: d.score):
        least = limits.other if other.scale == "x" else limits.scale
        if mine.score - other.score > least and other.score < best.score:
            best = other
    holds = best == mine and mine.score < limits.worst
    if holds:
        words = f"{mine.code} fits the data"
    elif best == mine or best.score > -limits.other:
        best = min([mine, *others], key=lambda d: d.score)
        words = (
            "no declaration fits: none of them denoises x better than a Gaussian does "
            f"(best: {best.code}, {best.score:.2g}): look at the process, at how x was prepared, "
            "at the weights"
        )
    elif best.scale != "x":
        words = f"hand in {best.scale} for x: that fits {mine.code}, and x does not"
    else:
        words = f"declare {best.code}: it fits the data, and {mine.code} does not"
    found = tuple(sorted([mine, *others], key=lambda d: d.score))[: FINALISTS + 1]
    found = found if mine in found else (*found[:-1], mine)
    return Check(holds, mine[:2], best[:2], mine.score, found, words, best.scale, best.process)


def _declaration(model: Denoiser, scale: str, score: float, time: str | None = None) -> Declaration:
    told = model.time if isinstance(model.time, str) else "a function"
    sigma_data = model.sigma_data if model.predicts == "edm" else None
    return Declaration(model.predicts, time or told, scale, sigma_data, score)


def _on_its_own(
    model: Denoiser, declared: tuple[str, str], x: Tensor, cond: dict[str, Any], seed: int
) -> Check:
    """The finding on the network's own samples, which may all be wrong alike."""
    score = score_of(model, x, seed, cond) if len(x) >= FIRST else math.inf
    what = _declaration(model, "x", score).code
    words = f"{what} agrees with its own samples, a weak sign: data, x=, tell more"
    if score >= LIMITS.worst:
        words = (
            f"{what} denoises its own samples worse than a Gaussian would: hand in data, x=, to "
            "have the declaration named that fits"
        )
    return Check(score < LIMITS.worst, declared, None, score, (), words)


def part(seen: Seen, n: int) -> Seen:
    """At most n of the events, taken evenly: data are often sorted."""
    total = len(seen.x)
    index = torch.arange(min(n, total), device="cpu") * total // min(n, total)
    cond = conditions.rows(seen.cond, index, total)
    return seen._replace(x=seen.x[index.to(seen.x.device)], cond=cond)


def _others(model: Denoiser, seen: Seen) -> list[Declaration]:
    """The declarations that fit best beside the model's own, seen on all events."""
    few, found = part(seen, FIRST), []
    for other, time in _alternatives(model, seen.x):
        found.append((_score_or_inf(other, few), other, time))
    found.sort(key=lambda f: f[0])
    again = [
        _declaration(other, "x", _score_or_inf(other, seen), time)
        for score, other, time in found[:FINALISTS]
        if score < math.inf
    ]
    if again and (best := min(again, key=lambda d: d.score)).sigma_data is not None:
        again += _tuned(model, best, seen)
    return again


def _processes(model: Denoiser, mine: Declaration, seen: Seen) -> list[Declaration]:
    """The model's own declaration on the usual process that fits best."""
    if model.time in BY_LEVEL:
        return []
    few, n, found = part(seen, FIRST), model.steps or 1000, []
    for words, make in PROCESSES.items():
        try:
            with warnings.catch_warnings():  # of pure noise, on processes that nobody declared
                warnings.simplefilter("ignore")
                other = replace(model, process=make(n))
        except ValueError:  # no such times on it
            continue
        if not _alike(model.process, other.process):
            found.append((_score_or_inf(other, few), words.format(n=n), other))
    found.sort(key=lambda f: f[0])
    return [
        mine._replace(process=words, score=_score_or_inf(other, seen))
        for score, words, other in found[:2]
        if score < math.inf
    ]


def _alike(a: Process, b: Process) -> bool:
    """Whether the times of both have the same noise levels to SAME: scores cannot tell them."""
    lam = [torch.tensor(-math.log(level), dtype=torch.float64, device="cpu") for level in LEVELS]
    return all(abs(float(b.log_snr(a.inverse_log_snr(v)) - v)) < SAME for v in lam)


def _tuned(model: Denoiser, best: Declaration, seen: Seen) -> list[Declaration]:
    """The same declaration with deviations of the data about that one."""
    time, found = SCALED.get(best.time, best.time), []
    for factor in NEARBY:
        sigma_data = factor * (best.sigma_data or 1.0)
        near = replace(model, predicts=best.predicts, time=time, sigma_data=sigma_data)
        found.append(_declaration(near, "x", _score_or_inf(near, seen), best.time))
    return [min(found, key=lambda d: d.score)]


def _alternatives(model: Denoiser, x: Tensor) -> Iterator[tuple[Denoiser, str]]:
    """All declarations but the model's own, and their times in words."""
    near = {round(math.log(model.sigma_data), 1): model.sigma_data}
    for sigma_data in (*SIGMA_DATA, max(float(x.std()), 1e-6)):
        near.setdefault(round(math.log(sigma_data), 1), sigma_data)
    for predicts in READOUTS:
        for time in (*TIME_CONVENTIONS, *SCALED):
            for sigma_data in near.values() if predicts == "edm" else (model.sigma_data,):
                asked = predicts, time, sigma_data
                if asked == (model.predicts, model.time, model.sigma_data):
                    continue
                try:
                    with warnings.catch_warnings():  # of predictions that nobody declared
                        warnings.simplefilter("ignore")
                        other = replace(
                            model,
                            predicts=predicts,
                            time=SCALED.get(time, time),
                            sigma_data=sigma_data,
                        )
                except ValueError:  # no such times on this process
                    continue
                yield other, time


def _rescaled(model: Denoiser, mine: Declaration, seen: Seen) -> list[Declaration]:
    """The model's own declaration with data of other scales: the usual ones, and the scale of the
    network's own samples."""
    try:
        own = _own_samples(model, tuple(seen.x.shape), seen.cond, seen.seed)
    except UndiffuseError:
        own = seen.x[:0]
    few, first = part(seen, FIRST), []
    for words, (factor, shift) in USUAL.items():
        first.append((_score_or_inf(model, few._replace(x=factor * few.x + shift)), words))
    maps = {words: USUAL[words] for _, words in [min(first)]}
    if len(own) >= FIRST and float(own.std()) > 0 and float(seen.x.std()) > 0:
        factor = float(own.std()) / float(seen.x.std())
        shift = float(own.mean()) - factor * float(seen.x.mean())
        shift = shift if abs(shift) > NO_SHIFT * float(own.std()) else 0.0
        words = f"{factor:.3g} * x"
        words += f" {'-' if shift < 0 else '+'} {abs(shift):.3g}" if shift else ""
        maps[words] = factor, shift
    again = []
    for words, (factor, shift) in maps.items():
        score = _score_or_inf(model, seen._replace(x=factor * seen.x + shift))
        again.append(mine._replace(scale=words, score=score))
    usual, fitted = again[0], again[-1]  # chance is in the samples' scale
    return [fitted if usual.score - fitted.score > USUAL_FIRST else usual]


def _own_samples(
    model: Denoiser, shape: tuple[int, ...], cond: dict[str, Any], seed: int
) -> Tensor:
    """Samples of the model by its declaration; none where one of them failed."""
    done = sample(
        model, shape, nfe=STEPS, seed=seed, cond=cond, on_failure="return", return_result=True
    )
    return done.x[:0] if bool(status_failed(done.status).any()) else done.x


def _score_or_inf(model: Denoiser, seen: Seen) -> float:
    """`score_of`; inf where the network refuses what it is told, as tables of embeddings do."""
    try:
        return score_of(model, *seen)
    except (LookupError, RuntimeError, TypeError, ValueError):  # the declared one has run
        return math.inf


def score_of(
    model: Denoiser, x: Tensor, seed: int = 0, cond: dict[str, Any] | None = None
) -> float:
    """Mean over noise levels of log(|x_0 - D|^2 / |x_0 - G|^2), G the estimate of a Gaussian of
    mean m and variance c on the same x_t; inf where D is not finite or has no such read-out.

        G = m + alpha c / (alpha^2 c + sigma^2) (x_t - alpha m)
    """
    mean, variance = x.mean(0), float(x.var(0).mean())
    process, total = model.process, 0.0
    for i, level in enumerate(LEVELS):
        ratio = level * math.sqrt(variance)
        lam = torch.tensor(-math.log(ratio), dtype=torch.float64, device="cpu")
        t = min(max(float(process.inverse_log_snr(lam)), model.t_min), process.t_max)
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        try:
            model.coefficients("data", t)
        except InvalidValue:  # no such read-out there
            return math.inf
        z = normal(tuple(x.shape), seed, None, **_place(i), device=x.device).to(x.dtype)
        noisy = alpha * x + sigma * z
        with torch.no_grad():
            d = model(noisy, t, **(cond or {}))
        shrunk = alpha * variance / (alpha**2 * variance + sigma**2)
        best = mean + shrunk * (noisy - alpha * mean)
        off, least = (float((guess - x).square().mean()) for guess in (d, best))
        if not (math.isfinite(off) and off > 0):
            return math.inf
        total += math.log(off / least)
    return total / len(LEVELS)


def _place(draw: int) -> Any:
    return USER.at(draw)
