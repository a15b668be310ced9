"""Counter-based noise: the same (seed, sample id, draw, element) gives the same number anywhere."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch, native, philox
from .checks import as_sample_ids, as_seed, check_batch, check_ids
from .errors import InvalidValue
from .philox import PURPOSES

KINDS = ("normal", "uniform", "sign")


def _reference(
    seed: Tensor,
    sample_ids: Tensor | None,
    shape: Sequence[int],
    draw: int,
    tag: int,
    element0: int,
    kind: int,
) -> Tensor:
    """Float32 tensor of the given shape [B, ...]; noise format v1 of philox.py."""
    streams = philox.stream_table(shape[0], seed, sample_ids, draw, tag)
    return philox.draw(KINDS[kind], math.prod(shape[1:]), streams, element0).reshape(shape)


def _native(
    seed: Tensor,
    sample_ids: Tensor | None,
    shape: Sequence[int],
    draw: int,
    tag: int,
    element0: int,
    kind: int,
) -> Tensor | None:
    library = native.library(math.prod(shape))
    if library is None:
        return None
    out = torch.empty(shape[0], math.prod(shape[1:]))
    native.noise(library, out, seed, sample_ids, draw, tag, element0=element0, kind=kind)
    return out.view(shape)


def _fake(
    seed: Tensor,
    sample_ids: Tensor | None,
    shape: Sequence[int],
    draw: int,
    tag: int,
    element0: int,
    kind: int,
) -> Tensor:
    return seed.new_empty(shape, dtype=torch.float32)


_noise = dispatch.define(
    "noise",
    "(Tensor seed, Tensor? sample_ids, SymInt[] shape, int draw, int tag, int element0, int kind) "
    "-> Tensor",
    reference=_reference,
    triton="triton_noise:noise",
    native=_native,
    fake=_fake,
)


def tag_of(purpose: str, subdraw: int = 0) -> int:
    """Low half of the counter's last word: purpose in 8 bits, sub-draw in the next 8."""
    if purpose not in PURPOSES:
        raise InvalidValue(f"purpose must be one of {sorted(PURPOSES)}; got {purpose!r}")
    if not 0 <= subdraw < 256:
        raise InvalidValue(f"subdraw must be in [0, 256); got {subdraw}")
    return PURPOSES[purpose] | subdraw << 8


def _draw(
    kind: str,
    shape: Sequence[int],
    seed: int | Tensor,
    sample_ids: Tensor | Sequence[int] | None,
    draw: int,
    purpose: str,
    element0: int,
    subdraw: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    if not shape:
        raise InvalidValue("shape must be [B, ...] with at least the batch dimension; got []")
    if not 0 <= draw < 2**32:
        raise InvalidValue(f"draw must be in [0, 2^32); got {draw}")
    if element0 < 0:
        raise InvalidValue(f"element0 must not be negative; got {element0}")
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else "cpu"
    seeds = as_seed(seed, device)
    check_batch("seed", seeds, shape[0])
    ids = as_sample_ids(sample_ids, shape[0], device)
    if ids is not None and not torch.compiler.is_compiling():
        check_ids(ids)
    tag = tag_of(purpose, subdraw)
    out: Tensor = _noise(seeds, ids, list(shape), draw, tag, element0, KINDS.index(kind))
    return out.to(dtype)


def normal(
    shape: Sequence[int],
    seed: int | Tensor,
    sample_ids: Tensor | Sequence[int] | None = None,
    draw: int = 0,
    purpose: str = "user",
    element0: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    subdraw: int = 0,
) -> Tensor:
    """Standard normals [B, ...] by counter: z = sqrt(-2 ln u) (sin, cos)(2 pi u').

    seed: any 64-bit int, or int64 tensor [B]; sample_ids: int64 [B], below 2^48, None = 0 ... B-1;
    draw: index of the draw, [0, 2^32); purpose: a key of PURPOSES; subdraw: [0, 256).
    element0: index of the first element inside each sample, for shards of one sample.
    Drawn in float32 (|z| < 6.77), then cast to dtype. device: None = the seed's, else the CPU.
    Raises ValueError or TypeError on arguments outside these ranges.
    """
    return _draw("normal", shape, seed, sample_ids, draw, purpose, element0, subdraw, dtype, device)


def uniform(
    shape: Sequence[int],
    seed: int | Tensor,
    sample_ids: Tensor | Sequence[int] | None = None,
    draw: int = 0,
    purpose: str = "user",
    element0: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    subdraw: int = 0,
) -> Tensor:
    """Uniforms [B, ...] in the open interval (0, 1): u = (floor(w / 2^9) + 1/2) 2^-23.

    Arguments as in `normal`. Exact in float32; casts to bfloat16 or float16 may round to 1.
    """
    return _draw(
        "uniform", shape, seed, sample_ids, draw, purpose, element0, subdraw, dtype, device
    )


def rademacher(
    shape: Sequence[int],
    seed: int | Tensor,
    sample_ids: Tensor | Sequence[int] | None = None,
    draw: int = 0,
    subdraw: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Random signs [B, ...], -1 or +1 with probability 1/2 each, of the purpose "probe".

    Arguments as in `normal`. E[v v^T] = I: the probes of Hutchinson's trace estimator.
    """
    return _draw("sign", shape, seed, sample_ids, draw, "probe", 0, subdraw, dtype, device)
