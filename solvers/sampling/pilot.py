"""Which table suits a network: a pilot run of the network itself decides.

    starts of its own -> their ends by a fine run -> candidates, by how far from these they end ->
    the best few again on starts that none has seen -> the one that errs least, with an interval

No solver is safe everywhere: networks err at high noise, schedules stop early or start at a ratio
of twenty thousand, and what wins on one loses on the next. A few thousand calls tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.errors import InvalidValue, RunFailure
from ...models import Denoiser, conditions, notebook
from ...models.progress import track
from .. import arguments
from ..arguments import device_of
from ..distances import Distance, Function, distance_of
from ..families.preconditioned import GaussianPreconditioned
from ..families.registry import get
from ..tables.files import write_record
from ..tables.grids import Blend, Grid, named, times
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau
from .candidates import (
    Candidate,
    Table,
    of_all_families,
    of_others,
    of_statistics,
    on_all_grids,
    on_blends,
    statistics_of,
)
from .learning import Free, FreeSpectral, FreeTable
from .learning import learn as learn_table
from .pilot_grid import KEPT, OTHERS, chosen_of, equidistributed, fingerprint
from .sampler import Sampler

FINE = 160
"""Steps of the run that stands for the exact flow; half of them tell how far it may be off."""
FEW, MORE, SHORT, UNSEEN = 8, 24, 12, 64
"""Starts that all candidates are run on, further ones for the best SHORT of them, and those that
have no part in the choice: some paths err ten times as much as most, and few are seen in few."""
STARTS, MOST_STARTS, NUMBERS = 96, 384, 2**15
"""Starts that are learned from: the least, the most, and the numbers in all of them in between.
More of them err less on others; what they cost is little beside the learning, of small events."""
CALLS = 6000
"""Of a batch, that trying candidates may take."""
BEST = 3
"""Of how many of the best so far the solver, or the grid, is replaced by all others."""
TEACHER = FINE // 4
"""Nodes of the fine run among which a grid is chosen by dynamic programming."""


@dataclass(frozen=True)
class Tuned:
    """What a pilot found.

    table: the run, to be given to `sample` as its solver; `save` writes it.
    choice: the unlearned table that errs least, in words.
    error: mean over starts that chose nothing, of the distance to the end of the exact flow: of the
        root mean square over the standard deviation of these ends, unless another was asked for.
    half_width: its 95 % interval.
    unlearned: the error of the choice, where a table was learned from it; else None.
    fine_error: how far the run that stands for the exact flow may itself be off, in the same unit.
    tried: errors of all candidates on the first starts, best first.
    calls: network calls that all of it took.
    words: what errors are counted in.
    candidate, free: what the table was made of.
    """

    table: Table
    choice: str
    error: float
    half_width: float
    unlearned: float | None
    fine_error: float
    tried: tuple[tuple[str, float], ...]
    calls: int
    words: str = "deviations of the data"
    candidate: Candidate | None = field(default=None, repr=False)
    free: Free | None = field(default=None, repr=False)

    def _told(self) -> tuple[str, str]:
        """The error, and what was chosen."""
        more = "" if self.unlearned is None else f", error {self.unlearned:.3g} before learning"
        head = f"{self.table.nfe} calls: error {self.error:.3g} +- {self.half_width:.2g} "
        return f"{head}in {self.words} ({self.calls} calls of pilot)", f"{self.choice}{more}"

    def __repr__(self) -> str:
        head, choice = self._told()
        lines = [f"  {error:9.3g}  {name}" for name, error in self.tried[:5]]
        return "\n".join([head, f"  {choice}", *lines])

    def _repr_html_(self) -> str:
        head, choice = self._told()
        rows = [(f"{error:.3g}", name) for name, error in self.tried[:5]]
        return notebook.table(head, ("first error", "tried"), rows, f"chosen: {choice}")

    def at(self, model: Denoiser, nfe: int) -> Table:
        """The same choice, or the learned nodes and told levels, carried over to another number of
        calls: they are interpolated along the run, and the weights are the classical ones there.

        A table that is tuned to that number errs less; this one costs no call. The farther the
        number, the less of what was learned helps there.

        model: of the pilot. nfe: >= 2. Raises ValueError where the choice has no such table.
        """
        arguments.whole("nfe", nfe, 2)
        if self.candidate is None:
            raise InvalidValue("this result was read from a file, which keeps the table alone")
        if self.free is None:
            return self.candidate.table(model, nfe)
        return self.free.at(nfe).tableau(f"tuned-{nfe}")

    def notes(self) -> dict[str, Any]:
        """What a file says of the table beside its numbers."""
        return {
            "choice": self.choice,
            "error": self.error,
            "half_width": self.half_width,
            "unlearned": self.unlearned,
            "fine_error": self.fine_error,
            "words": self.words,
            "calls": self.calls,
        }

    def save(self, path: str | Path, **more: Any) -> Path:
        """Write the table as JSON with its `notes`, and `more` in them; returns the path.

        `ud.solvers.tuning.read(path, process)` reads it, `Tableau.load` where no statistics of the
        data are in it.
        """
        return write_record(path, {**self.table.record(), "notes": {**self.notes(), **more}})


class Pilot:
    """Starts of a model with the ends of their exact flow, as a fine run has them.

    x: [B, ...] at t_max. cond: their conditions. known: statistics of the data, by name.
    """

    def __init__(
        self,
        model: Denoiser,
        x: Tensor,
        cond: dict[str, Any],
        distance: Distance | Function | None = None,
        fine: int = FINE,
    ) -> None:
        self.model, self.x, self.cond, self.calls = model, x, cond, 0
        self.distance = distance_of(distance)
        coarse, _ = self._fine(fine // 2)
        end, self.grid = self._fine(fine, few=FEW)
        if not bool(end.isfinite().all()):
            raise RunFailure(
                f"a run of {fine} steps is not finite, so that nothing can be measured: "
                "does the network predict what the Denoiser says?"
            )
        with torch.no_grad():
            jump = model(end, model.t_min, **cond)
        self.calls += model.calls
        self.goals = {"t_min": end, "denoise": jump}
        self.unit = self.distance.unit(end) / float(model.process.alpha(model.t_min))
        with torch.no_grad():
            self.fine_error = float(self.distance(coarse, end, cond).mean()) / self.unit

    def _fine(self, steps: int, few: int = 0) -> tuple[Tensor, Grid | None]:
        """The ends of a run of so many steps, and the grid that its first `few` paths choose."""
        t = times(Blend(), self.model.process, steps, "t_min", self.model.t_min)
        sampler = self._sampler(get("ipndm-3").tableau(self.model.process, t))
        self.calls += sampler.nfe * self.model.calls
        every, states, datas, x = max(1, steps // TEACHER), [self.x[:few]], [], self.x
        with torch.no_grad():
            for step in sampler.steps(sampler.init(x.shape, x_init=x), self.cond):
                x = step.x
                if few and step.row % every == 0:
                    datas.append(step.denoised[:few])
                if few and (step.row + 1) % every == 0:
                    states.append(x[:few])
        finite = all(bool(v.isfinite().all()) for v in (*states, *datas))
        at = t[::every]
        usable = few and finite and len(at) == len(states) == len(datas) + 1
        return x, chosen_of(self.model.process, at, states, datas) if usable else None

    def _sampler(self, table: Table) -> Sampler:
        return Sampler(self.model, table, dtype=self.x.dtype, device=self.x.device)

    def given(self, rows: slice) -> dict[str, Any]:
        """The conditions of these starts."""
        index = torch.arange(len(self.x), device="cpu")[rows]
        found: dict[str, Any] = conditions.rows(self.cond, index, len(self.x))
        return found

    def run(self, table: Table, rows: slice) -> Tensor:
        """The ends that a table takes these starts to."""
        x = self.x[rows]
        self.calls += table.nfe * self.model.calls
        with torch.no_grad():
            sampler = self._sampler(table)
            return sampler.finish(sampler.init(x.shape, x_init=x), self.given(rows))

    def errors(self, table: Table, rows: slice) -> Tensor:
        """[B] distances to the exact ends over their unit; inf where the run failed."""
        clean = float(table.grid[-1]) == self.model.process.t_clean
        goal = self.goals["denoise" if clean else "t_min"][rows]
        with torch.no_grad():
            off = self.distance(self.run(table, rows), goal, self.given(rows))
        found = off.double().cpu() / self.unit
        return torch.where(found.isfinite(), found, math.inf)


def posed(
    model: Denoiser,
    shape: Sequence[int],
    count: int,
    distance: Distance | Function | None = None,
    *,
    cond: dict[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> tuple[Pilot, list[int]]:
    """A pilot of so many starts, with the conditions of the shape's samples in turn; the event."""
    batch, *event = shape
    place = device_of(model) if device is None else device
    ids = torch.arange(OTHERS, OTHERS + count, device="cpu")
    z = normal((count, *event), seed, ids, purpose="initial", device=place)
    x = z * float(model.process.sigma(model.process.t_max))
    turns = torch.arange(count, device="cpu") % batch
    told = conditions.rows(model.told(cond, batch).cond, turns, batch)
    return Pilot(model, x, told, distance), event


