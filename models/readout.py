"""What a network predicts, and how to read anything else off it.

Every prediction is linear in the pair (x_0, eps) that the network is unsure of, and so is x
itself, x = alpha x_0 + sigma eps. A read-out is therefore a row (u, w) with a scale kappa,

    kappa P = u x_0 + w eps,

and changing read-outs is solving a 2 x 2 system with determinant Delta = alpha w - sigma u:

    kappa' P' = [(u' w - w' u) x + (alpha w' - sigma u') kappa P] / Delta.

Nothing is divided by alpha or sigma unless the answer itself is, so a read-out is exact at both
ends of time wherever it exists, and reading off what the network predicts costs no cancellation:
the first coefficient is 0 and the second 1, to the last bit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.errors import InvalidValue
from ..kernels.shapes import as_float64, column
from .processes import Process
from .processes.process import f64, positive


class Row(NamedTuple):
    """kappa P = u x_0 + w eps at some times; float64 tensors of one shape."""

    kappa: Tensor
    u: Tensor
    w: Tensor


def _data(process: Process, t: Tensor, sigma_data: float) -> Row:
    """x_0."""
    one = torch.ones_like(t)
    return Row(one, one, torch.zeros_like(t))


def _noise(process: Process, t: Tensor, sigma_data: float) -> Row:
    """eps (Ho et al. 2020)."""
    one = torch.ones_like(t)
    return Row(one, torch.zeros_like(t), one)


def _score(process: Process, t: Tensor, sigma_data: float) -> Row:
    """grad log p_t = -eps/sigma."""
    return Row(process.sigma(t), torch.zeros_like(t), -torch.ones_like(t))


def _v(process: Process, t: Tensor, sigma_data: float) -> Row:
    """v = alpha eps - sigma x_0 (Salimans & Ho 2022)."""
    return Row(torch.ones_like(t), -process.sigma(t), process.alpha(t))


def _flow(process: Process, t: Tensor, sigma_data: float) -> Row:
    """The velocity dx/dt = alpha' x_0 + sigma' eps of the probability flow (Lipman et al. 2023)."""
    return Row(torch.ones_like(t), process.alpha_dot(t), process.sigma_dot(t))


def _edm(process: Process, t: Tensor, sigma_data: float) -> Row:
    """F of D = c_skip x + c_out F(c_in x, c_noise) (Karras et al. 2022, table 1), for any alpha."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    norm = torch.hypot(sigma, alpha * sigma_data)
    return Row(torch.ones_like(t), sigma / (sigma_data * norm), -alpha * sigma_data / norm)


READOUTS: dict[str, Callable[[Process, Tensor, float], Row]] = {
    "data": _data,
    "noise": _noise,
    "score": _score,
    "v": _v,
    "flow": _flow,
    "edm": _edm,
}
"""The six read-outs by name."""
ELSEWHERE = {
    **dict.fromkeys(("epsilon", "pred_noise"), "noise"),
    **dict.fromkeys(("sample", "x0", "x_0", "x_start", "xstart", "pred_x0"), "data"),
    **dict.fromkeys(("v_prediction", "v-prediction", "pred_v"), "v"),
    **dict.fromkeys(("flow_prediction", "flow-prediction"), "flow"),
}
"""What diffusers, guided-diffusion and denoising-diffusion-pytorch call them."""


class Affine(NamedTuple):
    """P' = skip x + scale P, float64 of the shape of t."""

    skip: Tensor
    scale: Tensor

    def __call__(self, x: Tensor, prediction: Tensor) -> Tensor:
        """P' in x's type; x and P [B, ...], t of no dimension or [B]."""
        return column(self.skip, x) * x + column(self.scale, x) * prediction


def convert(
    process: Process, t: float | Tensor, source: str, target: str, sigma_data: float = 0.5
) -> Affine:
    """Coefficients that turn prediction `source` into prediction `target` at times t.

    t: float or tensor of any shape; returns `Affine(skip, scale)`, float64, of that shape.
    source, target: keys of `READOUTS`.
    sigma_data: standard deviation of the data, > 0, for 'edm'.

    Raises ValueError for other values, and at a t where `target` cannot be told from `source` (x_0
    from the noise at alpha = 0, the noise from x_0 at sigma = 0).
    """
    for argument, name in (("source", source), ("target", target)):
        if name not in READOUTS:
            raise InvalidValue(f"{argument} must be one of {', '.join(READOUTS)}; got {name!r}")
    positive("sigma_data", sigma_data)
    t = f64(t)
    if source == target:
        return Affine(torch.zeros_like(t), torch.ones_like(t))
    a = READOUTS[source](process, t, sigma_data)
    b = READOUTS[target](process, t, sigma_data)
    alpha, sigma = process.alpha(t), process.sigma(t)
    delta = alpha * a.w - sigma * a.u
    det = b.kappa * delta
    skip = (b.u * a.w - b.w * a.u) / det
    scale = (alpha * b.w - sigma * b.u) * a.kappa / det
    if t.device.type == "cpu":  # on a device this would be a synchronisation inside the loop
        bad = ~(torch.isfinite(skip) & torch.isfinite(scale))
        if bad.any():
            _refuse(t[bad].flatten()[0], process, source, target)
    return Affine(skip, scale)


