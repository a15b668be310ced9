"""PNDM: fixed-weight Adams-Bashforth on sigma/alpha, warmed up by a Runge-Kutta method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .adams import FIXED
from .multistep_engine import body, finish

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

    with e a fixed mean of noise predictions. The first three steps are pseudo Runge-Kutta (13) with
    (eps_1 + 2 eps_2 + 2 eps_3 + eps_4)/6 and the middle at half of t, four calls each; without
    `runge_kutta` (PLMS, diffusers' `skip_prk_steps`) the first is pseudo Heun, two calls. After
    that the weights are (55, -59, 37, -9)/24 (12), as in `IPNDM`: those of equal steps of
    sigma/alpha, so that the order on other grids is 2.
    """

    runge_kutta: bool = True

    order: ClassVar[float] = 2.0
    weak_order: ClassVar[float] = 2.0

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
        nodes = Path.of(path.process, torch.tensor(at, dtype=torch.float64))
        alpha, sigma = nodes.alpha.tolist(), nodes.sigma.tolist()
        width = 13  # a mean looks back at most over three steps of four rows
        state, data = torch.zeros(2, len(means), width, dtype=torch.float64).tolist()
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
            "pndm" if self.runge_kutta else "plms", path, nodes.t[:-1], states, datas,
            nodes.t.new_zeros(len(means), 0), order=self.order, weak_order=self.weak_order,
        )  # fmt: skip


SOLVERS: dict[str, Solver] = {"pndm": PNDM(), "plms": PNDM(runge_kutta=False)}
