"""A grid that adapts to its target: equal shares of a local error that one pilot run measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels import rademacher
from ...kernels.errors import InvalidValue
from ...models import Denoiser
from ...models.jacobian import products
from .. import arguments
from ..families.adams import Adams
from ..families.exponential import DDIM
from ..families.multistep_engine import weights
from ..outcome import SolverError, Status
from ..tables.grids import RatioGrid, times
from ..tables.solver import Path
from .sampler import Sampler


@dataclass(frozen=True)
class Equidistributed(RatioGrid):
    """Equal steps of a measured share: `share` of the nodes lie at or below `lam`, linear between.

    Made by `equidistributed`. It holds plain numbers, so that it can be kept (`dataclasses.asdict`
    goes to JSON) and laid again for any number of steps.

    lam: lambda, rising.
    share: one number for each lambda, rising from 0 to 1.
    Raises ValueError for sequences that do not rise or do not agree.
    """

    lam: tuple[float, ...]
    share: tuple[float, ...]

    def __post_init__(self) -> None:
        rise = all((np.diff(v) > 0).all() for v in (self.lam, self.share))
        if len(self.lam) != len(self.share) or len(self.lam) < 2 or not rise:
            raise InvalidValue(
                f"lam and share must be equally long and rise; got {len(self.lam)} and "
                f"{len(self.share)} numbers"
            )

    def log_ratio(self, u: Tensor, start: float, end: float) -> Tensor:
        lam = np.clip([-start, -end], self.lam[0], self.lam[-1])
        a, b = np.interp(lam, self.lam, self.share)
        inside = np.interp(a + u.numpy() * (b - a), self.share, self.lam)
        inside[0] = -start  # a grid that goes beyond the pilot's range reaches there in one step
        if len(inside) > 1:
            inside[-1] = -end
        return torch.from_numpy(-inside)


def equidistributed(
    model: Denoiser,
    shape: Sequence[int],
    *,
    order: int = 2,
    pilot: int = 64,
    even: float = 0.1,
    seed: int = 0,
) -> Equidistributed:
    """Measure where a method of that order errs on this model, and lay nodes accordingly.

    One run of `pilot` steps, equal in lambda, over a batch of `shape` (some dozens of samples), and
    one product with the network's Jacobian at each. What a step adds to the error of the sample at
    the end (see `local_errors`, `contributions`; root mean square over the batch) grows as
    h^(order + 1), so nodes as dense as its power 1/(order + 1) make it the same for all (de Boor
    1973).

    model: the denoiser.
    shape: (B, *event) of the pilot's batch.
    order: of the method that the grid is for, 1..5.
    pilot: steps of the pilot run.
    even: share of the nodes in (0, 1] that is spread evenly in lambda whatever was measured.
    seed: of the pilot's noise; the same seed gives the same grid.
    Raises ValueError for order outside 1..5, too few pilot steps, `even` outside (0, 1], or a
    network that autograd cannot see through; SolverError where the network returns NaN or Inf.
    """
    arguments.denoiser(model)
    if arguments.whole("order", order) > 5:
        raise InvalidValue(f"order must be a whole number in 1..5; got {order}")
    if arguments.whole("pilot", pilot) < 4 * order:
        raise InvalidValue(f"pilot must be at least 4 times the order, {4 * order}; got {pilot}")
    arguments.positive("even", even, 1.0)
    t = times("log_snr", model.process, pilot, "t_min", model.t_min)
    table = Adams(order + 1, "data").tableau(model.process, t)
    sampler = Sampler(model, table)
    skip, scale = model.coefficients("data", table.times)
    with torch.no_grad():
        steps = list(sampler.steps(sampler.init(shape, seed)))
    states = [step.before.x for step in steps]
    # float64 on the host: not every device has it
    x, out = (torch.stack(v).cpu().double() for v in (states, [step.out for step in steps]))
    each = (-1, *(1,) * (x.ndim - 1))
    datas = skip.reshape(each) * x + scale.reshape(each) * out
    bad = ~datas.isfinite().flatten(2).all(2)  # [steps, B]
    if bool(bad.any()):
        i = int(bad.any(1).nonzero()[0])
        why = f"the pilot run failed: {Status.NETWORK_NOT_FINITE.meaning} at step {i} (t={t[i]:g})"
        which = f"samples {bad[i].nonzero().flatten().tolist()[:8]}"
        raise SolverError(f"{why}, {which}", bad.any(0) * int(Status.NETWORK_NOT_FINITE))
    first = int(not bool(torch.isfinite(model.process.log_snr(t[0]))))
    path = Path.of(model.process, t[first:])
    off = local_errors(path, datas[first:], order)
    error = contributions(model, path, states[first:], off, seed).square().mean(1).sqrt()
    error[:order] = error[order]  # the first steps have no point more
    density = error.clamp(min=1e-300) ** (1 / (order + 1)) / path.h
    smooth = torch.nn.functional.pad(density[None], (1, 1), mode="replicate")
    density = torch.nn.functional.avg_pool1d(smooth, 3, 1)[0] * path.h
    share = (1 - even) * density / density.sum() + even * path.h / path.h.sum()
    total = torch.cat([share.new_zeros(1), share.cumsum(0)])
    return Equidistributed(tuple(path.lam.tolist()), tuple((total / total[-1]).tolist()))


def local_errors(path: Path, datas: Tensor, order: int) -> Tensor:
    """What one more point changes in every step, [n, B, ...], float64.

    int (P_{k+1} - P_k) over the step, P_k the polynomial through the last k = `order` predictions;
    datas [n, B, ...]: D at each step's start, on the host. The first `order` steps have no point
    more: 0.
    """
    fine, coarse = weights(path, order + 1).points, weights(path, order).points
    change = fine - torch.nn.functional.pad(coarse, (0, 1))
    back = (
        torch.arange(len(datas), device="cpu")[:, None] - torch.arange(order + 1, device="cpu")
    ).clamp(min=0)
    return torch.einsum("nh,nh...->n...", change, datas[back])


def contributions(
    model: Denoiser, path: Path, states: Sequence[Tensor], off: Tensor, seed: int
) -> Tensor:
    """What an error of each step comes to at the end, [n, B]: v . J_i off_i for one random sign v a
    component, whose mean square over v is |J_i off_i|^2.

    J_i is the flow's Jacobian from the end of step i to the end of all, pulled back through DDIM's
    steps along the states [n] x [B, ...] (dual-weighted residuals, Becker & Rannacher 2001).
    """
    step, (skip, scale) = DDIM().rows(path), model.coefficients("data", path.t[:-1])
    pull = rademacher(tuple(off.shape[1:]), seed, dtype=torch.float64)
    found = []
    for i in reversed(range(len(states))):
        found.append((pull * off[i]).flatten(1).sum(1))
        x = states[i].detach().requires_grad_()
        with torch.enable_grad():
            out = model.raw(x, path.t[i])
            back = products(out, x, pull[None].to(x.device, x.dtype))[0]
        through = skip[i] * pull + scale[i] * back.cpu().double()  # what reaches D
        pull = step.state[i, 0] * pull + step.data[i, 0] * through
    return torch.stack(found[::-1])
