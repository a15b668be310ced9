"""Adaptive sampling of the reverse SDE, sample by sample, on a Brownian path that rejections share.

With q = e^{2 lambda} = (alpha/sigma)^2 as clock and w = q x/alpha as state the reverse SDE of every
process is the localisation process (El Alaoui & Montanari 2022; exact linear part, unit noise)

    dw = D(x, t) dq + dB_q,        x = alpha w/q,

so a step is w' = w + D_1 d + dB (order 1) and w'' = w + (D_1 + D_2)/2 d + dB (order 2), D_2 at w',
as in the embedded method of Jolicoeur-Martineau et al. 2021 (algorithm 1), without its stiffness.
Their difference is the error; the increments come from a virtual tree, not from the step's number,
so that a rejected step does not bias the path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.brownian import BrownianPath
from ...kernels.checks import ids_or_places
from ...kernels.errors import InvalidValue
from ...kernels.shapes import column
from ...kernels.streams import INITIAL
from ...models import Denoiser
from ..arguments import device_of
from ..outcome import Status, raise_if_failed

CELLS = 4  # knots of the Brownian path in a unit of lambda


class AdaptiveResult(NamedTuple):
    """x [B, ...]; nfe, accepted, rejected, status: int64 [B], one a sample."""

    x: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor


def sample_sde_adaptively(
    model: Denoiser,
    shape: Sequence[int],
    *,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    x_init: Tensor | None = None,
    final: str = "denoise",
    first_step: float = 0.1,
    max_step: float = 0.5,
    max_steps: int = 2000,
    on_failure: str = "raise",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> AdaptiveResult:
    """Draw samples [B, ...] of the reverse SDE with steps chosen by each sample's own error.

    The error of a step is rms((x'' - x')/(atol + rtol |x''|)) in units of x/alpha, over one sample.
    first_step, max_step: of lambda; a step over many units of lambda lands on the data's mean,
    where both predictions agree and no error shows, hence the limit. final: 'denoise' or 't_min'.
    device: by default x_init's, else the network's. The same (seed, sample id) gives the same sample
    whoever shares its batch. Raises ValueError for bad input, SolverError (or returns the
    statuses, on_failure='return') where a sample needs more than max_steps or is not finite.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise InvalidValue(f"shape must be (batch, ...) of positive sizes; got {tuple(shape)}")
    for name, value in (
        ("rtol", rtol),
        ("atol", atol),
        ("first_step", first_step),
        ("max_step", max_step),
    ):
        if not value > 0:
            raise InvalidValue(f"{name} must be > 0; got {value}")
    if final not in ("denoise", "t_min"):
        raise InvalidValue(f"final must be 'denoise' or 't_min'; got {final!r}")
    if device is None:
        device = device_of(model) if x_init is None else x_init.device
    ids = ids_or_places(sample_ids, shape[0], device)
    if x_init is None:
        z = normal(shape, seed, ids, **INITIAL.at(), device=device).to(dtype)
    else:
        z = x_init.to(device, dtype) / float(model.process.sigma(model.process.t_max))
    run = _Run(model, z, ids, seed, rtol, atol, first_step, max_step)
    with torch.no_grad():
        while len(run.rows) and run.steps < max_steps:
            run.step()
        run.status[run.rows] = int(Status.TOO_MANY_STEPS)
        x = run.x_hat * float(model.process.alpha(model.t_min))
        if final == "denoise":
            x, run.nfe = model(x, model.t_min), run.nfe + 1
    result = AdaptiveResult(x, run.nfe, run.accepted, run.rejected, run.status)
    raise_if_failed(run.status, result, on_failure)
    return result


class _Run:
    """All samples' x/alpha and lambda; rows: those still under way; slope: D_1 where it is known."""

    def __init__(
        self, model: Denoiser, z: Tensor, ids: Tensor, seed: int, rtol: float, atol: float,
        first_step: float, max_step: float,
    ) -> None:  # fmt: skip
        process, b = model.process, len(z)
        self.model, self.ids, self.seed, self.rtol, self.atol = model, ids, seed, rtol, atol
        self.max_step = max_step
        self.start = process.noisiest_log_snr
        self.end = float(process.log_snr(model.t_min))
        self.x_hat = z * math.exp(-self.start)
        self.lam = torch.full((b,), self.start, dtype=torch.float64, device=z.device)
        self.h = torch.full_like(self.lam, first_step)
        self.slope = torch.zeros_like(z)
        self.known = torch.zeros_like(self.lam, dtype=torch.bool)
        self.nfe, self.accepted, self.rejected, self.status = (
            torch.zeros_like(self.lam, dtype=torch.int64) for _ in range(4)
        )
        self.rows = torch.arange(b, device=z.device)
        self.steps = 0
        cells = max(2, math.ceil(CELLS * (self.end - self.start)))
        knots = torch.exp(2 * torch.linspace(self.start, self.end, cells + 1, dtype=torch.float64))
        self.knots = (knots - knots[0]).tolist()

    def denoise(self, x_hat: Tensor, lam: Tensor, rows: Tensor) -> Tensor:
        process = self.model.process
        t = process.inverse_log_snr(lam).clamp(self.model.t_min, process.t_max)
        self.nfe[rows] += 1
        return self.model(x_hat * column(process.alpha(t), x_hat), t)

    def step(self) -> None:
        self.steps += 1
        fresh = self.rows[~self.known[self.rows]]
        if len(fresh):
            self.slope[fresh] = self.denoise(self.x_hat[fresh], self.lam[fresh], fresh)
            self.known[fresh] = True
        rows, lam = self.rows, self.lam[self.rows]
        then = torch.minimum(lam + self.h[rows], torch.full_like(lam, self.end))
        kept = torch.exp(2 * (lam - then))  # q/q'
        x, d1 = self.x_hat[rows], self.slope[rows]
        path = BrownianPath(tuple(x.shape), self.seed, self.knots, 14, self.ids[rows], 0, x.device)
        zero = math.exp(2 * self.start)
        spans = [(torch.exp(2 * v) - zero).clamp(0.0, self.knots[-1]) for v in (lam, then)]
        noise = column(torch.exp(-2 * then), x) * path.increment(*spans).to(x.dtype)
        gain = column(-torch.expm1(2 * (lam - then)), x)  # (q' - q)/q'
        one = column(kept, x) * x + gain * d1 + noise
        d2 = self.denoise(one, then, rows)
        two = one + 0.5 * gain * (d2 - d1)
        scale = self.atol + self.rtol * two.abs()
        error = ((two - one) / scale).flatten(1).double().square().mean(1).sqrt()
        taken = error <= 1
        done = rows[taken]
        self.x_hat[done], self.lam[done] = two[taken], then[taken]
        self.known[done] = False
        self.accepted[done] += 1
        self.rejected[rows[~taken]] += 1
        self.status[rows[~torch.isfinite(error)]] = int(Status.NETWORK_NOT_FINITE)
        # local error of h^2: exponent 1/2, Jolicoeur-Martineau et al. take 0.9 of h E^-0.9
        factor = (0.9 * error.clamp(min=1e-12).rsqrt()).clamp(0.2, 3.0)
        grown = (then - lam) * torch.nan_to_num(factor, nan=0.2)
        self.h[rows] = grown.clamp(max=self.max_step)
        alive = torch.isfinite(error) & ~(taken & (then >= self.end))
        self.rows = rows[alive]
