"""The one place where a network is called: what it is shown, and what it may return."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.errors import InvalidType, InvalidValue, RunFailure
from . import conditions


class Pair(NamedTuple):
    """Two outputs of guidance, w one + (1 - w) other, which the step weighs as it reads them.

    one, other: [B, ...], of the same shape and device.
    w: a number.
    """

    one: Tensor
    other: Tensor
    w: float

    def combined(self) -> Tensor:
        """The one output that they stand for."""
        return self.other + self.w * (self.one - self.other)


class Seen:
    """What was found out about a network while it was called.

    writes_x, writes_t: whether it writes into what it is shown; None before its first call.
    training: whether its mode was looked at.
    repeated: the runs of it that were captured; see `graph="auto"` of `ud.sample`.
    """

    repeated: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has met no runs: graphs are of this process and this object alone."""
        return {name: value for name, value in vars(self).items() if name != "repeated"}

    def __init__(self) -> None:
        self.writes_x: bool | None = None
        self.writes_t: bool | None = None
        self.training = False


def called(
    net: Callable[..., Any],
    seen: Seen,
    x_in: Tensor,
    t_in: Tensor,
    cond: dict[str, Any],
    fresh: bool,
) -> Tensor:
    """net(x_in, t_in, **cond), as `Denoiser.call` describes it.

    The first call is shown copies, and tells whether later ones must be. The version that torch
    counts for every tensor shows whether one was written to, at no cost.
    """
    compiling = torch.compiler.is_compiling()
    if not (seen.training or compiling or torch.is_grad_enabled()):
        seen.training = True
        _name_training(net)
    known_x, known_t = (v is False and not compiling for v in (seen.writes_x, seen.writes_t))
    shown = x_in if known_x or fresh else x_in.clone()
    told = t_in if known_t else t_in.clone()
    before_x, before_t = _version(shown), _version(told)
    with _eagerly(x_in):
        out = _ask(net, shown, told, conditions.plain(cond))
    wrote_x = before_x is None or before_x != _version(shown)
    wrote_t = before_t is None or before_t != _version(told)
    if (known_x and wrote_x and not fresh) or (known_t and wrote_t):
        raise RunFailure(WROTE)
    if not known_x and not fresh and not compiling:
        if not wrote_x and x_in.device.type == "cpu":
            wrote_x = not torch.equal(shown, x_in)  # what is written through .data is not counted
        seen.writes_x = wrote_x
    if not known_t and not compiling:
        seen.writes_t = wrote_t
    return _checked(out, x_in)


def _eagerly(x_in: Tensor) -> AbstractContextManager[Any]:
    """Compiled networks run as they were written where their derivative in x is asked for.

    A compiled backward pass frees what it needs (donated buffers), so that it can be run once only,
    and not for several probes at once.
    """
    wanted = x_in.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if wanted and "torch._dynamo" in sys.modules:
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


HALVES = (torch.bfloat16, torch.float16)
FLOATING = (torch.float64, torch.float32, *HALVES)
KINDS = {"float64": "double", "float32": "float", "bfloat16": "bfloat16", "float16": "half"}


def weights_type(net: Any) -> torch.dtype | None:
    """Type of the network's first floating parameter; None where none is known."""
    own = net.parameters() if isinstance(net, nn.Module) else ()
    return next((p.dtype for p in own if p.dtype.is_floating_point), None)


def as_taken(net: Any, x: Tensor) -> Tensor:
    """x in the type of a network of half precision; as it is for any other."""
    own = weights_type(net)
    return x.to(own) if own in HALVES else x


def repeated(
    net: Callable[..., Any], seen: Seen, cond: dict[str, Any]
) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """`called` for loops: (x_in, t_in, t) -> the output, x_in fresh and t not looked at.

    Outside compilers. What is known of the network from its first calls is not found out again.
    """
    told = conditions.plain(cond)

    def ask(x_in: Tensor, t_in: Tensor, _: Any = None) -> Tensor:
        if (
            seen.writes_t is not False
            or not seen.training
            or x_in.requires_grad
            or t_in.is_inference()
        ):
            return called(net, seen, x_in, t_in, cond, True)
        before = t_in._version
        try:
            out = net(x_in, t_in, **told)
        except (TypeError, RuntimeError) as error:
            _explain(net, x_in, t_in, told, error)
            raise
        if before != t_in._version:
            raise RunFailure(WROTE)
        if (
            type(out) is Tensor
            and out.shape == x_in.shape
            and out.dtype in FLOATING
            and out.layout == torch.strided
            and out.device == x_in.device
        ):
            return out
        return _checked(out, x_in)

    return ask


WROTE = (
    "the network writes into its input, which it did not at its first call: let it work "
    "out of place (inplace=False)"
)


def _ask(net: Callable[..., Any], x: Tensor, t: Tensor, cond: dict[str, Any]) -> Any:
    """net(x, t, **cond); says what is wrong where Python and torch only say that something is."""
    try:
        return net(x, t, **cond)
    except (TypeError, RuntimeError) as error:
        _explain(net, x, t, cond, error)
        raise


def _explain(
    net: Callable[..., Any], x: Tensor, t: Tensor, cond: dict[str, Any], error: Exception
) -> None:
    """Raise InvalidType where the error comes of what the network was handed."""
    if isinstance(error, TypeError):
        clash = re.search(r"multiple values for argument '(\w+)'", str(error))
        if clash is None or clash[1] not in cond:
            _say_what_it_takes(net, x, t, cond, error)
            return
        raise InvalidType(
            f"cond[{clash[1]!r}] has the name under which the network takes x or t, its first two "
            "arguments: rename that argument of the network"
        ) from error
    weights = list(net.parameters()) if isinstance(net, nn.Module) else []
    found = {p.dtype for p in weights if p.is_floating_point()} - {x.dtype}
    if not found or not re.search(r"dtype|scalar type|[Ii]nput type", str(error)):
        return
    have = " and ".join(sorted(map(str, found)))
    cast = min(map(str, found)).removeprefix("torch.")
    remedy = f"hand in x.{KINDS[cast]}() or cast" if cast in KINDS else "cast"
    raise InvalidType(
        f"x is {x.dtype} but the network's parameters are {have}: {remedy} the network, "
        f"net.{KINDS[str(x.dtype).removeprefix('torch.')]}()"
    ) from error


def _say_what_it_takes(
    net: Callable[..., Any], x: Tensor, t: Tensor, cond: dict[str, Any], error: TypeError
) -> None:
    """Raise InvalidType where the network's arguments cannot be (x, t, **cond)."""
    try:
        taken = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):  # builtins do not say
        return
    try:
        taken.bind(x, t, **cond)
    except TypeError as reason:
        names = "".join(f", {name}=..." for name in cond)
        raise InvalidType(
            f"net is called as net(x, t{names}), but takes {taken}: {reason}. Hand in a function "
            "that takes these, or other names in cond"
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
    if out.dtype not in FLOATING or out.layout != torch.strided:
        layout = "" if out.layout == torch.strided else f", {out.layout}"
        raise InvalidType(
            "net must return a dense tensor, float16, bfloat16, float32 or float64, of floating "
            f"numbers; got {out.dtype}{layout}"
        )
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
    """Warn of training mode where a layer then depends on the batch or on chance."""
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
