"""Solvers made of solvers, and tables of tables: backwards, one call fewer, with other noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models import VP, Process
from ..tables.grids import times
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau, from_rows
from .adams import IPNDM
from .exponential import DDIM, DPMSolverPP
from .heun import check_churn, churned
from .stochastic import check_window, inside


def check_part(name: str, solver: object, stochastic: bool | None = None) -> None:
    """Raises TypeError unless `solver` can be a part of another, ValueError for the wrong kind.

    name: of the argument.
    stochastic: what it must be; None takes both.
    """
    if not isinstance(solver, Solver):
        remedy = f": write ud.solvers.get({solver!r})" if isinstance(solver, str) else ""
        raise InvalidType(
            f"{name} must be a Solver, whose tables have numbers for coefficients; "
            f"got {solver!r}{remedy}"
        )
    if stochastic is not None and solver.stochastic != stochastic:
        kind = "stochastic" if stochastic else "deterministic"
        raise InvalidValue(f"{name} must be a {kind} solver; got {solver}")


@dataclass(frozen=True)
class Inversion(Solver):
    """A deterministic solver run backwards, from data to noise: DDIM inversion and its like.

    Takes the grid that sampling takes and steps through it from its end, so that sampling on the
    same grid leads back to the data up to the solver's error, of its own order. The datum stands
    at the grid's last node with sigma > 0: a denoising jump at the end has no inverse and is left
    out. (Song, Meng & Ermon 2021, section 4.3; the network is asked at the noise level the state
    has, where published DDIM inversion tells it the next one's.) Give the data as `x_init`.

    solver: a deterministic `Solver`.
    Raises ValueError for a stochastic one, TypeError for what is no `Solver`.
    """

    solver: Solver = field(default_factory=DDIM)

    def __post_init__(self) -> None:
        check_part("solver", self.solver, stochastic=False)

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
            joined,
            grid=rising.t,
            name=f"inversion({parts[0].name})",
            order=self.order,
            weak_order=self.weak_order,
        )


@dataclass(frozen=True)
class SparedStart(Solver):
    """A solver that takes its first step without a call, by `analytical_first_step`.

    On networks that err at high noise a second-order table gains a lot by it at few calls: what it
    does not hear there it does not extrapolate. The only step of a grid is taken with its call.

    solver: any `Solver` whose first row draws one normal at most.
    variance: of the data, c of `analytical_first_step`, >= 0.
    Raises ValueError for another variance, TypeError for what is no `Solver`.
    """

    solver: Solver = field(default_factory=DDIM)
    variance: float = 1.0

    def __post_init__(self) -> None:
        check_part("solver", self.solver)
        check_variance(self.variance)

    @property
    def order(self) -> float:
        return min(self.solver.order, 1.0)

    @property
    def weak_order(self) -> float:
        return min(self.solver.weak_order, 1.0)

    @property
    def own_grid(self) -> str:
        return self.solver.own_grid

    def rows(self, path: Path) -> Tableau:
        table = self.solver.rows(path)
        if table.nfe < 2:
            return replace(table, order=self.order, weak_order=self.weak_order)
        return analytical_first_step(table, path.process, self.variance)


@dataclass(frozen=True)
class Churn(Solver):
    """A single-step solver with EDM's churn before each of its steps (Karras et al. 2022, alg. 2).

    A step at ratio sigma/alpha in [s_min, s_max] first goes up to (1 + gamma) times that ratio,
    gamma = min(churn/n, sqrt(2) - 1) on a grid of n intervals, by adding noise; then `solver` takes
    it from there to the next node. Churn(DDIM()) is k-diffusion's `sample_euler` with s_churn,
    Churn(DPM2()) its `sample_dpm_2`; `Heun` has these settings itself.

    solver: a deterministic `Solver` without memory from step to step.
    churn: S_churn >= 0; 0 changes nothing.
    s_min, s_max: of sigma/alpha, where it acts.
    s_noise: what the added noise is scaled by, >= 0; 1 keeps the marginals.
    Raises ValueError for negative settings or another kind of solver, TypeError for no `Solver`.
    """

    solver: Solver = field(default_factory=DDIM)
    churn: float = 40.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_part("solver", self.solver, stochastic=False)
        check_churn(self)
        if not memoryless(self.solver):
            raise InvalidValue(
                f"solver must be a single-step one: noise breaks the memory of {self.solver}"
            )

    @property
    def order(self) -> float:
        return self.solver.order

    @property
    def weak_order(self) -> float:
        """The solver's, as noising is exact; 0 where s_noise makes it a bias."""
        return 0.0 if self.churn and self.s_noise != 1 else self.solver.weak_order

    def rows(self, path: Path) -> Tableau:
        hot = churned(path, self.churn, self.s_min, self.s_max)
        legs = [
            self.solver.filled(Path.of(path.process, torch.stack([a, b])))
            for a, b in zip(hot.nodes.t, path.t[1:], strict=True)
        ]
        scale, noise = hot.scale.tolist(), (self.s_noise * hot.noise).tolist()
        lifts = list(zip(scale, noise, strict=True))
        name = legs[0].name + ("-churn" if self.churn else "")
        return replace(
            chain(legs, lifts[1:]),
            grid=path.t,
            entry=lifts[0],
            name=name,
            order=self.order,
            weak_order=self.weak_order,
        )


@dataclass(frozen=True)
class ScaledNoise(Solver):
    """A stochastic solver with all the noise it adds scaled: k-diffusion's `s_noise`.

    solver: a stochastic `Solver`.
    s_noise: the factor >= 0; another than 1 is a bias that steps do not remove (weak order 0).
    Raises ValueError for another factor or a deterministic solver, TypeError for no `Solver`.
    """

    solver: Solver = field(default_factory=lambda: DDIM(eta=1.0))
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_part("solver", self.solver, stochastic=True)
        if not 0 <= self.s_noise < math.inf:
            raise InvalidValue(f"s_noise must be finite and >= 0; got {self.s_noise}")

    @property
    def order(self) -> float:
        return self.solver.order if self.s_noise == 1 else 0.0

    @property
    def weak_order(self) -> float:
        return self.solver.weak_order if self.s_noise == 1 else 0.0

    def rows(self, path: Path) -> Tableau:
        table = self.solver.rows(path)
        scale, noise = table.entry
        orders = (table.order, table.weak_order) if self.s_noise == 1 else (0.0, 0.0)
        return replace(
            table,
            noise=self.s_noise * table.noise,
            entry=(scale, self.s_noise * noise),
            order=orders[0],
            weak_order=orders[1],
        ).trimmed()


@dataclass(frozen=True)
class Within(Solver):
    """One solver inside a window of steps, another outside: noise where a policy is trained.

    MixGRPO (Li et al. 2025) draws noise in a few steps, which slide along the run as training goes
    on, and integrates the flow in the others. What a solver remembers of past steps does not cross
    the window's ends: a multistep solver starts anew there.

    inside: the `Solver` inside the window, e.g. `FlowSDE` or `CPS`.
    outside: the `Solver` of the other steps, without noise.
    window: (first, last) steps of the grid, counted from 0, `last` not among them; (2, 2) is none.
    Raises ValueError for another window, one that ends after the grid, or noise outside of it,
    TypeError for what is no `Solver`.
    """

    inside: Solver = field(default_factory=lambda: DDIM(eta=1.0))
    outside: Solver = field(default_factory=DDIM)
    window: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        check_part("inside", self.inside)
        check_part("outside", self.outside, stochastic=False)
        check_window(self.window)

    @property
    def order(self) -> float:
        return min(self.inside.order, self.outside.order, 2.0)  # a multistep start is of order 2

    @property
    def weak_order(self) -> float:
        return min(self.inside.weak_order, self.outside.weak_order, 2.0)

    def rows(self, path: Path) -> Tableau:
        (first, last), n = self.window, len(path.t) - 1
        inside(self.window, n)
        spans = ((self.outside, 0, first), (self.inside, first, last))
        parts = [
            solver.filled(Path.of(path.process, path.t[a : b + 1]))
            for solver, a, b in (*spans, (self.outside, last, n))
            if b > a
        ]
        return replace(
            chain(parts, [(1.0, 0.0)] * (len(parts) - 1)),
            grid=path.t,
            name=f"within({first}, {last}, {', '.join(dict.fromkeys(p.name for p in parts))})",
            order=self.order,
            weak_order=self.weak_order,
        )


def memoryless(solver: Solver) -> bool:
    """Whether its table is that of its steps, each on its own."""
    process = VP()
    t = times("log_snr", process, 4)
    whole = solver.tableau(process, t)
    legs = chain([solver.tableau(process, t[i : i + 2]) for i in range(4)], [(1.0, 0.0)] * 3)
    return all(
        a.shape == b.shape and torch.allclose(a, b)
        for a, b in ((whole.state, legs.state), (whole.data, legs.data))
    )


def check_variance(variance: float) -> None:
    """Raises ValueError unless 0 <= variance < inf."""
    if not 0 <= variance < math.inf:
        raise InvalidValue(f"variance must be >= 0; got {variance}")


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

    tableau: the table.
    process: that it was made for.
    variance: c of the data, >= 0.
    Raises ValueError for a table of one row, variance < 0, a first row with two normals, or one
    that forgets x_0 (alpha = 0, all noise) while later rows need it.
    """
    if tableau.nfe < 2:
        raise InvalidValue("the tableau must make two network calls or more; got one")
    check_variance(variance)
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

    n, lags = tableau.nfe, torch.arange(1, tableau.nfe, device="cpu")
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
    undo = torch.zeros(n - 1, 1, dtype=torch.float64, device="cpu")
    undo[rows, 0] = -own * past
    draws = tableau.draws[1:].clone()
    if drawn:  # the first row's normal is the entry's now, of index 0
        draws[draws == tableau.draws[0, drawn[0]]] = 0
    order, weak = tableau.order, tableau.weak_order
    return replace(
        tableau,
        times=tableau.times[1:],
        levels=None if tableau.levels is None else tableau.levels[1:],
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
        last = torch.ones(table.nfe, 1, dtype=torch.float64, device="cpu")
        last[-1] = scale
        lift = torch.zeros(table.nfe, 1, dtype=torch.float64, device="cpu")
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
    known = [t.levels for t in tables if t.levels is not None]
    joined = replace(
        tables[0],
        times=torch.cat([t.times for t in tables]),
        state=padded(states),
        data=padded(datas),
        noise=torch.cat(noises),
        draws=torch.cat(draws),
        levels=None if len(known) < len(tables) else torch.cat(known),
    )
    return joined.trimmed()
