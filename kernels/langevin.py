"""The Langevin corrector with a step size set by the signal-to-noise ratio of each sample."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch, native, philox
from .checks import (
    as_numbers,
    as_sample_ids,
    as_seed,
    check_operands,
    check_streams,
    check_vector,
    sent,
)
from .errors import InvalidValue
from .linear import linear_step
from .linear_reference import compute_dtype
from .streams import as_draw, tag_of

NORMS = ("sample", "batch")


def _reference(
    x: Tensor,
    score: Tensor,
    gain: Tensor,
    seed: Tensor,
    sample_ids: Tensor | None,
    draw: int,
    tag: int,
    batch_mean: bool,
) -> Tensor:
    streams = philox.stream_table(x.shape[0], seed, sample_ids, draw, tag)
    z = philox.draw("normal", math.prod(x.shape[1:]), streams)
    return _updated(x, score, z, gain, batch_mean)


def _native(
    x: Tensor,
    score: Tensor,
    gain: Tensor,
    seed: Tensor,
    sample_ids: Tensor | None,
    draw: int,
    tag: int,
    batch_mean: bool,
) -> Tensor | None:
    library = native.library(x.numel())
    if library is None:
        return None
    z = torch.empty(x.shape[0], math.prod(x.shape[1:]), dtype=torch.float32, device="cpu")
    native.noise(library, z, seed, sample_ids, draw, tag)
    return _updated(x, score, z, gain, batch_mean)


def _updated(x: Tensor, score: Tensor, z: Tensor, gain: Tensor, batch_mean: bool) -> Tensor:
    """x + eps s + sqrt(2 eps) z with eps = gain |z|^2 / |s|^2; z [B, n], gain [1] or [B]."""
    dtype, batch = compute_dtype(x), x.shape[0]
    z = z.to(dtype)
    s = score.reshape(batch, -1).to(dtype)
    wide = torch.float64 if x.device.type == "cpu" else dtype  # not every device has float64
    squares = torch.stack([v.to(wide).square().sum(1) for v in (z, s)])  # [2, B]
    if batch_mean:
        squares = squares.sqrt().mean(1, keepdim=True).square()
    zz, ss = squares.to(dtype)
    eps = torch.where(ss > 0, gain.to(dtype) * zz / ss, 0.0).view(-1, 1)
    new = x.reshape(batch, -1).to(dtype) + eps * s + (2 * eps).sqrt() * z
    return new.view(x.shape).to(x.dtype)


def _check(
    x: Tensor,
    score: Tensor,
    gain: Tensor,
    seed: Tensor,
    sample_ids: Tensor | None,
    draw: int,
    tag: int,
    batch_mean: bool,
) -> None:
    check_operands(x, score=(score,))
    check_vector("gain", gain, compute_dtype(x), x.shape[0], x)
    check_streams(x, x.shape[0], seed, sample_ids, tag, draw)


_langevin_step = dispatch.define(
    "langevin_step",
    "(Tensor x, Tensor score, Tensor gain, Tensor seed, Tensor? sample_ids, int draw, int tag, "
    "bool batch_mean) -> Tensor",
    reference=_reference,
    native=_native,
    triton="triton_langevin:langevin_step",
    fake=dispatch.like,
    check=_check,
)


def langevin_step(
    x: Tensor,
    score: Tensor,
    *,
    snr: float | Tensor | None = None,
    step_size: float | Tensor | None = None,
    alpha: float | Tensor = 1.0,
    norm: str = "sample",
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    draw: int = 0,
    subdraw: int = 0,
) -> Tensor:
    """Unadjusted Langevin: x' = x + eps s + sqrt(2 eps) z, eps = 2 alpha (snr |z| / |s|)^2.

    x, score: [B, ...], floating. A sample whose score is 0 stays put.
    snr: signal-to-noise ratio of the equation, a number or [B]; no gradient flows with it.
    step_size: eps itself, a number or [B], as in annealed Langevin. Give this or snr.
    alpha: a number or [B], 1 for VE and the step's 1 - beta for VP.
    norm: 'sample' takes both norms of each sample alone; 'batch' takes their means over the batch,
        as score_sde does, so that a sample depends on its neighbours.
    seed, sample_ids, draw, subdraw: of z, as in `normal`; its purpose is "corrector".
    Returns x' in x's dtype. Raises ValueError unless exactly one of snr and step_size is given, or
    for operands that do not fit.
    Song et al., ICLR 2021, algorithms 4 and 5; Song & Ermon, NeurIPS 2019, algorithm 1.
    """
    check_operands(x, score=(score,))
    draw = as_draw(draw)
    if (snr is None) == (step_size is None):
        raise InvalidValue("give exactly one of snr and step_size")
    if norm not in NORMS:
        raise InvalidValue(f"norm must be one of {NORMS}; got {norm!r}")
    batch = x.shape[0]
    if step_size is not None:
        (size,) = as_numbers(batch, step_size=step_size)
        eps = sent(size, x.device)
        zero = torch.zeros_like(eps)
        columns = (zero, zero + 1, zero, zero + 1, zero + 1, eps, (2 * eps).sqrt())
        return linear_step(
            x,
            score,
            torch.stack(columns, 1).to(compute_dtype(x)),
            torch.arange(len(eps), dtype=torch.int64, device=x.device),
            draws=torch.full((len(eps), 1), draw, dtype=torch.int64, device=x.device),
            seed=seed,
            sample_ids=sample_ids,
            purpose="corrector",
            subdraw=subdraw,
        ).x
    seeds = as_seed(seed, x.device)
    factor, ratio = as_numbers(batch, alpha=alpha, snr=snr)
    gain = 2 * factor * ratio**2
    out: Tensor = _langevin_step(
        x,
        score,
        sent(gain, x.device, compute_dtype(x)),
        seeds,
        as_sample_ids(sample_ids, batch, x.device),
        draw,
        tag_of("corrector", subdraw),
        norm == "batch",
    )
    return out
