"""A run under way: where a pipeline stands between two of its steps."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..kernels.errors import InvalidType, InvalidValue
from ..solvers import State
from .run import Run, Walk

Generators = torch.Generator | Sequence[torch.Generator] | None


class Underway:
    """A run, the row that comes next, and the state there.

    run: its rows.
    seed: of the noise by counter; None: drawn from torch's global generator at the first step.
    row: of the next call; -1 before the first.
    """

    def __init__(self, run: Run, seed: int | None) -> None:
        self.run, self._seed = run, seed
        self.row = -1
        self.walk: Walk
        self._state: State | None = None  # None before the first step and after the last
        self._last: Tensor | None = None  # what the last step handed out
        self._writes = 0  # and how often it had been written into
        self._drawn: dict[int, Tensor] = {}

    @property
    def x(self) -> Tensor:
        """The process's state before the next row."""
        assert self._state is not None
        return self._state.x

    def arrive(self, timestep: Any, sample: Tensor, begin: int | None, drawn: bool) -> State:
        """The state that a step is taken from: of a new run, as it was left, or changed since.

        timestep, sample: the pipeline's.
        begin: the row at which the run begins; None where the first timestep says it.
        drawn: whether a generator draws the noise.
        Raises ValueError for a timestep out of turn.
        """
        row = self.row_of(timestep, begin)
        if self._state is None:
            return self._start(row, sample, begin, drawn)
        if row is not None and row != self.row:
            told = self.run.told
            raise InvalidValue(
                f"the pipeline skips steps: timestep {told[row]:g} came where "
                f"{told[self.row]:g} is next; step through scheduler.timesteps in order, or "
                "set_timesteps anew to begin another run"
            )
        if self._changed(sample):
            self._state = self._state.replace(x=self._inside(self.row, sample).contiguous())
        return self._state

    def leave(self, after: State, dtype: torch.dtype) -> Tensor:
        """Keep the state after a step, and hand out the pipeline's, of its dtype."""
        run = self.run
        self.row += 1
        self._state = None if self.row == len(run.told) else after  # a run that is over lets go
        x = after.x if run.alpha is None else after.x * (1 / run.alpha[self.row])
        x = x if x.dtype == dtype else x.to(dtype)
        self._last, self._writes = x, _writes(x)
        return x

    def asks_nothing(self, further: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError unless these arguments of a step leave it as it is."""
        for name, value in further.items():
            if name not in ("eta", "use_clipped_model_output", "prev_timestep"):
                raise InvalidType(f"step of UndiffuseScheduler takes no {name}: leave it out")
            if name == "prev_timestep" and value is not None:
                after = self.run.told[max(self.row, 0) + 1 :][:1]
                if self._state is not None and after != [float(value)]:
                    raise InvalidValue(
                        f"prev_timestep must be the next of scheduler.timesteps, {after}; "
                        f"got {float(value):g}"
                    )
            elif value not in (None, 0, False):
                raise InvalidValue(
                    f"{name}={value!r} is not the pipeline's choice here but the solver's: leave "
                    "it out, and name it there, e.g. solver=ud.solvers.DDIM(eta=0.5)"
                )

    def row_of(self, timestep: Any, begin: int | None) -> int | None:
        """The row that a timestep is of; None where telling would wait for a device."""
        told, own = self.run.told, self.run.timesteps
        fresh = self._state is None
        if isinstance(timestep, Tensor) and timestep.numel():
            if timestep.untyped_storage().data_ptr() == own.untyped_storage().data_ptr():
                return int(timestep.storage_offset() - own.storage_offset())
            if timestep.device.type != "cpu" and not fresh:
                return None
            timestep = timestep.flatten()[0].item()
        if isinstance(timestep, bool) or not isinstance(timestep, numbers.Real):
            raise InvalidType(f"timestep must be one of scheduler.timesteps; got {timestep!r:.80}")
        timestep = float(timestep) if not isinstance(timestep, int) else timestep
        expected = begin if fresh else self.row
        if expected is not None and told[expected : expected + 1] == [timestep]:
            return expected
        found = [i for i, t in enumerate(told) if t == timestep]
        found = found or [i for i, t in enumerate(told) if abs(t - timestep) <= 1e-5 * abs(t)]
        if not found:
            raise InvalidValue(
                f"timestep {timestep!r} is not one of scheduler.timesteps {told[:4]}...: "
                "step through them in order"
            )
        return found[0] if fresh else found[-1]

    def normals(self, row: int, generator: Generators, like: Tensor) -> list[Tensor | None] | None:
        """The normals of a row of the walk, drawn as diffusers draws them; None where it has none.

        Two rows that share a normal's index share the normal.
        """
        draws = self.walk.draws[row]
        return [None if d is None else self._normal(d, generator, like) for d in draws] or None

    def _changed(self, sample: Tensor) -> bool:
        """Whether the pipeline's state is another than the one that the last step handed out."""
        if sample.is_inference() and sample is not self.x:
            return True  # torch does not count the writes into it
        return sample is not self._last or _writes(sample) != self._writes

    def _start(self, row: int | None, sample: Tensor, begin: int | None, drawn: bool) -> State:
        """Begin the run at a row, from the state there."""
        run = self.run
        first = begin if begin is not None else row or 0
        if first >= len(run.told):
            raise InvalidValue(
                f"begin_index must be an index of the {len(run.told)} timesteps; got {first}"
            )
        if begin is not None and row is not None and run.told[row] != run.told[begin]:
            raise InvalidValue(
                f"the run begins at index {begin} of timesteps, {run.told[begin]:g}, but the "
                f"first step is at {run.told[row]:g}"
            )
        if first and begin is None:
            twins = [i for i, told in enumerate(run.told) if told == run.told[first]]
            first = next((i for i in twins if i % run.order == 0), first)
        wide = torch.float64 if sample.dtype == torch.float64 else torch.float32
        self.walk = run.walk(first, sample.device, wide)
        seed = self._seed
        if seed is None:
            by_counter = run.stochastic and not drawn
            seed = int(torch.randint(1 << 62, (), device="cpu").item()) if by_counter else 0
        self._drawn = {}
        x = self._inside(first, sample.to(wide))
        self._state = self.walk.sampler.init(
            tuple(x.shape), seed, x_init=x, row=first - self.walk.offset
        )
        self.row = first
        return self._state

    def _inside(self, row: int, sample: Tensor) -> Tensor:
        """The process's state at a row, of the pipeline's."""
        return sample if self.run.alpha is None else sample * self.run.alpha[row]

    def _normal(self, draw: int, generator: Generators, like: Tensor) -> Tensor:
        """The normal of that index, of `like`'s device and dtype; the last few are kept."""
        if draw not in self._drawn:
            listed = list(generator) if isinstance(generator, list | tuple) else generator
            z = randn_tensor(self.x.shape, generator=listed, device=like.device, dtype=like.dtype)
            self._drawn = {draw: z, **{k: v for k, v in self._drawn.items() if k > draw - 4}}
        return self._drawn[draw]


def check_generators(given: Any, batch: int) -> None:
    """Raise TypeError or ValueError unless it is one generator, or a list of one or `batch`."""
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if not all(isinstance(one, torch.Generator) for one in listed):
        raise InvalidType(
            f"generator must be a torch.Generator or a list of them; got {given!r:.80}"
        )
    if len(listed) not in (1, batch):
        raise InvalidValue(f"generator must be one or {batch}, one a sample; got {len(listed)}")


def _writes(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
