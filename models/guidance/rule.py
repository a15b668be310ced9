"""A denoiser made from a denoiser: what all guidance has in common.

A rule sees x and the true time t, whatever the network is handed, and returns an output in one
read-out. The new denoiser keeps the old one's process, time convention and options, so that every
solver, grid and likelihood takes it as it took the old one.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.shapes import column
from ..denoiser import Denoiser

Rule = Callable[..., Tensor]
"""rule(x [B, ...], t float64 [B], cond, **rows) -> output of x's shape; see `apply_rule` for rows."""
HELD = "held "
"""How the names begin under which a guided denoiser's `cond` holds its rows."""
_serial = itertools.count()


class Guided(nn.Module):
    """net(x, t, **cond) of a rule; holds the networks it calls, and prints as what it does.

    calls: of networks that are not guided themselves, in one evaluation.
    """

    def __init__(
        self, call: Callable[..., Tensor], title: str, calls: int, *models: Denoiser
    ) -> None:
        super().__init__()
        self.call, self.title, self.calls = call, title, calls
        nets = [m.net for m in models if isinstance(m.net, nn.Module)]
        self.nets = nn.ModuleList(nets)  # their device and parameters are this module's

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.call(x, t, **cond)

    def __repr__(self) -> str:
        return self.title

    def __deepcopy__(self, memo: dict[int, Any]) -> Guided:
        """A copy that calls its own networks: those its rule refers to are copied with it."""
        made = Guided(_deep(self.call, memo), self.title, self.calls)
        made.nets = copy.deepcopy(self.nets, memo)
        return made.train(self.training)


def _deep(value: Any, memo: dict[int, Any]) -> Any:
    """copy.deepcopy, which leaves functions as they are, but for what a closure refers to."""
    if not isinstance(value, FunctionType) or not value.__closure__:
        return copy.deepcopy(value, memo)
    cells = tuple(CellType(_deep(cell.cell_contents, memo)) for cell in value.__closure__)
    made = FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
    )  # fmt: skip
    made.__kwdefaults__ = value.__kwdefaults__
    return made


def guidance_of(net: Callable[..., Tensor]) -> Guided | None:
    """The guidance that `net` is, or that a wrapper holds as its own `net`."""
    parts = (net, getattr(net, "net", None))
    return next((part for part in parts if isinstance(part, Guided)), None)


def calls_of(net: Callable[..., Tensor]) -> int:
    """Network calls that one evaluation of `net` makes: 1, or what guidance makes of it."""
    guided = guidance_of(net)
    return 1 if guided is None else guided.calls


def leaves(net: Callable[..., Tensor]) -> list[nn.Module]:
    """The modules that guidance calls in the end; none where `net` is no guidance."""
    guided = guidance_of(net)
    inner = [] if guided is None else list(guided.nets)
    return list(dict.fromkeys(leaf for part in inner for leaf in leaves(part) or [part]))


def apply_rule(
    model: Denoiser,
    title: str,
    rule: Rule,
    predicts: str | None = None,
    *others: Denoiser,
    calls: int | None = None,
    rows: dict[str, Any] | None = None,
) -> Denoiser:
    """`model` with `rule` in the place of its network, its output read as `predicts`.

    title: how it prints. others: further denoisers that the rule calls. calls: of networks in one
    evaluation; None is one evaluation of `model`. rows: keyword arguments of the rule. Tensors with
    a row for each sample are kept in the denoiser's cond too, so that solvers that ask about some
    of the samples (log_prob, adaptive steps) hand over those samples' rows.
    """
    rows = rows or {}
    names = {key: f"{HELD}{next(_serial)} {key}" for key, v in rows.items() if _has_rows(v)}
    inner = {key: v for m in (*others, model) for key, v in m.cond.items() if key.startswith(HELD)}
    calls = calls_of(model.net) if calls is None else calls
    predicts = predicts or model.predicts
    named = not callable(model.time)
    shell = replace(
        model, net=_unset, predicts=predicts, time=model.time if named else "continuous"
    )

    def net(x_in: Tensor, t_in: Tensor, **cond: Any) -> Tensor:
        t = true_time(shell, t_in)
        x = x_in
        if predicts == "edm":
            x = x_in / column(shell.network_scale(t), x_in)
        mine = {key: cond.get(names.get(key, ""), value) for key, value in rows.items()}
        cond = {k: v for k, v in cond.items() if k in inner or not k.startswith(HELD)}
        return rule(x, t, cond, **mine)

    held = {name: rows[key] for key, name in names.items()}
    return replace(
        shell, net=Guided(net, title, calls, model, *others), cond={**inner, **model.cond, **held}
    )


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def of_model(model: Denoiser, cond: dict[str, Any]) -> dict[str, Any]:
    """What of `cond` is for `model`: the rows that it holds itself, and all that is nobody's rows."""
    return {k: v for k, v in cond.items() if k in model.cond or not k.startswith(HELD)}


def true_time(model: Denoiser, t_in: Tensor) -> Tensor:
    """The t, float64 [B], at which a network of a named time convention is handed t_in [B]."""
    t = t_in.double()
    if model.time == "continuous":
        return t
    if model.time == "index":
        return (t + 1) / model.steps
    lam = -4 * t if model.time == "edm" else -t.log()
    return model.process.inverse_log_snr(lam)


def data_and_vjp(
    model: Denoiser, x: Tensor, t: Tensor, cond: dict[str, Any]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """D(x, t), unclipped, and v -> (dD/dx)^T v; both differentiable where gradients are on."""
    keep = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        leaf = x if keep else x.detach().requires_grad_()
        d = replace(model, clip=None)(leaf, t, **cond)

    def vjp(v: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(d, leaf, v, retain_graph=True, create_graph=keep)
        return g

    return (d if keep else d.detach()), vjp


def _unset(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
    raise NotImplementedError
