"""Tables that others learned and published, from their files or as they are printed.

EPD (Zhu et al. 2025), AdaSDE (Wang et al. 2025) and DyWeight (2026) keep pickled predictors, whose
numbers are read without running what is in the file; NeuralSolver (Wang et al. 2025) prints its
tables. Each is traced into an ordinary `Tableau` of a process, in

    y = x/c,   s = sigma/c,   d = (y - D)/s,   c = alpha, or alpha + sigma where they step a flow.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Process
from ..tables.grids import Karras, times
from ..tables.tableau import Tableau
from ..tables.traced import Linear, Trace
from .printed import NEURAL_SOLVER

CLOCKS = ("ratio", "flow")


class _Clock:
    """y and s of a process, on symbols."""

    def __init__(self, process: Process, clock: str) -> None:
        if clock not in CLOCKS:
            raise InvalidValue(f"clock must be 'ratio' or 'flow'; got {clock!r}")
        self.process, self.clock, self.run = process, clock, Trace()

    def level(self, t: float) -> float:
        """s at a time."""
        lam = self.process.log_snr(torch.tensor(t, dtype=torch.float64, device="cpu"))
        return float(torch.exp(-lam) if self.clock == "ratio" else torch.sigmoid(-lam))

    def at(self, s: float) -> tuple[float, float]:
        """The time of a level, and c there."""
        v = torch.tensor(s, dtype=torch.float64, device="cpu")
        lam = -torch.log(v) if self.clock == "ratio" else -torch.logit(v)
        t = self.process.inverse_log_snr(lam)
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        return float(t), alpha if self.clock == "ratio" else alpha + sigma

    def call(self, y: Linear, s: float, told: float | None = None) -> tuple[Linear, Linear]:
        """y as the table knows it from here on, and d, where the network is told another level."""
        t, c = self.at(s if told is None else told)
        x, data = self.run.call(c * y, t)
        y = x / c
        return y, (y - data) / s

    def begin(self, s: float) -> Linear:
        """y where the run starts."""
        return self.run.start / self.at(s)[1]

    def table(self, y: Linear, grid: Tensor, name: str) -> Tableau:
        """The table, whose run ends in y at the grid's last time."""
        _, c = self.at(self.level(float(grid[-1])))
        return self.run.table(c * y, grid, name).of(self.process)


def epd(
    process: Process,
    grid: Sequence[float] | Tensor,
    shares: Tensor,
    weights: Tensor,
    *,
    along: Tensor | None = None,
    told: Tensor | None = None,
    churn: Tensor | None = None,
    spared: bool = False,
    clock: str = "ratio",
    name: str = "epd",
) -> Tableau:
    """Learned directions in parallel, and with `churn` AdaSDE's steps:

        s^ = (1 + churn) s,  y^ = y + sqrt(s^^2 - s^2) z,  s_j = s'^{r_j} s^^{1 - r_j}
        y_j = y^ + (s_j - s^) d(y^, s^),   y' = y^ + (s' - s^) sum_j w_j a_j d(y_j, s_j)

    process: of the model. grid: n + 1 times, the last with sigma > 0.
    shares: r [n, K]. weights: w [n, K].
    along: a [n, K], by default 1.
    told: [n, K], what the level that the network is told is multiplied by, by default 1.
    churn: [n] >= 0, 0 in the first step; by default 0.
    spared: whether d of the first step is y/sqrt(1 + s^2), without a call.
    clock: 'ratio' or 'flow'.
    Raises ValueError for shapes that disagree.
    """
    nodes = times(grid, process, None, "t_min")
    shares, weights = shares.double(), weights.double()
    n = len(nodes) - 1
    one = torch.ones_like(shares)
    along = one if along is None else along.double()
    told = one if told is None else told.double()
    churn = torch.zeros(n, dtype=torch.float64, device="cpu") if churn is None else churn.double()
    if not shares.shape == weights.shape == along.shape == told.shape or shares.shape[0] != n:
        got = [tuple(v.shape) for v in (shares, weights, along, told)]
        raise InvalidValue(f"shares, weights, along and told must be [{n}, K]; got {got}")
    if churn.shape != (n,) or not bool((churn >= 0).all()) or float(churn[0]) != 0:
        raise InvalidValue(f"churn must be [{n}], >= 0 and 0 in the first step; got {churn}")
    steps = _Clock(process, clock)
    s = [steps.level(float(t)) for t in nodes]
    y = steps.begin(s[0])
    for i in range(n):
        here = (1 + float(churn[i])) * s[i]
        if here > s[i]:
            y = y + math.sqrt(here**2 - s[i] ** 2) * steps.run.normal()
        if spared and i == 0:
            d = y / math.hypot(1.0, here)
        else:
            y, d = steps.call(y, here)
        ahead = y
        for r, w, a, m in zip(shares[i], weights[i], along[i], told[i], strict=True):
            middle = s[i + 1] ** float(r) * here ** (1 - float(r))
            _, direction = steps.call(y + (middle - here) * d, middle, float(m) * middle)
            ahead = ahead + float(w) * float(a) * (s[i + 1] - here) * direction
        y = ahead
    return steps.table(y, nodes, name)


