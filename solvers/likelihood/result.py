"""What `log_prob` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...models import notebook
from ..outcome import status_failed
from ..showing import ended


@dataclass(frozen=True, eq=False)
class LogProb:
    """log p of each sample and its error budget. Printed, it is that budget in four lines.

    Tensors are [B], float64, unless said otherwise; of a sample that failed all but the cost is
    nan.

    log_prob: log density of the data, nats, corrected by prior_gap and truncation where they can
        be told.
    std_error: standard error of log_prob from the random probes alone, nats. 0 where the trace is
        exact. With one probe and method='augmented' it is an upper bound.
    path_error: estimate of what the path and its nodes add to the error, nats; nan from
        torchdiffeq.
    defect: what the path's deviation from the flow is worth, nats; nan if 'augmented'. log_prob is
        corrected by it, as far as the network's score is that of a density (`defect_error`).
    defect_error: standard error of that correction, nats; 0 if 'augmented'. Where the network's
        score is longer than its divergence explains, it is an error's, and is believed in part.
    prior_gap: log p_T - log N(0, sigma^2) at the latent, nats, with p_T of the data's own moments
        at t_max; nan where it cannot be told (status UNMIXED where that is most of the error) or
        prior='normal', and log_prob is then of N(0, I).
    truncation: log p_0 - log p_blurred, what the noise at t_min costs, nats; nan where it cannot be
        told (the data are tighter than that noise, status BLURRED, or the network is no score) or
        was not asked for, and log_prob is then of the blurred data.
    ends_error: error of these two, nats; of one that was asked for and cannot be told about what
        it may be worth.
    latent: x at t_max, [B, *event], in x's dtype.
    status: int64 codes of `Status`, 0 = fine.
    nfe: int64, network evaluations, all of them.
    products: int64, products with the network's Jacobian.
    rejected: int64, steps that the error control threw away; nfe counts their evaluations.
    t_min: the time at which the data enter.
    blur: sigma/alpha there, the standard deviation of the noise that the data are given.
    offset: what bits_per_dim adds, bits/dim.
    """

    log_prob: Tensor
    std_error: Tensor
    path_error: Tensor
    defect: Tensor
    latent: Tensor
    status: Tensor
    nfe: Tensor
    products: Tensor
    rejected: Tensor
    t_min: float
    blur: float
    defect_error: Tensor = field(default_factory=torch.Tensor)
    prior_gap: Tensor = field(default_factory=torch.Tensor)
    truncation: Tensor = field(default_factory=torch.Tensor)
    ends_error: Tensor = field(default_factory=torch.Tensor)
    offset: float = 0.0

    def __post_init__(self) -> None:
        empties = {"prior_gap": torch.nan, "truncation": torch.nan}
        for name, empty in {**empties, "ends_error": 0.0, "defect_error": 0.0}.items():
            if not getattr(self, name).numel():
                object.__setattr__(self, name, torch.full_like(self.log_prob, empty))

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
        """Error of the path, nats: the root of path_error^2 + defect_error^2."""
        return torch.hypot(self.path_error, self.defect_error)

    @property
    def total_error(self) -> Tensor:
        """The root of std_error^2 + solver_error^2 + ends_error^2, nats."""
        return torch.hypot(torch.hypot(self.std_error, self.solver_error), self.ends_error)

    @property
    def uncorrected(self) -> Tensor:
        """log_prob without prior_gap and truncation, nats: what the flow makes of N(0, sigma^2) at
        t_max, at t_min. It is what score_sde and its kin report."""
        return self.log_prob - self.prior_gap.nan_to_num() - self.truncation.nan_to_num()

    @property
    def _bits(self) -> float:
        return self.latent[0].numel() * math.log(2)

    def _facts(self) -> notebook.Facts:
        """The budget, one part a line."""
        fine = ~status_failed(self.status)
        error, path, defect = (
            _of(v, fine) for v in (self.std_error, self.path_error, self.defect_error)
        )
        samples = f"{len(self.status)} sample{'s' * (len(self.status) > 1)}"
        how = "; ".join([samples, *ended(self.status)])
        truncation, prior = _of(self.truncation, fine), _of(self.prior_gap, fine)
        start = f"blur={self.blur:.3g} at t_min={self.t_min:.3g}"
        nats, bits = _of(self.log_prob, fine), _of(self.bits_per_dim, fine)
        solver, ends = _of(self.solver_error, fine), _of(self.ends_error, fine)
        return [
            ("log_prob", f"{nats} nats, {bits} bits/dim, {how}"),
            ("std_error", f"{error} nats of the probes"),
            ("solver_error", f"{solver} nats: path_error {path}, defect_error {defect}"),
            ("ends_error", f"{ends} nats: truncation {truncation} of {start}, prior_gap {prior}"),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name:14}{words}" for name, words in self._facts())

    def _repr_html_(self) -> str:
        return notebook.table("LogProb, means over the samples", (), self._facts())


def _of(v: Tensor, fine: Tensor) -> str:
    """One number of the samples that are fine: itself, or the mean of those that have it."""
    kept = v[fine].double()
    told = kept[~kept.isnan()]
    missing = f" ({len(kept) - len(told)} not told)" if 0 < len(told) < len(kept) else ""
    return f"{float(told.mean()):.4g}{missing}" if len(told) else "not told"
