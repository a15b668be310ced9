"""What trains a network and its noise schedule at once (Kingma et al. 2021).

In continuous time the bound depends on omega at its two ends alone,

    -log p(x_0) <= KL(q(x_1|x_0) | N(0, I)) - E log p(x_0|x_{t=0})
                   + 1/2 E_t omega'(t) ||eps_net - eps||^2,

so the ends are trained by the bound and what lies between by the variance of its estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.errors import InvalidType
from ...kernels.shapes import column
from ..denoiser import Denoiser
from ..processes import LearnedVP, Process
from ..variational import decoder_nll


@dataclass(frozen=True)
class ContinuousVLB:
    """The bound of the module's first lines for a `LearnedVP`, in nats per component.

    spacing: of the data's levels, for the discretised decoder; 0 for a density.

    Its gradient reaches the network and the ends of omega, where it is the bound's; `schedule`
    is what the rest of omega is trained with.
    """

    spacing: float = 0.0

    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, generator: torch.Generator, **cond: Any
    ) -> Tensor:
        """One draw for each sample: x_0 [B, *event] -> [B]. Times are stratified over the batch."""
        return self.at(denoiser, x_0, *draws(x_0, generator), **cond)

    def at(
        self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, eps_0: Tensor, **cond: Any
    ) -> Tensor:
        """The bound [B] at given times [B] and normals of x_0's shape."""
        denoiser, process = _learning(denoiser)
        diffusion = self.diffusion_term(denoiser, x_0, t, eps, **cond)
        return diffusion + self.prior_term(process, x_0) + self._decoder(process, x_0, eps_0)

    def diffusion_term(
        self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, **cond: Any
    ) -> Tensor:
        """1/2 omega'(t) ||eps_net - eps||^2, mean over components, [B] (Kingma et al. 2021, 17)."""
        denoiser, process = _learning(denoiser)
        x_t = column(process.alpha(t), x_0) * x_0 + column(process.sigma(t), x_0) * eps
        error = denoiser.noise(x_t, t, **cond) - eps
        weight = 0.5 * process.omega_dot(t)
        return weight.to(x_0.dtype) * error.square().flatten(1).mean(1)

    def schedule(
        self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, **cond: Any
    ) -> Tensor:
        """The diffusion term squared, [B]: its mean over uniform t is least where it is constant.

        Minimised over the interior of omega it takes the variance of the bound's estimate to its
        minimum, and leaves the bound (Kingma et al. 2021, I.2).
        """
        return self.diffusion_term(denoiser, x_0, t, eps, **cond).square()

    def prior_term(self, process: Process, x_0: Tensor) -> Tensor:
        """KL(q(x_1|x_0) | N(0, I)), mean over components, [B]."""
        alpha2, sigma2 = (s(process.t_max).square() for s in (process.alpha, process.sigma))
        kl = 0.5 * (alpha2 * x_0.square() + sigma2 - 1 - sigma2.log())
        return kl.to(x_0.dtype).flatten(1).mean(1)

    def _decoder(self, process: Process, x_0: Tensor, eps: Tensor) -> Tensor:
        """-log p(x_0 | x_0 + width eps), the posterior of a flat prior: N(x_t/alpha, width^2)."""
        width = torch.exp(-process.log_snr(process.t_min)).to(x_0.dtype)
        nll = decoder_nll(x_0, x_0 + width * eps, width, self.spacing)
        return nll.flatten(1).mean(1)


@dataclass(frozen=True)
class LearnedSchedule:
    """What trains a network and its `LearnedVP` at once (Kingma et al. 2021, I.2).

    The network and the ends of omega have the gradient of the bound, everything between the ends
    that of the log of `ContinuousVLB.schedule`, the variance of the bound's estimate. The value is
    the bound's. omega must be a module whose ends are its parameter `ends`, as `MonotoneOmega`'s.
    Two calls of the network. Raises TypeError for another process.
    """

    bound: ContinuousVLB = ContinuousVLB()

    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, generator: torch.Generator, **cond: Any
    ) -> Tensor:
        """One draw for each sample: x_0 [B, *event] -> [B]."""
        process, net = _learning(denoiser)[1], denoiser.net
        if not isinstance(process.omega, nn.Module) or not isinstance(net, nn.Module):
            raise InvalidType("a schedule is learned with modules: as omega and as the network")
        t, eps, eps_0 = draws(x_0, generator)
        ends = replace(process, omega=_learning_only(process.omega, {"ends"}))
        value = self.bound.at(replace(denoiser, process=ends), x_0, t, eps, eps_0, **cond)
        inner = {name for name, _ in process.omega.named_parameters()} - {"ends"}
        between = replace(process, omega=_learning_only(process.omega, inner))
        still = replace(denoiser, process=between, net=_learning_only(net, set()))
        variance = self.bound.schedule(still, x_0, t, eps, **cond)
        return value + variance / variance.detach().mean() - 1


def _learning_only(module: nn.Module, names: set[str]) -> Callable[..., Tensor]:
    """The module as a function that has a gradient in the named parameters alone."""
    parameters = {n: p if n in names else p.detach() for n, p in module.named_parameters()}

    def call(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = torch.func.functional_call(module, parameters, args, kwargs)
        return out

    return call


def draws(x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Times [B] stratified over the batch, and two normals of x_0's shape."""
    n, device = len(x_0), generator.device
    u = torch.rand(1, dtype=torch.float64, device=device, generator=generator)
    t = ((u + torch.arange(n, dtype=torch.float64, device=device) / n) % 1.0).to(x_0.device)
    eps, eps_0 = (
        torch.randn(x_0.shape, dtype=x_0.dtype, device=device, generator=generator).to(t.device)
        for _ in range(2)
    )
    return t, eps, eps_0


def _learning(denoiser: Denoiser) -> tuple[Denoiser, LearnedVP]:
    """The denoiser with the graph to its schedule kept."""
    process = denoiser.process
    if not isinstance(process, LearnedVP):
        raise InvalidType(f"the process must be a LearnedVP; got {type(process).__name__}")
    process = replace(process, learn=True)
    return replace(denoiser, process=process), process