def dyweight(
    process: Process,
    grid: Sequence[float] | Tensor,
    weights: Tensor,
    told: Tensor | None = None,
    *,
    spared: bool = False,
) -> Tableau:
    """DyWeight's multistep rows, whose weights need not sum to one (their sum moves the level):

        y' = y + (s' - s) sum_j w_ij d_j,   s <- s + (s' - s) sum_j w_ij

    weights: w [n, n], lower triangular, by step and by call.
    told: what the told level is multiplied by, one a call; by default 1.
    spared: whether d of the first step is y/sqrt(1 + s^2), without a call.
    Raises ValueError for shapes that disagree.
    """
    nodes = times(grid, process, None, "t_min")
    n = len(nodes) - 1
    scale = torch.ones(n - spared, dtype=torch.float64, device="cpu") if told is None else told
    if weights.shape != (n, n) or scale.shape != (n - spared,):
        raise InvalidValue(
            f"weights must be [{n}, {n}] and told [{n - spared}]; got {tuple(weights.shape)} and "
            f"{tuple(scale.shape)}"
        )
    steps = _Clock(process, "ratio")
    s = [steps.level(float(t)) for t in nodes]
    y, here, past = steps.begin(s[0]), s[0], list[Linear]()
    for i in range(n):
        if spared and i == 0:
            d = y / math.hypot(1.0, here)
        else:
            y, d = steps.call(y, here, abs(float(scale[i - spared]) * here))
        past.append(d)
        row = weights[i, : i + 1].tolist()
        change = s[i + 1] - here
        for w, d in zip(row, past, strict=True):
            y = y + (change * w) * d
        here += change * sum(row)
    return steps.table(y, nodes, "dyweight")


def neural_solver(process: Process, steps: int) -> Tableau:
    """NeuralSolver's table for flow matching, as printed (Wang et al. 2025, DSS), on a process that
    starts in pure noise: x' = x + dt sum_j c_ij v_j with c_ii = 1 - sum_{j<i} c_ij.

    steps: 5 to 10. Raises ValueError for another number.
    """
    if steps not in NEURAL_SOLVER:
        known = ", ".join(map(str, NEURAL_SOLVER))
        raise InvalidValue(f"steps must be one of {known}; got {steps}")
    deltas, rows = NEURAL_SOLVER[steps]
    run = _Clock(process, "flow")
    s = [1.0]
    for dt in deltas:
        s.append(max(s[-1] - dt, 1e-4))  # the printed steps sum to one in four digits
    y, past = run.begin(1.0), list[Linear]()
    for i in range(steps):
        y, d = run.call(y, s[i])
        past.append(d)
        before = list(rows[i][:i])
        for c, d in zip([*before, 1 - sum(before)], past, strict=True):
            y = y + (-deltas[i] * c) * d
    ends = [run.at(v)[0] for v in s]
    grid = torch.tensor([process.t_max, *ends[1:]], dtype=torch.float64, device="cpu")
    return run.table(y, grid, f"neural-solver-{steps}")


# --- files ----------------------------------------------------------------------------------------


