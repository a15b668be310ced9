"""First-order steps that reuse their calls: springboards, extrapolation, directions in parallel.

Each is written as its paper has it and traced into a table, see `tables.traced`. All step in
x^ = x/alpha with s = sigma/alpha, where DDIM is Euler's method along eps = (x - alpha D)/sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Process
from ..arguments import whole
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from ..tables.traced import Linear, Trace
from .multistep_engine import body, gauss


class Steps:
    """DDIM's steps between the nodes of a path, on symbols."""

    def __init__(self, path: Path) -> None:
        self.t: list[float] = path.t.tolist()
        self.alpha: list[float] = path.alpha.tolist()
        self.sigma: list[float] = path.sigma.tolist()
        self.pure = self.alpha[0] == 0.0
        self.run = Trace()

    def ratio(self, i: int) -> float:
        return float(self.sigma[i] / self.alpha[i])

    def noise(self, x: Linear, d: Linear, i: int) -> Linear:
        """eps at node i."""
        return (x - self.alpha[i] * d) / self.sigma[i]

    def jump(self, x: Linear, eps: Linear, i: int, j: int) -> Linear:
        """From node i to node j along eps."""
        kept = self.alpha[j] / self.alpha[i]
        return kept * x + (self.sigma[j] - kept * self.sigma[i]) * eps

    def first(self) -> tuple[Linear, Linear]:
        """The first step, which is DDIM's also from alpha = 0: x at node 1, and eps at node 0."""
        x, d = self.run.call(self.run.start, self.t[0])
        eps = self.noise(x, d, 0)
        ahead = self.alpha[1] * d + self.sigma[1] * eps
        return ahead, eps

    def table(self, x: Linear, path: Path, name: str) -> Tableau:
        """The table, with a last denoising jump where the path ends so."""
        if path.ends_clean:
            _, x = self.run.call(x, self.t[-1])
        return self.run.table(x, path.t, name)


@dataclass(frozen=True)
class PFDiff(Solver):
    """PFDiff-k_l: a past direction leads to a future one (Wang et al. 2025, algorithm 1).

        x_s = DDIM(x, eps_past, t_i -> t_{i+l}),   eps = eps(x_s, t_{i+l})
        x' = DDIM(x, eps, t_i -> t_{i+k+1})

    One call takes a step over k + 1 intervals of the grid: n calls for about (k + 1) n of them. The
    first interval is DDIM's, a last step is as long as there are intervals left. Order 2 where the
    springboard stands in the middle, 2 l = k + 1, else 1.

    skip: k >= 1, the intervals beyond the first that a step takes.
    ahead: l in 1..k, where in them the direction is taken.
    Raises ValueError for another value.
    """

    skip: int = 1
    ahead: int = 1

    def __post_init__(self) -> None:
        whole("skip", self.skip)
        whole("ahead", self.ahead)
        if self.ahead > self.skip:
            raise InvalidValue(f"ahead must be at most skip={self.skip}; got {self.ahead}")

    @property
    def order(self) -> float:
        return 2.0 if 2 * self.ahead == self.skip + 1 else 1.0

    @property
    def own_grid(self) -> str:
        return "cosine"

    def rows(self, path: Path) -> Tableau:
        inner = body(path)
        steps, last, name = Steps(inner), len(inner.t) - 1, f"pfdiff-{self.skip}-{self.ahead}"
        if last < 1:
            return steps.table(steps.run.start, path, name)
        x, past = steps.first()
        i = 1
        while i < last:
            j = min(i + self.skip + 1, last)
            if j == i + 1:
                x, d = steps.run.call(x, steps.t[i])
                past = steps.noise(x, d, i)
            else:
                k = i + min(self.ahead, j - i - 1)
                there, d = steps.run.call(steps.jump(x, past, i, k), steps.t[k])
                past = steps.noise(there, d, k)
            x = steps.jump(x, past, i, j)
            i = j
        return steps.table(x, path, name)


