"""Grids that adapt to a network: what one pilot run of it measures decides where nodes lie.

equidistributed    equal shares of a local error
gits               the nodes of a fine run between which straight steps err least, in all
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import normal, rademacher
from ...kernels.errors import InvalidValue
from ...models import Denoiser, Process, conditions
from ...models.jacobian import products
from .. import arguments
from ..arguments import device_of
from ..families.adams import IPNDM, Adams
from ..families.exponential import DDIM
from ..families.multistep_engine import weights
from ..outcome import SolverError, Status
from ..tables.grids import Grid, RatioGrid, times
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


# --- dynamic programming over a fine run ----------------------------------------------------------

TEACHER = 60
"""Steps of the fine run whose nodes `gits` chooses from, as published."""


@dataclass(frozen=True)
class GITS(Grid):
    """The nodes of a fine run between which straight steps err least in all (Chen et al. 2024,
    "On the trajectory regularity of ODE-based diffusion sampling", algorithm 1):

        V_1(i) = c(i, last),   V_k(i) = min_j c(i, j) + coeff V_{k-1}(j)

    with c(i, j) how far DDIM's step from node i ends from the fine run at node j. Made by `gits`;
    it holds plain numbers, so that it can be kept and laid again for any number of steps. More
    nodes than the fine run has are laid between its own.

    lam: lambda of the fine run's nodes, rising.
    cost: c(i, j) for j = i + 1 .. last, a row for every node but the last.
    coeff: the weight of a later error, > 0.
    Raises ValueError for sequences that do not rise or do not agree.
    """

    lam: tuple[float, ...]
    cost: tuple[tuple[float, ...], ...]
    coeff: float = 1.15

    def __post_init__(self) -> None:
        arguments.positive("coeff", self.coeff)
        n = len(self.lam)
        if n < 2 or not bool((np.diff(self.lam) > 0).all()):
            raise InvalidValue(f"lam must be two numbers or more that rise; got {n} numbers")
        if [len(row) for row in self.cost] != [*range(n - 1, 0, -1)]:
            raise InvalidValue(f"cost must have rows of {n - 1}, ..., 1 numbers for {n} nodes")

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        last = len(self.lam) - 1
        chosen = self.path(min(max(n - 1, 1), last)) if n > 1 else [0]
        at = np.interp(np.linspace(0, len(chosen) - 1, n), np.arange(len(chosen)), chosen)
        lam = np.interp(at, np.arange(last + 1), self.lam)
        t = process.inverse_log_snr(torch.from_numpy(lam))
        t[0] = t_max
        if n > 1:
            t[-1] = t_min
            inside = t[1:-1].clamp(t_min, t_max)
            if not bool((torch.diff(t) < 0).all()):  # laid for another range: squeezed into this
                a, b = process.first_log_snr(t_max), float(process.log_snr(t_min))
                share = (lam - lam[0]) / (lam[-1] - lam[0])
                inside = process.inverse_log_snr(torch.from_numpy(a + share * (b - a)))[1:-1]
            t[1:-1] = inside
        return t

    def path(self, steps: int) -> list[int]:
        """The nodes that so many steps go through, from the first to the last."""
        n = len(self.lam)
        c = np.full((n, n), np.inf)
        for i, row in enumerate(self.cost):
            c[i, i + 1 :] = row
        left, after = c[:, -1].copy(), []
        for _ in range(steps - 1):
            total = c + self.coeff * left
            after.append(total.argmin(1))
            left = total.min(1)
        found = [0]
        for best in reversed(after):
            found.append(int(best[found[-1]]))
        return [*found, n - 1]


def gits(
    model: Denoiser,
    shape: Sequence[int],
    *,
    coeff: float = 1.15,
    teacher: int = TEACHER,
    seed: int = 0,
    cond: dict[str, Any] | None = None,
) -> GITS:
    """Measure a model's paths by one fine run and choose among its nodes, see `GITS`.

    model: the denoiser.
    shape: (B, *event) of the fine run's batch; published grids used 256 samples.
    coeff: the weight of a later error, > 0.
    teacher: steps of the fine run, >= 4.
    seed: of its noise; the same seed gives the same grid.
    cond: conditions of these B samples.
    Raises ValueError for bad arguments, SolverError where the network returns NaN or Inf.
    """
    arguments.denoiser(model)
    arguments.whole("teacher", teacher, 4)
    arguments.positive("coeff", coeff)
    t = times("blend", model.process, teacher, "t_min", model.t_min)
    sampler = Sampler(model, IPNDM(3).tableau(model.process, t))
    with torch.no_grad():
        steps = list(sampler.steps(sampler.init(shape, seed), cond))
    states = [steps[0].before.x, *(step.x for step in steps)]
    datas = [step.denoised for step in steps]
    bad = torch.stack([~d.isfinite().flatten(1).all(1) for d in datas]).any(0)
    if bool(bad.any()):
        raise SolverError(
            f"the fine run failed: {Status.NETWORK_NOT_FINITE.meaning} in samples "
            f"{bad.nonzero().flatten().tolist()[:8]}",
            bad * int(Status.NETWORK_NOT_FINITE),
        )
    return chosen_of(model.process, t, states, datas, coeff)


def chosen_of(
    process: Process,
    t: Tensor,
    states: Sequence[Tensor],
    datas: Sequence[Tensor],
    coeff: float = 1.15,
) -> GITS:
    """The grid of a fine run: t [n + 1], the states there, and the predictions but for the last."""
    alpha, sigma = process.alpha(t).tolist(), process.sigma(t).tolist()
    cost = []
    for i, data in enumerate(datas):
        noise = (states[i] - alpha[i] * data) / sigma[i]
        row = []
        for j in range(i + 1, len(t)):
            off = data + (sigma[j] / alpha[j]) * noise - states[j] / alpha[j]
            row.append(off.double().flatten(1).square().mean(1).sqrt().mean())
        cost.append(tuple(torch.stack(row).tolist()))
    lam = process.log_snr(t).tolist()
    if not math.isfinite(lam[0]):  # pure noise: any lambda below, as t_max stands there anyway
        lam[0] = 2 * lam[1] - lam[2]
    return GITS(tuple(lam), tuple(cost), coeff)


MEASURED: dict[str, Callable[..., Grid]] = {"equidistributed": equidistributed, "gits": gits}
"""Grids by name that a pilot run of the model lays."""

# --- by name, once a network ----------------------------------------------------------------------

OTHERS = 2**40
"""The first sample id of a pilot: its noise is nobody's sample."""
KEPT = 32
"""Networks of which what was found is kept."""
GRIDS: dict[tuple[object, ...], Grid] = {}
"""Grids by name that were measured on networks, at most `KEPT` of them."""
ROWS = 32
"""Samples that a grid is measured on."""


