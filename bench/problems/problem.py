"""What is integrated in a benchmark, its exact law, and the reference that errors are held to.

VP, VE, EDM and flow models integrate one and the same ODE: only the scale of the state and the
clock differ. A node is therefore named by its noise-to-signal ratio r = sigma/alpha, and a state
is kept as w = x / sqrt(alpha^2 + sigma^2), which is finite at both ends and of order one. All runs
of a problem start from the same noise: w_b at the ratio r_max for sample b.

With the angle phi = arctan(sigma/alpha) the probability flow of every process is

    dw/dphi = w cot(phi) - D / sin(phi),

regular from pure noise (phi = pi/2) down to the data. SciPy's DOP853 integrates it twice, at two
tolerances a factor 10 apart; the tighter is the reference, and the distance between the two bounds
its error. None of our own solvers takes part. The first nodes lie on the trajectory too, so a run
that starts below r_max starts on the reference and is not charged for where it starts.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import normal
from ...kernels.errors import InvalidValue, optional
from ...kernels.files import write_tensors
from ...models import Denoiser, GaussianMixture, Process
from ...models.named_targets import Target
from ...models.networks import InItsOwnType
from ...solvers.outcome import SolverError, Status
from ...solvers.sampling.tuning import SMALL_EVENT

ZERO_RATIO = 1e-5
"""Stands for sigma = 0 in the reference of an exact target: x there is x(0) to 1e-8."""


class Counter:
    """Counts the calls of the networks that it is put around: `model.map(counter.around)`."""

    def __init__(self) -> None:
        self.calls = 0

    def around(self, net: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The network, which lets its calls be counted."""

        def counted(*args: Any, **kwargs: Any) -> Tensor:
            self.calls += 1
            return net(*args, **kwargs)

        return counted


@dataclass(frozen=True, eq=False)
class Problem:
    """A model with the starts of its samples.

    start: [B, *event] float64, the states w at the ratio r_max. law: the exact data distribution
    where it is known. data: [M, *event] real data where the model was trained on some.
    std: root mean variance of a data component, the unit of errors. seed: of the starts.
    features: what distances of features compare; None: the components (see measures/metrics.py).
    """

    name: str
    about: str
    model: Denoiser
    start: Tensor
    std: float
    seed: int
    law: GaussianMixture | None = None
    data: Tensor | None = None
    features: Callable[[Tensor], Tensor] | None = None

    @property
    def process(self) -> Process:
        return self.model.process

    @property
    def large(self) -> bool:
        """Whether its events have more components than SMALL_EVENT."""
        return self.start[0].numel() > SMALL_EVENT

    @property
    def narrow(self) -> bool:
        """Whether its network computes in a type narrower than float64."""
        own = (net for net in self.model.networks if isinstance(net, InItsOwnType))
        return any(net.dtype != torch.float64 for net in own)

    @property
    def r_max(self) -> float:
        """Where all samples start: sigma/alpha at t_max; inf for a flow."""
        return ratio_at(self.process, self.process.t_max)

    @property
    def r_min(self) -> float:
        """Where the model's own range of times ends."""
        return ratio_at(self.process, self.model.t_min)

    @cached_property
    def fingerprint(self) -> str:
        """16 digits of a hash of what the numbers depend on: starts, network, process, data,
        features."""
        seen = [self.flow]
        if self.features is not None:
            probes = torch.cat([self.start[:4], _probes(self.start)]).float()
            seen += [f"{v:.3g}" for v in self.features(probes).double().square().mean(1).sqrt()]
        return _digest(*seen, None if self.data is None else _rounded(self.data))

    @cached_property
    def flow(self) -> str:
        """The same of what its trajectories depend on: starts, network, process."""
        return _digest(self.identity, _rounded(self.start))

    @cached_property
    def identity(self) -> str:
        """The same of network and process alone, whatever the seed.

        By its weights and by its data predictions at `PROBED` noise levels: each to 1e-6 in
        float64; of a network in a narrower type, which rounds differently with the number of
        threads, the root mean square to three digits.
        """
        known = repr((self.process, self.model.predicts, self.model.time))
        for module in self.model.networks:
            if isinstance(module, torch.nn.Module):
                known += _digest(*(v for _, v in sorted(module.state_dict().items())))
        probes = _probes(self.start)
        low, top = max(self.r_min, ZERO_RATIO), min(self.r_max, 1e3)
        levels = torch.logspace(math.log10(low), math.log10(top), PROBED).tolist()
        with torch.no_grad():
            seen = [data_prediction(self.model, probes, r) for r in levels]
        if self.narrow:
            return _digest(known, *(f"{float(d.square().mean().sqrt()):.3g}" for d in seen))
        return _digest(known, *map(_rounded, seen))

    def counted(self) -> tuple[Denoiser, Counter]:
        """The model with a network that counts its calls, and the counter."""
        counter = Counter()
        return self.model.map(counter.around), counter


