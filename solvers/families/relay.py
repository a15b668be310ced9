"""The default: one multistep method where noise prevails, another where the signal does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..arguments import positive, whole
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .adams import IPNDM
from .exponential import DPMSolverPP


@dataclass(frozen=True)
class Relay(Solver):
    """DPM-Solver++(2M) down to sigma/alpha = `ratio`, iPNDM from there on.

    A step from s with sigma_s/alpha_s > ratio is `DPMSolverPP(2)`'s, which extrapolates D, nearly
    constant there (Lu et al. 2022b, algorithm 2); any other is `IPNDM(3)`'s, which extrapolates
    the noise (Zhang & Chen 2023). Both are formulas in x_s and past predictions, so the history
    passes from one to the other. A third point gains where the signal shows, and costs where it
    does not: networks err there, and extrapolation multiplies their errors. It costs as well
    where all steps are long: runs of at most `few` calls do with two. One call a step.

    ratio: sigma/alpha > 0 at which the one takes over from the other.
    few: calls >= 0 up to which two points do.
    Raises ValueError for other numbers.
    """

    ratio: float = 6.0
    few: int = 6

    order: ClassVar[float] = 2.0
    weak_order: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        positive("ratio", self.ratio)
        whole("few", self.few, 0)

    def rows(self, path: Path) -> Tableau:
        calls = len(path.t) - 1
        noisy = DPMSolverPP(2).rows(path)
        clear = IPNDM(3 if calls > self.few else 2).rows(path)
        above = (torch.exp(-path.lam[:calls]) > self.ratio)[:, None]

        def joined(a: Tensor, b: Tensor) -> Tensor:
            wide = max(a.shape[1], b.shape[1])
            a, b = (torch.nn.functional.pad(m, (0, wide - m.shape[1])) for m in (a, b))
            return torch.where(above, a, b)

        return replace(
            noisy, state=joined(noisy.state, clear.state), data=joined(noisy.data, clear.data),
            name="relay", order=self.order, weak_order=self.weak_order,
        ).trimmed()  # fmt: skip


SOLVERS: dict[str, Solver] = {"relay": Relay()}
