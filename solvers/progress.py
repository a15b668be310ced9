"""A progress bar where one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..kernels.errors import MissingPackage

T = TypeVar("T")


def track(items: Iterable[T], label: str, total: int, show: bool) -> Iterator[T]:
    """Yield the items; with show, draw a bar with the time left on standard error."""
    if not show:
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import track as rich_track
    except ImportError as error:
        raise MissingPackage(
            "progress=True draws its bar with rich: pip install 'undiffuse[bench]'"
        ) from error
    yield from rich_track(items, label, total, console=Console(stderr=True))
