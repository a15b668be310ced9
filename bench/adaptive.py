"""`undiffuse bench adaptive`: steps chosen by each sample, against steps chosen by the batch.

The batch is uneven: its samples end in modes whose deviations go from 1 to 0.003, so that some
need several times the calls of others. A row is a method at a tolerance:

    calls         network evaluations of a sample: mean, least, most; a coupled batch has one count
    error, worst  to SciPy's solution of the same flow: mean and largest of a sample's RMS, over the
                  data's deviation
    alone         largest difference between a sample's result in the batch and by itself; 0 is
                  bitwise, as the exact network here rounds the same in every batch
    calls alone   mean count of those samples when each is a batch of its own

Peers: torchdiffeq's odeint of `probability_flow`, in t as its users have it, and of our own
coordinates over lambda (what is left is the coupling); SciPy's RK45 of the batch as one vector, as
score_sde has it; k-diffusion's dpm_adaptive where installed.
Writes adaptive.json and adaptive.md.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.files import write_text
from ..models import Denoiser, GaussianMixture
from ..models.named_targets import Target, ddpm_process
from ..models.progress import bar
from ..solvers import sample_ode_adaptively
from ..solvers.store import environment
from .peers.integrators import Method, k_diffusion, scipy, torchdiffeq
from .problems import problem as problems
from .problems.plans import Unavailable
from .problems.problem import Problem, from_unit, solve, to_unit
from .report.table import Table, markdown, short, show

OURS = ("bosh3", "dopri5", "dpm-solver-12", "dpm-solver-23", "dpmpp-23")
TOLERANCES = (1e-2, 1e-3, 1e-4)
DEVIATIONS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
BATCH, QUICK_BATCH, ALONE = 96, 24, 8


def uneven() -> Target:
    """Six modes of equal weight on a circle of radius 3, with the deviations of DEVIATIONS."""
    angle = 2 * math.pi * torch.arange(6, dtype=torch.float64) / 6
    means = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    law = GaussianMixture([1.0] * 6, means, torch.tensor(DEVIATIONS).double().square())
    return Target(
        "uneven", law, ddpm_process(), "six modes of deviations 1 to 0.003 (exact scores)"
    )


def element_wise(target: Target) -> Denoiser:
    """The target's exact network, mode by mode and component by component: it rounds the same
    whoever shares the batch, where sums of matrix products may not."""
    law, process = target.law, target.process
    log_weights, means = law.weights.log().tolist(), law.means.tolist()
    variances = law.covs[:, 0, 0].tolist()

    def net(x: Tensor, t: Tensor) -> Tensor:
        a, s = process.alpha(t.double()), process.sigma(t.double())
        logs, parts = [], []
        for log_w, mean, c in zip(log_weights, means, variances, strict=True):
            v = a * a * c + s * s
            y = [x[:, j] - a * m for j, m in enumerate(mean)]
            square = sum((d * d for d in y), torch.zeros_like(v))
            logs.append(log_w - 0.5 * square / v - 0.5 * len(mean) * v.log())
            parts.append([m + a * c / v * d for m, d in zip(mean, y, strict=True)])
        top = logs[0]
        for log in logs[1:]:
            top = torch.maximum(top, log)
        shares = [(log - top).exp() for log in logs]
        total = sum(shares[1:], shares[0])
        columns = []
        for j in range(x.shape[1]):
            weighted = [r * p[j] for r, p in zip(shares, parts, strict=True)]
            columns.append(sum(weighted[1:], weighted[0]) / total)
        return torch.stack(columns, 1).to(x.dtype)

    return Denoiser(net, process, predicts="data")


def _ours(name: str) -> Method:
    def run(model: Denoiser, x: Tensor, tol: float) -> tuple[Tensor, Tensor]:
        found = sample_ode_adaptively(
            model,
            x.shape,
            solver=name,
            rtol=tol,
            atol=tol,
            x_init=x,
            final="t_min",
            max_steps=100_000,
            dtype=x.dtype,
        )
        return found.x, found.nfe

    return Method("undiffuse", name, run)


def methods() -> list[Method]:
    """Ours, then the peers."""
    coupled = [torchdiffeq(n, ours) for n in ("bosh3", "dopri5") for ours in (True, False)]
    others = [*coupled, scipy("RK45"), k_diffusion(2), k_diffusion(3)]
    return [*map(_ours, OURS), *others]


def run(
    out: str | Path,
    *,
    batch: int | None = None,
    seed: int = 0,
    quick: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure, print and write; returns what adaptive.json holds.

    batch: samples (96; 24 with quick). Raises ValueError for a batch below 2.
    """
    out, count = Path(out), batch or (QUICK_BATCH if quick else BATCH)
    target = uneven()
    problem = replace(problems.exact(target, count, seed), model=element_wise(target))
    out.mkdir(parents=True, exist_ok=True)
    tolerances = TOLERANCES[:2] if quick else TOLERANCES
    exact = solve(problem, {problem.r_min}, level=3)
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    with bar(progress) as shown, torch.no_grad():
        shown.total(len(methods()) * len(tolerances))
        for method in methods():
            for tol in tolerances:
                shown.say(f"{method.library} {method.name}, {tol:g}")
                try:
                    rows.append(_measure(problem, method, tol, exact.at(problem.r_min)))
                except Unavailable as error:
                    missing[method.library] = str(error)
                shown.advance()
    table = _table(rows, count)
    closing = [f"{library}: {why}" for library, why in missing.items()]
    show([table], closing)
    record = {
        "target": target.about,
        "process": repr(target.process),
        "samples": count,
        "seed": seed,
        "reference_error": exact.error,
        "missing": missing,
        "rows": rows,
        "environment": environment(),
    }
    write_text(out / "adaptive.json", json.dumps(record, indent=1) + "\n")
    write_text(out / "adaptive.md", "\n".join([markdown(table), *closing]).rstrip() + "\n")
    return record


def _measure(problem: Problem, method: Method, tol: float, exact: Tensor) -> dict[str, Any]:
    process, model = problem.process, problem.model
    x = from_unit(process, problem.start, process.t_max)
    end, calls = method.run(model, x, tol)
    error = (to_unit(process, end, model.t_min) - exact).flatten(1).square().mean(1).sqrt()
    some = range(min(ALONE, len(x)))
    single = [method.run(model, x[i : i + 1], tol) for i in some]
    apart = max(float((y[0] - end[i]).abs().max()) for i, (y, _) in zip(some, single, strict=True))
    return {
        "library": method.library,
        "method": method.name,
        "tolerance": tol,
        "calls": float(calls.double().mean()),
        "least": int(calls.min()),
        "most": int(calls.max()),
        "error": float(error.mean()) / problem.std,
        "worst": float(error.max()) / problem.std,
        "alone": apart,
        "calls_alone": sum(int(n) for _, n in single) / len(single),
    }


def _table(rows: list[dict[str, Any]], count: int) -> Table:
    columns = [
        "library",
        "method",
        "tolerance",
        "calls",
        "least",
        "most",
        "error",
        "worst",
        "alone",
        "calls alone",
    ]
    cells = [
        [
            r["library"],
            r["method"],
            f"{r['tolerance']:g}",
            f"{r['calls']:.0f}",
            str(r["least"]),
            str(r["most"]),
            short(r["error"]),
            short(r["worst"]),
            short(r["alone"]),
            f"{r['calls_alone']:.0f}",
        ]
        for r in rows
    ]
    title = f"An uneven batch of {count}: six modes of deviations 1 to 0.003"
    return Table(title, columns, cells, [[False] * len(columns) for _ in cells])
