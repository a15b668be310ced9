"""The engine of every single-step family: a step is a few stages, each a row of the table.

A family writes stage by stage what the next network call sees, in terms of this step's earlier
states and predictions; the rows, lags and draw indices follow. A step may end short of its node
and make up the rest with fresh noise (`eta`), which dials stochasticity for every process alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels.shapes import as_float64
from ...models import Process
from ..tables.solver import Path
from ..tables.tableau import Tableau
from .multistep_engine import body, finish

Column = Tensor | float


@dataclass(frozen=True)
class Node:
    """alpha, sigma and lambda of n nodes, [n] float64."""

    alpha: Tensor
    sigma: Tensor
    lam: Tensor

    @classmethod
    def at(cls, process: Process, lam: Tensor) -> Node:
        t = process.inverse_log_snr(lam)
        return cls(process.alpha(t), process.sigma(t), lam)


@dataclass(frozen=True)
class Legs:
    """n steps of finite length: from `start`, called at t, to `end`, then noise z on top.

    With eta = 0 `end` is the next node; otherwise it has the next node's alpha and a sigma that
    is lower by what the noise restores, sigma_end^2 + noise^2 = sigma^2 (Song et al. 2021a, 16).
    """

    process: Process
    t: Tensor
    start: Node
    end: Node
    noise: Tensor

    @property
    def h(self) -> Tensor:
        return self.end.lam - self.start.lam

    def between(self, r: Column) -> Node:
        """The nodes a share r of the way, in lambda."""
        return Node.at(self.process, self.start.lam + r * self.h)


def legs(path: Path, eta: float = 0.0) -> Legs:
    """The steps of `body(path)` that start at finite lambda."""
    inner = body(path)
    first = int(not bool(torch.isfinite(inner.lam[0])))
    start = Node(inner.alpha[first:-1], inner.sigma[first:-1], inner.lam[first:-1])
    alpha, sigma, lam = inner.alpha[first + 1 :], inner.sigma[first + 1 :], inner.lam[first + 1 :]
    log_kept = 0.5 * torch.log1p(eta**2 * torch.expm1(-2 * (lam - start.lam)))
    end = Node(alpha, sigma * torch.exp(log_kept), lam - log_kept)
    noise = sigma * torch.sqrt(-torch.expm1(2 * log_kept).clamp(max=0.0))
    return Legs(path.process, inner.t[first:-1], start, end, noise)


@dataclass(frozen=True)
class Stage:
    """What a stage writes: sum_l states[l] x_l + sum_l datas[l] D_l + sum_k noises[k] z_k.

    l counts this step's earlier stages, x_0 being its start; k counts its normals. lam: where the
    network is then called; None for the step's end.
    """

    lam: Tensor | None
    states: Sequence[Column]
    datas: Sequence[Column]
    noises: Sequence[Column] = field(default=())


def single_step(
    name: str,
    path: Path,
    steps: Legs,
    stages: Sequence[Stage],
    *,
    eta: float = 0.0,
    order: float | None = None,
    weak_order: float | None = None,
) -> Tableau:
    """The table of n steps of these stages; DDIM(eta) from pure noise, a jump to sigma = 0."""
    times, rows = filled(steps, stages)
    if not bool(torch.isfinite(path.lam[0])) and len(body(path).t) > 1:
        times, rows = _from_pure_noise(path, times, rows, eta)
    state, data, noise, draws = rows
    return finish(
        name, path, times, state, data, noise, 1 + draws, order=order, weak_order=weak_order
    )


def filled(steps: Legs, stages: Sequence[Stage]) -> tuple[Tensor, list[Tensor]]:
    """Times of the calls of these steps, and their rows' states, datas, noises and draws."""
    n, count = len(steps.t), len(stages)
    normals = max(len(s.noises) for s in stages)
    fresh = int(bool((steps.noise != 0).any()))
    width = normals + fresh
    state, data = (
        torch.zeros(n, count, count, dtype=torch.float64, device="cpu") for _ in range(2)
    )
    noise = torch.zeros(n, count, width, dtype=torch.float64, device="cpu")
    calls = [steps.t]
    for j, stage in enumerate(stages):
        for matrix, parts in ((state, stage.states), (data, stage.datas)):
            for stage_index, part in enumerate(parts):
                matrix[:, j, j - stage_index] = as_float64(part)
        for k, part in enumerate(stage.noises):
            noise[:, j, k] = as_float64(part)
        if stage.lam is not None:
            calls.append(steps.process.inverse_log_snr(stage.lam))
    if fresh:
        noise[:, -1, -1] = steps.noise
    times = torch.stack(calls, 1).flatten()
    draws = torch.arange(n * width, device="cpu").reshape(n, 1, width).expand(n, count, width)
    return times, [m.reshape(n * count, m.shape[-1]) for m in (state, data, noise, draws)]


def _from_pure_noise(
    path: Path, times: Tensor, rows: list[Tensor], eta: float
) -> tuple[Tensor, list[Tensor]]:
    """Put a first row of DDIM(eta) from lambda = -inf before the others."""
    state, data, noise, draws = rows
    if eta and not noise.shape[1]:
        noise, draws = (torch.nn.functional.pad(m, (0, 1)) for m in (noise, draws))
    first = [m.new_zeros(1, m.shape[1]) for m in (state, data, noise)]
    first[0][0, 0] = (1 - eta**2) ** 0.5 * path.sigma[1] / path.sigma[0]
    first[1][0, 0] = path.alpha[1]
    if eta:
        first[2][0, 0] = eta * path.sigma[1]
    used = draws.new_zeros(1, draws.shape[1])
    heads = [*first, used]
    shift = int(eta > 0)
    bodies = [state, data, noise, draws + shift]
    return torch.cat([path.t[:1], times]), [
        torch.cat(pair) for pair in zip(heads, bodies, strict=True)
    ]
