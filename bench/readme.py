"""README's results from bench/results: `python -P -m undiffuse.bench.readme` in the root."""

from __future__ import annotations

import json
from pathlib import Path

from ..kernels.errors import InvalidValue
from ..kernels.files import write_text

BEGIN = "<!-- results: written by `python -P -m undiffuse.bench.readme` from bench/results -->"
END = "<!-- end of results -->"
COLUMNS = {
    "left out": "our default, its constants chosen on the other networks",
    "default": "our default as it ships",
    "tuned": "`ud.tune`, seconds of pilot",
    "learned": "`ud.tune(learn=True)`",
    "UniPC (default)": "diffusers' UniPC as shipped",
}


def section(results: Path) -> str:
    """The text between the markers, in Markdown: errors over the best peer's by calls, on networks
    left out, and the fused steps."""
    away, orders, gpu = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("away", "orders", "kernels-gpu")
    )
    costs = list(away["by_calls"])
    lines = [
        (
            "Error over that of the best peer, which is picked afterwards in every cell: geometric "
            f"mean (worst) over {len(away['networks'])} networks."
        ),
        "",
        f"| calls | {' | '.join(costs)} | all [95 %] |",
        "|---" * (len(costs) + 2) + "|",
    ]
    for column, who in COLUMNS.items():
        if column not in away["all"]:
            continue
        held = [away["by_calls"][n].get(column) for n in costs]
        cells = ["-" if h is None else f"{_ratio(h['mean'])} ({_ratio(h['worst'])})" for h in held]
        a = away["all"][column]
        cells.append(f"{_ratio(a['mean'])} [{_ratio(a['lo'])}, {_ratio(a['hi'])}]")
        lines.append(f"| {who} | {' | '.join(cells)} |")
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


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.2g}"


def updated(readme: str, results: Path) -> str:
    """The README with its section made anew. Raises ValueError where the markers are absent."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise InvalidValue(f"README must hold the two markers once each: {BEGIN} and {END}")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{section(results)}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = Path("README.md")
    write_text(path, updated(path.read_text(encoding="utf-8"), Path("bench", "results")))