@dataclass(frozen=True)
class RXDDIM(Solver):
    """DDIM extrapolated over blocks of k steps, without a call more (Choi et al. 2025, RX-DPM).

        x' = (x_k - r x_1)/(1 - r),   r = sum h_i^2 / (sum h_i)^2,   h_i the steps of sigma/alpha

    x_k by the block's k steps, x_1 by one step as long as all of them from the block's first call:
    their errors are as the sums of h_i^2 and the square of the sum, so that this one has none of
    that order. Order 2. `estimates` says how much each block was corrected by. A last block has the
    steps that are left, or one more; from alpha = 0 the first step is DDIM's and stands alone.

    block: k >= 2.
    Raises ValueError for another value.
    """

    block: int = 2

    def __post_init__(self) -> None:
        if whole("block", self.block) < 2:
            raise InvalidValue(f"block must be >= 2; got {self.block}")

    @property
    def order(self) -> float:
        return 2.0

    def rows(self, path: Path) -> Tableau:
        inner = body(path)
        steps, name = Steps(inner), f"rx-ddim-{self.block}"
        x = steps.run.start
        if steps.pure and len(inner.t) > 1:
            x, _ = steps.first()
        for i, j in self.blocks(inner):
            start = fine = x
            for k in range(i, j):
                fine, d = steps.run.call(fine, steps.t[k])
                eps = steps.noise(fine, d, k)
                if k == i:
                    start, first = fine, eps
                fine = steps.jump(fine, eps, k, k + 1)
            r = _share(steps, i, j)
            x = fine if j == i + 1 else (fine - r * steps.jump(start, first, i, j)) / (1 - r)
        return steps.table(x, path, name)

    def blocks(self, inner: Path) -> list[tuple[int, int]]:
        """The first and last node of every block."""
        last = len(inner.t) - 1
        first = int(float(inner.alpha[0]) == 0.0 and last > 0)
        found = [(i, min(i + self.block, last)) for i in range(first, last, self.block)]
        if len(found) > 1 and found[-1][0] == last - 1:  # no step is left alone
            found[-2:] = [(found[-2][0], last)]
        return found

    def estimates(
        self, process: Process, grid: Sequence[float] | Tensor, states: Sequence[Tensor]
    ) -> list[Tensor]:
        """What each block was corrected by, [B, ...] at its end: the error of DDIM's k steps there,
        to leading order.

        grid: the times of the run.
        states: x at every call and after the last, as `Sampler.steps` yields them.
        Raises ValueError for another number of states.
        """
        table = self.tableau(process, grid)
        if len(states) != table.nfe + 1:
            raise InvalidValue(f"states must be the {table.nfe + 1} of the run; got {len(states)}")
        inner = body(Path.of(process, table.grid))
        steps, found = Steps(inner), []
        for i, j in self.blocks(inner):
            if j == i + 1:
                continue
            alpha = steps.alpha
            begin, near, end = (states[k] / alpha[k] for k in (i, i + 1, j))
            far = (steps.ratio(j) - steps.ratio(i)) / (steps.ratio(i + 1) - steps.ratio(i))
            coarse = begin + far * (near - begin)
            found.append(alpha[j] * _share(steps, i, j) * (end - coarse))
        return found


def _share(steps: Steps, i: int, j: int) -> float:
    """r of a block from node i to node j."""
    h = [steps.ratio(k + 1) - steps.ratio(k) for k in range(i, j)]
    return sum(v * v for v in h) / sum(h) ** 2


@dataclass(frozen=True)
class EPD(Solver):
    """Directions taken in parallel (Zhu et al. 2025, "Distilling parallel gradients").

        x^_j = x^ + (s_j - s) eps,   s_j = s'^{r_j} s^{1 - r_j},   j = 1 .. K
        x^' = x^ + (s' - s) sum_j w_j eps(x^_j, s_j)

    The K calls do not need one another: they are one batch, so a step is as deep as two calls. Here
    they stand at Gauss-Legendre nodes of the step in s, with their weights, which is of order 2;
    `tuned.epd` makes the table of learned ones. From alpha = 0 the first step is DDIM's.

    points: K >= 1.
    Raises ValueError for another value.
    """

    points: int = 2

    def __post_init__(self) -> None:
        whole("points", self.points)

    @property
    def order(self) -> float:
        return 2.0

    def rows(self, path: Path) -> Tableau:
        inner = body(path)
        steps = Steps(inner)
        run = steps.run
        last, name = len(inner.t) - 1, f"epd-{self.points}"
        x, first = run.start, 0
        if steps.pure and last > 0:
            x, _ = steps.first()
            first = 1
        nodes, shares = _gauss(self.points)
        for i in range(first, last):
            x, d = run.call(x, steps.t[i])
            eps, s0, s1 = steps.noise(x, d, i), steps.ratio(i), steps.ratio(i + 1)
            y = x / steps.alpha[i]
            ahead = y
            for node, share in zip(nodes, shares, strict=True):
                s = s0 + node * (s1 - s0)
                t = path.process.inverse_log_snr(
                    torch.tensor(-math.log(s), dtype=torch.float64, device="cpu")
                )
                a, b = float(path.process.alpha(t)), float(path.process.sigma(t))
                u, d = run.call(a * (y + (s - s0) * eps), float(t))
                ahead = ahead + (share * (s1 - s0)) * ((u - a * d) / b)
            x = steps.alpha[i + 1] * ahead
        return steps.table(x, path, name)


def _gauss(points: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, shares = gauss(points)
    return nodes.tolist(), shares.tolist()


SOLVERS: dict[str, Solver] = {
    "pfdiff-1": PFDiff(1, 1),
    "pfdiff-2-1": PFDiff(2, 1),
    "pfdiff-3-2": PFDiff(3, 2),
    "rx-ddim-2": RXDDIM(2),
    "epd-2": EPD(2),
}
