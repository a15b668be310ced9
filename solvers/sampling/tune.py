"""Fitting tables to a model: `undiffuse tune`, and statistics of data: `undiffuse statistics`.

    starts, their end points by many steps -> the classical table that errs least (with what is
    known of the data's mean and covariance) -> Adam -> held-out error -> learned-N.json

A table that does not beat its initialisation on the starts it never saw is not written, and does
not keep the others from being.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.errors import InvalidValue
from ...models import Denoiser
from ...models.checkpoint import Checkpoint, load, load_default
from ...models.data.sets import load as load_data
from ...models.data.sets import split
from ...models.dequantize import dequantised
from ...models.named_targets import get as get_target
from ...models.networks import InItsOwnType
from ...models.statistics import KINDS, Statistics
from ..arguments import dtype_of
from ..families.tuned import Learned
from .tuning import (
    Fit,
    FitError,
    best_initial,
    fit,
    held_out_error,
    references,
    seen,
)

SMALL_EVENT = 256
"""Components of an event up to which a problem is run on hundreds of samples."""
APART = 2**40
"""Added to the seed of a target's starts: `bench --seeds 0,1,2` must not meet those of the fit."""
DRAWS = 8192
"""Exact draws that stand for a target's data."""
FULL = 256
"""Components up to which a full covariance is tried; its basis is in the file."""
BATCH, LARGE_BATCH = 96, 16
STARTS, LARGE_STARTS = 512, 64


