"""The table of noise streams: who draws what under which numbers of the counter.

A stream is a purpose, a sub-draw and a range of draw indices of noise format v1 (see philox.py).
Two streams never share a number, so two parts of a run never share their noise. The numbers are
frozen: another number is another sample for everyone. A new use takes a row of its own here.

    eps = normal(x.shape, seed, ids, **BOUND.at(draw), dtype=x.dtype, device=x.device)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from .checks import whole
from .errors import InvalidValue

MAX_DRAW = 2**32  # the counter has a word for the draw
MAX_SUBDRAW = 2**8  # and a byte for the sub-draw

PURPOSES = {
    "initial": 0,  # x at t_max
    "predictor": 1,  # the noise of a solver's step
    "corrector": 2,  # Langevin
    "brownian": 3,  # the virtual Brownian tree
    "probe": 4,  # trace estimation
    "user": 5,
}
"""What a number is for, and its code in the counter."""


class Place(TypedDict):
    """Arguments of `normal`, `uniform` and the like that say which numbers are drawn."""

    purpose: str
    subdraw: int
    draw: int


@dataclass(frozen=True)
class Stream:
    """Draws `first` to `first + count - 1` of a purpose and sub-draw."""

    purpose: str
    subdraw: int
    use: str
    first: int = 0
    count: int = MAX_DRAW

    def at(self, draw: int = 0) -> Place:
        """Where the stream's draw of this index stands. Raises ValueError past the stream's end."""
        if not 0 <= draw < self.count:
            raise InvalidValue(f"{self.use}: draw must be in [0, {self.count}); got {draw}")
        return {"purpose": self.purpose, "subdraw": self.subdraw, "draw": self.first + draw}


INITIAL = Stream("initial", 0, "x at t_max, before it is scaled", count=1)
COMPONENT = Stream("initial", 0, "which component of a mixture x at t_max comes from", 1, 1)
ENTRY = Stream("predictor", 0, "noise added to x_init before the first row", count=1)
ROWS = Stream("predictor", 0, "normals of a table's rows", 1, MAX_DRAW - 1)
CORRECTOR = Stream("corrector", 0, "Langevin steps, one draw each")
BROWNIAN = Stream("brownian", 0, "nodes of the virtual Brownian tree")
PROBES = Stream("probe", 0, "probes of traces", count=MAX_DRAW - 1)
TRUNCATION = Stream("probe", 0, "kept free: format v1 gave it to the truncation", MAX_DRAW - 1, 1)
GRADIENT = Stream("probe", 1, "signs of the check of a network's gradient")
CARRIED = Stream("probe", 2, "probes of densities that are carried along with samples")
ENDS = Stream("probe", 3, "probes of what both ends of a path leave out of log p")
USER = Stream("user", 0, "whatever the caller draws")
BOUND = Stream("user", 1, "x_t of the terms of a variational bound")
JITTER = Stream("user", 2, "times of an importance-sampled integral")
DEQUANTIZE = Stream("user", 3, "uniform dequantisation")
DEQUANTIZE_HOOK = Stream("user", 4, "normals handed to a learned dequantisation")
TARGET = Stream("user", 5, "draws from an exact target")
TARGET_COMPONENT = Stream("user", 6, "which component of a mixture such a draw comes from")
ITO = Stream("user", 7, "steps of an Ito process")
TRAINING = Stream("user", 8, "probes and noise of score matching losses")

STREAMS = (
    INITIAL, COMPONENT, ENTRY, ROWS, CORRECTOR, BROWNIAN, PROBES, TRUNCATION, GRADIENT, USER, BOUND,
    JITTER, DEQUANTIZE, DEQUANTIZE_HOOK, TARGET, TARGET_COMPONENT, ITO,
    TRAINING, CARRIED, ENDS,
)  # fmt: skip
"""Every use of noise in the library, each with the draws that it owns."""


def tag_of(purpose: str, subdraw: int = 0) -> int:
    """Low half of the counter's last word: purpose in 8 bits, sub-draw in the next 8."""
    if not isinstance(purpose, str) or purpose not in PURPOSES:
        raise InvalidValue(f"purpose must be one of {sorted(PURPOSES)}; got {purpose!r}")
    return PURPOSES[purpose] | whole("subdraw", subdraw, 0, MAX_SUBDRAW) << 8


def as_draw(draw: int) -> int:
    """The index of a draw, checked against the counter's field."""
    return whole("draw", draw, 0, MAX_DRAW)