def exact(target: Target, batch: int, seed: int = 0) -> Problem:
    """A problem whose starts are exact draws of p_{t_max}: x_0 of the law, noised.

    So no error of a mismatched prior is in what is measured. Raises ValueError for batch < 2.
    """
    _check(batch)
    shape = (batch, *target.law.event_shape)
    x0 = target.law.sample(batch, seed=seed)
    z = normal(shape, seed, purpose="user", dtype=torch.float64)
    alpha, sigma = (float(f(target.process.t_max)) for f in _scales(target.process))
    start = (alpha * x0 + sigma * z) / math.hypot(alpha, sigma)
    model = target.law.denoiser(target.process)
    return Problem(target.name, target.about, model, start, target.std, seed, target.law)


def network(
    name: str, about: str, model: Denoiser, data: Tensor, batch: int, seed: int = 0
) -> Problem:
    """A problem with a trained network: starts are the prior N(0, sigma(t_max)^2), as users start.

    data [M, *event]: real data of the network's kind, for the unit of errors and for distances.
    The states are float64; a network of events up to SMALL_EVENT components, and one that is a
    function, runs in float64 too, so that rounding does not hide the solvers' errors, if it can; a
    larger one in its own type, which is what its users see and no slower than it need be.

    Raises ValueError for a network that cannot be called.
    """
    _check(batch)
    shape = (batch, *data.shape[1:])
    z = normal(shape, seed, purpose="initial", dtype=torch.float64)
    alpha, sigma = (float(f(model.process.t_max)) for f in _scales(model.process))
    start = sigma * z / math.hypot(alpha, sigma)
    std = float(data.double().flatten(1).var(0).mean().sqrt())
    posed = Problem(name, about, model, start, std, seed, data=data.double())
    return _callable(posed)


def _callable(p: Problem) -> Problem:
    """The problem with its network in the widest type that it takes, found by one call."""

    def wide(net: Any) -> Any:
        if isinstance(net, torch.nn.Module):
            return InItsOwnType(copy.deepcopy(net).double())
        return net

    modules = any(isinstance(net, torch.nn.Module) for net in p.model.networks)
    ways = [InItsOwnType] if modules and p.large else [wide, InItsOwnType]
    own = InItsOwnType(p.model.networks[0])
    for way in ways:
        tried = replace(p, model=p.model.map(way))
        try:
            with torch.no_grad():
                data_prediction(tried.model, p.start[:2], min(max(1.0, p.r_min), p.r_max))
        except Exception as error:  # noqa: BLE001 a network of the user's may raise anything
            failed = error
            continue
        narrower = way is InItsOwnType and len(ways) > 1
        return replace(tried, about=f"{p.about}; called in {own.dtype}") if narrower else tried
    raise InvalidValue(
        f"the network of {p.name} cannot be called with x {own.dtype} of shape "
        f"{tuple(p.start[:2].shape)} and t of shape (2,): {type(failed).__name__}: {failed}"
    ) from failed


PROBED = 5
"""Noise levels at which a network is called to identify it."""


def _probes(start: Tensor) -> Tensor:
    """Two states w of no seed, of the shape of the problem's."""
    shape = (2, *start.shape[1:])
    return normal(shape, seed=0, sample_ids=range(2**32, 2**32 + 2), dtype=torch.float64)


