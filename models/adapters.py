"""Other libraries' networks as a `Denoiser`, and a `Denoiser` as theirs.

    library           network is called as        predicts            time handed over
    diffusers         net(x, i).sample            eps, x_0, v, flow   i = 0..N-1, or 1000 sigma
    EDM, EDM2         net(x, sigma, labels)       D itself            sigma
    k-diffusion       net(x, sigma, **extra)      D itself            sigma
    score_sde VP      net(x, 999 t)               -sigma * score      999 t
    score_sde VE      net(x, sigma)               score               sigma
    flow_matching     net(x, s), s = 1 is data    dx/ds               s = 1 - t

Nothing is imported or downloaded: networks come as objects, configurations as dicts. Where a
network's output or arguments have another form, say how with `Wrapped`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.errors import InvalidValue
from ..kernels.shapes import column
from .denoiser import Denoiser
from .guidance.rule import apply_rule, calls_of
from .processes import EDM, VE, VP, Flow, Process
from .variational import VarianceHead

_PREDICTION = {"epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "flow"}


class Wrapped(nn.Module):
    """A network called through two functions: output(net(*args, **kwargs)) with inputs(x, t, cond).

    inputs: (x, t, cond) -> (args, kwargs) of the network; output: what it returns -> Tensor.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        inputs: Callable[[Tensor, Tensor, dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]],
        output: Callable[[Any], Tensor] = lambda out: out,
    ) -> None:
        super().__init__()
        self.net, self.inputs, self.output = net, inputs, output

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        args, kwargs = self.inputs(x, t, cond)
        return self.output(self.net(*args, **kwargs))


def from_diffusers(net: nn.Module, scheduler: Any, **options: Any) -> Denoiser:
    """A diffusers model (UNet2DModel, UNet2DConditionModel, DiT, ...) with its scheduler.

    net: called as net(x, timestep, **cond), so `encoder_hidden_states` or `class_labels` are
        conditions; of an output with twice x's channels the first half is used, and the second
        says where the variance lies if the scheduler's variance_type is learned_range.
    scheduler: a diffusers scheduler, or the dict of its scheduler_config.json. What matters is
        read: betas, prediction type, zero terminal SNR, flow or EDM. Its sampler, spacing and
        clipping are not: those are chosen at `sample`.
    options: further fields of `Denoiser`, e.g. clip=(-1, 1).

    Raises ValueError for a configuration that is not known.
    """
    config = getattr(scheduler, "config", scheduler)
    process, predicts, steps = process_from_diffusers(config)
    wrapped = Wrapped(net, lambda x, t, cond: ((x, t), cond), _sample_of)
    time: Any = "index"
    if isinstance(process, EDM):
        time = "edm"
    elif isinstance(process, Flow):
        time = _Times(float(steps))
    ranged = config.get("variance_type") == "learned_range"
    return Denoiser(
        VarianceHead(wrapped) if ranged else _Channels(wrapped), process, predicts=predicts, time=time, steps=steps,
        **{"sigma_data": getattr(process, "sigma_data", 0.5), **options},
    )  # fmt: skip


def process_from_diffusers(config: Mapping[str, Any]) -> tuple[Process, str, int]:
    """(process, predicts, steps) of a diffusers scheduler configuration.

    Step i of N is at t = (i+1)/N of `VP.from_betas`. With rescale_betas_zero_snr the last
    beta is 0.999 instead of 1, so that every read-out exists.
    Raises ValueError for schedules and prediction types that are not known.
    """
    steps = int(config.get("num_train_timesteps", 1000))
    kind = config.get("prediction_type", "epsilon")
    name = config.get("_class_name", "")
    if "FlowMatch" in name or (not name and "base_shift" in config) or kind == "flow_prediction":
        return Flow(), "flow", steps
    if "sigma_data" in config:
        ends = (float(config["sigma_min"]), float(config["sigma_max"]))
        return EDM(*ends, sigma_data=float(config["sigma_data"])), "edm", steps
    if kind not in _PREDICTION:
        raise InvalidValue(f"prediction_type must be one of {', '.join(_PREDICTION)}; got {kind!r}")
    betas = _betas(config, steps)
    if config.get("rescale_betas_zero_snr", False):
        betas = _zero_snr(betas)
    return VP.from_betas(betas), _PREDICTION[kind], steps


def from_edm(net: Callable[..., Tensor], process: EDM | None = None, **options: Any) -> Denoiser:
    """D(x, sigma, ...) of EDM, EDM2 or a k-diffusion wrapper, as it is (Karras et al. 2022, 7).

    Conditions go by the network's own names: positional labels through `Wrapped`.
    """
    return Denoiser(net, process or EDM(), predicts="data", time="sigma", **options)


