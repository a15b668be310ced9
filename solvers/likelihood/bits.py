"""Bits/dim of data with levels: dequantised, averaged over repeats, by the flow or by the bound.

    bits/dim = -1/(d ln 2) [ log p(y) - log q(u) ] + offset,      offset = -log2 spacing

is for each draw of u a bound, in the mean, on -log2 P(level)/d: see models/dequantize.py for the
noise and for the two conventions of where levels lie, which differ by up to 0.006 bits/dim at 256
levels and give score_sde's offsets 7 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.streams import DEQUANTIZE_HOOK
from ...models import Denoiser, notebook
from ...models.dequantize import CHOICES, Hook, Levels, ask, dequantised, fill
from .. import arguments
from ..outcome import Status, raise_if_failed, worse
from ..showing import counts, ended
from .elbo import DECODERS, Bound, ElboOptions, elbo, natural_time
from .log_prob import log_prob
from .options import Likelihood, SharedOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

METHODS = ("ode", "elbo")
APART = -7046029254386353131  # between the seeds of two repeats: an odd number, 2^64/golden ratio
WORDS = {
    Status.TARGET_NOT_MET: "target_std_error was not reached: raise it or max_probes, or lower "
    "rtol and atol",
}
PILOT, MOST = 64, 4096  # calls of a bound that has a target
ASIDE = 1 << 32  # between a repeat's seed and its pilot's, in repeats


class BitsOptions(SharedOptions, ElboOptions, total=False):
    """What `bits_per_dim` hands on to `log_prob` or `elbo`, for type checkers."""

    time: str | None
    steps: int | None
    cond: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Bits:
    """What `bits_per_dim` found. Tensors are [B], float64, in bits/dim, unless said otherwise.

    bits_per_dim: mean over the repeats, offset included.
    std_error: standard error of that mean, from the spread of the repeats, and at least what their
        own probes or draws say. The noise of the dequantisation is not in it with one repeat.
    solver_error: what the path adds, `LogProb.solver_error` of the worst repeat; the repeats share
        it, so their spread does not show it. 0 for the bound.
    repeats: [B, R], each by itself.
    nfe: int64, network evaluations of all repeats.
    status: int64, codes of `Status`.
    offset: what was added for the spacing of the levels, bits/dim.
    convention: what was counted, in words.
    """

    bits_per_dim: Tensor
    std_error: Tensor
    solver_error: Tensor
    repeats: Tensor
    nfe: Tensor
    status: Tensor
    offset: float
    convention: str

    def __repr__(self) -> str:
        why = "".join(f"; {how}" for how in ended(self.status, WORDS))
        return f"{self._mean()} bits/dim, {self.convention}{why}"

    def _repr_html_(self) -> str:
        solver = float(self.solver_error.mean())
        facts = [
            ("bits/dim", f"{self._mean()}, mean of {len(self.status)}"),
            ("solver_error", f"{solver:.4f}"),
            ("repeats", str(self.repeats.shape[1])),
            ("nfe", f"{counts(self.nfe)} network calls a sample"),
            ("status", "; ".join(ended(self.status, WORDS)) or "all finished"),
        ]
        return notebook.table(f"Bits, {self.convention}", (), facts)

    def _mean(self) -> str:
        error = float(self.std_error.square().sum().sqrt()) / len(self.std_error)
        return f"{float(self.bits_per_dim.mean()):.4f} +- {error:.4f}"


def bits_per_dim(
    model: Denoiser,
    x: Tensor,
    levels: Levels | None = None,
    *,
    dequantize: str | Hook | None = None,
    by: str = "ode",
    repeats: int = 1,
    target_std_error: float | None = None,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    on_failure: str = "raise",
    **options: Unpack[BitsOptions],
) -> Bits:
    """Bits/dim of data, from the flow's log p or from the bound.

        -1/(d ln 2) [log p(y) - log q(u)] - log2 spacing,    y = x + u dequantised (Ho et al. 2019)

    model: a `Denoiser`.
    x: data [B, *event]: integers, floats on `levels`, or floats of a density.
    levels: where the levels lie. Default: 256 on [-1, 1] for uint8, none for floats.
    dequantize: to be chosen where there are levels: 'uniform', a hook (variational), or 'none'.
        That is the density at the levels plus the offset by 'ode', and a discretised decoder by
        'elbo'.
    by: 'ode' (`log_prob`) or 'elbo' (`elbo`).
    repeats: how often, each with noise and probes of its own, >= 1.
    target_std_error: what std_error of the mean and solver_error are to reach, bits/dim. The bound
        takes at most 4096 calls a repeat, or the whole chain. A datum that misses it has status
        TARGET_NOT_MET.
    seed, sample_ids: a datum's draws depend on these alone.
    on_failure: 'raise' a SolverError, or 'return' with status.
    options: of `log_prob` or `elbo`, cond among them. By 'ode' prior is 'normal' and truncation
        False unless given, as published bits/dim have it: of dequantised data, which end at their
        bins' edges, no expansion in the noise at t_min holds.

    Raises ValueError or TypeError for what does not fit, before any network call.
    """
    x, levels = _placed(x, levels, dequantize)
    arguments.choice("by", by, METHODS)
    repeats = arguments.whole("repeats", repeats)
    arguments.data(model, x)
    arguments.on_failure(on_failure)
    how: dict[str, Any] = dict(options)
    if by == "ode":
        how = {"prior": "normal", "truncation": False, **how}
    if by == "elbo" and levels is not None and dequantize == "none":
        how = {"spacing": levels.spacing, "bounds": levels.bounds, **how}
    _check_options(model, by, how)
    if target_std_error is not None:
        arguments.positive("target_std_error", target_std_error)
        if by == "ode":  # repeats share it: their mean errs no less
            how = {"target_solver_error": target_std_error, **how}
        target_std_error = target_std_error * math.sqrt(repeats)
    seed = arguments.seed_of(seed, len(x), x.device)
    ids = arguments.sample_ids(sample_ids, len(x), x.device)
    bits, errors = [], []
    solver = torch.zeros(len(x), dtype=torch.float64, device="cpu")
    nfe, status = torch.zeros(2, len(x), dtype=torch.int64, device="cpu")
    for r in range(repeats):
        own = _seed(seed, r)
        y, log_q = _dequantised(x, levels, dequantize, own, ids)
        if by == "ode":
            found = log_prob(
                model,
                y,
                target_std_error=target_std_error,
                seed=own,
                sample_ids=ids,
                on_failure="return",
                **how,
            )
            parts = found.log_prob, found.bits_std_error, found.nfe, found.status
            path = found.solver_error.cpu()
            solver = torch.maximum(solver, path / (x[0].numel() * math.log(2)))
        else:
            parts = _bound(model, y, target_std_error, own, ids, how)
        bits.append((log_q - parts[0].cpu()) / (x[0].numel() * math.log(2)))
        errors.append(parts[1].cpu())
        nfe = nfe + parts[2].cpu()
        status = worse(status, parts[3].cpu())
    table, error = torch.stack(bits, 1), torch.stack(errors, 1)
    discretised = by == "elbo" and dequantize == "none"
    offset = 0.0 if levels is None or discretised else levels.offset
    table = table + offset
    variance = error.square().mean(1)
    if repeats > 1:
        variance = torch.maximum(variance, table.var(1))
    decoder = str(how.get("decoder", "gaussian")) if discretised else ""
    words = _convention(levels, dequantize, decoder)
    error = (variance / repeats).sqrt()
    result = Bits(table.mean(1), error, solver, table, nfe, status, offset, words)
    raise_if_failed(status, result, on_failure, WORDS)
    return result


def _check_options(model: Denoiser, by: str, options: dict[str, Any]) -> None:
    """Raises for what `log_prob` or `elbo` would refuse: a hook of the dequantisation is called
    before they are."""
    kind = Likelihood if by == "ode" else Bound
    arguments.keywords(
        f"bits_per_dim(by={by!r})", options, [f.name for f in fields(kind)] + ["cond"]
    )
    made = kind(**{name: value for name, value in options.items() if name != "cond"})
    if isinstance(made, Bound):
        made.of(model)


def _placed(
    x: Tensor, levels: Levels | None, dequantize: str | Hook | None
) -> tuple[Tensor, Levels | None]:
    """x as floats and its levels, with the choice checked."""
    if not isinstance(x, Tensor):
        raise InvalidType(f"x must be a tensor [B, ...]; got {type(x).__name__}")
    if levels is None and not x.is_floating_point():
        if x.dtype != torch.uint8:
            raise InvalidValue(
                f"x holds {x.dtype}: say how many levels it has, levels=Levels(count)"
            )
        levels = Levels()
    if isinstance(dequantize, str) and dequantize not in ("uniform", "none"):
        raise InvalidValue(f"dequantize must be {CHOICES}; got {dequantize!r}")
    if levels is None:
        if dequantize not in (None, "none"):
            raise InvalidValue(
                f"dequantize={dequantize!r} needs levels: x holds {x.dtype}, a density's; "
                "give levels=Levels(count, range)"
            )
        return x, None
    if dequantize is None:
        raise InvalidValue(
            f"x has levels ({x.dtype}, {levels}), which have no density: choose "
            f"dequantize={CHOICES}"
        )
    if x.numel() == 0:
        raise InvalidValue(f"x must be [B, ...] with B >= 1; got {tuple(x.shape)}")
    return levels.centres(x), levels


def _dequantised(
    x: Tensor, levels: Levels | None, dequantize: str | Hook | None, seed: int | Tensor, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """(y, log q [B])."""
    none = torch.zeros(len(x), dtype=torch.float64, device="cpu")
    if levels is None or dequantize == "none":
        return x, none
    if not callable(dequantize):
        return dequantised(x, levels.spacing, seed, ids), none
    eps = normal(x.shape, seed, ids, **DEQUANTIZE_HOOK.at(), dtype=x.dtype, device=x.device)
    u, log_q = ask(dequantize, x, eps)
    return fill(x, levels.spacing, u.to(x.dtype)), log_q.cpu()


def _bound(
    model: Denoiser,
    y: Tensor,
    target: float | None,
    seed: int | Tensor,
    ids: Tensor,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p, std_error in bits/dim, nfe, status of the bound, [B] each.

    With a target the calls come from a pilot whose values are not used again: a power of 2 above
    (error/target)^2 times its own, so that a datum's value depends neither on its batch nor on how
    lucky its pilot was.
    """
    if target is None:
        found = elbo(model, y, seed=seed, sample_ids=ids, on_failure="return", **options)
        calls = torch.full((len(y),), found.nfe, device="cpu")
        return found.log_prob, found.std_error, calls, found.status
    discrete = (options.get("time") or natural_time(model)) == "discrete"
    name = "calls" if discrete else "steps"
    if name in options:
        raise InvalidValue(f"{name} follows from target_std_error; got both, {options[name]}")
    options = dict(options)
    model = model.told(options.pop("cond", None), len(y))
    pilot: dict[str, Any] = {**options, name: PILOT}
    first = elbo(model, y, seed=_seed(seed, ASIDE), sample_ids=ids, on_failure="return", **pilot)
    # twice what the pilot says, since it errs itself; 0 for a datum that failed
    wanted = torch.nan_to_num(2 * PILOT * (first.std_error / target).square())
    calls = (2 ** wanted.cpu().clamp(16, MOST).log2().ceil()).long()
    value, error = torch.empty(2, len(y), dtype=torch.float64, device="cpu")
    nfe, status = torch.full_like(calls, first.nfe), first.status.cpu()
    for count in sorted(set(calls.tolist())):
        rows = (calls == count).nonzero().flatten()
        part, some = model.rows(rows, len(y)), {**options, name: count}
        own = arguments.seeds_of(seed, rows)
        found = elbo(part, y[rows], seed=own, sample_ids=ids[rows], on_failure="return", **some)
        value[rows], error[rows] = found.log_prob.cpu(), found.std_error.cpu()
        nfe[rows] += found.nfe
        status[rows] = worse(status[rows], found.status.cpu())
    status = worse(status, torch.where(error > target, int(Status.TARGET_NOT_MET), 0))
    return value, error, nfe, status


def _seed(seed: int | Tensor, repeat: int) -> int | Tensor:
    """The seed of a repeat, 64 bits with wrap-around; repeat 0 has the caller's."""
    if isinstance(seed, Tensor):
        return seed + repeat * torch.tensor(APART, dtype=torch.int64, device=seed.device)
    return (seed + repeat * APART + (1 << 63)) % (1 << 64) - (1 << 63)


def _convention(levels: Levels | None, dequantize: str | Hook | None, decoder: str) -> str:
    if levels is None:
        return "of a density"
    if decoder:
        name = DECODERS[decoder]
        return f"{levels}: {name} decoder in place of the offset"
    if dequantize == "none":
        return f"{levels}: density at the levels, no bound"
    return f"{levels}: {'variational' if callable(dequantize) else 'uniform'} dequantisation"
