"""Networks of other code bases as a `Denoiser`, and a `Denoiser` as k-diffusion has one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.errors import InvalidType, InvalidValue
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
    net: Callable[..., Tensor],
    scheduler: Any = None,
    *,
    time_first: bool = False,
    **options: Any,
) -> Denoiser:
    """A velocity network dx/ds on x_s = alpha_s x_0 + sigma_s eps, where s = 1 is data.

    So flow_matching (`net(x, s)`), torchcfm (`net(s, x)`: time_first) and others have it; here
    time runs the other way, t = 1 - s, and the velocity changes sign.

    net: called as net(x, s, **cond).
    scheduler: flow_matching's, whose call gives `alpha_t` and `sigma_t`; by default its
        CondOTScheduler, alpha_s = s and sigma_s = 1 - s. See `flow_process`.
    time_first: whether it is called as net(s, x, **cond).
    options: of `Denoiser`; process= overrides the scheduler's.
    """
    process = options.pop("process", None)
    if process is None:
        process = Flow() if scheduler is None else flow_process(scheduler)
    wrapped = Velocity(net, time_first)
    return Denoiser(wrapped, process, predicts="flow", time=Linear(-1.0, 1.0), **options)


def flow_process(scheduler: Any) -> Process:
    """The process in t = 1 - s of a scheduler of flow_matching.

    CondOTScheduler is `Flow` and VPScheduler `VP`; any other is taken by its values. Where its
    velocity says nothing of the data at s = 0, as with a polynomial's, time starts at t = 0.999.
    Raises TypeError for what has no alpha_t and sigma_t.
    """
    name = type(scheduler).__name__
    if name == "CondOTScheduler":
        return Flow()
    if name == "VPScheduler":
        return VP(float(scheduler.beta_min), float(scheduler.beta_max))
    alpha, sigma = Backwards(scheduler, "alpha_t"), Backwards(scheduler, "sigma_t")
    try:
        made = Process.of(alpha, sigma)
        end = torch.ones((), dtype=torch.float64, device="cpu")
        told = made.sigma(end) * made.alpha_dot(end) - made.alpha(end) * made.sigma_dot(end)
    except (AttributeError, TypeError) as error:
        raise InvalidType(
            "scheduler must be one of flow_matching, called with times and giving alpha_t and "
            f"sigma_t; got {type(scheduler).__name__}: {error}"
        ) from error
    return made if abs(float(told)) > 1e-9 else Process.of(alpha, sigma, t_max=0.999)


@dataclass(frozen=True)
class Backwards:
    """t -> a part of what scheduler(1 - t) gives; it compares by value and pickles."""

    scheduler: Any
    part: str

    def __call__(self, t: Tensor) -> Tensor:
        return torch.as_tensor(getattr(self.scheduler(1 - t), self.part))


@dataclass(frozen=True)
class Line:
    """t -> start + slope t."""

    start: float
    slope: float

    def __call__(self, t: Tensor) -> Tensor:
        return self.start + self.slope * t


def from_torchcfm(
    net: Callable[..., Tensor], matcher: Any = None, *, time_first: bool = True, **options: Any
) -> Denoiser:
    """A velocity network of torchcfm, called as net(s, x, **cond), where s = 1 is data.

    net: a network of theirs or of the same call; one of a single argument [x, s], as torchcfm's
        `MLP(time_varying=True)`, is told x with s appended.
    matcher: the flow matcher it was trained with. ConditionalFlowMatcher and the optimal transport
        one with sigma = 0 are the default, alpha_s = s and sigma_s = 1 - s;
        TargetConditionalFlowMatcher keeps sigma at the data; the variance preserving one has the
        angles of `CosineScheduler`.
    time_first: False for net(x, s).
    options: of `Denoiser`.

    Of a network that was trained with paired samples (optimal transport) the flow is exact; its
    data prediction, score and stochastic samplers suppose that noise and data are independent.
    Raises ValueError for a matcher that is not known, or sigma > 0 where paths are not Gaussian
    mixtures of the two ends.
    """
    kind, sigma = type(matcher).__name__, float(getattr(matcher, "sigma", 0.0))
    if getattr(net, "time_varying", False):
        net, time_first = Appended(net), False
    if matcher is None or kind in (
        "ConditionalFlowMatcher", "ExactOptimalTransportConditionalFlowMatcher",
    ):  # fmt: skip
        if sigma:
            raise InvalidValue(
                f"matcher must have sigma=0, since {kind} adds noise of its own to the path that "
                f"the velocity does not tell; got sigma={sigma:g}: leave matcher out to read the "
                "network as one of sigma=0"
            )
        process: Process = Flow()
    elif kind == "TargetConditionalFlowMatcher":
        process = straight(sigma, 1 - sigma, 0.0 if sigma else 1e-3)
    elif kind == "VariancePreservingConditionalFlowMatcher" and not sigma:
        process = Process.of(Angle("cos"), Angle("sin"), inverse=AngleBack())
    else:
        raise InvalidValue(
            f"matcher must be a conditional flow matcher with sigma=0, or a target one; got {kind} "
            f"with sigma={sigma:g}: give process= to from_flow_matching"
        )
    return from_flow_matching(net, time_first=time_first, process=process, **options)


@dataclass(frozen=True)
class LineBack:
    """lambda -> t of alpha = 1 - t and sigma = start + slope t."""

    start: float
    slope: float

    def __call__(self, lam: Tensor) -> Tensor:
        ratio, snr = torch.exp(-lam.clamp(min=0.0)), torch.exp(lam.clamp(max=0.0))
        far = (1 - self.start * snr) / (1 + self.slope * snr)
        near = (ratio - self.start) / (ratio + self.slope)
        return torch.where(lam > 0, near, far).clamp(min=0.0)


def straight(start: float, slope: float, t_min: float) -> Process:
    """alpha = 1 - t and sigma = start + slope t."""
    ends = Line(1.0, -1.0), Line(start, slope)
    return Process.of(*ends, t_min=t_min, inverse=LineBack(start, slope))


@dataclass(frozen=True)
class Angle:
    """t -> cos or sin of t pi/2."""

    of: str

    def __call__(self, t: Tensor) -> Tensor:
        return t.mul(math.pi / 2).cos() if self.of == "cos" else t.mul(math.pi / 2).sin()


@dataclass(frozen=True)
class AngleBack:
    """lambda -> t of alpha = cos and sigma = sin of t pi/2."""

    def __call__(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam).atan() * (2 / math.pi)


class Appended(nn.Module):
    """A network of one argument, told x [B, d] with the time as its last column."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = callable_net(net)

    def forward(self, x: Tensor, s: Tensor, /) -> Tensor:
        out: Tensor = self.net(torch.cat([x, column(s, x).to(x).expand(len(x), 1)], -1))
        return out


