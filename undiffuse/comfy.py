"""Our solvers and grids in ComfyUI: two nodes, and names in the menus of its own nodes.

In `ComfyUI/custom_nodes/undiffuse/__init__.py`:

    from undiffuse.comfy import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, register
    register()

The nodes give a SAMPLER and SIGMAS for SamplerCustom; `register` adds names with the prefix `ud_`
to KSampler's lists of samplers and schedulers. ComfyUI is imported when either is used.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import k_diffusion
from .kernels.errors import InvalidValue, optional
from .models import EDM, VP, Flow, Process
from .solvers import arguments
from .solvers.tables.grids import GRIDS, Discrete

PREFIX = "ud_"
MENU = (
    "relay", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_sde", "er_sde_3", "euler",
    "euler_ancestral", "heun", "ipndm_3", "restart", "rk4_flow", "sa_solver", "seeds_2", "unipc_3",
    "vab_4",
)  # fmt: skip
"""Samplers that `register` adds where none are named."""


def samplers() -> list[str]:
    """Names of all solvers, as k-diffusion would write them."""
    first = "sample_"
    names = (name.removeprefix(first) for name in dir(k_diffusion) if name.startswith(first))
    return [name for name in names if name not in ("dpm_adaptive", "dpm_fast")]


def schedulers() -> list[str]:
    """Names of all grids."""
    return sorted(GRIDS)


def sampler(name: str) -> Callable[..., Tensor]:
    """The function of that name. Raises ValueError with the nearest known name otherwise."""
    found: Callable[..., Tensor] = getattr(
        k_diffusion, f"sample_{arguments.choice('solver', name, samplers())}"
    )
    return found


def options_of(name: str, text: str) -> dict[str, Any]:
    """Options of a sampler written as `eta=0.5, s_noise=1.003`.

    Raises ValueError for what cannot be read, TypeError for an option that it does not have.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        found = {str(part.arg): ast.literal_eval(part.value) for part in call.keywords}
    except (SyntaxError, ValueError):
        raise InvalidValue(
            f"options must be written as name=value, name=value; got {text!r}"
        ) from None
    known = (p.name for p in _keywords(sampler(name)))
    arguments.keywords(f"sample_{name}", found, known)
    return found


def _keywords(function: Callable[..., Tensor]) -> list[Any]:
    own = inspect.signature(function).parameters.values()
    return [p for p in own if p.kind == p.KEYWORD_ONLY and p.name != "noise_sampler"]


def process_of(model_sampling: Any) -> Process:
    """The process of ComfyUI's `model_sampling`, which says in whose times a grid is laid.

    A flow is of a class CONST, a table of levels of ModelSamplingDiscrete; others have a range.
    """
    kinds = {c.__name__ for c in type(model_sampling).__mro__}
    low, high = (float(getattr(model_sampling, f"sigma_{end}")) for end in ("min", "max"))
    if "CONST" in kinds:
        return Flow(low, min(high, 1.0))
    if "ModelSamplingDiscrete" in kinds:
        levels = model_sampling.sigmas.detach().to("cpu", torch.float64)
        return VP.from_alphas_cumprod(1 / (1 + levels.square()))
    return EDM(low, high)


def scheduler(model_sampling: Any, steps: int, grid: str) -> Tensor:
    """Levels of the grid for ComfyUI's `model_sampling`: float32 [steps + 1], the last one 0.

    A table's grid ends at its first level; a grid counted in the steps of a network is for tables.
    """
    process = process_of(model_sampling)
    chosen = GRIDS[arguments.choice("grid", grid, GRIDS)]
    if isinstance(chosen, Discrete) and not hasattr(process, "betas"):
        raise InvalidValue(
            f"grid {grid!r} counts the steps of a network of discrete time, which "
            f"{type(model_sampling).__name__} has not: choose another, e.g. 'blend'"
        )
    least = 1 / len(process.betas) if hasattr(process, "betas") else None
    return k_diffusion.levels_of(chosen, process, steps, t_min=least)


class UndiffuseSampler:
    """A node that gives a SAMPLER."""

    RETURN_TYPES: ClassVar = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "A solver of undiffuse. Options are written as: eta=0.5, s_noise=1.003"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "solver": (samplers(), {"default": "relay"}),
                "options": ("STRING", {"default": "", "multiline": False}),
            }
        }

    def get_sampler(self, solver: str, options: str = "") -> tuple[Any]:
        """(KSAMPLER,) of the solver with these options. Raises ValueError and TypeError."""
        chosen = options_of(solver, options)
        return (_module("comfy.samplers").KSAMPLER(sampler(solver), extra_options=chosen),)


class UndiffuseScheduler:
    """A node that gives SIGMAS."""

    RETURN_TYPES: ClassVar = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = "sampling/custom_sampling/schedulers"
    DESCRIPTION = "A grid of undiffuse, laid in the model's own times."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "scheduler": (schedulers(), {"default": "blend"}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def get_sigmas(
        self, model: Any, scheduler: str, steps: int, denoise: float = 1.0
    ) -> tuple[Tensor]:
        """([steps + 1],): the last steps of steps/denoise; none where denoise is 0."""
        share = arguments.finite("denoise", denoise)
        if not 0 <= share <= 1:
            raise InvalidValue(f"denoise must lie in [0, 1]; got {share}")
        steps = arguments.whole("steps", steps)
        if share == 0:
            return (torch.zeros(0, device="cpu"),)
        whole = math.floor(steps / share + 1e-9)
        sigmas = _grid(model.get_model_object("model_sampling"), whole, scheduler)
        return (sigmas[-(steps + 1) :],)


_grid = scheduler

NODE_CLASS_MAPPINGS = {
    "UndiffuseSampler": UndiffuseSampler,
    "UndiffuseScheduler": UndiffuseScheduler,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "UndiffuseSampler": "Sampler (undiffuse)",
    "UndiffuseScheduler": "Scheduler (undiffuse)",
}


def register(
    solvers: Sequence[str] | None = None, grids: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Add solvers and grids, as `ud_<name>`, to the menus of KSampler; twice does no harm.

    solvers: names of `samplers()`, by default `MENU`.
    grids: names of `schedulers()`, by default all.
    Returns the names that the menus show. Raises ImportError outside ComfyUI, ValueError for a name
    that is not known.
    """
    host, functions = _module("comfy.samplers"), _module("comfy.k_diffusion.sampling")
    made: tuple[list[str], list[str]] = [], []
    for name in MENU if solvers is None else solvers:
        setattr(functions, f"sample_{PREFIX}{name}", sampler(name))
        made[0].append(PREFIX + name)
    for name in schedulers() if grids is None else grids:
        arguments.choice("grid", name, GRIDS)
        shown = PREFIX + name.replace("-", "_")
        host.SCHEDULER_HANDLERS[shown] = host.SchedulerHandler(partial(scheduler, grid=name), True)
        made[1].append(shown)
    lists = (
        (host.KSAMPLER_NAMES, host.SAMPLER_NAMES, host.KSampler.SAMPLERS),
        (host.SCHEDULER_NAMES, host.KSampler.SCHEDULERS),
    )
    for names, menus in zip(made, lists, strict=True):
        for menu in menus:  # some of them are one list
            menu.extend(name for name in names if name not in menu)
    return made


def _module(name: str) -> Any:
    return optional(
        name,
        f"{name} is part of ComfyUI, which is not to be found here: call this from a folder in "
        "ComfyUI/custom_nodes",
    )
