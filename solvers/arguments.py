"""What the public functions of this floor require of their arguments, in one voice.

Every check is named after what it returns: `steps = whole("steps", steps)`. It raises before
any network call, with a message that says what must hold and what came. Integers may be numpy's,
and numbers may be 0-dimensional tensors; booleans are neither.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.checks import as_seed, check_batch, ids_or_places
from ..kernels.errors import InvalidType, InvalidValue, did_you_mean, no_such
from ..models import Denoiser

T = TypeVar("T")
MANY = 24
"""Names beyond which a message does not list them all."""


# --- numbers ------------------------------------------------------------------------------------


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """An integer of at least `least` and at most `most`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except (TypeError, RuntimeError):
        kind = InvalidValue if isinstance(value, float) else InvalidType
        raise kind(f"{name} must be a whole number >= {least}; got {_named(value)}") from None
    if number < least:
        raise InvalidValue(f"{name} must be >= {least}; got {number}")
    if most is not None and number > most:
        raise InvalidValue(f"{name} must be <= {most}; got {number}")
    return number


def finite(name: str, value: Any) -> float:
    """A finite real number."""
    number = _real(name, value)
    if not math.isfinite(number):
        raise InvalidValue(f"{name} must be finite; got {number}")
    return number


def positive(name: str, value: Any, most: float = math.inf) -> float:
    """A finite number > 0 and <= most."""
    number = _real(name, value)
    if not (math.isfinite(number) and 0 < number <= most):
        wanted = "> 0 and finite" if most == math.inf else f"in (0, {most:g}]"
        raise InvalidValue(f"{name} must be {wanted}; got {number}")
    return number


WITHOUT_FLOAT64 = ("mps",)
LEAST = {torch.float32: 1e-7, torch.float64: 1e-13}
"""The finest tolerance of a step by dtype: about one rounding of float32, a thousand of float64.
Below it the error estimate is rounding, and steps shrink without end."""


def tolerance(name: str, value: Any, dtype: torch.dtype = torch.float64) -> float:
    """A tolerance of a step: from what the arithmetic of `dtype` can hold to 1."""
    number, least = positive(name, value), LEAST.get(dtype, 1e-7)
    if not least <= number <= 1:
        finer = ", or hand in float64" if number < least and dtype != torch.float64 else ""
        raise InvalidValue(
            f"{name} must lie in [{least:g}, 1] for {_short(dtype)}; got {number:g}: "
            f"{'raise' if number < least else 'lower'} it{finer}"
        )
    return number


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InvalidType(f"{name} must be True or False; got {_named(value)}")
    return value


def _real(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool | str | bytes) or (isinstance(value, Tensor) and value.is_meta):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InvalidType(f"{name} must be a number; got {_named(value)}") from None


# --- names --------------------------------------------------------------------------------------


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known words, as it is written."""
    names = list(known)
    if not isinstance(value, str) or value not in names:
        raise no_such(name, value, names)
    return value


def lookup(what: str, name: str, table: dict[str, T]) -> T:
    """table[name], or a ValueError that suggests the nearest known names, three at most."""
    if not isinstance(name, str):
        raise InvalidType(f"{what} must be a name or an object of that kind; got {name!r}")
    key = name.lower().replace("_", "-")
    for known, value in table.items():
        if known.replace("_", "-") == key:
            return value
    near = did_you_mean(key, [k.replace("_", "-") for k in table])
    known = f"known: {', '.join(table)}" if len(table) <= MANY else f"`undiffuse {what}s` has all"
    raise InvalidValue(f"unknown {what} {name!r}{near or ';'} {known}")


def keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError for a keyword that the function does not have, naming the nearest."""
    names = list(known)
    for name in given:
        if name not in names:
            near = did_you_mean(name, names)
            raise InvalidType(f"{function}() got an unexpected keyword argument {name!r}{near}")


def on_failure(value: Any) -> str:
    """'raise' or 'return'."""
    return choice("on_failure", value, ("raise", "return"))


# --- models and data ----------------------------------------------------------------------------


def denoiser(model: Any) -> Denoiser:
    """A `Denoiser`."""
    if not isinstance(model, Denoiser):
        raise InvalidType(f"model must be a Denoiser; got {_named(model)}{_to_declare(model)}")
    return model


def _to_declare(model: Any) -> str:
    """What makes a `Denoiser` of what was handed in."""
    if isinstance(getattr(model, "denoiser", None), Denoiser):
        return ": hand in its .denoiser"
    if callable(model):
        return ": say what it predicts, ud.Denoiser(net, ud.VP(), predicts='noise')"
    return ""


