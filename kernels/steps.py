"""Named steps: Euler-Maruyama and DDPM as one row each of the fused step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import as_numbers, check_operands, sent
from .errors import InvalidValue
from .linear import linear_step
from .linear_reference import compute_dtype
from .streams import as_draw

Number = float | Tensor


def _one_row(
    x: Tensor,
    out: Tensor,
    columns: Sequence[Tensor],
    seed: int | Tensor,
    sample_ids: Tensor | Sequence[int] | None,
    draw: int,
    clip: tuple[float, float] | None = None,
    variance: Tensor | None = None,
) -> Tensor:
    """x' of the row [skip, w0, A, B, C, (R)], given per step or per sample (then each has one)."""
    rows = max(column.numel() for column in columns)
    skip, w0, *others = (column.expand(rows) for column in columns)
    zero = torch.zeros_like(skip)
    table = torch.stack([skip, w0, zero, zero + 1, *others], 1)
    table = sent(table, x.device, compute_dtype(x))
    row = torch.arange(rows, dtype=torch.int64, device=x.device)
    draws = torch.full((rows, 1), as_draw(draw), dtype=torch.int64, device=x.device)
    return linear_step(
        x,
        out,
        table,
        row,
        draws=draws,
        seed=seed,
        sample_ids=sample_ids,
        clip=clip,
        variance=variance,
    ).x


def euler_maruyama_step(
    x: Tensor,
    score: Tensor,
    f: Number,
    g: Number,
    dt: Number,
    *,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    draw: int = 0,
) -> Tensor:
    """Euler-Maruyama on the reverse SDE: x' = x - (f x - g^2 s) dt + g sqrt(dt) z.

    x, score [B, ...] floating; f, g, dt > 0: numbers or tensors [B] (dt counts backwards in time);
    z standard normal of (seed, sample_ids, draw), purpose "predictor". Coefficients are formed in
    float64. Returns x' in x's dtype. Raises ValueError if dt is not positive, and as `linear_step`.
    Song et al., "Score-based generative modeling through SDEs", ICLR 2021, eq. 6 and 46.
    """
    check_operands(x, score=(score,))
    rate, diffusion, step = as_numbers(x.shape[0], f=f, g=g, dt=dt)
    if step.device.type == "cpu" and not bool((step > 0).all()):
        raise InvalidValue(f"dt must be positive: it counts from noise to data; got {dt}")
    zero = torch.zeros_like(step)
    columns = (zero, zero + 1, 1 - rate * step, diffusion**2 * step, diffusion * step.sqrt())
    return _one_row(x, score, columns, seed, sample_ids, draw)


def ddpm_step(
    x: Tensor,
    noise: Tensor,
    alpha_bar_t: Number,
    alpha_bar_s: Number,
    *,
    variance: str | Tensor = "small",
    clip: tuple[float, float] | None = None,
    seed: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    draw: int = 0,
) -> Tensor:
    """One ancestral step of DDPM from time t down to s, by way of the data prediction D.

        D  = (x - sqrt(1 - abar_t) eps) / sqrt(abar_t)                    (clamped to clip)
        x' = [sqrt(a) (1 - abar_s) x + sqrt(abar_s) (1 - a) D] / (1 - abar_t) + c z
        a  = abar_t / abar_s,   c^2 = (1 - a) (1 - abar_s) / (1 - abar_t)  "small", 1 - a  "large"
        or learned: log c^2 = (1 + v)/2 log large + (1 - v)/2 log small, v a tensor like x

    x, noise: the state and the predicted eps, [B, ...], floating.
    alpha_bar_t, alpha_bar_s: numbers or tensors [B], 0 < alpha_bar_t < alpha_bar_s <= 1.
    variance: 'small' (which returns D at alpha_bar_s = 1), 'large', or v in [-1, 1] like x.
    clip: (low, high) that D is clamped to; without it the mean is eq. 11 of the paper.
    seed, sample_ids, draw: of z, as in `euler_maruyama_step`.
    Returns x' in x's dtype. Raises ValueError for another variance or other numbers.
    Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020, eq. 6, 7 and 11;
    Nichol & Dhariwal, "Improved DDPM", ICML 2021, eq. 15.
    """
    check_operands(x, noise=(noise,))
    learned = variance if isinstance(variance, Tensor) else None
    if learned is None and variance not in ("small", "large"):
        raise InvalidValue(f"variance must be 'small', 'large' or a tensor; got {variance!r}")
    on_host = not isinstance(alpha_bar_t, Tensor) and not isinstance(alpha_bar_s, Tensor)
    if on_host and not 0 < alpha_bar_t < alpha_bar_s <= 1:
        raise InvalidValue(
            "alpha_bar must satisfy 0 < alpha_bar_t < alpha_bar_s <= 1; got "
            f"{alpha_bar_t} and {alpha_bar_s}"
        )
    now, then = as_numbers(x.shape[0], alpha_bar_t=alpha_bar_t, alpha_bar_s=alpha_bar_s)
    a = now / then
    small = (1 - a) * (1 - then) / (1 - now)
    large = 1 - a
    columns = [
        now.rsqrt(),
        -((1 - now) / now).sqrt(),
        a.sqrt() * (1 - then) / (1 - now),
        then.sqrt() * (1 - a) / (1 - now),
        (large if learned is None and variance == "large" else small).sqrt(),
    ]
    if learned is not None:
        # where the small variance is 0 (the last step) there is no noise to scale
        columns.append(torch.where(small > 0, 0.5 * (large / small).log2(), 0.0))
    return _one_row(x, noise, columns, seed, sample_ids, draw, clip, learned)
