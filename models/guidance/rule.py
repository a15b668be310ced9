"""What the rules of guidance have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ..denoiser import Denoiser


def data_and_vjp(
    model: Denoiser, x: Tensor, t: Tensor, cond: dict[str, Any], t_in: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """D(x, t), unclipped, and v -> (dD/dx)^T v; both differentiable where gradients are on.

    Raises ValueError where autograd cannot see through the network.
    """
    keep = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        leaf = x if keep else x.detach().requires_grad_()
        d = model.read("data", leaf, t, cond, t_in, clip=False)
        # D holds x itself beside the output, so that only the output tells
    if not d.requires_grad:
        raise InvalidValue(
            "the network's output has no gradient with respect to x, which this guidance needs: "
            "drop no_grad, detach or inference mode from the network"
        )

    def vjp(v: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(d, leaf, v, retain_graph=True, create_graph=keep)
        return g

    return (d if keep else d.detach()), vjp


def name_of(model: Denoiser) -> str:
    """What a guided model prints its part as."""
    return repr(model.net) if hasattr(model.net, "title") else type(model.net).__name__


def finite(name: str, value: Any, least: float | None = None) -> float:
    """`value` as a float. Raises TypeError or ValueError unless it is a finite number, > least."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidType(f"{name} must be a number; got {value!r}")
    if not torch.isfinite(torch.tensor(float(value), device="cpu")):
        raise InvalidValue(f"{name} must be finite; got {value}")
    if least is not None and not value > least:
        raise InvalidValue(f"{name} must be > {least:g}; got {value}")
    return float(value)
