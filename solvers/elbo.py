"""Evidence lower bounds: -log p(x_0) <= L_T + sum L_t + L_0, with standard errors.

Discrete time, 0 < t_1 < ... < t_N (Ho et al. 2020, 5; Nichol & Dhariwal 2021), s the time before t:

    L_T = KL(q(x_T | x_0) || N(0, sigma_T^2)),     L_0 = -log p(x_0 | x_{t_1}),
    L_t = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) = 1/2 (e^{2 lambda_s} - e^{2 lambda_t}) |x_0 - D|^2

for p with the posterior's own variance; for a larger one v' = r v it is 1/2 [d (log r + 1/r - 1)]
plus that over r. Continuous time (Kingma et al. 2021, 15; Kong et al. 2023 as I-MMSE) is the limit

    sum L_t -> int |eps - eps^|^2 dlambda,     eps - eps^ = e^lambda (D - x_0),

which for the exact D is no bound but log p itself. Its integrand is taken relative to that of
N(0, s^2), whose integral is a closed form: what is left to sample is small where the data look
Gaussian. Times are stratified, one a stratum, so neighbouring terms differ by their noise alone and
half their mean square difference is the variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import normal, uniform
from ..models import Denoiser, TabledVP
from .drift import start_time
from .encode import check
from .quadrature import as_ids
from .scaled_flow import FAR

LOG2 = math.log(2)
DRAWS = 4  # of x_{t_1} for the reconstruction


@dataclass(frozen=True, eq=False)
class Elbo:
    """What `elbo` found: float64 [B] in bits/dim, an upper bound on -log2 p(x_0)/d.

    bits_per_dim = prior + diffusion + reconstruction (L_T, sum of L_t, L_0); std_error: of
    bits_per_dim, from the noise drawn. log_prob: the same bound as nats, log p(x_0) >= log_prob.
    times: float64 [K], where the network was called; terms [B, K]: what each call contributed to
    `diffusion`, in bits/dim. nfe: calls.
    """

    bits_per_dim: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    std_error: Tensor
    log_prob: Tensor
    times: Tensor
    terms: Tensor
    nfe: int

    def __repr__(self) -> str:
        rows = [
            ("L_T prior", self.prior),
            ("L_t diffusion", self.diffusion),
            ("L_0 reconstruction", self.reconstruction),
            ("total", self.bits_per_dim),
        ]
        lines = [f"{name:20s}{float(value.mean()):10.4f}" for name, value in rows]
        error = float(self.std_error.square().sum().sqrt()) / len(self.std_error)
        return "\n".join(["mean bits/dim", *lines, f"{'+-':20s}{error:10.4f}"])


def elbo(
    model: Denoiser,
    x: Tensor,
    time: str | None = None,
    steps: int | None = None,
    *,
    variance: str = "small",
    spacing: float = 0.0,
    bounds: tuple[float, float] = (-1.0, 1.0),
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
) -> Elbo:
    """A lower bound on log p of each sample of x [B, *event], float32 or float64.

    time: 'discrete' (default for tabled processes and time='index' networks) or 'continuous'.
    steps: N network calls: of the discrete chain at t = i/N (default: the network's own), or the
    strata of lambda (default 100). variance: 'small' (the posterior's) or 'large' (the forward
    step's, DDPM's fixedlarge); discrete only. spacing: distance of the data's levels, e.g. 2/255:
    the decoder is then DDPM's discretised Gaussian on `bounds`, whose end levels take the tails; 0:
    the data are continuous and the bound is on a density. seed, sample_ids: of the noise.

    Raises ValueError or TypeError for what does not fit, before any call.
    """
    check(model, x, 1.0, 1.0, "raise")
    discrete = isinstance(model.process, TabledVP) or model.time == "index"
    time = time or ("discrete" if discrete else "continuous")
    if time not in ("discrete", "continuous"):
        raise ValueError(f"time must be 'discrete' or 'continuous'; got {time!r}")
    if variance not in ("small", "large"):
        raise ValueError(f"variance must be 'small' or 'large'; got {variance!r}")
    if steps is not None and steps < 2:
        raise ValueError(f"steps must be >= 2; got {steps}")
    if spacing < 0 or not bounds[0] < bounds[1]:
        raise ValueError(f"spacing must be >= 0 and bounds (lo, hi); got {spacing}, {bounds}")
    slack = 1e-5 * (bounds[1] - bounds[0])
    if spacing and (float(x.min()) < bounds[0] - slack or float(x.max()) > bounds[1] + slack):
        raise ValueError(
            f"x must lie in bounds={bounds}; got {float(x.min()):g} to {float(x.max()):g}"
        )
    chain = _Chain(model, x, cond, seed, as_ids(sample_ids, len(x)))
    with torch.no_grad():
        if time == "discrete":
            parts = _discrete(chain, steps, variance, spacing, bounds)
        else:
            parts = _continuous(chain, steps or 100, t_min, spacing, bounds)
    return _report(*parts, d=x[0].numel(), calls=chain.calls)


class _Chain:
    """Draws x_t given x_0 and asks the network."""

    def __init__(
        self,
        model: Denoiser,
        x: Tensor,
        cond: dict[str, Any] | None,
        seed: int | Tensor,
        ids: Tensor,
    ) -> None:
        self.model, self.x, self.cond = model, x, dict(cond or {})
        self.seed, self.ids = seed, ids.to(x.device)
        self.d, self.calls = x[0].numel(), 0
        self.square = x.double().square().flatten(1).sum(1)

    def error(self, t: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """(|x_0 - D|^2 - |x_0 - G|^2 [B], D) at times t [B], with G what D is for N(0, s^2)."""
        self.calls += 1
        process, x = self.model.process, self.x
        eps = normal(x.shape, self.seed, self.ids, draw, "user", 0, x.dtype, x.device, 1)
        wide = (-1, *(1,) * (x.ndim - 1))
        alpha, sigma = (c.to(x.dtype).reshape(wide) for c in (process.alpha(t), process.sigma(t)))
        data = self.model(alpha * x + sigma * eps, t, **self.cond)
        y = torch.exp(-2 * process.log_snr(t)).reshape(wide)
        s2 = self.model.sigma_data**2
        gauss = (y * x.double() - s2 * y.sqrt() * eps.double()) / (s2 + y)
        miss = (x - data).double().square() - gauss.square()
        return miss.flatten(1).sum(1), data

    def gauss(self, t: Tensor) -> Tensor:
        """E |x_0 - G|^2 over the noise, at times t [B] or scalar: [B]."""
        y, s2 = torch.exp(-2 * self.model.process.log_snr(t)), self.model.sigma_data**2
        return (y**2 * self.square + s2**2 * y * self.d) / (s2 + y) ** 2

    def prior(self, t: float) -> Tensor:
        """KL(N(alpha x_0, sigma^2) || N(0, sigma_T^2)) at t, [B]."""
        process = self.model.process
        end = float(process.sigma(process.t_max))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        ratio = (sigma / end) ** 2
        return 0.5 * (self.d * (ratio - 1 - math.log(ratio)) + (alpha / end) ** 2 * self.square)


Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _discrete(
    chain: _Chain, steps: int | None, variance: str, spacing: float, bounds: tuple[float, float]
) -> Parts:
    """prior, diffusion, reconstruction, variance, times, terms: in nats."""
    process, batch = chain.model.process, len(chain.x)
    n = steps or len(getattr(process, "betas", ())) or chain.model.steps
    t = process.t_max * torch.arange(1, n + 1, dtype=torch.float64) / n
    square = torch.exp(2 * process.log_snr(t))
    alpha, sigma = process.alpha(t), process.sigma(t)
    forward = sigma[1:] ** 2 - (alpha[1:] / alpha[:-1] * sigma[:-1]) ** 2  # sigma_{t|s}^2
    posterior = forward * (sigma[:-1] / sigma[1:]) ** 2
    r = forward / posterior if variance == "large" else torch.ones_like(forward)
    fixed = 0.5 * chain.d * (r.log() + 1 / r - 1)
    terms = []
    for i in range(n - 1, 0, -1):  # from the noise to the data, as a sampler goes
        miss, _ = chain.error(t[i].expand(batch), i + DRAWS)
        terms.append(0.5 * (square[i - 1] - square[i]) / r[i - 1] * miss)
    table = torch.stack(terms, 1).flip(1)
    noise = _roughness(table)
    expected = torch.stack([chain.gauss(v) for v in t[1:]], 1)
    table = table + fixed + 0.5 * (square[:-1] - square[1:]) / r * expected
    width = posterior[0].sqrt() if variance == "small" else sigma[0] / alpha[0]
    last, spread = _reconstruction(chain, t[0], float(width), spacing, bounds)
    return chain.prior(float(t[-1])), table.sum(1), last, noise + spread, t[1:], table


def _continuous(
    chain: _Chain, strata: int, t_min: float | None, spacing: float, bounds: tuple[float, float]
) -> Parts:
    process, x = chain.model.process, chain.x
    start = start_time(chain.model, t_min)
    top = float(process.log_snr(start))
    bottom = max(float(process.log_snr(process.t_max)), -math.log(FAR))
    h = (top - bottom) / strata
    s2 = chain.model.sigma_data**2
    terms, where = [], []
    for k in range(strata):
        u = uniform((len(x), 1), chain.seed, chain.ids, k, "user", subdraw=2)[:, 0].double()
        lam = bottom + (k + u.to(x.device)) * h
        t = process.inverse_log_snr(lam).clamp(start, process.t_max)
        miss, _ = chain.error(t, k + DRAWS)
        terms.append(h * torch.exp(2 * lam) * miss)
        where.append(lam.mean())
    table = torch.stack(terms, 1)
    lo, hi = math.exp(-2 * top), math.exp(-2 * bottom)
    closed = 0.5 * chain.square * (1 / (s2 + lo) - 1 / (s2 + hi)) + 0.5 * chain.d * (
        math.log(hi / (s2 + hi)) - math.log(lo / (s2 + lo)) + s2 / (s2 + hi) - s2 / (s2 + lo)
    )
    clean = torch.tensor(start, dtype=torch.float64)
    last, spread = _reconstruction(chain, clean, math.sqrt(lo), spacing, bounds)
    end = float(process.inverse_log_snr(torch.tensor(bottom).double()).clamp(max=process.t_max))
    times = process.inverse_log_snr(torch.stack(where))
    total = closed + table.sum(1)
    return chain.prior(end), total, last, _roughness(table) + spread, times, table


def _reconstruction(
    chain: _Chain, t: Tensor, width: float, spacing: float, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """-log p(x_0 | x_t) for p Gaussian about D(x_t) of standard deviation `width`, the mean of a
    few draws, and the variance of that mean: [B] nats."""
    found, (lo, hi) = [], bounds
    for draw in range(DRAWS):
        miss, data = chain.error(t.expand(len(chain.x)), draw)
        if not spacing:
            constant = chain.d * (math.log(width) + 0.5 * math.log(2 * math.pi))
            found.append(0.5 * (miss + chain.gauss(t)) / width**2 + constant)
            continue
        x, mean = chain.x.double(), data.double()
        low = torch.where(x < lo + 0.25 * spacing, -torch.inf, (x - 0.5 * spacing - mean) / width)
        high = torch.where(x > hi - 0.25 * spacing, torch.inf, (x + 0.5 * spacing - mean) / width)
        found.append(-_log_interval(low, high).flatten(1).sum(1))
    draws = torch.stack(found)
    return draws.mean(0), draws.var(0) / DRAWS


def _log_interval(a: Tensor, b: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) for a < b, stable in both tails."""
    flip = a > 0
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    top, bottom = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
    inside: Tensor = top + torch.log(-torch.expm1((bottom - top).clamp(max=-1e-300)))
    return inside


def _roughness(terms: Tensor) -> Tensor:
    """Variance of the sum of independent terms with smooth means, [B]: half the squared steps."""
    steps = terms.diff(dim=1).square()
    return 0.5 * steps.sum(1) * terms.shape[1] / max(1, steps.shape[1])


def _report(
    prior: Tensor, diffusion: Tensor, last: Tensor, variance: Tensor, times: Tensor, terms: Tensor,
    d: int, calls: int,
) -> Elbo:  # fmt: skip
    total = prior + diffusion + last
    unit = d * LOG2
    return Elbo(
        total / unit, prior / unit, diffusion / unit, last / unit, variance.sqrt() / unit, -total,
        times, terms / unit, calls,
    )  # fmt: skip
