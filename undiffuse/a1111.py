"""Our solvers and grids in the web UI of AUTOMATIC1111 and in Forge.

In `extensions/undiffuse/scripts/undiffuse_samplers.py`:

    from undiffuse.a1111 import register
    register()

adds samplers called `undiffuse ...` and schedules to the menus. It wants a version whose
`KDiffusionSampler` takes a function, A1111 1.6 or later. The UI's modules are imported by the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from . import k_diffusion
from .comfy import MENU, sampler
from .kernels.errors import optional
from .models import EDM
from .solvers import arguments
from .solvers.tables.grids import GRIDS, Discrete, times

EXTRAS = ("s_churn", "s_tmin", "s_tmax", "s_noise")
"""Settings that the UI hands over where `sampler_extra_params` names them."""


def label(name: str) -> str:
    """What the menu shows."""
    return "undiffuse " + name.replace("_", "-")


def sampler_options(name: str) -> dict[str, Any]:
    """What the UI must know: whether a sampler takes the UI's noise, and calls twice a step."""
    function: Any = sampler(name)
    process = EDM(0.03, 15.0)
    table = function.solver.tableau(process, times("karras", process, 8))
    found: dict[str, Any] = {}
    if table.stochastic:
        found["brownian_noise"] = True  # one seed an image, whatever the batch
    if table.nfe >= 12:
        found["second_order"] = True  # by which the UI counts network calls
    return found


def schedule(grid: str, n: int, sigma_min: float, sigma_max: float, device: Any) -> Tensor:
    """Levels of a grid as the UI asks for them: [n + 1], the last one 0."""
    return k_diffusion.grid_sigmas(grid, n, sigma_min, sigma_max, device=device)


def register(
    solvers: Sequence[str] | None = None, grids: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Add solvers and grids to the menus; twice does no harm.

    solvers: names as of k-diffusion, e.g. 'unipc_3'; by default `comfy.MENU`.
    grids: names of grids, by default all that are laid in sigma.
    Returns the labels. Raises ImportError outside the UI, ValueError for a name that is not known.
    """
    common, host = _module("modules.sd_samplers_common"), _module("modules.sd_samplers")
    runner = _module("modules.sd_samplers_kdiffusion")
    made: tuple[list[str], list[str]] = [], []
    for name in MENU if solvers is None else solvers:
        function, shown = sampler(name), label(name)
        parameters = inspect.signature(function).parameters
        runner.sampler_extra_params[function] = [key for key in EXTRAS if key in parameters]
        build = partial(runner.KDiffusionSampler, function)
        data = common.SamplerData(shown, build, [f"ud_{name}"], sampler_options(name))
        if shown not in host.all_samplers_map:
            host.all_samplers.append(data)
            host.all_samplers_map[shown] = data
        made[0].append(shown)
    host.set_samplers()
    menu = _module("modules.sd_schedulers")
    laid = [name for name, grid in GRIDS.items() if not isinstance(grid, Discrete)]
    for name in laid if grids is None else grids:
        arguments.choice("grid", name, laid)
        shown = label(name)
        if shown not in menu.schedulers_map:
            key = "ud_" + name.replace("-", "_")
            entry = menu.Scheduler(key, shown, partial(schedule, name))
            menu.schedulers.append(entry)
            menu.schedulers_map.update({key: entry, shown: entry})
        made[1].append(shown)
    return made


def _module(name: str) -> Any:
    return optional(
        name,
        f"{name} is part of the web UI, which is not to be found here: call this from a script of "
        "an extension",
    )
