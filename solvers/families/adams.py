"""Explicit multistep methods: Adams-Bashforth in three forms of the prediction and four clocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...kernels.errors import InvalidValue
from ...models import Flow
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .multistep_engine import (
    CLOCKS,
    FORMS,
    Ending,
    Weights,
    body,
    check_ending,
    counted,
    endings,
    finish,
    gauss,
    grid_for,
    lagrange,
    multistep,
    weights,
)


@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth with the exact weights of the grid at hand; each step integrates

        x_t = a x_s + int_s^t m(lambda) P(lambda) dlambda

    with P the polynomial in `clock` through the last `points` predictions (see `multistep`).
    form, clock: 'noise', 'sigma' is LMS (k-diffusion) and the rho-AB of DEIS; 'noise', 'lambda'
    is DEIS in log rho and multistep DPM-Solver (Zhang & Chen 2023, 15; Lu et al. 2022); 'noise',
    't' is DEIS's t-AB; 'data', 'lambda' the exponential method DPM-Solver++ stands on; 'velocity',
    'flow' is Adams-Bashforth on x/(alpha + sigma), regular also at alpha = 0.
    The first steps use the points there are. Order: points.

    points: predictions that a step goes through, 1..6.
    form: 'noise', 'data' or 'velocity', what is a polynomial.
    clock: 'lambda', 'sigma', 'flow' or 't', the variable it is one in.
    name: of the table.
    ending: the most points in the last steps; (2, 1) is diffusers' `lower_order_final` of DEIS. A
        denoising jump counts as a step of one point.
    Raises ValueError for another value, TypeError for one of another type.
    """

    points: int = 3
    form: str = "noise"
    clock: str = "lambda"
    name: str = "adams"
    ending: Ending = ()

    def __post_init__(self) -> None:
        check_points(self.points)
        check_ending(self.ending)
        if self.form not in FORMS:
            raise InvalidValue(f"form must be one of {', '.join(FORMS)}; got {self.form!r}")
        if self.clock not in CLOCKS:
            raise InvalidValue(f"clock must be one of {', '.join(CLOCKS)}; got {self.clock!r}")

    @property
    def order(self) -> float:
        return float(self.points)

    @property
    def own_grid(self) -> str:
        return grid_for(self.form, self.points)

    def rows(self, path: Path) -> Tableau:
        ending = endings(path, self.ending)
        rule = weights(body(path), self.points, self.form, self.clock, ending=ending)
        return multistep(f"{self.name}-{self.points}", path, self.form, rule)


@dataclass(frozen=True)
class LMS(Solver):
    """k-diffusion's linear multistep sampler: `Adams` of 'noise' in 'sigma' that goes down to 0.

        y' = y + int_s^s' P ds,   y = x/c,   s = sigma/c,   c = alpha; of a `Flow` alpha + sigma

    with P the polynomial in s through the last `points` values of (y - D)/s. A last interval down
    to sigma = 0 is a step like the others, where `Adams` makes a denoising jump: the result is not
    D there, but an extrapolation. Needs c > 0 where it starts.

    points: values that a step goes through, 1..4, as many as there are in the first steps.
    Raises ValueError for another number.
    """

    points: int = 4

    def __post_init__(self) -> None:
        check_points(self.points, 4)

    @property
    def order(self) -> float:
        return float(self.points)

    def rows(self, path: Path) -> Tableau:
        n = len(path.t) - 1
        c = path.alpha + path.sigma if isinstance(path.process, Flow) else path.alpha
        s = path.sigma / c
        u, w = gauss(4)  # exact up to degree 7; P is of degree 3 at most
        d = s[1:] - s[:-1]
        back = torch.arange(n, device="cpu")[:, None] - torch.arange(self.points, device="cpu")
        used, back = back >= 0, back.clamp(min=0)
        basis = lagrange(s[:-1, None] + d[:, None] * u, s[back], used)
        rule = torch.einsum("n,g,ngh->nh", d, w, basis) * c[1:, None] / s[back]
        state = rule / c[back]
        state[:, 0] += c[1:] / c[:-1]
        return finish(
            f"lms-{self.points}",
            path,
            path.t[:-1],
            state,
            -rule,
            path.t.new_zeros(n, 0),
            jump=False,
        )


