"""Traces of Jacobians: exact, or estimated with random probes.

For out = net(x) with Jacobian J, one probe v gives the product w = J^T v by one backward pass, and

    v^T J v = sum_i v_i w_i,        E[v v^T] = I   =>   E[v^T J v] = tr J       (Hutchinson 1989)

Rademacher probes (v_i = +-1) have variance 2 ||offdiag(sym J)||_F^2; Gaussian ones 2 ||sym J||_F^2,
so they pay for the diagonal too. Every probe is a pure function of (seed, sample id, draw): a
sample's trace does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import normal, rademacher

PROBES = ("rademacher", "gaussian")


def probes(
    kind: str,
    count: int,
    like: Tensor,
    seed: int | Tensor,
    sample_ids: Tensor | Sequence[int] | None = None,
    draw0: int = 0,
) -> Tensor:
    """Probes [count, *like.shape] in like's dtype, draws draw0 ... draw0 + count - 1 of each sample.

    kind: 'rademacher' or 'gaussian'. Raises ValueError for another kind or count < 1.
    """
    if kind not in PROBES:
        raise ValueError(f"probe kind must be one of {', '.join(PROBES)}; got {kind!r}")
    if count < 1:
        raise ValueError(f"probes must be >= 1; got {count}")
    shape = tuple(like.shape)

    def draw(k: int) -> Tensor:
        if kind == "gaussian":
            return normal(shape, seed, sample_ids, k, "probe", 0, like.dtype, like.device)
        return rademacher(shape, seed, sample_ids, k, 0, like.dtype, like.device)

    return torch.stack([draw(draw0 + k) for k in range(count)])


def products(out: Tensor, x: Tensor, v: Tensor, create_graph: bool = False) -> Tensor:
    """w_k = J^T v_k for probes v [K, *out.shape]: K backward passes of one forward pass.

    out: computed from x with gradients on, one sample's output from its own input alone. Returns
    [K, *x.shape]. Raises ValueError if out does not depend on x through autograd.
    """
    if not out.requires_grad:
        raise ValueError(
            "net's output has no gradient with respect to x, so its trace cannot be taken: "
            "drop no_grad, detach or a compiled inference mode from the network"
        )
    found = []
    for k in range(len(v)):
        keep = create_graph or k + 1 < len(v)
        (w,) = torch.autograd.grad(
            out, x, v[k], retain_graph=keep, create_graph=create_graph, allow_unused=True
        )
        found.append(torch.zeros_like(x) if w is None else w)
    return torch.stack(found)


def exact(
    out: Tensor, x: Tensor, *, chunk: int | None = None, create_graph: bool = False
) -> Tensor:
    """tr J of each sample, [B] in x's dtype, by d unit probes, `chunk` of them vectorised at once.

    chunk: None takes as many as hold about 2^24 numbers. A network that cannot be vectorised
    (vmap) is walked one probe at a time. Raises ValueError as `products` does.
    """
    if not out.requires_grad:
        return products(out, x, out[None]).sum()  # raises
    batch, d = x.shape[0], x[0].numel()
    if chunk is None:
        chunk = max(1, min(d, (1 << 24) // max(1, x.numel())))
    total = x.new_zeros(batch)
    for start in range(0, d, chunk):
        size = min(chunk, d - start)
        unit = x.new_zeros(size, batch, d)
        unit[torch.arange(size), :, torch.arange(start, start + size)] = 1
        rows = _vectorised(out, x, unit.reshape(size, *x.shape), start + size < d, create_graph)
        total = total + (unit * rows.reshape(size, batch, d)).sum((0, 2))
    return total


def _vectorised(out: Tensor, x: Tensor, v: Tensor, keep: bool, create_graph: bool) -> Tensor:
    try:
        (w,) = torch.autograd.grad(
            out, x, v, retain_graph=True, create_graph=create_graph, is_grads_batched=True,
            allow_unused=True,
        )  # fmt: skip
        return torch.zeros_like(v) if w is None else w
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return products(out, x, v, create_graph)
