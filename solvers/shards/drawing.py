"""How a sample is drawn from its id alone, in any process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser, conditions
from ...models.checkpoint import Checkpoint, load
from ...models.variational import VarianceHead
from .. import arguments
from ..outcome import SolverError
from ..sampling.budget import as_told
from ..sampling.learned_variance import sample_learned_variance
from ..sampling.pilot import auto
from ..sampling.pilot_grid import MEASURED, digest, fingerprint, measured
from ..sampling.sample import sample
from ..sampling.sampler import GRID, SOLVER, STEPS, GridLike, Sampler, SolverLike
from ..work.processes import threads
from .blocks import in_blocks

LEARNED = "ddpm-learned"


@dataclass
class Drawing:
    """Everything that determines a sample besides its id; small enough to be sent to a process.

    model: a Denoiser, or what `models.checkpoint.load` takes.
    shape: of one sample.
    n: samples of the whole run: rows of conditions that belong to samples are so many.
    rows: samples that the network is asked about at a time, in every process the same.
    threads: of one process, on the CPU, in every process the same.
    Others: as of `sample`.
    """

    model: Denoiser | str
    shape: tuple[int, ...]
    n: int
    solver: SolverLike = SOLVER
    steps: int | None = None
    grid: GridLike | None = None
    nfe: int | None = None
    final: str | None = None
    seed: int = 0
    cond: dict[str, Any] | None = None
    dtype: torch.dtype | None = None
    device: str | None = None
    parallel: int | None = None
    tolerance: float | None = None
    rows: int = 32
    threads: int = 1

    def __getstate__(self) -> dict[str, Any]:
        """Without what a process finds out for itself."""
        return {k: v for k, v in vars(self).items() if k not in ("denoiser", "asked", "loaded")}

    @cached_property
    def loaded(self) -> Checkpoint | None:
        """The checkpoint of a model that was named."""
        return load(self.model, self.device) if isinstance(self.model, str) else None

    @cached_property
    def denoiser(self) -> Denoiser:
        """The model in this process."""
        if not isinstance(self.model, str):
            return self.model
        assert self.loaded is not None
        found = self.loaded.denoiser
        if self.dtype is not None and isinstance(found.net, nn.Module):
            found.net.to(dtype=self.dtype)
        return found

    @cached_property
    def asked(self) -> Denoiser:
        """The model whose network is asked in blocks."""
        return in_blocks(self.denoiser, self.rows)

    def resolve(self) -> None:
        """Look at everything before the first call, and find what is found on the network.

        Raises what `Sampler` raises for what does not fit.
        """
        arguments.whole("rows", self.rows, 1)
        arguments.whole("threads", self.threads, 1)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise InvalidType(f"seed must be a whole number, the same for all; got {self.seed!r}")
        self.denoiser.given(self.cond, self.n)
        by_name = isinstance(self.grid, str) and self.grid in MEASURED
        grid = GRID if by_name else self.grid
        if self.solver == LEARNED:
            if self.nfe is not None:
                raise InvalidValue(f"solver={LEARNED!r} calls the network once a step: give steps")
            if self.parallel is not None:
                raise InvalidValue(f"parallel= sweeps tables, and solver={LEARNED!r} is none")
            self.steps = STEPS if self.steps is None else self.steps
            self.grid = GRID if self.grid is None else self.grid
            if not isinstance(self.denoiser.net, VarianceHead):
                raise InvalidType(
                    "learned variances need a VarianceHead, as 'hybrid' trains; net is "
                    f"{type(self.denoiser.net).__name__}"
                )
        elif self.solver != "auto":
            sampler = self._sampler(grid)
            sampler.init((1, *self.shape))
            if self.parallel is not None:
                arguments.whole("parallel", self.parallel, 1)
        if self.parallel is None and self.tolerance is not None:
            raise InvalidValue("tolerance is of parallel sweeps: give parallel=")
        if self.tolerance is not None and not arguments.finite("tolerance", self.tolerance) >= 0:
            raise InvalidValue(f"tolerance must be >= 0; got {self.tolerance}")
        with threads(self.threads):
            few = conditions.rows(self._cond, torch.arange(min(self.n, 32), device="cpu"), self.n)
            shape = (min(self.n, 32), *self.shape)
            if isinstance(self.solver, str) and self.solver == "auto":
                calls = self.nfe or self.steps or STEPS
                self.solver = auto(self.denoiser, shape, calls, self.final, few)
                self.steps = self.nfe = None
            if isinstance(self.grid, str) and self.grid in MEASURED:
                self.grid = measured(self.grid, self.denoiser, shape, few or None)

    def _sampler(self, grid: GridLike | None) -> Sampler:
        return Sampler(
            self.denoiser,
            self.solver,
            self.steps,
            grid,
            nfe=as_told(self.denoiser, self.nfe, self.cond, self.n),
            final=self.final,
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def _cond(self) -> dict[str, Any]:
        return conditions.named(self.cond)

    def of(self, first: int, last: int, batch: int) -> tuple[Tensor, dict[str, Tensor], int]:
        """(x [last - first, ...] on the CPU, the rows of the conditions, network calls).

        Drawn in whole blocks, whose surplus is dropped: the bytes of a sample depend neither on
        its neighbours nor on the batch.
        """
        rows, parts, calls = self.rows, [], 0
        many = max(1, batch // rows) * rows
        end = math.ceil(last / rows) * rows
        with threads(self.threads):
            for start in range(first // rows * rows, end, many):
                stop = min(start + many, end)
                ids = torch.arange(start, stop, device="cpu").clamp(first, last - 1)
                x, calls = self._drawn(ids)
                parts.append(x[max(first - start, 0) : min(last, stop) - start].cpu())
        told = conditions.rows(self._cond, torch.arange(first, last, device="cpu"), self.n)
        return torch.cat(parts), dict(_rows(told, last - first, self._cond, self.n)), calls

    def _drawn(self, ids: Tensor) -> tuple[Tensor, int]:
        cond = conditions.rows(self._cond, ids, self.n) if self.cond else None
        own: dict[str, Any] = {
            "seed": self.seed, "sample_ids": ids, "cond": cond, "dtype": self.dtype,
            "device": self.device, "final": self.final,
        }  # fmt: skip
        shape = (len(ids), *self.shape)
        try:
            if self.solver == LEARNED:
                own["final"] = self.final or "denoise"
                grid = GRID if self.grid is None else self.grid
                found = sample_learned_variance(self.denoiser, shape, self.steps, grid, **own)
            else:
                found = sample(
                    self.asked, shape, self.solver, self.steps, self.grid, nfe=self.nfe,
                    parallel=self.parallel, tolerance=self.tolerance, return_result=True, **own,
                )  # fmt: skip
        except SolverError as error:
            where = f"ids {int(ids[0])}:{int(ids[-1]) + 1}"
            raise SolverError(f"{where}: {error}", error.status) from None
        return found.x, int(torch.as_tensor(found.nfe).max())

    def settings(self) -> dict[str, Any]:
        """What tells this run from others, as JSON takes it: all that a byte depends on."""
        if self.solver == LEARNED:
            table = f"{LEARNED}, {self.steps} steps, grid {self.grid!r}"
        else:
            made = self._sampler(self.grid)
            table = f"{made.tableau.name}, {made.nfe} calls, {made.plan.key[:12]}"
        swept = "" if self.parallel is None else f", sweeps of {self.parallel}"
        swept += "" if self.tolerance is None else f" to {self.tolerance:g}"
        return {
            "model": identity(self.denoiser, (2, *self.shape), self._cond, self.n),
            "solver": table + swept,
            "seed": self.seed,
            "shape": list(self.shape),
            "cond": _digest(self._cond),
            "dtype": "the network's" if self.dtype is None else str(self.dtype),
            "rows": self.rows,
            "threads": self.threads,
        }


def identity(model: Denoiser, shape: tuple[int, ...], cond: dict[str, Any], n: int) -> str:
    """16 digits of a hash of what a model is: its process and read-out, and its networks' weights;
    of networks without weights, what they say of two states."""
    found = hashlib.sha256(
        repr((model.process, model.predicts, model.time, model.clip, model.sigma_data)).encode()
    )
    modules = [net for net in model.networks if isinstance(net, nn.Module)]
    for net in modules:
        for name, value in sorted(net.state_dict().items()):
            found.update(name.encode())
            if isinstance(value, Tensor):
                _absorb(found.update, value)
    if len(modules) < len(model.networks) or type(model.net).__name__ not in (
        type(net).__name__ for net in modules
    ):
        told = conditions.rows(cond, torch.arange(2, device="cpu") % n, n)
        found.update(digest(fingerprint(model, shape, told or None)).encode())
    return found.hexdigest()[:16]


def _digest(cond: dict[str, Any]) -> str | None:
    """16 digits of a hash of conditions; None where there are none."""
    if not cond:
        return None
    found = hashlib.sha256()

    def leaf(value: Any, path: str) -> Any:
        found.update(path.encode())
        held = value.value if isinstance(value, conditions.Shared) else value
        if isinstance(held, Tensor):
            _absorb(found.update, held)
        else:
            found.update(held.tobytes() if hasattr(held, "tobytes") else repr(held).encode())
        return value

    conditions.walk(leaf, cond)
    return found.hexdigest()[:16]


def _absorb(update: Callable[[bytes], None], value: Tensor) -> None:
    update(f"{value.dtype} {tuple(value.shape)}".encode())
    flat = value.detach().cpu().reshape(-1).contiguous()
    update(flat.view(torch.uint8).numpy().tobytes())


def _rows(
    told: dict[str, Any], count: int, whole: dict[str, Any], n: int
) -> Iterator[tuple[str, Tensor]]:
    """The conditions that belong to samples, by the name that a shard gives them."""
    found: dict[str, Tensor] = {}

    def leaf(value: Any, path: str) -> Any:
        if conditions.length(value) == n and n > 1:
            belongs.add(path)
        return value

    def keep(value: Any, path: str) -> Any:
        if path in belongs or (n == 1 and conditions.length(value) == 1 and _dense(value)):
            name = path.removeprefix("cond['").removesuffix("']").replace("']['", ".")
            found[f"cond.{name}"] = torch.as_tensor(value).cpu().contiguous()
        return value

    belongs: set[str] = set()
    conditions.walk(leaf, whole)
    conditions.walk(keep, told)
    yield from found.items()


def _dense(value: Any) -> bool:
    return hasattr(value, "ndim") and value.ndim > 0
