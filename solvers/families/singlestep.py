"""Single-step exponential integrators: DPM-Solver, DPM-Solver++ (S), DPM++ SDE, SEEDS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .composed import chain
from .exponential import DDIM
from .multistep_engine import Ending, body, check_ending
from .runge_kutta import check_share
from .single_step_engine import Column, Legs, Node, Stage, legs, single_step


@dataclass(frozen=True)
class SingleStep(Solver):
    """DPM-Solver-2/3 (form 'noise'; Lu et al. 2022, algorithms 1 and 2) and DPM-Solver++(2S), (3S)
    (form 'data'; Lu et al. 2022b, algorithm 1). With P the form, at shares r of the step h:

        order 2  r = 1/2       x' = a x + b_1(h) [P_0 + (P_1 - P_0)/(2r)]
        order 3  r = 1/3, 2/3  x_2 = a x + b_1(r_2 h) P_0 + r_2/r_1 b_2(r_2 h) (P_1 - P_0)
                               x'  = a x + b_1(h) P_0 + 1/r_2 b_2(h) (P_2 - P_0)
        data:  b_1(h) = alpha (1 - e^{-h}),   b_2(h) = alpha ((e^{-h} - 1)/h + 1)
        noise: b_1(h) = -sigma (e^h - 1),     b_2(h) = -sigma ((e^h - 1)/h - 1)

    alpha, sigma where the stage ends. eta = 1 with order 2 is 'dpmpp-2s-ancestral': the step ends
    at sigma_down and noise does the rest; its law is of order 2. Order 3 needs r_2 = 2/3: with
    other shares, or middles on a grid whose steps of lambda differ, the order is 2.

    order: 2 or 3.
    form: 'data' or 'noise', what is P.
    eta: share of noise in [0, 1].
    shares: the r of the middles, rising in (0, 1); None for those above.
    on_grid: whether a step spans `order` intervals of the grid and its middles are the nodes
        between, as in diffusers' DPMSolverSinglestep; what is left over at the end of the grid is a
        step of lower order. False puts the middles inside each interval.
    ending: orders of the last steps, 1 (DDIM) to 3; (1, 1) and (2, 1) are what diffusers'
        `lower_order_final` makes of a number of steps that `order` divides.
    Raises ValueError for another value, TypeError for one of another type.
    """

    order: int = 2
    form: str = "data"
    eta: float = 0.0
    shares: tuple[float, ...] | None = None
    on_grid: bool = False
    ending: Ending = ()

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise InvalidValue(f"order must be 2 or 3; got {self.order}")
        if self.form not in ("data", "noise"):
            raise InvalidValue(f"form must be 'data' or 'noise'; got {self.form!r}")
        check_share(self.eta)
        check_ending(self.ending)
        if any(k > 3 for k in self.ending):
            raise InvalidValue(f"ending must hold orders 1, 2 or 3; got {self.ending}")
        if self.shares is None:
            return
        if self.on_grid:
            raise InvalidValue("shares must be None with on_grid=True: the grid's nodes set them")
        inside = [0.0, *self.shares, 1.0]
        if len(self.shares) != self.order - 1 or sorted(set(inside)) != inside:
            raise InvalidValue(
                f"shares must be {self.order - 1} numbers rising in (0, 1); got {self.shares}"
            )

    @property
    def _smooth_order(self) -> float:
        exact = not self.on_grid and (self.shares is None or abs(self.shares[-1] - 2 / 3) < 1e-12)
        own = float(self.order if exact else 2)
        return min([own, *(k + 1.0 for k in self.ending)])

    @property
    def weak_order(self) -> float:
        return min(2.0, self._smooth_order) if self.eta else self._smooth_order

    def rows(self, path: Path) -> Tableau:
        inner = body(path)
        n, runs = len(inner.t) - 1, []
        first = int(n > 0 and not bool(torch.isfinite(inner.lam[0])))
        orders = self.orders(n - first)
        if set(orders) <= {self.order} and not self.on_grid:
            return self._run(path, path, self.order)
        at = first
        for k, group in groupby(orders):
            last = at + len(list(group)) * (k if self.on_grid else 1)
            runs.append((k, at, last))
            at = last
        k, _, last = runs[0] if runs else (1, 0, n)
        runs[:1] = [(k, 0, last)]  # a first step from pure noise goes with the first run
        tables = [
            self._part(path, k, a, b, first if a == 0 else 0, last=b == n) for k, a, b in runs
        ]
        joined = chain(tables, [(1.0, 0.0)] * (len(tables) - 1))
        return replace(
            joined, grid=path.t, name=self._name(), order=1.0 if self.eta else self._smooth_order
        )

    def orders(self, intervals: int) -> list[int]:
        """Of every step through so many intervals of the grid."""
        tail: list[int] = []
        for k in reversed(self.ending):
            if intervals < (k if self.on_grid else 1):
                break
            tail.insert(0, k)
            intervals -= k if self.on_grid else 1
        if not self.on_grid:
            return [self.order] * intervals + tail
        left = intervals % self.order
        return [self.order] * (intervals // self.order) + [left] * (left > 0) + tail

    def _part(self, path: Path, k: int, a: int, b: int, first: int, *, last: bool) -> Tableau:
        """The steps of order k from node a to node b, with the jump where they are the last."""
        t = path.t[a : b + 1]
        end = path.t[-1:] if last and path.ends_clean else t[:0]
        stride = k if self.on_grid else 1
        ends = torch.cat([t[:first], t[first::stride], end])
        whole, nodes = (Path.of(path.process, part) for part in (ends, t[first:]))
        if a == 0 and not path.alpha[0]:
            whole = whole.from_pure_noise()
            nodes = nodes if first else nodes.from_pure_noise()
        if k == 1:
            return DDIM(self.eta).rows(whole)
        return self._run(whole, nodes, k)

    def _run(self, path: Path, nodes: Path, order: int) -> Tableau:
        """Steps of one order through `path`; `nodes` holds their middles where those lie on it."""
        steps = legs(path, self.eta)
        if self.on_grid:
            middles = [
                Node(nodes.alpha[j::order], nodes.sigma[j::order], nodes.lam[j::order])
                for j in range(1, order)
            ]
            shares: list[Column] = [(m.lam - steps.start.lam) / steps.h for m in middles]
        else:
            usual = (0.5,) if order == 2 else (1 / 3, 2 / 3)
            shares = list(self.shares if self.shares and order == self.order else usual)
            middles = [steps.between(r) for r in shares]
        known = [steps.start, *middles]
        zero = torch.zeros_like(steps.h)
        stages = []
        for j, node in enumerate([*middles, steps.end], 1):
            carry, b1, b2 = self._rule(steps, node)
            weights = [b1, *[zero] * (j - 1)]
            if j > 1:  # lean on the latest stage, at share r of the step
                r = shares[j - 2]
                share = shares[1] if j == 2 and order == 3 else 1.0
                lean = b1 / (2 * r) if order == 2 else share / r * b2
                weights[0], weights[-1] = weights[0] - lean, weights[-1] + lean
            lam = node.lam if j < len(known) else None
            stages.append(Stage(lam, *self._columns(known, carry, weights)))
        return single_step(
            self._name(),
            path,
            steps,
            stages,
            eta=self.eta,
            order=1.0 if self.eta else self._smooth_order,
        )

    def _name(self) -> str:
        kind = "dpmpp" if self.form == "data" else "dpm-solver"
        name = f"{kind}-{self.order}" + ("s" if self.form == "data" else "")
        return name + ("-ancestral" if self.eta else "")

    def _rule(self, steps: Legs, node: Node) -> tuple[Tensor, Tensor, Tensor]:
        """a, b_1, b_2 from the step's start to `node`."""
        h = node.lam - steps.start.lam
        if self.form == "data":
            grown = torch.expm1(-h)
            return (
                node.sigma / steps.start.sigma,
                -node.alpha * grown,
                node.alpha * (grown / h + 1),
            )
        grown = torch.expm1(h)
        return node.alpha / steps.start.alpha, -node.sigma * grown, -node.sigma * (grown / h - 1)

    def _columns(
        self, nodes: list[Node], carry: Tensor, weights: list[Tensor]
    ) -> tuple[list[Column], list[Column]]:
        """Columns of x_l and D_l for carry x_0 + sum_l weights[l] P_l."""
        if self.form == "data":
            return [carry], list(weights)
        states: list[Column] = [w / nodes[k].sigma for k, w in enumerate(weights)]
        datas: list[Column] = [-c * nodes[k].alpha for k, c in enumerate(states)]
        states[0] = states[0] + carry
        return states, datas