class _Numbers(pickle.Unpickler):
    """Reads tensors, numbers and texts; what else a pickle names is an inert record."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: torch.load(io.BytesIO(data), weights_only=True)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if name == "_reconstruct_persistent_obj":
            return lambda meta: meta
        return _Inert


class _Inert(dict[Any, Any]):
    """Stands for an object of a class that is not loaded: what it holds, by name."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.update(state)


def _settings(record: Any) -> dict[str, Any] | None:
    """The attributes of the predictor in what a pickle holds, its parameters among them."""
    if isinstance(record, Mapping):
        if isinstance(record.get("_parameters"), Mapping):
            found = {k: v for k, v in record.items() if isinstance(k, str)}
            found |= dict(record["_parameters"]) | dict(record.get("_buffers") or {})
            if "hybrid_weights" in found or "r_params" in found:
                return found
        for value in record.values():
            if (deeper := _settings(value)) is not None:
                return deeper
    return None


def read_published(
    path: str | FilePath,
    process: Process,
    grid: Sequence[float] | Tensor | None = None,
    clock: str = "ratio",
) -> Tableau:
    """The table of a predictor that EPD, AdaSDE or DyWeight saved (network-snapshot-*.pkl).

    path: of the pickle. Nothing in it is run.
    process: of the model; published ones of EDM networks are for `ud.EDM()`.
    grid: the times that it was learned on. None: those of the file's polynomial schedule (Karras,
        7 where it says no other), from the process's t_max to its t_min.
    clock: 'flow' where it was learned on a flow.
    Raises ValueError for another file, or a schedule that cannot be laid.
    """
    try:
        with open(path, "rb") as file:
            found = _settings(_Numbers(file).load())
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError) as error:
        raise InvalidValue(f"{path} holds no predictor in a pickle: {error}") from error
    if found is None:
        raise InvalidValue(f"{path} holds no predictor of EPD, AdaSDE or DyWeight")
    n = int(found["num_steps"]) - 1
    if grid is None:
        kind = found.get("schedule_type") or "polynomial"
        if kind != "polynomial":
            raise InvalidValue(f"{path} was learned on the schedule {kind!r}: give its times, grid")
        grid = times(Karras(float(found.get("schedule_rho") or 7)), process, n, "t_min")
    spared = bool(found.get("afs"))
    if "hybrid_weights" in found:
        weights = torch.tril(found["hybrid_weights"].detach().double())
        if isinstance(mask := found.get("mask"), Tensor):
            weights = weights * mask.double()
        scale = found.get("t_scale")
        told = None if scale is None else scale.detach().double()
        return dyweight(process, grid, weights, told, spared=spared)
    raw = {k: v.detach().double() for k, v in found.items() if isinstance(v, Tensor)}
    weights, shares = torch.softmax(raw["weight_s"], -1), torch.sigmoid(raw["r_params"])
    sde = "gamma_params" in raw
    along, told = (
        _scaled(raw[f"{k}_params"], found.get(k) or 0, sde) for k in ("scale_dir", "scale_time")
    )
    churn = None
    if found.get("fcn"):
        along[-1] = 1.0
    if sde and found.get("gamma"):
        least, most = float(found.get("gamma_min") or 2e-4), float(found["gamma"])
        bias = 2 * math.log(0.6 / 0.4)
        gamma = least + (most - least) * torch.sigmoid((raw["gamma_params"] + bias) / 2)
        churn = (gamma * weights).sum(1)
        churn[0] = 0.0
    return epd(
        process,
        grid,
        shares,
        weights,
        along=along,
        told=told,
        churn=churn,
        spared=spared,
        clock=clock,
        name="adasde" if sde else "epd",
    )


def _scaled(raw: Tensor, reach: float, sde: bool) -> Tensor:
    """Factors around 1 by at most `reach`, as the two repositories squash them."""
    if not reach:
        return torch.ones_like(raw)
    if sde:
        return 1 + min(float(reach), 0.99) * torch.tanh(raw / 2)
    return 2 * torch.sigmoid(0.5 * raw) * float(reach) + (1 - float(reach))