def starts_for(event: Sequence[int]) -> int:
    """How many starts a table of such events is learned from."""
    return min(MOST_STARTS, max(STARTS, NUMBERS // math.prod(event)))


def _knows(candidate: Candidate) -> bool:
    """Whether its table knows the data's mean and covariance."""
    return isinstance(candidate.solver, GaussianPreconditioned)


@dataclass(frozen=True)
class Entry:
    """A candidate that was run: its mean error on the first starts, its place, its table."""

    error: float
    place: int
    candidate: Candidate
    table: Table

    @property
    def rank(self) -> tuple[float, int]:
        return self.error, self.place


class Search:
    """Candidates run on the first starts until their calls are spent."""

    def __init__(self, pilot: Pilot, nfe: int, calls: int, progress: bool) -> None:
        self.pilot, self.nfe, self.left, self.progress = pilot, nfe, calls, progress
        self.found: dict[Candidate, Entry] = {}

    def try_all(self, what: str, some: Iterable[Candidate]) -> None:
        """Run those that were not run yet, in their order."""
        due = [one for one in some if one not in self.found]
        for one in track(due, f"trying {what}", len(due), self.progress):
            if self.left <= 0 and self.found:
                return
            try:
                table = one.table(self.pilot.model, self.nfe)
            except (ValueError, NotImplementedError):  # no table of so few calls, no such grid here
                continue
            self.left -= table.nfe
            error = float(self.pilot.errors(table, slice(0, FEW)).mean())
            self.found[one] = Entry(error, len(self.found), one, table)

    def best(self, count: int) -> list[Entry]:
        return sorted(self.found.values(), key=lambda e: e.rank)[:count]

    def of_another_form(self, choice: Candidate) -> list[Candidate]:
        """The best candidate whose table knows the data's statistics, or the best that does not:
        whichever the choice is not."""
        for entry in self.best(len(self.found)):
            if _knows(entry.candidate) != _knows(choice):
                return [entry.candidate]
        return []

    def leaders(self, what: str, count: int = BEST) -> list[Candidate]:
        """The best candidates that differ in `what`, 'solver' or 'grid'."""
        chosen: dict[object, Candidate] = {}
        for entry in self.best(len(self.found)):
            if not _knows(entry.candidate):
                chosen.setdefault(getattr(entry.candidate, what), entry.candidate)
        return list(chosen.values())[:count]


def tune(
    model: Denoiser,
    shape: Sequence[int],
    nfe: int,
    *,
    data: Tensor | None = None,
    final: str | None = None,
    learn: bool = False,
    cond: dict[str, Any] | None = None,
    distance: Distance | Function | None = None,
    starts: int | None = None,
    calls: int | None = None,
    iterations: int = 400,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Tuned:
    """Find the table of nfe calls that errs least on this very network.

    Candidates run on a few starts: the usual solvers on blends of spacings, with the first call
    spared or not and either end; the default and what other libraries do; then all families where
    the best are, and the best on all other grids, two of them measured on the network. The best of
    them run on more starts, and the one that errs least there is told its error on starts that had
    no part in it.

    model: a `Denoiser`, guided or not.
    shape: (B, *event), as for `sample`.
    nfe: calls of the network that a run may make, >= 2.
    data: events [M, *event] like those the network was trained on; solvers that know their mean and
        covariance are tried too.
    final: 't_min' or 'denoise' to have that end; None leaves it open.
    learn: learn the table's own numbers as well, see `learning`. What does not err less on starts
        never learned from is not kept.
    cond: the conditions of these B samples, used in turn.
    distance: a `Distance`, or a function (found, exact) -> [B]; by default the root mean square
        over an event. Learning minimises it, through its gradient.
    starts: trajectories that are learned from, >= 8; None: as `starts_for` says.
    calls: of a batch, that trying candidates may take, some hundred at least; None: CALLS.
    iterations: of learning.
    seed: of the pilot's noise, which is that of no sample of `sample`.
    device: where the pilot runs.
    progress: whether to show a bar.

    Returns a `Tuned`; `sample(model, shape, tuned.table)` runs it.
    Raises ValueError or TypeError for bad arguments, RunFailure where the network is not finite on
    a fine run.
    """
    arguments.denoiser(model)
    _, *event = arguments.batch_shape("shape", shape)
    nfe = arguments.whole("nfe", nfe, 2)
    calls = CALLS if calls is None else arguments.whole("calls", calls)
    iterations = arguments.whole("iterations", iterations)
    starts = starts_for(event) if starts is None else arguments.whole("starts", starts, 8)
    if final is not None:
        arguments.choice("final", final, ("t_min", "denoise"))
    known = {} if data is None or model.clip is not None else statistics_of(data, event)
    distance = distance_of(distance)
    chosen = FEW + MORE
    count = chosen + UNSEEN + (starts if learn else 0)
    pilot, event = posed(model, shape, count, distance, cond=cond, seed=seed, device=device)

    search = Search(pilot, nfe, calls, progress)
    search.try_all("other libraries' settings", of_others(final))
    search.try_all("statistics", of_statistics(known, final))
    search.try_all("blends", on_blends(model, nfe, final))
    search.try_all("all families", of_all_families(search.leaders("grid", 2)))
    search.try_all(
        "all grids", on_all_grids(search.leaders("solver"), _measured(pilot, event, seed), final)
    )
    if not search.found:
        raise InvalidValue(f"no candidate has a table of nfe={nfe} calls on {model.process}")
    more, unseen = slice(FEW, chosen), slice(chosen, chosen + UNSEEN)
    best = min((seen_more(pilot, e, more) for e in search.best(SHORT)), key=lambda e: e.rank)
    off, table, unlearned, free = pilot.errors(best.table, unseen), best.table, None, None
    if learn:
        rows = slice(chosen + UNSEEN, count)
        begins = [best.candidate, *search.of_another_form(best.candidate)]
        forms = [_learned(pilot, one, nfe, rows, iterations, seed, progress) for one in begins]
        _, form = min(forms, key=lambda f: f[0])
        made = form.tableau(f"tuned-{nfe}")
        better = pilot.errors(made, unseen)
        if float(better.mean()) < float(off.mean()):
            unlearned, off, table, free = float(off.mean()), better, made, form
    return Tuned(
        replace(table, name=f"tuned-{nfe}"),
        str(best.candidate),
        float(off.mean()),
        1.96 * float(off.std()) / math.sqrt(len(off)),
        unlearned,
        pilot.fine_error,
        tuple((str(e.candidate), e.error) for e in search.best(len(search.found))),
        pilot.calls,
        distance.words,
        best.candidate,
        free,
    )


def seen_more(pilot: Pilot, entry: Entry, more: slice) -> Entry:
    """The entry with its mean error over the first starts and these."""
    off = float(pilot.errors(entry.table, more).sum())
    count = more.stop - more.start
    return replace(entry, error=(FEW * entry.error + off) / (FEW + count))


def _measured(pilot: Pilot, event: Sequence[int], seed: int) -> list[Grid]:
    """The grids that are measured on the network."""
    found = [] if pilot.grid is None else [pilot.grid]
    if not pilot.cond:  # the other grid knows no conditions
        try:
            found.append(equidistributed(pilot.model, (FEW, *event), seed=seed))
            pilot.calls += 64 * pilot.model.calls
        except (ValueError, RuntimeError):  # autograd cannot see through the network
            pass
    return found


def _learned(
    pilot: Pilot,
    choice: Candidate,
    nfe: int,
    rows: slice,
    iterations: int,
    seed: int,
    progress: bool,
) -> tuple[float, Free]:
    """What learning makes of a choice's grid, and its distance on starts held out of it.

    It begins with the weights, of two orders and three rules, that err least there.
    """
    model = pilot.model
    free: Free
    if isinstance(choice.solver, GaussianPreconditioned):
        table = replace(choice, final="t_min").table(model, nfe)
        assert isinstance(table, SpectralTable)
        free = FreeSpectral.on(table, choice.solver)
    else:
        grid = named(choice.grid) if isinstance(choice.grid, str) else choice.grid
        t = times(grid, model.process, nfe + choice.spared, "t_min", model.t_min)
        made = [
            FreeTable.on(model.process, t, points, choice.spared, clock)
            for clock in (None, "lambda", "sigma")
            for points in (2, 3)
        ]
        few = slice(0, FEW)
        free = min(made, key=lambda f: float(pilot.errors(f.tableau("start"), few).mean()))
    _, off = learn_table(
        free,
        model,
        pilot.x[rows],
        pilot.goals["t_min"][rows],
        cond=pilot.given(rows),
        iterations=iterations,
        distance=pilot.distance,
        seed=seed,
        progress=progress,
    )
    pilot.calls += 2 * iterations * nfe * model.calls
    return off, free


CACHED: dict[tuple[object, ...], Tableau | SpectralTable] = {}
"""What `auto` found, by what the network says, at most `KEPT` of them."""


def auto(
    model: Denoiser,
    shape: Sequence[int],
    nfe: int,
    final: str | None = None,
    cond: dict[str, Any] | None = None,
) -> Table:
    """The table that `tune` finds, unlearned; the same network at the same cost is asked once."""
    key = (*fingerprint(model, shape, cond), nfe, final)
    if key not in CACHED:
        if len(CACHED) >= KEPT:
            CACHED.pop(next(iter(CACHED)))
        CACHED[key] = tune(model, shape, nfe, final=final, cond=cond).table
    return CACHED[key]


def candidates(model: Denoiser, nfe: int, final: str | None = None) -> list[Candidate]:
    """The candidates that do not depend on what others found."""
    return [*of_others(final), *on_blends(model, nfe, final)]
