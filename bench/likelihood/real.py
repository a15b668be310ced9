"""Real networks on images they were not trained on: bits/dim by the flow's ODE and by the bound.

Both score the same images with the same uniform dequantisation, as densities whose levels are
`spacing` apart, so that the numbers are comparable: the bound (continuous time, Kingma et al. 2021)
may not lie below the exact value of the process it bounds, and the ODE's law is that process's own
where the network is a perfect score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from ...models.checkpoint import Checkpoint, load_default
from ...models.dequantize import dequantised
from ...models.progress import Bar
from ...solvers import log_prob
from ...solvers.likelihood.elbo import elbo
from ...solvers.likelihood.items import held_out
from ..mnist_ddpm import mnist_cnn
from ..report.table import Table

NETWORKS: dict[str, tuple[Callable[[], Checkpoint], int]] = {
    "digits (ships with the package)": (load_default, 64),
    "ddpm_mnist_cnn": (mnist_cnn, 16),
}
STRATA = 200  # network calls of the bound


def measure(
    seed: int, device: torch.device | str | None, shown: Bar, quick: bool
) -> list[dict[str, Any]]:
    """One record a network; quick: the shipped one on 8 images. A network or data set that is not
    here is a record with the reason."""
    records = []
    chosen = dict(list(NETWORKS.items())[:1]) if quick else NETWORKS
    shown.total(len(chosen))
    for name, (make, count) in chosen.items():
        shown.say(name)
        try:
            checkpoint = make()
            x = held_out(checkpoint)[: 8 if quick else count].to(device or "cpu")
        except FileNotFoundError as error:
            records.append({"network": name, "skipped": str(error)})
        else:
            model = checkpoint.denoiser
            if device is not None and isinstance(model.net, torch.nn.Module):
                model.net.to(device)
            records.append({"network": name, **_score(checkpoint, x, seed)})
        shown.advance()
    return records


def _score(checkpoint: Checkpoint, x: torch.Tensor, seed: int) -> dict[str, Any]:
    model, spacing = checkpoint.denoiser, checkpoint.spacing
    x = dequantised(x, spacing, seed)
    offset = -math.log2(spacing) if spacing else 0.0
    began = time.perf_counter()
    ode = log_prob(model, x, seed=seed, offset=offset, t_min=model.t_min)
    between = time.perf_counter()
    bound = elbo(model, x, "continuous", STRATA, seed=seed)
    ended = time.perf_counter()
    above = bound.bits_per_dim + offset - ode.bits_per_dim
    deviation = (bound.std_error.square() + ode.bits_std_error.square()).sqrt()
    n = len(x) ** 0.5
    return {
        "images": len(x), "t_min": ode.t_min, "blur": ode.blur, "offset": offset,
        "ode": float(ode.bits_per_dim.mean()), "ode_spread": float(ode.bits_per_dim.std()) / n,
        "ode_error": float(ode.bits_std_error.square().sum().sqrt()) / len(x),
        "forwards": float(ode.nfe.double().mean()), "products": float(ode.products.double().mean()),
        "ode_seconds": between - began,
        "bound": float(bound.bits_per_dim.mean()) + offset,
        "bound_error": float(bound.std_error.square().sum().sqrt()) / len(x),
        "bound_calls": bound.nfe, "bound_seconds": ended - between,
        "above": float(above.mean()),
        "images_above": int((above > -2 * deviation).sum()),
    }  # fmt: skip


def tables(records: list[dict[str, Any]]) -> list[Table]:
    """The records as one table."""
    columns = [
        "network", "images", "ODE, bits/dim", "forwards + products", "s", "bound, bits/dim", "calls",
        "s", "bound >= ODE - 2 s.e.",
    ]  # fmt: skip
    cells = [
        [r["network"], *[""] * 7, r["skipped"]] if "skipped" in r else
        [
            r["network"], f"{r['images']}", f"{r['ode']:.4f} +- {r['ode_error']:.4f}",
            f"{r['forwards']:.0f} + {r['products']:.0f}", f"{r['ode_seconds']:.1f}",
            f"{r['bound']:.3f} +- {r['bound_error']:.3f}", f"{r['bound_calls']}",
            f"{r['bound_seconds']:.1f}", f"{r['images_above']} of {r['images']}",
        ]
        for r in records
    ]  # fmt: skip
    title = "Held-out images, uniform dequantisation: mean bits/dim and the estimators' own error"
    return [Table(title, columns, cells, [[False] * len(columns) for _ in cells])]
