"""The law of one step of a run: what a policy gradient asks of a sampler.

Given the run so far, the next state of a table with noise is normal: its mean is linear in states
and predictions, its deviation a number of the row. See `tables.innovations` for how the two follow
from the table, also where a stage and the step's end share normals.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.checks import sent
from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.shapes import column
from ...models.calling import Pair
from ..tables.innovations import as_wide, innovations
from ..tables.spectral import SpectralTable
from ..tables.tableau import Tableau
from .loop import Loop
from .plan import Plan, compose
from .state import Noise, State


class Moments(NamedTuple):
    """The law N(mean, std^2) of a step's next state given the run before it.

    mean: [B, ...].
    std: [B, 1, ...], the same for all components; 0 where the row draws no noise.
    """

    mean: Tensor
    std: Tensor


class ScoredStep(NamedTuple):
    """A step with its log-density.

    state: after the step.
    log_prob: [B], log N(x; mean, std^2) summed over a sample's components, in nats.
    mean, std: see `Moments`.
    """

    state: State
    log_prob: Tensor
    mean: Tensor
    std: Tensor


def log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2) of each sample [B], and 0 where std = 0.

    x, mean: [B, ...].
    std: [B, 1, ...].
    """
    width = std.flatten()
    scale = torch.where(width > 0, width, 1.0)
    off = (x - mean).flatten(1)
    each = scale.log() + 0.5 * math.log(2 * math.pi)
    found = -0.5 * off.square().sum(1) / scale.square() - off.shape[1] * each
    return torch.where(width > 0, found, 0.0)


class Densities(Loop):
    """What a `Sampler` says of the law of its steps."""

    t_dtype: torch.dtype
    device: torch.device

    def composed(self, tableau: Tableau | SpectralTable) -> Plan:
        """The plan of a table for this model, device and types."""
        return compose(tableau, self.model, self.device, self.dtype, self.t_dtype)

    def moments(self, state: State, out: Tensor | Pair) -> Moments:
        """The law N(mean, std^2) of the next state given the run so far and the network's output.

        state, out: as for `tell`, which draws from this law.

        The mean is the row without noise, and std the root of the sum of its squared coefficients.
        Where rows share normals, as the stages of stochastic single-step methods do, what a stage
        has told of them moves the mean. Gradients flow through the mean to `out`, to x and, of a
        multistep table, to earlier outputs. std is 0 for a row without noise.
        Raises ValueError as `tell`.
        """
        means, deviations, _ = self._laws
        mean, i = means.tell(state, out).x, state.inside
        std = deviations[i].expand(len(mean))
        if not isinstance(i, int):
            std = torch.where(sent(state.finished, mean.device), 0.0, std)
        return Moments(mean, column(std, mean))

    def step_with_log_prob(
        self,
        state: State,
        out: Tensor | Pair,
        next_x: Tensor | None = None,
        *,
        noise: Noise | None = None,
    ) -> ScoredStep:
        """`tell`, with the log-density of the step: a policy's action and its log-probability.

        state, out, noise: as for `tell`.
        next_x: [B, ...], a next state that is known, e.g. of a stored trajectory, to go on from and
            to score; by default the one that `tell` draws.

        A state that is drawn is an action, a constant to autograd, so that the gradient of log_prob
        is a score function's; through a given next_x it flows. A row without noise is no choice of
        the policy: its log_prob is 0, wherever next_x is; see `noisy`. Published code averages over
        components where this sums: divide by their number.
        Raises ValueError as `tell`, for a next_x of another shape or device, and for both next_x
        and noise; TypeError for a next_x that is no tensor.
        """
        if next_x is not None and noise is not None:
            raise InvalidValue("next_x and noise were both given: noise is what draws a next state")
        if next_x is not None and not isinstance(next_x, Tensor):
            raise InvalidType(f"next_x must be a tensor; got {type(next_x).__name__}")
        mean, std = self.moments(state, out)
        after = self.tell(state, out, noise=noise)
        if next_x is not None:
            after = after.replace(x=next_x)
        elif after.x.requires_grad:
            after = after.replace(x=after.x.detach())
        return ScoredStep(after, log_density(after.x, mean, std), mean, std)

    @property
    def noisy(self) -> Tensor:
        """Whether each row has a density (adds noise of its own), bool [N] on the host."""
        return self._laws[2]

    @cached_property
    def _laws(self) -> tuple[Densities, Tensor, Tensor]:
        """The sampler of the conditional means, their deviations [N], and where those are > 0."""
        if not isinstance(self.tableau, Tableau):
            none = torch.zeros(self.tableau.nfe, dtype=self.dtype, device=self.device)
            return self, none, torch.zeros(len(none), dtype=torch.bool, device="cpu")
        mean, std = innovations(self.tableau)
        means = copy.copy(self)
        plan = self.composed(as_wide(mean, self.tableau))
        means.plan = replace(plan, key=self.plan.key)  # it steps from the same states
        means.weighed = {}  # of its own table
        return means, sent(std, self.device, self.dtype), std > 0
