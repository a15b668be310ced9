"""The scheduler that takes the place of a pipeline's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME, SchedulerMixin
from torch import Tensor

from ..kernels.checks import FLOATS
from ..kernels.errors import InvalidType, InvalidValue, RunFailure
from ..kernels.shapes import as_float64, column
from ..models import Denoiser
from ..models.adapters.schedulers import KNOWN
from ..models.processes import Flow, TabledVP
from ..models.processes.process import count
from ..models.readout import convert
from ..solvers import SpectralTable, Tableau, grids
from ..solvers.arguments import whole
from ..solvers.cache import Cache
from .run import GridLike, Run, SolverLike, solver_of
from .spacing import (
    APART,
    OWN,
    RATIO,
    Nodes,
    class_of,
    clipping,
    defaults_of,
    of_grid,
    of_table,
    reading_of,
    theirs,
    time_of_told,
    uniform,
)
from .underway import Generators, Underway, check_generators

RUNS = Cache(64)  # of `set_timesteps`: schedulers of one kind share them


class StepOutput:
    """What `step` returns: by name, or by place as a tuple.

    prev_sample: the state at the next timestep, [B, ...].
    pred_original_sample: the estimate D of the sample before the step, [B, ...]; made when asked.
    """

    def __init__(self, prev_sample: Tensor, denoised: Callable[[], Tensor]) -> None:
        self.prev_sample = prev_sample
        self._denoised = denoised

    @property
    def pred_original_sample(self) -> Tensor:
        return self._denoised()

    def to_tuple(self) -> tuple[Tensor, Tensor]:
        return self.prev_sample, self.pred_original_sample

    def __getitem__(self, key: int | str) -> Tensor:
        if key in (0, "prev_sample"):
            return self.prev_sample
        if key in (1, "pred_original_sample"):
            return self.pred_original_sample
        raise KeyError(key)


class UndiffuseScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any solver of undiffuse as the scheduler of a diffusers pipeline.

        pipe.scheduler = UndiffuseScheduler.from_scheduler(pipe.scheduler, solver="dpmpp-2m")

    solver: a registered name (`ud.solvers.names()`), the JSON file of a tuned table or of
        statistics, or a solver or table itself (which then cannot be saved). Default 'relay'.
    grid: None for the pipeline's own spacing, as its class and configuration lay it; else a name or
        a `Grid` of undiffuse, or times of the process. Default None.
    final: how a grid of ours ends, see `ud.solvers.times`; default 'denoise'. The pipeline's own
        spacing ends where its class ends.
    seed: of the noise where `step` is given no generator. Default None: drawn from torch's global
        generator at the first step, so that torch.manual_seed fixes it.
    source: name of the pipeline's scheduler class; default 'DDPMScheduler', the class whose
        defaults then count.
    configuration: all other keys are those of the source's configuration. Its schedule, prediction
        type, spacing, clipping and thresholding count; its method and order do not.

    The pipeline's states stay what they were: x = alpha x_0 + sigma eps, or x/alpha where its class
    has them so (Euler, Heun, LMS, ...). `num_inference_steps` means steps; `nfe` is the number of
    network calls, which is `len(timesteps)`.

    Raises ValueError or TypeError for a scheduler class that is not known, or a solver that a
    pipeline cannot step.
    """

    config_name = SCHEDULER_CONFIG_NAME
    _compatibles = sorted(KNOWN)

    def __init__(
        self,
        solver: SolverLike = "relay",
        grid: GridLike = None,
        final: str | None = None,
        seed: int | None = None,
        source: str = "DDPMScheduler",
        **configuration: Any,
    ) -> None:
        solver = os.fspath(solver) if isinstance(solver, os.PathLike) else solver
        if final is not None and final not in grids.FINALS:
            raise InvalidValue(f"final must be one of {', '.join(grids.FINALS)}; got {final!r}")
        if final is not None and grid is None:
            raise InvalidValue(f"final={final!r} is for a grid of ours: name one with grid=")
        if isinstance(grid, str):
            grids.named(grid)
        reading = reading_of(source, configuration)
        defaults = defaults_of(source)
        if unknown := configuration.keys() - defaults.keys():
            raise InvalidType(
                f"{', '.join(sorted(unknown))}: no argument of UndiffuseScheduler and no key of "
                f"{source}'s configuration"
            )
        own = {"solver": solver, "grid": grid, "final": final, "seed": seed, "source": source}
        self.register_to_config(**{**defaults, **configuration, **own})
        clip, self._threshold = clipping(source, configuration)
        self._reading, self._sign = reading, reading.sign
        self.model = Denoiser(
            _no_network,
            reading.process,
            predicts="data" if self._threshold else reading.predicts,
            time=reading.time,
            steps=reading.steps,
            clip=clip,
        )
        self._solver = solver_of(solver, self.model)
        self._ratio = source in RATIO and isinstance(reading.process, TabledVP)
        kept = {k: v for k, v in self.config.items() if k not in ("solver", "seed")}
        self._plain = tuple(sorted(kept.items()))
        self._at: Underway | None = None
        self._begin_index: int | None = None
        self.num_inference_steps: int | None = None

    # --- making, saving and loading -----------------------------------------------------------

    @classmethod
    def from_scheduler(cls, scheduler: Any, **options: Any) -> UndiffuseScheduler:
        """The scheduler for a pipeline whose own is `scheduler`, an object; see the class."""
        config = getattr(scheduler, "config", None)
        if isinstance(scheduler, type) or config is None:
            raise InvalidType(f"scheduler must be a scheduler object; got {scheduler!r:.80}")
        named = {**config, "_class_name": type(scheduler).__name__}
        made: UndiffuseScheduler = cls.from_config(named, **options)
        return made

    @classmethod
    def from_config(  # type: ignore[no-untyped-def]
        cls, config=None, return_unused_kwargs: bool = False, **options
    ):
        """The scheduler for a configuration of the pipeline's own, e.g. pipe.scheduler.config.

        config: of a scheduler object, the dict of a scheduler_config.json, or one of ours.
        options: arguments of the class, and keys of the configuration that are to be others.
        Raises ValueError where the configuration does not say which class it is of.
        """
        if not isinstance(config, dict):
            raise InvalidType(
                f"config must be a scheduler's configuration; got {type(config).__name__}"
            )
        given = {**config}
        name = class_of(given)
        if name == cls.__name__:
            name = given.get("source", "DDPMScheduler")
        else:
            given = {k: v for k, v in given.items() if k not in OWN}
            given["source"] = name
        taken = OWN | defaults_of(name).keys()
        made = cls(**{**{k: v for k, v in given.items() if k in taken}, **options})
        # what is left of a class that was swapped out stays, as diffusers keeps it
        rest = {k: v for k, v in given.items() if k not in taken and not k.startswith("_")}
        made.register_to_config(**rest)
        return (made, {}) if return_unused_kwargs else made

    def to_json_string(self) -> str:
        """The configuration as JSON. Raises TypeError where solver or grid is an object."""
        for key in ("solver", "grid"):
            value = self.config[key]
            if not isinstance(value, str | list | tuple | type(None)):
                raise InvalidType(
                    f"{key}={value!r:.60} cannot be saved: name it, or save a table with its own "
                    "save(path) and give that file's name"
                )
        text: str = super().to_json_string()
        return text

    def __repr__(self) -> str:
        own = ", ".join(f"{k}={self.config[k]!r:.60}" for k in ("solver", "grid", "source"))
        return f"UndiffuseScheduler({own})"

    # --- where the network is called ----------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        **further: Any,
    ) -> None:
        """Lay the grid of a run, and begin it anew.

        num_inference_steps: steps, >= 1.
        device: of `timesteps`.
        timesteps: the nodes, as the network is told them, falling.
        sigmas: the nodes, as the pipeline's own class takes them; falling. Equal steps from 1 to
            1/n, which pipelines of flows hand over unasked, only say how many where `grid` is ours.
            Some flows (CogView4, GLM-Image) give both: their networks are told `timesteps`.
        mu: of dynamic shifting, for the pipeline's own spacing.
        further: other arguments of its set_timesteps.
        Raises ValueError where the nodes do not fall, are not a sampler's, or are given twice.
        """
        if num_inference_steps is not None:
            num_inference_steps = count("num_inference_steps", num_inference_steps)
        place = torch.device("cpu" if device is None else device)
        laid = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu, **further}

        def make() -> Run:
            nodes = self._nodes(num_inference_steps, laid)
            made = Run(self.model, self._solver, nodes, place, self._name, self._ratio)
            made.walk(0, place, torch.float32)  # what cannot be walked is refused here
            return made

        asked = tuple(sorted(laid.items()))
        parts = (self._solver, self._plain, num_inference_steps, asked)
        run = RUNS.get(parts, place, make)
        self._at, self._begin_index = Underway(run, self.config["seed"]), None
        self.num_inference_steps = run.steps if num_inference_steps is None else num_inference_steps

    def _nodes(self, steps: int | None, laid: dict[str, Any]) -> Nodes:
        """Where a run calls the network; laid: what `set_timesteps` was given."""
        grid, sigmas = self.config["grid"], laid["sigmas"]
        apart = grid is None and self.config["source"] in APART
        if laid["timesteps"] is not None and sigmas is not None and not apart:
            raise InvalidValue("timesteps and sigmas both say where the steps are: leave one out")
        if steps is None and laid["timesteps"] is None and sigmas is None:
            raise InvalidValue("num_inference_steps, timesteps or sigmas must say how many steps")
        table = isinstance(self._solver, Tableau | SpectralTable)
        if grid is None and not table:
            return theirs(self.config["source"], self.config, self._reading, steps, **laid)
        if sigmas is not None and uniform(sigmas):
            steps, laid = len(sigmas), {**laid, "sigmas": None}
        ours = self._name if table else f"grid={grid!r:.40}"
        for what in [k for k, value in laid.items() if value is not None and k != "mu"]:
            raise InvalidValue(f"{what} and {ours} both say where the steps are: leave one out")
        if isinstance(self._solver, Tableau | SpectralTable):
            return of_table(self._solver, self._name, steps)
        return of_grid(grid, self.model, steps, self.config["final"] or "denoise")

    @property
    def _name(self) -> str:
        solver = self.config["solver"]
        return f"solver {solver!r:.60}"

    @property
    def timesteps(self) -> Tensor:
        """What the network is told at each call, noise to data; before a run those of training."""
        if self._at is None:
            return torch.arange(self._reading.steps - 1, -1, -1, device="cpu")
        return self._at.run.timesteps

    @property
    def sigmas(self) -> Tensor:
        """Noise levels of the calls and of the end: sigma/alpha, of a flow sigma; float32."""
        run, process = self._needed().run, self.model.process
        t = as_float64([*run.times, run.grid[-1]])
        level = process.sigma(t) if isinstance(process, Flow) else torch.exp(-process.log_snr(t))
        return level.float()

    @property
    def nfe(self) -> int:
        """Network calls of the run."""
        return len(self._needed().run.times)

    @property
    def order(self) -> int:
        """Calls a step, where all steps but the last make as many; else 1."""
        if self._at is not None:
            return self._at.run.order
        probe = self._solver
        if isinstance(probe, Tableau | SpectralTable):
            return 1
        process = self.model.process
        t = grids.times("log_snr", process, 4, "denoise", self.model.t_min)
        nodes = Nodes(t, {}, False, 1.0)
        return Run(self.model, probe, nodes, torch.device("cpu"), self._name).order

    @property
    def init_noise_sigma(self) -> float:
        """What the first noise is multiplied by, as in the pipeline's own scheduler."""
        return 1.0 if self._at is None else self._at.run.start

    @property
    def begin_index(self) -> int | None:
        """Where the run begins, an index of `timesteps`; None where the first step says it."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The index of the next call; None before the first step."""
        return None if self._at is None or self._at.row < 0 else self._at.row

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at this index of `timesteps`; the first step refuses one that is none."""
        self._begin_index = whole("begin_index", begin_index, 0)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 at the network's integer timesteps, float32 [N]."""
        t = as_float64(range(1, self._reading.steps + 1)) / self._reading.steps
        return self.model.process.alpha(t).square().float()

    def __len__(self) -> int:
        return int(self._reading.steps)

    # --- the steps ----------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is called with: the state, scaled for it where it has to be.

        Raises ValueError for a sample that the solver's statistics are not of.
        """
        if self._at is not None and self._at.run.spectral is not None:
            self._at.run.spectral.fits(sample.shape)
        if self.model.predicts != "edm" and not self._ratio:
            return sample
        at = self._needed()
        row = None if timestep is None else at.row_of(timestep, self._begin_index)
        row = at.row if row is None else row
        scaled: Tensor = sample * at.run.scales[max(row, 0)]
        return scaled

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        **further: Any,
    ) -> StepOutput | tuple[Tensor, ...]:
        """The state at the next timestep.

        model_output: what the network returned at this one, [B, ...]; of an output with twice the
            channels the first half.
        timestep: one of `timesteps`, in their order.
        sample: the state, [B, ...]; where the pipeline changed it since the last step, that counts.
        generator: draws the noise as diffusers does, one for the batch or a list of one a sample.
            None: noise by counter, by `seed`.
        return_dict: a `StepOutput`, or a tuple that begins with the new state.
        further: what pipelines hand to the step of one class, where it asks for nothing: eta=0.0,
            use_clipped_model_output=False, and the next timestep as prev_timestep.
        Raises ValueError for a timestep out of turn, and for `further` that asks for something.
        """
        at = self._needed()
        if further:
            at.asks_nothing(further)
        for name, value in (("model_output", model_output), ("sample", sample)):
            if not isinstance(value, Tensor):
                raise InvalidType(f"{name} must be a tensor; got {type(value).__name__}")
        if generator is not None:
            check_generators(generator, len(sample))
        state = at.arrive(timestep, sample, self._begin_index, generator is not None)
        out = self._heard(at, model_output, sample)
        sampler, i = at.walk.sampler, at.row - at.walk.offset
        noise = None if generator is None else at.normals(i, generator, model_output)
        alike = out.shape == state.x.shape and out.device == state.x.device
        if noise is None and alike and out.dtype in FLOATS and out.is_contiguous():
            after = sampler._step(state, i, out, trusted=True)
        else:
            after = sampler.tell(state, out, noise=noise)
        x = at.leave(after, sample.dtype)
        readout = sampler.plan.skip[i], sampler.plan.scale[i]

        def denoised() -> Tensor:
            """D of the state before the row."""
            d = readout[0] * state.x + readout[1] * out.to(state.x.dtype)
            d = d if self.model.clip is None else d.clamp(*self.model.clip)
            return d.to(x.dtype)

        if return_dict:
            return StepOutput(x, denoised)
        # pipelines of LCM take both
        return (x, denoised()) if self.config["source"] == "LCMScheduler" else (x,)

    def _needed(self) -> Underway:
        if self._at is None:
            raise RunFailure("set_timesteps must be called before the first step")
        return self._at

    def _heard(self, at: Underway, out: Tensor, sample: Tensor) -> Tensor:
        """The network's output as the table takes it."""
        if out.ndim == sample.ndim > 1 and out.shape[1] == 2 * sample.shape[1]:
            out = out[:, : sample.shape[1]]
        if self._sign != 1:
            out = self._sign * out
        if self._threshold is None:
            return out
        t = as_float64(at.run.times[at.row])
        process, kind = self.model.process, self._reading.predicts
        skip, scale = map(float, convert(process, t, kind, "data", self.model.sigma_data))
        return _dynamic(skip * at.x + scale * out, *self._threshold)

    # --- noise --------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The pipeline's state at timesteps [B] of the run, else of training.

        alpha x_0 + sigma noise, or that divided by alpha; see the class.
        """
        alpha, sigma = self._levels(timesteps, original_samples, self._ratio)
        return alpha * original_samples + sigma * noise

    def scale_noise(
        self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """`add_noise` with its arguments as schedulers of flows have them."""
        if noise is None:
            raise InvalidValue("noise must be a tensor of sample's shape; got None")
        return self.add_noise(sample, noise, torch.as_tensor(timestep).reshape(-1))

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha noise - sigma x_0 at timesteps [B]."""
        alpha, sigma = self._levels(timesteps, sample)
        return alpha * noise - sigma * sample

    def _levels(self, timesteps: Tensor, x: Tensor, ratio: bool = False) -> tuple[Tensor, Tensor]:
        """alpha and sigma [B, 1, ...] at timesteps, in x's type; ratio: both over alpha."""
        told = torch.as_tensor(timesteps).reshape(-1)
        t = as_float64([self._time_of(v) for v in told.tolist()])
        if len(t) not in (1, len(x)):
            none = "" if len(t) else ": strength is so small that it leaves no step of the run"
            raise InvalidValue(
                f"timesteps must be one, or {len(x)} as there are samples; got {len(t)}{none}"
            )
        process = self.model.process
        levels = process.alpha(t), process.sigma(t)
        levels = (torch.ones_like(t), levels[1] / levels[0]) if ratio else levels
        alpha, sigma = (column(v, x) if len(v) > 1 else v[0].to(x) for v in levels)
        return alpha, sigma

    def _time_of(self, told: float) -> float:
        """The process's time of a timestep: of the next row, of another, or of training."""
        if self._at is not None and told in self._at.run.told:
            run = self._at.run
            row = self._at.row if self._at.row >= 0 else self._begin_index
            if row is None or row >= len(run.told) or run.told[row] != told:
                row = run.told.index(told)
            t: float = run.times[row]  # churn begins above t_max
            return t
        return float(self.model.process.inside(time_of_told(self._reading, as_float64([told])))[0])


def _dynamic(d: Tensor, ratio: float, most: float) -> Tensor:
    """Dynamic thresholding with an upper limit on s (Saharia et al. 2022, 2.3; diffusers')."""
    s = torch.quantile(d.float().flatten(1).abs(), ratio, 1).clamp(1.0, most)
    s = column(s, d)
    return torch.minimum(torch.maximum(d, -s), s) / s


def _no_network(x: Tensor, t: Tensor) -> Tensor:
    raise RunFailure("a scheduler has no network: the pipeline calls it")


__all__ = ["StepOutput", "UndiffuseScheduler"]
