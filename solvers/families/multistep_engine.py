"""The engine of the linear multistep families: what is interpolated, in which clock, how far back.

A step from s to t is exact but for one integral over lambda,

    x_t = a x_s + int_s^t m(lambda) P(lambda) dlambda + c z,

where P is the form of the prediction that is interpolated, and a and m follow from it:

    'data'      P = D                    a = sigma_t/sigma_s e^{h-A},  m = alpha_t A' e^{-(A_t - A)}
    'noise'     P = (x - alpha D)/sigma  a = alpha_t/alpha_s,          m = -alpha_t A' e^{-lambda}
    'velocity'  P = noise - D            a = c_t/c_s,                  m = -c_t r (1 - r)

with c = alpha + sigma and r = sigma/c. A = int (1 + tau^2) dlambda counts decay from the step's
start: tau = 0 is the probability flow, tau = 1 the reverse SDE. The noise is

    'data'      sigma_t sqrt(1 - e^{-2 int tau^2})
    'noise'     alpha_t sqrt(int 2 tau^2 e^{-2 lambda})

and 'velocity' takes none. A family says in which clock P is a polynomial, through how many points,
and whether the step is corrected once D at its end is known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ..tables.solver import Path
from ..tables.tableau import Tableau

FORMS = ("data", "noise", "velocity")


def grid_for(form: str, points: int) -> str:
    """The grid of a method that is named without one, by what it interpolates.

    A polynomial in the data prediction is smooth in lambda: three points want even steps of it, two
    a few more where the signal shows, as three velocities do. `undiffuse bench grids` chose so on
    the networks of examples/, whichever of them was left out.
    """
    if form == "data" and points > 1:
        return "laplace-wide" if points == 2 else "log_snr"
    return "laplace-wide" if form == "velocity" and points > 2 else "blend"


CLOCKS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "lambda": lambda path, lam: lam,
    "sigma": lambda path, lam: torch.exp(-lam),
    "flow": lambda path, lam: torch.sigmoid(-lam),
    "t": lambda path, lam: path.process.inverse_log_snr(lam),
}
"""Variables in which a prediction can be a polynomial, as functions of lambda."""

Decay = Callable[[Path, Tensor], tuple[Tensor, Tensor]]
Ending = tuple[int, ...]
"""At most so many points in the last steps: (2, 1) two in the last but one and one in the last."""


def no_noise(path: Path, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The probability flow: A = lambda - lambda_s, A' = 1; lam [n, G] in steps 0..n-1."""
    return lam - path.lam[:-1, None], torch.ones_like(lam)


def constant_noise(tau: Tensor) -> Decay:
    """tau constant over each step, [n]."""

    def decay(path: Path, lam: Tensor) -> tuple[Tensor, Tensor]:
        rate = 1 + tau.square()[:, None]
        return rate * (lam - path.lam[:-1, None]), rate.expand_as(lam)

    return decay


