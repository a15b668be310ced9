"""The training loop and all of its state.

    theta <- AdamW(theta, clip(grad L), lr(k)),   lr(k) = lr min(1, k/warm) (1 + cos(pi k/n))/2
    ema   <- d ema + (1 - d) theta,               d = min(ema, (1 + k)/(10 + k))

Every random number of a run comes from one generator, which is part of the state.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ...kernels.checks import whole
from ...kernels.errors import InvalidType, InvalidValue, RunFailure
from ...kernels.files import atomically, write_tensors, write_text
from ..checkpoint import Checkpoint, load
from ..data.formats import UNREADABLE
from ..data.sets import Data
from ..denoiser import Denoiser
from ..dequantize import fill
from ..networks import network_for
from ..processes import LearnedVP, Process, registry
from ..progress import bar
from ..readout import READOUTS, TIME_CONVENTIONS, convert, time_scale

Loss = Callable[..., Tensor]
Tensors = tuple[Tensor, ...] | list[Tensor]
_CHECK = 50  # steps between looks at the losses: each look is a synchronisation on a device


class TrainingError(RunFailure):
    """The loss or its gradient was not finite at `step`; earlier checkpoints stand."""

    def __init__(self, step: int, value: float, kept: Path | None) -> None:
        where = f"the last good checkpoint is {kept}" if kept else "nothing was kept (out=None)"
        super().__init__(
            f"loss or gradient is {value} at step {step}; {where}. Lower lr, or look at the data"
        )
        self.step = step


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training run is, but for its data and process; recorded in checkpoints.

    steps: of the optimiser, >= 1.
    batch: events a step, >= 1.
    lr: peak learning rate, 0 < lr <= 1 (AdamW moves a weight by about lr a step).
    ema: decay of the averaged weights, 0 <= ema < 1.
    seed: 64 bits.
    clip: largest norm of the gradient, > 0.
    weight_decay: AdamW's, >= 0.
    warmup: steps in which the learning rate rises, >= 0.
    every: steps between checkpoints, >= 1.
    held_out: fraction of the events that is not trained on, 0 <= held_out < 1.
    dequantize: fill the width of the levels of quantised data with uniform noise.
    conditional: give the network the labels.
    drop_label: how often one is left out, 0 to 1.
    bfloat16: run the network in it by autocast (weights and moments stay float32); None: on CUDA.

    Raises ValueError or TypeError, naming the field.
    """

    steps: int = 10_000
    batch: int = 256
    lr: float = 2e-3
    ema: float = 0.999
    seed: int = 0
    clip: float = 1.0
    weight_decay: float = 0.0
    warmup: int = 200
    every: int = 1000
    held_out: float = 0.2
    dequantize: bool = True
    conditional: bool = False
    drop_label: float = 0.1
    bfloat16: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("every", 1), ("warmup", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise InvalidType(f"{name} must be a whole number >= {least}; got {value!r}")
            if value < least:
                raise InvalidValue(f"{name} must be >= {least}; got {value}")
        whole("seed", self.seed, -(2**63), 2**64)
        for name, holds, words in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidType(f"{name} must be a number; got {value!r}")
            if not (math.isfinite(value) and holds(value)):
                raise InvalidValue(f"{name} must {words}; got {value}")
        for name in ("dequantize", "conditional", "bfloat16"):
            value = getattr(self, name)
            if not (isinstance(value, bool) or (value is None and name == "bfloat16")):
                raise InvalidType(f"{name} must be True or False; got {value!r}")

    def learning_rate(self, step: int) -> float:
        """lr(k) of the module's first lines, k = 0..steps-1."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("lr", lambda v: v > 0, "be > 0"),
    ("lr", lambda v: v <= 1, "be <= 1, since AdamW moves a weight by about lr a step"),
    ("ema", lambda v: 0 <= v < 1, "lie in [0, 1)"),
    ("clip", lambda v: v > 0, "be > 0"),
    ("weight_decay", lambda v: v >= 0, "be >= 0"),
    ("held_out", lambda v: 0 <= v < 1, "lie in [0, 1)"),
    ("drop_label", lambda v: 0 <= v <= 1, "lie in [0, 1]"),
)


class Trainer:
    """One training run: everything that changes from step to step, and how it is kept."""

    def __init__(
        self,
        data: Data,
        process: Process,
        settings: Settings,
        loss: Loss,
        *,
        predicts: str,
        network: tuple[str, dict[str, Any]],
        time: str | None,
        sigma_data: float | None,
        out: Path | None,
        device: torch.device,
    ) -> None:
        self.settings, self.loss, self.out, self.device = settings, loss, out, device
        self.data = data
        train, held = data.split(settings.held_out)
        self.x, self.held = train.x.to(device), held.x[:1024].to(device)
        self.labels = self.held_labels = None
        name, config = network
        if settings.conditional:
            if train.labels is None or held.labels is None or data.labels is None:
                raise InvalidValue(f"conditional=True needs labels; data {data.name!r} has none")
            self.labels, self.held_labels = train.labels.to(device), held.labels[:1024].to(device)
            config = {"classes": int(data.labels.max()) + 1, **config}
        if time is None:
            time = "edm" if float(process.alpha(process.t_max)) > 0 else "continuous"
        if callable(time) or time in TIME_CONVENTIONS:  # others are refused below
            config = {"time_scale": time_scale(process, time), **config}
        with torch.random.fork_rng(devices=[]):  # the initial weights belong to the seed alone
            torch.manual_seed(settings.seed)
            net = network_for(name, data.event_shape, **config)
        self.network = (name, dict(net.config))  # type: ignore[arg-type]
        if sigma_data is None:
            sigma_data = round(float(train.x.double().square().mean().sqrt()), 4)
        self.start = registry.to_dict(process)  # before a schedule is learned
        self.net, process = _trained(net, process, device)
        _can_be_sampled(process, predicts, sigma_data)
        self.denoiser = Denoiser(net, process, predicts=predicts, time=time, sigma_data=sigma_data)
        self.denoiser.network_time(torch.tensor(process.t_max, dtype=torch.float64, device="cpu"))
        self.average = AveragedModel(self.net, multi_avg_fn=self._average)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.recent: list[Tensor] = []

    # --- the loop ------------------------------------------------------------------------------

    def advance(self, progress: bool) -> None:
        """Run to the last step, with a checkpoint every `every` steps and at the end.

        progress: show the steps, the loss and the held-out loss on standard error.
        """
        settings, held, shown = self.settings, "", self.step
        with bar(progress) as shows:
            shows.say("training")
            shows.total(settings.steps - self.step)
            while self.step < settings.steps:
                self._one_step()
                save = self.step == settings.steps or self.step % settings.every == 0
                if save or self.step % _CHECK == 0:
                    self._look(save)
                    row = self.history[-1]
                    held = f", held out {row['held_out']:.4f}" if "held_out" in row else held
                    shows.say(f"training, loss {row['loss']:.4f}{held}")
                    shows.advance(self.step - shown)
                    shown = self.step
                if save:
                    self._keep()

    def _one_step(self) -> None:
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate(self.step)
        x_0, cond = self._batch()
        loss = self._evaluate(self.denoiser, x_0, self.generator, cond)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), settings.clip)
        self.optimizer.step()
        self.average.update_parameters(self.net)
        self.recent.append(torch.stack([loss.detach(), norm]))
        self.step += 1

    def _evaluate(
        self, model: Denoiser, x_0: Tensor, generator: torch.Generator, cond: dict[str, Tensor]
    ) -> Tensor:
        enabled = self.settings.bfloat16
        if enabled is None:
            enabled = self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            return self.loss(model, x_0, generator, **cond).mean()

    def _batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        g, n = self.generator, self.settings.batch
        index = torch.randint(len(self.x), (n,), generator=g, device=self.device)
        x_0 = self._dequantized(self.x[index], g)
        if self.labels is None:
            return x_0, {}
        dropped = (
            torch.rand(n, generator=g, dtype=torch.float32, device=self.device)
            < self.settings.drop_label
        )
        return x_0, {"label": torch.where(dropped, -1, self.labels[index])}

    def _dequantized(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x + U(-spacing/2, spacing/2), if asked: a density for data that have levels."""
        if not (self.settings.dequantize and self.data.spacing):
            return x
        u = torch.rand(x.shape, generator=generator, dtype=torch.float32, device=x.device)
        return fill(x, self.data.spacing, u)

    def _average(self, averaged: Tensors, current: Tensors, count: int | Tensor) -> None:
        # `count` lives on the device; the step is the same number without a synchronisation
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    # --- what is looked at and kept -------------------------------------------------------------

    def _look(self, evaluate: bool) -> None:
        """Move the recent losses into the history; raises where one was not finite."""
        recent = torch.stack(self.recent).double().cpu()
        bad = (~torch.isfinite(recent)).any(1).nonzero().flatten()
        if len(bad):
            first = int(bad[0])
            value = next(v for v in recent[first].tolist() if not math.isfinite(v))
            kept = self.out / "model.safetensors" if self.out else None
            step = self.step - len(recent) + first + 1
            raise TrainingError(step, value, kept if kept and kept.exists() else None)
        self.recent.clear()
        loss, norm = recent.mean(0).tolist()
        row = {"step": self.step, "loss": loss, "grad_norm": norm}
        if evaluate and len(self.held):
            row["held_out"] = self.held_out_loss()
        self.history.append(row)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss of the averaged weights on held-out events, always at the same noise."""
        g = torch.Generator(self.device).manual_seed(1)
        cond = {} if self.held_labels is None else {"label": self.held_labels}
        x_0 = self._dequantized(self.held, g)
        return float(self._evaluate(self.averaged(), x_0, g, cond))

    def averaged(self) -> Denoiser:
        """The denoiser of the averaged weights, and of the averaged schedule if one is learned."""
        module = self.average.module.eval().requires_grad_(False)
        if not isinstance(module, nn.ModuleList):
            return dataclasses.replace(self.denoiser, net=module)
        net, omega = module
        return dataclasses.replace(self.denoiser, net=net, process=LearnedVP(omega))

    def _description(self) -> dict[str, Any]:
        """What makes this run this run; equal descriptions give equal bits."""
        model = self.denoiser
        return {
            "data": self.data.name,
            "events": len(self.data),
            "split": {"held_out": self.settings.held_out, "seed": 0},
            "process": self.start,
            "network": list(self.network),
            "predicts": model.predicts,
            "time": model.time,
            "sigma_data": model.sigma_data,
            "objective": _describe(self.loss),
            "settings": dataclasses.asdict(self.settings),
        }

    def _keep(self) -> None:
        if self.out is None:
            return
        training = {**self._description(), "step": self.step, **self.history[-1]}
        Checkpoint(
            self.averaged(),
            self.data.event_shape,
            self.data.range,
            self.data.spacing,
            self.network,
            training,
        ).save(self.out / "model.safetensors")
        state = {
            "description": json.dumps(self._description()),
            "step": self.step,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "history": self.history,
        }
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        write_text(self.out / "loss.jsonl", lines)
        plot(self.history, self.out / "loss.png")
        # last: what a killed run did not write belongs to a step that it will come to again
        write_tensors(self.out / "state.pt", state)

    def restore(self) -> None:
        """Take up the state in `out`, if there is one of this very run.

        A finished run whose other files are gone or damaged gets them again.
        """
        path = None if self.out is None else self.out / "state.pt"
        if path is None or not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            theirs = json.loads(state["description"])
            parts = {k: state[k] for k in ("net", "average", "optimizer", "generator")}
            step, history = int(state["step"]), list(state["history"])
        except _DAMAGED as e:
            raise _not_resumable(path, e) from None
        ours = json.loads(json.dumps(self._description()))
        for key in ours:
            if ours[key] != theirs.get(key):
                raise InvalidValue(
                    f"{path} is of a run with other arguments: {key} was {theirs.get(key)}, is now "
                    f"{ours[key]}; choose another out, or start over with resume=False, or "
                    "--restart"
                )
        try:
            self.net.load_state_dict(parts["net"])
            self.average.load_state_dict(parts["average"])
            self.optimizer.load_state_dict(parts["optimizer"])
            self.generator.set_state(parts["generator"])
        except _DAMAGED as e:
            raise _not_resumable(path, e) from None
        self.step, self.history = step, history
        if step >= self.settings.steps and not self._is_kept():
            self._keep()

    def _is_kept(self) -> bool:
        """Whether the network on the disk can be read and is of this step."""
        assert self.out is not None
        try:
            return load(self.out / "model.safetensors").training.get("step") == self.step
        except (InvalidValue, OSError):
            return False


_DAMAGED = (*UNREADABLE, TypeError, AttributeError, IndexError, RecursionError)


def _not_resumable(path: Path, error: Exception) -> InvalidValue:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InvalidValue(
        f"{path} cannot be resumed from, it is damaged ({why:.200}); start over with resume=False, "
        "or --restart"
    )


def _can_be_sampled(process: Process, predicts: str, sigma_data: float) -> None:
    """Raises ValueError where the data cannot be told from the prediction at the start of
    sampling."""
    last = torch.tensor(process.t_max, dtype=torch.float64, device="cpu")
    if predicts not in READOUTS or not sigma_data > 0:
        return  # which the denoiser says better
    try:
        convert(process, last, predicts, "data", sigma_data)
    except InvalidValue:
        raise InvalidValue(
            f"predicts={predicts!r} says nothing of the data at t={float(last):g} of {process}, "
            "where alpha is 0: a network so trained could not be sampled from; train with "
            "predicts='v', 'edm' or 'flow', or end the process before, e.g. Flow(t_max=0.999)"
        ) from None


def plot(history: list[dict[str, float]], path: Path) -> None:
    """The loss curve as a PNG, where matplotlib is installed; a bound may be negative."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    positive = all(r["loss"] > 0 and r.get("held_out", 1) > 0 for r in history)
    scale = "log" if positive else "linear"
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale=scale)
    axes.plot([r["step"] for r in history], [r["loss"] for r in history], label="training", lw=0.8)
    held = [(r["step"], r["held_out"]) for r in history if "held_out" in r]
    if held:
        axes.plot(*zip(*held, strict=True), "o-", ms=3, label="held out, averaged weights")
    axes.legend()
    atomically(path, lambda p: figure.savefig(p, format="png", dpi=120))


def _trained(net: nn.Module, process: Process, device: torch.device) -> tuple[nn.Module, Process]:
    """(what has parameters, process): the network, or a list of it and a copy of the schedule."""
    net.to(device)
    if not (isinstance(process, LearnedVP) and isinstance(process.omega, nn.Module)):
        return net, process
    omega = copy.deepcopy(process.omega).to(device)
    return nn.ModuleList([net, omega]), LearnedVP(omega)


def _describe(loss: Loss) -> Any:
    if dataclasses.is_dataclass(loss) and not isinstance(loss, type):
        return {"name": type(loss).__name__, **dataclasses.asdict(loss)}
    return getattr(loss, "__qualname__", type(loss).__qualname__)
