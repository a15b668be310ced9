"""The law of a deterministic run by the change of variables of its own map.

A table turns x_0 into x_N by rows x_{i+1} = sum_k a_ik x_{i-k} + sum_h b_ih D_{i-h}. Their
derivatives in x_0 follow the same rows,

    X_{i+1} = sum_k a_ik X_{i-k} + sum_h b_ih (dD/dx)(x_{i-h}) X_{i-h},        X_0 = I,

also of multi-step and multi-stage tables, and log q(x_N) = log N(x_0; 0, sigma^2) - log |det X_N|.
Nothing is estimated: q is what the solver samples from, however few its steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...models import jacobian
from ..outcome import Status
from ..tables.tableau import Tableau
from .calls import Call


class AlongMap:
    """X_i of a run, told row by row."""

    def __init__(self, table: Tableau, x: Tensor) -> None:
        d = x[0].numel()
        eye = torch.eye(d, dtype=torch.float64, device=x.device).expand(len(x), d, d)
        self.table, self.products = table, 0
        self.states: list[Tensor] = [eye]  # X_i, X_{i-1}, ...
        self.datas: list[Tensor] = []

    def row(self, i: int, made: Call) -> None:
        """Take the call of row i."""
        full = jacobian.full(made.data, made.x).double()
        self.products += full.shape[1]
        self.datas.insert(0, full @ self.states[0])
        a, b = self.table.state[i].tolist(), self.table.data[i].tolist()
        terms = [*zip(a, self.states, strict=False), *zip(b, self.datas, strict=False)]
        new = sum((w * m for w, m in terms if w), torch.zeros_like(self.datas[0]))
        self.states = [new, *self.states][: len(a)]
        self.datas = self.datas[: len(b)]

    def end(self, x: Tensor, base: Tensor) -> dict[str, Any]:
        """log q of the samples, given log N of their starts, [B]."""
        sign, size = torch.linalg.slogdet(self.states[0].cpu())
        sign, size = sign.to(x.device), size.to(x.device)
        nothing = torch.zeros_like(base)
        return {
            "log_prob": base - size,
            "std_error": nothing,
            "path_error": nothing,
            "doubt": torch.where(sign > 0, int(Status.OK), int(Status.FOLDED)),
        }