@lru_cache(maxsize=8)
def gauss(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy(0.5 * (x + 1)), torch.from_numpy(0.5 * w)


def lagrange(x: Tensor, nodes: Tensor, used: Tensor) -> Tensor:
    """The basis polynomials through nodes [n, H] where used [n, H], at x [n, G]: [n, G, H]."""
    count = nodes.shape[1]
    basis = x.new_ones(*x.shape, count) * used[:, None, :]
    for k in range(count):
        both = used & used[:, k, None]
        both[:, k] = False
        gap = torch.where(both, nodes - nodes[:, k, None], 1.0)[:, None]
        factor = (x - nodes[:, k, None])[..., None] / gap
        basis *= torch.where(both[:, None], factor, 1.0)
    return basis


class Weights(NamedTuple):
    """One step's rule over n steps: x_t = carry x_s + sum_h points[:, h] P_{i-h} + noise z.

    With `ahead`, points[:, 0] belongs to P at the step's end and the others follow.
    """

    carry: Tensor
    points: Tensor
    noise: Tensor


def weights(
    path: Path,
    points: int,
    form: str = "data",
    clock: str = "lambda",
    *,
    ahead: bool = False,
    decay: Decay = no_noise,
    ending: Ending = (),
) -> Weights:
    """Integrate the polynomial through the last `points` predictions exactly over every step.

    path: `body` of the solver's path; its first lambda may be infinite.
    points: predictions that a step goes through; fewer where there are fewer, where lambda is
        infinite, or where `ending` says so.
    form, clock: what is a polynomial, and in which variable; keys of FORMS and CLOCKS.
    ahead: whether the polynomial also goes through the prediction at the step's end.
    decay: A and A' of the noise; for the forms 'data' and 'noise'.
    ending: at most so many points in the last steps.
    """
    n = len(path.t) - 1
    infinite = not bool(torch.isfinite(path.lam[0]))
    ticks = CLOCKS[clock](path, path.lam)
    usable = torch.isfinite(ticks if form == "velocity" else path.lam)
    if infinite:  # any finite stand-in: `multistep` writes that step itself
        lam = torch.cat([path.lam[1:2] - 1, path.lam[1:]])
        path = Path(path.process, path.t, path.alpha, path.sigma, lam)
    back = torch.arange(n, device="cpu")[:, None] - torch.arange(points, device="cpu")
    used = (back >= 0) & usable[back.clamp(min=0)]
    used[:1, :1] = True
    used &= torch.arange(points, device="cpu") < limits(n, points, ending)[:, None]
    nodes = torch.where(usable, ticks, 0.0)[back.clamp(min=0)]
    if ahead:
        nodes = torch.cat([ticks[1:, None], nodes], 1)
        used = torch.nn.functional.pad(used, (1, 0), value=True)

    u, w = gauss(16)
    alpha, sigma, c = path.alpha[1:], path.sigma[1:], path.alpha + path.sigma
    noise = torch.zeros_like(alpha)
    if form == "velocity":
        r = path.sigma / c
        inside = -torch.logit(r[:-1, None] + (r[1:] - r[:-1])[:, None] * u)
        measure, carry = (c[1:] * (r[1:] - r[:-1]))[:, None].expand_as(inside), c[1:] / c[:-1]
    else:
        h = path.h[:, None]
        inside = path.lam[:-1, None] + h * u  # [n, G]
        (gone, rate), (total, _) = decay(path, inside), decay(path, path.lam[1:, None])
        if form == "noise":
            fresh = -alpha[:, None] * torch.exp(-inside) * h
            measure, carry = rate * fresh, alpha / path.alpha[:-1]
            grown = 2 * (rate - 1) * torch.exp(-2 * inside) * h  # int 2 tau^2 e^{-2 lambda}
            noise = alpha * torch.sqrt((grown * w).sum(1).clamp(min=0.0))
        else:
            measure = alpha[:, None] * rate * torch.exp(gone - total) * h
            extra = (total - h)[:, 0].clamp(min=0.0)  # int tau^2
            carry = sigma / path.sigma[:-1] * torch.exp(-extra)
            noise = sigma * torch.sqrt(-torch.expm1(-2 * extra))
    basis = lagrange(CLOCKS[clock](path, inside), nodes, used)
    return Weights(carry, torch.einsum("g,ng,ngh->nh", w, measure, basis), noise)


def limits(n: int, points: int, ending: Ending) -> Tensor:
    """The most predictions that each of n steps may go through, [n]."""
    most = torch.full((n,), points, device="cpu")
    if tail := ending[-n:] if n else ():
        most[n - len(tail) :] = torch.tensor(tail, device="cpu").clamp(max=points)
    return most


def counted(path: Path, points: int, ending: Ending = ()) -> Tensor:
    """How many predictions each step of `weights` goes through in 'data' or 'noise' form, [n]."""
    n = len(path.t) - 1
    first = int(not bool(torch.isfinite(path.lam[0])))
    most = limits(n, points, ending)
    return torch.minimum((torch.arange(n, device="cpu") - first + 1).clamp(min=1), most)


def endings(path: Path, ending: Ending) -> Ending:
    """The part of `ending` that is for `body(path)`: a denoising jump is a step of one point."""
    return ending[:-1] if path.ends_clean else ending


def check_ending(ending: Ending) -> None:
    """Raises ValueError unless it holds whole numbers >= 1, TypeError unless it is a tuple."""
    if not isinstance(ending, tuple):
        raise InvalidType(f"ending must be a tuple of numbers of points; got {ending!r}")
    for k in ending:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InvalidValue(f"ending must hold whole numbers of points >= 1; got {ending}")


def lean(rule: Weights, rows: Tensor, half: Tensor, base: int) -> Weights:
    """Where `rows` [n] says so, weigh the difference of two predictions by `half` [n], not exactly.

    x_t = carry x_s + w P_base + half (P_0 - P_1),   w the sum of the row's weights
    """
    points = rule.points.clone()
    whole = points[rows].sum(1)
    points[rows] = 0.0
    points[rows, 0], points[rows, 1] = half[rows], -half[rows]
    points[rows, base] += whole
    return rule._replace(points=points)


def readout(path: Path, form: str) -> tuple[Tensor, Tensor]:
    """(p, q) with P = p x + q D at every node."""
    if form == "data":
        return torch.zeros_like(path.alpha), torch.ones_like(path.alpha)
    p = 1 / path.sigma
    return p, -(path.alpha if form == "noise" else path.alpha + path.sigma) * p


def body(path: Path) -> Path:
    """The path without a last node at sigma = 0: what is left for the family to step through."""
    if not path.ends_clean:
        return path
    return Path(path.process, path.t[:-1], path.alpha[:-1], path.sigma[:-1], path.lam[:-1])


def multistep(
    name: str,
    path: Path,
    form: str,
    predict: Weights,
    correct: Weights | None = None,
    *,
    order: float | None = None,
    weak_order: float | None = None,
) -> Tableau:
    """The table of a rule over `body(path)`, with its corrector and a last denoising jump.

    The corrector redoes a step with D at its end in hand. Both start from the same base with the
    same normal, so the corrected state differs from the predicted one, where the network was
    called, by a combination of predictions alone: that is added to the next row.
    """
    inner = body(path)
    n, held = len(inner.t) - 1, predict.points.shape[1]
    points = predict.points
    from_noise = n > 0 and form != "velocity" and not bool(torch.isfinite(inner.lam[0]))
    if correct is not None and n > 1:
        change = torch.nn.functional.pad(
            correct.points, (0, max(0, held + 1 - correct.points.shape[1]))
        )
        change[:, 1 : 1 + held] -= predict.points
        if from_noise:
            change[0] = 0.0
        points = torch.nn.functional.pad(points, (0, change.shape[1] - held))
        points[1:] += predict.carry[1:, None] * change[:-1]
    p, q = readout(inner, form)
    back = (
        torch.arange(n, device="cpu")[:, None] - torch.arange(points.shape[1], device="cpu")
    ).clamp(min=0)
    state, data = points * p[back], points * q[back]
    state[:, 0] += predict.carry
    noise = predict.noise[:, None].clone()
    if from_noise:  # every form's first step is DDIM's
        drawn = bool(noise[0] != 0)
        state[0], data[0], noise[0] = 0.0, 0.0, inner.sigma[1] * drawn
        state[0, 0], data[0, 0] = 0.0 if drawn else inner.sigma[1] / inner.sigma[0], inner.alpha[1]
    return finish(name, path, inner.t[:-1], state, data, noise, order=order, weak_order=weak_order)


def finish(
    name: str,
    path: Path,
    times: Tensor,
    state: Tensor,
    data: Tensor,
    noise: Tensor,
    draws: Tensor | None = None,
    *,
    entry: tuple[float, float] = (1.0, 0.0),
    order: float | None = None,
    weak_order: float | None = None,
    jump: bool = True,
) -> Tableau:
    """Append the row x = D where the path ends at sigma = 0, and number fresh normals from 1.

    jump: False where the rows go down to sigma = 0 themselves.
    """
    if path.ends_clean and jump:
        times = torch.cat([times, path.t[-2:-1]])

        def with_jump(matrix: Tensor, first: float, columns: int) -> Tensor:
            row = matrix.new_zeros(1, max(columns, matrix.shape[1]))
            row[:, :1] = first
            pad = row.shape[1] - matrix.shape[1]
            return torch.cat([torch.nn.functional.pad(matrix, (0, pad)), row])

        state, data = with_jump(state, 0.0, 1), with_jump(data, 1.0, 1)
        noise = with_jump(noise, 0.0, 0)
        if draws is not None:
            draws = with_jump(draws, 0.0, 0)
    if draws is None:
        draws = 1 + torch.arange(noise.numel(), device="cpu").reshape(noise.shape)
    return Tableau(
        times, state, data, noise, draws, path.t, entry, name, order, weak_order
    ).trimmed()
