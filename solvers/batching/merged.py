"""Tables of several solvers one below the other, as one table.

A column that a solver does not have is 0 there, and a coefficient of 0 takes no part in a step: so
each sample can point at a row of its own, of whatever table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.linear_reference import HEAD
from ...models import Denoiser
from ...models.calling import Pair
from ..sampling.loop import Loop, weighed
from ..sampling.plan import Plan
from ..sampling.sampler import Sampler
from ..sampling.state import Course, State
from ..tables.tableau import Identity

MOST_ROWS = 1 << 15
"""Of the common table: beyond it the tables of solvers that are no longer at work are dropped."""
Key = tuple[str, float | None]
"""The key of a plan, and the scale of guidance that its columns w0 and w1 are for."""


class Common(Loop):
    """A loop over the rows of many plans; `offsets` says at which row each begins."""

    def __init__(self, model: Denoiser) -> None:
        self.model, self.weighed = model, {}
        self.offsets: dict[Key, int] = {}

    @property
    def nfe(self) -> int:
        """Rows of all tables together."""
        return len(self.plan.t_in)

    def hold(self, samplers: Mapping[Key, Sampler]) -> None:
        """Make room for the tables of these samplers, which are all that are at work."""
        plans = {key: sampler.plan for key, sampler in samplers.items()}
        new = [key for key in plans if key not in self.offsets]
        if not new:
            return
        rows = self.nfe if self.offsets else 0
        if rows + sum(len(plans[key].t_in) for key in new) > MOST_ROWS:
            self.offsets, rows, new = {}, 0, list(plans)
        merged = [self.plan] if self.offsets else []
        for key in new:
            plan, w = plans[key], key[1]
            if w is not None:
                plan = replace(plan, table=weighed(plan.table, w))
            merged.append(plan)
            self.offsets[key] = rows
            rows += len(plan.t_in)
        self._merge(merged, next(iter(samplers.values())))

    def _merge(self, plans: Sequence[Plan], like: Sampler) -> None:
        states, datas = max(p.states for p in plans), max(p.datas for p in plans)
        normals = [0 if p.draws is None else p.draws.shape[1] for p in plans]
        most = max(normals)
        tables, draws = [], []
        for plan, m in zip(plans, normals, strict=True):
            parts = torch.split(plan.table, [HEAD, plan.states + 1, plan.datas + 1, m], 1)
            widths = (HEAD, states + 1, datas + 1, most)
            filled = [pad(v, (0, n - v.shape[1])) for v, n in zip(parts, widths, strict=True)]
            tables.append(torch.cat(filled, 1))
            if plan.draws is None:
                rows, device = len(plan.t_in), plan.table.device
                draws.append(torch.zeros(rows, most, dtype=torch.int64, device=device))
            else:
                draws.append(pad(plan.draws, (0, most - m)))
        table = torch.cat(tables)
        times = [t for plan in plans for t in plan.times]
        self.dtype, self.net_dtype = like.dtype, like.net_dtype
        self.plan = replace(
            plans[0],
            table=table,
            draws=torch.cat(draws) if most else None,
            rows=torch.arange(len(table), device=table.device),
            each=(),  # nothing here is at a row of all samples
            t_in=torch.cat([p.t_in for p in plans]),
            c_in=torch.cat([p.c_in for p in plans]),
            times=times,
            skip=[v for plan in plans for v in plan.skip],
            scale=[v for plan in plans for v in plan.scale],
            states=states,
            datas=datas,
            frame=Identity((1.0, 0.0)),
            key="common",
        )
        self.weighed.clear()
        self.course = Course("common", self.plan.t_in, self.plan.c_in, self.net_dtype)

    def _weighed(self, out: Tensor | Pair) -> tuple[tuple[Tensor, ...], Tensor]:
        """Pairs of requests are weighed by their own rows of the table, those of the model by w."""
        own = isinstance(out, Pair) and math.isnan(out.w)
        return (out[:2], self.plan.table) if own else super()._weighed(out)  # type: ignore[return-value]

    def adopt(self, state: State, at: Tensor) -> State:
        """The state as one of the common table's, at these rows of it."""

        def filled(history: tuple[Tensor, ...], length: int) -> tuple[Tensor, ...]:
            return history + (state.x,) * (length - len(history))  # with coefficients of 0

        states, datas = filled(state.states, self.plan.states), filled(state.datas, self.plan.datas)
        return replace(state, at=at, states=states, datas=datas, course=self.course)
