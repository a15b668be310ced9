"""A solver is a table.

Row i of a tableau calls the network at times[i] on x_i, reads the data prediction D_i off it and
writes the next state,

    x_{i+1} = sum_k state[i,k] x_{i-k} + sum_h data[i,h] D_{i-h} + sum_m noise[i,m] z_{draws[i,m]},

with coefficients that depend on the grid of times alone. Stages of a multi-stage method are rows;
two rows share a normal by sharing its draw index. Everything is float64 and lives on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.shapes import as_float64
from ...models import Denoiser, Process, notebook
from ..showing import plot_table
from .files import FORMAT, VERSION, need, numbers, parse, read_record, to_text, write_record

LEGEND = "x: states, D: data predictions, z: normals; the next state is the sum of a row"


@dataclass(frozen=True)
class Identity:
    """The frame of a table that acts on samples as they are."""

    entry: tuple[float, float]
    fused: ClassVar[bool] = True  # c_in x of the table's last column is the network's input

    def fits(self, shape: Sequence[int]) -> None:
        """Samples of any shape do."""

    def enter(self, x: Tensor, z: Callable[[], Tensor]) -> Tensor:
        """x where the run starts -> x at the first call; z draws the entry's normal."""
        scale, noise = self.entry
        scaled = x if scale == 1.0 else scale * x
        return scaled if noise == 0.0 else scaled + noise * z()

    def into(self, x: Tensor, row: int | Tensor) -> Tensor:
        return x

    def sample(self, u: Tensor, row: int | Tensor) -> Tensor:
        return u

    def heard(self, out: Tensor, row: int | Tensor, dtype: torch.dtype) -> Tensor:
        return out


