"""Where a diffusers scheduler calls the network, as times of a process.

The spacing (leading, trailing, Karras, shifted, ...) is laid by the pipeline's own class, so that
it is the pipeline's to the last option; here its timesteps and sigmas are read.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

from ..kernels.errors import InvalidType, InvalidValue
from ..models import Denoiser
from ..models.adapters import Reading, read_scheduler
from ..models.adapters.modules import Linear
from ..models.adapters.schedulers import KNOWN, REFUSED, REMEDY
from ..models.processes import EDM, Flow, TabledVP
from ..solvers import SpectralTable, Tableau, grids
from ..solvers.cache import Cache

OWN = frozenset(["solver", "grid", "final", "seed", "source"])
"""Keys of UndiffuseScheduler itself; all others are the pipeline's scheduler's."""
RATIO = frozenset(
    [
        "DPMSolverSDEScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
    ]
)
"""Classes whose pipelines hold x/alpha, which they scale by alpha for the network."""
NO_SPACING = ("ScoreSdeVeScheduler",)
"""Classes whose sigmas are no sequence of nodes."""
APART = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
"""Classes that take the noise levels and what the network is told there one beside the other."""

LAID = Cache(16)  # the pipelines' own schedulers, as they are before set_timesteps


class Nodes(NamedTuple):
    """A grid, and what the pipeline's own scheduler says at it.

    times: float64 [n + 1], falling; the last is where the run ends.
    told: time -> what the network is told there, of the nodes but the last.
    whole: whether all that it is told are integers.
    start: standard deviation of the first state, in the process's frame; None: unit-variance data.
    alone: whether the network can be told nothing between the nodes, since the caller's timesteps
        are not those of their noise levels.
    """

    times: Tensor
    told: dict[float, float]
    whole: bool
    start: float | None
    alone: bool = False


# --- which class, and what its network was trained on -----------------------------------------


def class_of(config: Mapping[str, Any]) -> str:
    """The scheduler class whose configuration this is.

    By '_class_name' where the configuration names it, else by its keys: an object's configuration
    has all arguments of its class, and says in '_use_default_values' which were not given.
    Raises ValueError where two classes that mean different things have these keys.
    """
    name = config.get("_class_name")
    if isinstance(name, str):
        return name
    keys = {k for k in config if not k.startswith("_")} - OWN
    absent = set(config.get("_use_default_values", ()))
    fits = {}
    for known in KNOWN:
        taken = set(arguments_of(known))
        if taken and absent <= taken <= keys:
            fits[known] = len(taken)
    best = [known for known, size in fits.items() if size == max(fits.values())]
    if not best:
        raise InvalidValue(
            "the configuration does not say which scheduler it is of, and no known class has its "
            f"keys {', '.join(sorted(keys)) or '(none)'}: use "
            "UndiffuseScheduler.from_scheduler(pipe.scheduler), or add '_class_name'"
        )
    meanings = {repr(reading_of(known, config)) for known in best}
    if len(meanings) > 1:
        raise InvalidValue(
            f"the configuration may be of {' or '.join(best)}, which mean different networks: use "
            "UndiffuseScheduler.from_scheduler(pipe.scheduler), or add '_class_name'"
        )
    return best[0]


@cache
def arguments_of(name: str) -> list[str]:
    """The arguments of a scheduler class of diffusers; none where it is not installed."""
    made = getattr(diffusers, name, None)
    return [] if made is None else list(inspect.signature(made.__init__).parameters)[1:]


def defaults_of(name: str) -> dict[str, Any]:
    """The arguments of a scheduler class and their defaults.

    Raises ValueError for a class that is not known.
    """
    if name not in KNOWN and name not in REFUSED:
        raise InvalidValue(
            f"scheduler class {name} is not known: UndiffuseScheduler takes the place of "
            f"{', '.join(sorted(KNOWN))}"
        )
    if getattr(diffusers, name, None) is None:
        raise InvalidValue(f"the installed diffusers has no {name}: install a version that has it")
    found = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {k: p.default for k, p in found.items() if k not in ("self", "kwargs")}


def own_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Those keys of a configuration that the class itself takes."""
    return {k: config[k] for k in arguments_of(name) if k in config and k != "kwargs"}


