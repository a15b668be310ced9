"""Single-step exponential integrators: DPM-Solver, DPM-Solver++ (S), DPM++ SDE, SEEDS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .composed import chain
from .exponential import DDIM
from .multistep_engine import body
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
    at sigma_down and noise does the rest; its law is of order 2.
    Raises ValueError for another order or form, or eta outside [0, 1].
    """

    order: int = 2
    form: str = "data"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise InvalidValue(f"order must be 2 or 3; got {self.order}")
        if self.form not in ("data", "noise"):
            raise InvalidValue(f"form must be 'data' or 'noise'; got {self.form!r}")
        check_share(self.eta)

    @property
    def weak_order(self) -> float:
        return 2.0 if self.eta else float(self.order)

    def rows(self, path: Path) -> Tableau:
        steps = legs(path, self.eta)
        shares = [0.5] if self.order == 2 else [1 / 3, 2 / 3]
        nodes = [steps.start, *map(steps.between, shares)]
        zero = torch.zeros_like(steps.h)
        stages = []
        for j, node in enumerate([*nodes[1:], steps.end], 1):
            carry, b1, b2 = self._rule(steps, node)
            weights = [b1, *[zero] * (j - 1)]
            if j > 1:  # lean on the latest stage, at share r of the step
                r = shares[j - 2]
                share = shares[1] if j == 2 and self.order == 3 else 1.0
                lean = b1 / (2 * r) if self.order == 2 else share / r * b2
                weights[0], weights[-1] = weights[0] - lean, weights[-1] + lean
            lam = node.lam if j < len(nodes) else None
            stages.append(Stage(lam, *self._columns(nodes, carry, weights)))
        kind = "dpmpp" if self.form == "data" else "dpm-solver"
        name = f"{kind}-{self.order}" + ("s" if self.form == "data" else "")
        return single_step(
            name + ("-ancestral" if self.eta else ""), path, steps, stages, eta=self.eta,
            order=1.0 if self.eta else float(self.order), weak_order=self.weak_order,
        )  # fmt: skip

    def _rule(self, steps: Legs, node: Node) -> tuple[Tensor, Tensor, Tensor]:
        """a, b_1, b_2 from the step's start to `node`."""
        h = node.lam - steps.start.lam
        if self.form == "data":
            grown = torch.expm1(-h)
            return (
                node.sigma / steps.start.sigma, -node.alpha * grown, node.alpha * (grown / h + 1)
            )  # fmt: skip
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
    and at the end steps of the orders `last`, all in the form 'noise'. (2, 1) makes a number of
    calls that 3 divides; (1,) and (2,) those with a remainder. k-diffusion's grid is `log_snr`.

    Order: one above the least in `last`, 3 at most, as an error of O(h^(k+1)) is made but once.
    Raises ValueError for orders in `last` outside 1..3.
    """

    last: tuple[int, ...] = (2, 1)

    def __post_init__(self) -> None:
        if not all(k in (1, 2, 3) for k in self.last):
            raise InvalidValue(f"last must hold orders 1, 2 or 3; got {self.last}")

    @property
    def order(self) -> float:
        return float(min([3, *(k + 1 for k in self.last)]))

    @property
    def weak_order(self) -> float:
        return self.order

    def rows(self, path: Path) -> Tableau:
        n = len(body(path).t) - 1
        tail = self.last[-n:] if n else ()
        cuts = [*range(n - len(tail), n), len(path.t) - 1]  # a denoising jump goes with the last
        legs = [
            (DDIM() if k == 1 else SingleStep(k, "noise")).rows(
                Path.of(path.process, path.t[a : b + 1])
            )
            for k, a, b in zip((3, *tail), [0, *cuts], cuts, strict=False)
            if b > a
        ]
        joined = chain(legs, [(1.0, 0.0)] * (len(legs) - 1))
        return replace(
            joined, grid=path.t, name="dpm-fast", order=self.order, weak_order=self.weak_order
        )


@dataclass(frozen=True)
class SEEDS(Solver):
    """SEEDS-2 and SEEDS-3: exponential Runge-Kutta on the reverse SDE (Gonzalez et al. 2023).

    `SingleStep`'s data form with h replaced by H = (1 + eta) h in the weights and an extra decay
    e^{-eta h} of the state; each stage's noise is the path's own, so the noise of a stage decays
    into the step's and a fresh part is added. eta = 1 is the reverse SDE. Law: order 2.
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
        return single_step(
            f"seeds-{self.stages}", path, steps, rows,
            eta=1.0, order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


@dataclass(frozen=True)
class DPMPPSDE(Solver):
    """DPM++ SDE of k-diffusion (`sample_dpmpp_sde`), after DPM-Solver++(2S), r = 1/2.

    Both the middle and the end are reached by going down further and adding noise, as ancestral
    steps do. Their two normals belong to one Brownian path in sigma/alpha: they correlate by
    sqrt((s - s_mid)/(s - s')). Law: order 2. Raises ValueError for eta outside (0, 1].
    """

    eta: float = 1.0

    order: ClassVar[float] = 1.0
    weak_order: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise InvalidValue(f"eta must lie in (0, 1]; got {self.eta}")

    def rows(self, path: Path) -> Tableau:
        steps = legs(path)
        middle = steps.between(0.5)
        one = Stage(middle.lam, *self._down(steps.start, middle, 0))
        states, datas, noises = self._down(steps.start, steps.end, 1)
        s0, s, s1 = (torch.exp(-v.lam) for v in (steps.start, middle, steps.end))
        shared = torch.sqrt((s0 - s) / (s0 - s1))
        noises = [shared * noises[1], torch.sqrt(1 - shared.square()) * noises[1]]
        return single_step(
            "dpmpp-sde", path, steps, [one, Stage(None, states, datas, noises)],
            eta=self.eta, order=self.order, weak_order=self.weak_order,
        )  # fmt: skip

    def _down(
        self, a: Node, b: Node, stage: int
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """One ancestral step from a to b with the prediction of `stage`: columns of x, D and z."""
        h = b.lam - a.lam
        log_kept = 0.5 * torch.log1p(self.eta**2 * torch.expm1(-2 * h))
        state = torch.exp(log_kept) * b.sigma / a.sigma
        data = -b.alpha * torch.expm1(log_kept - h)
        noise = b.sigma * torch.sqrt(-torch.expm1(2 * log_kept))
        before = [torch.zeros_like(h)] * stage
        return [state], [*before, data], [*before, noise]


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
