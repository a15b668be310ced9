"""The denoiser: a network, the process it was trained on, and what it predicts."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.checks import FLOATS
from ..kernels.errors import InvalidType, InvalidValue, no_such
from ..kernels.shapes import column
from . import conditions
from .calling import Pair, Seen, as_taken, called, repeated
from .processes import Process
from .readout import (
    ELSEWHERE,
    READOUTS,
    TIME_CONVENTIONS,
    Affine,
    convert,
    network_scale,
    network_time,
    train_steps,
    true_time,
    warn_of_pure_noise,
)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """The data prediction D(x, t) = E[x_0 | x_t = x] of a network, and its other read-outs.

    net: callable `net(x, t, **cond)`, x [B, ...] -> [B, ...]; t is [B], float32 or float64.
    process: the forward process the network was trained on.
    predicts: 'noise', 'data', 'score', 'v', 'flow' (velocity) or 'edm' (Karras et al. 2022), or
        what other libraries call them, 'epsilon', 'sample', 'v_prediction'.
    time: what the network is told: 'continuous' (t), 'index' (0..steps-1 for a network of discrete
        time), 'edm' (log(sigma)/4, the default of predicts='edm'), 'sigma', or a callable of the
        float64 tensor t.
    steps: training steps of a network of discrete time; None: the process's table, else 1000.
    sigma_data: scale of the data in the 'edm' preconditioning, > 0; None: the process's, else 0.5.
    clip: optional (lo, hi), finite: D is clamped to it at every step. Off by default, since it
        changes the law; for pixel networks (-1, 1) is customary.
    cond: conditions handed to every call (a call's own `cond` wins); see `models.conditions`.
        They are the same for all samples: what has rows goes to the call, `cond={...}`, and is
        refused here where samples are taken apart, unless it is marked, `ud.shared(...)`.

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
    _seen: Seen = field(init=False, repr=False, default_factory=Seen)
    _told: bool = field(init=False, repr=False, default=False)  # whether cond came with a batch

    def __post_init__(self) -> None:
        if not callable(self.net) or isinstance(self.net, type):
            raise InvalidType(f"net must be callable as net(x, t, **cond); got {_kind(self.net)}")
        if not isinstance(self.process, Process):
            raise InvalidType(f"process must be a Process, e.g. VP(); got {_kind(self.process)}")
        if isinstance(self.predicts, str) and self.predicts in ELSEWHERE:
            object.__setattr__(self, "predicts", ELSEWHERE[self.predicts])
        if self.predicts not in READOUTS:
            raise no_such("predicts", self.predicts, READOUTS)
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
            raise no_such("time", self.time, [*TIME_CONVENTIONS, "a callable"])
        table = len(getattr(self.process, "betas", ()))
        steps = train_steps(self.process) if self.steps is None else self.steps
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
        if isinstance(self.net, Combination):
            self.net.check(batch)
        return found

    def told(self, cond: dict[str, Any] | None, batch: int) -> Denoiser:
        """The denoiser for a batch that is taken apart: these conditions are now its own.

        Checked as `given` does. Raises ValueError for a condition that was the denoiser's own
        and is longer than 1: nobody said whether it has the samples' rows.
        """
        found = self.given(cond, batch)
        self.refuse_rows(conditions.named(cond))
        return self._with(cond=found, _told=True)

    def refuse_rows(self, handed: Container[str] = ()) -> None:
        """Raise ValueError for conditions of its own, other than those `handed`, that have rows."""
        if not self._told:
            own = {key: part for key, part in self.cond.items() if key not in handed}
            conditions.refuse_rows(own)
        if isinstance(self.net, Combination):
            for model in self.net.models:
                model.refuse_rows(handed)

    def rows(self, index: Tensor, batch: int) -> Denoiser:
        """The denoiser of the samples `index` (int64 [n]) of a batch, with their rows alone."""
        net = self.net.rows(index, batch) if isinstance(self.net, Combination) else self.net
        if not self.cond and net is self.net:
            return self
        return self._with(net=net, cond=conditions.rows(self.cond, index, batch))

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
    def networks(self) -> list[Callable[..., Tensor]]:
        """The networks that are called in the end, each once."""
        if not isinstance(self.net, Combination):
            return [self.net]
        found = [net for model in self.net.models for net in model.networks]
        return list({id(net): net for net in found}.values())

    def map(self, change: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Denoiser:
        """The denoiser with `change(net)` in the place of every network."""
        done = {id(net): change(net) for net in self.networks}
        return self._mapped(done)

    def _mapped(self, done: dict[int, Callable[..., Tensor]]) -> Denoiser:
        if isinstance(self.net, Combination):
            models = [model._mapped(done) for model in self.net.models]
            return self._with(net=self.net.of(models), _seen=Seen())
        return self._with(net=done[id(self.net)], _seen=Seen())

    def to(self, *args: Any, **kwargs: Any) -> Denoiser:
        """The denoiser with networks and conditions moved or cast as `torch.Tensor.to` does it.

        Networks that are modules are moved in place, as torch does.
        """
        if isinstance(self.net, nn.Module):
            self.net.to(*args, **kwargs)
        cond = conditions.moved(self.cond, *args, **kwargs)
        return self._with(cond=cond)

    @property
    def calls(self) -> int:
        """Network calls of one evaluation, at most."""
        return self.net.calls if isinstance(self.net, Combination) else 1

    def calls_given(self, cond: dict[str, Any]) -> int:
        """Network calls of one evaluation under these conditions, at most; cond: of `given`."""
        return self.net.calls_given(cond) if isinstance(self.net, Combination) else 1

    def calls_of(self, times: list[float], cond: dict[str, Any]) -> int:
        """Network calls of evaluations at these times, the same for all samples."""
        if not isinstance(self.net, Combination):
            return len(times)
        return sum(self.calls_at(t, cond) for t in times)

    def calls_at(self, t: float, cond: dict[str, Any]) -> int:
        """Network calls of one evaluation at a time t that is the same for all samples."""
        return self.net.calls_at(t, cond) if isinstance(self.net, Combination) else 1

    def call(
        self,
        x_in: Tensor,
        t_in: Tensor,
        cond: dict[str, Any],
        t: float | Tensor | None = None,
        fresh: bool = False,
    ) -> Tensor:
        """The network's output at what it is handed: the one place where a network is called.

        x_in [B, ...]: c_in x.
        t_in [B]: c_noise(t).
        cond: as `given` returns it.
        t: the process's time, float or [B], where it is known; guidance asks for it.
        fresh: x_in is nobody else's, so that the network may write into it.

        x_in and t_in are left as they are, whatever the network writes into what it is shown. The
        output has x_in's shape and device and a floating type of its own.
        Raises TypeError or ValueError for any other, and where the network's arguments cannot be
        these.
        """
        if isinstance(self.net, Combination):
            return self.net.evaluate(x_in, t_in, cond, t)
        return called(self.net, self._seen, x_in, t_in, cond, fresh)

    def hear(
        self,
        x_in: Tensor,
        t_in: Tensor,
        cond: dict[str, Any],
        t: float | Tensor | None = None,
        fresh: bool = False,
    ) -> Tensor | Pair:
        """`call`, or the two outputs that `Sampler.tell` weighs by itself: classifier-free guidance
        of one scale then needs no tensor of its own for their sum."""
        if isinstance(self.net, Combination):
            return self.net.parts(x_in, t_in, cond, t)
        return called(self.net, self._seen, x_in, t_in, cond, fresh)

    def repeated(
        self, cond: dict[str, Any]
    ) -> Callable[[Tensor, Tensor, float | Tensor | None], Tensor | Pair]:
        """`hear` for a loop, (x_in, t_in, t) -> output: the same conditions each time, x_in fresh,
        and outside compilers."""
        net = self.net
        if isinstance(net, Combination):
            return lambda x_in, t_in, t: net.parts(x_in, t_in, cond, t)
        return repeated(net, self._seen, cond)

    def output(
        self, x: Tensor, t: Tensor, cond: dict[str, Any], t_in: Tensor | None = None
    ) -> Tensor:
        """The network's output at x [B, ...] and t, float64 of no dimension or [B], in x's type.
        A network of bfloat16 or float16 is handed x in its own type.

        cond: as `given` returns it.
        t_in: c_noise(t), where it is known already.
        """
        x_in = x if self.predicts != "edm" else x * column(self.network_scale(t), x)
        x_in = as_taken(self.net, x_in)
        told = self._t_in(x, t) if t_in is None else t_in
        return self.call(x_in, told, cond, t, fresh=x_in is not x).to(x.dtype)

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

    def read(
        self,
        target: str,
        x: Tensor,
        t: Tensor,
        cond: dict[str, Any],
        t_in: Tensor | None = None,
        clip: bool = True,
    ) -> Tensor:
        """A read-out by name, in x's type; arguments as of `output`.

        clip: read it off the clipped D, if the denoiser clips.
        """
        if self.clip is None or not clip:
            affine = self.coefficients(target, t)  # first: it may refuse
            return affine(x, self.output(x, t, cond, t_in))
        affine = convert(self.process, t, "data", target, self.sigma_data)
        out = self.output(x, t, cond, t_in)
        data = self.coefficients("data", t)(x, out).clamp(*self.clip)
        return data if target == "data" else affine(x, data)

    def _time(self, x: Tensor, t: float | Tensor) -> Tensor:
        """t in float64: a scalar on the CPU for a number, else [B] where the device has float64."""
        if (
            not isinstance(x, Tensor)
            or x.dtype not in FLOATS
            or x.layout != torch.strided
            or x.ndim == 0
        ):
            kind = f"{x.dtype} {x.layout}" if isinstance(x, Tensor) else type(x).__name__
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
            fine = (t >= 0) & (t <= last * (1 + 1e-6))  # t_max in float32 may be above it
            if not bool(fine.all()):
                at = t[~fine].flatten()[0]
                raise InvalidValue(
                    f"t must lie in [0, t_max={last:g}] of {self.process}; got {float(at):g}"
                )
        return t


class Combination(nn.Module):
    """What stands in the place of a network in a denoiser made of denoisers.

    The denoiser that holds it has the process, the time convention and the conditions of the first
    of them, so that x_in and t_in reach a network unchanged where a rule asks for raw outputs. A
    child says what it does in `evaluate`, and names in `held` its attributes whose leaves have
    rows.

    models: the denoisers that are asked.
    predicts: what `evaluate` returns is a prediction of.
    """

    held: tuple[str, ...] = ()
    title: Any = "combination"  # in a child perhaps a property

    def __init__(self, *models: Denoiser, predicts: str) -> None:
        super().__init__()
        for model in models:
            if not isinstance(model, Denoiser):
                raise InvalidType(f"model must be a Denoiser; got {_kind(model)}")
        self.models, self.predicts = models, predicts
        self.nets = nn.ModuleList([m.net for m in models if isinstance(m.net, nn.Module)])

    def __repr__(self) -> str:
        return str(self.title)

    def denoiser(self) -> Denoiser:
        """The first denoiser with this in the place of its network."""
        first = self.models[0]
        time = "continuous" if callable(first.time) and self.predicts == "data" else first.time
        made = first._with(net=self, predicts=self.predicts, time=time, _seen=Seen())
        return made

    def evaluate(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor:
        """The prediction, as `Denoiser.call` has it; x_in is x unless predicts is 'edm'."""
        raise NotImplementedError

    def parts(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor | Pair:
        """See `Denoiser.hear`."""
        return self.evaluate(x_in, t_in, cond, t)

    def forward(self, x_in: Tensor, t_in: Tensor, /, **cond: Any) -> Tensor:
        """As a network, for loops that know no more than that."""
        return self.evaluate(x_in, t_in, cond, None)

    def calls_at(self, t: float, cond: dict[str, Any]) -> int:
        """See `Denoiser.calls_at`."""
        return sum(model.calls_at(t, cond) for model in self.models)

    def calls_given(self, cond: dict[str, Any]) -> int:
        """See `Denoiser.calls_given`."""
        return sum(model.calls_given(cond) for model in self.models)

    @property
    def calls(self) -> int:
        """See `Denoiser.calls`."""
        return sum(model.calls for model in self.models)

    def time(self, x: Tensor, t_in: Tensor, t: float | Tensor | None) -> Tensor:
        """t in float64, of no dimension or [B]; found from t_in where it is not known."""
        if isinstance(t, Tensor):
            return t
        if t is not None:
            return torch.full((), t, dtype=torch.float64, device="cpu")
        first = self.models[0]
        if callable(first.time) and self.predicts != "data":
            raise InvalidValue(
                f"the time that {self} needs cannot be told from what time={first.time} makes of "
                "it: run it through ud.sample or Sampler.steps, which know it"
            )
        convention = "continuous" if callable(first.time) else first.time
        wide = t_in.cpu() if t_in.device.type == "mps" else t_in
        return true_time(first.process, wide.double(), convention, first.steps)

    def t_in(self, model: Denoiser, t_in: Tensor) -> Tensor | None:
        """t_in for `model`, if it is told the time as the first one is."""
        first = self.models[0]
        alike = model.process == first.process and model.steps == first.steps
        return t_in if alike and model.time == first.time and not callable(model.time) else None

    # --- what belongs to samples --------------------------------------------------------------

    def check(self, batch: int) -> None:
        """Raise ValueError for a held value or condition that is not of length `batch`."""
        for name in self.held:
            conditions.check(getattr(self, name), batch, name)
        for model in self.models:
            model.given(None, batch)

    def rows(self, index: Tensor, batch: int) -> Combination:
        """The same of the samples `index` of a batch."""
        cut = {name: conditions.rows(getattr(self, name), index, batch) for name in self.held}
        models = [model.rows(index, batch) for model in self.models]
        same = all(a is b for a, b in zip(models, self.models, strict=True))
        if same and all(cut[name] is getattr(self, name) for name in self.held):
            return self
        made = self.of(models)
        for name, value in cut.items():
            setattr(made, name, value)
        return made

    def of(self, models: Sequence[Denoiser]) -> Combination:
        """The same of other denoisers."""
        made = copy.copy(self)
        made._modules = dict(self._modules)
        made.models = tuple(models)
        made.nets = nn.ModuleList([m.net for m in models if isinstance(m.net, nn.Module)])
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Combination:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self.held:
            setattr(self, name, conditions.mapped(fn, getattr(self, name)))
        self.models = tuple(m._with(cond=conditions.mapped(fn, m.cond)) for m in self.models)
        return self


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
