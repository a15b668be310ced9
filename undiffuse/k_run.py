"""A run in k-diffusion's terms, by a table: levels, flows, the caller's noise and the callback."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .kernels.checks import as_seed
from .kernels.errors import InvalidType, InvalidValue
from .models import EDM, Denoiser, Flow, Process
from .models.progress import bar
from .solvers import arguments
from .solvers.families.composed import Churn, Inversion
from .solvers.families.singlestep import DPMPPSDE
from .solvers.sampling.sampler import Sampler
from .solvers.tables.solver import Solver
from .solvers.tables.tableau import Tableau

Model = Callable[..., Tensor]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]

SAME = 1e-6
"""Neighbours whose sigmas differ by no more than this share of themselves are one node: float32
rounds the levels that programs make to a few of its 6e-8."""
WIDE = 1e4
"""t_max of the process, above the levels of programs: a run that starts lower, as the second piece
of a longer one does, does not meet the normals of the pieces above it (see `first_draw`)."""

T = TypeVar("T")


def replaced(made: T, options: dict[str, Any]) -> T:
    """A frozen dataclass of a registry with other options."""
    return replace(made, **options)  # type: ignore[type-var]


# --- the levels of a run ------------------------------------------------------------------------


@dataclass(frozen=True)
class Levels:
    """Where a run steps through.

    given: the caller's sigmas [n + 1].
    nodes: those that differ from the one before, as floats: falling, or rising.
    moves: of every interval between two nodes, the interval of `given` that makes it.
    """

    given: Tensor
    nodes: tuple[float, ...]
    moves: tuple[int, ...]

    @property
    def rising(self) -> bool:
        return self.nodes[-1] > self.nodes[0]

    @classmethod
    def of(cls, sigmas: Any) -> Levels | None:
        """The levels, or None where there is nothing to step through.

        Raises ValueError for sigmas that are negative, not finite or turn, TypeError for others.
        """
        try:
            given = torch.as_tensor(sigmas)
            values = given.detach().to("cpu", torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise InvalidType(f"sigmas must be a tensor of numbers; got {sigmas!r}") from None
        if values.ndim != 1:
            raise InvalidValue(f"sigmas must be one-dimensional; got shape {tuple(values.shape)}")
        s = values.tolist()
        if not all(math.isfinite(v) and v >= 0 for v in s):
            raise InvalidValue(f"sigmas must be finite and >= 0; got {s[:8]}")
        moves = [i for i in range(len(s) - 1) if abs(s[i + 1] - s[i]) > SAME * max(s[i], s[i + 1])]
        if not moves:
            return None
        up = [s[i + 1] > s[i] for i in moves]
        if len(set(up)) > 1:
            i = moves[up.index(not up[0])]
            raise InvalidValue(
                f"sigmas must fall throughout, or rise throughout to run backwards; got "
                f"{s[i]:.6g} -> {s[i + 1]:.6g} at {i} after {s[moves[0]]:.6g} -> "
                f"{s[moves[0] + 1]:.6g}: sample_restart goes up again by itself"
            )
        return cls(given, (s[moves[0]], *(s[i + 1] for i in moves)), tuple(moves))


def level_range(sigma_min: float | Tensor, sigma_max: float | Tensor) -> tuple[float, float]:
    """The two as floats. Raises ValueError unless 0 < sigma_min < sigma_max."""
    low = arguments.positive("sigma_min", sigma_min)
    high = arguments.positive("sigma_max", sigma_max)
    if not low < high:
        raise InvalidValue(f"sigma_min must be below sigma_max; got {low:g} and {high:g}")
    return low, high


def flow_scale(model: Any) -> float | None:
    """The scale of the noise where the model inside `model` is a flow, else None.

    Looks along `inner_model` for `model_sampling` of a class CONST and for `predictor` of
    prediction type 'const'.
    """
    for _ in range(6):
        sampling = getattr(model, "model_sampling", None)
        if sampling is not None:
            flow = any(c.__name__ == "CONST" for c in type(sampling).__mro__)
            return float(getattr(sampling, "noise_scale", 1.0)) if flow else None
        predictor = getattr(model, "predictor", None)
        if predictor is None and hasattr(model, "forge_objects"):
            predictor = model.forge_objects.unet.model.predictor
        if predictor is not None:
            return 1.0 if getattr(predictor, "prediction_type", None) == "const" else None
        model = getattr(model, "inner_model", None)
        if model is None:
            return None
    return None


@lru_cache(maxsize=32)
def process_of(flow: bool, nodes: tuple[float, ...]) -> Process:
    """x = x_0 + sigma eps, or a flow, with t = sigma and t_min at the last level above 0."""
    top, low = max(nodes), min(v for v in nodes if v > 0)
    if not flow:
        return EDM(low, max(WIDE, 2 * top))
    if top > 1:
        raise InvalidValue(f"sigmas of a flow must lie in [0, 1]; got {top:g}")
    return Flow(low if low < top else 0.5 * top, 1.0)


@lru_cache(maxsize=32)
def _table(solver: Solver, flow: bool, nodes: tuple[float, ...]) -> Tableau:
    """The table of the solver through these levels, backwards where they rise."""
    process = process_of(flow, nodes)
    if nodes[-1] > nodes[0]:
        still = solver.solver if isinstance(solver, Churn) and not solver.churn else solver
        if still.stochastic:
            raise InvalidValue(
                f"sigmas rise, and a stochastic solver cannot run backwards: got {solver}; use a "
                "deterministic one, or eta=0"
            )
        solver, nodes = Inversion(still), nodes[::-1]
    return solver.tableau(process, torch.tensor(nodes, dtype=torch.float64, device="cpu"))


@lru_cache(maxsize=32)
def _first_rows(solver: Solver, flow: bool, nodes: tuple[float, ...]) -> dict[int, int]:
    """The first row of every interval: row -> interval.

    It is the last row that calls at the interval's start, since a stage of the step before may
    call there too. Churn calls higher and is left out: the rows are the same without.
    """
    still = replaced(solver, {"churn": 0.0}) if hasattr(solver, "churn") else solver
    called = _table(still, flow, nodes).times.tolist()
    found = {}
    for k, level in enumerate(nodes[:-1]):
        rows = [i for i, t in enumerate(called) if abs(t - level) <= 1e-9 * max(level, 1e-9)]
        if rows:
            found[rows[-1]] = k
    return found


# --- the noise of a caller ----------------------------------------------------------------------


class CallersNoise:
    """The normals of a table's rows, of the caller's noise_sampler(sigma, sigma').

    A normal of a step is that of its interval. Where a step has several each gets a part of the
    interval, those between the ends of its rows; DPM++ SDE asks for the increments from the
    step's start to the end of each row, as k-diffusion does, and churn for what it adds.
    """

    WANTED: ClassVar[str] = "noise_sampler must be called as noise_sampler(sigma, sigma')"

    def __init__(
        self,
        table: Tableau,
        solver: Solver,
        levels: Levels,
        first: dict[int, int],
        asked: Any,
        shape: torch.Size,
    ) -> None:
        if not callable(asked):
            raise InvalidType(f"{self.WANTED}; got {asked!r}")
        self.table, self.solver, self.levels = table, solver, levels
        self.asked, self.shape = asked, shape
        self.step, k = [], 0
        for i in range(table.nfe):
            k = first.get(i, k)
            self.step.append(k)
        self.drawn: dict[int, Tensor] = {}

    def entry(self) -> Tensor:
        """Of the churn before the first call."""
        return self._ask(self._sigma(0), self._like(float(self.table.times[0])))

    def of(self, i: int) -> Tensor | None:
        """What row i adds to the state; None where it draws nothing."""
        row = self.table.noise[i]
        used = row.nonzero().flatten().tolist()
        if not used:
            return None
        k = self.step[i]
        if getattr(self.solver, "churn", 0.0):
            hot = self._like(float(self.table.times[i + 1]))
            return float(row[used[0]]) * self._ask(self._sigma(k + 1), hot)
        if isinstance(self.solver, DPMPPSDE):
            start, end = self._sigma(k), self._sigma(k + 1)
            to = (start, end) if self._last(i) else (start, self._middle(start, end))
            total = float(row.square().sum().sqrt())
            return total * self._ask(*(v.log().neg().neg().exp() for v in to))
        added = [float(row[j]) * self._normal(int(self.table.draws[i, j]), k) for j in used]
        return sum(added[1:], added[0])

    def _last(self, i: int) -> bool:
        return i + 1 == len(self.step) or self.step[i + 1] != self.step[i]

    def _middle(self, start: Tensor, end: Tensor) -> Tensor:
        """Where the middle of the step lies, rounded as k-diffusion rounds it."""
        t = start.log().neg()
        middle: Tensor = t + (end.log().neg() - t) * self.solver.r  # type: ignore[attr-defined]
        return middle.neg().exp()

    def _normal(self, draw: int, k: int) -> Tensor:
        if draw not in self.drawn:
            rows = [i for i, step in enumerate(self.step) if step == k]
            draws = sorted({*self.table.draws[rows][self.table.noise[rows] != 0].tolist()})
            start, end = self._sigma(k), self._sigma(k + 1)
            if len(draws) > 1:
                ends = torch.linspace(float(start), float(end), len(draws) + 1).tolist()
                if len(rows) == len(draws):
                    ends[1:-1] = [float(self.table.times[i]) for i in rows[1:]]
                at = draws.index(draw)
                start = start if at == 0 else self._like(ends[at])
                end = end if at + 1 == len(draws) else self._like(ends[at + 1])
            self.drawn = {d: z for d, z in self.drawn.items() if d in draws}
            self.drawn[draw] = self._ask(start, end)
        return self.drawn[draw]

    def _sigma(self, node: int) -> Tensor:
        """The caller's own sigma at a node."""
        moves = self.levels.moves
        return self.levels.given[moves[node] if node < len(moves) else moves[-1] + 1]

    def _like(self, value: float) -> Tensor:
        return self.levels.given.new_tensor(value)

    def _ask(self, sigma: Tensor, following: Tensor) -> Tensor:
        z = self.asked(sigma, following)
        if not isinstance(z, Tensor):
            raise InvalidType(f"noise_sampler must return a tensor; got {type(z).__name__}")
        if z.shape != self.shape:
            raise InvalidValue(
                f"noise_sampler must return normals of x's shape {tuple(self.shape)}; got "
                f"{tuple(z.shape)}"
            )
        return z


def check_call(model: Any, x: Any, extra_args: Any, callback: Any) -> None:
    """Raise TypeError for what all functions take, where it is none of it."""
    if not callable(model):
        raise InvalidType(f"model must be called as model(x, sigma); got {model!r:.80}")
    check_floating(x)
    if not isinstance(extra_args, Mapping | None):
        raise InvalidType(
            f"extra_args must be a dict of the model's keyword arguments; got {extra_args!r:.80}"
        )
    if callback is not None and not callable(callback):
        raise InvalidType(f"callback must take one dict; got {callback!r:.80}")


def check_floating(x: Any) -> None:
    """Raise TypeError unless x is a floating tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InvalidType(f"x must be a floating tensor [B, ...]; got {got}")


# --- the run ------------------------------------------------------------------------------------


@torch.no_grad()
def run(
    name: str,
    solver: Solver,
    model: Model,
    x: Tensor,
    levels: Levels,
    extra_args: dict[str, Any] | None,
    callback: Callable[[dict[str, Any]], Any] | None,
    disable: bool | None,
    noise_sampler: NoiseSampler | None,
    s_noise: float,
) -> Tensor:
    """Step x through the levels by the solver's table; see the module's first lines."""
    check_call(model, x, extra_args, callback)
    if noise_sampler is not None and not callable(noise_sampler):
        raise InvalidType(f"{CallersNoise.WANTED}; got {noise_sampler!r}")
    scale = flow_scale(model)
    flow, extra = scale is not None, dict(extra_args or {})
    table = _table(solver, flow, levels.nodes)
    first = _first_rows(solver, flow, levels.nodes)
    if arguments.finite("s_noise", s_noise) < 0:
        raise InvalidValue(f"s_noise must be >= 0; got {s_noise}")
    shares = float(s_noise) * (1.0 if scale is None else scale)
    if shares != 1 and table.noise.shape[1]:
        table = replace(table, noise=shares * table.noise)
    wide = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    start, noise = x.to(wide), None
    if noise_sampler is not None and table.stochastic:
        noise = CallersNoise(table, solver, levels, first, noise_sampler, x.shape)
        kept, added = table.entry
        if added:
            start = kept * start + added * noise.entry().to(start)
        still = (1.0, 0.0) if added else table.entry
        table = replace(table, noise=table.noise[:, :0], draws=table.draws[:, :0], entry=still)
    blank = Denoiser(_absent, process_of(flow, levels.nodes), predicts="data")
    sampler = Sampler(blank, table, dtype=wide, device=x.device)
    seed = _seed(extra, table)
    state = sampler.init(x.shape, seed, own_ids(seed, x), x_init=start)
    show = not disable if disable is not None else sys.stderr.isatty()
    with bar(show) as shown:
        shown.total(len(levels.moves))
        shown.say(name)
        for i in range(table.nfe):
            x_in, t_in = state.x_in, state.t_in
            if x_in is None or t_in is None:
                break
            denoised = model(x_in.to(x.dtype), t_in.to(x.dtype), **extra)
            if i in first:
                told = levels.moves[first[i]]
                if callback is not None:
                    at = levels.given[told]
                    raised = float(table.times[i]) - levels.nodes[first[i]]
                    hat = t_in[0] if abs(raised) > 1e-9 * levels.nodes[first[i]] else at
                    callback(
                        {
                            "x": state.x.to(x.dtype),
                            "i": told,
                            "sigma": at,
                            "sigma_hat": hat,
                            "denoised": denoised,
                        }
                    )
                shown.advance()
            state = sampler.tell(state, denoised)
            added_noise = noise.of(i) if noise is not None else None
            if added_noise is not None:
                state = state.replace(x=state.x + added_noise.to(state.x))
    return state.x.to(x.dtype)


def _absent(x: Tensor, t: Tensor) -> Tensor:
    raise InvalidValue("the sampler has no network of its own")


def own_ids(seed: Any, x: Tensor) -> Tensor | None:
    """The samples' ids: 0 where each has a seed of its own, so that its place tells nothing."""
    if as_seed(seed, "cpu").numel() == 1:
        return None
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)


def _seed(extra: dict[str, Any], table: Tableau) -> int | Tensor:
    """The caller's seed, or one of torch's generator where noise is drawn at all."""
    seed = extra.get("seed")
    if seed is not None:
        return seed  # type: ignore[no-any-return]
    return int(torch.randint(2**62, (), device="cpu")) if table.stochastic else 0