def reading_of(name: str, config: Mapping[str, Any]) -> Reading:
    """What the network of a class with this configuration was trained on.

    Raises ValueError for a class that is not known, in one sentence.
    """
    defaults_of(name)
    try:
        return read_scheduler({**own_config(name, config), "_class_name": name})
    except InvalidValue as error:
        message = str(error).replace(f"; {REMEDY}", "").replace(f", or {REMEDY}", "")
        raise InvalidValue(
            f"UndiffuseScheduler cannot take this scheduler's place: {message}"
        ) from error


def clipping(name: str, config: Mapping[str, Any]) -> tuple[tuple[float, float] | None, Any]:
    """(clip, threshold) of D that the pipeline's own scheduler would do at every step.

    clip: (lo, hi) or None. threshold: (ratio, most) of dynamic thresholding, or None.
    """
    found = {**defaults_of(name), **own_config(name, config)}
    if found.get("thresholding"):
        ratio, most = found["dynamic_thresholding_ratio"], found["sample_max_value"]
        return ((-1.0, 1.0), None) if most == 1 else (None, (float(ratio), float(most)))
    if found.get("clip_sample"):
        reach = float(found.get("clip_sample_range", 1.0))
        return (-reach, reach), None
    return None, None


# --- the grid ---------------------------------------------------------------------------------


def theirs(
    name: str,
    config: Mapping[str, Any],
    reading: Reading,
    steps: int | None,
    **given: Any,
) -> Nodes:
    """The nodes that the pipeline's own scheduler lays for so many steps.

    given: further arguments of its set_timesteps (timesteps, sigmas, mu, ...); None is left out.
    Raises ValueError where its class does not take them, or its times rise.
    """
    if name in NO_SPACING:
        raise InvalidValue(f"{name} lays no grid that can be read: name one, e.g. grid='karras'")
    own = own_config(name, config)

    def make() -> Any:
        with torch.device("cpu"):  # whatever torch's default device is
            return getattr(diffusers, name)(**own)

    scheduler = copy.copy(LAID.get((name, *sorted(own.items())), torch.device("cpu"), make))
    given = {k: v for k, v in given.items() if v is not None}
    for key in ("sigmas", "timesteps"):
        if key in given:
            check_falling(reading, key, given[key])
    takes = inspect.signature(scheduler.set_timesteps).parameters
    if unknown := [k for k in given if k not in takes]:
        if unknown == ["sigmas"]:
            return by_sigmas(reading, given["sigmas"])
        if unknown == ["timesteps"]:
            return by_timesteps(reading, given["timesteps"])
        raise InvalidValue(f"{name}.set_timesteps takes no {', '.join(unknown)}: leave it out")
    for key in ("sigmas", "timesteps"):
        if key in given and steps not in (None, *_lengths(given[key])):
            raise InvalidValue(
                f"{key} say {len(given[key])} steps, but num_inference_steps={steps}: leave it out"
            )
    if {"sigmas", "timesteps"} & given.keys() and "num_inference_steps" in takes:
        steps = None
    with torch.device("cpu"):
        scheduler.set_timesteps(steps, **given)
    told = scheduler.timesteps.double().cpu()
    sigmas = getattr(scheduler, "sigmas", None)
    if name == "PNDMScheduler":  # its Runge-Kutta start and PLMS call at some nodes twice
        told = torch.as_tensor(scheduler._timesteps[::-1].copy(), dtype=torch.float64, device="cpu")
    if isinstance(sigmas, Tensor):
        t = time_of_sigma(reading, sigmas.double().cpu())
        t, end = t[: len(told)], t[-1:]
    elif name == "IPNDMScheduler":
        t, end = told, told.new_tensor([reading.process.t_clean])
    else:
        t, end = (told + 1) / reading.steps, _end(scheduler, reading)
    last = {float(at): float(value) for at, value in zip(t, told, strict=True)}
    nodes = torch.tensor(list(last), dtype=torch.float64, device="cpu")
    if float(end) >= float(nodes[-1]):  # a step of length 0: the jump to data takes its place
        end = nodes.new_tensor([reading.process.t_clean])
    times = torch.cat([nodes, end])
    refuse_rising(f"the timesteps of {name}", times)
    whole = not scheduler.timesteps.is_floating_point()
    start = float(getattr(scheduler, "init_noise_sigma", 1.0))
    if isinstance(reading.process, TabledVP) and start != 1.0:  # its states are x/alpha
        start *= float(reading.process.alpha(times[0].clamp(max=reading.process.t_max)))
    alone = isinstance(reading.process, Flow) and not torch.allclose(
        time_of_told(reading, told), t[: len(told)], rtol=0, atol=1 / reading.steps
    )
    return Nodes(times, last, whole, start, alone)


