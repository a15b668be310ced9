"""README's results from bench/results: `python -P -m undiffuse.bench.readme` in the root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..kernels.errors import InvalidValue
from ..kernels.files import write_text
from .report.table import short

BEGIN = "<!-- results: written by `python -P -m undiffuse.bench.readme` from bench/results -->"
END = "<!-- end of results -->"
SIDES = {
    "peers": "the peers",
    "default": "`laplace-wide`",  # the grid of the default when these were measured
    "ours": "ours",
    "tuned": "ours, tuned",
}


def section(results: Path) -> str:
    """The text between the markers, in Markdown: least errors by calls, and the fused steps."""
    grids, mnist, orders, gpu = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("grids", "mnist", "orders", "kernels-gpu")
    )
    costs = [str(n) for n in grids["nfe"]]
    lines = [f"| least error / data std after | {' | '.join(costs)} calls |"]
    lines.append("|---" * (len(costs) + 1) + "|")
    for problem, front in {**grids["front"], **mnist["front"]}.items():
        for side, who in SIDES.items():
            cells = [_error(front.get(n, {}).get(side), int(n), side == "tuned") for n in costs]
            lines.append(f"| {problem}: {who} | {' | '.join(cells)} |")
    lines += [
        "",
        (
            f"Of {len(orders['rows'])} solvers {len(orders['missed']) or 'none'} measured "
            f"further than {orders['tolerance']:g} from the order it declares."
        ),
        "",
        (
            f"{gpu['device']}, 2^26 elements, share of the measured copy bandwidth "
            f"({gpu['copy_bytes_per_second'] / 1e12:.2f} TB/s), and how many times slower "
            "PyTorch is:"
        ),
        "",
        "| kernel | float32 | eager | torch.compile |",
        "|---|---|---|---|",
    ]
    for r in gpu["records"]:
        if r["log2_n"] == 26 and r["dtype"] == "float32" and r["kernel"] != "brownian path":
            slower = (r[f"seconds_{way}"] / r["seconds_exact"] for way in ("eager", "compiled"))
            cells = [f"{r['copy_share_exact']:.2f}", *(f"{v:.1f}" for v in slower)]
            lines.append(f"| {r['kernel']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _error(r: dict[str, Any] | None, n: int, whole: bool) -> str:
    """whole: a tuned table of fewer calls is not one of that many."""
    return short(r["error"]) if r and not (whole and r["nfe"] != n) else "-"


def updated(readme: str, results: Path) -> str:
    """The README with its section made anew. Raises ValueError where the markers are absent."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise InvalidValue(f"README must hold the two markers once each: {BEGIN} and {END}")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{section(results)}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = Path("README.md")
    write_text(path, updated(path.read_text(encoding="utf-8"), Path("bench", "results")))
