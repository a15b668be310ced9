"""Paths of samples in the plane, as small multiples: what a solver does between its calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..solvers import Sampler, get
from .exact import exact_draw
from .figures import OURS, pyplot, save
from .plans import Unavailable, largest
from .problems import Problem, from_unit
from .reference import Reference


def path(problem: Problem, solver: str, grid: str, nfe: int, count: int) -> Tensor:
    """States x/alpha after every row of the first `count` samples, [rows + 1, count, d].

    The states of a multi-stage method include its stages. Raises Unavailable where the solver
    cannot step within nfe calls.
    """
    process = problem.process
    tableau = largest(get(solver), problem.model, grid, "t_min", nfe)
    nodes = [*tableau.times.tolist(), float(tableau.grid[-1])]
    w = problem.start[:count]
    sampler = Sampler(problem.model, tableau, dtype=torch.float64)
    state = sampler.init(w.shape, problem.seed, x_init=from_unit(process, w, nodes[0]))
    states = [state.x]
    while not state.done:
        state = sampler.tell(state, problem.model.net(state.x_in, state.t_in))
        states.append(state.x)
    alphas = [float(process.alpha(t)) for t in nodes]
    return torch.stack([x / a for x, a in zip(states, alphas, strict=True)])


def draw(
    file: Path,
    problem: Problem,
    reference: Reference,
    solvers: Sequence[str],
    costs: Sequence[int],
    grid: str = "log_snr",
    count: int = 40,
) -> None:
    """A panel for each solver (rows) and cost (columns), over exact samples in grey; a dot marks
    where the exact trajectory ends. Solvers that cannot run at a cost leave their panel out."""
    plt = pyplot()
    exact = exact_draw(problem, 0.0, 1500, 5)
    ends = reference.at(0.0)[:count]
    reach = 1.35 * float(exact.abs().max())
    fig, axes = plt.subplots(
        len(solvers), len(costs), figsize=(2.6 * len(costs), 2.75 * len(solvers)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for row, solver in zip(axes, solvers, strict=True):
        for ax, nfe in zip(row, costs, strict=True):
            ax.set_axis_off()
            ax.set_aspect("equal")
            ax.set_xlim(-reach, reach)
            ax.set_ylim(-reach, reach)
            ax.set_title(f"{solver}, {nfe} NFE", fontsize=9)
            ax.scatter(*exact.T, s=1, color="#d5dae0", lw=0, rasterized=True)
            try:
                states = path(problem, solver, grid, nfe, count)
            except Unavailable:
                ax.set_title(f"{solver}: not in {nfe} NFE", fontsize=9)
                continue
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
