"""Which of several processes this one is, where torchrun has started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait

import torch


def rank() -> int:
    """This process's number; 0 is the one that writes."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(asked: str | None) -> str | None:
    """'cuda' becomes this process's own device."""
    return (
        f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        if asked == "cuda" and world_size() > 1
        else asked
    )


def leave_with_parent() -> None:
    """End this process when the one that started it is killed."""
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads on the CPU while the block runs: in every process of a job the same, since
    matrix products may round differently with another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
