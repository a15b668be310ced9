"""Evidence lower bounds: -log p(x_0) <= L_T + sum L_t + L_0, with standard errors.

Discrete time, 0 < t_1 < ... < t_N (Ho et al. 2020, 5; Nichol & Dhariwal 2021), s the time before t:

    L_T = KL(q(x_T | x_0) || N(0, sigma_T^2)),     L_0 = -log p(x_0 | x_{t_1}),
    L_t = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) = 1/2 (e^{2 lambda_s} - e^{2 lambda_t}) |x_0 - D|^2

for p with the posterior's own variance v; for v' = r v it is 1/2 [d (log r + 1/r - 1)] plus that
over r, and learned variances, log v' = o' log beta + (1 - o') log beta~ with o' = (1 + o)/2 and o
the second half of the network's output, have an r for each component. Continuous time (Kingma et
al. 2021, 15) is the limit

    sum L_t -> int |eps - eps^|^2 dlambda,     eps - eps^ = e^lambda (D - x_0),

which for the exact D is no bound but log p itself, as I-MMSE says outright (Kong et al. 2023, 9):

    -log p(x_0) = -log N(x_0; 0, s^2) + int e^{2 lambda} (E|x_0 - D|^2 - E|x_0 - G|^2) dlambda

with G the denoiser of N(0, s^2), or of any Gaussian law, `reference`. lambda is drawn by
importance, see importance.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser, TabledVP
from ...models.statistics import Statistics
from ...models.variational import VarianceHead
from .. import arguments
from ..flow import start_time
from ..outcome import Status, raise_if_failed
from .elbo_terms import Chain, Decoder, Terms, continuous, discrete

LOG2 = math.log(2)
FORMS = ("discrete", "continuous", "i-mmse")
VARIANCES = ("small", "large", "learned")
DECODERS = {"gaussian": "DDPM's discretised Gaussian", "vdm": "VDM's softmax"}


@dataclass(frozen=True, eq=False)
class Elbo:
    """What `elbo` found: float64 [B] in bits/dim, an upper bound on -log2 p(x_0)/d.

    bits_per_dim = prior + diffusion + reconstruction (L_T, sum of L_t, L_0); std_error: of
    bits_per_dim, from the noise drawn, and too large for a coarse chain of which all terms are taken,
    whose means differ from step to step. log_prob: the same bound as nats, log p(x_0) >= log_prob.
    times: float64 [K], rising; terms [B, K]: the diffusion by time, which add up to it; each L_t
    where all were taken, else equal parts of lambda or of the chain, whose middle or end is named.
    form: 'discrete', 'continuous' or 'i-mmse'; with the last, prior is the Gaussian's -log2 p/d,
    terms what is added to it, and reconstruction 0. convention: how levels were counted. nfe: calls.
    status: int64 [B], codes of `Status`.
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
    status: Tensor
    form: str
    convention: str

    def table(self) -> str:
        """All terms, their mean over the samples in bits/dim and the sum so far."""
        means = self.terms.mean(0).tolist()
        label = "L_t" if self.form == "discrete" else "lambda about t"
        rows = [(self._names()[0], float(self.prior.mean()))]
        found = zip(self.times.tolist(), means, strict=True)
        rows += [(f"{label}={t:.4g}", value) for t, value in reversed(list(found))]
        rows += [(self._names()[2], float(self.reconstruction.mean()))]
        lines, total = [f"{'mean bits/dim':24s}{'term':>12s}{'sum':>12s}"], 0.0
        for name, value in rows:
            total += value
            lines.append(f"{name:24s}{value:12.5f}{total:12.5f}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        values = (self.prior, self.diffusion, self.reconstruction, self.bits_per_dim)
        names = (*self._names(), "total")
        lines = [f"{n:24s}{float(v.mean()):10.4f}" for n, v in zip(names, values, strict=True)]
        error = float(self.std_error.square().sum().sqrt()) / len(self.std_error)
        head = f"mean bits/dim, {self.convention}"
        return "\n".join([head, *lines, f"{'+-':24s}{error:10.4f}"])

    def _names(self) -> tuple[str, str, str]:
        if self.form == "i-mmse":
            return "Gaussian", "network - Gaussian", "(no ends)"
        return "L_T prior", "L_t diffusion", "L_0 reconstruction"


def elbo(
    model: Denoiser,
    x: Tensor,
    time: str | None = None,
    steps: int | None = None,
    *,
    calls: int | None = None,
    variance: str | None = None,
    spacing: float = 0.0,
    bounds: tuple[float, float] = (-1.0, 1.0),
    decoder: str = "gaussian",
    pilot: bool = True,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
    reference: Statistics | None = None,
    on_failure: str = "raise",
) -> Elbo:
    """A lower bound on log p of each sample of x [B, *event], float32 or float64.

    time: 'discrete' (default for tabled processes and time='index' networks), 'continuous', or
    'i-mmse': a density's, without the two ends, so that what lies below t_min is left out. steps: N
    of the discrete chain t = i/N, by default the network's own; otherwise the calls (100). calls:
    estimate the sum over the chain from so many of its terms, drawn by importance; by default all
    are taken. variance: 'learned' (default for a `VarianceHead`), 'small' (beta~, the posterior's)
    or 'large' (beta, DDPM's fixedlarge); discrete only. spacing: distance of the data's levels,
    e.g. 2/255, on `bounds`; the bound is then on the probability of the levels, by DDPM's
    discretised Gaussian, whose end levels take the tails, or with decoder='vdm' by Kingma et al.'s
    softmax over levels. 0: on a density. pilot: draw lambda by importance; False: uniformly.
    reference: `Statistics.of(data)` of data like x, which about halve the error for the same calls
    (a full covariance is a matrix product, which rounds otherwise in another batch); by default
    mean 0 and variance sigma_data^2. seed, sample_ids: of the noise. on_failure: 'raise' a
    SolverError where the network returned NaN or Inf, or 'return' with status.

    Raises ValueError or TypeError for what does not fit, before any call.
    """
    arguments.denoiser(model)
    arguments.event_batch("x", x)
    arguments.on_failure(on_failure)
    form = time or natural_time(model)
    variance = variance or ("learned" if isinstance(model.net, VarianceHead) else "small")
    _check_options(model, form, steps, calls, variance, decoder, spacing)
    _check_range(x, spacing, bounds)
    start = start_time(model, t_min)
    # a density needs variances: none below the blur at t_min
    least = math.exp(-2 * float(model.process.log_snr(start))) if form == "i-mmse" else 0.0
    law = _law(model, x, reference, least)
    chain = Chain(model, x, cond, seed, arguments.sample_ids(sample_ids, len(x)), law)
    how = Decoder(decoder, spacing, bounds)
    with torch.no_grad(), arguments.naming_dtypes(model, x):
        if form == "discrete":
            terms = discrete(chain, steps, calls, variance, how)
        else:
            terms = continuous(chain, steps or 100, start, pilot, form, how)
    result = _report(terms, chain, form, _convention(how))
    raise_if_failed(result.status, result, on_failure)
    return result


def _law(model: Denoiser, x: Tensor, reference: Statistics | None, least: float) -> Statistics:
    """The Gaussian reference, of variances >= least."""
    d = x[0].numel()
    if reference is None:
        s2 = torch.full((d,), model.sigma_data**2, dtype=torch.float64)
        return Statistics(torch.zeros_like(s2), s2)
    if reference.mean.numel() != d:
        raise InvalidValue(
            f"reference must be of {d} components, as x is; got {reference.mean.numel()}"
        )
    return Statistics(reference.mean, reference.variances.clamp(min=least), reference.basis)


def natural_time(model: Denoiser) -> str:
    """'discrete' for tabled processes and networks that are told an index, else 'continuous'."""
    tabled = isinstance(model.process, TabledVP) or model.time == "index"
    return "discrete" if tabled else "continuous"


def _check_options(
    model: Denoiser, form: str, steps: int | None, calls: int | None, variance: str, decoder: str,
    spacing: float,
) -> None:  # fmt: skip
    for name, value, known in (
        ("time", form, FORMS), ("variance", variance, VARIANCES), ("decoder", decoder, DECODERS),
    ):  # fmt: skip
        if value not in known:
            raise InvalidValue(f"{name} must be one of {', '.join(known)}; got {value!r}")
    least = 2 if form == "discrete" else 8
    if steps is not None and steps < least:
        raise InvalidValue(f"steps must be >= {least} in {form} time; got {steps}")
    if calls is not None and (form != "discrete" or calls < 8):
        raise InvalidValue(f"calls needs time='discrete' and >= 8; got {calls} with time={form!r}")
    if variance == "learned" and form == "discrete" and not isinstance(model.net, VarianceHead):
        raise InvalidType(
            f"variance='learned' needs a VarianceHead as net; got {type(model.net).__name__}"
        )
    if form == "i-mmse" and spacing:
        raise InvalidValue(
            f"time='i-mmse' is a density's: dequantise the data and leave spacing 0; got {spacing}"
        )
    if decoder == "vdm" and not spacing:
        raise InvalidValue("decoder='vdm' needs the spacing of the data's levels; got 0")


def _check_range(x: Tensor, spacing: float, bounds: tuple[float, float]) -> None:
    if spacing < 0 or not bounds[0] < bounds[1]:
        raise InvalidValue(f"spacing must be >= 0 and bounds (lo, hi); got {spacing}, {bounds}")
    slack = 1e-5 * (bounds[1] - bounds[0])
    if spacing and (float(x.min()) < bounds[0] - slack or float(x.max()) > bounds[1] + slack):
        raise InvalidValue(
            f"x must lie in bounds={bounds}; got {float(x.min()):g} to {float(x.max()):g}"
        )


def _convention(decoder: Decoder) -> str:
    if not decoder.spacing:
        return "of a density"
    return f"of levels {decoder.spacing:.6g} apart by {DECODERS[decoder.kind]} decoder, no offset"


def _report(terms: Terms, chain: Chain, form: str, convention: str) -> Elbo:
    diffusion = terms.terms.sum(1)
    total = terms.prior + diffusion + terms.reconstruction
    unit = chain.d * LOG2
    bad = int(Status.NETWORK_NOT_FINITE)
    status = torch.where(torch.isfinite(total), 0, bad)
    return Elbo(
        total / unit, terms.prior / unit, diffusion / unit, terms.reconstruction / unit,
        terms.variance.sqrt() / unit, -total, terms.times, terms.terms / unit, chain.calls,
        status, form, convention,
    )  # fmt: skip