@dataclass(frozen=True)
class DPMFast(Solver):
    """DPM-Solver-fast (Lu et al. 2022; k-diffusion's `sample_dpm_fast`): steps of third order
    and at the end steps of the orders `last`, all in the form 'noise'.

    Order: one above the least in `last`, 3 at most, as an error of O(h^(k+1)) is made but once;
    with noise 1, and 2 at most in law. k-diffusion's grid is `log_snr`.

    last: orders 1 to 3 of the last steps. (2, 1) makes a number of calls that 3 divides; (1,) and
        (2,) those with a remainder.
    eta: share of noise in [0, 1]; a last step that ends above sigma = 0 takes none.
    Raises ValueError for another value, TypeError for one of another type.
    """

    last: Ending = (2, 1)
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.last == ():
            raise InvalidValue("last must hold one order at least; SingleStep(3, 'noise') has none")
        self._steps(self.eta)

    @property
    def order(self) -> float:
        return 1.0 if self.eta else self._steps(0.0).weak_order

    @property
    def weak_order(self) -> float:
        return self._steps(self.eta).weak_order

    def _steps(self, eta: float) -> SingleStep:
        return SingleStep(3, "noise", eta, ending=self.last)

    def rows(self, path: Path) -> Tableau:
        whole = self._steps(self.eta).rows(path)
        if self.eta and not path.ends_clean:
            steps, n = self._steps(self.eta), len(path.t) - 1
            k = steps.orders(n)[-1]
            still = SingleStep(3, "noise", ending=(k,))
            parts = [still.filled(Path.of(path.process, path.t[-2:]))]
            if n > 1:
                short = replace(steps, ending=tuple(self.last[:-1]))
                parts.insert(0, short.filled(Path.of(path.process, path.t[:-1])))
            whole = chain(parts, [(1.0, 0.0)] * (len(parts) - 1))
        return replace(
            whole, grid=path.t, name="dpm-fast", order=self.order, weak_order=self.weak_order
        )