def _digest(*parts: Tensor | str | None) -> str:
    """16 digits of a hash of texts and of the bytes of tensors."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            h.update(
                part.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            )
        elif part is not None:
            h.update(part.encode())
    return h.hexdigest()[:16]


def _rounded(x: Tensor) -> Tensor:
    """x to 1e-6, as integers."""
    return (x.double() * 1e6).round().long()


def ratio_at(process: Process, t: float | Tensor) -> float:
    """sigma/alpha at t: 0 at a clean end, inf at pure noise."""
    return math.exp(-float(process.log_snr(t)))


def time_at(process: Process, ratio: float) -> float:
    """The t at which sigma/alpha = ratio, kept inside [.., t_max]."""
    if math.isinf(ratio):
        return process.t_max
    lam = torch.tensor(-math.log(ratio), dtype=torch.float64)
    return min(float(process.inverse_log_snr(lam)), process.t_max)


def data_prediction(model: Denoiser, w: Tensor, ratio: float) -> Tensor:
    """D of the state w [B, *event] at sigma/alpha = ratio > 0."""
    t = time_at(model.process, ratio)
    alpha, sigma = (float(f(t)) for f in _scales(model.process))
    return model(w * math.hypot(alpha, sigma), t)


def to_unit(process: Process, x: Tensor, t: float) -> Tensor:
    """x at time t -> w."""
    alpha, sigma = (float(f(t)) for f in _scales(process))
    return x / math.hypot(alpha, sigma)


def from_unit(process: Process, w: Tensor, t: float) -> Tensor:
    """w -> x at time t."""
    alpha, sigma = (float(f(t)) for f in _scales(process))
    return w * math.hypot(alpha, sigma)


def signal(w: Tensor, ratio: float) -> Tensor:
    """w -> x/alpha, the noised data on the data's own scale: w sqrt(1 + ratio^2)."""
    return w * math.hypot(1.0, ratio)


def _scales(process: Process) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return process.alpha, process.sigma


def _check(batch: int) -> None:
    if batch < 2:
        raise InvalidValue(f"batch must be at least 2 samples, for intervals; got {batch}")


EXACT_DRAWS = 2048
"""Exact samples behind the mean log density."""


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


TOLERANCES = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12)
"""Relative = absolute tolerance of the runs; a reference at level i compares i with i + 1."""


FINER = 20
"""The reference's own error should be this many times below the smallest error shown."""


class Reference:
    """States w of the exact trajectories at the ratios that were asked for.

    error: root mean square distance, in units of the data's standard deviation, between the
    reference and the same integration at a 10 times looser tolerance, the worst over the ratios.
    """

    def __init__(self, states: dict[str, Tensor], error: float, level: int) -> None:
        self._states = states
        self.error = error
        self.level = level

    def at(self, ratio: float) -> Tensor:
        """w [B, *event] at sigma/alpha = ratio; raises KeyError for one that was not asked for."""
        return self._states[_key(ratio)]

    @property
    def ratios(self) -> set[float]:
        """Those that `at` knows."""
        return {float(k) for k in self._states}

    def covers(self, ratios: Iterable[float]) -> bool:
        """Whether `at` knows all of them."""
        return all(_key(r) in self._states for r in ratios)


def solve(
    problem: Problem,
    ratios: Iterable[float],
    level: int = 0,
    tick: Callable[[], object] | None = None,
    loose: Reference | None = None,
) -> Reference:
    """Integrate the problem's starts down to every ratio (0 stands for x(0), or, for a trained
    network, for one denoising jump from its t_min). tick is called after every evaluation.
    loose: the reference of the level below, if there is one that covers the ratios.

    Raises ValueError for a level that does not exist, ImportError without SciPy.
    """
    if not 0 <= level < len(TOLERANCES) - 1:
        raise InvalidValue(f"level must be 0..{len(TOLERANCES) - 2}; got {level}")
    wanted = sorted({*ratios}, reverse=True)
    if loose is not None and loose.level == level - 1 and loose.covers(wanted):
        before = [loose.at(r) for r in wanted]
    else:
        before = _integrate(problem, wanted, TOLERANCES[level], tick)
    tight = _integrate(problem, wanted, TOLERANCES[level + 1], tick)
    gaps = [float((a - b).square().mean().sqrt()) for a, b in zip(before, tight, strict=True)]
    states = {_key(r): w for r, w in zip(wanted, tight, strict=True)}
    return Reference(states, max(gaps) / problem.std, level)


