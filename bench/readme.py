"""README's figures from bench/results: `python -P -m undiffuse.bench.readme` in the root.

README.md says one line and four results, bench/results/README.md has the tables behind them, and
bench/results/hero.png is the picture. A test fails while one of them says anything else than the
results do.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..kernels.errors import InvalidValue
from ..kernels.files import atomically, write_text
from ..models.data.drawing import pyplot
from . import away_report

COLUMNS = {
    "left out": "our default, its constants chosen on the other networks",
    "default": "our default as it ships",
    "tuned": "`ud.tune`, seconds of pilot",
    "learned": "`ud.tune(learn=True)`",
    "UniPC (default)": "diffusers' UniPC as shipped",
}
CURVES = {
    "left out": ("undiffuse, default", "#1f5fb4", "-"),
    "tuned": ("undiffuse, tuned to the network", "#2a8c6a", "-"),
    "learned": ("undiffuse, learned on the network", "#8a4fbf", "-"),
    "peer DDIM (default)": ("diffusers DDIM", "#7d8590", ":"),
    "peer DPM++2M (default)": ("diffusers DPM++2M", "#7d8590", "--"),
    "peer UniPC (default)": ("diffusers UniPC", "#7d8590", "-."),
}
"""What the picture shows, in what colour and stroke. Other libraries' are their defaults."""


def _read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))


# --- what the texts say -------------------------------------------------------------------------


def headline(results: Path) -> str:
    away = _read(results, "away")
    held, peers = away["all"]["left out"], len(_peers(_records(results / "away.jsonl")))
    records = _records(results / "tuned.jsonl")
    asked, networks = away_report.summary(records), len({r["network"] for r in records})
    costs = sorted({r["nfe"] for r in records if "learned" in r["rows"]})
    learned = f", **{asked['learned']['mean']:.2f} times when learned on it**" if costs else ""
    at = f" (learned at {' and '.join(map(str, costs))} calls)" if costs else ""
    every = len(away["networks"])
    return (
        f"**{held['mean']:.2f} times the error at the same number of network calls**, "
        f"**{asked['tuned']['mean']:.2f} times when tuned to your network**{learned}: "
        f"against the best of {peers} samplers of diffusers and k-diffusion, which is picked "
        f"afterwards for each network and number of calls. Geometric means over {every} networks, "
        f"each with the default's constants chosen on the others, and over {networks} that were "
        f"tuned{at}.\n"
    )


def four_results(results: Path) -> str:
    away, orders = _read(results, "away"), _read(results, "orders")
    gpu, likelihood = _read(results, "kernels-gpu"), _read(results, "likelihood")
    whole, costs = away["all"], away["by_calls"]
    each = ", ".join(_ratio(costs[n]["left out"]["mean"]) for n in costs)
    digits = next(t["rows"] for t in likelihood["targets"] if t["target"] == "digits64")
    theirs, ours = (
        next(r for r in digits if r["how"].startswith(how))
        for how in ("torchdiffeq dopri5", "quadrature, default")
    )
    shares = {r["kernel"]: r for r in _largest(gpu["records"])}
    step = shares["euler-maruyama"]
    worst = sorted(shares, key=lambda k: float(shares[k]["copy_share_exact"]))[:2]
    least = " and ".join(f"{k} {shares[k]['copy_share_exact']:.2f}" for k in worst)
    error = (
        f"At {', '.join(costs)} calls {each} times the best peer's; worst cell "
        f"{_ratio(whole['left out']['worst'])}. UniPC as diffusers ships it: "
        f"{_ratio(whole['UniPC (default)']['mean'])}."
    )
    order = (
        f"Of {len(orders['rows'])} solvers {len(orders['missed']) or 'none'} measured further "
        f"than {orders['tolerance']:g} from the order it declares."
    )
    density = (
        f"One image's bits/dim is off by {ours['rms']:.2g}, with one probe along dopri5 by "
        f"{theirs['rms']:.2g}, at {_cost(ours)} and {_cost(theirs)} calls and products (exact "
        "target of 64 dimensions)."
    )
    kernel = (
        f"A fused float32 step on an {gpu['device'].removeprefix('NVIDIA ')} takes "
        f"{step['copy_share_exact']:.2f} of the copy bandwidth, {_times(step)} times as fast as "
        f"eager PyTorch; the slowest kernels: {least}."
    )
    told = {"Error": error, "Orders": order, "Likelihood": density, "Kernels": kernel}
    return "".join(f"- **{what}.** {text}\n" for what, text in told.items())


def tables(results: Path) -> str:
    """Errors over the best peer's by calls, on networks left out, and the fused steps."""
    away, gpu = _read(results, "away"), _read(results, "kernels-gpu")
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
            f"{gpu['device']}, float32: share of the measured copy bandwidth "
            f"({gpu['copy_bytes_per_second'] / 1e12:.2f} TB/s), and how many times slower "
            "PyTorch is, slower than ours above 1. Noise and Brownian paths are held to "
            "`torch.randn`, which makes other numbers in every batch, thresholds to its sort."
        ),
        "",
        "| kernel | elements | share | eager | torch.compile |",
        "|---|---|---|---|---|",
    ]
    for r in _largest(gpu["records"]):
        slower = (r.get(f"seconds_{way}") for way in ("eager", "compiled"))
        cells = ["-" if v is None else f"{v / r['seconds_exact']:.2g}" for v in slower]
        size, share = f"2^{r['log2_n']}", _share(r)
        lines.append(f"| {r['kernel']} | {size} | {share} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _largest(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of every kernel the record in float32 with most elements, up to 2^26."""
    found: dict[str, Mapping[str, Any]] = {}
    for r in sorted(records, key=lambda r: int(r["log2_n"])):
        if r["dtype"] == "float32" and r["log2_n"] <= 26:
            found[r["kernel"]] = r
    return sorted(found.values(), key=lambda r: -float(r["copy_share_exact"]))


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.2g}"


