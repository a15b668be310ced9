"""Explicit Runge-Kutta tables for fixed and adaptive steps, and one stepper for them all.

A step from (t, x) of size h has stages, a solution and, for an embedded pair, an error,

    k_i = f(t + c_i h, x + h sum_j a_ij k_j),  x' = x + h sum_i b_i k_i, e = h sum_i (b-b^)_i k_i.

The last row of a is b. A pair is 'first same as last': its last stage is f(t + h, x'), the next
step's first. A rooted tree tau of order r gives one order condition,

    sum_i b_i Phi_i(tau) = 1/gamma(tau),  and inside the step  sum b_i(theta) Phi_i = theta^r/gamma.

The interpolant x(t + theta h) = x + h sum_i b_i(theta) k_i is the polynomial of least norm that
fulfils the second line to the order declared, meets both ends and has the slopes k_1 and k_s there
(Hairer, Norsett & Wanner 1993, II.2 and II.6). Nothing of it is tabled, so nothing can be mistyped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue

Matrix = NDArray[np.float64]
Tree = tuple["Tree", ...]
Slopes = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Butcher:
    """An explicit Runge-Kutta scheme; with `embedded` a pair for adaptive steps.

    name: what it is called.
    order: of the solution, as declared.
    a: rows; a[j] are the weights of stage j + 1, and the last row is b.
    embedded: b^ of the second solution, one weight a stage and one for the stage at the step's end;
        () for a scheme without.
    embedded_order, dense_order: of that solution and of the interpolant.
    dense_degree: the interpolant's degree.
    Raises ValueError or TypeError for rows that are no explicit scheme: row j has j + 1 finite
    weights at most, and the last row sums to 1.
    """

    name: str
    order: float
    a: tuple[tuple[float, ...], ...]
    embedded: tuple[float, ...] = ()
    embedded_order: int = 0
    dense_order: int = 0
    dense_degree: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.a, Sequence) or not self.a or isinstance(self.a, str):
            raise InvalidValue(f"a must hold at least one row, b; got {self.a!r}")
        for j, row in enumerate(self.a):
            if not isinstance(row, Sequence) or isinstance(row, str):
                raise InvalidType(f"a[{j}] must be a row of weights; got {row!r}")
            if not 1 <= len(row) <= j + 1 or not all(map(_is_number, row)):
                raise InvalidValue(
                    f"a[{j}] must hold 1 to {j + 1} finite weights, of the stages before; got {row}"
                )
        if abs(sum(self.a[-1]) - 1) > 1e-9:
            raise InvalidValue(f"the last row of a is b and must sum to 1; got {self.a[-1]}")
        if not _is_number(self.order) or self.order < 1:
            raise InvalidValue(f"order must be a number >= 1; got {self.order!r}")
        if not self.embedded:
            return
        if len(self.embedded) != self.stages or abs(sum(self.embedded) - 1) > 1e-9:
            raise InvalidValue(
                f"embedded must hold {self.stages} weights that sum to 1; got {self.embedded}"
            )

    @property
    def stages(self) -> int:
        """Stages, that at the step's end included."""
        return len(self.a) + 1

    @property
    def cost(self) -> int:
        """Evaluations a step; those of a pair without its first, the last of the step before."""
        return len(self.a)

    @cached_property
    def matrix(self) -> Matrix:
        """a with a row and a column for every stage, that at the step's end included."""
        a = np.zeros((self.stages, self.stages))
        for i, row in enumerate(self.a):
            a[i + 1, : len(row)] = row
        return a

    @property
    def b(self) -> Matrix:
        return np.asarray(self.matrix[-1])

    @property
    def c(self) -> Matrix:
        """Shares of h at which the stages are called; the last is 1."""
        return np.asarray(self.matrix.sum(1))

    @cached_property
    def error(self) -> Matrix:
        """b - b^."""
        return np.asarray(self.b - np.array(self.embedded))

    @cached_property
    def dense(self) -> Matrix:
        """[stages, degree]: b_i(theta) = sum_p dense[i, p - 1] theta^p."""
        return _interpolant(self)

    def increments(self, f: Slopes, t: Tensor, xs: Sequence[Tensor], h: Tensor) -> list[Tensor]:
        """h sum_i b_i k_i of one step, for a system of tensors xs; gradients flow.

        f: (t, xs) -> dxs/dt, tensors like xs.
        t: the step's start, a tensor of any shape.
        h: its size, of a shape that broadcasts to each of xs.
        """
        sizes = [h.to(x.device, x.dtype) for x in xs]
        stages = [f(t, xs)]
        for row, share in zip(self.a[:-1], self.c[1:-1].tolist(), strict=True):
            moved = [
                x + size * weighted(row, [k[i] for k in stages])
                for i, (x, size) in enumerate(zip(xs, sizes, strict=True))
            ]
            stages.append(f(t + share * h, moved))
        return [size * weighted(self.a[-1], [k[i] for k in stages]) for i, size in enumerate(sizes)]


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return math.isfinite(value)