@dataclass(frozen=True)
class SEEDS(Solver):
    """SEEDS-2 and SEEDS-3: exponential Runge-Kutta on the reverse SDE (Gonzalez et al. 2023).

    `SingleStep`'s data form with h replaced by H = (1 + eta) h in the weights and an extra decay
    e^{-eta h} of the state; each stage's noise is the path's own, so the noise of a stage decays
    into the step's and a fresh part is added. Law: order 2.

    stages: calls a step, 2 or 3.
    eta: share of noise, > 0; 1 is the reverse SDE.
    Raises ValueError for another number of stages or eta <= 0.
    """

    stages: int = 2
    eta: float = 1.0

    order: ClassVar[float] = 1.0
    weak_order: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        if self.stages not in (2, 3):
            raise InvalidValue(f"stages must be 2 or 3; got {self.stages}")
        if not self.eta > 0:
            raise InvalidValue(f"eta must be > 0; got {self.eta}")

    def rows(self, path: Path) -> Tableau:
        steps = legs(path)
        shares = (0.5, 1.0) if self.stages == 2 else (1 / 3, 2 / 3, 1.0)
        h, zero = steps.h, torch.zeros_like(steps.h)
        rows: list[Stage] = []
        noises: list[Tensor] = []
        last = 0.0
        for j, r in enumerate(shares, 1):
            node = steps.end if r == 1.0 else steps.between(r)
            big = (1 + self.eta) * r * h
            carry = node.sigma / steps.start.sigma * torch.exp(-self.eta * r * h)
            b1, b2 = -node.alpha * torch.expm1(-big), node.alpha * (torch.expm1(-big) / big + 1)
            weights = [b1, *[zero] * (j - 1)]
            if j > 1:
                lean = b1 / (2 * last) if self.stages == 2 else r / last * b2
                weights[0], weights[-1] = weights[0] - lean, weights[-1] + lean
            # what each earlier part of the path has decayed to, and this part's own
            gone = self.eta * (r - last) * h
            faded = [c * torch.exp(-gone) for c in noises]
            noises = [*faded, torch.sqrt(-torch.expm1(-2 * gone))]
            lam = None if r == 1.0 else node.lam
            rows.append(Stage(lam, [carry], weights, [node.sigma * c for c in noises]))
            last = r
        return single_step(f"seeds-{self.stages}", path, steps, rows, eta=1.0)


