"""The reversal of a process as vector fields: for other integrators, and in gentle coordinates.

    probability flow   dx/dt = f x - 1/2 g^2 s(x, t)                        (Song et al. 2021, 13)
    reverse SDE        dy = [-f y + g^2 s(y, t)] ds + g dw,  s = t_max - t  (Anderson 1982)

`probability_flow` and `reverse_sde` are callables for other libraries. They are read off the
network by one affine map folded in float64 (models/readout.py): a network that predicts the
velocity is handed through unchanged, and nothing is divided by sigma unless the answer itself is.

`ScaledFlow` is what this package integrates. With x^ = x/alpha, s^ = sigma/alpha and
lambda = -log s^ the flow is dx^/dlambda = D - x^, whatever the schedule. For data of scale s it is
smoothest in

    u = x^/n,   n^2 = s^2 + s^^2:        du/dlambda = (D - x^ s^2/n^2)/n,

which is zero where the data are N(0, s^2), and bounded at both ends. Densities are those of x^:

    d/dlambda log p^(x^(lambda)) = d - tr(dD/dx^)      along the flow.

Where alpha(t_max) is (next to) 0, lambda is cut off at s^ = process.noisiest_ratio and the rest is
one DDIM step: D has become the data's mean there; what is neglected is of order (s/s^)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import rademacher
from ..kernels.checks import check_dense
from ..kernels.errors import InvalidValue
from ..kernels.shapes import as_float64, column
from ..kernels.streams import GRADIENT
from ..models import Denoiser, Process, jacobian
from ..models.denoiser import Combination
from . import arguments
from .outcome import Status, raise_if_failed

T_MIN = 1e-5
FINEST = {torch.float32: 1e-6, torch.float64: 1e-12}
"""The least sigma/alpha at a caller's t_min by dtype of the data: ten times the rounding of
float32, in which noise of that size can still be told."""
SHARPEST = 1e-5  # sigma/alpha: below it float32 hardly tells D from x, nor 1/sigma^2 of it a score


def start_time(
    model: Denoiser, t_min: float | None = None, dtype: torch.dtype | None = None
) -> float:
    """Where an integration over data starts.

    t_min: None takes 1e-5 for processes in closed form down to 0 and networks of continuous time
        (sub-VP, whose noise falls as t: 1e-4, where sigma/alpha is 1e-5), else the model's own.
    dtype: of the data. A t_min at which their noise would be lost in rounding is refused.

    Raises TypeError for a model that is not a `Denoiser`, ValueError for t_min outside (0, t_max).
    """
    process = arguments.denoiser(model).process
    if t_min is None:
        free = process.closed_form and model.time != "index"
        if not free:
            if model.t_min >= process.t_max:
                raise InvalidValue(
                    f"{process} and steps={model.steps} leave one time only, t={process.t_max:g}: "
                    "likelihood needs a process of two steps at least"
                )
            return model.t_min
        sharpest = process.inverse_log_snr(
            torch.tensor(-math.log(SHARPEST), dtype=torch.float64, device="cpu")
        )
        return min(max(T_MIN, float(sharpest)), process.t_min)
    if not 0 < t_min < process.t_max and t_min != process.t_min:  # a learned schedule starts at 0
        raise InvalidValue(f"t_min must lie in (0, t_max={process.t_max:g}); got {t_min}")
    ratio = math.exp(-float(process.log_snr(t_min)))
    if dtype is not None and ratio < FINEST[dtype] and t_min < model.t_min:
        least = process.inverse_log_snr(
            torch.tensor(-math.log(FINEST[dtype]), dtype=torch.float64, device="cpu")
        )
        raise InvalidValue(
            f"t_min must be at least {float(least):.3g} for data in {str(dtype)[6:]}: at {t_min:g} "
            f"their noise, sigma/alpha={ratio:.2g}, is lost in rounding"
        )
    return float(t_min)


def probability_flow(
    model: Denoiser, cond: dict[str, Any] | None = None, t_min: float | None = None
) -> Callable[[float | Tensor, Tensor], Tensor]:
    """f(t, x) = dx/dt of the probability flow: the right-hand side for torchdiffeq.odeint.

        odeint(probability_flow(model), x_T, torch.tensor([t_max, t_min]))      # samples
        odeint(probability_flow(model), x, torch.tensor([t_min, t_max]))        # encodes

    f takes t, a float or a tensor of no dimension or [B], and x [B, *event] of any event shape.
    What it returns has x's shape and dtype.

    model: a `Denoiser`.
    cond: keyword arguments for the network.
    t_min: where time starts, as for `log_prob`; a t outside [t_min, t_max] counts as its end.
    Raises TypeError for a model that is not a `Denoiser`; the callable raises ValueError at a
    time where the velocity cannot be read off what the network predicts.
    """
    first, last = start_time(model, t_min), model.process.t_max
    extra = dict(cond or {})

    def velocity(t: float | Tensor, x: Tensor) -> Tensor:
        where = t.device if isinstance(t, Tensor) and t.device.type == "cuda" else "cpu"
        t = torch.as_tensor(t, device=where).double().clamp(first, last)  # few numbers: the host's
        return model.velocity(x, t, **extra)

    return velocity


class ReverseSDE:
    """The reverse SDE in the form torchsde asks for; made by `reverse_sde`.

    f(s, y), g(s, y): drift and diffusion [B, d] at s = t_max - t; noise_type 'diagonal',
    sde_type 'ito'. span = (s_0, t_max - t_min): from noise to data. s_0 is 0; but where
    alpha(t_max) is (next to) 0, f and g are singular there, and it is where alpha/sigma = 0.01
    (s_0 = 0.0099 for `Flow`). The prior's noise may start there too: the mean it lacks is 0.01 of
    the data's, and is forgotten. Euler is stable from there for dt <= s_0.
    """

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(
        self,
        model: Denoiser,
        event_shape: Sequence[int] | None = None,
        cond: dict[str, Any] | None = None,
    ) -> None:
        self.model = arguments.denoiser(model)
        self.event_shape = None if event_shape is None else tuple(int(n) for n in event_shape)
        self.cond = dict(cond or {})
        self.span = (_first(model.process), model.process.t_max - model.t_min)

    def time(self, s: float | Tensor) -> Tensor:
        """t = t_max - s, float64, kept from falling below 0 or t_min by the rounding of s."""
        t = self.model.process.t_max - as_float64(s)
        slack = 1e-6 * self.span[1]
        return torch.where((t - self.model.t_min).abs() < slack, self.model.t_min, t)

    def f(self, s: float | Tensor, y: Tensor) -> Tensor:
        """-f y + g^2 s(y, t), [B, d]."""
        t = self.time(s)
        process = self.model.process
        rate, g2 = process.drift_rate(t), process.diffusion(t).square()
        if not bool(torch.isfinite(rate) & torch.isfinite(g2)):
            raise InvalidValue(
                f"the reverse SDE of {process} is singular at s={float(s):g} (t={float(t):g}), "
                f"where alpha=0: start it later, at span[0]={self.span[0]:g}"
            )
        x = y if self.event_shape is None else y.reshape(-1, *self.event_shape)
        score = self.model.score(x, t, **self.cond).reshape(y.shape)
        return g2.to(y.dtype) * score - rate.to(y.dtype) * y

    def g(self, s: float | Tensor, y: Tensor) -> Tensor:
        """g(t) for every component, [B, d]."""
        check_dense("y", y)
        return self.model.process.diffusion(self.time(s)).to(y.dtype).expand_as(y)


def reverse_sde(
    model: Denoiser,
    event_shape: Sequence[int] | None = None,
    cond: dict[str, Any] | None = None,
) -> ReverseSDE:
    """dy = [-f y + g^2 score] ds + g dw with s = t_max - t, for torchsde.sdeint.

        sde = reverse_sde(model, event_shape=(1, 28, 28))
        y = torchsde.sdeint(sde, y_0, torch.tensor(sde.span), dt=1e-2, method="euler")[-1]

    model: a `Denoiser`.
    event_shape: the shape that the network expects of an event; torchsde integrates y [B, d].
    cond: keyword arguments for the network.
    Raises TypeError for a model that is not a `Denoiser`. `f` raises ValueError at t_max of a flow,
    where g is infinite; `span` starts after it.
    """
    return ReverseSDE(model, event_shape, cond)


def _first(process: Process) -> float:
    """The s at which the reverse SDE of the process starts, see `ReverseSDE`."""
    first = process.first_log_snr()
    if first == float(process.log_snr(process.t_max)):
        return 0.0
    return process.t_max - float(process.inverse_log_snr(first))


class Level(NamedTuple):
    """The schedule at some lambda, float64 [n]: D = a x^ + b out, and share = s^^2/n^2."""

    t: Tensor
    alpha: Tensor
    norm: Tensor
    share: Tensor
    a: Tensor
    b: Tensor

    def residual(self, x_hat: Tensor, out: Tensor) -> Tensor:
        """r = D - x^."""
        return column(self.a - 1, x_hat) * x_hat + column(self.b, x_hat) * out

    def velocity(self, x_hat: Tensor, residual: Tensor) -> Tensor:
        """du/dlambda = (r + x^ s^^2/n^2)/n."""
        return (residual + column(self.share, x_hat) * x_hat) / column(self.norm, x_hat)


class ScaledFlow:
    """The flow of `model` for a batch of given size; lam_data > lam_noise are its two ends.

    cond: keyword arguments of the network; their rows follow their samples (models.conditions).
    t_min, dtype: see `start_time`. forwards counts network evaluations, [B] int64.
    """

    def __init__(
        self,
        model: Denoiser,
        batch: int,
        cond: dict[str, Any] | None = None,
        t_min: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.batch = model.told(cond, batch), batch
        self.scale = model.sigma_data
        process = model.process
        self.t_min = start_time(model, t_min, dtype)
        self.lam_data = float(process.log_snr(self.t_min))
        self.lam_noise = process.noisiest_log_snr
        self.forwards = torch.zeros(batch, dtype=torch.int64, device="cpu")

    @property
    def guided(self) -> bool:
        """Whether several networks are combined, or one is bent: a field that is the score of no
        noised density, even if theirs are."""
        return isinstance(self.model.net, Combination)

    @property
    def blur(self) -> float:
        """Standard deviation of the noise that the data carry at t_min, sigma/alpha."""
        return math.exp(-self.lam_data)

    def norm(self, lam: float | Tensor) -> Tensor:
        """n(lambda), float64."""
        ratio = torch.exp(-as_float64(lam))
        return torch.sqrt(ratio.square() + self.scale**2)  # hypot rounds otherwise in other batches

    def at(self, lam: Tensor) -> Level:
        """The schedule at lambda [n]: computed once for all that is done there."""
        model, norm = self.model, self.norm(lam)
        t = model.process.inverse_log_snr(lam).clamp(self.t_min, model.process.t_max)
        alpha, share = model.process.alpha(t), torch.exp(-2 * lam) / norm**2
        if model.clip is not None:
            return Level(t, alpha, norm, share, torch.zeros_like(t), torch.ones_like(t))
        skip, scale = model.coefficients("data", t)
        return Level(t, alpha, norm, share, skip * alpha, scale)

    def output(self, x_hat: Tensor, at: Level, rows: Tensor) -> Tensor:
        """out with D = a x^ + b out: the network's output at alpha x^, or D itself if clipped."""
        return self.told(column(at.alpha, x_hat) * x_hat, at.t, rows)

    def told(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """The network's output at x and t [n], or D itself if clipped; it counts as a forward."""
        model = self.model.rows(rows, self.batch)
        self.forwards = self.forwards.to(rows.device)
        self.forwards.index_add_(0, rows, torch.ones_like(rows))
        if model.clip is None:
            return model.output(x, t, model.cond)
        return model.read("data", x, t, model.cond)

    def residual(self, x_hat: Tensor, lam: Tensor, rows: Tensor) -> Tensor:
        """r = D - x^ = s^^2 grad log p^, formed without cancelling x^ where the network allows."""
        at = self.at(lam)
        return at.residual(x_hat, self.output(x_hat, at, rows))

    def score(self, lam: Tensor, u: Tensor, slope: Tensor) -> Tensor:
        """Gradient of log p^ in u where du/dlambda is `slope`, like u [n, *event], float64:
        n r/s^^2 with the r that `Level.velocity` makes that slope of."""
        weight = self.norm(lam).square() * torch.exp(2 * lam)
        return column(weight, u.double()) * slope - u

    def field(self, lam: Tensor, u: Tensor, rows: Tensor) -> Tensor:
        """du/dlambda: the right-hand side for `adaptive_ode.integrate`."""
        at = self.at(lam)
        x_hat = column(at.norm, u) * u
        return at.velocity(x_hat, at.residual(x_hat, self.output(x_hat, at, rows)))

    def agrees(self, x: Tensor, seed: int | Tensor, ids: Tensor) -> Tensor:
        """Whether the network's gradient is that of its values, bool [B], at data x with as much
        noise as they have scale, where D depends on x most. See `models.jacobian.agrees`."""
        lam = min(max(-math.log(self.scale), self.lam_noise), self.lam_data)
        at = self.at(torch.full((len(x),), lam, dtype=torch.float64, device=x.device))
        sub, made = GRADIENT.subdraw, (x.dtype, x.device)
        signs = torch.stack([rademacher(x.shape, seed, ids, k, sub, *made) for k in range(4)])
        n = float(at.norm[0])

        def out(u: Tensor, rows: Tensor) -> Tensor:
            return self.output(n * u, Level(*(v[rows] for v in at)), rows)

        return jacobian.agrees(out, (x + math.exp(-lam) * signs[3]) / n, signs[:3])

    def refuse_hidden(self, x: Tensor, seed: int | Tensor = 0, ids: Tensor | None = None) -> None:
        """Raises SolverError for samples at which `agrees` is False."""
        told = self.agrees(x.detach(), seed, arguments.sample_ids(ids, len(x), x.device))
        raise_if_failed(torch.where(told, 0, int(Status.NOT_DIFFERENTIABLE)), None, "raise")

    # --- the two ends -------------------------------------------------------------------------

    def enter(self, x: Tensor) -> Tensor:
        """u of data x, which are x^ at lam_data."""
        return x / self.norm(self.lam_data).to(x.dtype)

    def leave(self, u: Tensor) -> Tensor:
        """Data of u at lam_data."""
        return u * self.norm(self.lam_data).to(u.dtype)

    def latent(self, u: Tensor, data: Tensor | None = None) -> Tensor:
        """x at t_max of u at lam_noise; data: D there, where the caller has it."""
        x_hat = u * self.norm(self.lam_noise).to(u.dtype)
        ratio, weight = self._jump()
        if weight == 0:
            return ratio * x_hat
        if data is None:
            data = x_hat + self.residual(x_hat, self._lam(u), self._all(u))
        return ratio * x_hat + weight * data

    def from_latent(self, z: Tensor) -> Tensor:
        """u at lam_noise of a latent z at t_max; inverts `latent` by fixed point."""
        ratio, weight = self._jump()
        x_hat = z / ratio
        if weight != 0:
            for _ in range(3):  # contracts by (s/noisiest_ratio)^2 a time
                data = x_hat + self.residual(x_hat, self._lam(z), self._all(z))
                x_hat = (z - weight * data) / ratio
        return x_hat / self.norm(self.lam_noise).to(z.dtype)

    @property
    def ends_pure(self) -> bool:
        """Whether lambda is cut off where noise counts as pure, so that nothing is left of data."""
        return self._jump()[1] != 0

    def at_noise(self, z: Tensor) -> Tensor:
        """x^ at lam_noise of a latent z, of a flow that is not `ends_pure`."""
        return z / self._jump()[0]

    def prior(self, z: Tensor) -> Tensor:
        """log density of x^ at lam_noise whose latent is z: N(0, sigma^2) at t_max, [B]."""
        log_prob = self.model.process.prior.log_prob(z)
        return log_prob + z[0].numel() * math.log(self._jump()[0])

    def _jump(self) -> tuple[float, float]:
        """(a, b) with x at t_max = a x^ + b D: DDIM from lam_noise; b = 0 where nothing is cut."""
        process = self.model.process
        lam = torch.tensor(self.lam_noise, dtype=torch.float64, device="cpu")
        t = process.inverse_log_snr(lam).clamp(self.t_min, process.t_max)
        ratio = process.alpha(t) * process.sigma(process.t_max) / process.sigma(t)
        weight = process.alpha(process.t_max) - ratio
        cut = self.lam_noise > float(process.log_snr(process.t_max))
        return float(ratio), float(weight) if cut else 0.0

    def _lam(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.lam_noise, dtype=torch.float64, device=x.device)

    def _all(self, x: Tensor) -> Tensor:
        return torch.arange(len(x), device=x.device)

    def part(self, rows: Tensor) -> ScaledFlow:
        """The flow of these samples alone, with counts of its own."""
        part = self.model.rows(rows, self.batch)
        return ScaledFlow(part, len(rows), t_min=self.t_min)
