"""UniPC: the exponential Adams predictor with a corrector that reuses the next call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.errors import InvalidValue
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .adams import check_points
from .multistep_engine import (
    FORMS,
    Ending,
    body,
    check_ending,
    counted,
    endings,
    grid_for,
    lean,
    multistep,
    weights,
)


@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC-p (Zhao et al. 2023, algorithms 1 and 2; B1(h) = h, B2(h) = e^h - 1).

    The predictor goes through p = `points` predictions, the corrector through those and the one
    at the step's end: exponential Adams-Bashforth and -Moulton. Their weights do not depend on
    B(h) but for the two underdetermined cases, predictor p = 2 and corrector p = 1, where they are
        B(h)/2 (P_{i-1} - P_i)/r   and   B(h)/2 (P_{i+1} - P_i).
    The network is called at the predicted state; the corrected one is the next step's base. The
    last step has no call at its end and is not corrected. Order: points + 1 with the corrector.

    points: p, 1..6.
    variant: 'bh1' or 'bh2', B(h) of the two underdetermined cases.
    form: 'data' or 'noise', what is a polynomial.
    corrector: whether steps are corrected at all.
    uncorrected: the steps that are not, counted from 0 (diffusers' `disable_corrector`).
    ending: the most points in the last steps, of predictor and corrector alike; (3, 2, 1) is
        diffusers' `lower_order_final`. A denoising jump counts as a step of one point.
    Raises ValueError for another value, TypeError for one of another type.
    """

    points: int = 3
    variant: str = "bh2"
    form: str = "data"
    corrector: bool = True
    uncorrected: tuple[int, ...] = ()
    ending: Ending = ()

    def __post_init__(self) -> None:
        check_points(self.points)
        check_ending(self.ending)
        if not isinstance(self.uncorrected, tuple) or not all(
            isinstance(k, int) and k >= 0 for k in self.uncorrected
        ):
            raise InvalidValue(
                f"uncorrected must be a tuple of steps >= 0; got {self.uncorrected!r}"
            )
        if self.variant not in ("bh1", "bh2"):
            raise InvalidValue(f"variant must be 'bh1' or 'bh2'; got {self.variant!r}")
        if self.form not in FORMS[:2]:
            raise InvalidValue(f"form must be 'data' or 'noise'; got {self.form!r}")

    @property
    def order(self) -> float:
        return float(self.points + self.corrector)

    @property
    def own_grid(self) -> str:
        return grid_for(self.form, self.points)

    def rows(self, path: Path) -> Tableau:
        inner, ending = body(path), endings(path, self.ending)
        h, count = inner.h, counted(inner, self.points, ending)
        half = self._half_b(inner)
        predict = weights(inner, self.points, self.form, ending=ending)
        correct = weights(inner, self.points, self.form, ahead=True, ending=ending)
        if self.points > 1:
            before = torch.cat([h[:1], h[:-1]])
            predict = lean(predict, count == 2, half * h / before, base=0)
        correct = lean(correct, count == 1, half, base=1)
        for i in self.uncorrected:
            correct.points[i : i + 1, 0] = 0.0
            correct.points[i : i + 1, 1:] = predict.points[i : i + 1]
        kind = "" if self.form == "data" else "-noise"
        return multistep(
            f"unipc-{self.points}" + ("" if self.variant == "bh2" else "-bh1") + kind,
            path,
            self.form,
            predict,
            correct if self.corrector else None,
        )

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
