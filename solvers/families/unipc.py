"""UniPC: the exponential Adams predictor with a corrector that reuses the next call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.errors import InvalidValue
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .adams import check_points
from .multistep_engine import FORMS, body, multistep, weights


@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC-p (Zhao et al. 2023, algorithms 1 and 2; B1(h) = h, B2(h) = e^h - 1).

    The predictor goes through p = `points` predictions, the corrector through those and the one
    at the step's end: exponential Adams-Bashforth and -Moulton. Their weights do not depend on
    B(h) but for the two underdetermined cases, predictor p = 2 and corrector p = 1, where they are
        B(h)/2 (P_{i-1} - P_i)/r   and   B(h)/2 (P_{i+1} - P_i).
    The network is called at the predicted state; the corrected one is the next step's base. The
    last step has no call at its end and is not corrected. Order: points + 1 with the corrector.
    form: 'data' or 'noise'. variant: 'bh1' or 'bh2'. Raises ValueError otherwise.
    """

    points: int = 3
    variant: str = "bh2"
    form: str = "data"
    corrector: bool = True

    def __post_init__(self) -> None:
        check_points(self.points)
        if self.variant not in ("bh1", "bh2"):
            raise InvalidValue(f"variant must be 'bh1' or 'bh2'; got {self.variant!r}")
        if self.form not in FORMS[:2]:
            raise InvalidValue(f"form must be 'data' or 'noise'; got {self.form!r}")

    @property
    def order(self) -> float:
        return float(self.points + self.corrector)

    @property
    def weak_order(self) -> float:
        return self.order

    def rows(self, path: Path) -> Tableau:
        inner = body(path)
        predict = weights(inner, self.points, self.form)
        correct = weights(inner, self.points, self.form, ahead=True)
        half = self._half_b(inner)
        begin = 0 if bool(torch.isfinite(inner.lam[0])) else 1
        two = slice(begin + 1, None if self.points == 2 else begin + 2)  # steps from two points
        if self.points >= 2 and len(half) > begin + 1:
            h = inner.h
            lean = half[two] * h[two] / h[begin : begin + len(h[two])]
            first = predict.points[two].sum(1)
            predict.points[two] = 0.0
            predict.points[two, 0], predict.points[two, 1] = first + lean, -lean
        one = slice(None) if self.points == 1 else slice(0, begin + 1)  # corrected from one
        whole = correct.points[one].sum(1)
        correct.points[one] = 0.0
        correct.points[one, 0], correct.points[one, 1] = half[one], whole - half[one]
        kind = "" if self.form == "data" else "-noise"
        return multistep(
            f"unipc-{self.points}" + ("" if self.variant == "bh2" else "-bh1") + kind,
            path, self.form, predict, correct if self.corrector else None,
            order=self.order, weak_order=self.weak_order,
        )  # fmt: skip

    def _half_b(self, path: Path) -> torch.Tensor:
        """B(h)/2 with the factor in front, so that it weighs a difference of predictions."""
        h = torch.where(torch.isfinite(path.h), path.h, 1.0)
        if self.form == "data":
            return 0.5 * path.alpha[1:] * (h if self.variant == "bh1" else -torch.expm1(-h))
        return -0.5 * path.sigma[1:] * (h if self.variant == "bh1" else torch.expm1(h))


SOLVERS: dict[str, Solver] = {
    **{f"unipc-{p}": UniPC(p) for p in (1, 2, 3, 4)},
    **{f"unipc-{p}-bh1": UniPC(p, "bh1") for p in (1, 2)},
    **{f"unipc-{p}-noise": UniPC(p, form="noise") for p in (1, 2, 3, 4)},
    **{f"unip-{p}": UniPC(p, corrector=False) for p in (2, 3)},
}