def _lengths(values: Sequence[float] | Tensor) -> tuple[int, ...]:
    """The numbers of steps that nodes may stand for: a last 0 may be their end, or not there."""
    return (len(values) - 1, len(values)) if float(values[-1]) == 0 else (len(values),)


def _end(scheduler: Any, reading: Reading) -> Tensor:
    """Where schedulers of integer timesteps end: at data, or at their first alpha_bar."""
    final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    clean = reading.process.t_clean
    end = clean if final == 1.0 else 1 / reading.steps
    return torch.tensor([end], dtype=torch.float64, device="cpu")


def by_sigmas(reading: Reading, sigmas: Sequence[float] | Tensor) -> Nodes:
    """The nodes at these noise levels sigma/alpha (flows: sigma), then the jump to data."""
    levels = _numbers("sigmas", sigmas)
    levels = levels[:-1] if float(levels[-1]) == 0 else levels
    if len(levels) < 1 or not bool((levels > 0).all()):
        raise InvalidValue(f"sigmas must be > 0 but for a last 0; got {levels.tolist()[:8]}")
    return _to_data(reading, time_of_sigma(reading, levels), {})


def by_timesteps(reading: Reading, timesteps: Sequence[float] | Tensor) -> Nodes:
    """The nodes at which the network is told these timesteps, then the jump to data."""
    told = _numbers("timesteps", timesteps)
    t = time_of_told(reading, told)
    at = {float(a): float(b) for a, b in zip(t, told, strict=True)}
    whole = bool((told == told.round()).all()) and reading.time == "index"
    return _to_data(reading, t, at)._replace(whole=whole)


def _to_data(reading: Reading, t: Tensor, told: dict[float, float]) -> Nodes:
    return Nodes(torch.cat([t, t.new_tensor([reading.process.t_clean])]), told, False, None)


def of_grid(grid: Any, model: Denoiser, steps: int | None, final: str) -> Nodes:
    """The nodes of a grid of ours: a name, a `Grid` or times. Raises ValueError for other steps."""
    laid = grids.named(grid) if isinstance(grid, str) else grid
    if isinstance(laid, grids.Discrete) and laid.train_steps is None:
        laid = grids.Discrete(laid.spacing, model.steps, laid.offset)
    t = grids.times(laid, model.process, steps, final, model.t_min)
    if steps not in (None, len(t) - 1):
        raise InvalidValue(
            f"grid has {len(t) - 1} steps, its jump to data included; got "
            f"num_inference_steps={steps}"
        )
    return Nodes(t, {}, False, None)


def of_table(table: Tableau | SpectralTable, name: str, steps: int | None) -> Nodes:
    """The nodes of a table, which brings its own. Raises ValueError for other steps."""
    whole = isinstance(table, Tableau) and len(table.grid) > 2  # learned tables have ends alone
    t = table.grid if whole else torch.cat([table.times, table.grid[-1:]])
    if steps not in (len(t) - 1, table.nfe):
        raise InvalidValue(
            f"{name} is a table of {len(t) - 1} steps; got num_inference_steps={steps}"
        )
    return Nodes(t, {}, False, None)


def uniform(sigmas: Sequence[float] | Tensor) -> bool:
    """Whether these are 1, ..., 1/n in equal steps: what pipelines hand over where nobody chose."""
    levels = _numbers("sigmas", sigmas)
    n = len(levels)
    even = torch.linspace(1.0, 1.0 / n, n, dtype=torch.float64, device="cpu")
    return bool(torch.allclose(levels, even, rtol=0, atol=1e-6))


