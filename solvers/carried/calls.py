"""The network calls of a run, kept differentiable in the state."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models.calling import Pair


class Call(NamedTuple):
    """One row's call.

    x: the state [B, ...], a leaf of autograd.
    data: D(x, t), of its graph.
    heard: what `Sampler.tell` takes, a constant.
    """

    x: Tensor
    data: Tensor
    heard: Tensor | Pair


def call(sampler: Any, state: Any, cond: dict[str, Any]) -> Call:
    """Call a sampler's network at a state, all of whose samples are at one row."""
    plan, clip, i = sampler.plan, sampler.model.clip, state.uniform
    x = state.x.detach().requires_grad_()
    with torch.enable_grad():
        x_in = (x * state.c_in).to(sampler.net_dtype)
        if x_in is x:
            x_in = x.clone()  # networks may work in place
        heard = sampler.model.hear(x_in, state.t_in, cond, plan.times[i], fresh=True)
        out = heard.combined() if isinstance(heard, Pair) else heard
        data = plan.skip[i] * x + plan.scale[i] * out.to(x.dtype)
        if clip is not None:
            data = data.clamp(*clip)
    if not data.requires_grad:
        raise InvalidValue(
            "net's output has no gradient with respect to x, which the density of a sample needs: "
            "drop no_grad, detach or a compiled inference mode from the network"
        )
    if isinstance(heard, Pair):
        return Call(x, data, Pair(heard.one.detach(), heard.other.detach(), heard.w))
    return Call(x, data, heard.detach())


def normal_log_prob(x: Tensor, std: float) -> Tensor:
    """log N(x; 0, std^2) of each sample, float64 [B]."""
    flat = x.double().flatten(1)
    each = math.log(std) + 0.5 * math.log(2 * math.pi)
    return -0.5 * flat.square().sum(1) / std**2 - flat.shape[1] * each
