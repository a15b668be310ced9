# mypy: ignore-errors
# (the launch options are plain dicts that triton's untyped launcher reads)
"""How kernels are launched: block sizes, noise mode and compiler options, in one place."""

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
import triton

from . import dispatch

THREADS = 128
SMALL = 128  # counters (of four elements) per program: 4 elements a thread
CROSSOVER = 1 << 20  # elements from which larger programs still fill the machine
GRID_Y = 65535


@dataclass(frozen=True)
class Block:
    """Grid and switches of a launch over [batch, size] (see triton_noise.tile)."""

    grid: tuple[int, ...]
    quads: int
    total: int
    switches: MappingProxyType


def block_of(batch, size, operands):
    """The block for batch samples of size elements each; no autotuning, three sizes.

    operands: tensors read and written, which is what fills the registers.
    """
    return _block(batch, size, operands, dispatch.interpreted())


@lru_cache(256)  # a run asks the same at every row
def _block(batch, size, operands, interpreted):
    quads = -(-size // 4)
    total = quads * batch
    if interpreted:
        q = min(1 << 14, triton.next_power_of_2(total))  # its cost is per operation
    elif batch * size < CROSSOVER:
        q = SMALL
    else:
        q = 4 * SMALL if operands <= 3 else 2 * SMALL if operands <= 6 else SMALL
    flat = batch > 1 and (quads < q or batch > GRID_Y)
    grid = (triton.cdiv(total, q),) if flat else (triton.cdiv(quads, q), batch)
    switches = {"Q": q, "FLAT": flat, "ALIGNED": size % 4 == 0}
    return Block(grid, quads, total, MappingProxyType(switches))  # kept for all, so nobody's


def packed(*tensors):
    """The tensors with one element after the other, as the kernels read them; None stays None."""
    return tuple(None if v is None else v.contiguous() for v in tensors)


def noise_mode():
    """EXACT, NVIDIA, AMD or EXACT_NVIDIA of triton_noise; the interpreter has no hardware's own."""
    if dispatch.interpreted():
        return 0
    if torch.version.hip:
        return 2 if dispatch.fast_noise() else 0
    return 1 if dispatch.fast_noise() else 3


def launch_options():
    """Options of every launch. Contraction is off unless the noise is fast: a fused multiply-add
    rounds once where the reference rounds twice, and its default changes between versions."""
    return _options(dispatch.fast_noise())


@lru_cache(2)
def _options(fast):
    warp = 64 if torch.version.hip else 32
    return MappingProxyType({"num_warps": THREADS // warp, "enable_fp_fusion": fast})