def cached(
    path: Path,
    problem: Problem,
    ratios: Iterable[float],
    level: int = 0,
    tick: Callable[[], object] | None = None,
) -> Reference:
    """`solve`, kept in a file: read back if it is of this flow and knows these ratios. A file that
    does not read is made again."""
    wanted, below = {float(r) for r in ratios}, _kept(path, problem)
    if below is not None:
        if below.level >= level and below.covers(wanted):
            return below
        wanted |= below.ratios
    found = solve(problem, wanted, level, tick, below)
    held = {
        "states": {_key(r): found.at(r) for r in wanted},
        "error": found.error,
        "level": level,
        "flow": problem.flow,
    }
    write_tensors(path, held)
    return found


def _kept(path: Path, problem: Problem) -> Reference | None:
    """The reference in the file, if that is a whole one of this problem's flow."""
    if not path.is_file():
        return None
    try:
        held = torch.load(path, weights_only=True, map_location="cpu")
        if held["flow"] != problem.flow:
            return None
        states = {_key(float(k)): v.reshape(problem.start.shape) for k, v in held["states"].items()}
        return Reference(states, float(held["error"]), int(held["level"]))
    except Exception:  # noqa: BLE001 torch.load raises whatever the bytes lead it to
        return None


def _integrate(
    problem: Problem, ratios: list[float], tol: float, tick: Callable[[], object] | None
) -> list[Tensor]:
    """w at each of the falling ratios."""
    words = "the reference solution is integrated by SciPy: pip install 'undiffuse[bench]'"
    solve_ivp = optional("scipy.integrate", words).solve_ivp
    shape = problem.start.shape
    jump = ratios[-1] == 0.0
    last = ZERO_RATIO if problem.law is not None else problem.r_min
    ends = [last if r == 0.0 else r for r in ratios]

    def slope(phi: float, flat: np.ndarray) -> np.ndarray:
        w = torch.from_numpy(flat).reshape(shape)
        ratio = math.tan(phi) if phi < math.pi / 2 else math.inf
        d = data_prediction(problem.model, w, ratio)
        bad = ~torch.isfinite(d).flatten(1).all(1)
        if bool(bad.any()):  # SciPy would look for a step size for ever
            raise _failed(problem, f"{Status.NETWORK_NOT_FINITE.meaning} at {ratio=:.4g}", bad)
        if tick is not None:
            tick()
        return ((w * math.cos(phi) - d) / math.sin(phi)).flatten().numpy()

    phis = np.arctan(np.array([problem.r_max, *ends]))
    phis = np.minimum(phis, phis[0])  # a start rounded to float32 may lie a hair above r_max
    if phis.min() == phis[0]:
        return [problem.start] * len(ratios)
    with torch.no_grad():
        run = solve_ivp(
            slope,
            (phis[0], phis[1:].min()),
            problem.start.flatten().numpy(),
            method="DOP853",
            rtol=tol,
            atol=tol,
            t_eval=np.unique(phis[1:])[::-1],
        )
        if not run.success:
            raise _failed(problem, run.message, torch.ones(len(problem.start), dtype=torch.bool))
        by_phi = dict(zip(run.t.tolist(), run.y.T, strict=True))
        out = [torch.from_numpy(by_phi[float(p)].copy()).reshape(shape) for p in phis[1:]]
        if jump:
            out[-1] = data_prediction(problem.model, out[-1], last)
    return out


def _failed(problem: Problem, why: str, which: Tensor) -> SolverError:
    """To be raised: no reference, and why, for the samples of which it is so."""
    return SolverError(
        f"the reference of {problem.name} failed: {why}; {int(which.sum())} of {len(which)} "
        "samples",
        which * int(Status.NETWORK_NOT_FINITE),
    )


def _key(ratio: float) -> str:
    return f"{ratio:.9g}"
