"""Guidance: functions Denoiser -> Denoiser, so that every solver takes the result.

With D_c, D_u the data predictions with and without a condition and w the scale,

    classifier-free    D = D_u + w (D_c - D_u)                       Ho & Salimans 2022, 6
    autoguidance       D = D_weak + w (D - D_weak)                   Karras et al. 2024, 3
    classifier         s = s_u + w grad log p(y | x_t)               Dhariwal & Nichol 2021, 14

Every read-out is affine in every other with coefficients of t alone, so a combination whose
weights sum to one may be taken of raw outputs. Posteriors of measurements are in posterior.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.shapes import column
from ..denoiser import Denoiser
from ..processes.process import Process
from ..readout import convert
from .posterior import inpaint, posterior
from .rule import HELD, apply_rule, calls_of, of_model

Scale = float | Tensor | Callable[[Tensor], Tensor | float]

__all__ = ["autoguidance", "cfg", "cfgpp", "classifier", "inpaint", "posterior", "threshold"]


def cfg(
    model: Denoiser,
    scale: Scale,
    *,
    uncond: dict[str, Any] | None = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """Classifier-free guidance, D_u + w (D_c - D_u) (Ho & Salimans 2022, 6).

    scale: w, where 1 is the conditional model and 0 the other; a number, [B], or a function of
        the float64 times [B].
    uncond: arguments of the unconditional call, which replace those of the same name; by default
        every conditioning argument becomes None.
    interval: (low, high) in sigma/alpha; outside it w is 1 (Kynkaanniemi et al. 2024).
    rescale: in [0, 1], how far the output's standard deviation, of each sample, is brought back
        to the conditional one's (Lin et al. 2024, 15 and 16).

    Two network calls for each evaluation. Raises ValueError for values outside, and at the call
    where there is no condition to guide towards.
    """
    if not 0 <= rescale <= 1:
        raise InvalidValue(f"rescale must lie in [0, 1]; got {rescale}")
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise InvalidValue(
            f"interval must be (low, high) in sigma/alpha, 0 <= low < high; got {interval}"
        )

    null = {f"uncond {key}": value for key, value in (uncond or {}).items()}

    def rule(x: Tensor, t: Tensor, cond: dict[str, Any], scale: Scale, **null: Any) -> Tensor:
        named = [key for key in cond if not key.startswith(HELD)]
        if not named:
            raise InvalidValue("cfg has no condition to guide towards; pass cond={'label': ...}")
        other = {**cond, **{key.removeprefix("uncond "): value for key, value in null.items()}}
        if uncond is None:
            other |= dict.fromkeys(named)
        with_c, without = model.raw(x, t, **cond), model.raw(x, t, **other)
        w = _scale_at(scale, t)
        if interval is not None:
            noise = torch.exp(-model.process.log_snr(t))
            w = torch.where((noise >= interval[0]) & (noise <= interval[1]), w, 1.0)
        out = without + column(w, x) * (with_c - without)
        if rescale == 0:
            return out
        ratio = with_c.flatten(1).std(1) / out.flatten(1).std(1)
        return out * column(1 + rescale * (ratio - 1), x)

    options = f", interval={interval}" if interval else ""
    options += f", rescale={rescale}" if rescale else ""
    title = f"cfg(scale={_show(scale)}{options}, {_name(model)})"
    return apply_rule(
        model, title, rule, calls=2 * calls_of(model.net), rows={"scale": scale, **null}
    )


def cfgpp(process: Process, grid: Sequence[float] | Tensor, strength: float) -> Scale:
    """The scale at which DDIM on `grid` is CFG++ of `strength` (Chung et al. 2024, algorithm 2).

    CFG++ adds back the unconditional noise, x_s = alpha_s D_w + sigma_s eps_u, which is DDIM with
    w(t) = strength/(1 - exp(lambda_t - lambda_s)) on the step from t to s: a schedule like any
    other, `cfg(model, cfgpp(process, grid, 0.6))`. On a grid that ends at sigma = 0 the last w is
    `strength` itself. Raises ValueError unless the grid falls strictly.
    """
    times = torch.as_tensor(grid, dtype=torch.float64).cpu()
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise InvalidValue(f"grid must be times that fall strictly, at least two; got {grid}")
    lam = process.log_snr(times)
    weights = strength / -torch.expm1(-lam.diff())
    starts = times[:-1]

    def scale(t: Tensor) -> Tensor:
        nearest = (t.cpu()[:, None] - starts).abs().argmin(1)
        return weights[nearest].to(t.device)

    return scale


def autoguidance(model: Denoiser, weak: Denoiser, scale: Scale) -> Denoiser:
    """D_weak + w (D - D_weak) with a worse model of the same data (Karras et al. 2024, 3).

    weak: smaller or less trained; of the same process, with any read-out. scale: as in `cfg`.
    Both are given the same conditions. Raises ValueError for another process.
    """
    if weak.process != model.process:
        raise InvalidValue(f"weak must be of {model.process}; it is of {weak.process}")

    def rule(x: Tensor, t: Tensor, cond: dict[str, Any], scale: Scale) -> Tensor:
        worse, better = (m(x, t, **of_model(m, cond)) for m in (weak, model))
        return worse + column(_scale_at(scale, t), x) * (better - worse)

    title = f"autoguidance(scale={_show(scale)}, {_name(model)}, {_name(weak)})"
    both = calls_of(model.net) + calls_of(weak.net)
    return apply_rule(model, title, rule, "data", weak, calls=both, rows={"scale": scale})


def classifier(
    model: Denoiser, log_prob_fn: Callable[[Tensor, Tensor], Tensor], scale: Scale = 1.0
) -> Denoiser:
    """s + w grad_x log p(y | x_t) (Dhariwal & Nichol 2021, 14; Song et al. 2021, 14).

    log_prob_fn(x, t): log p(y | x_t = x) in nats, [B], of x [B, ...] and float64 times [B],
        differentiable; constants do not matter. It must have been made for noisy x. log_prob and
        adaptive steps ask about some of the samples at a time: it may not tell them by their place.
    scale: w as in `cfg`; at 1 the law is p(x | y), where the classifier is right.

    One gradient of the classifier, none of the network. Raises ValueError for a process that ends
    at alpha = 0, where x_t says nothing of y, and at the call if the log-probability is not [B].
    """
    if float(model.process.alpha(model.process.t_max)) == 0.0:
        raise InvalidValue(
            f"classifier guidance needs alpha > 0 at t_max={model.process.t_max:g}, where x would "
            f"say nothing of y; {model.process} ends at alpha = 0: use e.g. Flow(t_max=0.999)"
        )

    def rule(x: Tensor, t: Tensor, cond: dict[str, Any], scale: Scale) -> Tensor:
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            leaf = x if keep else x.detach().requires_grad_()
            log_prob = log_prob_fn(leaf, t)
            if log_prob.shape != x.shape[:1]:
                raise InvalidValue(
                    f"log_prob_fn must return one number for each of {len(x)} samples; "
                    f"got {tuple(log_prob.shape)}"
                )
            (gradient,) = torch.autograd.grad(log_prob.sum(), leaf, create_graph=keep)
        factor = convert(model.process, t, "score", model.predicts, model.sigma_data).scale
        return model.raw(x, t, **cond) + column(factor * _scale_at(scale, t), x) * gradient

    title = f"classifier(scale={_show(scale)}, {_name(model)})"
    return apply_rule(model, title, rule, rows={"scale": scale})


def threshold(model: Denoiser, ratio: float = 0.995, limit: float = 1.0) -> Denoiser:
    """Dynamic thresholding: D clamped to [-s, s] and divided by s/limit (Saharia et al. 2022, 2.3).

    s is the larger of `limit` and the `ratio` quantile of |D| within one sample. It changes the
    law, like `Denoiser(clip=...)`, and mends networks that overshoot under strong guidance.
    Raises ValueError unless 0 < ratio <= 1 and limit > 0.
    """
    if not 0 < ratio <= 1:
        raise InvalidValue(f"ratio must lie in (0, 1]; got {ratio}")
    if not limit > 0:
        raise InvalidValue(f"limit must be > 0; got {limit}")

    def rule(x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        d = model(x, t, **cond)
        s = column(torch.quantile(d.flatten(1).abs().float(), ratio, 1).clamp(min=limit), d)
        return d.clamp(-s, s) * (limit / s)

    return apply_rule(
        model, f"threshold(ratio={ratio}, limit={limit}, {_name(model)})", rule, "data"
    )


def _scale_at(scale: Scale, t: Tensor) -> Tensor:
    """w [B], float64."""
    w = scale(t) if callable(scale) else scale
    return torch.as_tensor(w, dtype=torch.float64, device=t.device).expand(t.shape)


def _show(scale: Scale) -> str:
    return f"{scale:g}" if isinstance(scale, (int, float)) else type(scale).__name__


def _name(model: Denoiser) -> str:
    return repr(model.net) if hasattr(model.net, "title") else type(model.net).__name__
