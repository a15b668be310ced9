"""The terms of the evidence lower bound, estimated for each sample by itself: see elbo.py.

Every noisy term is taken relative to that of the denoiser G of a Gaussian law, whose mean is a
closed form: what is left to sample is small where the data look like it. In its principal axes,
with c and v the variances and the coordinates of x_0 - mean, and S = e^{2 lambda}, 0 at a flow's
end,

    x_0 - G = (v - c sqrt(S) eps)/(1 + c S),       E (x_0 - G)^2 = (v^2 + c^2 S)/(1 + c S)^2
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.shapes import as_float64
from ...kernels.streams import BOUND
from ...models import Denoiser, TabledVP
from ...models.statistics import Statistics
from ...models.variational import (
    data_and_variance,
    decoder_nll,
    flat_decoder_nll,
    posterior,
)
from .importance import integrate_by_importance

DRAWS = 4  # of x_{t_1} for the reconstruction
ROWS = 20  # of the table, where times are drawn


class Terms(NamedTuple):
    """In nats: prior, reconstruction, variance [B]; terms [B, K] of the diffusion at times [K]."""

    prior: Tensor
    terms: Tensor
    reconstruction: Tensor
    variance: Tensor
    times: Tensor


class Decoder(NamedTuple):
    """p(x_0 | x_t): levels `spacing` apart on bounds, or a density where spacing = 0."""

    kind: str
    spacing: float
    bounds: tuple[float, float]


class Chain:
    """Draws x_t given x_0 and asks the network; calls counts how often."""

    def __init__(
        self,
        model: Denoiser,
        x: Tensor,
        cond: dict[str, Any] | None,
        seed: int | Tensor,
        ids: Tensor,
        law: Statistics,
    ) -> None:
        self.model, self.x, self.cond = model, x, dict(cond or {})
        self.seed, self.ids = seed, ids.to(x.device)
        self.d, self.calls = x[0].numel(), 0
        self.square = x.double().square().flatten(1).sum(1)
        self.turned = law.q.into
        self.c = law.variances.to(x.device)
        self.v = self.turned(x.double().flatten(1) - law.mean.to(x.device))

    def noisy(self, t: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """(eps, x_t) at times t [B]."""
        process, x = self.model.process, self.x
        eps = normal(x.shape, self.seed, self.ids, **BOUND.at(draw), dtype=x.dtype, device=x.device)
        alpha, sigma = (self.column(c(t).to(x.dtype)) for c in (process.alpha, process.sigma))
        return eps, alpha * x + sigma * eps

    def error(self, t: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """(|x_0 - D|^2 - |x_0 - G|^2 [B], D) at times t [B]."""
        self.calls += 1
        eps, x_t = self.noisy(t, draw)
        data = self.model(x_t, t, **self.cond)
        miss = (self.x - data).double().square().flatten(1).sum(1)
        return miss - self.reference(t, eps), data

    def reference(self, t: Tensor, eps: Tensor) -> Tensor:
        """|x_0 - G|^2, [B]."""
        snr = self._snr(t)
        miss = self.v - self.c * snr.sqrt() * self.turned(eps.double().flatten(1))
        return (miss / (1 + self.c * snr)).square().sum(1)

    def gauss(self, t: Tensor) -> Tensor:
        """E |x_0 - G|^2 over the noise, at times t [B] or scalar: [B]."""
        snr = self._snr(t)
        return ((self.v.square() + self.c**2 * snr) / (1 + self.c * snr) ** 2).sum(1)

    def gauss_between(self, y: Tensor) -> Tensor:
        """int e^{2 lambda} E |x_0 - G|^2 dlambda between neighbours of y = e^{-2 lambda} [K + 1],
        rising: [B, K]."""
        square, c = self.v.square(), self.c
        whole = [0.5 * (torch.log(at / (c + at)) + (c - square) / (c + at)).sum(1) for at in y]
        return torch.stack(whole, 1).diff(dim=1)

    def gauss_nll(self) -> Tensor:
        """-log density of x_0 under the Gaussian law, [B]."""
        return 0.5 * (self.v.square() / self.c + torch.log(2 * math.pi * self.c)).sum(1)

    def prior(self, t: float) -> Tensor:
        """KL(N(alpha x_0, sigma^2) || N(0, sigma_T^2)) at t, [B]."""
        process = self.model.process
        end = float(process.sigma(process.t_max))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        ratio = (sigma / end) ** 2
        return 0.5 * (self.d * (ratio - 1 - math.log(ratio)) + (alpha / end) ** 2 * self.square)

    def _snr(self, t: Tensor) -> Tensor:
        return torch.exp(2 * self.model.process.log_snr(t)).reshape(-1, 1)

    def column(self, c: Tensor) -> Tensor:
        """[B] -> [B, 1, ...]."""
        return c.reshape(-1, *(1,) * (self.x.ndim - 1))


def discrete(
    chain: Chain, steps: int | None, calls: int | None, variance: str, decoder: Decoder
) -> Terms:
    """The chain at t = i/N: its N - 1 divergences all, or estimated from `calls` of them."""
    process, batch = chain.model.process, len(chain.x)
    n = steps or len(getattr(process, "betas", ())) or chain.model.steps
    t = process.t_max * torch.arange(1, n + 1, dtype=torch.float64, device=chain.x.device) / n
    tabled = isinstance(process, TabledVP) or variance == "learned"
    after = float(t[1]) if tabled else None
    last, spread = _reconstruction(chain, t[0], after, variance, decoder)
    prior = chain.prior(float(t[-1]))

    def divergence(i: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        return _divergence(chain, t[i - 1], t[i], variance, draw)

    if calls is None or calls >= n - 1:
        drawn, closed = [], []
        for i in range(n - 1, 0, -1):  # from the noise to the data, as a sampler goes
            parts = divergence(torch.full((batch,), i, device=t.device), i + DRAWS)
            drawn.append(parts[0])
            closed.append(parts[1])
        noise, table = torch.stack(drawn, 1), torch.stack(closed, 1)
        return Terms(prior, (noise + table).flip(1), last, _roughness(noise) + spread, t[1:])

    def place(v: Tensor) -> Tensor:
        return (v * (n - 1)).long().clamp(max=n - 2) + 1

    def integrand(v: Tensor, draw: int) -> Tensor:
        return (n - 1) * divergence(place(v), draw)[0]

    found = integrate_by_importance(integrand, calls, chain.seed, chain.ids, draw0=DRAWS)
    exact = [_closed(chain, t[i - 1], t[i], variance) for i in range(1, n)]
    edges = (
        torch.linspace(0, n - 1, min(ROWS, n - 1) + 1, dtype=torch.float64, device="cpu")
        .round()
        .long()
    )
    row = torch.bucketize(place(found.where), edges.to(t.device)) - 1
    table = _gather(found.shares, row, len(edges) - 1)
    whole = torch.nn.functional.pad(torch.stack(exact, 1).cumsum(1), (1, 0))
    table = table + whole[:, edges].diff(dim=1)
    return Terms(prior, table, last, found.variance + spread, t[edges[1:]])


def continuous(
    chain: Chain, calls: int, start: float, pilot: bool, form: str, decoder: Decoder
) -> Terms:
    """The integral over lambda, with the two ends of Kingma et al. or as I-MMSE."""
    process, x = chain.model.process, chain.x
    top = float(process.log_snr(start))
    bottom = process.noisiest_log_snr

    def time(v: Tensor) -> Tensor:
        return process.inverse_log_snr(bottom + v * (top - bottom)).clamp(start, process.t_max)

    def integrand(v: Tensor, draw: int) -> Tensor:
        weight = (top - bottom) * torch.exp(2 * (bottom + v * (top - bottom)))
        return weight * chain.error(time(v), draw)[0]

    found = integrate_by_importance(integrand, calls, chain.seed, chain.ids, pilot, DRAWS)
    edges = torch.linspace(0, 1, ROWS + 1, dtype=torch.float64, device=x.device)
    row = (found.where * ROWS).long().clamp(max=ROWS - 1)
    # from the data to the noise, as in discrete time
    table = _gather(found.shares, row, ROWS).flip(1)
    times = time(0.5 * (edges[1:] + edges[:-1])).flip(0)
    if form == "i-mmse":
        reference = chain.gauss_nll()
        return Terms(reference, table, torch.zeros_like(reference), found.variance, times)
    y = torch.exp(-2 * (bottom + edges.flip(0) * (top - bottom)))
    clean = torch.tensor(start, dtype=torch.float64, device=x.device)
    last, spread = _reconstruction(chain, clean, None, "small", decoder)
    end = float(process.inverse_log_snr(as_float64(bottom)).clamp(max=process.t_max))
    table = table + chain.gauss_between(y)
    return Terms(chain.prior(end), table, last, found.variance + spread, times)


def _divergence(
    chain: Chain, s: Tensor, t: Tensor, variance: str, draw: int
) -> tuple[Tensor, Tensor]:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) at s < t [B], nats: (the part that is noisy, the part
    that is not), [B] each."""
    if variance != "learned":
        miss, _ = chain.error(t, draw)
        return _weight(chain, s, t, variance) * miss, _closed(chain, s, t, variance)
    chain.calls += 1
    q = posterior(chain.model.process, s, t)
    eps, x_t = chain.noisy(t, draw)
    data, o = data_and_variance(chain.model, x_t, t, **chain.cond)
    small, large, b = (chain.column(c) for c in (q.small, q.large, q.b))
    r = 0.5 * (1 + o.double())
    log_ratio = r * (large / small).log()  # log v_p/v_q (Nichol & Dhariwal 2021, 15)
    off = (b * (chain.x - data).double()).square() / small
    kl = 0.5 * (log_ratio + (1 + off) * torch.exp(-log_ratio) - 1)
    gauss = _weight(chain, s, t, variance) * chain.reference(t, eps)
    return kl.flatten(1).sum(1) - gauss, _closed(chain, s, t, variance)


