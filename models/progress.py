"""How far a long run is, on standard error: a bar in a terminal (rich, or tqdm) and in a notebook
(tqdm), and where neither is, or the output goes to a file, a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
EVERY = 5.0
"""Seconds between two lines where there is no bar."""
TOLD = 0.05
"""Share of the steps from which on the time left is told: the first are often slow."""


class Bar:
    """Steps to do and steps done. This one shows nothing."""

    def total(self, steps: int) -> None:
        """Add steps to come."""

    def advance(self, steps: int = 1) -> None:
        """Count steps as done."""

    def say(self, what: str) -> None:
        """Name what is being done."""


class _Lines(Bar):
    def __init__(self) -> None:
        self._what, self._done, self._total = "", 0, 0
        self._began = self._last = time.monotonic()

    def total(self, steps: int) -> None:
        self._total += steps

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        self._print()

    def say(self, what: str) -> None:
        self._what = what
        self._print()

    def _print(self) -> None:
        """A line, at most every few seconds: time since the start, what is done of how much."""
        now = time.monotonic()
        if now - self._last < EVERY:
            return
        self._last = now
        minutes, seconds = divmod(int(now - self._began), 60)
        line = f"[{minutes}:{seconds:02}] {self._what}: {self._done} of {self._total}"
        if self._done and self._done >= TOLD * self._total and now > self._began:
            rate = self._done / (now - self._began)
            line += f", {rate:.3g} a second, {(self._total - self._done) / rate:.0f} s left"
        print(line, file=sys.stderr, flush=True)


class _RichBar(Bar):
    def __init__(self, drawn: Any) -> None:
        self._drawn = drawn
        self._task = drawn.add_task("starting", total=0)
        self._steps = 0

    def total(self, steps: int) -> None:
        self._steps += steps
        self._drawn.update(self._task, total=self._steps)

    def advance(self, steps: int = 1) -> None:
        self._drawn.advance(self._task, steps)

    def say(self, what: str) -> None:
        self._drawn.update(self._task, description=f"{what:<40.40}")


class _TqdmBar(Bar):
    def __init__(self, drawn: Any) -> None:
        self._drawn = drawn

    def total(self, steps: int) -> None:
        self._drawn.total = (self._drawn.total or 0) + steps
        self._drawn.refresh()

    def advance(self, steps: int = 1) -> None:
        self._drawn.update(steps)

    def say(self, what: str) -> None:
        self._drawn.set_description(what)


@contextmanager
def bar(show: bool) -> Iterator[Bar]:
    """A bar while the block runs; one that shows nothing where `show` is False."""
    if not show:
        yield Bar()
        return
    notebook = "ipykernel" in sys.modules
    if not notebook and not sys.stderr.isatty():
        yield _Lines()
        return
    try:
        if notebook:
            raise ImportError("a terminal's bar is no notebook's")
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
        )
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.progress import TimeRemainingColumn as Left
        from rich.text import Text
    except ImportError:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            yield _Lines()
            return
        with tqdm(total=0, leave=False) as shown:
            yield _TqdmBar(shown)
        return

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            """Steps a second, once there are some."""
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    words = TextColumn("{task.description}", markup=False)  # brackets of a name are its own
    columns = (words, BarColumn(), MofNCompleteColumn(), Rate(), Elapsed(), Left())
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        yield _RichBar(drawn)


def track(items: Iterable[T], label: str, total: int, show: bool) -> Iterator[T]:
    """Yield the items under a bar."""
    with bar(show) as shown:
        shown.total(total)
        shown.say(label)
        for item in items:
            yield item
            shown.advance()
