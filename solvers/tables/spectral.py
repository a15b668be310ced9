"""A table whose coefficients are vectors over components, and the frame it is run in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Denoiser, Process
from ...models.statistics import Statistics
from .tableau import check_levels


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
    state: Tensor = field(repr=False)
    data: Tensor = field(repr=False)
    entry: Tensor = field(repr=False)
    grid: Tensor
    name: str = "spectral"
    stochastic: bool = False

    @property
    def nfe(self) -> int:
        """Network evaluations of one run."""
        return len(self.times)

    @property
    def noise(self) -> Tensor:
        """[N, 0, d]: no row draws a normal."""
        return self.state[:, :0]

    @property
    def draws(self) -> Tensor:
        """int64 [N, 0]."""
        return torch.zeros(self.nfe, 0, dtype=torch.int64, device="cpu")

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
        times = torch.cat([table.grid[:1], table.times, table.grid[-1:]])
        alpha = table.process.alpha(times)
        levels = torch.stack([alpha, table.process.sigma(times)], 1)
        check_levels(f"{table.name} of {table.process}", times, levels, model.process)
        skip, scale = model.coefficients("data", table.times)
        shift = (skip * alpha[1:-1] - 1) / scale
        numbers = (v.to(device, dtype) for v in (table.entry, alpha, shift))
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

    def into(self, x: Tensor, row: int) -> Tensor:
        """x at call `row` -> u there."""
        return self._turned(x, row + 1).reshape(x.shape)

    def sample(self, u: Tensor, row: int) -> Tensor:
        """u -> x at call `row`, or at grid[-1] after the last."""
        return (self.stats.q.back(u.flatten(1)) + self._mean(u, row + 1)).reshape(u.shape)

    def heard(self, out: Tensor, row: int, dtype: torch.dtype) -> Tensor:
        """What the network returned at that call -> what the table's read-out takes."""
        shifted = out.to(dtype).flatten(1) + self.shift[row] * self.stats.mean.to(out.device, dtype)
        return self.stats.q.into(shifted).reshape(out.shape)

    def _turned(self, x: Tensor, i: int) -> Tensor:
        return self.stats.q.into(x.flatten(1) - self._mean(x, i))

    def _mean(self, x: Tensor, i: int) -> Tensor:
        return self.alpha[i] * self.stats.mean.to(x.device, x.dtype)
