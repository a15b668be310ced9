"""Exact samples of a benchmark's problem, and its density, at the noise level where a run ends."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ...kernels import normal
from . import features
from .problem import Problem, from_unit, time_at

EXACT_DRAWS = 2048
"""Exact samples behind the mean log density."""
BLUR_NEIGHBOUR = 16
"""Its distance among exact samples is the blur of the Fisher divergence."""


class Inapplicable(Exception):
    """The measure does not exist for this problem; the message says why."""


def exact_draw(problem: Problem, ratio: float, n: int, seed: int) -> Tensor:
    """n exact samples at sigma/alpha = ratio on the data's scale, x/alpha; float64 [n, *event].

    Of the law; or of the real data without replacement, and then fewer if need be: one half of
    them for an even seed, the other for the odd one that follows, so the two share no point.
    """
    x = _clean_draw(problem, n, seed)
    if ratio == 0.0:
        return x
    return x + ratio * normal(x.shape, seed, purpose="user", dtype=torch.float64)


@lru_cache(maxsize=64)
def _clean_draw(problem: Problem, n: int, seed: int) -> Tensor:
    if problem.law is not None:
        return problem.law.sample(n, seed=seed)
    if problem.data is None:
        raise Inapplicable(f"{problem.name} has neither a law nor data to draw from")
    g = torch.Generator().manual_seed(seed // 2)
    order = torch.randperm(len(problem.data), generator=g)
    return problem.data[order[seed % 2 :: 2][:n]]


@lru_cache(maxsize=64)
def exact_points(problem: Problem, featured: bool, ratio: float, n: int, seed: int) -> Tensor:
    """`exact_draw` as distances take it: flat, or its features; [n, k]."""
    return points(problem, exact_draw(problem, ratio, n, seed), featured)


def points(problem: Problem, x: Tensor, featured: bool) -> Tensor:
    """Samples on the data's scale as rows of numbers: their components, or the problem's features."""
    return features.apply(problem.features if featured else None, x)


@lru_cache(maxsize=64)
def exact_log_density(problem: Problem, ratio: float) -> Tensor:
    """log p of exact samples at this ratio, [EXACT_DRAWS]."""
    x = exact_draw(problem, ratio, EXACT_DRAWS, 2 * problem.seed + 77)
    return log_density(problem, x / math.hypot(1.0, ratio), ratio)


def log_density(problem: Problem, w: Tensor, ratio: float) -> Tensor:
    """log p of the states w [B, *event] at their noise level, nats, [B]."""
    if problem.law is None:
        raise Inapplicable(f"{problem.name} has no density")
    if ratio == 0.0:
        return problem.law.log_prob(w)
    t = time_at(problem.process, ratio)
    return problem.law.log_prob(from_unit(problem.process, w, t), t, problem.process)


@lru_cache(maxsize=64)
def blur_of(problem: Problem, ratio: float, n: int) -> float:
    """Distance to the BLUR_NEIGHBOUR-th neighbour among n exact samples, the median."""
    y = exact_points(problem, False, ratio, n, 2 * problem.seed + 76)
    near = torch.cdist(y, y).kthvalue(min(BLUR_NEIGHBOUR + 1, len(y)), dim=1).values
    return float(near.median())
