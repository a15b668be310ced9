"""Counter-based noise: the same (seed, sample id, draw, element) gives the same number anywhere."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch, native, philox
from .checks import as_sample_ids, as_seed, as_shape, check_float, check_streams, whole
from .errors import InvalidValue
from .streams import MAX_DRAW, tag_of

KINDS = ("normal", "uniform", "sign")
MAX_ELEMENT = 2**34  # four lanes of a 32-bit counter


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
    out = torch.empty(shape[0], math.prod(shape[1:]), dtype=torch.float32, device="cpu")
    native.noise(library, out, seed, sample_ids, draw, tag, element0=element0, kind=kind)
    return out.view(shape)


def fake(seed: Tensor, sample_ids: Tensor | None, shape: Sequence[int], *_: Any) -> Tensor:
    """Numbers that are not drawn."""
    return seed.new_empty(shape, dtype=torch.float32)


def _check(
    seed: Tensor,
    sample_ids: Tensor | None,
    shape: Sequence[int],
    draw: int,
    tag: int,
    element0: int,
    kind: int,
) -> None:
    if not shape or any(n < 0 for n in shape):
        raise InvalidValue(f"shape must be [B, ...] of sizes that are not negative; got {shape}")
    check_streams(seed, shape[0], seed, sample_ids, tag, draw)
    whole("kind", kind, 0, len(KINDS))
    if element0 < 0 or element0 + math.prod(shape[1:]) > MAX_ELEMENT:
        raise InvalidValue(
            f"element0 must be in [0, 2^34), with all elements of a sample; got {element0} and "
            f"{math.prod(shape[1:])} elements"
        )


_noise = dispatch.define(
    "noise",
    "(Tensor seed, Tensor? sample_ids, SymInt[] shape, int draw, int tag, int element0, int kind) "
    "-> Tensor",
    reference=_reference,
    triton="triton_noise:noise",
    native=_native,
    fake=fake,
    check=_check,
    decomposition=_reference,
)


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
    shape = as_shape(shape)
    check_float("dtype", dtype)
    draw = whole("draw", draw, 0, MAX_DRAW)
    element0 = whole("element0", element0, 0, MAX_ELEMENT)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else "cpu"
    seeds = as_seed(seed, device)
    ids = as_sample_ids(sample_ids, shape[0], device)
    tag = tag_of(purpose, subdraw)
    out: Tensor = _noise(seeds, ids, shape, draw, tag, element0, KINDS.index(kind))
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

    seed: any 64-bit int, or int64 tensor [B].
    sample_ids: int64 [B], below 2^48, None = 0 ... B-1.
    draw: index of the draw, [0, 2^32).
    purpose: a key of PURPOSES.
    subdraw: [0, 256).
    element0: index of the first element inside each sample, for shards of one sample.
    dtype: what the normals are cast to; they are drawn in float32 (|z| < 6.77).
    device: None = the seed's, else the CPU.
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