def time_of_sigma(reading: Reading, sigma: Tensor) -> Tensor:
    """The process's times at noise levels as diffusers has them, float64; t_clean at 0."""
    process = reading.process
    if isinstance(process, Flow):
        return 1 - sigma if reading.sign < 0 and _falls(reading.time) else sigma
    if isinstance(process, EDM):
        return sigma
    t = process.inverse_log_snr(-sigma.clamp(min=1e-30).log())
    t = torch.where(t > process.t_max, t.clamp(max=process.t_max * (1 + 1e-3)), t)
    return torch.where(sigma > 0, t, process.t_clean)


def time_of_told(reading: Reading, told: Tensor) -> Tensor:
    """The process's times at which the network is told these numbers, float64."""
    time, process = reading.time, reading.process
    if isinstance(time, Linear):
        return (told - time.shift) / time.scale
    if time == "index":
        return (told + 1) / reading.steps
    if time == "continuous":
        return told
    if time == "sigma":
        return process.inverse_log_snr(-told.log())
    ratio = torch.exp(4 * told) if time == "edm" else torch.tan(told * (math.pi / 2))
    return process.inverse_log_snr(-ratio.log())


def _falls(time: Any) -> bool:
    """Inverted sigmas: the network is told less where there is more noise."""
    return isinstance(time, Linear) and time.scale < 0 and time.shift > 1


def check_falling(reading: Reading, what: str, values: Sequence[float] | Tensor) -> None:
    """Raise ValueError unless sigmas or timesteps that were given go from noise to data, and are
    of noise that the network was trained on."""
    found, process = _numbers(what, values), reading.process
    if _falls(reading.time):  # the class inverts them itself
        t = found if what == "sigmas" else found / reading.steps
    else:
        t = (time_of_sigma if what == "sigmas" else time_of_told)(reading, found)
    bad = (~(t.diff() < 0)).nonzero()
    if len(bad):
        _refuse(what, found, int(bad[0]))
    most = process.t_max * (1 + 1e-3)
    outside = (t > most) | (t < process.t_clean)
    if what == "sigmas" and isinstance(process, TabledVP):  # whose times end with its table
        outside |= found > torch.exp(-process.log_snr(process.t_max)) * (1 + 1e-3)
        outside |= found < 0
    if bool(outside.any()):
        raise InvalidValue(
            f"{what} must be of noise that the network was trained on, at most that of "
            f"{process}; got {found[outside].tolist()[:4]}"
        )


def refuse_rising(what: str, values: Tensor) -> None:
    """Raise ValueError unless the values fall strictly."""
    bad = (~(values.diff() < 0)).nonzero()
    if len(bad):
        _refuse(what, values, int(bad[0]))


def _refuse(what: str, values: Tensor, i: int) -> None:
    raise InvalidValue(
        f"{what} must fall strictly, from noise to data; got {float(values[i]):g} -> "
        f"{float(values[i + 1]):g} at entry {i + 1}"
    )


def _numbers(name: str, values: Sequence[float] | Tensor) -> Tensor:
    """The values as float64 on the host. Raises TypeError or ValueError for what are none."""
    try:
        found = torch.as_tensor(values).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidType(f"{name} must be a sequence of numbers; got {values!r:.80}") from None
    if found.ndim != 1 or len(found) < 1 or not bool(torch.isfinite(found).all()):
        raise InvalidValue(
            f"{name} must be a sequence of finite numbers; got {found.tolist()!r:.80}"
        )
    return found


def told_at(nodes: Nodes, process_time: Tensor, times: list[float], name: str) -> list[float]:
    """What the network is told at each row: the pipeline's own number at its nodes.

    Raises ValueError for a row between nodes where only the caller knows what it is told.
    """
    exact = process_time.tolist()
    if nodes.alone and (between := [t for t in times if t not in nodes.told]):
        raise InvalidValue(
            f"{name} calls the network between the nodes, at {between[0]:.4g}, where timesteps do "
            "not say what it is told: use a solver that calls at the nodes, e.g. 'dpmpp-2m'"
        )
    return [nodes.told.get(t, other) for t, other in zip(times, exact, strict=True)]
