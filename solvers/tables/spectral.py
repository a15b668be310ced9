"""A table whose coefficients are vectors over components, and the frame it is run in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser, Process, notebook
from ...models.processes import registry
from ...models.statistics import Statistics
from ..showing import plot_table
from .files import FORMAT, VERSION, need, numbers, read_record, write_record
from .tableau import check_levels, independent, subscript


@dataclass(frozen=True, eq=False)
class SpectralTable:
    """A table over components: u_{i+1} = sum_k state[i,k] u_{i-k} + sum_h data[i,h] E_{i-h}.

    Here u = Q^T (x - alpha m) and E = Q^T (D - m). It runs wherever a `Tableau` does:
    `sample(model, shape, solver=table)`. A sample is the same in any batch up to the rounding of
    the products with Q, which a library may sum in another order there.

    process: of the model.
    stats: mean m and basis Q of the data.
    times: [N], where the network is called.
    state, data: [N, K, d] and [N, H, d] float64, the coefficients above.
    entry: [d], what takes u from grid[0] to times[0] in closed form.
    grid: where the run starts and ends.
    name: of the table.
    """

    process: Process
    stats: Statistics
    times: Tensor
    state: Tensor
    data: Tensor
    entry: Tensor
    grid: Tensor
    name: str = "spectral"
    stochastic: bool = False

    def _title(self) -> str:
        return f"{self.name}: {self.nfe} network evaluations over {len(self.entry)} components"

    def _facts(self) -> notebook.Facts:
        past, heard = self.state.shape[1], self.data.shape[1]
        spread = self.stats.variances.sqrt()
        return [
            ("process", str(self.process)),
            ("times", f"{float(self.grid[0]):.4g} .. {float(self.grid[-1]):.4g}"),
            ("a row", f"{past} states and {heard} data predictions of each component"),
            ("deviations", f"{float(spread.min()):.3g} .. {float(spread.max()):.3g}"),
        ]

    def __repr__(self) -> str:
        return notebook.lines(self._title(), self._facts())

    def _repr_html_(self) -> str:
        return notebook.table(self._title(), (), self._facts())

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the grid (sigma/alpha of each call) and the coefficients of two components, that of
        the largest (+) and of the smallest variance (-); returns matplotlib's figure, written if a
        path is given. Raises MissingPackage without matplotlib."""
        ratio = self.process.sigma(self.times) / self.process.alpha(self.times)
        rows = ratio.masked_fill(~ratio.isfinite(), torch.nan)  # pure noise has no place on it
        variances = self.stats.variances
        columns, cells = [], []
        for sign, c in (("+", int(variances.argmax())), ("-", int(variances.argmin()))):
            for letter, held in (("u", self.state), ("E", self.data)):
                columns += [f"{subscript(letter, k)} {sign}" for k in range(held.shape[1])]
                cells.append(held[:, :, c])
        return plot_table(
            self.name, rows.tolist(), "sigma/alpha", columns, torch.cat(cells, 1), path
        )

    @property
    def nfe(self) -> int:
        """Network evaluations of one run."""
        return len(self.times)

    @property
    def blocks(self) -> list[int]:
        """See `Tableau.blocks`."""
        return independent(self.data)

    @property
    def depth(self) -> int:
        """See `Tableau.depth`."""
        return len(self.blocks)

    @property
    def noise(self) -> Tensor:
        """[N, 0, d]: no row draws a normal."""
        return self.state[:, :0]

    @property
    def draws(self) -> Tensor:
        """int64 [N, 0]."""
        return torch.zeros(self.nfe, 0, dtype=torch.int64, device="cpu")

    def record(self) -> dict[str, Any]:
        """Everything as plain numbers, texts and lists, which `from_record` reads back exactly.

        Raises ValueError for a process whose class is not registered.
        """
        basis = self.stats.q.record()
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "order": None,
            "weak_order": None,
            "entry": self.entry.tolist(),
            "grid": self.grid.tolist(),
            "times": self.times.tolist(),
            "state": self.state.tolist(),
            "data": self.data.tolist(),
            "noise": [[] for _ in range(self.nfe)],
            "draws": [[] for _ in range(self.nfe)],
            "mean": self.stats.mean.tolist(),
            "variances": self.stats.variances.tolist(),
            "basis": basis["kind"],
            "basis_q": basis.get("q"),
            "basis_shape": basis.get("shape"),
            "process": registry.to_dict(self.process),
        }

    def save(self, path: str | Path) -> Path:
        """Write the record to a file, as npz if the path ends in .npz and else as JSON; returns the
        path. `Sampler.export` writes the same and what a run needs besides."""
        return write_record(path, self.record())

    @classmethod
    def load(cls, path: str | Path) -> SpectralTable:
        """The table in a file that `save` or `Sampler.export` wrote. Raises ValueError for another
        file."""
        return cls.from_record(read_record(path, "a table over components"))

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> SpectralTable:
        """Inverse of `record`; other keys are ignored. Raises ValueError for what is none."""
        keys = ("times", "state", "data", "entry", "grid", "mean", "variances", "basis", "process")
        need(record, "a table over components", keys)
        kind, process = record["basis"], record["process"]
        basis = {"kind": kind, "q": record.get("basis_q"), "shape": record.get("basis_shape")}
        if not isinstance(process, dict) or not {"name", "args"} <= set(process):
            raise InvalidValue(f"process must be {{'name': ..., 'args': ...}}; got {process!r}")
        made = cls(
            process=registry.from_dict(process),
            stats=Statistics.from_record({**record, "basis": basis}),
            times=numbers(record, "times", 1),
            state=numbers(record, "state", 3),
            data=numbers(record, "data", 3),
            entry=numbers(record, "entry", 1),
            grid=numbers(record, "grid", 1),
            name=str(record.get("name", "spectral")),
        )
        n, d = made.nfe, made.stats.mean.numel()
        for key in ("state", "data"):
            shape = tuple(getattr(made, key).shape)
            if (shape[0], shape[2]) != (n, d) or made.entry.shape != (d,):
                raise InvalidValue(f"{key} must be [{n}, ..., {d}] and entry [{d}]; got {shape}")
        return made

    def check(self, process: Process) -> None:
        """Raises ValueError unless the table is for this process."""
        times = torch.cat([self.grid[:1], self.times, self.grid[-1:]])
        levels = torch.stack([self.process.alpha(times), self.process.sigma(times)], 1)
        check_levels(f"{self.name} of {self.process}", times, levels, process)

    def means(self, model: Denoiser) -> tuple[Tensor, Tensor]:
        """alpha [N + 2] and shift [N] of `Frame`, float64."""
        alpha = self.process.alpha(torch.cat([self.grid[:1], self.times, self.grid[-1:]]))
        skip, scale = model.coefficients("data", self.times)
        return alpha, (skip * alpha[1:-1] - 1) / scale

    def frame(self, model: Denoiser, device: torch.device, dtype: torch.dtype) -> Frame:
        """Between a model's samples and the components that the table acts on."""
        return Frame.of(self, model, device, dtype)


