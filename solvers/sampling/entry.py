"""What a run requires of its arguments, before the first network call."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.checks import FLOATS
from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser
from ...models.calling import weights_type
from .. import arguments

MOST = 10**6
LARGE = 2**28  # elements: smaller states are allocated without being asked about


class Types(NamedTuple):
    """Of the state, of the network's input, and of the times that it is told."""

    state: torch.dtype
    network: torch.dtype
    time: torch.dtype


def types(model: Denoiser, asked: torch.dtype | None) -> Types:
    """asked: the caller's dtype.

    A float64 state is handed to a network of narrower parameters in their type: no layer takes it
    otherwise. A half type is of the network's input alone, and bfloat16 would round time 999.
    """
    if asked is not None and asked not in FLOATS:
        names = ", ".join(str(t).removeprefix("torch.") for t in FLOATS)
        raise InvalidValue(f"dtype must be a floating type, one of {names}; got {asked}")
    weights = weights_type(model.net)
    wide = asked == torch.float64
    network = weights if wide and weights else asked or weights or torch.float32
    double, single = torch.float64, torch.float32
    return Types(
        state=double if wide or network == double else single,
        network=network,
        time=double if network == double else single,
    )


def place(model: Denoiser, asked: torch.device | str | None) -> torch.device:
    """The device of a run, by default the network's; 'meta' traces shapes without numbers."""
    if asked is None:
        return arguments.device_of(model)
    if str(asked).startswith("meta"):
        return torch.device(asked)
    return arguments.device("device", asked)


def count(name: str, value: Any) -> int:
    """A number of steps or calls that a table can be made of."""
    return arguments.whole(name, value, 1, MOST)


def start_state(x: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """x_init: a dense floating tensor of the shape, without NaN and Inf, for a run on `device`."""
    if not isinstance(x, Tensor):
        raise InvalidValue(
            f"x_init must be a tensor of shape {shape}; got {type(x).__name__}: "
            "torch.as_tensor makes one"
        )
    if x.dtype not in FLOATS:
        hint = ": hand in its real part, or both parts as channels" if x.is_complex() else ""
        raise InvalidType(f"x_init must be a floating tensor; got {x.dtype}{hint}")
    if x.layout != torch.strided:
        raise InvalidType(f"x_init must be dense; got {x.layout}: hand in x_init.to_dense()")
    if x.is_meta and device.type != "meta":
        raise InvalidValue("x_init is on the device 'meta', which holds no numbers")
    if tuple(x.shape) != shape:
        raise InvalidValue(f"x_init must be a tensor of shape {shape}; got {tuple(x.shape)}")
    if _readable(x) and not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
        raise InvalidValue(f"x_init must be finite; samples {bad[:8]} hold NaN or Inf")
    return x


def own_noise(noise: Any, x: Tensor, table: Any) -> None:
    """Raises unless `noise` is a normal like x for a table that adds one before its first call."""
    added = table.entry[1] if isinstance(table.entry, tuple) else 0.0
    if added == 0.0:
        raise InvalidValue(f"{table.name} adds no noise before its first call: leave noise out")
    fits = isinstance(noise, Tensor) and noise.shape == x.shape and noise.device == x.device
    if not fits or not noise.is_floating_point():
        got = f"{tuple(noise.shape)} {noise.dtype}" if isinstance(noise, Tensor) else repr(noise)
        raise InvalidValue(
            f"noise must be floating, {tuple(x.shape)} on {x.device} like x; got {got}"
        )


def _readable(x: Tensor) -> bool:
    """Whether the host may look at x here: not while a graph is traced or captured."""
    if (
        torch.compiler.is_compiling()
        or x.is_meta
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
    ):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def allocatable(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError for a state that there is no memory for."""
    size = math.prod(shape)
    if size < LARGE or device.type == "meta":
        return
    try:
        torch.empty(size, dtype=dtype, device=device)
    except (RuntimeError, TypeError, OverflowError):  # the last two: more than 2^63 elements
        raise InvalidValue(
            f"shape {shape} needs {size * dtype.itemsize / 2**30:.3g} GiB for one state, which "
            f"cannot be allocated on {device}: draw fewer samples at a time"
        ) from None


def callback(function: Callable[[Any], None] | None) -> None:
    """Raises TypeError for what cannot be called with one `StepInfo`."""
    if function is None:
        return
    try:
        inspect.signature(function).bind(None)
    except ValueError:  # of builtins without a signature
        return
    except TypeError:
        raise InvalidType(
            f"callback must be a function of one argument, a StepInfo; got {function!r}"
        ) from None