@dataclass(frozen=True, eq=False, repr=False)
class Tableau:
    """The coefficients of a whole sampling run; see the module's first lines for the equation.

    times: [N] float64, where row i calls the network; N is the number of network evaluations.
    state, data, noise: [N, K], [N, H], [N, M] float64 coefficients (K, H >= 1, M >= 0).
    draws: [N, M] int64, the draw index of each normal in the noise format, from 0 to 2^32 - 1.
    entry: (a, c) with x_0 = a x_init + c z_0 before the first call, (1, 0) but for churn; z_0 has
        draw index 0 and the rows' draws start at 1.
    grid: the times that the solver was asked to step through: falling, or rising to run backwards.
    name, order (strong), weak_order: what the solver declares and the tests measure.
    levels: [N, 2] alpha and sigma at `times` of the process that the table was made for, or None
        where that is not known. A model of another process is refused.

    Compares by value, prints as a table, and goes to JSON and back exactly. Raises ValueError if
    shapes disagree, a coefficient is not finite, the grid turns, a draw is out of range or history
    is read from before the first row; TypeError for what is no float64 tensor on the host.
    """

    times: Tensor
    state: Tensor
    data: Tensor
    noise: Tensor
    draws: Tensor
    grid: Tensor
    entry: tuple[float, float] = (1.0, 0.0)
    name: str = "tableau"
    order: float | None = None
    weak_order: float | None = None
    levels: Tensor | None = None

    def __post_init__(self) -> None:
        self._check_types()
        n = self.times.shape[0]
        for what in ("state", "data", "noise", "draws"):
            matrix = getattr(self, what)
            if matrix.ndim != 2 or matrix.shape[0] != n:
                raise InvalidValue(
                    f"{what} must be [{n}, ...] like times; got {tuple(matrix.shape)}"
                )
        if n < 1 or self.state.shape[1] < 1 or self.data.shape[1] < 1:
            raise InvalidValue("a tableau needs at least one row, one state and one data column")
        if self.draws.shape != self.noise.shape:
            raise InvalidValue(
                f"draws must have noise's shape {tuple(self.noise.shape)}; "
                f"got {tuple(self.draws.shape)}"
            )
        if len(self.entry) != 2 or not all(map(math.isfinite, self.entry)):
            raise InvalidValue(f"entry must be two finite numbers; got {self.entry}")
        if self.levels is not None and self.levels.shape != (n, 2):
            raise InvalidValue(f"levels must be [{n}, 2]; got {tuple(self.levels.shape)}")
        if not bool(torch.isfinite(self.times).all()):
            raise InvalidValue(f"times must be finite; got {self.times.tolist()[:8]}")
        steps = self.grid[1:] - self.grid[:-1]
        if self.grid.ndim != 1 or not (
            len(steps) and (bool((steps < 0).all()) or bool((steps > 0).all()))
        ):
            raise InvalidValue(
                f"grid must be two times or more that fall, or rise; got {self.grid.tolist()[:8]}"
            )
        if self.draws.numel() and not 0 <= int(self.draws.min()) <= int(self.draws.max()) < 1 << 32:
            raise InvalidValue(
                f"draws must lie from 0 to 2^32 - 1; got {int(self.draws.min())} to "
                f"{int(self.draws.max())}"
            )
        for what in ("state", "data", "noise"):
            bad = (~torch.isfinite(getattr(self, what))).nonzero()
            if len(bad):
                i, j = bad[0].tolist()
                raise InvalidValue(
                    f"{self.name}: {what}[{i},{j}] is {float(getattr(self, what)[i, j])} on this "
                    f"grid (row {i} starts at t={float(self.times[i]):g}); the scheme is singular "
                    "there: start below it, e.g. with t_max=0.999 in the process, or choose "
                    "another solver"
                )
        for what in ("state", "data"):
            early = getattr(self, what).triu(1)  # row i looks back at most i rows
            if bool(early.any()):
                k = int(early.any(0).nonzero()[0])
                raise InvalidValue(f"{what}[:{k},{k}] must be 0: there is no such history yet")

    @property
    def nfe(self) -> int:
        """Network evaluations of one run."""
        return self.times.shape[0]

    @property
    def blocks(self) -> list[int]:
        """Lengths of the runs of rows whose network calls need none of each other's outputs."""
        return independent(self.data)

    @property
    def depth(self) -> int:
        """Network calls one after the other, where the calls of a block are made at once."""
        return len(self.blocks)

    @property
    def stochastic(self) -> bool:
        """Whether any normal is drawn after the initial one."""
        return self.entry[1] != 0 or bool((self.noise != 0).any())

    @property
    def shares_normals(self) -> bool:
        """Whether a normal is drawn twice, as by a stage and by its step's end."""
        drawn = self.draws[self.noise != 0]
        return len(torch.unique(drawn)) < len(drawn)

    def frame(self, model: Denoiser, device: torch.device, dtype: torch.dtype) -> Identity:
        """Between samples and what the table acts on: the samples themselves."""
        self.check(model.process)
        return Identity(self.entry)

    def _check_types(self) -> None:
        for what in ("times", "state", "data", "noise", "grid", "draws", "levels"):
            value = getattr(self, what)
            if what == "levels" and value is None:
                continue
            wanted = torch.int64 if what == "draws" else torch.float64
            if not isinstance(value, Tensor) or value.dtype != wanted or value.device.type != "cpu":
                got = type(value).__name__
                if isinstance(value, Tensor):
                    got = f"{value.dtype} on {value.device}"
                raise InvalidType(f"{what} must be a tensor of {wanted} on the CPU; got {got}")
        if self.times.ndim != 1:
            raise InvalidValue(f"times must be [N]; got shape {tuple(self.times.shape)}")

    def of(
        self, process: Process, order: float | None = None, weak_order: float | None = None
    ) -> Tableau:
        """The same table, made for this process; the orders count where it has none of its own."""
        alpha, sigma = process.alpha(self.times).detach(), process.sigma(self.times).detach()
        return replace(
            self,
            levels=torch.stack([alpha, sigma], 1),
            order=order if self.order is None else self.order,
            weak_order=weak_order if self.weak_order is None else self.weak_order,
        )

    def check(self, process: Process) -> None:
        """Raises ValueError unless the table is for this process, or, where that is not known,
        calls within its times. (Churn at t_max calls above it.)"""
        if self.levels is None:
            process.inside(self.times)
        else:
            check_levels(self.name, self.times, self.levels, process)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tableau) and self.record() == other.record()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        head, *rows = self._cells()
        width = [max(len(r[j]) for r in (head, *rows)) for j in range(len(head))]
        lines = [
            "  ".join(c.rjust(w) for c, w in zip(r, width, strict=True)) for r in (head, *rows)
        ]
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        return notebook.table(self._title(), head, rows, LEGEND)

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the grid (sigma/alpha of each call, or t where the levels are not known) and the
        coefficients; returns matplotlib's figure, written if a path is given. Raises MissingPackage
        without matplotlib."""
        rows, what = self.times, "t"
        if self.levels is not None:
            alpha, sigma = self.levels.unbind(1)
            rows, what = sigma / alpha, "sigma/alpha"
            rows = rows.masked_fill(~rows.isfinite(), torch.nan)  # pure noise has no place on it
        cells = torch.cat([self.state, self.data, self.noise], 1)
        return plot_table(self.name, rows.tolist(), what, self._columns(), cells, path)

    def _title(self) -> str:
        head = f"{self.name}: {self.nfe} network evaluations, order {self.order}"
        return head + (f", weak order {self.weak_order}" if self.weak_order is not None else "")

    def _columns(self) -> list[str]:
        """Names of the columns of coefficients."""
        normals = self.noise.shape[1]
        return [
            *(subscript("x", k) for k in range(self.state.shape[1])),
            *(subscript("D", h) for h in range(self.data.shape[1])),
            *(["z"] if normals == 1 else [f"z{m}" for m in range(normals)]),
        ]

    def _cells(self) -> list[list[str]]:
        """Head and rows as text, the middle of a long table left out."""
        columns = ["row", "t", *self._columns()]
        shown = list(range(self.nfe))
        if self.nfe > 24:
            shown = [*range(12), -1, *range(self.nfe - 12, self.nfe)]
        return [columns, *(["..."] * len(columns) if i < 0 else self._row(i) for i in shown)]

    def _row(self, i: int) -> list[str]:
        numbers = torch.cat([self.state[i], self.data[i], self.noise[i]]).tolist()
        return [str(i), f"{float(self.times[i]):.5g}"] + [f"{c:.6g}" if c else "." for c in numbers]

    def record(self) -> dict[str, Any]:
        """Everything as plain numbers, texts and lists, which `from_record` reads back exactly."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "order": self.order,
            "weak_order": self.weak_order,
            "entry": list(self.entry),
            "grid": [_number(v) for v in self.grid.tolist()],
            "times": self.times.tolist(),
            "state": self.state.tolist(),
            "data": self.data.tolist(),
            "noise": self.noise.tolist(),
            "draws": self.draws.tolist(),
            "levels": None if self.levels is None else self.levels.tolist(),
        }

    def to_json(self) -> str:
        """Exact text form of the record: Python's shortest floats, which read back to the same
        bits."""
        return to_text(self.record())

    def save(self, path: str | Path) -> Path:
        """Write the record to a file, as npz if the path ends in .npz and else as JSON; returns the
        path. `Sampler.export` writes the same and what a run needs besides."""
        return write_record(path, self.record())

    @classmethod
    def load(cls, path: str | Path) -> Tableau:
        """The table in a file that `save` or `Sampler.export` wrote. Raises ValueError for another
        file."""
        return cls.from_record(read_record(path, "a tableau"))

    @classmethod
    def from_json(cls, text: str) -> Tableau:
        """Inverse of `to_json`. Raises ValueError for text that is not a tableau."""
        return cls.from_record(parse(text, "a tableau"))

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Tableau:
        """Inverse of `record`; other keys are ignored. Raises ValueError for what is none."""
        need(record, "a tableau", KEYS)
        if "basis" in record:
            raise InvalidValue(
                f"{record['name']} is a table over components: read it with SpectralTable.load"
            )
        n = len(numbers(record, "times", 1))

        def rows(found: Tensor) -> Tensor:
            """[n, 0] where there are no columns, whose lists may be left out."""
            return found if found.numel() else found.reshape(n, 0)

        draws = numbers(record, "draws", 2, integers=True)
        entry = numbers(record, "entry", 1).tolist()
        for key in ("order", "weak_order"):
            if isinstance(record[key], bool) or not isinstance(record[key], int | float | None):
                raise InvalidValue(f"{key} must be a number or null; got {record[key]!r}")
        if not isinstance(record["name"], str):
            raise InvalidValue(f"name must be text; got {record['name']!r}")
        return cls(
            times=numbers(record, "times", 1),
            **{k: rows(numbers(record, k, 2)) for k in ("state", "data", "noise")},
            draws=rows(draws),
            grid=numbers(record, "grid", 1),
            entry=(entry[0], entry[1]) if len(entry) == 2 else tuple(entry),
            name=record["name"],
            order=record["order"],
            weak_order=record["weak_order"],
            levels=None if record.get("levels") is None else numbers(record, "levels", 2),
        )

    def trimmed(self) -> Tableau:
        """The same scheme without the trailing all-zero columns."""

        def cut(matrix: Tensor, least: int) -> Tensor:
            used = (matrix != 0).any(0).nonzero()
            return matrix[:, : max(least, int(used.max()) + 1 if len(used) else 0)]

        noise = cut(self.noise, 0)
        return replace(
            self,
            state=cut(self.state, 1),
            data=cut(self.data, 1),
            noise=noise,
            draws=self.draws[:, : noise.shape[1]],
        )