@dataclass(frozen=True, eq=False)
class Frame:
    """Between a model's samples and the components that a spectral table acts on.

    All it holds is on the device and in the state's type, so that a CUDA graph can capture it.

    alpha: [N + 2], at grid[0], at every call, at grid[-1].
    shift: [N]; with D = skip x + scale out, E = skip u + scale Q^T (out + shift m).
    """

    stats: Statistics
    entry: Tensor
    alpha: Tensor
    shift: Tensor
    fused: ClassVar[bool] = False

    @classmethod
    def of(cls, table: SpectralTable, model: Denoiser, device: Any, dtype: torch.dtype) -> Frame:
        """For a model on a device, in the state's type. Raises ValueError for a model of another
        process than the table's, or one that clips: its limits are those of pixels, not of
        components."""
        if model.clip is not None:
            raise InvalidValue(
                f"clip={model.clip} acts on pixels and a table with statistics on components: "
                "use clip=None with it"
            )
        table.check(model.process)
        numbers = (v.to(device, dtype) for v in (table.entry, *table.means(model)))
        return cls(table.stats.to(device, dtype), *numbers)

    def fits(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless samples of this shape (B, ...) fit the statistics."""
        d = self.stats.mean.numel()
        if math.prod(shape[1:]) != d:
            raise InvalidValue(
                f"the solver's statistics are of {d} components; got shape {tuple(shape)}: "
                "take statistics of data of the model's own kind"
            )

    def enter(self, x: Tensor, z: Callable[[], Tensor]) -> Tensor:
        """x at grid[0] -> u at the first call."""
        return (self._turned(x, 0) * self.entry).reshape(x.shape)

    def into(self, x: Tensor, row: int | Tensor) -> Tensor:
        """x at call `row` -> u there; samples may be at rows of their own, int64 [B]."""
        return self._turned(x, row + 1).reshape(x.shape)

    def sample(self, u: Tensor, row: int | Tensor) -> Tensor:
        """u -> x at call `row`, or at grid[-1] after the last."""
        return (self.stats.q.back(u.flatten(1)) + self._mean(u, row + 1)).reshape(u.shape)

    def heard(self, out: Tensor, row: int | Tensor, dtype: torch.dtype) -> Tensor:
        """What the network returned at that call -> what the table's read-out takes."""
        mean = self.stats.mean.to(out.device, dtype)
        shifted = out.to(dtype).flatten(1) + self.shift[row][..., None] * mean
        return self.stats.q.into(shifted).reshape(out.shape)

    def _turned(self, x: Tensor, i: int | Tensor) -> Tensor:
        return self.stats.q.into(x.flatten(1) - self._mean(x, i))

    def _mean(self, x: Tensor, i: int | Tensor) -> Tensor:
        return self.alpha[i][..., None] * self.stats.mean.to(x.device, x.dtype)
