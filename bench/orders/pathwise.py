"""Strong errors of stochastic tables: their distance from the exact solution on one Brownian path.

On Gaussian data both are linear in the path, the table through its normals
(`solvers.law.response`), so that the expected square of the distance is a sum over the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Process
from ...solvers import SASolver, Solver
from ...solvers.families.multistep_engine import Decay, constant_noise, gauss
from ...solvers.families.stochastic import FlowSDE, er_decay
from ...solvers.tables.law import response
from ...solvers.tables.solver import Path
from .convergence import MEAN, VAR, grid


@dataclass(frozen=True)
class Coupling:
    """What a step's normals are of the Brownian path W of lambda: z_k = int k_k dW, orthonormal.

    The solver's SDE on N(m, c), in y = x/alpha - m with s = sigma/alpha, is

        dy = -(1 + tau^2) s^2/(c + s^2) y dlambda + sqrt(2) tau s dW,   A' = 1 + tau^2.

    kernel: 'decayed' k ~ e^A tau s, which is what an exact linear part leaves of the noise;
    'plain' k ~ s, the increment in the clock s^2; 'area' that and the space-time area.
    shares: a normal for every piece of the step, in lambda. decay: A and A' (see `multistep`).
    """

    kernel: str = "decayed"
    shares: tuple[float, ...] = (1.0,)
    decay: Callable[[Path], Decay] = lambda path: constant_noise(torch.ones(len(path.t) - 1))


def _sa(solver: SASolver) -> Coupling:
    return Coupling(decay=lambda path: constant_noise(solver.noise_of(path)))


def _flow(solver: FlowSDE) -> Callable[[Path], Decay]:
    tau = solver.noise_level / math.sqrt(2)
    return lambda path: constant_noise(torch.full((len(path.t) - 1,), tau, dtype=torch.float64))


COUPLINGS: dict[str, Coupling] = {
    **dict.fromkeys(
        (
            "euler-ancestral",
            "ddpm",
            "ddpm-large",
            "dpmpp-2m-sde",
            "dpmpp-3m-sde",
            "dpmpp-3m-sde-compat",
            "dpm-2-ancestral",
            "dpmpp-2s-ancestral",
        ),
        Coupling(),
    ),
    "euler-maruyama": Coupling("plain"),
    "reverse-diffusion": Coupling("plain"),
    "flow-sde": Coupling("plain", decay=_flow(FlowSDE())),
    "sra1": Coupling("area"),
    "seeds-2": Coupling(shares=(0.5, 1.0)),
    "seeds-3": Coupling(shares=(1 / 3, 2 / 3, 1.0)),
    "dpmpp-sde": Coupling(shares=(0.5, 1.0)),
    "sa-solver": _sa(SASolver()),
    "sa-solver-2": _sa(SASolver(2, 2)),
    **{f"er-sde-{k}": Coupling(decay=lambda path: er_decay) for k in (1, 2, 3)},
}
"""The couplings of the stochastic solvers. `restart` has none: its noise is a jump, and exact."""


def strong_error(solver: Solver, process: Process, coupling: Coupling, n: int) -> float:
    """sqrt E (x_N - x(T))^2/alpha^2 on one Brownian path, exactly: both are linear in it.

    Raises ValueError where the coupling and the table differ in their normals a step.
    """
    t = grid(process, n)
    path = Path.of(process, t)
    x = response(solver.tableau(process, t), process, MEAN, VAR) / path.alpha[-1]
    cuts = torch.tensor([0.0, *coupling.shares], dtype=torch.float64)
    u, w = gauss(12)
    share = (cuts[:-1, None] + torch.diff(cuts)[:, None] * u).flatten()  # [pieces * G]
    weight = (torch.diff(cuts)[:, None] * w).flatten()
    lam, dlam = path.lam[:-1, None] + path.h[:, None] * share, path.h[:, None] * weight
    decay = coupling.decay(path)
    gone, rate = decay(path, lam)
    s, noise = torch.exp(-lam), torch.sqrt(2 * (rate - 1).clamp(min=0.0))
    kept, whole = _kept(path, lam, decay)
    truth = kept * noise * s
    kernels = _kernels(coupling, s, noise, gone, dlam)
    if x.shape[1] - 3 != len(kernels) * len(path.h):
        raise InvalidValue(
            f"the coupling gives {len(kernels)} normals a step, the table draws "
            f"{x.shape[1] - 3} in {len(path.h)} steps"
        )
    draws = x[:, 3:].reshape(len(VAR), len(path.h), len(kernels), 1)
    seen = sum((draws[:, :, k] * v for k, v in enumerate(kernels)), torch.zeros_like(truth))
    total = (dlam * (truth - seen).square()).sum((1, 2))
    a0, v0 = path.alpha[0], torch.exp(-2 * path.lam[0])
    offset = x[:, 0] + x[:, 1] * a0 * MEAN - MEAN
    total += offset.square() + (x[:, 1] * a0 - whole).square() * (VAR + v0)
    return float(total.mean().sqrt())


def _kept(path: Path, lam: Tensor, decay: Decay) -> tuple[Tensor, Tensor]:
    """exp -int (1 + tau^2) s^2/(c + s^2) dlambda to the end, from lam [n, G] in steps 0..n-1,
    [d, n, G], and from the start, [d]."""
    u, w = gauss(12)

    def pull(a: Tensor) -> Tensor:  # from a to the end of its step, [d, n, G]
        gap = path.lam[1:, None, None] - a[..., None]
        inside = a[..., None] + gap * u
        rate = decay(path, inside.flatten(1))[1].reshape(inside.shape)
        v = torch.exp(-2 * inside)
        return (gap * w * rate * v / (VAR[:, None, None, None] + v)).sum(-1)

    steps = pull(path.lam[:-1, None])[..., 0]  # [d, n]
    after = steps.flip(1).cumsum(1).flip(1) - steps
    return torch.exp(-pull(lam) - after[..., None]), torch.exp(-steps.sum(1))


def _kernels(
    coupling: Coupling, s: Tensor, noise: Tensor, gone: Tensor, dlam: Tensor
) -> list[Tensor]:
    """The kernels at the quadrature's nodes, [n, pieces * G] each, of unit norm on every step."""
    shape = s * (noise * torch.exp(gone) if coupling.kernel == "decayed" else 1.0)
    size, found = s.shape[1] // len(coupling.shares), []
    for k in range(len(coupling.shares)):
        own = torch.zeros_like(s)
        own[:, k * size : (k + 1) * size] = shape[:, k * size : (k + 1) * size]
        found.append(own)
    if coupling.kernel == "area":  # linear in v = s^2, orthogonal to the increment
        mean = (dlam * shape.square() * s.square()).sum(1) / (dlam * shape.square()).sum(1)
        found.append(shape * (s.square() - mean[:, None]))
    norms = [(dlam * k.square()).sum(1, keepdim=True).sqrt() for k in found]
    return [torch.where(m > 0, k / m, 0.0) for k, m in zip(found, norms, strict=True)]