def _weight(chain: Chain, s: Tensor, t: Tensor, variance: str) -> Tensor:
    """What |x_0 - D|^2 counts in the divergence, (SNR_s - SNR_t)/(2 r)."""
    process = chain.model.process
    snr_s, snr_t = (torch.exp(2 * process.log_snr(v)) for v in (s, t))
    return 0.5 * (snr_s - snr_t) / _ratio(chain, s, t, variance)


def _closed(chain: Chain, s: Tensor, t: Tensor, variance: str) -> Tensor:
    """The divergence's part without noise: of the variances, and of the Gaussian reference."""
    reference = _weight(chain, s, t, variance) * chain.gauss(t)
    if variance == "learned":
        return reference
    r = _ratio(chain, s, t, variance)
    return reference + 0.5 * chain.d * (r.log() + 1 / r - 1)


def _ratio(chain: Chain, s: Tensor, t: Tensor, variance: str) -> Tensor:
    """r = v_p/v_q; for learned variances that of o = 0, for the reference alone."""
    q = posterior(chain.model.process, s, t)
    if variance == "small":
        return torch.ones_like(q.small)
    return q.large / q.small if variance == "large" else (q.large / q.small).sqrt()


def _reconstruction(
    chain: Chain, t: Tensor, after: float | None, variance: str, decoder: Decoder
) -> tuple[Tensor, Tensor]:
    """-log p(x_0 | x_t), the mean of a few draws, and the variance of that mean: [B] nats.

    p is Gaussian about D of variance sigma^2/alpha^2; for a table of betas, of beta~ of the step
    `after` -> t ('learned': between it and beta_t), as in the code of Improved DDPM.
    """
    process, found = chain.model.process, []
    width2 = torch.exp(-2 * process.log_snr(t))
    if after is not None:
        width2 = posterior(process, t, after).small
    for draw in range(DRAWS):
        times = t.expand(len(chain.x))
        if decoder.kind == "vdm":
            noisy = (chain.noisy(times, draw)[1] / process.alpha(t)).double()
            nll = flat_decoder_nll(
                chain.x.double(), noisy, math.exp(-float(process.log_snr(t))), *decoder[1:]
            )
            found.append(nll.flatten(1).sum(1))
            continue
        if variance == "learned":
            chain.calls += 1
            data, o = data_and_variance(
                chain.model, chain.noisy(times, draw)[1], times, **chain.cond
            )
            r = 0.5 * (1 + o.double())
            width = torch.exp(0.5 * (r * process.sigma(t).square().log() + (1 - r) * width2.log()))
        else:
            miss, data = chain.error(times, draw)
            width = width2.sqrt()
            if not decoder.spacing:
                constant = 0.5 * chain.d * torch.log(2 * math.pi * width2)
                found.append(0.5 * (miss + chain.gauss(t)) / width2 + constant)
                continue
        nll = decoder_nll(chain.x.double(), data.double(), width, *decoder[1:])
        found.append(nll.flatten(1).sum(1))
    draws = torch.stack(found)
    return draws.mean(0), draws.var(0) / DRAWS


def _gather(shares: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sums of shares [B, K] by their row [B, K]: [B, rows]; in one order on every device."""
    return torch.stack([torch.where(row == j, shares, 0.0).sum(1) for j in range(rows)], 1)


def _roughness(terms: Tensor) -> Tensor:
    """Variance of the sum of independent terms with smooth means, [B]: half the squared steps,
    too large by what the means themselves change from step to step."""
    steps = terms.diff(dim=1).square()
    return 0.5 * steps.sum(1) * terms.shape[1] / max(1, steps.shape[1])