def fingerprint(
    model: Denoiser, shape: Sequence[int], cond: dict[str, Any] | None = None
) -> tuple[object, ...]:
    """What a network is known by: its data predictions of two states at three noise levels, to five
    digits, its process, and the shape of an event."""
    arguments.denoiser(model)
    batch, *event = arguments.batch_shape("shape", shape)
    process, ids = model.process, torch.arange(OTHERS, OTHERS + 2, device="cpu")
    x = normal((2, *event), 0, ids, purpose="initial", device=device_of(model))
    turns = torch.arange(2, device="cpu") % batch
    known = conditions.rows(model.told(cond, batch).cond, turns, batch)
    said = []
    for share in (0.0, 0.5, 1.0):
        t = process.t_max + share * (model.t_min - process.t_max)
        with torch.no_grad():
            data = model(x * float(torch.hypot(process.alpha(t), process.sigma(t))), t, **known)
        said.append(tuple(round(v, 5) for v in data.double().flatten().tolist()))
    return repr(process), model.calls, tuple(event), *said


def digest(key: tuple[object, ...]) -> str:
    """A fingerprint as text of 16 characters, for files."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def measured(
    name: str, model: Denoiser, shape: Sequence[int], cond: dict[str, Any] | None = None
) -> Grid:
    """The grid of that name in `MEASURED`, of this network; the same network is asked once."""
    key = (name, *fingerprint(model, shape, cond))
    if key not in GRIDS:
        if len(GRIDS) >= KEPT:
            GRIDS.pop(next(iter(GRIDS)))
        batch, *event = arguments.batch_shape("shape", shape)
        turns = torch.arange(ROWS, device="cpu") % batch
        known = conditions.rows(model.told(cond, batch).cond, turns, batch)
        if name == "gits":
            GRIDS[key] = gits(model, (ROWS, *event), cond=known)
        elif known:
            raise InvalidValue(f"grid {name!r} knows no conditions: use 'gits'")
        else:
            GRIDS[key] = MEASURED[name](model, (ROWS, *event))
    return GRIDS[key]