def subscript(symbol: str, back: int) -> str:
    return f"{symbol}_i" if back == 0 else f"{symbol}_i-{back}"


def independent(data: Tensor) -> list[int]:
    """Lengths of the longest blocks of rows, in order, that can call the network at once.

    Row j of a block that begins at i calls it on x_j, which row j - 1 writes: no row from i to
    j - 1 may read a prediction of a row from i on. The zeros of the table say so.

    data: [N, H] or [N, H, d], the coefficients of predictions.
    """
    used = (data != 0).flatten(2).any(2) if data.ndim == 3 else data != 0
    lags = torch.arange(used.shape[1], device="cpu")
    newest = torch.where(used, lags, used.shape[0]).amin(1).tolist()  # lag of the newest one read
    lengths, first, latest = [], 0, -1  # `latest`: the newest row whose prediction has been read
    for row in range(len(newest)):
        if row > first and latest >= first:
            lengths.append(row - first)
            first = row
        latest = max(latest, row - newest[row])
    return [*lengths, len(newest) - first]


KEYS = ("name", "order", "weak_order", "entry", "grid", "times", "state", "data", "noise", "draws")


def check_levels(name: str, times: Tensor, levels: Tensor, process: Process) -> None:
    """Raises ValueError unless the process has these alpha and sigma [N, 2] at these times.

    To 1e-6, since equal processes may round differently.
    """
    try:
        theirs = torch.stack([process.alpha(times), process.sigma(times)], 1).detach()
    except InvalidValue as error:  # times that it does not have
        raise InvalidValue(f"{name} was made for another process: {error}") from error
    off = ~torch.isclose(theirs, levels, rtol=1e-6).all(1)
    if bool(off.any()):
        i = int(off.nonzero()[0])
        mine, other = (tuple(f"{v:.6g}" for v in pair[i].tolist()) for pair in (levels, theirs))
        raise InvalidValue(
            f"{name} was made for another process: at t={float(times[i]):g} it counts on alpha="
            f"{mine[0]}, sigma={mine[1]}, where {process} has {other[0]}, {other[1]}: "
            "make one for it, `solver.tableau(model.process, grid)`"
        )


def _number(v: float) -> float | str:
    """JSON has no infinity: 'inf' and '-inf' as text."""
    return v if math.isfinite(v) else str(v)


def from_rows(
    name: str,
    grid: Tensor,
    times: Tensor,
    state: list[Tensor | float],
    data: list[Tensor | float],
    noise: list[Tensor | float] = (),  # type: ignore[assignment]
    *,
    order: float | None = None,
    weak_order: float | None = None,
) -> Tableau:
    """A tableau from columns: each is [N] or a number. Normals are drawn afresh at every row."""
    n = times.shape[0]

    def columns(parts: list[Tensor | float]) -> Tensor:
        if not len(parts):
            return times.new_zeros(n, 0)
        return torch.stack([as_float64(c).expand(n) for c in parts], 1)

    m = len(noise)
    draws = 1 + torch.arange(n * m, dtype=torch.int64, device="cpu").reshape(n, m)
    return Tableau(
        times,
        columns(state),
        columns(data),
        columns(noise),
        draws,
        grid,
        (1.0, 0.0),
        name,
        order,
        weak_order,
    ).trimmed()
