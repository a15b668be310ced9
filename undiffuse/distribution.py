"""A model as a `torch.distributions` distribution, and as a flow in the manner of zuko.

    flow = as_flow(model, (3,), condition="label")
    p = flow(label)                        # of one label [1], or of each of them [B]
    p.sample((100,)), p.log_prob(x)

Programs that call normalising flows by `flow(c).log_prob(x)` and `flow(c).sample((n,))` take it as
one of theirs: samples are those of `ud.sample`, densities those of `ud.log_prob`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from .kernels import normal
from .kernels.errors import InvalidType, InvalidValue
from .kernels.streams import INITIAL
from .models import Denoiser
from .solvers import arguments
from .solvers.likelihood.log_prob import log_prob
from .solvers.likelihood.options import Likelihood
from .solvers.sampling.sample import sample

RUN = ("solver", "steps", "nfe", "grid", "final")
"""Options of the samples; others are those of the densities, whose solver is their default."""


class DiffusionDistribution(Distribution):
    """The law of the samples of a model, under its probability flow.

    model: a `Denoiser`.
    event_shape: of one sample.
    cond: conditions of the network, tensors [B, ...] of one law each, or [1, ...] of one in all.
    base: (mean, std) of the normals that sampling starts from and log_prob ends in, broadcast to
        the event; by default (0, sigma) at t_max. log_prob is then of the samples as they are
        drawn, without corrections of its own for the prior and the noise at t_min.
    options: solver, steps, nfe, grid and final of `ud.sample`; the rest as of `ud.log_prob`, whose
        own solver is its default.

    Where the solver is stochastic its samples follow the reverse SDE, of the same law.
    Raises ValueError and TypeError for what does not fit.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        model: Denoiser,
        event_shape: Sequence[int],
        cond: Mapping[str, Tensor] | None = None,
        base: tuple[Tensor | float, Tensor | float] | None = None,
        **options: Any,
    ) -> None:
        self.model = arguments.denoiser(model)
        self.cond = dict(cond or {})
        for name, value in self.cond.items():
            if not isinstance(value, Tensor) or not value.ndim:
                raise InvalidType(f"cond[{name!r}] must be a tensor [B, ...] or [1, ...]")
        rows = {len(value) for value in self.cond.values()} or {1}
        if len(rows - {1}) > 1:
            raise InvalidValue(
                f"conditions must be of one batch or of length 1; got {sorted(rows)}"
            )
        known = {f.name for f in fields(Likelihood)}
        arguments.keywords("DiffusionDistribution", options, (*RUN, *sorted(known)))
        self.run = {key: value for key, value in options.items() if key in RUN}
        self.how = {key: value for key, value in options.items() if key in known - set(RUN)}
        Likelihood(**self.how)  # so that what does not fit is refused here
        self.base = base
        count = max(rows)
        batch = torch.Size((count,) if count > 1 else ())
        event = arguments.batch_shape("event_shape", (1, *event_shape))[1:]
        super().__init__(batch, torch.Size(event), validate_args=False)

    @property
    def support(self) -> Any:
        shape: Any = constraints  # it carries no annotations
        return shape.independent(constraints.real, len(self.event_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), seed: int | Tensor | None = None) -> Tensor:
        """[*sample_shape, *batch_shape, *event_shape].

        seed: of the noise; by default one of torch's generator.
        """
        shape = torch.Size(sample_shape)
        n = math.prod(shape)
        count = n * math.prod(self.batch_shape)
        if not count:
            return torch.zeros(*shape, *self.batch_shape, *self.event_shape, device="cpu")
        seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        start = None
        if self.base is not None:
            device = arguments.device_of(self.model)
            ids = arguments.sample_ids(None, count, device)
            z = normal((count, *self.event_shape), seed, ids, **INITIAL.at(), device=device)
            mean, std = self._base(z)
            start = mean + std * z
        x: Tensor = sample(
            self.model,
            (count, *self.event_shape),
            cond=self._rows(n),
            seed=seed,
            x_init=start,
            **self.run,
        )
        return x.reshape(*shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor, seed: int | Tensor = 0) -> Tensor:
        """log p of [..., *batch_shape, *event_shape] under the probability flow, nats.

        seed: of the probes, where the trace is estimated.
        """
        d = len(self.event_shape)
        given = value.new_empty(value.shape[: value.ndim - d])
        lead = (given + value.new_empty(self.batch_shape)).shape
        x = value.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        count = math.prod(self.batch_shape)
        how = (
            self.how if self.base is None else {**self.how, "prior": "normal", "truncation": False}
        )
        found = log_prob(self.model, x, cond=self._rows(len(x) // count), seed=seed, **how)
        logs = found.log_prob
        if self.base is not None:
            z = found.latent.double()
            mean, std = self._base(z)
            normals = -0.5 * ((z - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
            total = normals.expand_as(z).flatten(1).sum(1)
            logs = logs - self.model.process.prior.log_prob(z) + total
        return logs.reshape(lead).to(value.dtype)

    def _base(self, like: Tensor) -> tuple[Tensor, Tensor]:
        assert self.base is not None
        mean, std = (torch.as_tensor(v).to(like) for v in self.base)
        shape = like.shape[1:]
        return mean.expand(1, *shape) if mean.ndim <= len(shape) else mean, std

    def _rows(self, times: int) -> dict[str, Tensor]:
        """The conditions of so many rounds of the batch; what is of length 1 is shared."""
        return {
            name: value if len(value) == 1 else value.repeat(times, *(1,) * (value.ndim - 1))
            for name, value in self.cond.items()
        }


class DiffusionFlow(nn.Module):
    """condition -> distribution, as zuko's flows are called; `as_flow` makes one."""

    def __init__(
        self, model: Denoiser, event_shape: Sequence[int], condition: str, options: dict[str, Any]
    ) -> None:
        super().__init__()
        DiffusionDistribution(model, event_shape, **options)
        self.model, self.shape, self.condition = model, tuple(event_shape), condition
        self.options = options
        if isinstance(model.net, nn.Module):
            self.net = model.net  # so that .to() and .parameters() reach it

    def forward(self, c: Tensor | None = None) -> DiffusionDistribution:
        """The law given c [B, ...], or [1, ...] for one law; without c where none is needed."""
        cond = {} if c is None else {self.condition: c}
        return DiffusionDistribution(self.model, self.shape, cond, **self.options)


def as_flow(
    model: Denoiser, event_shape: Sequence[int], *, condition: str = "condition", **options: Any
) -> DiffusionFlow:
    """The model as a conditional flow: `flow(c)` is a distribution with `sample` and `log_prob`.

    model: a `Denoiser`.
    event_shape: of one sample.
    condition: the network's name for c.
    options: as of `DiffusionDistribution`.
    """
    return DiffusionFlow(model, event_shape, condition, options)
