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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.brownian import BrownianPath
from ...kernels.errors import InvalidType
from ...kernels.shapes import column, wide
from ...kernels.streams import INITIAL
from ...models import Denoiser, notebook
from .. import arguments, showing
from ..outcome import Status, raise_if_failed

CELLS = 4  # knots of the Brownian path in a unit of lambda


class AdaptiveResult(NamedTuple):
    """x [B, ...]; nfe, accepted, rejected, status: int64 [B], one a sample."""

    x: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor

    def _facts(self) -> notebook.Facts:
        steps = (
            f"{showing.counts(self.accepted)} accepted, {showing.counts(self.rejected)} rejected"
        )
        return [*showing.run(self.x, self.nfe, self.status), ("steps", steps)]

    def __repr__(self) -> str:
        return notebook.lines("AdaptiveResult", self._facts())

    def _repr_html_(self) -> str:
        return notebook.table("AdaptiveResult", (), self._facts())


def start(
    model: Denoiser,
    shape: tuple[int, ...],
    seed: int | Tensor,
    sample_ids: Tensor | Sequence[int] | None,
    x_init: Tensor | None,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    """x at t_max: x_init on the device, or sigma z."""
    if device is not None:
        device = arguments.device("device", device)
    if x_init is not None:
        return arguments.event_batch("x_init", x_init, shape).to(device or x_init.device)
    if dtype not in (torch.float32, torch.float64):
        raise InvalidType(
            f"dtype must be torch.float32 or torch.float64, what states are; got {dtype}"
        )
    device = device or arguments.device_of(model)
    ids = arguments.sample_ids(sample_ids, shape[0], device)
    z = normal(shape, seed, ids, **INITIAL.at(), device=device).to(dtype)
    return z * float(model.process.sigma(model.process.t_max))


def sample_sde_adaptively(
    model: Denoiser,
    shape: Sequence[int],
    *,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_init: Tensor | None = None,
    cond: dict[str, Any] | None = None,
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

    model, shape: the denoiser, and (B, *event).
    rtol, atol: > 0.
    seed, sample_ids, x_init: as in `Sampler.init`; x_init is float32 or float64.
    cond: keyword arguments of the network; rows follow their samples (models/conditions.py).
    final: 'denoise' (one call more) or 't_min'.
    first_step, max_step: of lambda, > 0; a step over many units of lambda lands on the data's mean,
        where both predictions agree and no error shows, hence the limit.
    max_steps: attempts of one sample, >= 1.
    on_failure: 'raise', or 'return' the result with its statuses.
    dtype: of the state, float32 or float64, where x_init is not given.
    device: of the noise, by default x_init's, else the network's.
    The same (seed, sample id) gives the same sample whoever shares its batch. Raises ValueError or
    TypeError for bad input before any network call, SolverError where a sample needs more than
    max_steps or is not finite.
    """
    arguments.denoiser(model)
    shape = arguments.batch_shape("shape", shape)
    arguments.choice("final", final, ("denoise", "t_min"))
    arguments.on_failure(on_failure)
    arguments.whole("max_steps", max_steps)
    first_step = arguments.positive("first_step", first_step)
    max_step = arguments.positive("max_step", max_step)
    x = start(model, shape, seed, sample_ids, x_init, dtype, device)
    rtol = arguments.tolerance("rtol", rtol, x.dtype)
    atol = arguments.tolerance("atol", atol, x.dtype)
    model = model.told(cond, len(x))
    ids = arguments.sample_ids(sample_ids, len(x), x.device)
    key = arguments.seed_of(seed, len(x), x.device)
    z = x / float(model.process.sigma(model.process.t_max))
    run = _Run(model, z, ids, key, rtol, atol, first_step, max_step)
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
    """All samples' x/alpha and lambda. rows: those under way. slope: D_1 where it is known."""

    def __init__(
        self,
        model: Denoiser,
        z: Tensor,
        ids: Tensor,
        seed: int | Tensor,
        rtol: float,
        atol: float,
        first_step: float,
        max_step: float,
    ) -> None:
        process, b = model.process, len(z)
        self.model, self.ids, self.seed, self.rtol, self.atol = model, ids, seed, rtol, atol
        self.max_step = max_step
        self.start = process.noisiest_log_snr
        self.end = float(process.log_snr(model.t_min))
        self.x_hat = z * math.exp(-self.start)
        self.lam = torch.full((b,), self.start, dtype=wide(z), device=z.device)
        self.h = torch.full_like(self.lam, first_step)
        self.slope = torch.zeros_like(z)
        self.known = torch.zeros_like(self.lam, dtype=torch.bool)
        self.nfe, self.accepted, self.rejected, self.status = (
            torch.zeros_like(self.lam, dtype=torch.int64) for _ in range(4)
        )
        self.rows = torch.arange(b, dtype=torch.int64, device=z.device)
        self.steps = 0
        cells = max(2, math.ceil(CELLS * (self.end - self.start)))
        lam = torch.linspace(self.start, self.end, cells + 1, dtype=torch.float64, device="cpu")
        knots = torch.exp(2 * lam)
        self.knots = (knots - knots[0]).tolist()

    def denoise(self, x_hat: Tensor, lam: Tensor, rows: Tensor) -> Tensor:
        process = self.model.process
        t = process.inverse_log_snr(lam).clamp(self.model.t_min, process.t_max)
        self.nfe[rows] += 1
        model = self.model.rows(rows, len(self.ids))
        return model(x_hat * column(process.alpha(t), x_hat), t)

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
        own = isinstance(self.seed, Tensor) and self.seed.numel() > 1
        seed = self.seed[rows] if own and isinstance(self.seed, Tensor) else self.seed
        path = BrownianPath(tuple(x.shape), seed, self.knots, 14, self.ids[rows], 0, x.device)
        zero = math.exp(2 * self.start)
        spans = [(torch.exp(2 * v) - zero).clamp(0.0, self.knots[-1]) for v in (lam, then)]
        noise = column(torch.exp(-2 * then), x) * path.increment(*spans).to(x.dtype)
        gain = column(-torch.expm1(2 * (lam - then)), x)  # (q' - q)/q'
        one = column(kept, x) * x + gain * d1 + noise
        d2 = self.denoise(one, then, rows)
        two = one + 0.5 * gain * (d2 - d1)
        scale = self.atol + self.rtol * two.abs()
        error = ((two - one) / scale).flatten(1).to(wide(x)).square().mean(1).sqrt()
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
