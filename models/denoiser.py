"""The denoiser: a network, the process it was trained on, and what it predicts."""

from __future__ import annotations

import copy
import math
import operator
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.errors import InvalidType, InvalidValue, RunFailure
from ..kernels.shapes import column
from . import conditions
from .processes import Process
from .readout import (
    READOUTS,
    TIME_CONVENTIONS,
    Affine,
    convert,
    network_scale,
    network_time,
    warn_of_pure_noise,
)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """The data prediction D(x, t) = E[x_0 | x_t = x] of a network, and its other read-outs.

    net: callable `net(x, t, **cond)`, x [B, ...] -> [B, ...]; t is [B], float32 or float64.
    process: the forward process the network was trained on.
    predicts: 'noise', 'data', 'score', 'v', 'flow' (velocity) or 'edm' (Karras et al. 2022).
    time: what the network is told: 'continuous' (t), 'index' (0..steps-1 for a network of
        discrete time), 'edm' (log(sigma)/4, the default of predicts='edm'), 'sigma', or a
        callable of the float64 tensor t.
    steps: training steps of a network of discrete time; None: the process's table, else 1000.
    sigma_data: scale of the data in the 'edm' preconditioning, > 0; None: the process's, else 0.5.
    clip: optional (lo, hi), finite: D is clamped to it at every step. Off by default, since it
        changes the law; for pixel networks (-1, 1) is customary.
    cond: conditions handed to every call (a call's own `cond` wins); see `models.conditions`.

    Raises TypeError or ValueError for what does not fit, by name. Calls raise ValueError where a
    read-out does not exist, and for times outside [0, t_max].
    """

    net: Callable[..., Tensor]
    process: Process
    predicts: str = "noise"
    time: str | Callable[[Tensor], Tensor] | None = None
    steps: int = None  # type: ignore[assignment]  # resolved below
    sigma_data: float = None  # type: ignore[assignment]
    clip: tuple[float, float] | None = None
    cond: dict[str, Any] = field(default_factory=dict, repr=False)
    _seen: _Seen = field(init=False, repr=False, default_factory=lambda: _Seen())

    def __post_init__(self) -> None:
        if not callable(self.net) or isinstance(self.net, type):
            raise InvalidType(f"net must be callable as net(x, t, **cond); got {_kind(self.net)}")
        if not isinstance(self.process, Process):
            raise InvalidType(
                f"process must be a Process, e.g. VP(); got {_kind(self.process)}"
            )  # fmt: skip
        if self.predicts not in READOUTS:
            raise InvalidValue(
                f"predicts must be one of {', '.join(READOUTS)}; got {self.predicts!r}"
            )
        object.__setattr__(self, "cond", conditions.named(self.cond))
        self._resolve_time()
        if self.sigma_data is None:
            object.__setattr__(self, "sigma_data", getattr(self.process, "sigma_data", 0.5))
        if not (_is_number(self.sigma_data) and self.sigma_data > 0):
            raise InvalidValue(
                f"sigma_data must be a finite number > 0, the scale of the data; "
                f"got {self.sigma_data!r}"
            )
        if self.clip is not None:
            object.__setattr__(self, "clip", _bounds(self.clip))
        warn_of_pure_noise(self.process, self.predicts, self.clip, stacklevel=3)

    def _resolve_time(self) -> None:
        if self.time is None:
            default = "edm" if self.predicts == "edm" else "continuous"
            object.__setattr__(self, "time", default)
        elif not callable(self.time) and self.time not in TIME_CONVENTIONS:
            names = ", ".join(TIME_CONVENTIONS)
            raise InvalidValue(f"time must be one of {names}, or a callable; got {self.time!r}")
        table = len(getattr(self.process, "betas", ()))
        steps = (table or 1000) if self.steps is None else self.steps
        try:
            object.__setattr__(self, "steps", operator.index(steps))
        except TypeError:
            raise InvalidType(
                f"steps, of a network of discrete time, must be a whole number; got {steps!r}"
            ) from None
        if self.steps < 1 or isinstance(steps, bool):
            raise InvalidValue(f"steps must be >= 1; got {steps}")
        if self.time == "index" and table not in (0, self.steps):
            raise InvalidValue(f"steps must be the {table} of {self.process}; got {self.steps}")
        if self.time == "index" and self.process.t_max != 1:
            raise InvalidValue(
                f"time='index' counts steps on t in (0, 1]; {self.process} has "
                f"t_max={self.process.t_max:g}: use time='continuous' or a callable"
            )

    @property
    def t_min(self) -> float:
        """The smallest time at which the network may be called."""
        least = self.process.t_min
        return max(least, 1.0 / self.steps) if self.time == "index" else least

    # --- conditions ---------------------------------------------------------------------------

    def given(self, cond: dict[str, Any] | None, batch: int) -> dict[str, Any]:
        """The model's conditions and these, which win, for a batch of so many samples.

        Raises ValueError for a leaf that is neither of the batch nor shared, TypeError for a `cond`
        that is no dict.
        """
        found = {**self.cond, **conditions.named(cond)}
        conditions.check(found, batch)
        return found

    def told(self, cond: dict[str, Any] | None, batch: int) -> Denoiser:
        """The same denoiser with these conditions as its own, checked as `given` does."""
        return self._with(cond=self.given(cond, batch))

    def rows(self, index: Tensor, batch: int) -> Denoiser:
        """The denoiser of the samples `index` (int64 [n]) of a batch: conditions cut to theirs."""
        if not self.cond:
            return self
        return self._with(cond=conditions.rows(self.cond, index, batch))

    def _with(self, **changes: Any) -> Denoiser:
        """A copy with other fields, known to be valid, that shares what was seen of the network."""
        made = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(made, name, value)
        return made

    # --- coefficients, float64, for the tables of the solvers ---------------------------------

    def coefficients(self, target: str, t: float | Tensor) -> Affine:
        """(skip, scale) with `target` = skip x + scale net(...), folded in float64."""
        return convert(self.process, t, self.predicts, target, self.sigma_data)

    def network_scale(self, t: Tensor) -> Tensor:
        """c_in(t), float64."""
        return network_scale(self.process, t, self.predicts, self.sigma_data)

    def network_time(self, t: Tensor) -> Tensor:
        """c_noise(t), float64."""
        return network_time(self.process, t, self.time, self.steps)

    # --- the network --------------------------------------------------------------------------

    @property
    def calls(self) -> int:
        """Network calls of one evaluation, at most."""
        return 1

    def call(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None = None
    ) -> Tensor:
        """The network's output at what it is handed: the one place where a network is called.

        x_in [B, ...]: c_in x. t_in [B]: c_noise(t). cond: as `given` returns it. t: the process's
        time, float or [B], where it is known; guidance asks for it.
        x_in and t_in are left as they are, whatever the network writes into what it is shown. The
        output has x_in's shape and device and a floating type of its own. Raises TypeError or
        ValueError for any other, and where the network's arguments cannot be these.
        """
        seen = self._seen
        if not (seen.training or torch.is_grad_enabled()):
            seen.training = True
            _name_training(self.net)
        kept = seen.writes is False and not torch.compiler.is_compiling()
        shown, told = (x_in, t_in) if kept else (x_in.clone(), t_in.clone())
        before = _version(shown), _version(told)
        out = _ask(self.net, shown, told, conditions.plain(cond))
        if kept and before != (_version(shown), _version(told)):
            raise RunFailure(
                "the network writes into its input, which it did not at its first call: let its "
                "first layer work out of place (inplace=False)"
            )
        if not kept and not torch.compiler.is_compiling():
            seen.writes = before[0] is None or before != (_version(shown), _version(told))
            if not seen.writes and x_in.device.type == "cpu":  # .data has no version
                seen.writes = not torch.equal(shown, x_in)
        return _checked(out, x_in)

    def output(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """The network's output at x [B, ...] and t, float64 of no dimension or [B], in x's type;
        cond: as `given` returns it."""
        x_in = x if self.predicts != "edm" else x * column(self.network_scale(t), x)
        return self.call(x_in, self._t_in(x, t), cond, t).to(x.dtype)

    def _t_in(self, x: Tensor, t: Tensor) -> Tensor:
        """c_noise(t) [B] on x's device, in float32 at least: bfloat16 would round 999 to 1000."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        told = self.network_time(t)
        if told.ndim == 0 and told.device.type == "cpu" and not told.requires_grad:
            return torch.full((len(x),), float(told), dtype=dtype, device=x.device)
        return told.to(x.device, dtype).expand(len(x))

    # --- evaluations --------------------------------------------------------------------------

    def raw(self, x: Tensor, t: float | Tensor, /, **cond: Any) -> Tensor:
        """The network's own output at x [B, ...] and t (float or [B]), in x's type."""
        return self.output(x, self._time(x, t), self.given(cond, len(x)))

    def __call__(self, x: Tensor, t: float | Tensor, /, **cond: Any) -> Tensor:
        """D(x, t), x [B, ...], t float or [B]; clipped if `clip` is set."""
        return self.read("data", x, self._time(x, t), self.given(cond, len(x)))

    def score(self, x: Tensor, t: float | Tensor, /, **cond: Any) -> Tensor:
        """grad log p_t(x) = (alpha D - x)/sigma^2; not at sigma = 0 unless the network gives it."""
        return self.read("score", x, self._time(x, t), self.given(cond, len(x)))

    def noise(self, x: Tensor, t: float | Tensor, /, **cond: Any) -> Tensor:
        """E[eps | x_t = x] = (x - alpha D)/sigma."""
        return self.read("noise", x, self._time(x, t), self.given(cond, len(x)))

    def velocity(self, x: Tensor, t: float | Tensor, /, **cond: Any) -> Tensor:
        """dx/dt of the probability flow, f x - 1/2 g^2 score (Song et al. 2021, 13)."""
        return self.read("flow", x, self._time(x, t), self.given(cond, len(x)))

    def read(self, target: str, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """A read-out by name at x and t, float64 of no dimension or [B]; of the clipped D, if `clip`
        is set. cond: as `given` returns it."""
        if self.clip is None:
            affine = self.coefficients(target, t)  # first: it may refuse
            return _apply(affine, x, self.output(x, t, cond))
        affine = convert(self.process, t, "data", target, self.sigma_data)
        out = self.output(x, t, cond)
        data = _apply(self.coefficients("data", t), x, out).clamp(*self.clip)
        return data if target == "data" else _apply(affine, x, data)

    def _time(self, x: Tensor, t: float | Tensor) -> Tensor:
        """t in float64: of no dimension on the CPU for a number, else [B] where float64 is known."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim == 0:
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise InvalidType(f"x must be a floating tensor [B, ...]; got {kind}")
        if not isinstance(t, Tensor):
            if not isinstance(t, str):
                t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
            else:
                raise InvalidType(f"t must be a number or a tensor [{len(x)}]; got {t!r}")
        if t.ndim and t.shape != x.shape[:1]:
            raise InvalidValue(
                f"t must be a float or of shape {(x.shape[0],)}; got {tuple(t.shape)}"
            )
        t = t.cpu().double() if t.device.type == "mps" else t.double()
        if t.device.type == "cpu":  # on a device this would be a synchronisation inside the loop
            last = self.process.t_max
            if not bool(((t >= 0) & (t <= last * (1 + 1e-9))).all()):
                at = t.flatten()[~((t >= 0) & (t <= last)).flatten()][0]
                raise InvalidValue(
                    f"t must lie in [0, t_max={last:g}] of {self.process}; got {float(at):g}"
                )
        return t


class _Seen:
    """What was found out about a network while it was called.

    writes: whether it writes into its input; None before its first call. training: whether its mode
    was looked at.
    """

    def __init__(self) -> None:
        self.writes: bool | None = None
        self.training = False


KINDS = {"float64": "double", "float32": "float", "bfloat16": "bfloat16", "float16": "half"}


def _ask(net: Callable[..., Any], x: Tensor, t: Tensor, cond: dict[str, Any]) -> Any:
    """net(x, t, **cond); says what is wrong where Python and torch only say that something is."""
    try:
        return net(x, t, **cond)
    except TypeError as error:
        clash = re.search(r"multiple values for argument '(\w+)'", str(error))
        if clash is None or clash[1] not in cond:
            raise
        raise InvalidType(
            f"cond[{clash[1]!r}] has the name under which the network takes x or t, its first two "
            "arguments: rename that argument of the network"
        ) from error
    except RuntimeError as error:
        weights = list(net.parameters()) if isinstance(net, nn.Module) else []
        found = {p.dtype for p in weights if p.is_floating_point()} - {x.dtype}
        if not found or not re.search(r"dtype|scalar type|[Ii]nput type", str(error)):
            raise
        have = " and ".join(sorted(map(str, found)))
        cast = min(map(str, found)).removeprefix("torch.")
        remedy = f"hand in x.{KINDS[cast]}() or cast" if cast in KINDS else "cast"
        raise InvalidType(
            f"x is {x.dtype} but the network's parameters are {have}: {remedy} the network, "
            f"net.{KINDS[str(x.dtype).removeprefix('torch.')]}()"
        ) from error


def _checked(out: Any, x: Tensor) -> Tensor:
    """`out` if it is one floating tensor of x's shape, on x's device."""
    if not isinstance(out, Tensor):
        take = "[0]" if isinstance(out, tuple | list) else "['sample']"
        take = ".sample" if hasattr(out, "sample") else take
        raise InvalidType(
            f"net must return one tensor of x's shape {tuple(x.shape)}; it returned "
            f"{_described(out)}: hand in a function that takes the tensor out, e.g. "
            f"lambda x, t, **cond: net(x, t, **cond){take}, or use models.adapters"
        )
    if out.shape != x.shape:
        raise InvalidValue(
            f"net must return the shape of its input {tuple(x.shape)}; got {tuple(out.shape)}"
        )
    if not out.is_floating_point():
        raise InvalidType(f"net must return floating numbers; got {out.dtype}")
    if out.device != x.device:
        raise InvalidValue(
            f"net must return its output on x's device, {x.device}; got one on {out.device}"
        )
    return out


def _described(out: Any) -> str:
    kind = type(out).__name__
    if isinstance(out, dict):
        return f"a {kind} of {', '.join(map(repr, out)) or 'nothing'}"
    if isinstance(out, tuple | list):
        return f"a {kind} of {len(out)}"
    return kind if out is None else f"an object of type {kind}"


def _name_training(net: Any) -> None:
    """Warn of layers that depend on the batch or on chance while the network is in training mode."""
    if not isinstance(net, nn.Module):
        return
    found = set()
    for m in net.modules():
        chance = isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0
        share = vars(m).get("dropout")  # of attention and recurrent layers
        inner = isinstance(share, float) and share > 0
        by_name = type(m).__name__ in ("DropPath", "StochasticDepth")
        batch = isinstance(m, nn.modules.batchnorm._BatchNorm)
        if m.training and (chance or inner or by_name or batch):
            found.add(type(m).__name__)
    if found:
        warnings.warn(
            f"the network is in training mode, so its {', '.join(sorted(found))} layers depend on "
            "chance or on the batch: call net.eval() first",
            UserWarning,
            stacklevel=4,
        )


def _version(x: Tensor) -> int | None:
    """How often x was written to; None where torch does not count (inference mode)."""
    return None if x.is_inference() else x._version


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )


def _bounds(clip: Any) -> tuple[float, float]:
    if (
        not isinstance(clip, (tuple, list))
        or len(clip) != 2
        or not all(map(_is_number, clip))
        or not clip[0] < clip[1]
    ):
        raise InvalidValue(f"clip must be (lo, hi) with lo < hi, both finite; got {clip!r}")
    return clip[0], clip[1]


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}: make one, {value.__name__}(...)"
    return type(value).__name__


def _apply(affine: Affine, x: Tensor, out: Tensor) -> Tensor:
    skip, scale = (column(c, x) for c in affine)
    return skip * x + scale * out