@dataclass(frozen=True)
class DPMPPSDE(Solver):
    """DPM++ SDE of k-diffusion (`sample_dpmpp_sde`), after DPM-Solver++(2S).

    Both the middle and the end are reached by going down further and adding noise, as ancestral
    steps do. Their two normals belong to one Brownian path in sigma/alpha: they correlate by
    sqrt((s - s_mid)/(s - s')). The end takes the prediction D_0 + (D_mid - D_0)/(2r). Law: order 2.

    eta: share of noise in [0, 1]; 0 is DPM-Solver++(2S).
    r: share of the step in lambda at which its middle lies, in (0, 1).
    Raises ValueError for another value.
    """

    eta: float = 1.0
    r: float = 0.5

    weak_order: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        check_share(self.eta)
        if not 0 < self.r < 1:
            raise InvalidValue(f"r must lie in (0, 1); got {self.r}")

    @property
    def order(self) -> float:
        return 1.0 if self.eta else 2.0

    def rows(self, path: Path) -> Tableau:
        steps = legs(path)
        middle = steps.between(self.r)
        one = Stage(middle.lam, *self._down(steps.start, middle))
        states, (data,), (noise,) = self._down(steps.start, steps.end)
        share = 1 / (2 * self.r)  # of D_mid in what the end takes
        datas = [(1 - share) * data, share * data]
        s0, s, s1 = (torch.exp(-v.lam) for v in (steps.start, middle, steps.end))
        shared = torch.sqrt((s0 - s) / (s0 - s1))
        noises = [shared * noise, torch.sqrt(1 - shared.square()) * noise]
        return single_step(
            "dpmpp-sde", path, steps, [one, Stage(None, states, datas, noises)], eta=self.eta
        )

    def _down(self, a: Node, b: Node) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """One ancestral step from a to b: columns of x, D and z."""
        h = b.lam - a.lam
        log_kept = 0.5 * torch.log1p(self.eta**2 * torch.expm1(-2 * h))
        state = torch.exp(log_kept) * b.sigma / a.sigma
        data = -b.alpha * torch.expm1(log_kept - h)
        noise = b.sigma * torch.sqrt(-torch.expm1(2 * log_kept))
        return [state], [data], [noise]


SOLVERS: dict[str, Solver] = {
    "dpm-solver-2": SingleStep(2, "noise"),
    "dpm-solver-3": SingleStep(3, "noise"),
    "dpm-fast": DPMFast(),
    "dpmpp-2s": SingleStep(2),
    "dpmpp-3s": SingleStep(3),
    "dpmpp-2s-ancestral": SingleStep(2, eta=1.0),
    "dpmpp-sde": DPMPPSDE(),
    "seeds-2": SEEDS(2),
    "seeds-3": SEEDS(3),
}
