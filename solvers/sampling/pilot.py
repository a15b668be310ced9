"""Which table suits a network: a pilot run of the network itself decides.

    starts of its own -> their ends by a fine run -> candidates, by how far from these they end ->
    the best few again on starts that none has seen -> the one that errs least, with an interval

No solver is safe everywhere: networks err at high noise, schedules stop early or start at a ratio
of twenty thousand, and what wins on one loses on the next. A few thousand calls tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.errors import InvalidValue, RunFailure
from ...models import Denoiser, conditions
from ...models.progress import track
from .. import arguments
from ..arguments import device_of
from ..families.composed import SparedStart
from ..families.registry import get
from ..tables.grids import Blend, times
from ..tables.tableau import Tableau
from .learning import FreeTable
from .learning import learn as learn_table
from .sampler import Sampler

OTHERS = 2**40
"""The first sample id of a pilot: its noise is nobody's sample."""
SOLVERS = (
    "ipndm-2",
    "zeab-2",
    "ipndm-3",
    "unipc-2-noise",
    "zeab-3",
    "unipc-3-noise",
    "dpmpp-2m",
    "ddim",
)
BLENDS = (0.5, 0.3, 0.7, 0.15, 0.85, 0.0, 1.0)
"""Shares of a grid that are equal steps of lambda, the likeliest first."""
NOISY = 30.0
"""sigma/alpha at t_max from which the first call may be spared: x there is noise to 3 %."""
SPARE = 20
"""Calls from which sparing the first is not tried."""
FINE = 160
"""Steps of the run that stands for the exact flow; half of them tell how far it may be off."""
FEW, MORE, SHORT = 8, 24, 8
"""Starts that all candidates are run on, further ones for the best SHORT of them."""


@dataclass(frozen=True)
class Candidate:
    """A solver by name on a blend of spacings, with its first call spared or not, and its end."""

    solver: str
    blend: float
    spared: bool = False
    final: str = "t_min"

    @property
    def grid(self) -> Blend:
        return Blend(self.blend, NOISIEST if self.spared else None)

    def table(self, model: Denoiser, nfe: int) -> Tableau:
        """Its table of nfe calls. Raises ValueError where there is none."""
        t = times(self.grid, model.process, nfe + self.spared, self.final, model.t_min)
        solver = get(self.solver)
        made = (SparedStart(solver) if self.spared else solver).tableau(model.process, t)
        if made.nfe != nfe:
            raise InvalidValue(f"{self} makes {made.nfe} calls, not {nfe}")
        return made

    def __str__(self) -> str:
        first = ", first call spared" if self.spared else ""
        return f"{self.solver} on blend {self.blend:g}{first}, final={self.final!r}"


NOISIEST = 1e3
"""sigma/alpha from which on a grid whose first call is spared lays no node."""


@dataclass(frozen=True)
class Tuned:
    """What a pilot found.

    table: the run, to be given to `sample` as its solver; `save` writes it.
    choice: the unlearned table that errs least, in words.
    error: mean over starts that chose nothing, of the root mean square distance to the end of the
        exact flow, over the standard deviation of these ends.
    half_width: its 95 % interval.
    unlearned: the error of the choice, where a table was learned from it; else None.
    fine_error: how far the run that stands for the exact flow may itself be off, in the same unit.
    tried: errors of all candidates on the first starts, best first.
    calls: network calls that all of it took.
    """

    table: Tableau
    choice: str
    error: float
    half_width: float
    unlearned: float | None
    fine_error: float
    tried: tuple[tuple[str, float], ...]
    calls: int

    def __repr__(self) -> str:
        more = "" if self.unlearned is None else f", error {self.unlearned:.3g} before learning"
        lines = [
            f"{self.table.nfe} calls: error {self.error:.3g} +- {self.half_width:.2g} "
            + f"in deviations of the data ({self.calls} calls of pilot)",
            f"  {self.choice}{more}",
        ]
        lines += [f"  {error:9.3g}  {name}" for name, error in self.tried[:5]]
        return "\n".join(lines)


def candidates(model: Denoiser, nfe: int, final: str | None = None) -> Iterator[Candidate]:
    """What is tried, the likeliest first."""
    noisy = math.exp(-float(model.process.log_snr(model.process.t_max))) > NOISY
    for blend in BLENDS:
        for solver in SOLVERS:
            for spared in (True, False) if noisy and nfe < SPARE else (False,):
                for end in ("t_min", "denoise") if final is None else (final,):
                    yield Candidate(solver, blend, spared, end)


