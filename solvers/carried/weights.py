"""Importance weights of samples against a target that is known up to its normaliser."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from .result import Sampled


class Weights(NamedTuple):
    """Self-normalised importance weights.

    weights: float64 [B], of sum 1.
    log_weights: float64 [B], log target - log_prob, not normalised.
    ess: effective sample size 1/sum w^2, from 1 to B.
    log_normaliser: estimate of log of the target's integral, nats.
    std_error: its standard error from the spread of the weights, nats; too small where ess is few.
    """

    weights: Tensor
    log_weights: Tensor
    ess: float
    log_normaliser: float
    std_error: float

    def expectation(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """E f under the target from values f(x) [B, ...], and its standard error (delta method).

        Raises ValueError for another number of values.
        """
        if not isinstance(values, Tensor) or values.shape[:1] != self.weights.shape:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InvalidValue(f"values must be [{len(self.weights)}, ...]; got {got}")
        w = self.weights.reshape(-1, *(1,) * (values.ndim - 1))
        mean = (w * values.double()).sum(0)
        return mean, (w.square() * (values - mean).square()).sum(0).sqrt()


def importance_weights(log_target: Callable[[Tensor], Tensor] | Tensor, result: Sampled) -> Weights:
    """Weights w_i ~ pi(x_i)/q(x_i) of samples with their density (Noe et al. 2019, eq. 3).

        r = ud.sample(model, (4096, 2), "dpmpp-2m", log_prob=True)
        w = ud.importance_weights(lambda x: -energy(x), r)
        mean, error = w.expectation(r.x)

    log_target: log pi(x) + a constant, nats: of x [B, *event], or its values [B].
    result: of `ud.sample(..., log_prob=True)`.

    Along the 'map' q is the samples' own law and along the 'sde' a weight is that of the whole
    path, so that both are consistent however few the steps. Along the 'flow' q is estimated: the
    weights are divided by e^{std_error^2/2}, what the probes' chance multiplies them by on the
    average, and keep the error of the path. Raises TypeError for a result without log_prob;
    ValueError for values that do not fit, are NaN or +inf, or are all -inf.
    """
    if not isinstance(result, Sampled):
        raise InvalidType(
            "result must be what ud.sample(..., log_prob=True) returns; "
            f"got {type(result).__name__}"
        )
    target = log_target(result.x) if callable(log_target) else log_target
    if not isinstance(target, Tensor) or target.shape != result.log_prob.shape:
        got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise InvalidValue(
            f"log_target must give one number a sample, [{len(result.x)}]; got {got}"
        )
    for name, value in (("log_target", target), ("result.log_prob", result.log_prob)):
        bad = torch.isnan(value) | (value == torch.inf)
        if name == "result.log_prob":
            bad = ~torch.isfinite(value)
        if bool(bad.any()):
            some = bad.nonzero().flatten().tolist()[:8]
            raise InvalidValue(f"{name} must be a finite number; it is not for samples {some}")
    logs = target.detach().double() - result.log_prob
    if result.along == "flow":
        logs = logs - 0.5 * result.std_error.square()
    if not bool((logs > -torch.inf).any()):
        raise InvalidValue("log_target is -inf at every sample: the samples miss the target")
    weights = logs.softmax(0)
    ess = 1 / float(weights.square().sum())
    n = len(logs)
    return Weights(
        weights=weights,
        log_weights=logs,
        ess=ess,
        log_normaliser=float(logs.logsumexp(0)) - math.log(n),
        std_error=math.sqrt(max(1 / ess - 1 / n, 0.0)),
    )
