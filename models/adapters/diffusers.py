"""Networks of diffusers as a `Denoiser`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ...kernels.errors import InvalidType, InvalidValue
from ..denoiser import Denoiser
from ..processes import Process
from ..processes.process import count, positive
from ..variational import VarianceHead
from .modules import BySignature, FirstHalf, Linear, inside
from .schedulers import REMEDY, Reading, read_scheduler

TOLD_SIGMA = (
    "AuraFlowTransformer2DModel",
    "BriaFibo2Transformer2DModel",
    "ChromaTransformer2DModel",
    "CosmosTransformer3DModel",
    "Flux2Transformer2DModel",
    "Flux3Transformer2DModel",
    "FluxTransformer2DModel",
    "Krea2Transformer2DModel",
    "LongCatAudioDiTTransformer",
    "LongCatImageTransformer2DModel",
    "NucleusMoEImageTransformer2DModel",
    "OvisImageTransformer2DModel",
    "PRXTransformer2DModel",
    "QwenImage21Transformer2DModel",
    "QwenImageTransformer2DModel",
)
"""Classes of flow networks whose pipelines hand over the scheduler's timestep divided by 1000."""
TOLD_DATA = (
    "Ideogram4Transformer2DModel",
    "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel",
    "ZImageTransformer2DModel",
)
"""Classes of flow networks that are told 1 - sigma."""
DATAWARD = (*TOLD_DATA, "HiDreamImageTransformer2DModel", "NucleusMoEImageTransformer2DModel")
"""Classes of flow networks that give the velocity towards the data."""


def from_diffusers(
    net: nn.Module,
    scheduler: Any = None,
    *,
    train_steps: int | None = None,
    time_scale: float | None = None,
    **options: Any,
) -> Denoiser:
    """A diffusers model (UNet2DModel, DiT, SD3, Flux, ...) with its scheduler.

    net: called as its signature asks, the time by its name (`timestep`, ...) where it is neither
        first nor second; conditions go by name, so `encoder_hidden_states`, `added_cond_kwargs`,
        `guidance` or `class_labels` are conditions of the denoiser. Outputs may have `.sample` or
        be tuples. Of an output with twice x's channels the first half is the prediction; the second
        says where the variance lies if the scheduler's variance_type is learned_range.
    scheduler: a diffusers scheduler, its configuration, or the dict of its scheduler_config.json.
        What the network was trained on is read (see `read_scheduler`). Its sampler, grid, clipping
        and thresholding are not: those are chosen at `sample`. None: `options` say it all.
    train_steps: training steps of a network of discrete time; by default the scheduler's. A flow
        network is told sigma times so many.
    time_scale: what the process's t is multiplied by for the network, e.g. 1.0 for one that is told
        sigma and 1000.0 for one that is told sigma times 1000; by default as its class wants it.
    options: fields of `Denoiser`, which win over what is read, e.g. time=, predicts= or
        clip=(-1, 1). With process= and predicts= the scheduler is not looked at; time= is then
        'continuous' unless given.

    Raises ValueError for a class or configuration that is not known, or a choice that is made
    twice.
    """
    fields = {f.name for f in dataclasses.fields(Denoiser) if f.init} - {"net"}
    if unknown := options.keys() - fields:
        raise InvalidType(
            f"from_diffusers has no option {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted(fields | {'train_steps', 'time_scale'}))}"
        )
    if train_steps is not None:
        _once("train_steps", train_steps, "steps", options)
        options["steps"] = count("train_steps", train_steps)
    if time_scale is not None:
        _once("time_scale", time_scale, "time", options)
        options["time"] = Linear(positive("time_scale", time_scale))
    if {"process", "predicts"} <= options.keys():
        return Denoiser(FirstHalf(BySignature(net)), **options)
    if scheduler is None:
        raise InvalidValue(f"scheduler is needed to read the network's process; or {REMEDY}")
    read = read_scheduler(scheduler)
    sign, time = read.sign, read.time
    if read.predicts == "flow" and isinstance(time, Linear):
        sign, time = _flow_convention(net, read, options.get("steps"))
    called = BySignature(net, 1.0 if "predicts" in options else sign)
    found = {"process": read.process, "predicts": read.predicts, "time": time, "steps": read.steps}
    head = VarianceHead(called) if read.learned_range else FirstHalf(called)
    return Denoiser(head, **{**found, **options})


def _once(name: str, value: Any, other: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError where two options say the same."""
    if other in options:
        raise InvalidValue(
            f"{name}={value!r} and {other}={options[other]!r} were both given: leave one out"
        )


def _flow_convention(
    net: Any, read: Reading, steps: int | None
) -> tuple[float, str | Callable[[Tensor], Tensor]]:
    """The sign of a flow network's output, and what it is told, by its class."""
    while (inner := inside(net)) is not None:
        net = inner
    kind = type(net).__name__
    sign = -read.sign if kind in DATAWARD else read.sign
    if kind in TOLD_SIGMA:
        return sign, "continuous"
    if kind in TOLD_DATA:
        return sign, Linear(-1.0, 1.0)
    if kind == "GlmImageTransformer2DModel":
        return sign, Linear(float(read.steps if steps is None else steps), -1.0)
    time = read.time
    if not isinstance(time, Linear):
        return sign, time
    scale = 1.0 if steps is None else steps / read.steps
    if kind == "SanaTransformer2DModel":
        scale *= float(net.config.timestep_scale)
    return sign, time if scale == 1 else Linear(scale * time.scale, scale * time.shift)


def process_from_diffusers(config: Mapping[str, Any]) -> tuple[Process, str, int]:
    """(process, predicts, steps) of a diffusers scheduler or its configuration.

    Step i of N is at t = (i+1)/N of `VP.from_betas`. With rescale_betas_zero_snr alpha at t = 1 is
    next to 0 instead of 0, so that every read-out exists. See `read_scheduler` for all that is
    read.
    Raises ValueError for classes, schedules and prediction types that are not known.
    """
    read = read_scheduler(config)
    return read.process, read.predicts, read.steps