def _refuse(t: Tensor, process: Process, source: str, target: str) -> None:
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    raise InvalidValue(
        f"the {target!r} read-out of a network that predicts {source!r} does not exist at "
        f"t={float(t):g}, where alpha={alpha:g} and sigma={sigma:g}; "
        "start or end the grid inside, or use a network with another prediction (e.g. 'v')"
    )


def warn_of_pure_noise(process: Process, predicts: str, clip: object, stacklevel: int) -> None:
    """Warn where the noise at t_max says (next to) nothing of the data, and D is read off it.

    There D = (x - sigma eps)/alpha: an error of the network is multiplied by sigma/alpha. Not where
    D is clipped.
    """
    if predicts not in ("noise", "score") or clip is not None:
        return
    lam = float(process.log_snr(process.t_max).detach())
    if lam < -math.log(process.pure_noise):
        ratio = "infinity" if lam == -math.inf else f"{math.exp(min(-lam, 700.0)):.2g}"
        alpha = float(process.alpha(process.t_max).detach())
        warnings.warn(
            f"predicts={predicts!r} at t_max={process.t_max:g} of {process}, where "
            f"alpha={alpha:.2g}: x is noise alone there, and what the network is wrong by enters "
            f"the data prediction times sigma/alpha={ratio}. Use a network that predicts 'v' or "
            "'data', clip= the data prediction to the range of the data, or start the grid later",
            stacklevel=stacklevel + 1,
        )


def network_scale(process: Process, t: Tensor, predicts: str, sigma_data: float) -> Tensor:
    """c_in: what x is multiplied by before the network sees it; 1 except for 'edm'."""
    if predicts != "edm":
        return torch.ones_like(t)
    return 1 / torch.hypot(process.sigma(t), process.alpha(t) * sigma_data)


def network_time(process: Process, t: Tensor, convention: Any, steps: int) -> Tensor:
    """c_noise: what the network is told about t, float64 of the shape of t.

    convention: 'continuous' t itself; 'index' t*steps - 1 in 0..steps-1; 'edm' log(sigma/alpha)/4;
        'sigma' sigma/alpha; or a callable of the float64 tensor t, which gives one of its shape.
    Raises ValueError where it is infinite or of another shape.
    """
    if callable(convention):
        told = as_float64(convention(t))
        if told.shape != t.shape:
            raise InvalidValue(
                f"time={convention!r} must give one number for each t, of shape {tuple(t.shape)}; "
                f"got {tuple(told.shape)}"
            )
    elif convention == "continuous":
        told = t
    elif convention == "index":
        told = t * steps - 1
    elif convention == "edm":
        told = -0.25 * process.log_snr(t)
    else:
        told = torch.exp(-process.log_snr(t))
    if told.device.type == "cpu" and not bool(torch.isfinite(told).all()):
        at = float(t[~torch.isfinite(told)].flatten()[0]) if t.ndim else float(t)
        raise InvalidValue(
            f"time={convention!r} is infinite at t={at:g} of {process}; "
            "start the process below it (e.g. Flow(t_max=0.999)) or use time='continuous'"
        )
    return told


def true_time(process: Process, told: Tensor, convention: Any, steps: int) -> Tensor:
    """The time t at which `network_time` is `told`, float64; for named conventions."""
    if convention == "continuous":
        return told
    if convention == "index":
        return (told + 1) / steps
    return process.inverse_log_snr(-4 * told if convention == "edm" else -told.log())


TIME_CONVENTIONS = ("continuous", "index", "edm", "sigma")


def train_steps(process: Process) -> int:
    """Training steps of a network of discrete time: those of the process's table, else 1000."""
    return len(getattr(process, "betas", ())) or 1000


def time_scale(process: Process, convention: Any) -> float:
    """What brings the times that a network is told to order one, where its waves of them are
    smooth: 1 where they are, else one over the largest (the steps, for 'index').

    convention: as in `network_time`. Raises ValueError where a time is infinite.
    """
    if convention == "index":
        return 1.0 / train_steps(process)
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64, device="cpu")
    largest = float(network_time(process, ends, convention, train_steps(process)).abs().max())
    return 1.0 / largest if largest > ORDER_ONE else 1.0


ORDER_ONE = 4.0
"""Told times up to this are left as they are: log(sigma/alpha)/4 is, down to one part in 10^7."""
