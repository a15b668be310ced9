"""What a person sees of a training run: a progress bar and a loss curve."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...kernels.files import atomically
from ..progress import bar

Report = Callable[[int, float, float | None], None]
"""report(step, loss, held_out loss or None)."""


def plot(history: list[dict[str, float]], path: Path) -> None:
    """The loss curve as a PNG, where matplotlib is installed; a bound may be negative."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    positive = all(r["loss"] > 0 and r.get("held_out", 1) > 0 for r in history)
    scale = "log" if positive else "linear"
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale=scale)
    axes.plot([r["step"] for r in history], [r["loss"] for r in history], label="training", lw=0.8)
    held = [(r["step"], r["held_out"]) for r in history if "held_out" in r]
    if held:
        axes.plot(*zip(*held, strict=True), "o-", ms=3, label="held out, averaged weights")
    axes.legend()
    atomically(path, lambda p: figure.savefig(p, format="png", dpi=120))


@contextmanager
def reporter(steps: int, start: int, progress: bool) -> Iterator[Report]:
    """A progress bar with loss and speed, or a function that does nothing."""
    began, kept, done = time.perf_counter(), "", start
    with bar(progress) as shown:
        shown.total(steps - start)

        def report(step: int, loss: float, held: float | None) -> None:
            nonlocal kept, done
            kept = kept if held is None else f", held out {held:.4f}"
            speed = (step - start) / (time.perf_counter() - began)
            shown.say(f"loss {loss:.4f}{kept}, {speed:.0f} steps/s")
            shown.advance(step - done)
            done = step

        yield report
