"""What a run is between two network calls, what a callback sees, and what a run ends with."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as with_changes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue


class Made(NamedTuple):
    """What a row made together with the state `of`: the network's next input, and the components
    that the table acts on (x itself but for a spectral table)."""

    of: Tensor
    x_in: Tensor
    components: Tensor
    writes: int = 0

    def holds(self, x: Tensor) -> bool:
        """Whether x is that state, and nobody wrote into it since."""
        return self.of is x and writes(x) <= self.writes


@dataclass(frozen=True, eq=False)
class State:
    """All that a run needs to go on: a value, to be kept, forked, pickled or sent elsewhere.

    x: [B, ...], the state at the time of its row; after the last row, the sample.
    t_in: [B], the time to call the network with; None when the run is over.
    row: rows done.
    states, datas: histories, most recent first; what is not there yet stands in as x.
    seed, sample_ids: int64 [1] or [B] and int64 [B], whose noise this is.
    c_in, dtype: scale and type of the network's input.
    made: see `Made`; it counts only as long as x is the tensor it was made with, unwritten.

    `state.replace(x=...)` goes on from another x. Do not write into `x`: other states share it.
    """

    x: Tensor
    t_in: Tensor | None
    row: int
    states: tuple[Tensor, ...]
    datas: tuple[Tensor, ...]
    seed: Tensor
    sample_ids: Tensor
    c_in: Tensor
    dtype: torch.dtype
    made: Made | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.x, Tensor) or self.x.shape[:1] != self.sample_ids.shape:
            got = tuple(self.x.shape) if isinstance(self.x, Tensor) else type(self.x).__name__
            raise InvalidType(f"x must be a tensor of {len(self.sample_ids)} samples; got {got}")

    def __getstate__(self) -> dict[str, Any]:
        made = self.made
        return {**self.__dict__, "made": made if made is None or made.holds(self.x) else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's x is what it was made with; torch counts its writes anew."""
        self.__dict__.update(state)
        if self.made is not None:
            made = self.made._replace(writes=writes(self.x))
            self.__dict__["made"] = made

    @property
    def done(self) -> bool:
        """Whether `x` is the sample."""
        return self.t_in is None

    @property
    def x_in(self) -> Tensor | None:
        """What to call the network with, c_in x: memory of its own. None when the run is over."""
        if self.done:
            return None
        if self.made is not None and self.made.holds(self.x):
            return self.made.x_in
        return network_input(self.x, self.c_in, self.dtype)

    def replace(
        self,
        *,
        x: Tensor | None = None,
        seed: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> State:
        """The same state but for what is given; what the network is asked next follows from it.

        Raises ValueError for an x of another shape or device.
        """
        if x is not None and (x.shape != self.x.shape or x.device != self.x.device):
            raise InvalidValue(
                f"x must be {tuple(self.x.shape)} on {self.x.device}; got {tuple(x.shape)} on "
                f"{x.device}"
            )
        return with_changes(
            self,
            x=self.x if x is None else x.to(self.x.dtype),
            seed=self.seed if seed is None else seed,
            sample_ids=self.sample_ids if sample_ids is None else sample_ids,
        )

    _replace = replace  # as of a named tuple


torch.serialization.add_safe_globals([State, Made])  # torch.load takes them with weights_only=True


def writes(x: Tensor) -> int:
    """How often x was written to; 0 where torch does not count."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def network_input(x: Tensor, c_in: Tensor, dtype: torch.dtype) -> Tensor:
    """c_in x in the network's type, never x itself: networks may work in place."""
    return (x * c_in).to(dtype)


class StepInfo(NamedTuple):
    """One row of a run, as a callback sees it.

    row: its index.
    t: where the network was called.
    x [B, ...]: the new state.
    out: the network's output.
    before, after: the states around it.
    readout: (skip, scale) of D = skip x + scale out.
    clip: the model's.
    """

    row: int
    t: float
    x: Tensor
    out: Tensor
    before: State
    after: State
    readout: tuple[float, float]
    clip: tuple[float, float] | None

    @property
    def denoised(self) -> Tensor:
        """D(x, t) of the state before the row, [B, ...]: the estimate of the sample."""
        skip, scale = self.readout
        d = skip * self.before.x + scale * self.out.to(self.x.dtype)
        return d if self.clip is None else d.clamp(*self.clip)


class Result(NamedTuple):
    """What a run returns where all of it is asked for.

    x: [B, ...], the samples.
    nfe: network calls, of which guidance makes several at each time.
    times: float64 [N], where the network was called.
    status: int64 [B], codes of `Status`.
    """

    x: Tensor
    nfe: int
    times: Tensor
    status: Tensor
