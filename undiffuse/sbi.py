"""Posteriors of sbi, sampled and evaluated by our solvers.

    ours = Posterior(posterior)            # what build_posterior() gave, of FMPE or NPSE
    theta = ours.sample((1000,), x=x_o)
    lp = ours.log_prob(theta, x=x_o)

Calls are those of sbi's own posteriors. sbi need not be imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .distribution import DiffusionDistribution
from .kernels.errors import InvalidType, InvalidValue
from .models.adapters.estimators import from_sbi
from .solvers import arguments

TRIES = 100
"""Rounds of drawing until a sample lies in the prior's support; sbi warns where one in a hundred
does."""

SMALL = 32
"""Parameters up to which a trace is exact by default: an estimator's products are cheap."""

DENSITY = {"trace": "exact", "method": "augmented", "rtol": 1e-4, "atol": 1e-4}
"""Options of log p there. Of one ODE with exact traces no error is left but that of its steps: a
trained estimator is no density's exact score, as the quadrature's correction supposes."""

QUADRATURE = {"trace", "method", "backend", "points", "target_std_error", "target_solver_error"}
QUADRATURE |= {"control", "max_probes"}
"""Options of log p that choose another way than `DENSITY`."""


class Posterior:
    """p(theta | x) of a vector field estimator.

    source: a posterior of sbi, or its estimator.
    prior: what theta must lie in the support of; by default the posterior's own, of an estimator
        none.
    options: solver, steps, nfe, grid and final of the samples, rtol, atol, trace, ... of the
        densities; see `DiffusionDistribution`.

    Sampling starts from the estimator's base, N(mean_base, std_base^2), and log_prob ends in it, as
    sbi has it. Up to 32 parameters log_prob is one ODE with exact traces (`DENSITY`).
    Raises TypeError for another source.
    """

    def __init__(self, source: Any, prior: Any = None, **options: Any) -> None:
        estimator = getattr(source, "vector_field_estimator", source)
        self.model = from_sbi(estimator)
        self.estimator = estimator
        if math.prod(self._event) <= SMALL and options.get("probes") is None:
            given = {name for name, value in options.items() if value is not None}
            options = ({"trace": "exact"} if given & QUADRATURE else DENSITY) | options
        self.options = options
        self.prior = getattr(source, "prior", None) if prior is None else prior
        self.default_x: Tensor | None = getattr(source, "default_x", None)
        DiffusionDistribution(self.model, self._event, **options)  # refuses what does not fit

    def set_default_x(self, x: Tensor) -> Posterior:
        """Condition on x where none is given."""
        self.default_x = x
        return self

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        x: Tensor | None = None,
        *,
        seed: int | None = None,
        reject_outside_prior: bool = True,
        show_progress_bars: bool = False,
    ) -> Tensor:
        """theta [*sample_shape, d].

        x: the observation, [d_x] or [1, d_x].
        seed: of the noise; by default one of torch's generator.
        reject_outside_prior: draw again what lies outside the prior's support.
        show_progress_bars: for sbi's call; nothing is shown.
        Raises ValueError for several observations, RuntimeError where the support is not met.
        """
        law = self._law(x)
        count = math.prod(torch.Size(sample_shape))
        seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        kept: list[Tensor] = []
        wanted = count
        for k in range(TRIES):
            theta = self._out(law.sample((max(wanted, 1),), seed=seed + k))
            if reject_outside_prior and self.prior is not None:
                theta = theta[self._inside(theta)]
            kept.append(theta[:wanted])
            wanted -= len(kept[-1])
            if not wanted:
                return torch.cat(kept).reshape(*torch.Size(sample_shape), *self._event)
        raise InvalidValue(
            f"only {count - wanted} of {count} samples lie in the prior's support after {TRIES} "
            "rounds: the estimator leaks; use reject_outside_prior=False to look at its samples"
        )

    def log_prob(self, theta: Tensor, x: Tensor | None = None, *, seed: int = 0) -> Tensor:
        """log p(theta | x), nats [n]; -inf outside the prior's support.

        theta: [n, d].
        x: the observation, [d_x] or [1, d_x].
        seed: of the probes, where the trace is estimated.
        Raises ValueError for several observations.
        """
        return self._scored(theta.reshape(-1, *self._event), self._law(x), seed)

    def _scored(self, theta: Tensor, law: DiffusionDistribution, seed: int) -> Tensor:
        """log p of theta [n, d] under a law of one observation, or of n."""
        z, logs = theta, 0.0
        if self._composed:
            z = self.estimator.to_z(theta)
            logs = -float(self.estimator.log_abs_det())
        found = law.log_prob(z, seed=seed) + logs
        if self.prior is None:
            return found
        return torch.where(self._inside(theta), found, -torch.inf)

    def sample_batched(
        self,
        sample_shape: Sequence[int],
        x: Tensor,
        *,
        seed: int | None = None,
        reject_outside_prior: bool = True,
        show_progress_bars: bool = False,
    ) -> Tensor:
        """theta [*sample_shape, B, d] of B observations at once, one run for all of them.

        x: observations [B, d_x].
        seed, reject_outside_prior, show_progress_bars: as of `sample`.
        Raises ValueError for other shapes, RuntimeError where the support is not met.
        """
        x = self._several(x)
        shape, size = torch.Size(sample_shape), len(x)
        count = math.prod(shape)
        seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        missing = torch.arange(count * size, device="cpu")  # draw n is of observation n modulo B
        kept: Tensor | None = None
        for k in range(TRIES):
            rows = x[missing % size]
            law = self._law_of(rows)
            theta = self._out(law.sample((1,) if len(rows) == 1 else (), seed=seed + k))
            theta = theta.reshape(len(missing), *self._event)
            kept = theta.new_empty(count * size, *self._event) if kept is None else kept
            kept[missing] = theta
            if not (reject_outside_prior and self.prior is not None):
                break
            missing = missing[~self._inside(theta).cpu()]
            if not len(missing):
                break
        else:
            raise InvalidValue(
                f"{len(missing)} of {count * size} samples lie outside the prior's support after "
                f"{TRIES} rounds: the estimator leaks; use reject_outside_prior=False to see them"
            )
        assert kept is not None
        return kept.reshape(*shape, size, *self._event)

    def log_prob_batched(self, theta: Tensor, x: Tensor, *, seed: int = 0) -> Tensor:
        """log p(theta | x) of B observations, nats [..., B]; -inf outside the prior's support.

        theta: [..., B, d], a column of parameters for each observation.
        x: observations [B, d_x].
        seed: of the probes, where the trace is estimated.
        Raises ValueError for other shapes.
        """
        x = self._several(x)
        lead = theta.shape[: theta.ndim - len(self._event)]
        if not lead or lead[-1] != len(x) or tuple(theta.shape[len(lead) :]) != self._event:
            raise InvalidValue(
                f"theta must be [..., {len(x)}, {', '.join(map(str, self._event))}], a column for "
                f"each observation; got {tuple(theta.shape)}"
            )
        flat = theta.reshape(-1, *self._event)
        rows = x.repeat(len(flat) // len(x), *(1,) * (x.ndim - 1))
        return self._scored(flat, self._law_of(rows), seed).reshape(lead)

    @property
    def _event(self) -> tuple[int, ...]:
        return tuple(self.estimator.input_shape)

    @property
    def _composed(self) -> bool:
        return bool(getattr(self.estimator, "compose_enabled", False))

    def _law(self, x: Tensor | None) -> DiffusionDistribution:
        x = self.default_x if x is None else x
        if not isinstance(x, Tensor):
            raise InvalidType("x, the observation, must be a tensor: give it, or set_default_x")
        shape = tuple(self.estimator.condition_shape)
        if x.numel() != math.prod(shape):
            raise InvalidValue(
                f"x must be one observation of shape {shape}; got {tuple(x.shape)}: several "
                "independent ones need sbi's own posterior, one a row sample_batched"
            )
        return self._law_of(x.reshape(1, *shape))

    def _several(self, x: Tensor) -> Tensor:
        """Observations, one a row."""
        shape = tuple(self.estimator.condition_shape)
        if not isinstance(x, Tensor):
            raise InvalidType(f"x, the observations, must be a tensor; got {type(x).__name__}")
        if x.ndim != len(shape) + 1 or tuple(x.shape[1:]) != shape or not len(x):
            raise InvalidValue(
                f"x must be observations [B, {', '.join(map(str, shape))}]; got {tuple(x.shape)}"
            )
        return x

    def _law_of(self, x: Tensor) -> DiffusionDistribution:
        """The law given observations [B, d_x], one each, or [1, d_x]."""
        base = self.estimator.mean_base.detach(), self.estimator.std_base.detach()
        cond = {"condition": x.to(arguments.device_of(self.model))}
        return DiffusionDistribution(self.model, self._event, cond, base, **self.options)

    def _out(self, z: Tensor) -> Tensor:
        return self.estimator.from_z(z) if self._composed else z

    def _inside(self, theta: Tensor) -> Tensor:
        """Whether the prior has theta, bool [n]."""
        prior: Any = self.prior
        try:
            inside = prior.support.check(theta)
        except (NotImplementedError, AttributeError):
            inside = torch.isfinite(prior.log_prob(theta))
        return torch.as_tensor(inside).reshape(len(theta), -1).all(1)
