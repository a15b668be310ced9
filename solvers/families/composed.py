"""Tables and solvers made from others: joined, spared their first call, run backwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Process
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau, from_rows
from .adams import IPNDM
from .exponential import DDIM, DPMSolverPP


def _scalar(solver: object) -> None:
    if not isinstance(solver, Solver):
        raise InvalidType(
            f"solver must be a Solver, whose tables have numbers for coefficients; got {solver!r}"
        )


@dataclass(frozen=True)
class Inversion(Solver):
    """A deterministic solver run backwards, from data to noise: DDIM inversion and its like.

    Takes the grid that sampling takes and steps through it from its end, so that sampling on the
    same grid leads back to the data up to the solver's error, of its own order. The datum stands
    at the grid's last node with sigma > 0: a denoising jump at the end has no inverse and is left
    out. (Song, Meng & Ermon 2021, section 4.3; the network is asked at the noise level the state
    has, where published DDIM inversion tells it the next one's.) Give the data as `x_init`.
    Raises ValueError for a stochastic solver, TypeError for one that is no `Solver`.
    """

    solver: Solver = field(default_factory=DDIM)

    def __post_init__(self) -> None:
        _scalar(self.solver)
        if self.solver.stochastic:
            raise InvalidValue(f"only a deterministic solver can be inverted; got {self.solver}")

    @property
    def order(self) -> float:
        return self.solver.order

    @property
    def weak_order(self) -> float:
        return self.solver.weak_order

    def rows(self, path: Path) -> Tableau:
        t = path.t[:-1] if path.ends_clean else path.t
        if len(t) < 2:
            raise InvalidValue(
                "grid must have two nodes with sigma > 0 to be run backwards; got one"
            )
        rising = Path.of(path.process, t.flip(0))
        pure = not bool(torch.isfinite(rising.lam[-1]))
        inner = rising.t[:-1] if pure else rising.t
        parts = [self.solver.rows(Path.of(path.process, inner))] if len(inner) > 1 else []
        if pure:  # the step to alpha = 0 is DDIM's, as sampling's first step from there is
            ratio = rising.sigma[-1:] / rising.sigma[-2:-1]
            back = -ratio * rising.alpha[-2:-1]
            parts.append(from_rows("ddim", rising.t, rising.t[-2:-1], [ratio], [back]))
        joined = chain(parts, [(1.0, 0.0)] * (len(parts) - 1))
        return replace(
            joined, grid=rising.t, name=f"inversion({parts[0].name})",
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


@dataclass(frozen=True)
class SparedStart(Solver):
    """A solver that takes its first step without a call, by `analytical_first_step`.

    On networks that err at high noise a second-order table gains a lot by it at few calls: what it
    does not hear there it does not extrapolate. The only step of a grid is taken with its call.
    """

    solver: Solver = field(default_factory=DDIM)
    variance: float = 1.0

    def __post_init__(self) -> None:
        _scalar(self.solver)
        if not self.variance >= 0:
            raise InvalidValue(f"variance must be >= 0; got {self.variance}")

    @property
    def order(self) -> float:
        return min(self.solver.order, 1.0)

    @property
    def weak_order(self) -> float:
        return min(self.solver.weak_order, 1.0)

    def rows(self, path: Path) -> Tableau:
        table = self.solver.rows(path)
        if table.nfe < 2:
            return replace(table, order=self.order, weak_order=self.weak_order)
        return analytical_first_step(table, path.process, self.variance)


SOLVERS: dict[str, Solver] = {
    "ddim-afs": SparedStart(),
    "dpmpp-2m-afs": SparedStart(DPMSolverPP(2)),
    "ipndm-2-afs": SparedStart(IPNDM(2)),
    "ipndm-3-afs": SparedStart(IPNDM(3)),
}


def analytical_first_step(tableau: Tableau, process: Process, variance: float = 1.0) -> Tableau:
    """The same table with its first network call replaced by a closed form, one call fewer.

        D(x, t_0) = alpha c/(alpha^2 c + sigma^2) x,   c = `variance`

    what an exact network would say of data N(0, c); at high noise any network says nearly that
    (the analytical first step of Dockhorn et al. 2022, GENIE). It is linear in x, so the first row
    becomes part of the table's entry, and later rows that look back at x_0 or D_0 look at x_1.
    What is saved is a call, what is lost is accuracy where D is not yet linear: order 1 at most.
    Tables of second order gain by it at few calls; those of high order extrapolate its error.
    Raises ValueError for a table of one row, variance < 0, a first row with two normals, or one
    that forgets x_0 (alpha = 0, all noise) while later rows need it.
    """
    if tableau.nfe < 2:
        raise InvalidValue("the tableau must make two network calls or more; got one")
    if not variance >= 0:
        raise InvalidValue(f"variance must be >= 0; got {variance}")
    alpha, sigma = (float(f(tableau.times[0])) for f in (process.alpha, process.sigma))
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    kept = float(tableau.state[0, 0]) + gain * float(tableau.data[0, 0])  # x_1 = kept x_0 + own z
    scale, entered = tableau.entry
    drawn = tableau.noise[0].nonzero().flatten().tolist()
    if len(drawn) + (entered != 0) > 1:
        raise InvalidValue(
            f"{tableau.name} draws two normals in its first row; choose another solver"
        )
    own = float(tableau.noise[0, drawn[0]]) if drawn else 0.0

    n, lags = tableau.nfe, torch.arange(1, tableau.nfe)
    width = max(tableau.state.shape[1], tableau.data.shape[1])
    state, data = (
        torch.nn.functional.pad(m, (0, width - m.shape[1]))[1:].clone()
        for m in (tableau.state, tableau.data)
    )
    lags = lags[lags < width]
    rows = lags - 1  # row i >= 1 is row i - 1 now, and has x_0 and D_0 in column i
    past = state[rows, lags] + gain * data[rows, lags]
    state[rows, lags] = data[rows, lags] = 0.0
    if kept == 0 and bool((past != 0).any()):
        raise InvalidValue(f"{tableau.name} forgets x_0 in its first row but needs it later")
    past = past / kept if kept else past  # x_0 = (x_1 - own z)/kept
    state[rows, rows] += past
    undo = torch.zeros(n - 1, 1, dtype=torch.float64)
    undo[rows, 0] = -own * past
    draws = tableau.draws[1:].clone()
    if drawn:  # the first row's normal is the entry's now, of index 0
        draws[draws == tableau.draws[0, drawn[0]]] = 0
    order, weak = tableau.order, tableau.weak_order
    return replace(
        tableau,
        times=tableau.times[1:],
        state=state,
        data=data,
        noise=torch.cat([tableau.noise[1:], undo], 1),
        draws=torch.nn.functional.pad(draws, (0, 1)),
        entry=(scale * kept, own if drawn else entered * kept),
        name=f"afs({tableau.name})",
        order=None if order is None else min(order, 1.0),
        weak_order=None if weak is None else min(weak, 1.0),
    ).trimmed()


def chain(tables: Sequence[Tableau], lifts: Sequence[tuple[float, float]]) -> Tableau:
    """Tables one after the other; between two, x -> scale x + noise z with a fresh normal.

    History does not cross from one to the next. Only the first may have an entry of its own.
    """

    def padded(parts: list[Tensor]) -> Tensor:
        width = max(p.shape[1] for p in parts)
        return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])

    states, datas, noises, draws, used = [], [], [], [], 0
    for table, (scale, noise) in zip(tables, [*lifts, (1.0, 0.0)], strict=False):
        last = torch.ones(table.nfe, 1, dtype=torch.float64)
        last[-1] = scale
        lift = torch.zeros(table.nfe, 1, dtype=torch.float64)
        lift[-1] = noise
        states.append(table.state * last)
        datas.append(table.data * last)
        noises.append(torch.cat([table.noise * last, lift], 1))
        own = int(table.draws.max()) if table.draws.numel() else 0
        draws.append(torch.nn.functional.pad(table.draws, (0, 1), value=own + 1) + used)
        used += own + 1
    width = max(d.shape[1] for d in draws)
    # the lift is each part's last column: align columns by padding in front of it
    noises = [torch.nn.functional.pad(m, (width - m.shape[1], 0)) for m in noises]
    draws = [torch.nn.functional.pad(m, (width - m.shape[1], 0)) for m in draws]
    joined = replace(
        tables[0],
        times=torch.cat([t.times for t in tables]),
        state=padded(states),
        data=padded(datas),
        noise=torch.cat(noises),
        draws=torch.cat(draws),
    )
    return joined.trimmed()