class Pilot:
    """Starts of a model with the ends of their exact flow, as a fine run has them."""

    def __init__(self, model: Denoiser, x: Tensor, cond: dict[str, Any], fine: int = FINE) -> None:
        self.model, self.x, self.cond, self.calls = model, x, cond, 0
        everyone = slice(0, len(x))
        halves = [
            self.run(
                get("ipndm-3").tableau(
                    model.process, times(Blend(), model.process, steps, "t_min", model.t_min)
                ),
                everyone,
            )
            for steps in (fine // 2, fine)
        ]
        if not bool(halves[1].isfinite().all()):
            raise RunFailure(
                f"a run of {fine} steps is not finite, so that nothing can be measured: "
                "does the network predict what the Denoiser says?"
            )
        with torch.no_grad():
            jump = model(halves[1], model.t_min, **cond)
        self.calls += model.calls
        self.goals = {"t_min": halves[1], "denoise": jump}
        spread = halves[1].double().flatten(1).var(0).mean().sqrt()
        self.unit = float(spread) / float(model.process.alpha(model.t_min))
        self.fine_error = float(_rms(halves[1] - halves[0]).mean()) / self.unit

    def run(self, table: Tableau, rows: slice) -> Tensor:
        """The ends that a table takes these starts to."""
        index = torch.arange(len(self.x), device="cpu")[rows]
        cond, x = conditions.rows(self.cond, index, len(self.x)), self.x[rows]
        self.calls += table.nfe * self.model.calls
        with torch.no_grad():
            sampler = Sampler(self.model, table, dtype=self.x.dtype, device=self.x.device)
            return sampler.finish(sampler.init(x.shape, x_init=x), cond)

    def errors(self, table: Tableau, final: str, rows: slice) -> Tensor:
        """[B] distances to the exact ends over the data's deviation; inf where the run failed."""
        found = _rms(self.run(table, rows) - self.goals[final][rows]) / self.unit
        return torch.where(found.isfinite(), found, math.inf)


def _rms(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().mean(1).sqrt()


def tune(
    model: Denoiser,
    shape: Sequence[int],
    nfe: int,
    *,
    final: str | None = None,
    learn: bool = False,
    cond: dict[str, Any] | None = None,
    starts: int = 96,
    calls: int = 6000,
    steps: int = 400,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Tuned:
    """Find the table of nfe calls that errs least on this very network.

    Candidates (a solver on a blend of spacings, its first call spared or not, its end) run on a few
    starts, the best of them on more, and the one that errs least there is told its error on starts
    that had no part in it.

    model: a `Denoiser`, guided or not.
    shape: (B, *event), as for `sample`.
    cond: the conditions of these B samples, used in turn.
    nfe: calls of the network that a run may make, >= 2.
    final: 't_min' or 'denoise' to have that end; None leaves it open.
    learn: learn the table's own numbers as well, see `learning`. What does not err less on starts
        never learned from is not kept.
    starts: trajectories that are learned from, >= 8.
    steps: of Adam.
    distance: (found, exact) -> [B], what learning minimises; by default the root mean square.
    calls: of a batch, that trying candidates may take, some hundred at least.
    seed: of the pilot's noise, which is that of no sample of `sample`.
    device: where the pilot runs.
    progress: whether to show a bar.

    Returns a `Tuned`; `sample(model, shape, tuned.table)` runs it.
    Raises ValueError for bad arguments,
    RunFailure where the network is not finite on a fine run.
    """
    arguments.denoiser(model)
    batch, *event = arguments.batch_shape("shape", shape)
    nfe = arguments.whole("nfe", nfe, 2)
    calls, steps = arguments.whole("calls", calls), arguments.whole("steps", steps)
    starts = arguments.whole("starts", starts, 8)
    if final is not None:
        arguments.choice("final", final, ("t_min", "denoise"))
    count = FEW + MORE + MORE + (starts if learn else 0)
    place = device_of(model) if device is None else device
    ids = torch.arange(OTHERS, OTHERS + count, device="cpu")
    z = normal((count, *event), seed, ids, purpose="initial", device=place)
    x = z * float(model.process.sigma(model.process.t_max))
    turns = torch.arange(count, device="cpu") % batch
    known = conditions.rows(model.told(cond, batch).cond, turns, batch)
    pilot = Pilot(model, x, known)
    few, more = slice(0, FEW), slice(FEW, FEW + MORE)
    unseen = slice(FEW + MORE, FEW + 2 * MORE)

    found: list[tuple[float, int, Candidate, Tableau]] = []
    every = list(candidates(model, nfe, final))
    for i, one in enumerate(track(every, "trying", len(every), progress)):
        if i and i * nfe > calls:
            break
        try:
            table = one.table(model, nfe)
        except ValueError:  # a scheme that needs more steps
            continue
        found.append((float(pilot.errors(table, one.final, few).mean()), i, one, table))
    if not found:
        raise InvalidValue(f"no candidate has a table of nfe={nfe} calls on {model.process}")
    found.sort(key=lambda f: f[:2])
    again = [
        (float(pilot.errors(t, c.final, more).mean()), i, c, t) for _, i, c, t in found[:SHORT]
    ]
    _, _, choice, table = min(again, key=lambda f: f[:2])
    off = pilot.errors(table, choice.final, unseen)
    unlearned = None
    if learn:
        learned = _learned(
            pilot, choice, nfe, slice(FEW + 2 * MORE, count), steps, distance, seed, progress
        )
        better = pilot.errors(learned, "t_min", unseen)
        if float(better.mean()) < float(off.mean()):
            unlearned, off, table = float(off.mean()), better, learned
    half = 1.96 * float(off.std()) / math.sqrt(len(off))
    tried = tuple((str(c), e) for e, _, c, _ in found)
    name = f"tuned-{nfe}"
    return Tuned(
        replace(table, name=name),
        str(choice),
        float(off.mean()),
        half,
        unlearned,
        pilot.fine_error,
        tried,
        pilot.calls,
    )


def _learned(
    pilot: Pilot,
    choice: Candidate,
    nfe: int,
    rows: slice,
    steps: int,
    distance: Callable[[Tensor, Tensor], Tensor] | None,
    seed: int,
    progress: bool,
) -> Tableau:
    """The table that learning makes of a choice's grid; of the two orders, that which errs less."""
    model = pilot.model
    t = times(choice.grid, model.process, nfe + choice.spared, "t_min", model.t_min)
    index = torch.arange(len(pilot.x), device="cpu")[rows]
    cond = conditions.rows(pilot.cond, index, len(pilot.x))
    x, ends = pilot.x[rows], pilot.goals["t_min"][rows]
    made = {}
    for points in (2, 3):
        table = FreeTable.on(model.process, t, points, choice.spared)
        made[points] = (
            float(pilot.errors(table.tableau("start"), "t_min", slice(0, FEW)).mean()),
            table,
        )
    _, table = min(made.values(), key=lambda m: m[0])
    learn_table(
        table,
        model,
        x,
        ends,
        cond=cond,
        steps=steps,
        distance=distance,
        seed=seed,
        progress=progress,
    )
    pilot.calls += 2 * steps * nfe * model.calls
    return table.tableau("learned")


CACHED: dict[tuple[object, ...], Tableau] = {}
"""What `auto` found, by what the network says, at most `KEPT` of them."""
KEPT = 32


def auto(
    model: Denoiser,
    shape: Sequence[int],
    nfe: int,
    final: str | None = None,
    cond: dict[str, Any] | None = None,
) -> Tableau:
    """The table that `tune` finds, unlearned; the same network at the same cost is asked once.

    A network is known by its data predictions of two states at three noise levels.
    """
    arguments.denoiser(model)
    batch, *event = arguments.batch_shape("shape", shape)
    process, ids = model.process, torch.arange(OTHERS, OTHERS + 2, device="cpu")
    x = normal((2, *event), 0, ids, purpose="initial", device=device_of(model))
    turns = torch.arange(2, device="cpu") % batch
    known = conditions.rows(model.told(cond, batch).cond, turns, batch)
    said = []
    for share in (0.0, 0.5, 1.0):
        t = process.t_max + share * (model.t_min - process.t_max)
        with torch.no_grad():
            data = model(x * float(torch.hypot(process.alpha(t), process.sigma(t))), t, **known)
        said.append(tuple(round(v, 5) for v in data.double().flatten().tolist()))
    key = (repr(process), tuple(event), nfe, final, *said)
    if key not in CACHED:
        if len(CACHED) >= KEPT:
            CACHED.pop(next(iter(CACHED)))
        CACHED[key] = tune(model, shape, nfe, final=final, cond=cond).table
    return CACHED[key]
