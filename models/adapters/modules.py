"""The modules that stand between a foreign network and `Denoiser`: they print, copy and pickle."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.errors import InvalidType

TIME_NAMES = ("timestep", "timesteps", "t", "time", "times", "sigma", "sigmas", "noise_labels")
"""What networks call their time argument, the likeliest first."""
OUTPUT_NAMES = ("sample", "predicted_image_embedding")
"""What dicts of outputs call the prediction."""
SECOND_TIMES = ("timestep_r", "r_timestep")
"""What networks of two times call the one at which the step ends; a velocity has both the same."""


def identity(out: Any) -> Any:
    """What came in."""
    return out


class Wrapped(nn.Module):
    """A network called through two functions: output(net(*args, **kwargs)) with inputs(x, t, cond).

    inputs: (x, t, cond) -> (args, kwargs) of the network.
    output: what it returns -> Tensor.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        inputs: Callable[[Tensor, Tensor, dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]],
        output: Callable[[Any], Tensor] = identity,
    ) -> None:
        super().__init__()
        self.net, self.inputs, self.output = callable_net(net), inputs, output

    def forward(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        args, kwargs = self.inputs(x, t, cond)
        return self.output(self.net(*args, **kwargs))


class BySignature(nn.Module):
    """A network called as its signature asks; of what it returns, the tensor times `sign`.

    The time goes first or second where it stands there, else by the name that the network has for
    it (`TIME_NAMES`); conditions go by their names. A network that names no time gets it second,
    and one that must be told where the step ends (`SECOND_TIMES`) gets the same there. One whose
    states are a list of the samples gets x as that.
    Outputs may be a tensor, an object with `.sample`, a dict with one of OUTPUT_NAMES, a tuple, and
    in each place of a tensor a list of the samples.
    """

    def __init__(self, net: Callable[..., Any], sign: float = 1.0) -> None:
        super().__init__()
        self.net, self.sign = callable_net(net), sign
        taken = _parameters(net)
        self.time: str | int = _place_of_time(taken)
        needed = [p.name for p in taken if p.default is p.empty]
        self.second = next((name for name in SECOND_TIMES if name in needed), None)
        self.listed = bool(taken) and str(taken[0].annotation).lower().startswith("list[")

    def forward(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        shown: Any = list(x) if self.listed else x
        if self.second is not None:
            cond = {self.second: t, **cond}
        if self.time == 0:
            out = self.net(t, shown, **cond)
        elif self.time == 1:
            out = self.net(shown, t, **cond)
        else:
            out = self.net(shown, **{str(self.time): t}, **cond)
        found = sample_of(out)
        return found if self.sign == 1 else self.sign * found

    def extra_repr(self) -> str:
        return f"time={self.time!r}, sign={self.sign:g}"


class FirstHalf(nn.Module):
    """The prediction of a network that may return as many channels again, for its variance."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        out: Tensor = self.net(x, t, **cond)
        doubled = out.ndim == x.ndim > 1 and out.shape[1] == 2 * x.shape[1]
        return out[:, : x.shape[1]] if doubled else out


class Linear:
    """t -> scale t + shift, a time convention that prints and pickles."""

    def __init__(self, scale: float, shift: float = 0.0) -> None:
        self.scale, self.shift = scale, shift

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * t + self.shift

    def __repr__(self) -> str:
        sign = "-" if self.shift < 0 else "+"
        return f"{self.scale:g} t" + (f" {sign} {abs(self.shift):g}" if self.shift else "")


class Angle:
    """t -> 2/pi arctan(t), the time convention of Stable Audio's networks."""

    def __call__(self, t: Tensor) -> Tensor:
        return t.atan() * (2 / math.pi)

    def __repr__(self) -> str:
        return "2/pi arctan(t)"


def callable_net(net: Any) -> Any:
    """The network. Raises TypeError for what cannot be called."""
    if not callable(net):
        raise InvalidType(f"net must be a module or function; got {type(net).__name__}")
    return net


def sample_of(out: Any) -> Tensor:
    """The tensor in what a network returned. Raises TypeError where there is none."""
    found = out
    if isinstance(out, Mapping):
        found = next((out[name] for name in OUTPUT_NAMES if name in out), None)
    elif hasattr(out, "sample") and not isinstance(out, Tensor):
        found = out.sample
    elif isinstance(out, tuple | list) and out:
        found = out[0]
    if isinstance(found, list) and found and all(isinstance(one, Tensor) for one in found):
        found = torch.stack(found)
    if not isinstance(found, Tensor):
        held = f" of {', '.join(map(str, out))}" if isinstance(out, Mapping) else ""
        raise InvalidType(
            "the network must return a tensor, an object with .sample, a dict with 'sample' or a "
            f"tuple; got {type(out).__name__}{held}: say where the tensor is with "
            "adapters.Wrapped(net, inputs, output)"
        )
    return found


def _parameters(net: Any) -> list[inspect.Parameter]:
    """What the network takes; nothing where Python cannot tell."""
    while not isinstance(net, type) and (inner := inside(net)) is not None:
        net = inner
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):
        return []
    return list(signature.parameters.values())


def _place_of_time(taken: list[inspect.Parameter]) -> str | int:
    """0 or 1 where the time is the first or second argument, else its name."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    placed = [p.name for p in taken if p.kind in kinds]
    named = [p.name for p in taken if p.kind not in (kinds[0], *_VARIADIC)]
    if placed[1:2] and placed[1] in TIME_NAMES:
        return 1
    if placed[:1] and placed[0] in TIME_NAMES:
        return 0
    return next((name for name in TIME_NAMES if name in named), 1)


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def inside(net: Any) -> Any:
    """The network in a compiled module or one of torch's parallel wrappers."""
    if isinstance(net, torch.nn.parallel.DistributedDataParallel | nn.DataParallel):
        return net.module
    return getattr(net, "_orig_mod", None)
