# mypy: ignore-errors
# (triton's language is compiled from the source of these functions, not typed Python)
"""The Triton twin of runge_kutta.py: partial sums of the scaled error leave with the state."""

import torch
import triton
import triton.language as tl

from . import dispatch
from .triton_langevin import sample_of, span
from .triton_launch import GRID_Y, launch_options, packed
from .triton_linear import nonzero

QUADS = 128  # up to seven stages: four elements a thread fill the registers


@triton.jit(do_not_specialize=["batch", "size", "rtol", "atol"])
def runge_kutta_kernel(
    x,
    stages,
    weights,
    dt,
    new,
    partial,
    batch,
    size,
    rtol,
    atol,
    STEPS: tl.constexpr,
    ERROR: tl.constexpr,
    Q: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    b = sample_of(batch)
    if b < 0:
        return
    c0 = tl.program_id(0).to(tl.int64) * Q + tl.arange(0, Q)
    offset, mask = span(b, c0, size, ALIGNED)
    h = tl.load(dt + b * STEPS)
    total = tl.zeros((Q, 4), tl.float32)
    wrong = tl.zeros((Q, 4), tl.float32)
    for i in tl.static_range(len(stages)):
        w = tl.load(weights + i)
        used = nonzero(w)
        if ERROR:
            e = tl.load(weights + len(stages) + i)
            used = used | nonzero(e)
        k = tl.load(stages[i] + offset, mask=mask & used, other=0.0).to(tl.float32)
        total += k * w
        if ERROR:
            wrong += k * e
    state = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    y = state + h * total
    tl.store(new + offset, y, mask=mask)
    if ERROR:
        scale = tl.maximum(tl.abs(state), tl.abs(y)) * rtol + atol
        scaled = tl.where(mask, h * wrong / scale, 0.0)
        summed = tl.sum(tl.sum(scaled * scaled, 1), 0)
        tl.store(partial + b * tl.num_programs(0) + tl.program_id(0), summed)


def runge_kutta_step(x, stages, weights, dt, rtol, atol):
    """The operator `undiffuse::runge_kutta_step` on a GPU (or in the interpreter)."""
    batch, size = x.shape[0], x[:1].numel()
    error = weights.shape[0] == 2
    new = torch.empty_like(x, memory_format=torch.contiguous_format)
    blocks = max(1, triton.cdiv(size, 4 * QUADS))
    partial = torch.empty(batch, blocks, dtype=torch.float32, device=x.device) if error else new
    if x.numel():
        with dispatch.device_guard(x):
            runge_kutta_kernel[blocks, min(batch, GRID_Y), triton.cdiv(batch, GRID_Y)](
                *packed(x),
                packed(*stages),
                *packed(weights, dt),
                new,
                partial,
                batch,
                size,
                rtol,
                atol,
                STEPS=int(dt.numel() > 1),
                ERROR=error,
                Q=QUADS,
                ALIGNED=size % 4 == 0,
                **launch_options(),
            )
    return [new, (partial.sum(1) / size).sqrt()] if error else [new]
