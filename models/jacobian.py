"""Traces of Jacobians: exact, or estimated with random probes.

For out = net(x) with Jacobian J, one probe v gives the product w = J^T v by one backward pass, and

    v^T J v = sum_i v_i w_i,        E[v v^T] = I   =>   E[v^T J v] = tr J       (Hutchinson 1989)

Rademacher probes (v_i = +-1) have variance 2 ||offdiag(sym J)||_F^2; Gaussian ones 2 ||sym J||_F^2,
so they pay for the diagonal too. Colouring: with colours l_i and Walsh functions h_k, the K probes
v_k = eps * h_k(l) leave only pairs of the same colour in the variance,

    1/K sum_k v_k^T J v_k = sum_i a_i,   a_i = J_ii + sum_{j != i, l_j = l_i mod K} J_ij e_i e_j,

which for images, where posterior covariances are local, falls much faster than 1/K. Every probe is
a pure function of (seed, sample id, draw): a sample's trace does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from ..kernels import normal, rademacher
from ..kernels.errors import InvalidValue, RunFailure
from ..kernels.shapes import column

PROBES = ("rademacher", "gaussian")


def probes(
    kind: str,
    count: int,
    like: Tensor,
    seed: int | Tensor,
    sample_ids: Tensor | Sequence[int] | None = None,
    draw0: int = 0,
) -> Tensor:
    """Probes [count, *like.shape] in like's dtype, draws draw0 ... draw0 + count - 1.

    kind: 'rademacher' or 'gaussian'. Raises ValueError for another kind or count < 1.
    """
    if kind not in PROBES:
        raise InvalidValue(f"probe kind must be one of {', '.join(PROBES)}; got {kind!r}")
    if count < 1:
        raise InvalidValue(f"probes must be >= 1; got {count}")
    shape = tuple(like.shape)

    def draw(k: int) -> Tensor:
        if kind == "gaussian":
            return normal(shape, seed, sample_ids, k, "probe", 0, like.dtype, like.device)
        return rademacher(shape, seed, sample_ids, k, 0, like.dtype, like.device)

    return torch.stack([draw(draw0 + k) for k in range(count)])


def products(
    out: Tensor, x: Tensor, v: Tensor, create_graph: bool = False, keep: bool = False
) -> Tensor:
    """w_k = J^T v_k for probes v [K, *out.shape]: K backward passes of one forward pass.

    out: computed from x with gradients on, one sample's output from its own input alone.
    keep: leave the graph for more.
    Returns [K, *x.shape]. Raises ValueError if out does not depend on x through autograd.
    """
    if not out.requires_grad:
        raise InvalidValue(
            "net's output has no gradient with respect to x, so its trace cannot be taken: "
            "drop no_grad, detach or a compiled inference mode from the network"
        )
    found = []
    for k in range(len(v)):
        retain = keep or create_graph or k + 1 < len(v)
        with _naming_compilation():
            (w,) = torch.autograd.grad(
                out, x, v[k], retain_graph=retain, create_graph=create_graph, allow_unused=True
            )
        found.append(torch.zeros_like(x) if w is None else w)
    return torch.stack(found)


def exact(
    out: Tensor, x: Tensor, *, chunk: int | None = None, create_graph: bool = False
) -> Tensor:
    """tr J of each sample, [B] in x's dtype, by d unit probes: the first of `moments`."""
    return moments(out, x, chunk=chunk, create_graph=create_graph)[0]