FIXED = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights for equal steps."""


@dataclass(frozen=True)
class IPNDM(Solver):
    """Improved PNDM: Adams-Bashforth on sigma/alpha with the weights of equal steps, whatever the
    grid (Liu et al. 2022, 12, with lower-order first steps; Zhang & Chen 2023, iPNDM).

        x_t/alpha_t = x_s/alpha_s + (sigma_t/alpha_t - sigma_s/alpha_s) sum_h w_h eps_{i-h}

    Order `points` where sigma/alpha falls in equal steps; on other smooth grids the weights are
    off by O(h) and the order is 2 for every points >= 2.

    points: predictions that a step goes through, 1..4.
    ending: the most points in the last steps, as for `Adams`.
    Raises ValueError for another value, TypeError for one of another type.
    """

    points: int = 4
    ending: Ending = ()

    def __post_init__(self) -> None:
        check_points(self.points, 4)
        check_ending(self.ending)

    @property
    def order(self) -> float:
        return float(min(self.points, 2))

    @property
    def own_grid(self) -> str:
        return "laplace-wide" if self.points > 3 else super().own_grid  # by `undiffuse bench grids`

    def rows(self, path: Path) -> Tableau:
        inner = body(path)
        n = len(inner.t) - 1
        w = torch.zeros(n, self.points, dtype=torch.float64, device="cpu")
        count = counted(inner, self.points, endings(path, self.ending))
        for k in range(1, self.points + 1):
            w[count == k, :k] = torch.tensor(FIXED[k - 1], dtype=torch.float64, device="cpu")
        one_step = weights(inner, 1, "noise")
        rule = Weights(one_step.carry, one_step.points * w, one_step.noise)
        return multistep(f"ipndm-{self.points}", path, "noise", rule)


def check_points(points: int, most: int = 6) -> None:
    """Raises ValueError unless `points` is an int in 1..most."""
    if isinstance(points, bool) or not isinstance(points, int) or not 1 <= points <= most:
        raise InvalidValue(f"points must be a whole number in 1..{most}; got {points!r}")


Mean = dict[int, float]
HEUN: tuple[Mean, ...] = ({0: 1.0}, {0: 1 / 2, 1: 1 / 2})
PSEUDO_RK4: tuple[Mean, ...] = (
    {0: 1.0},
    {1: 1.0},
    {2: 1.0},
    {0: 1 / 6, 1: 1 / 3, 2: 1 / 3, 3: 1 / 6},
)


@dataclass(frozen=True)
class PNDM(Solver):
    """PNDM (Liu et al. 2022, algorithm 2) and its variant PLMS; every row is a DDIM transfer (9)

        x' = alpha'/alpha x + alpha' (sigma'/alpha' - sigma/alpha) e

    with e a fixed mean of noise predictions. After the first steps the weights are
    (55, -59, 37, -9)/24 (12), as in `IPNDM`: those of equal steps of sigma/alpha. On other grids
    the order is 2.

    runge_kutta: True makes the first three steps pseudo Runge-Kutta (13), four calls each: e is
        (eps_1 + 2 eps_2 + 2 eps_3 + eps_4)/6, with the middle at half of t. False is PLMS
        (diffusers' `skip_prk_steps`): the first step is pseudo Heun, two calls.
    """

    runge_kutta: bool = True

    order: ClassVar[float] = 2.0

    def rows(self, path: Path) -> Tableau:
        inner = body(path)
        t = inner.t.tolist()
        at: list[float] = []  # where each row calls
        means: list[Mean] = []  # the rows whose predictions it averages
        starts: list[int] = []  # the row whose state it goes on from
        nodes: list[int] = []  # the rows at the grid's nodes, latest first
        lead = 0 if bool(torch.isfinite(inner.lam[0])) else 1  # from pure noise, a plain DDIM step
        for i in range(len(t) - 1):
            here = len(at)
            if i >= lead:
                nodes.insert(0, here)
            step: tuple[Mean, ...]
            if self.runge_kutta and lead <= i < lead + 3:
                middle = 0.5 * (t[i] + t[i + 1])
                calls, step = [t[i], middle, middle, t[i + 1]], PSEUDO_RK4
            elif not self.runge_kutta and i == lead:
                calls, step = [t[i], t[i + 1]], HEUN
            else:
                past = nodes[:4] or [here]
                back = {k - here: w for k, w in zip(past, FIXED[len(past) - 1], strict=True)}
                calls, step = [t[i]], (back,)
            at += calls
            means += [{here + k: w for k, w in e.items()} for e in step]
            starts += [here] * len(calls)
        return self._table(path, [*at, t[-1]], means, starts)

    def _table(self, path: Path, at: list[float], means: list[Mean], starts: list[int]) -> Tableau:
        nodes = Path.of(path.process, torch.tensor(at, dtype=torch.float64, device="cpu"))
        alpha, sigma = nodes.alpha.tolist(), nodes.sigma.tolist()
        width = 13  # a mean looks back at most over three steps of four rows
        state, data = torch.zeros(2, len(means), width, dtype=torch.float64, device="cpu").tolist()
        for i, (base, mean) in enumerate(zip(starts, means, strict=True)):
            keep = alpha[i + 1] / alpha[base] if alpha[base] else 0.0
            gain = sigma[i + 1] - keep * sigma[base]
            state[i][i - base] += keep
            for k, w in mean.items():  # eps = (x - alpha D)/sigma
                state[i][i - k] += w * gain / sigma[k]
                data[i][i - k] -= w * gain * alpha[k] / sigma[k]
            if not alpha[base]:  # where eps = x/sigma says nothing of D
                data[i][0] = alpha[i + 1]
        states, datas = (nodes.t.new_tensor(m).reshape(-1, width) for m in (state, data))
        return finish(
            "pndm" if self.runge_kutta else "plms",
            path,
            nodes.t[:-1],
            states,
            datas,
            nodes.t.new_zeros(len(means), 0),
        )


SOLVERS: dict[str, Solver] = {
    **{f"lms-{k}": Adams(k, "noise", "sigma", "lms") for k in (2, 3, 4)},
    **{f"deis-{k}": Adams(k, "noise", "lambda", "deis") for k in (2, 3, 4)},
    **{f"deis-tab-{k}": Adams(k, "noise", "t", "deis-tab") for k in (2, 3, 4)},
    **{f"zeab-{k}": Adams(k, "noise", "lambda", "zeab") for k in (2, 3, 4)},
    **{f"xeab-{k}": Adams(k, "data", "lambda", "xeab") for k in (2, 3, 4)},
    **{f"vab-{k}": Adams(k, "velocity", "flow", "vab") for k in (2, 3, 4)},
    **{f"ipndm-{k}": IPNDM(k) for k in (2, 3, 4)},
    **{f"ipndm-v-{k}": Adams(k, "noise", "sigma", "ipndm-v") for k in (2, 3, 4)},
    "pndm": PNDM(),
    "plms": PNDM(runge_kutta=False),
}
