"""Which of several processes this one is, where torchrun has started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


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