OBJECTIVES = {"pred_noise": "noise", "pred_x0": "data", "pred_v": "v"}
"""What a GaussianDiffusion's network predicts, by its `objective`."""


def from_denoising_diffusion(diffusion: Any, **options: Any) -> Denoiser:
    """The network of a GaussianDiffusion of denoising-diffusion-pytorch, images or sequences.

    diffusion: the trained module; its table of betas and its objective are read off it. Its samples
        lie in [-1, 1]: `diffusion.unnormalize` brings them to [0, 1].
    options: of `Denoiser`, over what was read; clip=(-1, 1) is what its own samplers do. Classes of
        the guided version go in as cond={"classes": ...}.

    An ElucidatedDiffusion is read as an `EDM` of its preconditioned network.
    Raises TypeError for what is neither; ValueError for a self-conditioned one, whose samplers hand
    each call the estimate of the last: such a network is no function of x and t.
    """
    if getattr(diffusion, "self_condition", False):
        raise InvalidValue(
            "diffusion.self_condition must be False; got True: its network takes the last call's "
            "estimate beside x and t, which a solver does not hold. "
            "Denoiser(diffusion.model, ...) calls it without one"
        )
    if hasattr(diffusion, "preconditioned_network_forward"):
        levels = {name: float(getattr(diffusion, name)) for name in ("sigma_min", "sigma_max")}
        process = EDM(**levels, sigma_data=float(diffusion.sigma_data))
        return from_edm(Preconditioned(diffusion), process, **options)
    objective = OBJECTIVES.get(getattr(diffusion, "objective", None) or "")
    if objective is None or not isinstance(getattr(diffusion, "betas", None), Tensor):
        raise InvalidType(
            "diffusion must be a GaussianDiffusion or ElucidatedDiffusion of "
            f"denoising-diffusion-pytorch; got {type(diffusion).__name__}"
        )
    table = VP.from_betas(diffusion.betas.detach().to("cpu", torch.float64))
    read = {"predicts": objective, "time": "index", "process": table}
    return Denoiser(callable_net(diffusion.model), **{**read, **options})


class Preconditioned(nn.Module):
    """D(x, sigma) of an ElucidatedDiffusion."""

    def __init__(self, diffusion: nn.Module) -> None:
        super().__init__()
        self.diffusion = diffusion

    def forward(self, x: Tensor, sigma: Tensor, /, **cond: Any) -> Tensor:
        out: Tensor = self.diffusion.preconditioned_network_forward(x, sigma, **cond)  # type: ignore[operator]
        return out


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
