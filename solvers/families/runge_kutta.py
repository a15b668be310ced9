"""Explicit Runge-Kutta on the probability flow, any Butcher tableau, in two clocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .single_step_engine import Legs, Node, Stage, legs, single_step


@dataclass(frozen=True)
class Butcher:
    """An explicit scheme: a[j] the weights of stage j + 1, the last row being b; order declared."""

    name: str
    order: float
    a: tuple[tuple[float, ...], ...]


MIDPOINT = Butcher("midpoint", 2, ((1 / 2,), (0, 1)))
RALSTON = Butcher("ralston", 2, ((2 / 3,), (1 / 4, 3 / 4)))
RK3 = Butcher("rk3", 3, ((1 / 2,), (-1, 2), (1 / 6, 2 / 3, 1 / 6)))  # Kutta
BOSH3 = Butcher("bosh3-fixed", 3, ((1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)))
RK4 = Butcher("rk4", 4, ((1 / 2,), (0, 1 / 2), (0, 0, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6)))
RK38 = Butcher(
    "rk4-38", 4, ((1 / 3,), (-1 / 3, 1), (1, -1, 1), (1 / 8, 3 / 8, 3 / 8, 1 / 8))
)  # fmt: skip
DOPRI5 = Butcher(  # Dormand & Prince 1980, the row of order 5
    "dopri5-fixed",
    5,
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
)


@dataclass(frozen=True)
class RungeKutta(Solver):
    """Explicit Runge-Kutta for dy/ds = (y - D)/s, where y = x/c and

        clock 'sigma'  c = alpha,          s = sigma/alpha
        clock 'flow'   c = alpha + sigma,  s = sigma/(alpha + sigma)

    with stages y_j = y_0 + (s' - s) sum_l a_jl (y_l - D_l)/s_l. One call a stage; a step from
    alpha = 0 is DDIM's, one down to sigma = 0 a denoising jump. eta > 0 makes it ancestral: each
    step goes down further and noise brings it back up. Order: the scheme's; with noise 1.
    Raises ValueError for an unknown clock or eta outside [0, 1].
    """

    scheme: Butcher = RK4
    clock: str = "sigma"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.clock not in ("sigma", "flow"):
            raise InvalidValue(f"clock must be 'sigma' or 'flow'; got {self.clock!r}")
        check_share(self.eta)

    @property
    def order(self) -> float:
        return 1.0 if self.eta else float(self.scheme.order)

    @property
    def weak_order(self) -> float:
        return self.order

    def rows(self, path: Path) -> Tableau:
        steps = legs(path, self.eta)
        s0, s1 = clock_of(steps.start, self.clock), clock_of(steps.end, self.clock)
        nodes = [steps.start]
        for row in self.scheme.a[:-1]:
            s = s0 + sum(row) * (s1 - s0)
            lam = -torch.log(s) if self.clock == "sigma" else -torch.logit(s)
            nodes.append(Node.at(path.process, lam))
        d = s1 - s0
        stages = slopes(steps, nodes, [[w * d for w in row] for row in self.scheme.a], self.clock)
        name = self.scheme.name + ("-ancestral" if self.eta else "")
        return single_step(
            name, path, steps, stages, eta=self.eta, order=self.order, weak_order=self.weak_order
        )


@dataclass(frozen=True)
class DPM2(Solver):
    """k-diffusion's DPM-2: the midpoint rule on sigma/alpha with its middle at half the log.

        y_mid = y_0 + (s_mid - s) eps_0,   y' = y_0 + (s' - s) eps_mid,   s_mid = sqrt(s s')

    eta = 1 is 'dpm-2-ancestral': the step ends at sigma_down, noise does the rest. Order 2; with
    noise 1 strong, 2 in law (the deterministic step and the noising are each of that order).
    Raises ValueError for eta outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_share(self.eta)

    @property
    def order(self) -> float:
        return 1.0 if self.eta else 2.0

    @property
    def weak_order(self) -> float:
        return 2.0

    def rows(self, path: Path) -> Tableau:
        steps = legs(path, self.eta)
        middle = steps.between(0.5)
        s0, s, s1 = (clock_of(v, "sigma") for v in (steps.start, middle, steps.end))
        stages = slopes(steps, [steps.start, middle], [[s - s0], [0.0 * s, s1 - s0]], "sigma")
        return single_step(
            "dpm-2-ancestral" if self.eta else "dpm-2", path, steps, stages,
            eta=self.eta, order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


def slopes(steps: Legs, nodes: list[Node], weights: list[list[Tensor]], clock: str) -> list[Stage]:
    """Stages y_j = y_0 + sum_l weights[j][l] (y_l - D_l)/s_l, in terms of x = c y."""
    stages = []
    scale = [_scale(v, clock) for v in (*nodes, steps.end)]
    for j, row in enumerate(weights, 1):
        states = [scale[j] * w / nodes[k].sigma for k, w in enumerate(row)]
        datas = [-c * scale[k] for k, c in enumerate(states)]
        states[0] = states[0] + scale[j] / scale[0]
        stages.append(Stage(nodes[j].lam if j < len(nodes) else None, states, datas))
    return stages


def clock_of(node: Node, clock: str) -> Tensor:
    """s at a node."""
    return torch.exp(-node.lam) if clock == "sigma" else torch.sigmoid(-node.lam)


def _scale(node: Node, clock: str) -> Tensor:
    return node.alpha if clock == "sigma" else node.alpha + node.sigma


def check_share(share: float, name: str = "eta") -> None:
    """Raises ValueError unless 0 <= share <= 1."""
    if not 0 <= share <= 1:
        raise InvalidValue(f"{name} must lie in [0, 1]; got {share}")


SOLVERS: dict[str, Solver] = {
    **{s.name: RungeKutta(s) for s in (MIDPOINT, RALSTON, RK3, BOSH3, RK4, RK38, DOPRI5)},
    "midpoint-flow": RungeKutta(MIDPOINT, "flow"),
    "rk4-flow": RungeKutta(RK4, "flow"),
    "dpm-2": DPM2(),
    "dpm-2-ancestral": DPM2(eta=1.0),
}
