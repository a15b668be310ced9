"""What `log_prob` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LogProb:
    """What `log_prob` found; tensors are [B], float64 unless said.

    log_prob: nats. bits_per_dim: -log_prob/(d ln 2) + offset. std_error: of log_prob, nats, from
    the probes alone; `bits_std_error` in bits/dim. By default one holds 64 to 77 % and two 92 to
    98 % of the errors, colour images included, fewer in small events whose blocks are nearly full;
    with one probe a node two hold 89 % or more; 'augmented' with one gives a bound.
    It is 0 where the trace is exact: asked for, or d <= 8, or probes >= d, or the Walsh blocks of
    all nodes full; path_error and prior_gap are not in it and remain. path_error: estimate of what
    the path and the nodes on it contribute, nats, nan if torchdiffeq's: seldom below half of it,
    often several times it. Too small for the sample in a hundred whose path passed over a bend (see
    its defect), where a trained network's trace is rough below its probes' error, and to a third
    where 'augmented' runs at 1e-3. defect: what log_prob was corrected by for a path that is not
    quite the flow, nats (nan if 'augmented'). A correction is as good as the network's score is the
    gradient of the flow's own density: exact for an exact network, while a large defect of a
    trained one asks for a smaller rtol or a larger t_min. prior_gap: what log_prob would change by
    if the prior's mean were the data's, nats (that its variance leaves out theirs is not in it). truncation: estimate of log p_0 - log_prob, first
    order in blur^2, nats (nan if not asked for). blur: sigma/alpha at t_min, the noise that the
    data carry.
    The cost, int64: nfe: network evaluations, all of them; products: Jacobian products; rejected:
    steps that the path's error control threw away, whose evaluations are in nfe (and products, if
    'augmented'). latent: x at t_max [B, *event]. status: int64 codes of `Status`, 0 = fine; of a sample
    that failed all else but the cost is nan.
    """

    log_prob: Tensor
    bits_per_dim: Tensor
    std_error: Tensor
    nfe: Tensor
    products: Tensor
    rejected: Tensor
    latent: Tensor
    status: Tensor
    path_error: Tensor
    defect: Tensor
    prior_gap: Tensor
    truncation: Tensor
    t_min: float
    blur: float

    @property
    def solver_error(self) -> Tensor:
        """What the path may add, nats: path_error and the defect, root of the squares. Of a trained
        network an error of the defect's size stays after the correction; too large for an exact."""
        return torch.hypot(self.path_error, torch.nan_to_num(self.defect))

    @property
    def total_error(self) -> Tensor:
        """std_error and solver_error, root of the squares, nats."""
        return torch.hypot(self.std_error, self.solver_error)

    def __repr__(self) -> str:
        shown = (
            "log_prob",
            "std_error",
            "solver_error",
            "bits_per_dim",
            "nfe",
            "products",
            "status",
        )
        lines = ",\n  ".join(f"{name}={getattr(self, name)}" for name in shown)
        return f"LogProb({lines})"

    @property
    def bits_std_error(self) -> Tensor:
        """std_error in bits/dim."""
        return self.std_error / (self.latent[0].numel() * math.log(2))
