"""What a diffusers scheduler says about the network it was made for.

A scheduler's class and configuration hold two things: what the network was trained on, which is
read here, and how their sampler steps (spacing, orders, clipping, sigma grids), which is chosen at
`sample`. Every class is in `KNOWN` or `REFUSED`; every key is read, is one of `SAMPLING`, or is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ..processes import EDM, VE, VP, Flow, Process, TabledVP
from ..processes.process import count
from .modules import Angle, Linear

REMEDY = "pass process=, predicts= and time= to from_diffusers instead"


@dataclass(frozen=True)
class Reading:
    """What the network of a scheduler was trained on.

    process, predicts, time: fields of `Denoiser`.
    steps: training steps of a network of discrete time.
    sign: -1 where the network returns the negative of what `predicts` says.
    learned_range: whether it also says where the variance lies (Nichol & Dhariwal 2021, 15).
    shift: of the flow grid s = shift u/(1 + (shift - 1) u), u uniform, that their sampler lays:
        nothing the network knows of.
    """

    process: Process
    predicts: str
    time: str | Callable[[Tensor], Tensor]
    steps: int
    sign: float = 1.0
    learned_range: bool = False
    shift: float = 1.0


@dataclass(frozen=True)
class Known:
    """How one class is read. `keys`: what is read of its configuration, with its defaults."""

    read: Callable[[str, dict[str, Any]], Reading]
    keys: dict[str, Any] = field(default_factory=dict)


SAMPLING = frozenset(
    [
        "algorithm_type",
        "base_image_seq_len",
        "base_shift",
        "clip_denoised",
        "clip_sample",
        "clip_sample_range",
        "correct_steps",
        "corrector_order",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "eta",
        "euler_at_final",
        "final_sigmas_type",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "max_image_seq_len",
        "max_shift",
        "noise_sampler_seed",
        "original_inference_steps",
        "predict_x0",
        "predictor_order",
        "rho",
        "s_noise",
        "sample_max_value",
        "sampling_eps",
        "scale_factors",
        "set_alpha_to_one",
        "shift_terminal",
        "sigma_schedule",
        "skip_prk_steps",
        "snr",
        "solver_order",
        "solver_p",
        "solver_type",
        "steps_offset",
        "stochastic_sampling",
        "tau_func",
        "thresholding",
        "time_shift_type",
        "timestep_scaling",
        "timestep_spacing",
        "upscale_mode",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
    ]
)
"""Keys of their samplers, which leave the network what it is."""
NEUTRAL = {
    "snr_shift_scale": 1.0,
    "timestep_type": "discrete",
    "invert_sigmas": False,
    "shift": 1.0,
    "flow_shift": 1.0,
    "use_flow_sigmas": False,
    "rescale_betas_zero_snr": False,
    "variance_type": None,
    "trained_betas": None,
}
"""Keys that do change the network's meaning, with the value at which they do not: any class may
hold them so."""
NAMELESS = frozenset(
    [
        "clip_sample",
        "clip_sample_range",
        "dynamic_thresholding_ratio",
        "flow_shift",
        "num_train_timesteps",
        "prediction_type",
        "rescale_betas_zero_snr",
        "sample_max_value",
        "steps_offset",
        "thresholding",
        "timestep_spacing",
        "use_flow_sigmas",
        "variance_type",
    ]
)
"""DDPMScheduler's keys beside its betas: a configuration of these alone may leave out its class."""
PREDICTIONS = {
    "epsilon": "noise",
    "sample": "data",
    "original_sample": "data",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
VARIANCES = (
    None,
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)


def read_scheduler(scheduler: Any) -> Reading:
    """What the network of a diffusers scheduler was trained on.

    scheduler: the object, its configuration, or the dict of its scheduler_config.json. A dict that
        does not name its class by '_class_name' is read as DDPMScheduler's if it may be.

    Raises ValueError for a class or key that is not known or has no counterpart here, and for
    values that are none, naming them; TypeError for what is no scheduler.
    """
    held = getattr(scheduler, "_reading", None)
    if isinstance(held, Reading):  # of `UndiffuseScheduler`, which has read its own
        return held
    name, config = _name_and_config(scheduler)
    if name in REFUSED:
        raise InvalidValue(f"{name} cannot be read: {REFUSED[name]}; {REMEDY}")
    if name not in KNOWN:
        raise InvalidValue(f"scheduler class {name} is not known; {REMEDY}")
    known = KNOWN[name]
    given = {k: v for k, v in config.items() if not k.startswith("_")}
    for key, value in given.items():
        if (
            key in known.keys
            or key in SAMPLING
            or (key in NEUTRAL and value in (NEUTRAL[key], None))
        ):
            continue
        if value is None or (key == "variance_type" and str(value).startswith("fixed")):
            continue
        raise InvalidValue(
            f"{key}={value!r} of a {name} is not known, and may change what the network means; "
            f"take it out of the configuration, or {REMEDY}"
        )
    if isinstance(scheduler, Mapping) and not scheduler.get("_class_name"):
        _refuse_nameless(config)
    reading = known.read(name, {**known.keys, **{k: given[k] for k in known.keys if k in given}})
    _check_table(scheduler, reading.process)
    return reading


def _refuse_nameless(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a configuration without a name that need not be one of betas."""
    given = {k for k in config if not k.startswith("_")}
    told = given & {"beta_start", "beta_end", "beta_schedule"} or config.get("trained_betas")
    if not told and (others := given - NAMELESS):
        raise InvalidValue(
            f"the configuration has {', '.join(sorted(others))} and does not name its class: hand "
            "in the scheduler itself, or add '_class_name', e.g. 'FlowMatchEulerDiscreteScheduler'"
        )


def _check_table(scheduler: Any, process: Process) -> None:
    """Raise ValueError for an object whose table was changed after it was made."""
    bar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(bar, Tensor) or not isinstance(process, TabledVP):
        return
    t = torch.arange(1, len(process.betas) + 1, dtype=torch.float64, device="cpu")
    read, bar = process.alpha(t / len(process.betas)).square(), bar.to("cpu", torch.float64)
    if bar.shape != read.shape or not torch.allclose(bar, read, rtol=1e-2, atol=1e-5):
        raise InvalidValue(
            f"alphas_cumprod of this {type(scheduler).__name__} is not what its configuration "
            "says; make it with trained_betas=..., or pass process=VP.from_alphas_cumprod(...) and "
            "predicts= to from_diffusers instead"
        )


def _name_and_config(scheduler: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(scheduler, Mapping):
        return scheduler.get("_class_name") or "DDPMScheduler", scheduler
    config = getattr(scheduler, "config", None)
    if isinstance(scheduler, type) or not isinstance(config, Mapping):
        raise InvalidType(
            "scheduler must be a scheduler with a config, or the dict of its configuration; got "
            f"{scheduler!r:.80}"
        )
    return type(scheduler).__name__, config


# --- networks of discrete time ----------------------------------------------------------------

BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
_SCALED = {**_LATENT, "beta_schedule": "scaled_linear"}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
_ZERO = {"rescale_betas_zero_snr": False}
_ENDS = {"sigma_min": None, "sigma_max": None}
_PATCHED = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
"""Classes that put alpha_bar_N = 2^-24 where zero terminal SNR asks for 0."""


def _discrete(name: str, c: dict[str, Any]) -> Reading:
    """Betas and an index; or, with use_flow_sigmas, a flow; or EDM's frame for SVD's networks."""
    kind, steps = c["prediction_type"], _steps(c["num_train_timesteps"])
    if kind not in PREDICTIONS:
        raise InvalidValue(f"prediction_type must be one of {', '.join(PREDICTIONS)}; got {kind!r}")
    if c.get("use_flow_sigmas"):
        if kind == "v_prediction":
            raise InvalidValue(
                f"prediction_type={kind!r} with use_flow_sigmas means nothing; {REMEDY}"
            )
        told = Linear(float(steps))
        return Reading(Flow(), PREDICTIONS[kind], told, steps, shift=_number(c, "flow_shift"))
    if kind == "flow_prediction":
        raise InvalidValue(f"prediction_type={kind!r} needs use_flow_sigmas=True; {REMEDY}")
    process = _table(name, c, steps)
    if c.get("timestep_type", "discrete") == "continuous" and kind == "v_prediction":
        ends = [_ratio(process, t) for t in (process.t_min, process.t_max)]
        low, high = (c[k] if c[k] is not None else e for k, e in zip(_ENDS, ends, strict=True))
        return Reading(EDM(low, high, sigma_data=1.0), "edm", "edm", steps, sign=-1.0)
    variance = c.get("variance_type")
    if variance not in VARIANCES:
        raise InvalidValue(f"variance_type must be one of {VARIANCES}; got {variance!r}")
    ranged = variance == "learned_range"
    return Reading(process, PREDICTIONS[kind], "index", steps, learned_range=ranged)


def _table(name: str, c: dict[str, Any], steps: int) -> TabledVP:
    betas = _betas(c, steps)
    if len(betas) != steps:
        raise InvalidValue(
            f"trained_betas must hold num_train_timesteps={steps} entries; got {len(betas)}"
        )
    scale = c.get("snr_shift_scale", 1.0)
    if scale == 1 and not c.get("rescale_betas_zero_snr"):
        return VP.from_betas(betas)
    bar = torch.cumprod(1 - betas, 0)
    bar = bar / (scale + (1 - scale) * bar)
    if c.get("rescale_betas_zero_snr"):
        bar = _zero_snr(bar, 2.0**-24 if name in _PATCHED else 0.0)
    return VP.from_alphas_cumprod(bar)


def _betas(c: dict[str, Any], steps: int) -> Tensor:
    """beta_1..beta_N, float64."""
    if c["trained_betas"] is not None:
        return torch.tensor(
            VP.from_betas(c["trained_betas"]).betas, dtype=torch.float64, device="cpu"
        )
    schedule = c["beta_schedule"]
    lo, hi = _number(c, "beta_start"), _number(c, "beta_end")
    if schedule == "linear":
        return torch.linspace(lo, hi, steps, dtype=torch.float64, device="cpu")
    if schedule == "scaled_linear":
        return torch.linspace(
            math.sqrt(lo), math.sqrt(hi), steps, dtype=torch.float64, device="cpu"
        ).square()
    if schedule == "squaredcos_cap_v2":
        return torch.tensor(VP.cosine(steps=steps).betas, dtype=torch.float64, device="cpu")
    if schedule == "sigmoid":
        u = torch.linspace(-6, 6, steps, dtype=torch.float64, device="cpu")
        return torch.sigmoid(u) * (hi - lo) + lo
    if schedule == "exp":
        u = torch.full((steps,), -12.0 / steps, dtype=torch.float64, device="cpu")
        return (-torch.expm1(u)).clamp(max=0.999)
    raise InvalidValue(
        "beta_schedule must be one of linear, scaled_linear, squaredcos_cap_v2, sigmoid, exp; "
        f"got {schedule!r}"
    )


def _zero_snr(bar: Tensor, last: float) -> Tensor:
    """Shift and scale sqrt(alpha_bar) to end at 0 (Lin et al. 2024, algorithm 1), nearly.

    The end is `last` where that is less than the entry before, else 1/1000 of it: a beta of 0.999.
    """
    root = bar.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bar = root.square()
    if len(bar) > 1:
        bar[-1] = last if 0 < last < bar[-2] else 1e-3 * bar[-2]
    return bar


def _ratio(process: Process, t: float) -> float:
    return math.exp(-float(process.log_snr(t)))


def _steps(value: Any) -> int:
    return count("num_train_timesteps", value)


def _number(c: dict[str, Any], key: str) -> float:
    value = c[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidValue(f"{key} must be a finite number; got {value!r}")
    return float(value)


# --- networks of continuous time --------------------------------------------------------------


def _edm(name: str, c: dict[str, Any]) -> Reading:
    """EDM's preconditioning: v is the negative of its F (c_out changes sign)."""
    signs = {"epsilon": 1.0, "v_prediction": -1.0}
    kind = c["prediction_type"]
    if kind not in signs:
        raise InvalidValue(f"prediction_type must be one of {', '.join(signs)}; got {kind!r}")
    process = EDM(c["sigma_min"], c["sigma_max"], sigma_data=c["sigma_data"])
    time = Angle() if name == "CosineDPMSolverMultistepScheduler" else "edm"
    return Reading(process, "edm", time, _steps(c["num_train_timesteps"]), sign=signs[kind])


def _flow(name: str, c: dict[str, Any]) -> Reading:
    """Velocity networks told sigma times the training steps; inverted, 1 - sigma and -velocity."""
    steps, shift = _steps(c["num_train_timesteps"]), float(c.get("shift", 1.0))
    if c.get("invert_sigmas"):
        return Reading(
            Flow(), "flow", Linear(-float(steps), float(steps)), steps, -1.0, shift=shift
        )
    return Reading(Flow(), "flow", Linear(float(steps)), steps, shift=shift)


def _dataward(name: str, c: dict[str, Any]) -> Reading:
    """Velocities towards the data, told 1 - sigma."""
    return Reading(Flow(), "flow", Linear(-1.0, 1.0), 1000, -1.0, shift=_number(c, "shift"))


def _score(name: str, c: dict[str, Any]) -> Reading:
    """score_sde's variance-exploding networks: the score, told sigma."""
    process = VE(c["sigma_min"], c["sigma_max"])
    return Reading(process, "score", "sigma", _steps(c["num_train_timesteps"]))


def _circle(name: str, c: dict[str, Any]) -> Reading:
    """alpha = cos(pi t/2), sigma = sin(pi t/2), v told t."""
    process = Process.of(_cos, _sin)
    return Reading(process, "v", "continuous", _steps(c["num_train_timesteps"]))


def _cos(t: Tensor) -> Tensor:
    return torch.cos(0.5 * math.pi * t)


def _sin(t: Tensor) -> Tensor:
    return torch.sin(0.5 * math.pi * t)


_PLAIN = Known(_discrete, {**BETAS, **_ZERO})
_SOLVER = Known(_discrete, {**BETAS, **_FLOW, "variance_type": None})
_SHIFTED = {"num_train_timesteps": 1000, "shift": 1.0}
_EDM = {
    "num_train_timesteps": 1000,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "prediction_type": "epsilon",
}
_ONLY_NOISE = {k: v for k, v in BETAS.items() if k != "prediction_type"}


def _noise_alone(name: str, c: dict[str, Any]) -> Reading:
    return _discrete(name, {**c, "prediction_type": "epsilon"})


def _cosine_alone(name: str, c: dict[str, Any]) -> Reading:
    if c["beta_schedule"] != "squaredcos_cap_v2":
        raise InvalidValue(
            f"beta_schedule of {name} must be squaredcos_cap_v2; got {c['beta_schedule']!r}"
        )
    return _discrete(name, {**BETAS, **c})


KNOWN: dict[str, Known] = {
    "DDPMScheduler": Known(_discrete, {**_PLAIN.keys, **_FLOW, "variance_type": "fixed_small"}),
    "DDPMParallelScheduler": Known(_discrete, {**_PLAIN.keys, "variance_type": "fixed_small"}),
    "DDIMScheduler": _PLAIN,
    "DDIMParallelScheduler": _PLAIN,
    "DDIMInverseScheduler": _PLAIN,
    "PNDMScheduler": Known(_discrete, BETAS),
    "RePaintScheduler": Known(_noise_alone, _ONLY_NOISE),
    "UnCLIPScheduler": Known(
        _cosine_alone,
        {
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "beta_schedule": "squaredcos_cap_v2",
            "variance_type": "fixed_small_log",
        },
    ),
    "LCMScheduler": Known(_discrete, {**_PLAIN.keys, **_SCALED}),
    "TCDScheduler": Known(_discrete, {**_PLAIN.keys, **_SCALED}),
    "CogVideoXDDIMScheduler": Known(_discrete, {**_PLAIN.keys, **_SCALED, "snr_shift_scale": 3.0}),
    "CogVideoXDPMScheduler": Known(_discrete, {**_PLAIN.keys, **_SCALED, "snr_shift_scale": 3.0}),
    "EulerDiscreteScheduler": Known(
        _discrete, {**_PLAIN.keys, **_ENDS, "timestep_type": "discrete"}
    ),
    "EulerAncestralDiscreteScheduler": _PLAIN,
    "HeunDiscreteScheduler": Known(_discrete, {**BETAS, **_LATENT}),
    "KDPM2DiscreteScheduler": Known(_discrete, {**BETAS, **_LATENT}),
    "KDPM2AncestralDiscreteScheduler": Known(_discrete, {**BETAS, **_LATENT}),
    "DPMSolverSDEScheduler": Known(_discrete, {**BETAS, **_LATENT}),
    "LMSDiscreteScheduler": Known(_discrete, BETAS),
    "DEISMultistepScheduler": _SOLVER,
    "SASolverScheduler": _SOLVER,
    "DPMSolverSinglestepScheduler": _SOLVER,
    "DPMSolverMultistepScheduler": Known(_discrete, {**_SOLVER.keys, **_ZERO}),
    "DPMSolverMultistepInverseScheduler": _SOLVER,
    "UniPCMultistepScheduler": Known(_discrete, {**_SOLVER.keys, **_ZERO, **_ENDS}),
    "EDMEulerScheduler": Known(_edm, _EDM),
    "EDMDPMSolverMultistepScheduler": Known(_edm, _EDM),
    "CosineDPMSolverMultistepScheduler": Known(
        _edm,
        {
            **_EDM,
            "sigma_min": 0.3,
            "sigma_max": 500,
            "sigma_data": 1.0,
            "prediction_type": "v_prediction",
        },
    ),
    "FlowMatchEulerDiscreteScheduler": Known(_flow, {**_SHIFTED, "invert_sigmas": False}),
    "FlowMatchHeunDiscreteScheduler": Known(_flow, _SHIFTED),
    "FlowMatchLCMScheduler": Known(_flow, _SHIFTED),  # it does not invert its x_0
    "LTXEulerAncestralRFScheduler": Known(_flow, {"num_train_timesteps": 1000}),
    "MiniMaxH3Scheduler": Known(_dataward, {"shift": 12.0}),
    "IPNDMScheduler": Known(_circle, {"num_train_timesteps": 1000}),
    "ScoreSdeVeScheduler": Known(
        _score, {"num_train_timesteps": 2000, "sigma_min": 0.01, "sigma_max": 1348.0}
    ),
}
"""Classes of diffusers 0.42 whose networks are read exactly."""

_TOKENS = "its states are tokens, not numbers with Gaussian noise"
_TWO_TIMES = "its network maps between two times and is no denoiser"
REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "its network is a consistency function, not a denoiser",
    "ConsistencyDecoderScheduler": "its network is a consistency function, not a denoiser",
    "SCMScheduler": "its network is a consistency function, not a denoiser",
    "FlowMapEulerDiscreteScheduler": _TWO_TIMES,
    "PiflowScheduler": "its network returns a policy, not a velocity",
    "HeliosScheduler": "it changes the resolution between its stages",
    "HeliosDMDScheduler": "it changes the resolution between its stages",
    "RFD4ProteinaScheduler": "its states are frames of proteins, not vectors with Gaussian noise",
    "DDPMWuerstchenScheduler": "its schedule is clamped at both ends; "
    "it is Process.of(alpha, sigma)",
    "KarrasVeScheduler": "it hands its network images in [0, 1] and half of sigma",
    "ScoreSdeVpScheduler": "it is deprecated; use from_score_sde(net, VP())",
}
"""Classes that are known and have no counterpart here, and why."""
