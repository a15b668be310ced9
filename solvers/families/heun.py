"""Heun's method with EDM's churn (Karras et al. 2022, algorithms 1 and 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Flow
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau


@dataclass(frozen=True)
class Heun(Solver):
    """Second order, two calls a step; with churn, stochastic (Karras et al. 2022, algorithm 2).

    In y = x/c with a clock s, where dy/ds = (y - D)/s for both clocks:
        clock 'sigma'  c = alpha,          s = sigma/alpha          (EDM's, k-diffusion's)
        clock 'flow'   c = alpha + sigma,  s = sigma/(alpha+sigma)  (finite where alpha = 0)
    and the step is y' = y + (s' - s)/2 [(y - D)/s + (y1 - D1)/s'] with y1 Euler's. A last
    interval down to sigma = 0 is Euler's alone, so n intervals cost 2n - 1 calls.

    churn: S_churn >= 0; before a step's first call, where s_min <= sigma/alpha <= s_max, noise
        raises the ratio by the factor 1 + min(churn/n, sqrt(2) - 1). The state is scaled along
        with it, so marginals hold for every process, flows included.
    s_min, s_max: of sigma/alpha, where churn acts.
    s_noise: what the added noise is scaled by, >= 0; 1 keeps the marginals.
    clock: 'sigma' or 'flow'; None takes 'flow' for a `Flow` and for a grid that starts where
        alpha = 0, else 'sigma'.
    Raises ValueError for another value.
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    clock: str | None = None

    order: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        check_churn(self)
        if self.clock not in (None, "sigma", "flow"):
            raise InvalidValue(f"clock must be 'sigma', 'flow' or None; got {self.clock!r}")

    @property
    def weak_order(self) -> float:
        """2, as noising is exact; 0 where s_noise inflates it, a bias that steps do not remove."""
        return 0.0 if self.churn and self.s_noise != 1 else 2.0

    def rows(self, path: Path) -> Tableau:
        n = len(path.t) - 1
        raised = churned(path, self.churn, self.s_min, self.s_max)
        hot, bring, add = raised.nodes, raised.scale, self.s_noise * raised.noise
        one, zero = torch.ones_like(bring), torch.zeros_like(bring)

        c0, s0 = self._clock(hot, path)
        c1, s1 = (v[1:] for v in self._clock(path, path))
        d = s1 - s0
        lift = c1 / c0
        half0, half1 = 0.5 * d / s0, 0.5 * d / torch.where(s1 > 0, s1, one)
        euler = ([lift * (1 + d / s0), zero], [-c1 * d / s0, zero], zero)
        heun = ([half1, lift * (1 + half0)], [-c1 * half1, -c1 * half0], zero)

        # a churn belongs to the row before it: scale what that row writes, and add the noise
        scale, noise = torch.cat([bring[1:], one[:1]]), torch.cat([add[1:], zero[:1]])
        last = 1 if path.ends_clean else 0
        heun = ([c * scale for c in heun[0]], [c * scale for c in heun[1]], noise)

        def interleave(a: Tensor, b: Tensor) -> Tensor:
            return torch.stack([a, b], 1).flatten()[: 2 * n - last]

        def columns(a: list[Tensor], b: list[Tensor]) -> Tensor:
            return torch.stack([interleave(p, q) for p, q in zip(a, b, strict=True)], 1)

        noises = interleave(euler[2], heun[2])[:, None]
        return Tableau(
            times=interleave(hot.t, path.t[1:]),
            state=columns(euler[0], heun[0]),
            data=columns(euler[1], heun[1]),
            noise=noises,
            draws=1 + torch.arange(len(noises), device="cpu")[:, None],
            grid=path.t,
            entry=(float(bring[0]), float(add[0])),
            name="heun-churn" if self.churn else "heun",
        ).trimmed()

    def _clock(self, nodes: Path, path: Path) -> tuple[Tensor, Tensor]:
        flow = isinstance(path.process, Flow) or float(path.alpha[0]) == 0.0
        if (self.clock or ("flow" if flow else "sigma")) == "flow":
            c = nodes.alpha + nodes.sigma
        else:
            c = nodes.alpha
        return c, nodes.sigma / c


class Raised(NamedTuple):
    """nodes: where each of n steps starts; scale, noise [n]: x there is scale x + noise z."""

    nodes: Path
    scale: Tensor
    noise: Tensor


def churned(path: Path, churn: float, s_min: float, s_max: float) -> Raised:
    """The start of each step at a ratio (1 + gamma) times its own (Karras et al. 2022, alg. 2)."""
    ratio = torch.exp(-path.lam[:-1])
    on = (ratio >= s_min) & (ratio <= s_max) & torch.isfinite(ratio)
    gamma = min(churn / len(ratio), math.sqrt(2) - 1) * on.double()
    one, zero = torch.ones_like(gamma), torch.zeros_like(gamma)
    if not churn:
        nodes = Path(path.process, path.t[:-1], path.alpha[:-1], path.sigma[:-1], path.lam[:-1])
        return Raised(nodes, one, zero)
    lifted = path.process.inverse_log_snr(path.lam[:-1] - torch.log1p(gamma))
    nodes = Path.of(path.process, torch.where(gamma > 0, lifted, path.t[:-1]))
    bring = torch.where(gamma > 0, nodes.alpha / path.alpha[:-1], one)
    added = nodes.sigma.square() - (bring * path.sigma[:-1]).square()
    return Raised(nodes, bring, torch.where(gamma > 0, added.clamp(min=0.0).sqrt(), zero))


def check_churn(settings: Any) -> None:
    """Raises ValueError unless its churn, s_min, s_max and s_noise are >= 0 and say something."""
    for name in ("churn", "s_min", "s_max", "s_noise"):
        value = getattr(settings, name)
        if not (value >= 0 and (name == "s_max" or value < math.inf)):
            raise InvalidValue(f"{name} must be >= 0; got {value}")
    if settings.s_min > settings.s_max:
        raise InvalidValue(
            f"s_min must be at most s_max; got {settings.s_min} and {settings.s_max}"
        )


SOLVERS: dict[str, Solver] = {
    "heun": Heun(),
    "edm": Heun(),
    "heun-churn": Heun(churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003),
}
