"""How an item is scored, and a batch of items as a unit of work for any process."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...kernels.errors import InvalidType, InvalidValue
from ...models import Denoiser
from ...models.checkpoint import from_code, load
from ...models.dequantize import Hook, Levels
from ..outcome import Status
from ..store import Record, Store
from ..work.engines import Work
from ..work.processes import threads
from .bits import METHODS, Bits, bits_per_dim
from .items import Items

FOREIGN = {"ode": ("time", "steps", "calls", "decoder"), "elbo": ("probes", "rtol", "atol")}
TYPES = {"float32": torch.float32, "float64": torch.float64}
OUTCOMES = {Status.OK: "ok", Status.TARGET_NOT_MET: "target not met"}


@dataclass(frozen=True)
class Settings:
    """How an item is scored.

    method: 'ode' or 'elbo'.
    dequantize: 'uniform', 'none', or the name of a function that returns a hook
        (package.module:function or file.py:function); None: uniform for data with levels.
    convention: of the levels, 'ends' or 'bins'.
    repeats, target_error, seed: as in `bits_per_dim`; target_error is its target_std_error.
    probes, rtol, atol: of 'ode' alone; None: the defaults of `log_prob`.
    time, steps, calls, decoder: of 'elbo' alone; None: the defaults of `elbo`.
    conditional: whether to score log p(x | label): the network is handed the data's own labels as
        `label`. False hands it no condition; a network of labels then says log p(x), as far as it
        was trained without them.
    dtype: of states and network, 'float32' or 'float64'.
    levels: how many levels the data have, where their file could hold more; None: as many as it
        can, 256 of bytes.

    Raises ValueError for what does not fit.
    """

    method: str = "ode"
    dequantize: str | None = None
    convention: str = "ends"
    repeats: int = 1
    target_error: float | None = None
    probes: int | None = None
    rtol: float | None = None
    atol: float | None = None
    time: str | None = None
    steps: int | None = None
    calls: int | None = None
    decoder: str | None = None
    conditional: bool = False
    dtype: str = "float32"
    seed: int = 0
    levels: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidValue(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.dtype not in TYPES:
            raise InvalidValue(f"dtype must be one of {', '.join(TYPES)}; got {self.dtype!r}")
        for name in FOREIGN[self.method]:
            if (value := getattr(self, name)) is not None:
                raise InvalidValue(f"{name} is not of method={self.method!r}; got {value}")
        for name in ("repeats", "probes", "steps", "calls"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidValue(f"{name} must be >= 1; got {value}")
        for name in ("target_error", "rtol", "atol"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InvalidValue(f"{name} must be > 0; got {value}")

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `bits_per_dim`."""
        names = FOREIGN["elbo" if self.method == "ode" else "ode"]
        own = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        return {
            "by": self.method,
            "repeats": self.repeats,
            "seed": self.seed,
            "target_std_error": self.target_error,
            "on_failure": "return",
            **own,
        }