def weighted(row: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """sum_i w_i k_i over the weights that are not 0."""
    terms = [w * k for w, k in zip(row, stages, strict=False) if w != 0]
    return sum(terms[1:], terms[0]) if terms else torch.zeros_like(stages[0])


@lru_cache(None)
def trees(order: int) -> tuple[Tree, ...]:
    """Rooted trees with `order` nodes, each as the sorted tuple of its root's subtrees."""
    if order == 1:
        return ((),)
    return tuple(sorted({tuple(sorted(f)) for f in _forests(order - 1, order - 1)}))


def _forests(nodes: int, largest: int) -> Iterator[tuple[Tree, ...]]:
    if nodes == 0:
        yield ()
    for size in range(min(nodes, largest), 0, -1):
        for tree in trees(size):
            for rest in _forests(nodes - size, size):
                yield (tree, *rest)


def tree_order(tree: Tree) -> int:
    return 1 + sum(map(tree_order, tree))


def density(tree: Tree) -> int:
    """gamma(tau): the order of the tree times the densities of its root's subtrees."""
    product = tree_order(tree)
    for branch in tree:
        product *= density(branch)
    return product


def weights(tree: Tree, a: Matrix) -> Matrix:
    """Phi_i(tau) of every stage i."""
    product = np.ones(len(a))
    for branch in tree:
        product = product * (a @ weights(branch, a))
    return np.asarray(product)


def _interpolant(pair: Butcher) -> Matrix:
    """Least-norm solution of the order conditions and the four end conditions."""
    s, q, p = pair.stages, pair.dense_degree, pair.dense_order
    lines, values = [], []

    def demand(row: Matrix, powers: Matrix, value: float) -> None:
        lines.append(np.outer(row, powers).ravel())
        values.append(value)

    for order in range(1, p + 1):
        for tree in trees(order):
            phi = weights(tree, pair.matrix)
            for power in range(1, q + 1):
                goal = 1.0 / density(tree) if power == order else 0.0
                demand(phi, np.eye(q)[power - 1], goal)
    for i in range(s):
        unit = np.eye(s)[i]
        demand(unit, np.ones(q), float(pair.b[i]))  # x' at theta = 1
        demand(unit, np.eye(q)[0], float(i == 0))  # slope k_1 at theta = 0
        demand(unit, np.arange(1.0, q + 1), float(i == s - 1))  # slope k_s at theta = 1
    solution: Matrix = np.linalg.lstsq(np.array(lines), np.array(values), rcond=1e-12)[0]
    return solution.reshape(s, q)


MIDPOINT = Butcher("midpoint", 2, ((1 / 2,), (0, 1)))
RALSTON = Butcher("ralston", 2, ((2 / 3,), (1 / 4, 3 / 4)))
RK3 = Butcher("rk3", 3, ((1 / 2,), (-1, 2), (1 / 6, 2 / 3, 1 / 6)))  # Kutta
RK4 = Butcher("rk4", 4, ((1 / 2,), (0, 1 / 2), (0, 0, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6)))
RK38 = Butcher(
    "rk4-38", 4, ((1 / 3,), (-1 / 3, 1), (1, -1, 1), (1 / 8, 3 / 8, 3 / 8, 1 / 8))
)  # fmt: skip

SSP54 = Butcher(
    "ssp54",  # Spiteri & Ruuth 2002, as a Butcher table: order 4 with every c_i < 1
    4,
    (
        (0.39175222657189,),
        (0.217669096261169, 0.368410593050371),
        (0.0826920866578106, 0.139958502191895, 0.251891774271694),
        (
            0.0679662836371148, 0.115034698504632, 0.207034898597386,
            0.544974750228521,
        ),
        (
            0.146811876084787, 0.248482909444976, 0.104258830331981,
            0.274438900901351, 0.226007483236906,
        ),
    ),
)  # fmt: skip

BOSH3 = Butcher(
    "bosh3",  # Bogacki & Shampine 1989
    3, ((1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (7 / 24, 1 / 4, 1 / 3, 1 / 8),
    embedded_order=2, dense_order=3, dense_degree=3,
)  # fmt: skip

DOPRI5 = Butcher(
    "dopri5",  # Dormand & Prince 1980
    5,
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    embedded_order=4, dense_order=4, dense_degree=4,
)  # fmt: skip

_TSIT5_B = (
    0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
    2.324710524099774,
)  # fmt: skip
_TSIT5_ERROR = (
    -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629,
    0.5823571654525552, -0.45808210592918697, 1 / 66,
)  # fmt: skip
TSIT5 = Butcher(
    "tsit5",  # Tsitouras 2011
    5,
    (
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
            -0.028269050394068383,
        ),
        _TSIT5_B,
    ),
    tuple(b + e for b, e in zip((*_TSIT5_B, 0.0), _TSIT5_ERROR, strict=True)),
    embedded_order=4, dense_order=4, dense_degree=4,
)  # fmt: skip

DOPRI8 = Butcher(
    "dopri8",  # Prince & Dormand 1981, 8(7)
    8,
    (
        (1 / 18,),
        (1 / 48, 1 / 16),
        (1 / 32, 0, 3 / 32),
        (5 / 16, 0, -75 / 64, 75 / 64),
        (3 / 80, 0, 0, 3 / 16, 3 / 20),
        (
            29443841 / 614563906, 0, 0, 77736538 / 692538347, -28693883 / 1125000000,
            23124283 / 1800000000,
        ),
        (
            16016141 / 946692911, 0, 0, 61564180 / 158732637, 22789713 / 633445777,
            545815736 / 2771057229, -180193667 / 1043307555,
        ),
        (
            39632708 / 573591083, 0, 0, -433636366 / 683701615, -421739975 / 2616292301,
            100302831 / 723423059, 790204164 / 839813087, 800635310 / 3783071287,
        ),
        (
            246121993 / 1340847787, 0, 0, -37695042795 / 15268766246, -309121744 / 1061227803,
            -12992083 / 490766935, 6005943493 / 2108947869, 393006217 / 1396673457,
            123872331 / 1001029789,
        ),
        (
            -1028468189 / 846180014, 0, 0, 8478235783 / 508512852, 1311729495 / 1432422823,
            -10304129995 / 1701304382, -48777925059 / 3047939560, 15336726248 / 1032824649,
            -45442868181 / 3398467696, 3065993473 / 597172653,
        ),
        (
            185892177 / 718116043, 0, 0, -3185094517 / 667107341, -477755414 / 1098053517,
            -703635378 / 230739211, 5731566787 / 1027545527, 5232866602 / 850066563,
            -4093664535 / 808688257, 3962137247 / 1805957418, 65686358 / 487910083,
        ),
        (
            403863854 / 491063109, 0, 0, -5068492393 / 434740067, -411421997 / 543043805,
            652783627 / 914296604, 11173962825 / 925320556, -13158990841 / 6184727034,
            3936647629 / 1978049680, -160528059 / 685178525, 248638103 / 1413531060, 0,
        ),
        (
            14005451 / 335480064, 0, 0, 0, 0, -59238493 / 1068277825, 181606767 / 758867731,
            561292985 / 797845732, -1041891430 / 1371343529, 760417239 / 1151165299,
            118820643 / 751138087, -528747749 / 2220607170, 1 / 4,
        ),
    ),
    (
        13451932 / 455176623, 0, 0, 0, 0, -808719846 / 976000145, 1757004468 / 5645159321,
        656045339 / 265891186, -3867574721 / 1518517206, 465885868 / 322736535,
        53011238 / 667516719, 2 / 45, 0, 0,
    ),
    embedded_order=7, dense_order=5, dense_degree=6,
)  # fmt: skip

PAIRS: dict[str, Butcher] = {p.name: p for p in (BOSH3, DOPRI5, TSIT5, DOPRI8)}
"""Pairs by the name that users type."""
