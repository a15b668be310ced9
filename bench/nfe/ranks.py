"""A run that torchrun started several times: every process measures its share, the first one writes.

Nothing has to be set up: `torchrun --nproc-per-node 2 -m undiffuse bench ...` gives each process its
RANK and WORLD_SIZE, which are read here. Without them there is one process, and nothing happens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """This process's number; 0 is the one that writes."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device(asked: str | None) -> str | None:
    """'cuda' becomes this process's own device."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if asked == "cuda" and size() > 1 else asked


@contextmanager
def together() -> Iterator[None]:
    """The processes can talk while the block runs."""
    mine = size() > 1 and not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo")
    try:
        yield
        if mine:
            dist.barrier()  # nobody leaves while another still listens
    finally:
        if mine:
            dist.destroy_process_group()


def first(make: Callable[[], T]) -> T:
    """What `make` returns: called by the first process before the others, which then find its files."""
    if size() == 1:
        return make()
    made = make() if rank() == 0 else None
    dist.barrier()
    return make() if made is None else made


def shared(mine: T) -> list[T]:
    """What every process has, in order of rank."""
    if size() == 1:
        return [mine]
    held: list[T | None] = [None] * size()
    dist.all_gather_object(held, mine)
    return held  # type: ignore[return-value]
