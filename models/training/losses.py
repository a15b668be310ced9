"""Training objectives: what a network is asked to match, with which weight, at which times.

With x_t = alpha x_0 + sigma eps, a network that predicts P (kappa P = u x_0 + w eps, see
readout.py) is trained on the mean square of P_net(x_t, t) - P. The same error reads differently
in another read-out, by a factor known from the conversion alone, so a weighting is a read-out in
which the error is measured and a function of time:

    L = E_t E_{x_0, eps} [ c(t) || P'_net - P' ||^2 ],     P'_net - P' = scale(t) (P_net - P).

Losses are means over the components of an event, one number for each sample. Where times are
drawn from another law than the weighting assumes (uniform in t), nothing is corrected: the law
of the times is part of the weighting, as in the papers, but for 'likelihood', which is a bound
on log p only if it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue, no_such
from ...kernels.shapes import column
from ..denoiser import Denoiser
from ..processes import Process
from ..readout import READOUTS

# --- times -------------------------------------------------------------------------------------


def _uniform(u: Tensor, process: Process, objective: Objective) -> Tensor:
    """t uniform on [t_min, t_max] (Song et al. 2021)."""
    return process.t_min + (process.t_max - process.t_min) * u


def _uniform_log_snr(u: Tensor, process: Process, objective: Objective) -> Tensor:
    """lambda uniform between its values at the two ends (geometric sigma for VE, NCSN)."""
    clean, noisy = process.log_snr(process.t_min), process.noisiest_log_snr
    return process.inverse_log_snr(clean + (noisy - clean) * u)


def _uniform_sigma(u: Tensor, process: Process, objective: Objective) -> Tensor:
    """sigma/alpha uniform between its values at the two ends."""
    clean = torch.exp(-process.log_snr(process.t_min))
    return process.inverse_log_snr(-torch.log(clean + (process.noisiest_ratio - clean) * u))


def _log_normal(u: Tensor, process: Process, objective: Objective) -> Tensor:
    """log(sigma/alpha) ~ N(P_mean, P_std^2) (Karras et al. 2022, table 1)."""
    z = torch.special.ndtri(u)
    return process.inverse_log_snr(-(objective.P_mean + objective.P_std * z))


TIMES: dict[str, Callable[[Tensor, Process, Objective], Tensor]] = {
    "uniform": _uniform,
    "log_snr": _uniform_log_snr,
    "sigma": _uniform_sigma,
    "log_normal": _log_normal,
}
"""Laws of training times by name, each a map of uniforms u in (0, 1), [B] float64."""


# --- weightings --------------------------------------------------------------------------------


def _one(process: Process, t: Tensor, objective: Objective) -> Tensor:
    return torch.ones_like(t)


def _half_g2(process: Process, t: Tensor, objective: Objective) -> Tensor:
    return 0.5 * process.diffusion(t).square()


def _min_snr(process: Process, t: Tensor, objective: Objective) -> Tensor:
    return torch.exp(2 * process.log_snr(t)).clamp(max=objective.gamma)


WEIGHTINGS: dict[str, tuple[str | None, Callable[[Process, Tensor, Objective], Tensor]]] = {
    "simple": (None, _one),
    "likelihood": ("score", _half_g2),
    "min-snr": ("data", _min_snr),
    "snr": ("noise", _one),
    **{name: (name, _one) for name in READOUTS if name != "score"},
}
"""Weightings by name: the read-out whose error is squared (None: the network's own), and c(t)."""


@dataclass(frozen=True)
class Objective:
    """Denoising loss L = E[c(t) || P'_net(x_t, t) - P' ||^2]; see the module's first lines.

    weighting: 'simple', the network's own target with weight 1: L_simple for noise prediction
        (Ho et al. 2020, 14), the sigma^2-weighted denoising score matching of NCSN for a score
        network (Song & Ermon 2019, 6), lambda(sigma) of EDM for 'edm'; 'likelihood', g^2/2 on
        the score (Song et al. 2021b, 7), corrected for the law of the times; 'snr', the noise
        error SNR ||x_0 error||^2 whatever is predicted; 'min-snr', min(SNR, gamma) ||x_0
        error||^2 (Hang et al. 2023); or a read-out's name, its error with weight 1.
    times: 'uniform' in t, 'log_snr' uniform in lambda (NCSN's geometric levels), 'sigma' uniform
        in sigma/alpha, or 'log_normal' (EDM; P_mean, P_std).
    stratified: one uniform for the whole batch, shifted by i/B (Kingma et al. 2021, I.1): the
        same law for each sample, less variance for the batch.

    Raises ValueError for names that are not known.
    """

    weighting: str = "simple"
    times: str = "uniform"
    P_mean: float = -1.2
    P_std: float = 1.2
    gamma: float = 5.0
    stratified: bool = True

    def __post_init__(self) -> None:
        for argument, known in (("weighting", WEIGHTINGS), ("times", TIMES)):
            value = getattr(self, argument)
            if value not in known:
                raise no_such(argument, value, known)
        for argument in ("P_std", "gamma"):
            if not getattr(self, argument) > 0:
                raise InvalidValue(f"{argument} must be > 0; got {getattr(self, argument)}")

    def sample_times(self, n: int, process: Process, generator: torch.Generator) -> Tensor:
        """Training times [n], float64 in [t_min, t_max], on the generator's device."""
        count = 1 if self.stratified else n
        device = generator.device
        u = torch.rand(count, dtype=torch.float64, device=device, generator=generator)
        if self.stratified:
            u = (u + torch.arange(n, dtype=torch.float64, device=device) / n) % 1.0
        u = u.clamp(1e-9, 1 - 1e-9)
        return TIMES[self.times](u, process, self).clamp(process.t_min, process.t_max)

    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, generator: torch.Generator, **cond: Any
    ) -> Tensor:
        """One draw of the loss for each sample: x_0 [B, *event] -> [B]."""
        check_batch_of(x_0, generator)
        t = self.sample_times(len(x_0), denoiser.process, generator).to(x_0.device)
        if denoiser.time == "index":  # a network of discrete time is trained at its own times
            t = torch.ceil(t * denoiser.steps).clamp(min=1) / denoiser.steps
        eps = torch.randn(
            x_0.shape, dtype=x_0.dtype, device=generator.device, generator=generator
        ).to(x_0.device)
        return self.at(denoiser, x_0, t, eps, **cond)

    def at(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, **cond: Any) -> Tensor:
        """The loss [B] at given times [B] and normals [B, *event]. Raises ValueError for others."""
        if t.shape != x_0.shape[:1] or eps.shape != x_0.shape:
            raise InvalidValue(
                f"t must be [{len(x_0)}] and eps {tuple(x_0.shape)}, one for each x_0; got "
                f"{tuple(t.shape)} and {tuple(eps.shape)}"
            )
        process = denoiser.process
        alpha, sigma = process.alpha(t), process.sigma(t)
        row = READOUTS[denoiser.predicts](process, t, denoiser.sigma_data)
        target = column(row.u, x_0) * x_0 + column(row.w, x_0) * eps
        x_t = column(alpha, x_0) * x_0 + column(sigma, x_0) * eps
        error = column(row.kappa, x_0) * denoiser.raw(x_t, t, **cond) - target
        return self.weight(denoiser, t).to(x_0.dtype) * error.square().flatten(1).mean(1)

    def weight(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """What || kappa (P_net - P) ||^2 is multiplied by at times t [B], float64."""
        process = denoiser.process
        readout, c = WEIGHTINGS[self.weighting]
        weight = c(process, t, self)
        if readout is not None and readout != denoiser.predicts:
            scale = denoiser.coefficients(readout, t).scale
            kappa = READOUTS[denoiser.predicts](process, t, denoiser.sigma_data).kappa
            weight = weight * (scale / kappa).square()
        elif readout is not None:
            kappa = READOUTS[denoiser.predicts](process, t, denoiser.sigma_data).kappa
            weight = weight / kappa.square()
        if self.weighting == "likelihood":
            weight = weight * self._uniform_over_law(process, t)
        return weight

    def _uniform_over_law(self, process: Process, t: Tensor) -> Tensor:
        """Density of t uniform on [0, t_max - t_min] against the law it was drawn from, [B]."""
        if self.times == "uniform":
            return torch.ones_like(t)
        rate = process.sigma_dot(t) / process.sigma(t) - process.drift_rate(t)  # -d lambda/dt
        lam = process.log_snr(t)
        clean, noisy = process.log_snr(process.t_min), process.noisiest_log_snr
        if self.times == "log_snr":
            density = rate / (clean - noisy)
        elif self.times == "sigma":
            density = rate * torch.exp(-lam) / (process.noisiest_ratio - torch.exp(-clean))
        else:
            z = (-lam - self.P_mean) / self.P_std
            density = rate * torch.exp(-0.5 * z.square()) / (self.P_std * math.sqrt(2 * math.pi))
        return 1 / ((process.t_max - process.t_min) * density)


def check_batch_of(x_0: Any, generator: Any) -> None:
    """Raise TypeError or ValueError for data or a generator that no loss can be drawn of."""
    if not isinstance(generator, torch.Generator):
        raise InvalidType(f"generator must be a torch.Generator; got {type(generator).__name__}")
    if not isinstance(x_0, Tensor) or not x_0.is_floating_point():
        kind = x_0.dtype if isinstance(x_0, Tensor) else type(x_0).__name__
        raise InvalidType(f"x_0 must be a floating tensor [B, ...]; got {kind}")
    if x_0.ndim < 2 or len(x_0) == 0:
        raise InvalidValue(f"x_0 must be [B, ...] with B >= 1; got {tuple(x_0.shape)}")
    if x_0.device.type == "cpu" and not bool(torch.isfinite(x_0).all()):  # elsewhere: a wait
        raise InvalidValue("x_0 must be finite; it holds NaN or Inf")


LOSSES: dict[str, Objective] = {
    "simple": Objective(),
    "likelihood": Objective("likelihood"),
    "snr": Objective("snr"),
    "min-snr": Objective("min-snr"),
    "edm": Objective("edm", "log_normal"),
    "flow": Objective("flow"),
    "uniform-snr": Objective("edm", "log_snr"),
}
"""Objectives by the name that the command line uses."""
