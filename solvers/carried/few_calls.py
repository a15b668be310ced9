"""log p of data in a fixed, small number of network calls.

`log_prob` chooses its calls by their error; this spends exactly as many as it is given. In
u = x^/n with n^2 = s^2 + s^^2 and tan(theta) = s^/s (see along_flow.py) the flow is smooth in
theta, and its divergence in lambda = -log s^,

    log p_u(data) = log p_u(noise) + int (d s^2/n^2 - tr dD/dx^) dlambda,

whose integrand is nearly a step function there: falling to 0 towards noise as e^(2 lambda), flat
towards data where they are tighter than s. So the calls are equally spaced in lambda, the path goes
through them by Adams-Bashforth of order three in theta, and the trace is summed by the cubic rule
that is as good as the trapezoidal one on such functions. What the path misses of the flow is worth
grad log p . (du - V dtheta), summed by the same rule, since the calls know V and the score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels import rademacher
from ...kernels.shapes import column
from ...kernels.streams import CARRIED
from ...models import Denoiser, jacobian, notebook
from .. import arguments
from ..flow import ScaledFlow
from .along_flow import rule

BROAD = 6.0
"""Calls begin where sigma/alpha is e^6 times the data's scale, or at the process's noisiest: exact
scores have nothing left beyond e^3, but the errors of networks that predict noise have."""
LEAST = 4  # calls: of fewer no error can be told
FIRST = 2**20  # draws of these probes begin here, after those of densities with samples


class FewCalls(NamedTuple):
    """log p by a fixed number of calls.

    log_prob: float64 [B], nats, of the data with noise of standard deviation `blur`.
    std_error: float64 [B], of the probes, nats.
    path_error: float64 [B], estimate of what so few calls miss, nats.
    nfe, products: network calls and products of each sample.
    blur: sigma/alpha where the data enter.
    """

    log_prob: Tensor
    std_error: Tensor
    path_error: Tensor
    nfe: int
    products: int
    blur: float

    @property
    def total_error(self) -> Tensor:
        """The root of std_error^2 + path_error^2, nats."""
        return torch.hypot(self.std_error, self.path_error)

    def _facts(self) -> notebook.Facts:
        mean, std, path, total = (
            f"{float(v.mean()):.4g} nats"
            for v in (self.log_prob, self.std_error, self.path_error, self.total_error)
        )
        return [
            ("log_prob", f"{mean}, mean of {len(self.log_prob)}, with noise of {self.blur:.3g}"),
            ("total_error", f"{total} a sample: std_error {std}, path_error {path}"),
            ("cost", f"{self.nfe} network calls and {self.products} products a sample"),
        ]

    def __repr__(self) -> str:
        return notebook.lines("FewCalls", self._facts())

    def _repr_html_(self) -> str:
        return notebook.table("FewCalls", (), self._facts())


def log_prob_in_calls(
    model: Denoiser,
    x: Tensor,
    nfe: int = 8,
    probes: int = 4,
    seed: int | Tensor = 0,
    *,
    sample_ids: Tensor | Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
    t_min: float | None = None,
) -> FewCalls:
    """log p(x) under the probability flow in exactly `nfe` network calls, with error bars.

    model: a `Denoiser`.
    x: data [B, *event], float32 or float64.
    nfe: calls, >= 4.
    probes: Rademacher probes at each call, >= 2.
    seed, sample_ids: a sample's probes depend on these alone.
    cond: keyword arguments of the network; rows follow their samples.
    t_min: where the data enter, as of `log_prob`; default the model's own.

    Raises ValueError or TypeError for what does not fit, before any network call.
    """
    arguments.data(model, x)
    nfe, probes = arguments.whole("nfe", nfe, LEAST), arguments.whole("probes", probes, 2)
    seed = arguments.seed_of(seed, len(x), x.device)
    ids = arguments.sample_ids(sample_ids, len(x), x.device)
    flow = ScaledFlow(model, len(x), cond, model.t_min if t_min is None else t_min, x.dtype)
    s, high = flow.scale, flow.lam_data
    low = max(flow.lam_noise, min(-math.log(s) - BROAD, high - 1.0))
    lams = np.linspace(high, low, nfe)
    thetas = np.arctan(np.exp(-lams) / s)
    u = flow.enter(x).detach()
    us, fields, scores, drops, spreads = [u.double()], [], [], [], []
    rows = torch.arange(len(x), device=x.device)
    d = x[0].numel()
    for i in range(nfe):
        lam = torch.full((len(x),), float(lams[i]), dtype=torch.float64, device=x.device)
        at = flow.at(lam)
        leaf = (column(at.norm, u) * us[-1]).to(x.dtype).detach().requires_grad_()
        with torch.enable_grad():
            out = flow.output(leaf, at, rows)
        first = FIRST + i * probes
        v = torch.stack(
            [
                rademacher(x.shape, seed, ids, first + k, CARRIED.subdraw, x.dtype, x.device)
                for k in range(probes)
            ]
        )
        form = (v * jacobian.products(out, leaf, v)).flatten(2).double().sum(2)
        trace = d * at.a + at.b * form  # of dD/dx^, [K, B]
        share = math.cos(thetas[i]) ** 2
        drops.append(d * share - trace.mean(0))
        spreads.append(trace.var(0) / probes)
        slope = at.velocity(
            leaf.detach().double(), at.residual(leaf.detach(), out.detach()).double()
        )
        fields.append(-slope / (math.sin(thetas[i]) * math.cos(thetas[i])))
        scores.append(flow.score(lam, us[-1], slope))
        end = thetas[i + 1] if i + 1 < nfe else math.atan(math.exp(-flow.lam_noise) / s)
        weights = _adams(thetas[: i + 1], thetas[i], end)
        moved = sum(w * f for w, f in zip(weights, reversed(fields), strict=False))
        us.append(us[-1] + moved)
    with torch.no_grad():
        data = leaf + at.residual(leaf, out)  # D is the data's mean by now
        base = flow.prior(flow.latent(us[-1].to(x.dtype), data))
    return _summed(flow, lams, thetas, us, fields, scores, drops, spreads, base, (nfe, probes))


def _adams(nodes: np.ndarray, start: float, end: float) -> list[float]:
    """Weights of the last three nodes, newest first, for the integral of their polynomial."""
    last = nodes[::-1][:3]
    scale = abs(end - start)
    if scale == 0:
        return [0.0]
    points = (last - start) / scale
    powers = np.vander(points, len(last), increasing=True)
    step = (end - start) / scale
    moments = [step ** (k + 1) / (k + 1) for k in range(len(last))]
    found: list[float] = (scale * np.linalg.solve(powers.T, moments)).tolist()
    return found


def _summed(
    flow: ScaledFlow,
    lams: np.ndarray,
    thetas: np.ndarray,
    us: list[Tensor],
    fields: list[Tensor],
    scores: list[Tensor],
    drops: list[Tensor],
    spreads: list[Tensor],
    base: Tensor,
    spent: tuple[int, int],
) -> FewCalls:
    """log p from what the calls have told, the first at the data."""
    n, d = len(lams), us[0][0].numel()
    device = base.device

    def total(weights: np.ndarray, values: list[Tensor]) -> Tensor:
        table = torch.tensor(weights, dtype=torch.float64, device=device)
        return table @ torch.stack(values)

    nodes = lams.tolist()
    fine = rule(nodes, lams[-1], lams[0])
    some = sorted({*range(n - 1, -1, -2), 0})
    coarse = np.zeros(n)
    coarse[some] = rule([nodes[j] for j in some], lams[-1], lams[0])
    for weights in (fine, coarse):
        weights[-1] += 0.5 * (1 - math.exp(2 * (flow.lam_noise - lams[-1])))  # the tail
    area = total(fine, drops)
    missed = area - total(coarse, drops)
    spread = total(fine**2, spreads)
    defect = torch.zeros_like(area)
    falling = thetas[::-1].tolist()
    for i in range(n - 1):
        weights = rule(falling, thetas[i], thetas[i + 1])[::-1]
        moved = us[i] - us[i + 1]
        for j in range(n):
            if weights[j]:
                moved = moved + weights[j] * fields[j]
        # from noise to data: what the path does beyond the flow
        defect = defect + (scores[i + 1] * moved).flatten(1).sum(1)
    shift = d * float((flow.norm(flow.lam_noise) / flow.norm(flow.lam_data)).log())
    return FewCalls(
        log_prob=base + area + defect + shift,
        std_error=spread.sqrt(),
        path_error=torch.hypot(missed, defect),
        nfe=spent[0],
        products=spent[0] * spent[1],
        blur=flow.blur,
    )