def event_batch(name: str, value: Any, shape: Sequence[int] | None = None) -> Tensor:
    """Data [B, *event], B >= 1: a strided float32 or float64 tensor without NaN and Inf.

    shape: what it must be, where that is known.
    """
    if not isinstance(value, Tensor):
        raise InvalidType(
            f"{name} must be a float32 or float64 tensor [B, ...]; got {_named(value)}: "
            "torch.as_tensor makes one"
        )
    if value.dtype not in (torch.float32, torch.float64):
        hint = ""
        if value.is_complex():
            hint = ": hand in its real part, or both parts as channels"
        elif not value.is_floating_point():
            hint = ": integers have no density, choose a dequantisation in solvers.bits_per_dim"
        raise InvalidType(
            f"{name} must be a float32 or float64 tensor [B, ...]; got {value.dtype}{hint}"
        )
    if value.layout != torch.strided:
        raise InvalidType(f"{name} must be dense; got {value.layout}: hand in {name}.to_dense()")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise InvalidValue(f"{name} must be of shape {tuple(shape)}; got {tuple(value.shape)}")
    if value.ndim < 2 or value.numel() == 0:
        raise InvalidValue(f"{name} must be [B, ...] with B >= 1; got {tuple(value.shape)}")
    if value.is_meta:
        raise InvalidValue(f"{name} is on the meta device and holds no numbers: move it to another")
    most = math.sqrt(torch.finfo(value.dtype).max)
    if not bool((value.abs() <= most).all()):
        bad = (~torch.isfinite(value)).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise InvalidValue(f"{name} must be finite; samples {bad[:8]} hold NaN or Inf")
        raise InvalidValue(
            f"{name} must be below {most:.2g} in size, since densities square it; "
            f"got {float(value.abs().max()):.2g}"
        )
    return value


def data(model: Any, x: Any, name: str = "x") -> None:
    """Raises unless the model is a `Denoiser` and x data [B, *event] on a device with float64."""
    denoiser(model)
    event_batch(name, x)
    if x.device.type in WITHOUT_FLOAT64:
        raise InvalidValue(
            f"{name} is on {x.device}, which has no float64, and log densities are summed in it: "
            f"move the network and {name} to the CPU"
        )


def batch_shape(name: str, value: Any) -> tuple[int, ...]:
    """Sizes (B, *event), all >= 1."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidType(f"{name} must be (batch, ...), whole numbers; got {_named(value)}")
    sizes = tuple(whole(f"{name}[{i}]", n) for i, n in enumerate(value))
    if len(sizes) < 2:
        raise InvalidValue(f"{name} must be (batch, ...) of positive sizes; got {sizes}")
    return sizes


sample_ids = ids_or_places
"""Global sample ids, int64 [B] on the device; their places by default."""


def seed_of(value: Any, batch: int, device: torch.device | str) -> int | Tensor:
    """A seed for all samples (int) or one each (int64 [B] on the device)."""
    made = as_seed(value, device)
    check_batch("seed", made, batch)
    return operator.index(value) if isinstance(value, int | np.integer) else made


def seeds_of(seed: int | Tensor, rows: Tensor) -> int | Tensor:
    """The seeds of these samples: the one of all, or their own."""
    return seed[rows] if isinstance(seed, Tensor) and seed.numel() > 1 else seed


def device(name: str, value: Any, meta: bool = False) -> torch.device:
    """A device; meta: also the one that holds no numbers."""
    try:
        found = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise InvalidValue(
            f"{name} must be a device, e.g. 'cpu' or 'cuda'; got {value!r}"
        ) from error
    if found.type == "meta" and not meta:
        raise InvalidValue(f"{name} is 'meta', which holds no numbers: choose another device")
    return found


def dtype(name: str, value: Any) -> torch.dtype:
    """A floating dtype."""
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise InvalidType(f"{name} must be a floating dtype, e.g. torch.float32; got {value!r}")
    return value


def device_of(model: Denoiser) -> torch.device:
    """Of the network's first parameter; the CPU where it has none."""
    if isinstance(model.net, nn.Module):
        for p in model.net.parameters():
            return p.device
    return torch.device("cpu")


def dtype_of(model: Denoiser) -> torch.dtype:
    """Of the network's first floating parameter; float32 where it has none."""
    if isinstance(model.net, nn.Module):
        for p in model.net.parameters():
            if p.dtype.is_floating_point:
                return p.dtype
    return torch.float32


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _named(value: Any) -> str:
    """A value in a message: numbers and texts themselves, of anything else the type."""
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    return type(value).__name__