def _share(record: Mapping[str, Any]) -> str:
    share = float(record["copy_share_exact"])
    return f"{share:.2f}" if share > 0.1 else f"{share:.3f}"


def _cost(row: Mapping[str, Any]) -> str:
    return f"{row['forwards'] + row['products']:.0f}"


def _times(record: Mapping[str, Any]) -> str:
    return f"{record['seconds_eager'] / record['seconds_exact']:.1f}"


# --- where they stand ---------------------------------------------------------------------------

SECTIONS: dict[str, dict[str, Callable[[Path], str]]] = {
    "README.md": {"headline": headline, "results": four_results},
    "bench/results/README.md": {"tables": tables},
}
"""Of each file the sections between its markers."""


def markers(name: str) -> tuple[str, str]:
    written = (
        f"<!-- {name}: written by `python -P -m undiffuse.bench.readme` from bench/results -->"
    )
    return written, f"<!-- end of {name} -->"


def updated(text: str, results: Path, sections: Mapping[str, Callable[[Path], str]]) -> str:
    """A text with its sections made anew. Raises ValueError where markers are absent."""
    for name, write in sections.items():
        begin, end = markers(name)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise InvalidValue(f"the text must hold the two markers once each: {begin} and {end}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{write(results)}{end}{rest.partition(end)[2]}"
    return text


# --- the picture --------------------------------------------------------------------------------


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _peers(records: Sequence[Mapping[str, Any]]) -> set[str]:
    return {what for r in records for what in r["rows"] if what.startswith("peer ")}


def curves(results: Path) -> dict[str, list[tuple[int, float]]]:
    """Of each curve (calls, geometric mean over the networks of the error over the best peer's).

    `tuned` and `learned` are of the networks of tuned.jsonl, where that is kept.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for path in (results / "away.jsonl", results / "tuned.jsonl"):
        if not path.exists():
            continue
        cells = away_report.ratios(_records(path))
        held = {what: list(each) for what, each in away_report.columns(cells).items()}
        for peer in {what for cell in cells.values() for what in cell if what.startswith("peer ")}:
            held[peer] = [(name, n, c[peer]) for (name, n), c in cells.items() if peer in c]
        for what in CURVES:
            if what not in held or what in found:
                continue
            costs = sorted({n for _, n, _ in held[what]})
            found[what] = [
                (n, math.exp(_mean([math.log(v) for _, m, v in held[what] if m == n])))
                for n in costs
            ]
    return {what: found[what] for what in CURVES if what in found}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def fingerprint(drawn: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """What a picture of these curves is signed with."""
    rounded = {what: [(n, f"{v:.4g}") for n, v in held] for what, held in drawn.items()}
    return hashlib.sha256(json.dumps(rounded).encode()).hexdigest()


def draw(results: Path, path: Path) -> None:
    """The picture of README, one panel, a .png."""
    plt = pyplot()
    shown = curves(results)
    fig, ax = plt.subplots(figsize=(9, 4.6), layout="constrained")
    costs = sorted({n for held in shown.values() for n, _ in held})
    lines = {
        "the best peer, picked afterwards": ([(n, 1.0) for n in costs], "#222222", "-"),
        **{CURVES[what][0]: (held, *CURVES[what][1:]) for what, held in shown.items()},
    }
    below = 0.0
    for label, (held, colour, stroke) in sorted(lines.items(), key=lambda i: i[1][0][-1][1]):
        bold = label.startswith("undiffuse")
        x, y = zip(*held, strict=True)
        ax.plot(
            x, y, stroke, color=colour, lw=2.6 if bold else 1.5, marker="o", ms=5 if bold else 3
        )
        below = max(y[-1], below * 1.35)  # a label stands above the one below it
        weight = {"color": colour, "fontsize": 12, "fontweight": "bold" if bold else "normal"}
        ax.text(costs[-1] * 1.08, below, label, va="center", **weight)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(costs[0] * 0.95, costs[-1] * 3.6)
    ax.set_xticks(costs, [str(n) for n in costs], fontsize=12)
    lo, hi = ax.get_ylim()
    ticks = [v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if lo <= v <= hi]
    ax.set_yticks(ticks, [f"{v:g}" for v in ticks], fontsize=12)
    ax.minorticks_off()
    ax.set_xlabel("network calls", fontsize=12)
    ax.set_ylabel("error, over the best peer's", fontsize=12)
    ax.spines[["top", "right"]].set_visible(False)
    signed = {"Description": fingerprint(shown)}
    atomically(path, partial(fig.savefig, dpi=120, format="png", metadata=signed))
    plt.close(fig)


if __name__ == "__main__":
    kept = Path("bench", "results")
    for name, sections in SECTIONS.items():
        file = Path(name)
        write_text(file, updated(file.read_text(encoding="utf-8"), kept, sections))
    draw(kept, kept / "hero.png")
