"""A solver is a table.

Row i of a tableau calls the network at times[i] on x_i, reads the data prediction D_i off it and
writes the next state,

    x_{i+1} = sum_k state[i,k] x_{i-k} + sum_h data[i,h] D_{i-h} + sum_m noise[i,m] z_{draws[i,m]},

with coefficients that depend on the grid of times alone. Stages of a multi-stage method are rows;
two rows share a normal by sharing its draw index. Everything is float64 and lives on the host.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser


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
        return x if self.entry == (1.0, 0.0) else scale * x + noise * z()

    def into(self, x: Tensor, row: int) -> Tensor:
        return x

    def sample(self, u: Tensor, row: int) -> Tensor:
        return u

    def heard(self, out: Tensor, row: int, dtype: torch.dtype) -> Tensor:
        return out


@dataclass(frozen=True, eq=False, repr=False)
class Tableau:
    """The coefficients of a whole sampling run; see the module's first lines for the equation.

    times: [N] float64, where row i calls the network; N is the number of network evaluations.
    state: [N, K]; data: [N, H]; noise: [N, M] float64 coefficients (K, H >= 1, M >= 0).
    draws: [N, M] int64, the draw index of each normal in the noise format.
    entry: (a, c) with x_0 = a x_init + c z_0 before the first call, (1, 0) but for churn;
        z_0 has draw index 0 and the rows' draws start at 1.
    grid: the times that the solver was asked to step through, noise to data.
    name, order (strong), weak_order: what the solver declares and the tests measure.

    Raises ValueError if shapes disagree, a coefficient is not finite or history is read from
    before the first row. Compares by value, prints as a table, and goes to JSON and back exactly.
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

    def __post_init__(self) -> None:
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
        if not all(map(math.isfinite, self.entry)):
            raise InvalidValue(f"entry must be two finite numbers; got {self.entry}")
        for what in ("state", "data", "noise"):
            bad = (~torch.isfinite(getattr(self, what))).nonzero()
            if len(bad):
                i, j = bad[0].tolist()
                raise InvalidValue(
                    f"{self.name}: {what}[{i},{j}] is {float(getattr(self, what)[i, j])} on this "
                    f"grid (row {i} starts at t={float(self.times[i]):g}); the scheme is singular "
                    "there: start below it, e.g. with t_max=0.999 in the process, or choose another solver"
                )
        for what in ("state", "data"):
            matrix = getattr(self, what)
            for k in range(1, min(matrix.shape[1], n + 1)):
                if bool((matrix[:k, k] != 0).any()):
                    raise InvalidValue(f"{what}[:{k},{k}] must be 0: there is no such history yet")

    @property
    def nfe(self) -> int:
        """Network evaluations of one run."""
        return self.times.shape[0]

    @property
    def stochastic(self) -> bool:
        """Whether any normal is drawn after the initial one."""
        return self.entry[1] != 0 or bool((self.noise != 0).any())

    def frame(self, model: Denoiser, device: torch.device, dtype: torch.dtype) -> Identity:
        """Between samples and what the table acts on: the samples themselves."""
        return Identity(self.entry)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tableau) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        head = f"{self.name}: {self.nfe} network evaluations, order {self.order}"
        head += f", weak order {self.weak_order}" if self.weak_order is not None else ""
        columns = (
            ["row", "t"]
            + [_subscript("x", k) for k in range(self.state.shape[1])]
            + [_subscript("D", h) for h in range(self.data.shape[1])]
            + ["z" if self.noise.shape[1] == 1 else f"z{m}" for m in range(self.noise.shape[1])]
        )
        shown = list(range(self.nfe))
        if self.nfe > 24:
            shown = [*range(12), -1, *range(self.nfe - 12, self.nfe)]
        rows = [["..."] * len(columns) if i < 0 else self._cells(i) for i in shown]
        width = [max(len(r[j]) for r in [columns, *rows]) for j in range(len(columns))]
        lines = [
            "  ".join(c.rjust(w) for c, w in zip(r, width, strict=True)) for r in [columns, *rows]
        ]
        return "\n".join([head, *lines])

    def _cells(self, i: int) -> list[str]:
        numbers = torch.cat([self.state[i], self.data[i], self.noise[i]]).tolist()
        return [str(i), f"{float(self.times[i]):.5g}"] + [f"{c:.6g}" if c else "." for c in numbers]

    def to_json(self) -> str:
        """Exact text form: Python's shortest floats, which read back to the same bits."""
        record = {
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
        }
        return json.dumps(record)

    def write(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_json(cls, text: str) -> Tableau:
        """Inverse of `to_json`. Raises ValueError for text that is not a tableau."""
        try:
            record = json.loads(text)
            n = len(record["times"])
            return cls(
                times=_matrix(record["times"]),
                state=_matrix(record["state"]).reshape(n, -1),
                data=_matrix(record["data"]).reshape(n, -1),
                noise=_matrix(record["noise"]).reshape(n, -1),
                draws=torch.tensor(record["draws"], dtype=torch.int64).reshape(n, -1),
                grid=_matrix([float(v) for v in record["grid"]]),
                entry=(record["entry"][0], record["entry"][1]),
                name=record["name"],
                order=record["order"],
                weak_order=record["weak_order"],
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise InvalidValue(f"not a tableau in JSON: {error}") from error

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


def _subscript(symbol: str, back: int) -> str:
    return f"{symbol}_i" if back == 0 else f"{symbol}_i-{back}"


def _matrix(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


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
    entry: tuple[float, float] = (1.0, 0.0),
    order: float | None = None,
    weak_order: float | None = None,
) -> Tableau:
    """A tableau from columns: each is [N] or a number. Normals are drawn afresh at every row."""
    n = times.shape[0]

    def columns(parts: list[Tensor | float]) -> Tensor:
        if not len(parts):
            return times.new_zeros(n, 0)
        return torch.stack([torch.as_tensor(c, dtype=torch.float64).expand(n) for c in parts], 1)

    m = len(noise)
    draws = 1 + torch.arange(n * m, dtype=torch.int64).reshape(n, m)
    return Tableau(
        times, columns(state), columns(data), columns(noise), draws, grid,
        entry, name, order, weak_order,
    ).trimmed()  # fmt: skip
