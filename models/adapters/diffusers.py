"""Networks of diffusers as a `Denoiser`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...kernels.errors import InvalidType, InvalidValue
from ..denoiser import Denoiser
from ..processes import Process
from ..variational import VarianceHead
from .modules import BySignature, FirstHalf, Linear
from .schedulers import REMEDY, read_scheduler

TOLD_SIGMA = (
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "LongCatImageTransformer2DModel",
    "OvisImageTransformer2DModel",
    "QwenImage21Transformer2DModel",
    "QwenImageTransformer2DModel",
)
"""Classes of networks whose pipelines hand over the scheduler's timestep divided by 1000."""
TOLD_DATA = ("Lumina2Transformer2DModel", "ZImageTransformer2DModel")
"""Classes of networks that are told 1 - sigma and give the velocity towards the data."""


def from_diffusers(net: nn.Module, scheduler: Any = None, **options: Any) -> Denoiser:
    """A diffusers model (UNet2DModel, DiT, SD3, Flux, ...) with its scheduler.

    net: called as its signature asks, the time by its name (`timestep`, ...) where it is neither
        first nor second; conditions go by name, so `encoder_hidden_states`, `added_cond_kwargs` or
        `class_labels` are conditions of the denoiser. Outputs may have `.sample` or be tuples. Of
        an output with twice x's channels the first half is the prediction; the second says where
        the variance lies if the scheduler's variance_type is learned_range.
    scheduler: a diffusers scheduler, its configuration, or the dict of its scheduler_config.json.
        What the network was trained on is read (see `read_scheduler`). Its sampler, grid, clipping
        and thresholding are not: those are chosen at `sample`. None: `options` say it all.
    options: fields of `Denoiser`, which win over what is read, e.g. clip=(-1, 1). With process= and
        predicts= the scheduler is not looked at; time= is then 'continuous' unless given.

    Raises ValueError for a class or configuration that is not known.
    """
    fields = {f.name for f in dataclasses.fields(Denoiser) if f.init} - {"net"}
    if unknown := options.keys() - fields:
        raise InvalidType(
            f"from_diffusers has no option {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted(fields))}"
        )
    if {"process", "predicts"} <= options.keys():
        return Denoiser(FirstHalf(BySignature(net)), **options)
    if scheduler is None:
        raise InvalidValue(f"scheduler is needed to read the network's process; or {REMEDY}")
    read = read_scheduler(scheduler)
    sign, time = read.sign, read.time
    kind = type(net).__name__
    if read.predicts == "flow" and kind in TOLD_SIGMA:
        time = "continuous"
    elif read.predicts == "flow" and kind in TOLD_DATA:
        sign, time = -sign, Linear(-1.0, 1.0)
    called = BySignature(net, 1.0 if "predicts" in options else sign)
    found = {"process": read.process, "predicts": read.predicts, "time": time, "steps": read.steps}
    head = VarianceHead(called) if read.learned_range else FirstHalf(called)
    return Denoiser(head, **{**found, **options})


def process_from_diffusers(config: Mapping[str, Any]) -> tuple[Process, str, int]:
    """(process, predicts, steps) of a diffusers scheduler or its configuration.

    Step i of N is at t = (i+1)/N of `VP.from_betas`. With rescale_betas_zero_snr alpha at t = 1 is
    next to 0 instead of 0, so that every read-out exists. See `read_scheduler` for all that is
    read.
    Raises ValueError for classes, schedules and prediction types that are not known.
    """
    read = read_scheduler(config)
    return read.process, read.predicts, read.steps
