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
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser, TabledVP, notebook
from ...models.statistics import Statistics
from ...models.variational import VarianceHead
from .. import arguments
from ..flow import start_time
from ..outcome import Status, raise_if_failed
from .elbo_terms import Chain, Decoder, Terms, continuous, discrete

if TYPE_CHECKING:
    from typing_extensions import Unpack

LOG2 = math.log(2)
MOST_STEPS = 10**6  # a chain is held in memory, and takes so many network calls
FORMS = ("discrete", "continuous", "i-mmse")
VARIANCES = ("small", "large", "learned")
DECODERS = {"gaussian": "DDPM's discretised Gaussian", "vdm": "VDM's softmax"}


@dataclass(frozen=True, eq=False)
class Elbo:
    """What `elbo` found: float64 [B] in bits/dim, an upper bound on -log2 p(x_0)/d.

    bits_per_dim = prior + diffusion + reconstruction (L_T, sum of L_t, L_0).

    std_error: of bits_per_dim, from the noise drawn, and too large for a coarse chain of which all
        terms are taken, whose means differ from step to step.
    log_prob: the same bound as nats, log p(x_0) >= log_prob.
    times: float64 [K], rising; terms [B, K]: the diffusion by time, which add up to it; each L_t
        where all were taken, else equal parts of lambda or of the chain, whose middle or end is
        named.
    form: 'discrete', 'continuous' or 'i-mmse'; with the last, prior is the Gaussian's -log2 p/d,
        terms what is added to it, and reconstruction 0.
    convention: how levels were counted.
    nfe: calls.
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

    def _facts(self) -> notebook.Facts:
        values = (self.prior, self.diffusion, self.reconstruction, self.bits_per_dim)
        error = float(self.std_error.square().sum().sqrt()) / len(self.std_error)
        means = [*(float(v.mean()) for v in values), error]
        names = (*self._names(), "total", "+-")
        return [(n, f"{mean:.4f}") for n, mean in zip(names, means, strict=True)]

    def __repr__(self) -> str:
        lines = [f"{name:24s}{value:>10}" for name, value in self._facts()]
        return "\n".join([f"mean bits/dim, {self.convention}", *lines])

    def _repr_html_(self) -> str:
        return notebook.table(f"mean bits/dim, {self.convention}", (), self._facts())

    def _names(self) -> tuple[str, str, str]:
        if self.form == "i-mmse":
            return "Gaussian", "network - Gaussian", "(no ends)"
        return "L_T prior", "L_t diffusion", "L_0 reconstruction"


class ElboOptions(TypedDict, total=False):
    """The options of `elbo` for type checkers: the fields of `Bound` but time and steps."""

    calls: int | None
    variance: str | None
    spacing: float
    bounds: tuple[float, float]
    decoder: str
    pilot: bool
    t_min: float | None
    reference: Statistics | None


@dataclass(frozen=True, eq=False)
class Bound:
    """Which bound `elbo` computes, and from what: checked when made, before any network call.

    time: 'discrete', 'continuous', or 'i-mmse': a density's, without the two ends, so that what
        lies below t_min is left out. Default: 'discrete' for tabled processes and networks that are
        told an index, else 'continuous'.
    steps: in discrete time the N of the chain t = i/N, 2 to 10^6, by default the network's own;
        otherwise the number of network calls, 8 to 10^6, by default 100.
    calls: estimate the sum over a discrete chain from so many of its terms, drawn by importance,
        >= 8. Default: all are taken.
    variance: of p(x_s | x_t) in discrete time: 'learned' (default for a `VarianceHead`), 'small'
        (beta~, the posterior's; default) or 'large' (beta, DDPM's fixedlarge).
    spacing: distance of the data's levels, e.g. 2/255; the bound is then on the probability of the
        levels. Default 0: on a density.
    bounds: lowest and highest level, (lo, hi). Default (-1, 1).
    decoder: 'gaussian' (default), DDPM's discretised Gaussian, whose end levels take the tails, or
        'vdm', the softmax over levels of Kingma et al. (2021).
    pilot: draw lambda by importance (default), or uniformly if False.
    t_min: where time starts, in (0, t_max); default as of `log_prob`.
    reference: mean and covariance of data like x, `Statistics.of(data)`: the closer, the smaller
        the error. Default: mean 0 and variance sigma_data^2. A full covariance is a matrix product,
        which rounds otherwise in another batch.

    Raises ValueError or TypeError for an option that does not fit.
    """

    time: str | None = None
    steps: int | None = None
    calls: int | None = None
    variance: str | None = None
    spacing: float = 0.0
    bounds: tuple[float, float] = (-1.0, 1.0)
    decoder: str = "gaussian"
    pilot: bool = True
    t_min: float | None = None
    reference: Statistics | None = None

    def __post_init__(self) -> None:
        for name, known in (("time", FORMS), ("variance", VARIANCES)):
            if getattr(self, name) is not None:
                arguments.choice(name, getattr(self, name), known)
        arguments.choice("decoder", self.decoder, DECODERS)
        arguments.flag("pilot", self.pilot)
        if self.t_min is not None:
            arguments.positive("t_min", self.t_min)
        for name, least in (("steps", 2), ("calls", 8)):
            if getattr(self, name) is not None:
                arguments.whole(name, getattr(self, name), least, MOST_STEPS)
        if self.reference is not None and not isinstance(self.reference, Statistics):
            kind = type(self.reference).__name__
            raise InvalidType(f"reference must be a Statistics; got {kind}")
        if not isinstance(self.bounds, tuple | list) or len(self.bounds) != 2:
            raise InvalidType(f"bounds must be (lo, hi); got {self.bounds!r}")
        lo, hi = (arguments.finite(f"bounds[{i}]", v) for i, v in enumerate(self.bounds))
        if not lo < hi:
            raise InvalidValue(f"bounds must be (lo, hi) with lo < hi; got {self.bounds}")
        if not 0 <= arguments.finite("spacing", self.spacing) <= hi - lo:
            raise InvalidValue(
                f"spacing must lie in [0, {hi - lo:g}], the width of bounds; got {self.spacing}"
            )
        if self.time == "i-mmse" and self.spacing:
            raise InvalidValue(
                "time='i-mmse' is a density's: dequantise the data and leave spacing 0; "
                f"got {self.spacing}"
            )
        if self.decoder == "vdm" and not self.spacing:
            raise InvalidValue("decoder='vdm' needs the spacing of the data's levels; got 0")

    def of(self, model: Denoiser) -> Bound:
        """The same with what depends on the model decided."""
        form = self.time or natural_time(model)
        head = isinstance(model.net, VarianceHead)
        variance = self.variance or ("learned" if head else "small")
        if form != "discrete":
            if self.calls is not None:
                raise InvalidValue(
                    f"calls needs time='discrete'; got {self.calls} with time={form!r}: give steps"
                )
            if self.steps is not None and self.steps < 8:
                raise InvalidValue(f"steps must be >= 8 in {form} time; got {self.steps}")
        elif variance == "learned" and not head:
            raise InvalidType(
                f"variance='learned' needs a VarianceHead as net; got {type(model.net).__name__}"
            )
        return replace(self, time=form, variance=variance)


def elbo(
    model: Denoiser,
    x: Tensor,
    time: str | None = None,
    steps: int | None = None,
    *,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
    on_failure: str = "raise",
    **options: Unpack[ElboOptions],
) -> Elbo:
    """A lower bound on log p of each sample, with its standard error and its terms.

        log p(x_0) >= -(L_T + sum_t L_t + L_0)       (Ho et al. 2020, 5; Kingma et al. 2021, 15)

    model: a `Denoiser`.
    x: data [B, *event], float32 or float64; within `bounds` where it has levels.
    time: 'discrete', 'continuous' or 'i-mmse'; see `Bound`.
    steps: of the discrete chain, or network calls in continuous time; see `Bound`.
    seed: of the noise, a 64-bit int or int64 [B].
    sample_ids: names of the samples, integers [B]; default 0 ... B - 1.
    cond: keyword arguments of the network; rows follow their samples.
    on_failure: 'raise' a SolverError where the network returned NaN or Inf, or 'return' with
        status.
    options: the other fields of `Bound`.

    Raises ValueError or TypeError for what does not fit, before any call.
    """
    known = [f.name for f in fields(Bound) if f.name not in ("time", "steps")]
    arguments.keywords("elbo", options, known)
    bound = Bound(time, steps, **options)
    arguments.data(model, x)
    arguments.on_failure(on_failure)
    seed = arguments.seed_of(seed, len(x), x.device)
    ids = arguments.sample_ids(sample_ids, len(x), x.device)
    bound = bound.of(model)
    form, variance = str(bound.time), str(bound.variance)
    _check_range(x, bound)
    start = start_time(model, bound.t_min, x.dtype)
    # a density needs variances: none below the blur at t_min
    least = math.exp(-2 * float(model.process.log_snr(start))) if form == "i-mmse" else 0.0
    law = _law(model, x, bound.reference, least)
    chain = Chain(model, x, cond, seed, ids, law)
    how = Decoder(bound.decoder, bound.spacing, bound.bounds)
    with torch.no_grad():
        if form == "discrete":
            terms = discrete(chain, bound.steps, bound.calls, variance, how)
        else:
            terms = continuous(chain, bound.steps or 100, start, bound.pilot, form, how)
    result = _report(terms, chain, form, _convention(how))
    raise_if_failed(result.status, result, on_failure)
    return result


def _law(model: Denoiser, x: Tensor, reference: Statistics | None, least: float) -> Statistics:
    """The Gaussian reference, of variances >= least."""
    d = x[0].numel()
    if reference is None:
        s2 = torch.full((d,), model.sigma_data**2, dtype=torch.float64, device="cpu")
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


def _check_range(x: Tensor, bound: Bound) -> None:
    lo, hi = bound.bounds
    slack = 1e-5 * (hi - lo)
    if bound.spacing and (float(x.min()) < lo - slack or float(x.max()) > hi + slack):
        raise InvalidValue(
            f"x must lie in bounds={bound.bounds}; got {float(x.min()):g} to {float(x.max()):g}"
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
        total / unit,
        terms.prior / unit,
        diffusion / unit,
        terms.reconstruction / unit,
        terms.variance.sqrt() / unit,
        -total,
        terms.times,
        terms.terms / unit,
        chain.calls,
        status,
        form,
        convention,
    )
