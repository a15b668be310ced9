"""One progress bar with the time left, on standard error; nothing where it was not asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """advance() moves it, say() names what is being done. This one draws nothing."""

    def total(self, steps: int) -> None:
        """Add steps to come."""

    def advance(self) -> None:
        """One step is done."""

    def say(self, what: str) -> None:
        """Name what is being done."""


class _RichBar(Bar):
    def __init__(self, drawn: Any) -> None:
        self._drawn = drawn
        self._task = drawn.add_task("starting", total=0)
        self._steps = 0

    def total(self, steps: int) -> None:
        self._steps += steps
        self._drawn.update(self._task, total=self._steps)

    def advance(self) -> None:
        self._drawn.advance(self._task)

    def say(self, what: str) -> None:
        self._drawn.update(self._task, description=f"{what:<44.44}")


@contextmanager
def bar(show: bool) -> Iterator[Bar]:
    """A bar while the block runs; a silent one without `show` or without rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Left
    except ImportError:
        show = False
    if not show:
        yield Bar()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        yield _RichBar(drawn)
