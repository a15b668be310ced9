"""What `log_prob` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..outcome import Status, status_failed


@dataclass(frozen=True, eq=False)
class LogProb:
    """log p of each sample and its error budget. Printed, it is that budget in four lines.

    Tensors are [B], float64, unless said otherwise; of a sample that failed all but the cost is
    nan.

    log_prob: log density, nats.
    std_error: standard error of log_prob from the random probes alone, nats. 0 where the trace is
        exact. With one probe and method='augmented' it is an upper bound.
    path_error: estimate of what the path and its nodes add to the error, nats; nan from
        torchdiffeq.
    defect: what the path's deviation from the flow is worth, nats; nan if 'augmented'. log_prob is
        corrected by it, which is exact to second order where the network is the exact score of a
        density. It is left out where it is far larger than such a score could make it: log_prob is
        then that of the path. For a trained network it stays part of solver_error.
    prior_gap: what log_prob would change by if the prior had the data's mean, nats.
    truncation: estimate of log p_0 - log_prob, what the noise at t_min costs, nats; nan unless
        asked for.
    latent: x at t_max, [B, *event], in x's dtype.
    status: int64 codes of `Status`, 0 = fine.
    nfe: int64, network evaluations, all of them.
    products: int64, products with the network's Jacobian.
    rejected: int64, steps that the error control threw away; nfe counts their evaluations.
    t_min: the time at which the data enter.
    blur: sigma/alpha there: log_prob is of the data with noise of this standard deviation.
    offset: what bits_per_dim adds, bits/dim.
    """

    log_prob: Tensor
    std_error: Tensor
    path_error: Tensor
    defect: Tensor
    prior_gap: Tensor
    truncation: Tensor
    latent: Tensor
    status: Tensor
    nfe: Tensor
    products: Tensor
    rejected: Tensor
    t_min: float
    blur: float
    offset: float = 0.0

    @property
    def bits_per_dim(self) -> Tensor:
        """-log_prob/(d ln 2) + offset."""
        return -self.log_prob / self._bits + self.offset

    @property
    def bits_std_error(self) -> Tensor:
        """std_error in bits/dim."""
        return self.std_error / self._bits

    @property
    def solver_error(self) -> Tensor:
        """Error of the path, nats: the root of path_error^2 + defect^2. For an exact score it is
        too large, since the defect is corrected for."""
        return torch.hypot(self.path_error, torch.nan_to_num(self.defect))

    @property
    def total_error(self) -> Tensor:
        """The root of std_error^2 + solver_error^2, nats."""
        return torch.hypot(self.std_error, self.solver_error)

    @property
    def _bits(self) -> float:
        return self.latent[0].numel() * math.log(2)

    def __repr__(self) -> str:
        fine = ~status_failed(self.status)
        failed = self.status[self.status != Status.OK].tolist()
        why = "".join(
            f"; {failed.count(c)} of {len(self.status)}: {Status(c).meaning}"
            for c in sorted(set(failed))
        )
        left_out = f"noise of blur={self.blur:.3g} at t_min={self.t_min:.3g}"
        if bool(torch.isnan(self.truncation).all()):
            left_out += " (truncation not asked for)"
        else:
            left_out += f", truncation {_of(self.truncation, fine)} nats"
        error, path, defect = (_of(v, fine) for v in (self.std_error, self.path_error, self.defect))
        samples = f"{len(self.status)} sample{'s' * (len(self.status) > 1)}{why}"
        bits = _of(self.bits_per_dim, fine)
        return (
            f"log_prob      {_of(self.log_prob, fine)} nats, {bits} bits/dim, {samples}\n"
            f"std_error     {error} nats of the probes\n"
            f"solver_error  {_of(self.solver_error, fine)} nats: path_error {path}, "
            f"defect {defect}\n"
            f"left out      {left_out}; prior_gap {_of(self.prior_gap, fine)} nats"
        )


def _of(v: Tensor, fine: Tensor) -> str:
    """One number of the samples that are fine: itself, or the mean of several."""
    kept = v[fine].double()
    return f"{float(kept.mean()):.4g}" if len(kept) else "nan"