def tune(
    out: str | Path,
    *,
    model: str | Path | None = None,
    target: str | None = None,
    nfe: Sequence[int] = (8,),
    statistics: Sequence[str] | None = None,
    data: str | Path | None = None,
    starts: int | None = None,
    iterations: int = 300,
    batch: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[int, float]:
    """Fit a table for every number of calls; returns their held-out errors, in data std.

    out: the folder; the table of N calls is learned-N.json in it.
    model: as `models.checkpoint.load` takes it; None: the digits.
    target: the name of an exact target, in the place of a model.
    nfe: numbers of network calls, each >= 2.
    statistics: kinds that may be used, 'none' among them, or files that `statistics` wrote; None
        tries all kinds where there are data.
    data: what they are taken of; None: what the checkpoint was trained on.
    starts: trajectories, >= 8, the last quarter held out; None: STARTS, or LARGE_STARTS for events
        of more than SMALL_EVENT numbers.
    iterations: optimiser steps, >= 0; 0 keeps the choice itself.
    batch: starts a step, >= 1; None: BATCH, or LARGE_BATCH for such events.
    seed: of the starts and the batches.
    device: where the network runs.
    progress: whether to show a bar.
    Raises ValueError for bad input, and FitError, after all were tried, for tables refused.
    """
    out = Path(out)
    for name, value, least in (
        ("starts", starts, 8),
        ("iterations", iterations, 0),
        ("batch", batch, 1),
    ):
        if value is not None and value < least:
            raise InvalidValue(f"{name} must be >= {least}; got {value}")
    if not nfe or min(nfe) < 2:
        raise InvalidValue(f"nfe must be numbers of calls >= 2; got {list(nfe)}")
    if target is not None and model is not None:
        raise InvalidValue(f"give a model or a target, not both; got {model} and {target!r}")
    name, denoiser, shape, known = _posed(model, target, data, device)
    if denoiser.clip is not None and statistics is None:
        statistics = ["none"]  # clipping is of components, which the others leave
    found = known_statistics(known, statistics, math.prod(shape))
    large = math.prod(shape) > SMALL_EVENT
    count = starts or (LARGE_STARTS if large else STARTS)
    process, t_end = denoiser.process, denoiser.t_min
    z = normal((count, *shape), seed, purpose="user", device=device or "cpu")
    x = float(process.sigma(process.t_max)) * z
    if target is not None:
        x = exact_starts(target, count, seed)
    goal = references(denoiser, x, process.t_max, t_end)
    like = goal if known is None else known  # the ends of the flow are the model's own data
    unit = float(like.double().flatten(1).var(0).mean().sqrt())
    errors, refused = {}, []
    learn = slice(0, seen(count))
    for n in nfe:
        start, choice = best_initial(
            denoiser, x[learn], goal[learn], process.t_max, t_end, n, found, progress
        )
        print(f"{n} calls: {choice}")
        try:
            made = _fitted(denoiser, x, goal, start, iterations, batch, seed, progress)
        except FitError as error:
            refused.append(f"{n} calls: {error}")
            continue
        made.learned.notes.update(
            problem=name,
            initial=str(choice),
            before=made.before / unit,
            after=made.after / unit,
            starts=count,
            iterations=iterations,
            seed=seed,
        )
        errors[n] = made.after / unit
        path = made.learned.save(out / f"learned-{n}.json")
        print(
            f"{n} calls: held-out error / data std {made.before / unit:.3g} -> "
            f"{made.after / unit:.3g}: {path}"
        )
    if refused:
        raise FitError("; ".join(refused))
    return errors


def _fitted(
    model: Denoiser,
    x: Tensor,
    goal: Tensor,
    start: Learned,
    iterations: int,
    batch: int | None,
    seed: int,
    progress: bool,
) -> Fit:
    """`fit`, or with no iterations the choice as it is with its held-out error."""
    if iterations == 0:
        error = held_out_error(start, model, x, goal)
        return Fit(start, error, error)
    batch = batch or (LARGE_BATCH if x[0].numel() > SMALL_EVENT else BATCH)
    return fit(
        model, x, goal, start, iterations=iterations, batch=batch, seed=seed, progress=progress
    )


def _posed(
    model: str | Path | None, target: str | None, data: str | Path | None, device: Any
) -> tuple[str, Denoiser, tuple[int, ...], Tensor | None]:
    """A name as benchmarks have it, the model, the shape of an event, and data of its kind where
    there are any."""
    if target is not None:
        law = get_target(target)
        exact = law.law.denoiser(law.process)
        return target, exact, tuple(law.law.event_shape), law.law.sample(DRAWS, seed=1)
    loaded = load_default(device) if model is None else load(model, device)
    name = network_name(None if model is None else str(model))
    own = loaded.denoiser
    if isinstance(own.net, torch.nn.Module) and dtype_of(own) != torch.float32:
        own = own.map(InItsOwnType)  # states are float32
    return name, own, loaded.event_shape, training_data(loaded, data)


def exact_starts(target: str, count: int, seed: int) -> Tensor:
    """States of p_{t_max} of a target, [count, *event] float64.

    No benchmark of a small seed starts from the same ones.
    """
    law = get_target(target)
    alpha, sigma = (float(f(law.process.t_max)) for f in (law.process.alpha, law.process.sigma))
    x0 = law.law.sample(count, seed=seed + APART)
    z = normal(x0.shape, seed + APART, purpose="user", dtype=torch.float64)
    return alpha * x0 + sigma * z


def network_name(checkpoint: str | None) -> str:
    """What a trained network's problem is called: after its file or function."""
    return "digits network" if checkpoint is None else Path(checkpoint.rpartition(":")[2]).stem


def training_data(loaded: Checkpoint, data: str | Path | None = None) -> Tensor | None:
    """Events [M, *event] in the network's range, with noise of their levels' width.

    loaded: the checkpoint.
    data: where they are read; None: what the checkpoint was trained on, without what it held out.
    Returns None where the checkpoint does not say what that was.
    """
    record = loaded.training
    if data is None and "data" not in record:
        return None
    x = load_data(record["data"] if data is None else data).to_range(*loaded.data_range).x
    if data is None and record.get("split") is not None:
        x = split(x, **record["split"])[0]
    if tuple(x.shape[1:]) != loaded.event_shape:
        raise InvalidValue(
            f"data must be events of shape {loaded.event_shape}; got {tuple(x.shape[1:])}"
        )
    return dequantised(x, loaded.spacing, 0)


def known_statistics(
    data: Tensor | None, asked: Sequence[str] | None, d: int
) -> dict[str, Statistics]:
    """Statistics by name, 'none' among them unless others were asked for.

    Raises ValueError for a name that is neither a kind nor a file, kinds without data, or a file of
    other data.
    """
    if asked is None:
        kinds = [k for k in KINDS if d <= FULL or k != "full"] if data is not None else []
        asked = ["none", *kinds]
    found = {}
    for name in asked:
        if name == "none":
            found[name] = Statistics.none(d)
        elif name in KINDS:
            if data is None:
                raise InvalidValue(f"statistics {name!r} need data: name a data set")
            found[name] = Statistics.of(data, name)
        elif Path(name).is_file():
            found[name] = Statistics.load(name)
        else:
            known = ", ".join(("none", *KINDS))
            raise InvalidValue(f"statistics must be {known} or a file of them; got {name!r}")
        if len(found[name].mean) != d:
            raise InvalidValue(
                f"statistics {name!r} are of {len(found[name].mean)} components, not {d}"
            )
    return found


def statistics(
    *,
    model: str | Path | None = None,
    data: str | Path | None = None,
    kind: str = "leading",
    out: str | Path | None = None,
) -> Path:
    """Take the mean and covariance of a model's data and write them beside it; returns the file.

    The file is a solver: `sample(..., solver=tuning.read(file, process))`, or
    `undiffuse sample --solver file`.

    model: as `models.checkpoint.load` takes it; None: the digits.
    data: what the statistics are taken of; None: what the checkpoint was trained on.
    kind: of the covariance, as for `Statistics.of`.
    out: a file, or a folder for statistics.json in it; None: the checkpoint's own path with
        .statistics.json for its ending.
    Raises ValueError where there are no data or no place.
    """
    loaded = load_default() if model is None else load(model)
    known = training_data(loaded, data)
    if known is None:
        raise InvalidValue("the checkpoint does not say what it was trained on: give `data`")
    if out is None:
        if model is None or not Path(model).is_file():
            raise InvalidValue("a network that is no file has no place beside it: give `out`")
        out = Path(model).with_suffix(".statistics.json")
    if Path(out).is_dir():
        out = Path(out) / "statistics.json"
    return Statistics.of(known, kind).save(out)
