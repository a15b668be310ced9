"""Networks of EDM, k-diffusion, score_sde and flow_matching as a `Denoiser`, and one as theirs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.errors import InvalidType
from ...kernels.shapes import as_float64, column
from ..denoiser import Combination, Denoiser
from ..processes import EDM, VE, VP, Flow, Process, SubVP
from .modules import Linear, callable_net


def from_edm(net: Callable[..., Tensor], process: EDM | None = None, **options: Any) -> Denoiser:
    """D(x, sigma, ...) of EDM, EDM2 or a k-diffusion wrapper, as it is (Karras et al. 2022, 7).

    net: called as net(x, sigma, **cond); conditions go by its own names, positional labels through
        `Wrapped`.
    process: an `EDM` with the noise levels it was trained on. For another process use
        `retime(from_edm(net), process)`. Raises TypeError for one.
    """
    process = process or EDM()
    if not isinstance(process, EDM):
        raise InvalidType(
            f"process must be an EDM, since net is handed x_0 + sigma eps; got {process!r}: "
            "use retime(from_edm(net), process)"
        )
    return Denoiser(callable_net(net), process, predicts="data", time="sigma", **options)


def from_score_sde(net: Callable[..., Tensor], process: Process, **options: Any) -> Denoiser:
    """A continuous-time network of score_sde, before its `get_score_fn` (Song et al. 2021).

    net: called as net(x, 999 t) for `VP` and `SubVP`, where it gives minus the score times sigma,
        and as net(x, sigma) for `VE`, where it gives the score.
    process: one of the three. Raises TypeError for another.
    """
    if isinstance(process, VE):
        return Denoiser(callable_net(net), process, predicts="score", time="sigma", **options)
    if not isinstance(process, VP | SubVP):
        raise InvalidType(f"process must be a VP, SubVP or VE, as score_sde's are; got {process!r}")
    return Denoiser(callable_net(net), process, predicts="noise", time=Linear(999.0), **options)


def from_flow_matching(
    net: Callable[..., Tensor], *, time_first: bool = False, **options: Any
) -> Denoiser:
    """A velocity network dx/ds on x_s = s x_0 + (1 - s) eps, where s = 1 is data.

    So flow_matching (`net(x, s)`), torchcfm (`net(s, x)`: time_first) and others have it; here
    time runs the other way, t = 1 - s, and the velocity changes sign.
    """

    wrapped = Velocity(net, time_first)
    return Denoiser(wrapped, Flow(), predicts="flow", time=Linear(-1.0, 1.0), **options)


class Velocity(nn.Module):
    """dx/dt = -dx/ds of a network called as net(x, s), or net(s, x) where time is first."""

    def __init__(self, net: Callable[..., Tensor], time_first: bool) -> None:
        super().__init__()
        self.net, self.time_first = callable_net(net), time_first

    def forward(self, x: Tensor, s: Tensor, /, **cond: Any) -> Tensor:
        out: Tensor = self.net(s, x, **cond) if self.time_first else self.net(x, s, **cond)
        return -out


def retime(model: Denoiser, process: Process) -> Denoiser:
    """The same network for another process: D'(x, t') = D(alpha/alpha' x, t) at equal SNR.

    x_t/alpha is x_0 + (sigma/alpha) eps for every process, so a denoiser of one is a denoiser of
    all (Karras et al. 2022, C.1). Where `process` goes to noise that the network never saw, the
    network is asked about it nevertheless.
    """
    if not isinstance(model, Denoiser):
        raise InvalidType(f"model must be a Denoiser; got {type(model).__name__}")
    if not isinstance(process, Process):
        raise InvalidType(f"process must be a Process, e.g. EDM(); got {process!r}")
    return model if process == model.process else Retimed(model, process).denoiser()


class Retimed(Combination):
    """See `retime`."""

    title = "retime"

    def __init__(self, model: Denoiser, process: Process) -> None:
        super().__init__(model, predicts="data")
        self.process = process

    def __repr__(self) -> str:
        return self.title

    def denoiser(self) -> Denoiser:
        return replace(super().denoiser(), process=self.process, time="continuous")

    def evaluate(
        self, x_in: Tensor, t_in: Tensor, cond: dict[str, Any], t: float | Tensor | None
    ) -> Tensor:
        at = as_float64(t_in if t is None else t)
        ours = self.ours(at)
        ratio = self.models[0].process.alpha(ours) / self.process.alpha(at)
        return self.models[0].read("data", column(ratio, x_in) * x_in, ours, cond)

    def ours(self, t: Tensor) -> Tensor:
        """The time of the model's own process at which the noise is that of `process` at t."""
        found = self.models[0].process.inverse_log_snr(self.process.log_snr(t))
        return torch.as_tensor(found)

    def calls_at(self, t: float, cond: dict[str, Any]) -> int:
        at = self.ours(torch.full((), t, dtype=torch.float64, device="cpu"))
        return self.models[0].calls_at(float(at), cond)


class KDiffusionModel(nn.Module):
    """A `Denoiser` as k-diffusion has one: model(x, sigma [B], **cond) -> D, alpha = 1."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        if not isinstance(model, Denoiser):
            raise InvalidType(f"model must be a Denoiser; got {type(model).__name__}")
        self.sigma_min = math.exp(-float(model.process.log_snr(model.t_min)))
        self.sigma_max = model.process.noisiest_ratio
        self.denoiser = retime(model, EDM(self.sigma_min, self.sigma_max))
        self.inner_model = model.net

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.denoiser(x, sigma, **cond)
