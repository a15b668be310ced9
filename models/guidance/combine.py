"""Guidance: functions Denoiser -> Denoiser, so that every solver takes the result.

With D_c, D_u the data predictions with and without a condition and w the scale,

    classifier-free    D = D_u + w (D_c - D_u)                       Ho & Salimans 2022, 6
    autoguidance       D = D_weak + w (D - D_weak)                   Karras et al. 2024, 3
    classifier         s = s_u + w grad log p(y | x_t)               Dhariwal & Nichol 2021, 14

Every read-out is affine in every other with coefficients of t alone, so a combination whose
weights sum to one may be taken of raw outputs. Posteriors of measurements are in posterior.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import dynamic_threshold
from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.shapes import column
from .. import conditions
from ..calling import Pair
from ..denoiser import Combination, Denoiser
from ..processes import Process
from ..readout import convert
from .rule import finite, name_of

Scale = float | Tensor | Callable[[Tensor], Tensor | float]
"""A number, one for each sample [B], or a function of the float64 times [B] (or [1], where they are
the same for all samples) that gives either."""


class Scaled(Combination):
    """A combination with a scale w."""

    held: tuple[str, ...] = ("scale",)

    def __init__(self, scale: Scale, *models: Denoiser, predicts: str) -> None:
        super().__init__(*models, predicts=predicts)
        self.scale: Scale = _scale(scale)

    def weight(self, t: Tensor | None) -> float | Tensor:
        """w at t, float64 of no dimension or [B]: a number where it is one for all samples.

        t: None where the scale does not depend on it.
        """
        if t is None or not callable(self.scale):
            return self.scale  # type: ignore[return-value]  # a function is given its times
        w = self.scale(t if t.ndim else t[None])
        if not isinstance(w, Tensor):
            return finite("scale(t)", w)
        if w.ndim == 0 or (w.numel() == 1 and t.ndim == 0):
            return float(w) if w.device.type == "cpu" else w.reshape(())
        if w.ndim != 1 or (t.ndim and w.shape != t.shape):
            raise InvalidValue(
                f"scale must give a number or one for each of the {t.numel()} times; "
                f"got {tuple(w.shape)}"
            )
        return w

    def shown(self) -> str:
        """The scale as it prints."""
        return f"{self.scale:g}" if isinstance(self.scale, float) else type(self.scale).__name__


class ClassifierFree(Scaled):
    """See `cfg`."""

    held = ("scale", "uncond")

    def __init__(
        self,
        model: Denoiser,
        scale: Scale,
        uncond: dict[str, Any] | None,
        interval: tuple[float, float] | None,
        rescale: float,
        batched: bool,
    ) -> None:
        super().__init__(scale, model, predicts=getattr(model, "predicts", ""))
        self.uncond = None if uncond is None else conditions.named(uncond)
        self.interval, self.rescale, self.batched = interval, rescale, batched

    @property
    def title(self) -> str:
        options = f", interval={self.interval}" if self.interval else ""
        options += f", rescale={self.rescale}" if self.rescale else ""
        return f"cfg(scale={self.shown()}{options}, {name_of(self.models[0])})"

    def without(self, cond: dict[str, Any]) -> dict[str, Any]:
        """The conditions of the unconditional call."""
        return unconditional(cond, self.uncond)

    def weight(self, t: Tensor | None) -> float | Tensor:
        """w at t; 1 outside the interval."""
        w = super().weight(t)
        if self.interval is None or t is None:
            return w
        noise = torch.exp(-self.models[0].process.log_snr(t))
        inside = (noise >= self.interval[0]) & (noise <= self.interval[1])
        if t.ndim == 0:
            return w if bool(inside) else 1.0
        return torch.where(inside, torch.as_tensor(w, dtype=torch.float64, device=t.device), 1.0)

    def alone(self, w: float | Tensor) -> int | None:
        """1 where only the conditional call is needed, 0 where only the other is, else None."""
        if isinstance(w, float):
            return 1 if w == 1 else 0 if w == 0 and not self.rescale else None
        on_host = w.device.type == "cpu" and not torch.compiler.is_compiling()
        return 1 if on_host and bool((w == 1).all()) else None

    def pair(self, cond: dict[str, Any], batch: int) -> dict[str, Any] | None:
        """The conditions of one call for both, 2 batch rows; None where they cannot be joined."""
        if not self.batched:
            return None
        try:
            self.models[0].refuse_rows([k for k, v in cond.items() if v is not self._own(k)])
            both: dict[str, Any] = conditions.joined(cond, self.without(cond), batch)
            return both
        except (conditions.CannotJoin, InvalidValue):
            return None

    def _own(self, key: str) -> Any:
        return self.models[0].cond.get(key)

    def evaluate(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor:
        found = self.parts(x_in, t_in, cond, t)
        return found if isinstance(found, Tensor) else found.combined()

    def parts(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor | Pair:
        model, other, batch = self.models[0], self.without(cond), x_in.shape[0]
        timed = callable(self.scale) or self.interval is not None
        at = self.time(x_in, t_in, t) if timed else None
        w = self.weight(at)
        alone = self.alone(w)
        if alone is not None:
            return model.call(x_in, t_in, cond if alone else other, t)
        w = _laid(w, x_in)
        both = self.pair(cond, batch)
        if both is None:
            with_c, without = model.call(x_in, t_in, cond, t), model.call(x_in, t_in, other, t)
        else:
            twice = torch.arange(batch, device=x_in.device).repeat(2)
            t2 = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
            out = model.rows(twice, batch).call(torch.cat([x_in] * 2), t_in.repeat(2), both, t2)
            with_c, without = out[:batch], out[batch:]
        if isinstance(self.scale, float) and self.interval is None and self.rescale == 0:
            return Pair(with_c, without, self.scale)  # always, so that every loop rounds alike
        out = without + w * (with_c - without)
        if self.rescale == 0:
            return out
        ratio = with_c.flatten(1).std(1) / out.flatten(1).std(1)
        return out * column(1 + self.rescale * (ratio - 1), out)

    def calls_at(self, t: float, cond: dict[str, Any]) -> int:
        model, other = self.models[0], self.without(cond)
        alone = self.alone(self.weight(torch.full((), t, dtype=torch.float64, device="cpu")))
        if alone is not None:
            return model.calls_at(t, cond if alone else other)
        both = self.pair(cond, _batch_of(cond, other))
        if both is not None:
            return model.calls_at(t, both)
        return model.calls_at(t, cond) + model.calls_at(t, other)

    def calls_given(self, cond: dict[str, Any]) -> int:
        model, other = self.models[0], self.without(cond)
        alone = self.alone(self.scale) if isinstance(self.scale, float) else None
        if alone is not None:
            return model.calls_given(cond if alone else other)
        both = self.pair(cond, _batch_of(cond, other))
        if both is not None:
            return model.calls_given(both)
        return model.calls_given(cond) + model.calls_given(other)

    @property
    def calls(self) -> int:
        fixed = isinstance(self.scale, float) and self.alone(self.scale) is not None
        return (1 if fixed else 2) * self.models[0].calls


def unconditional(cond: dict[str, Any], uncond: dict[str, Any] | None) -> dict[str, Any]:
    """The conditions of the unconditional call; see `cfg`."""
    if not cond:
        raise InvalidValue("cfg has no condition to guide towards; pass cond={'label': ...}")
    return dict.fromkeys(cond) if uncond is None else {**cond, **uncond}


def cfg(
    model: Denoiser,
    scale: Scale,
    *,
    uncond: dict[str, Any] | None = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    batched: bool = True,
) -> Denoiser:
    """Classifier-free guidance, D_u + w (D_c - D_u) (Ho & Salimans 2022, 6).

    scale: w, where 1 is the conditional model and 0 the other; a number, [B], or a function of
        the float64 times.
    uncond: conditions of the unconditional call, which replace those of the same name; by default
        every condition becomes None.
    interval: (low, high) in sigma/alpha; outside it w is 1 (Kynkaanniemi et al. 2024).
    rescale: in [0, 1], how far the output's standard deviation, of each sample, is brought back
        to the conditional one's (Lin et al. 2024, 15 and 16).
    batched: make one call of 2 B rows where both calls' conditions can be joined: tensors of equal
        type and shape, and equal numbers. Where they cannot (None beside a tensor) it is two calls.

    Where w is 1 for all samples only the conditional call is made. Raises TypeError or ValueError
    for bad settings, and at the call where there is no condition to guide towards.
    """
    finite("rescale", rescale)
    if not 0 <= rescale <= 1:
        raise InvalidValue(f"rescale must lie in [0, 1]; got {rescale}")
    if interval is not None:
        low_high = isinstance(interval, (tuple, list)) and len(interval) == 2
        if not low_high or not 0 <= interval[0] < interval[1]:
            raise InvalidValue(
                f"interval must be (low, high) in sigma/alpha, 0 <= low < high; got {interval}"
            )
    return ClassifierFree(model, scale, uncond, interval, rescale, bool(batched)).denoiser()


class CFGpp:
    """The scale that `cfgpp` makes: w(t) of the nearest start of a step."""

    def __init__(self, starts: Tensor, weights: Tensor) -> None:
        self.starts, self.weights = starts, weights

    def __call__(self, t: Tensor) -> Tensor:
        nearest = (t.cpu()[:, None] - self.starts).abs().argmin(1)
        return self.weights[nearest].to(t.device)


def cfgpp(process: Process, grid: Sequence[float] | Tensor, strength: float) -> Scale:
    """The scale at which DDIM on `grid` is CFG++ of `strength` (Chung et al. 2024, algorithm 2).

    CFG++ adds back the unconditional noise, x_s = alpha_s D_w + sigma_s eps_u, which is DDIM with
    w(t) = strength/(1 - exp(lambda_t - lambda_s)) on the step from t to s: a schedule like any
    other, `cfg(model, cfgpp(process, grid, 0.6))`. On a grid that ends at sigma = 0 the last w is
    `strength` itself.

    grid: times that fall strictly, at least two.
    strength: a finite number.
    Raises TypeError or ValueError for others.
    """
    finite("strength", strength)
    times = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise InvalidValue(f"grid must be times that fall strictly, at least two; got {grid}")
    lam = process.log_snr(times)
    return CFGpp(times[:-1], strength / -torch.expm1(-lam.diff()))


class Auto(Scaled):
    """See `autoguidance`."""

    def __init__(self, model: Denoiser, weak: Denoiser, scale: Scale) -> None:
        super().__init__(scale, model, weak, predicts="data")

    @property
    def title(self) -> str:
        model, weak = map(name_of, self.models)
        return f"autoguidance(scale={self.shown()}, {model}, {weak})"

    def evaluate(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor:
        at = self.time(x_in, t_in, t)
        better, worse = (
            m.read("data", x_in, at, {**m.cond, **cond}, self.t_in(m, t_in)) for m in self.models
        )
        w = _laid(self.weight(at), x_in)
        return worse + w * (better - worse)


def autoguidance(model: Denoiser, weak: Denoiser, scale: Scale) -> Denoiser:
    """D_weak + w (D - D_weak) with a worse model of the same data (Karras et al. 2024, 3).

    weak: smaller or less trained; of the same process, with any read-out.
    scale: w, as in `cfg`.

    Both are given the same conditions. Raises ValueError for another process.
    """
    made = Auto(model, weak, scale)
    if weak.process != model.process:
        raise InvalidValue(f"weak must be of {model.process}; it is of {weak.process}")
    return made.denoiser()


class Classified(Scaled):
    """See `classifier`."""

    def __init__(
        self, model: Denoiser, log_prob_fn: Callable[[Tensor, Tensor], Tensor], scale: Scale
    ) -> None:
        predicts = getattr(model, "predicts", "")
        super().__init__(scale, model, predicts="data" if predicts == "edm" else predicts)
        self.log_prob_fn = log_prob_fn

    @property
    def title(self) -> str:
        return f"classifier(scale={self.shown()}, {name_of(self.models[0])})"

    def evaluate(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor:
        model, x, at = self.models[0], x_in, self.time(x_in, t_in, t)
        factor = convert(model.process, at, "score", self.predicts, model.sigma_data).scale
        w, pull = _laid(self.weight(at), x) * column(factor, x), self.gradient(x, at)
        told = self.t_in(model, t_in)
        if self.predicts == model.predicts:
            out = model.output(x, at, cond, told)
        else:
            out = model.read("data", x, at, cond, told, clip=False)
        return out + w * pull

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """grad_x log p(y | x_t = x)."""
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        times = (
            t.to(x.device, wide)
            if t.ndim
            else torch.full(x.shape[:1], float(t), dtype=wide, device=x.device)
        )
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            leaf = x if keep else x.detach().requires_grad_()
            log_prob = self.log_prob_fn(leaf, times)
            if not isinstance(log_prob, Tensor) or log_prob.shape != x.shape[:1]:
                got = tuple(log_prob.shape) if isinstance(log_prob, Tensor) else log_prob
                raise InvalidValue(
                    f"log_prob_fn must return one number for each of {len(x)} samples; got {got}"
                )
            if not log_prob.requires_grad:
                raise InvalidValue(
                    "log_prob_fn's result has no gradient with respect to x, so it guides nothing: "
                    "drop no_grad or detach from it"
                )
            (gradient,) = torch.autograd.grad(
                log_prob.sum(), leaf, create_graph=keep, allow_unused=True
            )
        if gradient is None:
            raise InvalidValue("log_prob_fn does not use x, so it guides nothing")
        return gradient


def classifier(
    model: Denoiser, log_prob_fn: Callable[[Tensor, Tensor], Tensor], scale: Scale = 1.0
) -> Denoiser:
    """s + w grad_x log p(y | x_t) (Dhariwal & Nichol 2021, 14; Song et al. 2021, 14).

    log_prob_fn(x, t): log p(y | x_t = x) in nats, [B], of x [B, ...] and float64 times [B],
        differentiable; constants do not matter. It must have been made for noisy x. log_prob and
        adaptive steps ask about some of the samples at a time: it may not tell them by their place.
    scale: w as in `cfg`; at 1 the law is p(x | y), where the classifier is right.

    One gradient of the classifier, none of the network. Raises ValueError for a process that ends
    at alpha = 0, where x_t says nothing of y, and at the call if the log-probability is not [B] or
    has no gradient; TypeError for a log_prob_fn that cannot be called.
    """
    if not callable(log_prob_fn):
        raise InvalidType(f"log_prob_fn must be callable as f(x, t); got {log_prob_fn!r}")
    made = Classified(model, log_prob_fn, scale)
    if float(model.process.alpha(model.process.t_max)) == 0.0:
        raise InvalidValue(
            f"classifier guidance needs alpha > 0 at t_max={model.process.t_max:g}, where x would "
            f"say nothing of y; {model.process} ends at alpha = 0: use e.g. Flow(t_max=0.999)"
        )
    return made.denoiser()


class Thresholded(Combination):
    """See `threshold`."""

    def __init__(self, model: Denoiser, ratio: float, limit: float) -> None:
        super().__init__(model, predicts="data")
        self.ratio, self.limit = ratio, limit

    @property
    def title(self) -> str:
        return f"threshold(ratio={self.ratio}, limit={self.limit}, {name_of(self.models[0])})"

    def evaluate(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor:
        model, at = self.models[0], self.time(x_in, t_in, t)
        d = model.read("data", x_in, at, cond, self.t_in(model, t_in))
        if not d.requires_grad:  # the kernel is not differentiable
            return dynamic_threshold(d / self.limit, self.ratio) * self.limit
        quantile = torch.quantile(d.flatten(1).abs(), self.ratio, 1)
        s = column(quantile.clamp(min=self.limit), d)
        return torch.minimum(torch.maximum(d, -s), s) * (self.limit / s)


def threshold(model: Denoiser, ratio: float = 0.995, limit: float = 1.0) -> Denoiser:
    """Dynamic thresholding: D clamped to [-s, s] and divided by s/limit (Saharia et al. 2022, 2.3).

    s is the larger of `limit` and the `ratio` quantile of |D| within one sample. It changes the
    law, like `Denoiser(clip=...)`, and mends networks that overshoot under strong guidance.

    ratio: in (0, 1].
    limit: > 0.
    Raises ValueError for others.
    """
    if not 0 < finite("ratio", ratio) <= 1:
        raise InvalidValue(f"ratio must lie in (0, 1]; got {ratio}")
    return Thresholded(model, ratio, finite("limit", limit, 0)).denoiser()


def _laid(w: float | Tensor, x: Tensor) -> float | Tensor:
    """w against x; raises ValueError for another number of scales than of samples."""
    if not isinstance(w, Tensor):
        return w
    if w.ndim and len(w) == 1:  # shared, as every condition of length 1 is
        return w.reshape(()).to(x)
    if w.ndim and len(w) != len(x):
        raise InvalidValue(
            f"scale must give a number or one for each of the {len(x)} samples; "
            f"got {tuple(w.shape)}"
        )
    return column(w, x)


def _scale(scale: Any) -> Any:
    """A number as a float, a tensor [B] in float64, a callable as it is; else TypeError."""
    if callable(scale):
        return scale
    if isinstance(scale, Tensor) and scale.ndim == 1 and not scale.is_complex():
        if scale.device.type == "cpu" and not bool(torch.isfinite(scale).all()):
            raise InvalidValue(f"scale must be finite; got {scale.tolist()}")
        return scale if scale.device.type == "mps" else scale.double()
    if isinstance(scale, Tensor) and scale.ndim == 0:
        scale = scale.item()
    if isinstance(scale, (Tensor, bool)) or not isinstance(scale, (int, float)):
        got = tuple(scale.shape) if isinstance(scale, Tensor) else repr(scale)
        raise InvalidType(
            f"scale must be a number, a tensor [B] or a function of the times; got {got}"
        )
    if not math.isfinite(scale):
        raise InvalidValue(f"scale must be finite; got {scale}")
    return float(scale)


def _batch_of(*conds: dict[str, Any]) -> int:
    """The batch that conditions are of, as far as they tell; else 1."""
    longest = 1

    def leaf(value: Any, path: str) -> Any:
        nonlocal longest
        longest = max(longest, conditions.length(value))
        return value

    for cond in conds:
        conditions.walk(leaf, cond)
    return longest
