"""Rounds against calls of sweeps over many rows at once, on two networks.

    UNDIFFUSE_DATA=folder python examples/parallel.py --out bench/results

The network of digits that ships with the package, and the published MNIST network of mnist_ddpm.py
where the folder has it. A round is one network call, however many states it is asked about; nfe
counts the states of one sample. The error is that of the sample, root mean square against the run
row by row, over the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import undiffuse as ud
from undiffuse.models.checkpoint import load_default

TOLERANCE = 1e-3
SOLVERS = ("ddim", "dpmpp-2m", "ddpm")
CASES = [(20, 20), (50, 50), (100, 16), (100, 100), (200, 64), (1000, 64)]  # steps, window


def networks() -> dict[str, tuple[ud.Denoiser, tuple[int, ...]]]:
    """Name -> the denoiser and the shape of the starts."""
    found = {"digits": (load_default().denoiser, (8, 1, 8, 8))}
    sys.path.insert(0, str(Path(__file__).parent))
    import mnist_ddpm

    try:
        found["MNIST"] = (mnist_ddpm.mnist_cnn().denoiser, (2, 1, 28, 28))
    except FileNotFoundError as error:
        print(error)
    return found


def measure(model: ud.Denoiser, shape: tuple[int, ...], solver: str, steps: int, window: int):
    """One line of the table."""
    sampler = ud.Sampler(model, solver, steps=steps)
    state = sampler.init(shape, seed=11)
    with torch.no_grad():
        exact = sampler.finish(state)
    swept = sampler.sweep(state, window, TOLERANCE)
    error = (swept.x - exact).square().flatten(1).mean(1).sqrt().max()
    rounds, nfe = swept.rounds.double().mean(), swept.nfe.double().mean()
    return {
        "calls": sampler.nfe,
        "rounds": round(float(rounds), 1),
        "nfe": round(float(nfe), 1),
        "error": round(float(error) / TOLERANCE, 2),
    }


def main() -> None:
    """Measure, print and write parallel.json and parallel.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."))
    out = parser.parse_args().out
    rows = []
    for name, (model, shape) in networks().items():
        for solver in SOLVERS:
            for steps, window in CASES:
                row = {"network": name, "solver": solver, "steps": steps, "window": window}
                rows.append({**row, **measure(model, shape, solver, steps, window)})
                print(rows[-1], flush=True)
    head = ["network", "solver", "steps", "window", "calls", "rounds", "nfe", "error"]
    named = ["network", "solver", "steps", "window", "row by row", "rounds", "times fewer"]
    named += ["states a sample", "times more", "error / tolerance"]
    lines = ["**Sweeps over many rows at once: rounds against calls, tolerance 1e-3**", ""]
    lines += ["| " + " | ".join(named) + " |", "|" + "---|" * len(named)]
    for row in rows:
        cells = [row[k] for k in head]
        cells.insert(6, f"{row['calls'] / row['rounds']:.1f}")
        cells.insert(8, f"{row['nfe'] / row['calls']:.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    out.mkdir(parents=True, exist_ok=True)
    record = {"tolerance": TOLERANCE, "torch": torch.__version__, "rows": rows}
    (out / "parallel.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "parallel.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
