"""What each row of a table adds that the states before it do not tell: its mean and deviation.

Given the states and predictions up to row i, the next state is normal. Where every normal is drawn
in one row its mean is the row without noise and its variance the sum of squares. Where a stage and
the step's end share normals, the stage has told something of them: with the noise matrix C of the
rows, C C^T = L L^T and the residuals r_j = x_{j+1} - (row j without noise) of the past rows,

    mean_i = (row i without noise) + L_{i,<i} L_{<i,<i}^{-1} r_{<i},      std_i = L_ii

(the innovations of a Gaussian sequence, Brockwell & Davis 1991, section 5.2). Both are linear in
what the run has seen, so the conditional means are a table too, of longer histories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .tableau import Tableau

EXACT = 1e-10
"""A residual of a row's noise below this share of it is rounding: the past tells all of it."""


class Innovations(NamedTuple):
    """The law of each row given the run before it.

    mean: the table of conditional means. Its normals, if any, are the entry's, which the run has
        drawn before its first row.
    std: float64 [N], of what the row adds; 0 for a row that the past determines.
    """

    mean: Tableau
    std: Tensor


def innovations(table: Tableau) -> Innovations:
    """The law of each row of a table given all states and predictions before it."""
    row, draw, c = _normals(table)
    entered = (draw == 0) if table.entry[1] else torch.zeros_like(draw, dtype=torch.bool)
    known = torch.zeros(table.nfe, 1, dtype=torch.float64, device="cpu")
    known[row[entered], 0] = c[entered]
    row, draw, c = row[~entered], draw[~entered], c[~entered]
    std = torch.zeros(table.nfe, dtype=torch.float64, device="cpu")
    std = std.index_add(0, row, c.square()).sqrt()
    pulls = list(_pulls(row, draw, c, std))
    state, data = table.state, table.data
    if pulls:
        longest = max(i - j for i, j, _ in pulls)
        state, data = (torch.nn.functional.pad(m, (0, longest + 1)) for m in (state, data))
    a, b, entry = state.numpy(), data.numpy(), known.numpy()  # the same memory
    rows_a, rows_b = table.state.numpy(), table.data.numpy()
    for i, j, w in pulls:
        back = i - j
        a[i, back - 1] += w  # x_{j+1}, less row j without noise
        a[i, back : back + rows_a.shape[1]] -= w * rows_a[j]
        b[i, back : back + rows_b.shape[1]] -= w * rows_b[j]
        entry[i] -= w * entry[j]
    mean = replace(
        table,
        state=state,
        data=data,
        noise=known,
        draws=torch.zeros(table.nfe, 1, dtype=torch.int64, device="cpu"),
        name=f"mean({table.name})",
    )
    return Innovations(mean.trimmed(), std)


def as_wide(table: Tableau, other: Tableau) -> Tableau:
    """The same table with at least as many columns of states and predictions as another's."""

    def wide(mine: Tensor, theirs: Tensor) -> Tensor:
        return torch.nn.functional.pad(mine, (0, max(0, theirs.shape[1] - mine.shape[1])))

    state, data = wide(table.state, other.state), wide(table.data, other.data)
    return replace(table, state=state, data=data)


def _normals(table: Tableau) -> tuple[Tensor, Tensor, Tensor]:
    """Row, draw index and coefficient of each normal that a row draws, each pair once."""
    where = table.noise != 0
    pairs = torch.stack([where.nonzero()[:, 0], table.draws[where]], 1)
    pairs, place = torch.unique(pairs, dim=0, return_inverse=True)
    c = torch.zeros(len(pairs), dtype=torch.float64, device="cpu")
    return pairs[:, 0], pairs[:, 1], c.index_add(0, place, table.noise[where])


def _pulls(row: Tensor, draw: Tensor, c: Tensor, std: Tensor) -> Iterator[tuple[int, int, float]]:
    """(i, j, w): the mean of row i moves by w times the residual of row j < i.

    Sets std[i] where rows before i share normals with it.
    """
    rows, draws, numbers, own_std = row.numpy(), draw.numpy(), c.numpy(), std.numpy()
    for first, last in _blocks(row, draw):
        inside = slice(*np.searchsorted(rows, [first, last]))
        columns, place = np.unique(draws[inside], return_inverse=True)
        noise = np.zeros((last - first, len(columns)))
        noise[rows[inside] - first, place] = numbers[inside]
        basis, lower = np.zeros_like(noise), np.zeros((len(noise), len(noise)))
        told: list[int] = []  # rows of the block that add something of their own
        for n, own in enumerate(noise):
            left = own.copy()
            for _ in range(2):  # Gram-Schmidt twice is as exact as rounding allows
                along = basis[told] @ left
                lower[n, told] += along
                left -= along @ basis[told]
            size = float(np.linalg.norm(left))
            own_std[first + n] = size if size > EXACT * float(np.linalg.norm(own)) else 0.0
            if lower[n, told].any():
                pull = np.linalg.solve(lower[np.ix_(told, told)].T, lower[n, told])
                yield from (
                    (first + n, first + k, float(w)) for k, w in zip(told, pull, strict=True)
                )
            if own_std[first + n] > 0:
                lower[n, n], basis[n] = size, left / size
                told.append(n)


def _blocks(row: Tensor, draw: Tensor) -> Iterator[tuple[int, int]]:
    """Spans of rows [first, last) that share normals."""
    columns, place = torch.unique(draw, return_inverse=True)
    ends = [
        torch.zeros(len(columns), dtype=torch.int64, device="cpu").scatter_reduce(
            0, place, row, how, include_self=False
        )
        for how in ("amin", "amax")
    ]
    spans = sorted((a, b) for a, b in zip(*(e.tolist() for e in ends), strict=True) if b > a)
    while spans:
        first, last = spans.pop(0)
        while spans and spans[0][0] <= last:
            last = max(last, spans.pop(0)[1])
        yield first, last + 1