def moments(
    out: Tensor, x: Tensor, *, chunk: int | None = None, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """tr J and |J|_F^2 of each sample, [B] in x's dtype, by d unit probes, `chunk` of them at once.

    chunk: None takes as many as hold about 2^17 numbers of x's kind on a CPU, whose caches hold no
        more, and 2^22 elsewhere; the network's wider activations hold as many times more as
        they have channels. It changes no sum's order. A network that cannot be vectorised (vmap) is
        walked one probe at a time.
    Raises ValueError as `products` does. Backward mode: the forward one (jvp) multiplies as often
    for all products, more often for a few (a test counts), and would need a rule of its own in
    every layer.
    """
    if not out.requires_grad:
        products(out, x, out[None])  # raises
    batch, d = x.shape[0], x[0].numel()
    chunk = _chunk(x) if chunk is None else chunk
    diagonal, squares = [], []
    for start in range(0, d, chunk):
        size = min(chunk, d - start)
        unit = x.new_zeros(size, batch, d)
        here = torch.arange(size, device="cpu")
        unit[here, :, here + start] = 1
        rows = _vectorised(out, x, unit.reshape(size, *x.shape), start + size < d, create_graph)
        rows = rows.reshape(size, batch, d)
        diagonal.append(rows[here, :, here + start])
        squares.append(rows.square().sum(2))
    trace, square = (torch.cat(v).T.contiguous().sum(1) for v in (diagonal, squares))
    return trace, square


def _chunk(x: Tensor) -> int:
    """Unit probes at once."""
    most = 1 << (17 if x.device.type == "cpu" else 22)
    return max(1, min(x[0].numel(), most // max(1, x.numel())))


def full(out: Tensor, x: Tensor, *, chunk: int | None = None) -> Tensor:
    """J of each sample, [B, d, d] in x's dtype, by d unit probes; see `exact`."""
    batch, d = x.shape[0], x[0].numel()
    chunk = _chunk(x) if chunk is None else chunk
    rows = []
    for start in range(0, d, chunk):
        size = min(chunk, d - start)
        unit = x.new_zeros(size, batch, d)
        here = torch.arange(size, device="cpu")
        unit[here, :, here + start] = 1
        w = _vectorised(out, x, unit.reshape(size, *x.shape), start + size < d, False)
        rows.append(w.reshape(size, batch, d))
    return torch.cat(rows).movedim(0, 1)


def _vectorised(out: Tensor, x: Tensor, v: Tensor, keep: bool, create_graph: bool) -> Tensor:
    try:
        (w,) = torch.autograd.grad(
            out,
            x,
            v,
            retain_graph=True,
            create_graph=create_graph,
            is_grads_batched=True,
            allow_unused=True,
        )
        return torch.zeros_like(v) if w is None else w
    except RuntimeError as error:
        if "vmap" not in str(error) and "donated" not in str(error):
            raise
        return products(out, x, v, create_graph)


@contextmanager
def _naming_compilation() -> Iterator[None]:
    """Says what to do about a network that torch.compile made for one backward pass a call."""
    try:
        yield
    except RuntimeError as error:
        if "donated" not in str(error) and "compile" not in str(error):
            raise
        raise RunFailure(
            "the network is compiled for one backward pass of first order a call, and its trace "
            "takes more: hand in the network as it was before torch.compile (net._orig_mod)"
        ) from error


def agrees(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, signs: Tensor) -> Tensor:
    """Whether the gradient of f is that of its values, bool [B].

    One product J^T v is held against finite differences of v^T f along J^T v itself and along
    random signs. A network with parts under no_grad, detached or straight-through fails. A
    difference counts where it exceeds a tenth of the product along itself, or three tenths of
    its usual size along random signs, and where differences over three
    distances agree with each other better than with it: those of rounding, dropout and kinks do
    not.

    f: (x [n, *event], rows int64 [n]) -> [n, *event], sample by sample.
    x: [B, *event], of scale about 1.
    signs: draws of random signs, [K, B, *event]: the first for v, the others as directions.
    """
    leaf, rows = x.detach().clone().requires_grad_(), torch.arange(len(x), device=x.device)
    with torch.enable_grad():
        out = f(leaf, rows)
        w = products(out, leaf, signs[:1])[0]
    here, v, root = out.detach().double(), signs[0].double(), x[0].numel() ** 0.5
    size = w.double().flatten(1).square().sum(1).sqrt()
    fine = torch.ones_like(size, dtype=torch.bool)
    step = torch.finfo(x.dtype).eps ** 0.4  # between rounding, eps/h, and curvature, h
    unit = w * column(root / size.clamp(min=1e-30), w)

    def slope(h: float, along: Tensor, some: Tensor) -> Tensor:
        moved = f(x[some] + h * along[some], some).double() - here[some]
        return (moved * v[some]).flatten(1).sum(1) / h

    with torch.no_grad():
        for along, much in ((unit, 0.1 * size * root), *((v, 0.3 * size) for v in signs[1:])):
            told = (w.double() * along.double()).flatten(1).sum(1)
            first = slope(step, along, rows)
            some = ((first - told).abs() > much).nonzero().flatten()
            if len(some):
                others = [slope(m * step, along, some) for m in (-4, 16)]
                seen = torch.stack([first[some], *others])
                miss = (seen - told[some]).abs().amin(0)
                spread = seen.amax(0) - seen.amin(0)
                fine[some] &= (miss <= much[some]) | (spread >= miss / 5)
    return fine


# --- colouring ---------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def colours(event_shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """(labels [d] int64, bits): components whose labels agree in the low m bits share a colour of
    2^m. In images [..., H, W] the bits are those of a checkerboard, of the channels (a pixel's
    colours correlate most), of the rows, then of checkerboards and rows of twice the size, and so
    on. A flat event of n^2 >= 16 components is taken for an n x n image, any other for a line: of a
    signal neighbours correlate most, and where the order means nothing no other colouring is
    better. All 2^bits colours are distinct components.
    """
    channel, row, col = _grid(event_shape)
    channels, height, width = (int(v.max()) + 1 for v in (channel, row, col))
    planes: list[Tensor] = []
    for level in range((max(height, width) - 1).bit_length()):
        planes += [((row >> level) + (col >> level)) & 1]
        if level == 0:
            planes += [(channel >> b) & 1 for b in range((channels - 1).bit_length())]
        planes += [(row >> level) & 1]
    planes = [p for p in planes if bool((p != p[0]).any())]
    labels = sum((p << m for m, p in enumerate(planes)), torch.zeros_like(row))
    return labels, max(1, len(planes))


def may_be_image(event_shape: tuple[int, ...]) -> bool:
    """Whether an event is flat, of n^2 >= 16 components: an n x n image, or a line."""
    d = torch.Size(event_shape).numel()
    return len(event_shape) < 2 and d >= 16 and math.isqrt(d) ** 2 == d


def _grid(event_shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(channel, row, column) of every component, each int64 [d]; a line is one row."""
    index = torch.arange(torch.Size(event_shape).numel(), device="cpu")
    if may_be_image(event_shape):
        event_shape = (math.isqrt(len(index)),) * 2
    if len(event_shape) < 2:
        event_shape = (1, len(index))
    height, width = event_shape[-2:]
    return index // (height * width), (index // width) % height, index % width


@lru_cache(maxsize=64)
def removed(event_shape: tuple[int, ...]) -> Tensor:
    """c [16, bits + 1], float64: what levels 1 ... m of a block take off the variance, with c_1 = 1
    and c_0 = 0, where J_ij^2 falls as (1 + r/l)^-2 with the distance r of two pixels, whatever
    their channels; one row a length l, from infinity (where every level halves what is left) down
    to a tenth of a pixel. Sums over 32 components.
    """
    labels, bits = colours(event_shape)
    g = torch.Generator("cpu").manual_seed(0)
    some = torch.randperm(len(labels), generator=g, device="cpu")[:32]
    apart = labels[some, None] ^ labels
    level = (apart & -apart).double().log2().clamp(min=-1).long()  # that parts a pair; -1: itself
    row, col = ((v[some, None] - v).double() for v in _grid(event_shape)[1:])
    r = torch.sqrt(row.square() + col.square())
    found = []
    for inverse in [0.0, *torch.logspace(-3, 1, 15, dtype=torch.float32, device="cpu").tolist()]:
        gone = torch.bincount(level.flatten() + 1, (1 + inverse * r).pow(-2).flatten(), bits + 1)
        found.append(torch.cat([gone[:1] * 0, gone[1:].cumsum(0) / gone[1]]))
    return torch.stack(found)


def walsh(k: int, labels: Tensor) -> Tensor:
    """h_k(l) = (-1)^popcount(k & l), int64 [d]."""
    bits = labels & k
    for shift in (32, 16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return 1 - 2 * (bits & 1)
