"""README's results, written from bench/results: `python -P -m undiffuse.bench.readme` in the root.

Whatever stands between the two markers is replaced; a test fails where it is not what the committed
results say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..kernels.errors import InvalidValue
from ..kernels.files import write_text
from .report.table import short

BEGIN = "<!-- results: written by `python -P -m undiffuse.bench.readme` from bench/results -->"
END = "<!-- end of results -->"
SIDES = {
    "peers": "the peers", "default": "our default", "ours": "ours", "tuned": "ours, tuned to it",
}  # fmt: skip


def section(results: Path) -> str:
    """The text between the markers, in Markdown."""
    grids, mnist, orders, adaptive, gpu = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("grids", "mnist", "orders", "adaptive", "kernels-gpu")
    )
    costs = [str(n) for n in grids["nfe"]]
    lines = [
        "### Error against network calls",
        "",
        "| least error / data std after | " + " | ".join(costs) + " calls |",
        "|---" * (len(costs) + 1) + "|",
    ]
    said = []
    for problem, front in {**grids["front"], **mnist["front"]}.items():
        for side, who in SIDES.items():
            if side in ("tuned", "default") and not any(v.get(side) for v in front.values()):
                continue
            lines.append(_row(f"{problem}: {who}", front, side, costs))
            if side in ("peers", "ours"):
                said.append(f"{problem}, {who}: {_who(front, side, costs)}")
    which = ["<details><summary>Which solver is the least of each column</summary>", ""]
    which += [f"- {line}" for line in said] + ["", "</details>"]
    text = [*lines, "", *which, "", _orders(orders, results), "", _adaptive(adaptive, results), ""]
    return "\n".join([*text, "### Kernels on a GPU", "", *_kernels(gpu), ""])


def _kernels(found: Mapping[str, Any]) -> list[str]:
    """The fused steps on a GPU, at the size that no cache holds, and whole runs."""
    large = [r for r in found["records"] if r["log2_n"] == 26]
    by = {(r["kernel"], r["dtype"]): r for r in large}
    machine = (
        f"{found['device']}, torch {found['torch']}, triton {found['triton']}, 2^26 elements: share "
        f"of the measured copy bandwidth ({found['copy_bytes_per_second'] / 1e12:.2f} TB/s) with "
        "exact noise (with `fast`), and how many times slower PyTorch is, eager and compiled:"
    )
    lines = [
        machine,
        "",
        "| kernel | float32 | bfloat16 | eager | torch.compile |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["kernel"] for r in large):
        if name == "brownian path":  # some twenty normals an element: PyTorch has no such formula
            continue
        shares = []
        for dtype in ("float32", "bfloat16"):
            r = by.get((name, dtype))
            share = ("copy_share_exact", "copy_share_fast")
            shares.append("{:.2f} ({:.2f})".format(*(r[s] for s in share)) if r else "-")
        r = by[name, "float32"]
        eager, compiled = (r[f"seconds_{s}"] / r["seconds_exact"] for s in ("eager", "compiled"))
        lines.append(f"| {name} | {' | '.join(shares)} | {eager:.1f} | {compiled:.1f} |")
    runs = found["whole_runs"]
    size = next(iter(runs)).rpartition(", ")[2]
    told = ", ".join(
        f"{name.removesuffix(f', {size}')} {1e3 * v:.1f}"
        for name, v in runs.items() if name.endswith(f", {size}")
    )  # fmt: skip
    return [*lines, "", f"Twenty calls of a small network there, {size}, in ms: {told}."]


def _row(title: str, front: Mapping[str, Any], side: str, costs: Sequence[str]) -> str:
    found = [front.get(n, {}).get(side) for n in costs]
    if side == "tuned":  # a folder's table of fewer calls is not one of that many
        found = [r if r and r["nfe"] == int(n) else None for r, n in zip(found, costs, strict=True)]
    return f"| {title} | " + " | ".join(short(r["error"]) if r else "-" for r in found) + " |"


def _who(front: Mapping[str, Any], side: str, costs: Sequence[str]) -> str:
    """The configurations of a row, with the costs each holds."""
    held = [(n, front[n][side]) for n in costs if front.get(n, {}).get(side)]
    parts = []
    for name, group in groupby(held, lambda pair: _name(pair[1])):
        which = [n for n, _ in group]
        span = which[0] if len(which) == 1 else f"{which[0]}–{which[-1]}"
        parts.append(f"{name} ({span})")
    return ", ".join(parts)


def _name(r: Mapping[str, Any]) -> str:
    if r["library"] == "undiffuse":
        return f"`{r['solver']}` on `{r['grid']}`"
    return f"{r['library']} {r['solver']}"


def _orders(orders: Mapping[str, Any], results: Path) -> str:
    missed = orders["missed"]
    count = len(missed) if isinstance(missed, list) else missed
    return (
        f"Of {len(orders['rows'])} solvers {count or 'none'} measured further than "
        f"{orders['tolerance']:g} from the order it declares ([orders.md]({results}/orders.md))."
    )


def _adaptive(adaptive: Mapping[str, Any], results: Path) -> str:
    """Calls a sample by tolerance, ours against the same pair stepped by the batch."""
    rows = adaptive["rows"]
    mine = [r for r in rows if (r["library"], r["method"]) == ("undiffuse", "bosh3")]
    theirs = [r for r in rows if (r["library"], r["method"]) == ("torchdiffeq", "bosh3 in t")]
    apart = [r["alone"] for r in rows if r["library"] != "undiffuse"]

    def calls(kept: Sequence[Mapping[str, Any]]) -> str:
        return ", ".join(f"{r['calls']:.0f}" for r in kept)

    return (
        f"Adaptive `bosh3` on an uneven batch, tolerances "
        f"{', '.join(format(r['tolerance'], 'g') for r in mine)}: {calls(mine)} calls a sample, "
        f"torchdiffeq's {calls(theirs)}; alone or in the batch a sample of ours differs by "
        f"{max(r['alone'] for r in mine):g}, of the peers by {short(min(apart))} to "
        f"{short(max(apart))} ([adaptive.md]({results}/adaptive.md))."
    )


def updated(readme: str, results: Path) -> str:
    """The README with its section made anew. Raises ValueError where the markers are absent."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise InvalidValue(f"README must hold the two markers once each: {BEGIN} and {END}")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{section(results)}{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write README.md of the working directory."""
    path = Path("README.md")
    write_text(path, updated(path.read_text(encoding="utf-8"), Path("bench", "results")))


if __name__ == "__main__":
    main()
