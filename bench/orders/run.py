"""`undiffuse bench orders`: the order of every solver, measured, beside what it declares.

    order           declared; strong where the solver draws noise
    flow, mixture   slope of the error along the flow, three modes in one dimension
    flow, Gaussian  the same on N(m, c); some gain an order there, as the field is linear
    path            slope of the distance from the solution on the same Brownian path, N(m, c)
    weak order      declared
    law, Gaussian   slope of the error of mean and variance on N(m, c)
    law, mixture    that of five expectations, for solvers of single steps
    lines           of the solver's class, docstring included, blank ones left out

All by algebra or quadrature in float64 under VP, without sampling (convergence.py, pathwise.py).
Writes orders.json and orders.md.
"""

from __future__ import annotations

import inspect
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...kernels.files import write_text
from ...models.progress import bar
from ...solvers import Solver, get, names
from ...solvers.store import environment
from ..report.table import Table, markdown, show
from .convergence import PROCESSES, flow_errors, grid, mixture_weak_error, slope, weak_error
from .pathwise import COUPLINGS, strong_error

TOLERANCE = 0.15
SINGLE_STEP = (
    "euler-ancestral",
    "ddpm-large",
    "euler-maruyama",
    "reverse-diffusion",
    "sra1",
    "seeds-2",
    "dpmpp-sde",
    "dpm-2-ancestral",
    "dpmpp-2s-ancestral",
    "er-sde-1",
)
"""Stochastic solvers whose steps do not look back, and draw few enough normals for a quadrature."""
MANY = {"er-sde-3": 1200, "dpmpp-3m-sde": 300, "sa-solver-2": 600}
"""Steps at which the noise's second-order error outweighs the flow's third."""
Row = dict[str, Any]


def steps(name: str, order: float) -> tuple[int, int]:
    """Step counts of a flow's slope: in the asymptotic range and above rounding."""
    if name == "dopri5-fixed":
        return 40, 80  # rounding comes early there
    n = {1: 120, 2: 100, 3: 80, 4: 80, 5: 80}[math.ceil(order)]
    return n, 2 * n


def measure(name: str, process: str = "vp", mixture: bool = True) -> Row:
    """The row of a registered solver; slopes that do not apply, or are rounding, are absent.
    mixture: also that of the law on the mixture, which costs seconds."""
    solver, at = get(name), PROCESSES[process]
    table = solver.tableau(at, grid(at, 4))
    row: Row = {
        "solver": name,
        "order": table.order,
        "weak_order": table.weak_order,
        "lines": lines(solver),
        "stochastic": table.stochastic,
    }
    if not table.stochastic:
        ns = steps(name, float(table.order or 0.0))
        on_gaussian, on_mixture = zip(*(flow_errors(solver, at, n) for n in ns), strict=True)
        slopes = {"gaussian": slope(ns, on_gaussian), "mixture": slope(ns, on_mixture)}
        return row | {k: v for k, v in slopes.items() if not math.isnan(v)}
    if not table.weak_order:
        return row  # declares a bias that steps do not remove

    def of(error: Callable[[int], float], n: int) -> float:
        return slope((n, 2 * n), [error(n), error(2 * n)])

    row["weak"] = of(lambda n: weak_error(solver, at, n), MANY.get(name, 160) // 2)
    if name in COUPLINGS:
        coupling = COUPLINGS[name]
        row["strong"] = of(lambda n: strong_error(solver, at, coupling, n), 200)
    if mixture and name in SINGLE_STEP:
        row["weak_mixture"] = of(lambda n: mixture_weak_error(solver, n), 64)
    return row


def lines(solver: Solver) -> int:
    """Lines of the solver's class, docstring included, blank ones left out."""
    return sum(bool(line.strip()) for line in inspect.getsource(type(solver)).splitlines())


def misses(row: Row) -> list[str]:
    """The slopes that are further than TOLERANCE from what the row declares. On a Gaussian, along
    the flow or path by path, more is no miss: the drift is linear there."""
    declared = {
        "gaussian": "order",
        "mixture": "order",
        "weak": "weak_order",
        "weak_mixture": "weak_order",
        "strong": "order",
    }
    found = []
    for field, what in declared.items():
        off = row.get(field, math.nan) - (row[what] or 0.0)
        above = field in ("gaussian", "strong") and off > 0
        if abs(off) > TOLERANCE and not above:
            found.append(field)
    return found


def run(
    out: str | Path, *, solvers: Sequence[str] | None = None, progress: bool = True
) -> dict[str, Any]:
    """Measure, print and write orders.json and orders.md; returns what the JSON holds.

    solvers: names; None is all that are registered. Raises ValueError for unknown ones.
    """
    chosen = list(names() if solvers is None else solvers)
    classes = {type(get(name)): lines(get(name)) for name in chosen}
    Path(out).mkdir(parents=True, exist_ok=True)
    rows = []
    with bar(progress) as shown:
        shown.total(len(chosen))
        for name in chosen:
            shown.say(name)
            rows.append(measure(name))
            shown.advance()
    missed = {r["solver"]: misses(r) for r in rows if misses(r)}
    median = statistics.median(classes.values())
    record = {
        "process": repr(PROCESSES["vp"]),
        "tolerance": TOLERANCE,
        "missed": missed,
        "classes": len(classes),
        "median_lines": median,
        "rows": rows,
        "environment": environment(),
    }
    table = _table(rows)
    closing = (
        f"{len(rows)} solvers, {len(missed)} further than {TOLERANCE} from what they declare; "
        f"{len(classes)} classes of {median:g} lines in the median"
    )
    show([table], [closing])
    write_text(Path(out) / "orders.json", json.dumps(record, indent=1) + "\n")
    write_text(Path(out) / "orders.md", f"{markdown(table)}\n{closing}\n")
    return record


def _table(rows: list[Row]) -> Table:
    columns = [
        "solver",
        "order",
        "flow, mixture",
        "flow, Gaussian",
        "path",
        "weak order",
        "law, Gaussian",
        "law, mixture",
        "lines",
    ]
    fields = ["mixture", "gaussian", "strong", "", "weak", "weak_mixture"]
    cells = []
    for r in rows:
        shown = [f"{r[f]:.2f}" if f in r else "" for f in fields]
        shown[3] = f"{r['weak_order']:g}" if r["stochastic"] else ""
        cells.append([r["solver"], f"{r['order']:g}", *shown, str(r["lines"])])
    title = "Orders under VP: declared, and measured as slopes"
    return Table(title, columns, cells, [[False] * len(columns) for _ in cells])
