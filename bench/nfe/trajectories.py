"""Paths of samples in the plane, as small multiples: what a solver does between its calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...models.data.drawing import pyplot, save
from ...solvers import Sampler, Tableau
from ..problems.exact import exact_draw
from ..problems.plans import planned
from ..problems.problem import Problem, from_unit
from ..problems.reference import Reference
from ..report.figures import OURS
from .cells import Cell


def path(problem: Problem, tableau: Tableau, count: int) -> Tensor:
    """States x/alpha after every row for the first `count` samples, [rows + 1, count, d].

    The states of a multi-stage method include its stages.
    """
    process = problem.process
    nodes = [*tableau.times.tolist(), float(tableau.grid[-1])]
    w = problem.start[:count]
    sampler = Sampler(problem.model, tableau, dtype=torch.float64)
    state = sampler.init(w.shape, problem.seed, x_init=from_unit(process, w, nodes[0]))
    with torch.no_grad():
        states = [state.x, *(step.x for step in sampler.steps(state))]
    alphas = [float(process.alpha(t)) for t in nodes]
    return torch.stack([x / a for x, a in zip(states, alphas, strict=True)])


def draw(
    file: Path,
    problem: Problem,
    reference: Reference,
    rows: Sequence[tuple[str, Mapping[int, Cell]]],
    count: int = 40,
) -> bool:
    """A panel for each solver that has a table (rows) and each cost (columns), over exact samples in
    grey; a ring marks where the exact trajectory ends. Returns whether there was any to draw."""
    shown = []
    for name, by_cost in rows:
        made = {n: planned(cell.config, problem, n).tableau for n, cell in by_cost.items()}
        tables = {n: table for n, table in made.items() if table is not None}
        if tables:
            shown.append((name.replace("\n", " "), tables))
    if not shown or not reference.covers([0.0]):
        return False
    plt = pyplot()
    exact = exact_draw(problem, 0.0, 1500, 5)
    ends = reference.at(0.0)[:count]
    reach = 1.35 * float(exact.abs().max())
    columns = max(len(tables) for _, tables in shown)
    fig, axes = plt.subplots(
        len(shown), columns, figsize=(2.6 * columns, 2.75 * len(shown)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax in axes.flat:
        ax.set_axis_off()
    for row, (name, tables) in zip(axes, shown, strict=True):
        for ax, (nfe, tableau) in zip(row, tables.items(), strict=False):
            ax.set_aspect("equal")
            ax.set_xlim(-reach, reach)
            ax.set_ylim(-reach, reach)
            ax.set_title(f"{name}, {nfe} NFE", fontsize=8)
            ax.scatter(*exact.T, s=1, color="#d5dae0", lw=0, rasterized=True)
            states = path(problem, tableau, count)
            for j in range(states.shape[1]):
                ax.plot(*states[:, j].T, color=OURS[0], lw=0.5, alpha=0.55)
            ax.scatter(*states[-1].T, s=7, color=OURS[1], zorder=3, lw=0)
            ax.scatter(*ends.T, s=7, facecolor="none", edgecolor="#222", lw=0.5, zorder=4)
    fig.suptitle(
        f"{problem.name}: paths (blue), their ends (red), where the exact ones end (rings)",
        fontsize=10,
    )
    save(fig, file)
    plt.close(fig)
    return True