@dataclass(eq=False)
class Scores(Work):
    """The items that are to be scored, a batch of neighbours at a time.

    keys: of all items, in order.
    head: what all keys have in common.
    own: keyword arguments of `bits_per_dim`.
    """

    folder: Path
    model: str | Path
    data: str | Path | None
    device: torch.device | str | None
    how: Settings
    keys: list[str]
    head: str
    labels: torch.Tensor | None
    own: dict[str, Any]
    threads: int
    todo: list[range] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.job = f"items-{digest(json.dumps(self.keys).encode())}"
        self.gpus = 1 if str(self.device).startswith("cuda") else 0

    def __getstate__(self) -> dict[str, Any]:
        """Without what each process reads for itself."""
        return {k: v for k, v in vars(self).items() if k != "parts"}

    @cached_property
    def parts(self) -> tuple[Items, Denoiser, str | Hook | None]:
        """The data, the network and the dequantisation, in this process."""
        how, trained = self.how, load(self.model, self.device)
        items = Items.of(trained, self.data, how.convention, how.dequantize is not None, how.levels)
        denoiser = prepared(trained.denoiser, self.device, TYPES[how.dtype])
        return items, denoiser, dequantisation(how, items.levels)

    def find(self, store: Store, batch: int) -> None:
        """Take over what an earlier run has left in its ledger, and lay out what is missing."""
        for unit in self.ledger.units():
            self.enter(store, unit)
        missing = [i for i, key in enumerate(self.keys) if key not in store]
        for i in missing:
            last = self.todo[-1] if self.todo else None
            if last is not None and last.stop == i and i % batch:
                self.todo[-1] = range(last.start, i + 1)
            else:
                self.todo.append(range(i, i + 1))

    def units(self) -> list[range]:
        """Neighbours among the missing items, cut at the multiples of the batch."""
        return self.todo

    def make(self, unit: range) -> Record:
        """The rows of a batch."""
        items, denoiser, fill = self.parts
        ids, dtype, own = list(unit), TYPES[self.how.dtype], dict(self.own)
        with threads(self.threads):
            x = items.placed(items.read(ids, dtype), dtype).to(self.device or "cpu")
            if self.labels is not None:
                own["cond"] = {"label": self.labels[ids].to(x.device)}
            found = bits_per_dim(
                denoiser,
                x,
                items.levels,
                dequantize=fill,
                sample_ids=torch.tensor(ids, device="cpu"),
                t_min=denoiser.t_min,  # it was not trained below
                **own,
            )
        return {"rows": _records(ids, self.keys, self.head, found, self.how.target_error)}

    def enter(self, store: Store, unit: range) -> list[Record]:
        """Write the rows of a unit that is done to the store; returns those that are new."""
        new = [row for row in self.ledger[unit]["rows"] if row["key"] not in store]
        for row in new:
            store.append(row)
        return new


def prepared(model: Denoiser, device: torch.device | str | None, dtype: torch.dtype) -> Denoiser:
    """The denoiser with a network on the device and of the type."""
    if not isinstance(model.net, torch.nn.Module):
        return model
    return replace(model, net=copy.deepcopy(model.net).to(device=device, dtype=dtype))


def dequantisation(how: Settings, levels: Levels | None) -> str | Hook | None:
    """The choice as `bits_per_dim` takes it."""
    name = how.dequantize
    if name is None:
        return None if levels is None else "uniform"
    if name in ("uniform", "none"):
        return name
    hook = from_code(name)
    if not callable(hook):
        raise InvalidType(
            f"dequantize must be uniform, none, or package.module:function or file.py:function "
            f"that returns a hook(centres, eps) -> (u, log_q); got {name!r}"
        )
    made: Hook = hook
    return made


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


FIELDS = (
    "item",
    "bits_per_dim",
    "std_error",
    "solver_error",
    "repeats",
    "nfe",
    "status",
    "why",
    "convention",
)
"""What a row of items.jsonl holds; one without is scored again."""


def _records(
    ids: list[int], keys: list[str], head: str, found: Bits, target: float | None
) -> list[Record]:
    """A row an item. A target is missed also where the noise of the dequantisation, which is not in
    the status, spreads the repeats by more."""
    late = torch.zeros(len(ids), dtype=torch.bool, device="cpu")
    if target is not None:
        late = (found.status == Status.OK) & (found.std_error > target * (1 + 1e-9))
    status = torch.where(late, int(Status.TARGET_NOT_MET), found.status)
    rows = zip(
        ids,
        found.bits_per_dim.tolist(),
        found.std_error.tolist(),
        found.solver_error.tolist(),
        found.repeats.tolist(),
        found.nfe.tolist(),
        status.tolist(),
        late.tolist(),
        strict=True,
    )
    return [
        {
            "key": keys[i],
            "head": head,
            "item": i,
            "bits_per_dim": bits,
            "std_error": error,
            "solver_error": solver,
            "repeats": repeats,
            "nfe": n,
            "status": OUTCOMES.get(Status(code), "failed"),
            "why": "the repeats spread by more than the target" if wide else Status(code).meaning,
            "convention": found.convention,
        }
        for i, bits, error, solver, repeats, n, code, wide in rows
    ]
