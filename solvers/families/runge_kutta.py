"""Explicit Runge-Kutta on the probability flow, any Butcher tableau, in two clocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.errors import InvalidType, InvalidValue
from ..tables.butcher import BOSH3, DOPRI5, MIDPOINT, RALSTON, RK3, RK4, RK38, SSP54, Butcher
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .multistep_engine import finish
from .single_step_engine import Legs, Node, Stage, filled, legs, single_step

STEP = 0.25  # share of the interval before from which one down to sigma = 0 is a step like others


@dataclass(frozen=True)
class RungeKutta(Solver):
    """Explicit Runge-Kutta for dy/ds = (y - D)/s, where y = x/c and

        clock 'sigma'  c = alpha,          s = sigma/alpha
        clock 'flow'   c = alpha + sigma,  s = sigma/(alpha + sigma)

    with stages y_j = y_0 + (s' - s) sum_l a_jl (y_l - D_l)/s_l. One call a stage. Order: the
    scheme's; with noise 1.

    scheme: a `Butcher` table.
    clock: 'sigma' or 'flow'.
    eta: 0, or up to 1 for an ancestral step: it goes down further and noise brings it back up.

    Where the ends are infinite in the clock 'sigma', a step from alpha = 0 is DDIM's and one down
    to sigma = 0 a denoising jump. In the clock 'flow' both ends are finite, and without noise the
    scheme steps through them: from alpha = 0, and down to sigma = 0 where that interval is a step
    of the grid, from above t_min and not short (STEP), else a denoising jump. There y - D vanishes
    with s, so no stage may stand at the end: a scheme that has one gives that step to another of at
    most one order less, which over a single step costs no order (up to 5).
    Raises ValueError for an unknown clock or eta outside [0, 1], TypeError for another scheme.
    """

    scheme: Butcher = RK4
    clock: str = "sigma"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.clock not in ("sigma", "flow"):
            raise InvalidValue(f"clock must be 'sigma' or 'flow'; got {self.clock!r}")
        if not isinstance(self.scheme, Butcher):
            raise InvalidType(f"scheme must be a Butcher; got {type(self.scheme).__name__}")
        check_share(self.eta)

    @property
    def name(self) -> str:
        fixed = "-fixed" if self.scheme.embedded else ""
        return self.scheme.name + fixed + ("-ancestral" if self.eta else "")

    @property
    def order(self) -> float:
        return 1.0 if self.eta else float(self.scheme.order)

    def rows(self, path: Path) -> Tableau:
        if self.clock == "flow" and not self.eta:
            return self._through(path)
        steps = legs(path, self.eta)
        return single_step(
            self.name, path, steps, staged(steps, self.scheme, self.clock), eta=self.eta
        )

    def _through(self, path: Path) -> Tableau:
        """The table of steps from alpha = 0 on, and down to sigma = 0 where that is a step."""
        s, n = path.sigma / (path.alpha + path.sigma), len(path.t) - 1
        last = path.ends_clean and n > 1 and bool(s[-2] > STEP * (s[-3] - s[-2]))
        last = last and float(path.t[-2]) > (1 + 1e-6) * path.process.t_min
        jump = path.ends_clean and not last
        parts = [(self.scheme, 0, n - last - jump), (ending(self.scheme), n - last, n)]
        blocks = [
            filled(steps, staged(steps, scheme, self.clock))
            for scheme, first, end in parts
            for steps in [_legs(path, first, end)]
            if first < end and not (jump and end == n)
        ]
        times = torch.cat([t for t, _ in blocks] or [path.t[:0]])
        width = max((rows[0].shape[1] for _, rows in blocks), default=1)
        state, data = (
            torch.cat(
                [pad(rows[i], (0, width - rows[i].shape[1])) for _, rows in blocks]
                or [path.t.new_zeros(0, 1)]
            )
            for i in (0, 1)
        )
        noise = path.t.new_zeros(len(state), 0)
        return finish(self.name, path, times, state, data, noise, jump=jump)


@dataclass(frozen=True)
class DPM2(Solver):
    """k-diffusion's DPM-2: the midpoint rule on sigma/alpha with its middle at half the log.

        y_mid = y_0 + (s_mid - s) eps_0,   y' = y_0 + (s' - s) eps_mid,   s_mid = sqrt(s s')

    Order 2. With noise the strong order is 1, and 2 in law: the deterministic step and the noising
    are each of that order.

    eta: share of noise in [0, 1]; 1 is 'dpm-2-ancestral', whose step ends at sigma_down and leaves
        the rest to noise.
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
            "dpm-2-ancestral" if self.eta else "dpm-2", path, steps, stages, eta=self.eta
        )


def _legs(path: Path, first: int, end: int) -> Legs:
    """The steps from node `first` to node `end`, their ends taken as they are."""

    def nodes(a: int, b: int) -> Node:
        return Node(path.alpha[a:b], path.sigma[a:b], path.lam[a:b])

    t = path.t[first:end]
    return Legs(path.process, t, nodes(first, end), nodes(first + 1, end + 1), torch.zeros_like(t))


def ending(scheme: Butcher) -> Butcher:
    """The scheme of a step that ends where no stage may stand: itself, or of an order less."""
    if max(scheme.c[:-1]) < 1 - 1e-9:
        return scheme
    return MIDPOINT if scheme.order <= 3 else BOSH3 if scheme.order <= 4 else SSP54


def staged(steps: Legs, scheme: Butcher, clock: str) -> list[Stage]:
    """The stages of a scheme over these steps."""
    s0, s1 = clock_of(steps.start, clock), clock_of(steps.end, clock)
    nodes = [steps.start]
    for row in scheme.a[:-1]:
        s = s0 + sum(row) * (s1 - s0)
        lam = -torch.log(s) if clock == "sigma" else -torch.logit(s)
        nodes.append(Node.at(steps.process, lam))
    d = s1 - s0
    return slopes(steps, nodes, [[w * d for w in row] for row in scheme.a], clock)


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
    **{s.name: s for s in map(RungeKutta, (MIDPOINT, RALSTON, RK3, BOSH3, RK4, RK38, DOPRI5))},
    "midpoint-flow": RungeKutta(MIDPOINT, "flow"),
    "rk4-flow": RungeKutta(RK4, "flow"),
    "dpm-2": DPM2(),
    "dpm-2-ancestral": DPM2(eta=1.0),
}
