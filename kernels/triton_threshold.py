# mypy: ignore-errors
# (triton's language is compiled from the source of these functions, not typed Python)
"""The Triton twin of threshold.py: radix selection on the bits of |x|, one program per sample.

Non-negative floats sort like their bits. Four passes fix eight bits each by counting; a fifth
finds the next larger value. Integer counts: the answer is exact and the same every time.
"""

import torch
import triton
import triton.language as tl

from . import dispatch
from .threshold import _place
from .triton_launch import launch_options

BLOCK = 1024
LARGE = 1 << 14


@triton.jit
def magnitude(x, offset, mask):
    """Bits of |x| as float32."""
    return tl.abs(tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)).to(
        tl.uint32, bitcast=True
    )


@triton.jit(do_not_specialize=["size", "rank", "share", "maximum"])
def threshold_kernel(x, out, size, rank, share, maximum, BLOCK: tl.constexpr):
    base = tl.program_id(0).to(tl.int64) * size
    local = tl.arange(0, BLOCK)
    digits = tl.arange(0, 256)
    prefix = (rank * 0).to(tl.uint32)
    left = rank
    ties = rank * 0
    for p in tl.static_range(4):
        counts = tl.zeros((256,), tl.int32)
        for start in range(0, size, BLOCK):
            index = start + local
            bits = magnitude(x, base + index, index < size)
            match = index < size
            if p > 0:
                match = match & ((bits >> (32 - 8 * p)) == (prefix >> (32 - 8 * p)))
            value = ((bits >> (24 - 8 * p)) & 255).to(tl.int32)
            counts += tl.histogram(value, 256, mask=match)
        digit = tl.sum((tl.cumsum(counts, 0) <= left).to(tl.int32), 0)
        digit = tl.minimum(digit, 255)
        left -= tl.sum(tl.where(digits < digit, counts, 0), 0)
        ties = tl.sum(tl.where(digits == digit, counts, 0), 0)
        prefix = prefix | (digit.to(tl.uint32) << (24 - 8 * p))

    following = prefix * 0 + 0x7FFFFFFF
    for start in range(0, size, BLOCK):
        index = start + local
        bits = magnitude(x, base + index, index < size)
        larger = tl.where((index < size) & (bits > prefix), bits, 0x7FFFFFFF)
        following = tl.minimum(following, tl.min(larger.to(tl.uint32), 0))
    repeated = (left + 1 < ties) | (following == 0x7FFFFFFF)
    below = prefix.to(tl.float32, bitcast=True)
    above = tl.where(repeated, prefix, following).to(tl.float32, bitcast=True)
    s = tl.minimum(tl.maximum(below + (above - below) * share, 1.0), maximum)
    for start in range(0, size, BLOCK):
        index = start + local
        mask = index < size
        v = tl.load(x + base + index, mask=mask).to(tl.float32)
        v = tl.maximum(v, -s, propagate_nan=tl.PropagateNan.ALL)
        v = tl.minimum(v, s, propagate_nan=tl.PropagateNan.ALL)
        tl.store(out + base + index, tl.div_rn(v, s), mask=mask)


def dynamic_threshold(x, ratio, maximum):
    """The operator `undiffuse::dynamic_threshold` on a GPU (or in the interpreter)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    size = x[0].numel()
    rank, share = _place(ratio, size)
    options, block = launch_options(), BLOCK
    if dispatch.interpreted():
        block = triton.next_power_of_2(min(size, 1 << 15))
    elif size > LARGE:  # few programs of long loops: four times the threads on each
        options, block = options | {"num_warps": 4 * options["num_warps"]}, 4 * BLOCK
    with dispatch.device_guard(x):
        threshold_kernel[(x.shape[0],)](x, out, size, rank, share, maximum, BLOCK=block, **options)
    return out
