"""Estimators of sbi as a `Denoiser`: their score or velocity field, told the observation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...kernels.errors import InvalidType
from ..denoiser import Denoiser
from ..processes import VE, VP, Flow, Process, SubVP
from .codebases import straight

KINDS = (
    "FlowMatchingEstimator", "VPScoreEstimator", "SubVPScoreEstimator", "VEScoreEstimator",
)  # fmt: skip


def from_sbi(estimator: Any, **options: Any) -> Denoiser:
    """A vector field estimator of sbi (FMPE, NPSE) as a `Denoiser` of theta given x.

        model = from_sbi(posterior.vector_field_estimator)
        theta = ud.sample(model, (100, 3), cond={"condition": x_o.expand(100, -1)})

    estimator: a FlowMatchingEstimator, or a VP, sub-VP or VE score estimator. A flow's
        `noise_scale` s is part of its process, x_t = (1 - t) x_0 + (t + s) eps.
    options: of `Denoiser`.

    The condition is called 'condition' and is what sbi calls x, [B, ...] or shared. With composed
    standardisation theta is sbi's z; `undiffuse.sbi.Posterior` maps it back and knows the base.
    Raises TypeError for another estimator.
    """
    kind = kind_of(estimator)
    field = Field(estimator, "forward" if kind == KINDS[0] else "score")
    predicts = "flow" if kind == KINDS[0] else "score"
    return Denoiser(field, process_of(estimator, kind), predicts=predicts, **options)


def kind_of(estimator: Any) -> str:
    """Which of `KINDS` it is. Raises TypeError for none."""
    names = [c.__name__ for c in type(estimator).__mro__]
    for kind in KINDS:
        if kind in names:
            return kind
    raise InvalidType(
        f"estimator must be one of sbi's {', '.join(KINDS)}; got {type(estimator).__name__}: a "
        "posterior has it as `vector_field_estimator`"
    )


def process_of(estimator: Any, kind: str) -> Process:
    """The forward process that an estimator of this kind was trained on."""
    if kind == "FlowMatchingEstimator":
        s = float(estimator.noise_scale)
        return straight(s, 1.0, 0.0) if s else Flow()
    ends = float(estimator.t_min), float(estimator.t_max)
    if kind == "VEScoreEstimator":
        return VE(float(estimator.sigma_min), float(estimator.sigma_max), *ends)
    make = VP if kind == "VPScoreEstimator" else SubVP
    return make(float(estimator.beta_min), float(estimator.beta_max), *ends)


class Field(nn.Module):
    """An estimator called as net(theta, t, condition=x)."""

    def __init__(self, estimator: nn.Module, method: str) -> None:
        super().__init__()
        self.estimator, self.method = estimator, method

    def forward(self, x: Tensor, t: Tensor, /, *, condition: Tensor) -> Tensor:
        x_o = condition.to(x.dtype) if condition.is_floating_point() else condition
        if self.method == "score":
            out: Tensor = self.estimator.score(input=x, condition=x_o, t=t)  # type: ignore[operator]
            return out
        found: Tensor = self.estimator(input=x, condition=x_o, time=t)
        return found
