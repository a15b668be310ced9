"""Distances of two sets in the features of a network: Frechet, kernel (KID), precision and recall.

`--features package.module:function` or `file.py:function` names a function without arguments that
returns the features: a callable of samples [n, *event], in the range the model has them, with values
[n, k]. examples/mnist_lenet.py is a complete example, and examples/inception.py has Inception-v3's
pool through the libraries that have it. Without it the features are the components themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...models.checkpoint import from_code

Features = Callable[[Tensor], Tensor]
BATCH = 256
"""Samples that a feature network is given at a time."""


def load(spec: str) -> Features:
    """The features that the named function returns; its code is run.

    Raises ValueError for another form of name, TypeError where it returns something else, and what
    the code raises.
    """
    made = from_code(spec)
    if made is None:
        raise InvalidValue(
            "features must be package.module:function or file.py:function, a function without "
            f"arguments that returns a callable [n, *event] -> [n, k]; got {spec!r}"
        )
    if not callable(made):
        raise InvalidType(f"{spec} must return a callable; got {type(made).__name__}")
    kept: Features = made
    return kept


def apply(features: Features | None, x: Tensor) -> Tensor:
    """Features of x [n, *event], float64 [n, k]; None is the components.

    Raises ValueError for values of another shape, or that are not finite.
    """
    if features is None:
        return x.double().flatten(1)
    with torch.no_grad():
        found = torch.cat([features(part.float()).detach().cpu() for part in torch.split(x, BATCH)])
    if found.ndim != 2 or len(found) != len(x) or not bool(torch.isfinite(found).all()):
        raise InvalidValue(
            f"features must return finite numbers [{len(x)}, k] for {len(x)} samples; got "
            f"{tuple(found.shape)}, {int((~torch.isfinite(found)).sum())} of them not finite"
        )
    return found.double()


def frechet(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), of features x [n, k] and y [m, k].

    Heusel et al. 2017, 6. The trace of the root is the sum of the singular values of R_x R_y^T with
    C = R^T R, so no root of a matrix is taken and rank-deficient covariances do no harm. Small sets
    are further apart than their laws: compare with the floor.
    """
    roots = []
    for v in (x, y):
        centred = (v - v.mean(0)) / (len(v) - 1) ** 0.5
        roots.append(torch.linalg.qr(centred, mode="r").R)
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(r.square().sum() for r in roots)
    return float((x.mean(0) - y.mean(0)).square().sum() + spread - 2 * overlap)


def kid(x: Tensor, y: Tensor) -> float:
    """Squared MMD with the kernel (x.y/k + 1)^3, unbiased, of features [n, k] (Binkowski et al. 2018)."""
    k = x.shape[1]
    xx, yy, xy = ((a @ b.T / k + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = sum(
        (m.sum() - m.diagonal().sum()) / (len(m) * (len(m) - 1)) for m in (xx, yy)
    )  # fmt: skip
    return float(within - 2 * xy.mean())


def precision(x: Tensor, y: Tensor, k: int = 3) -> float:
    """Share of the samples x [n, d] that lie within a ball around a real point y [m, d] whose radius
    is the distance to that point's k-th neighbour (Kynkaanniemi et al. 2019, 1)."""
    radius = torch.cdist(y, y).kthvalue(min(k + 1, len(y)), dim=1).values
    return float((torch.cdist(x, y) <= radius).any(1).double().mean())


def recall(x: Tensor, y: Tensor, k: int = 3) -> float:
    """Share of the real points y that the samples' balls cover."""
    return precision(y, x, k)
