"""Bits/dim of images that two real networks never saw, by the flow's ODE and by the bound.

    [UNDIFFUSE_DATA=folder] python examples/network_likelihood.py

Both score the same images with the same uniform dequantisation, so that the numbers are comparable:
the bound (continuous time, Kingma et al. 2021) may not lie below the exact value of the process it
bounds, and the ODE's law is that process's own where the network is a perfect score.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from undiffuse.models.checkpoint import Checkpoint, load, load_default
from undiffuse.models.dequantize import dequantised
from undiffuse.solvers.likelihood.elbo import elbo
from undiffuse.solvers.likelihood.items import held_out
from undiffuse.solvers.likelihood.log_prob import log_prob

STRATA = 200  # network calls of the bound


def score(checkpoint: Checkpoint, x: torch.Tensor, seed: int) -> dict[str, Any]:
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
        "images": len(x),
        "t_min": ode.t_min,
        "blur": ode.blur,
        "offset": offset,
        "ode": float(ode.bits_per_dim.mean()),
        "ode_spread": float(ode.bits_per_dim.std()) / n,
        "ode_error": float(ode.bits_std_error.square().sum().sqrt()) / len(x),
        "forwards": float(ode.nfe.double().mean()),
        "products": float(ode.products.double().mean()),
        "ode_seconds": between - began,
        "bound": float(bound.bits_per_dim.mean()) + offset,
        "bound_error": float(bound.std_error.square().sum().sqrt()) / len(x),
        "bound_calls": bound.nfe,
        "bound_seconds": ended - between,
        "above": float(above.mean()),
        "images_above": int((above > -2 * deviation).sum()),
    }


if __name__ == "__main__":
    found = {
        "digits, ships with the package": score(load_default(), held_out(load_default())[:64], 0)
    }
    try:
        network = load("examples/mnist_ddpm.py:mnist_cnn")
        found["ddpm_mnist_cnn"] = score(network, held_out(network)[:16], 0)
    except FileNotFoundError as error:
        print(f"ddpm_mnist_cnn: {error}")
    for name, numbers in found.items():
        print(name, *(f"    {k:16} {v:.5g}" for k, v in numbers.items()), sep="\n")
