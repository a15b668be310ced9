"""Training a network on data: AdamW, an exponential average of the weights, exact resume.

With `out`, every `every` steps four files are replaced, each whole or not at all:
`model.safetensors` (the average, ready to sample from), `state.pt` (all that the next step needs:
weights, average, moments, generator, history), `loss.jsonl` and `loss.png`. A run that was killed
goes on from `state.pt` and ends, on the CPU, with the bits of a run that was not.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue, no_such
from ...kernels.files import usable
from ..checkpoint import usable_device
from ..data.sets import Data, load
from ..denoiser import Denoiser
from ..processes import VP, LearnedVP, Process, registry
from ..variational import VLB, Hybrid
from .learned_schedule import LearnedSchedule
from .losses import LOSSES
from .trainer import Loss, Settings, Trainer

OBJECTIVES: dict[str, Loss] = {
    **LOSSES,
    "vlb": VLB(),
    "hybrid": Hybrid(),
    "learned": LearnedSchedule(),
}
"""Everything that `train` knows by name: `LOSSES`, the discrete bound, learned variances and the
learned schedule."""


def train(
    data: str | Path | Tensor | Data,
    process: Process | str | None = None,
    *,
    predicts: str = "edm",
    loss: str | Loss | None = None,
    network: str = "mlp",
    network_config: dict[str, Any] | None = None,
    time: str | None = None,
    sigma_data: float | None = None,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    resume: bool = True,
    **settings: Any,
) -> Denoiser:
    """Train a network; returns the denoiser of its averaged weights, in evaluation mode.

    data: what `load` takes. The round(held_out N) events of its split are never trained on.
    process: a process, its name, or None for VP(). A `LearnedVP` is copied and learned.
    predicts: as in `Denoiser`.
    time: as in `Denoiser`; 'edm' unless alpha = 0 at t_max, where that is infinite: then
        'continuous'. The network is told it at a scale of order one: its time_scale is 1/steps for
        'index', 1/80 for t up to 80, unless network_config has another.
    sigma_data: as in `Denoiser`; by default the training data's root mean square.
    loss: a name in OBJECTIVES, an `Objective`, or a callable (denoiser, x_0, generator, **cond)
        that returns one loss for each sample; None: 'uniform-snr', 'learned' for a `LearnedVP`.
    network, network_config: a name in NETWORKS and arguments of that class; outputs=2, a learned
        variance, is set for 'hybrid'.
    out: folder for checkpoints and the loss curve; None keeps everything in memory.
    resume: go on from out/state.pt if there is one.
    settings: the fields of `Settings` (steps, batch, lr, ema, seed, held_out, ...).

    Raises ValueError for bad arguments and where
    out holds a run with others, TrainingError (with `.step`) when the loss is not finite.
    """
    known = [f.name for f in dataclasses.fields(Settings)]
    if unknown := [name for name in settings if name not in known]:
        raise InvalidValue(f"settings must be among {', '.join(known)}; got {', '.join(unknown)}")
    chosen = Settings(**settings)
    process = _process(process)
    objective, config = _loss(loss, process), dict(network_config or {})
    where = usable_device(device)
    if isinstance(objective, Hybrid):
        config["outputs"] = 2
    if out is not None:
        usable(out, files=("model.safetensors", "state.pt", "loss.jsonl", "loss.png"))
    run = Trainer(
        load(data),
        process,
        chosen,
        objective,
        predicts=predicts,
        network=(network, config),
        time=time,
        sigma_data=sigma_data,
        out=None if out is None else Path(out),
        device=where,
    )
    if resume:
        run.restore()
        if run.step and progress:
            print(f"goes on after step {run.step} of {run.settings.steps}", file=sys.stderr)
    run.advance(progress)
    return run.averaged()


def _process(process: Process | str | None) -> Process:
    if process is None:
        return VP()
    if isinstance(process, Process):
        return process
    return registry.make(process)


def _loss(loss: str | Loss | None, process: Process) -> Loss:
    learned = isinstance(process, LearnedVP)
    if loss is None:
        loss = "learned" if learned else "uniform-snr"
    if not isinstance(loss, str):
        return loss
    if loss not in OBJECTIVES:
        raise no_such("loss", loss, [*OBJECTIVES, "a callable"])
    if learned != (loss == "learned"):
        raise InvalidValue(
            f"loss 'learned' and a learned process belong together; got {loss!r} and {process}"
        )
    return OBJECTIVES[loss]