def from_score_sde(net: Callable[..., Tensor], process: Process, **options: Any) -> Denoiser:
    """A continuous-time network of score_sde, before its `get_score_fn` (Song et al. 2021).

    VP and sub-VP networks are called with 999 t and give minus the score times sigma, VE
    networks with sigma and give the score.
    """
    if isinstance(process, VE):
        return Denoiser(net, process, predicts="score", time="sigma", **options)
    return Denoiser(net, process, predicts="noise", time=_Times(999.0), **options)


def from_flow_matching(
    net: Callable[..., Tensor], *, time_first: bool = False, **options: Any
) -> Denoiser:
    """A velocity network dx/ds on x_s = s x_0 + (1 - s) eps, where s = 1 is data.

    So flow_matching (`net(x, s)`), torchcfm (`net(s, x)`: time_first) and others have it; here
    time runs the other way, t = 1 - s, and the velocity changes sign.
    """

    def inputs(x: Tensor, t: Tensor, cond: dict[str, Any]) -> Any:
        return ((t, x) if time_first else (x, t)), cond

    wrapped = Wrapped(net, inputs, torch.neg)
    return Denoiser(wrapped, Flow(), predicts="flow", time=_Times(-1.0, 1.0), **options)


def retime(model: Denoiser, process: Process) -> Denoiser:
    """The same network for another process: D'(x, t') = D(alpha/alpha' x, t) at equal SNR.

    x_t/alpha is x_0 + (sigma/alpha) eps for every process, so a denoiser of one is a denoiser of
    all (Karras et al. 2022, C.1). Where `process` goes to noise that the network never saw, the
    network is asked about it nevertheless.
    """
    if process == model.process:
        return model
    inner = model

    def rule(x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        ours = inner.process.inverse_log_snr(process.log_snr(t))
        ratio = inner.process.alpha(ours) / process.alpha(t)
        return inner(column(ratio, x) * x, ours, **cond)

    shell = replace(model, process=process, time="continuous", cond={})
    return replace(
        apply_rule(shell, "retime", rule, "data", model, calls=calls_of(model.net)), cond=model.cond
    )


class KDiffusionModel(nn.Module):
    """A `Denoiser` as k-diffusion has one: model(x, sigma [B], **cond) -> D, alpha = 1."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        ends = (torch.exp(-model.process.log_snr(t)) for t in (model.t_min, model.process.t_max))
        self.sigma_min, self.sigma_max = (min(float(s), 1e4) for s in ends)
        self.denoiser = retime(model, EDM(self.sigma_min, self.sigma_max))
        self.inner_model = model.net

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.denoiser(x, sigma, **cond)


class _Times:
    """t -> scale t + shift, a time convention that prints and pickles."""

    def __init__(self, scale: float, shift: float = 0.0) -> None:
        self.scale, self.shift = scale, shift

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * t + self.shift

    def __repr__(self) -> str:
        return f"{self.scale:g} t" + (f" + {self.shift:g}" if self.shift else "")


class _Channels(nn.Module):
    """The first x.shape[1] channels of a network's output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out: Tensor = self.net(x, t, **cond)
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


def _sample_of(out: Any) -> Tensor:
    value: Tensor = out if isinstance(out, Tensor) else getattr(out, "sample", out[0])
    return value


def _betas(config: Mapping[str, Any], steps: int) -> Tensor:
    """beta_1..beta_N, float64."""
    if config.get("trained_betas") is not None:
        return torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    schedule = config.get("beta_schedule", "linear")
    lo, hi = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if schedule == "linear":
        return torch.linspace(lo, hi, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(math.sqrt(lo), math.sqrt(hi), steps, dtype=torch.float64).square()
    if schedule == "squaredcos_cap_v2":
        return torch.tensor(VP.cosine(steps=steps).betas, dtype=torch.float64)
    if schedule == "sigmoid":
        u = torch.linspace(-6, 6, steps, dtype=torch.float64)
        return torch.sigmoid(u) * (hi - lo) + lo
    raise InvalidValue(
        "beta_schedule must be one of linear, scaled_linear, squaredcos_cap_v2, sigmoid; "
        f"got {schedule!r}"
    )


def _zero_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) to end at 0 (Lin et al. 2024, algorithm 1), nearly."""
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root.square()
    rescaled = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return rescaled.clamp(max=0.999)  # the last is 1, at which x_t would hold nothing of x_0
