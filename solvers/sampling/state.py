"""What a run is between two network calls, what a callback sees, and what a run ends with."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.checks import sent
from ...kernels.errors import InvalidType, InvalidValue
from ...kernels.shapes import column
from ...models import notebook
from ...models.calling import Pair
from .. import arguments, showing

Noise = Tensor | Sequence[Tensor | None]
"""The caller's own normals, see `Sampler.tell`."""


class Course(NamedTuple):
    """What all states of a table have in common, for a model.

    key: of the table as the model runs it; states of equal keys can be joined.
    t_in: [N], what the network is told at each row.
    c_in: [N], scale of its input there.
    dtype: of its input.
    """

    key: str
    t_in: Tensor
    c_in: Tensor
    dtype: torch.dtype


class Made(NamedTuple):
    """What a row made together with the state `of`: the network's next input, and the components
    that the table acts on (x itself but for a spectral table)."""

    of: Tensor
    x_in: Tensor
    components: Tensor
    writes: int = 0

    def holds(self, x: Tensor) -> bool:
        """Whether x is that state, and nobody wrote into it since."""
        return self.of is x and (torch.compiler.is_compiling() or writes(x) <= self.writes)


@dataclass(frozen=True, eq=False)
class State:
    """All that a run needs to go on: a value, to be kept, forked, joined, pickled or sent away.

    x: [B, ...], the state at the time of its row; after the last row, the sample.
    at: rows done, int where all samples have done as many, or int64 [B] on the host: see `row`.
    states, datas: histories, most recent first; what is not there yet stands in as x, with
        coefficients that are 0.
    seed, sample_ids: int64 [1] or [B] and int64 [B], whose noise this is.
    course: of the sampler; see `Course`.
    made: see `Made`; it counts only as long as x is the tensor it was made with, unwritten.

    Samples do not know of each other: `state[ids]` are some of them, as a state of their own,
    `Sampler.join` is the inverse, and a sample goes on to the same bits in whatever company (but
    for the products with the basis of a spectral table, which round). Samples of one state may have
    done different numbers of rows. One that is finished stays as it is while others go on.
    `state.replace(x=...)` goes on from another x. Do not write into `x`: other states share it.
    `torch.save` keeps a state, and `torch.load` brings it back with its own defaults.
    """

    x: Tensor
    at: int | Tensor
    states: tuple[Tensor, ...]
    datas: tuple[Tensor, ...]
    seed: Tensor
    sample_ids: Tensor
    course: Course
    made: Made | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.x, Tensor) or self.x.shape[:1] != self.sample_ids.shape:
            got = tuple(self.x.shape) if isinstance(self.x, Tensor) else type(self.x).__name__
            raise InvalidType(f"x must be a tensor of {len(self.sample_ids)} samples; got {got}")

    def __getstate__(self) -> dict[str, Any]:
        made, parts = self.made, {k: v for k, v in self.__dict__.items() if k[0] != "_"}
        return {**parts, "made": made if made is None or made.holds(self.x) else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's x is what it was made with; torch counts its writes anew."""
        self.__dict__.update(state)
        if self.made is not None:
            made = self.made._replace(writes=writes(self.x))
            self.__dict__["made"] = made

    def __repr__(self) -> str:
        rows = f"{showing.counts(self.row)} of {len(self.course.t_in)} rows done"
        return notebook.lines("State", [("x", showing.values(self.x)), ("at", rows)])

    # --- where it is --------------------------------------------------------------------------

    @property
    def row(self) -> Tensor:
        """Rows done, int64 [B] on the host."""
        if isinstance(self.at, Tensor):
            return self.at
        return torch.full((len(self.x),), self.at, dtype=torch.int64, device="cpu")

    @property
    def uniform(self) -> int | None:
        """Rows done where all samples have done as many, else None."""
        if not isinstance(self.at, Tensor):
            return self.at
        if "_uniform" not in self.__dict__:
            rows = self.at.numpy()  # host memory, read without an operator
            first = int(rows[0]) if len(rows) else 0
            self.__dict__["_uniform"] = first if (rows == first).all() else None
        found: int | None = self.__dict__["_uniform"]
        return found

    @property
    def finished(self) -> Tensor:
        """Whether each sample's run is over, bool [B] on the host: then its x is the sample."""
        return self.row >= len(self.course.t_in)

    @property
    def done(self) -> bool:
        """Whether the run of every sample is over."""
        i = self.uniform
        n = self.course.t_in.shape[0]
        return bool((self.row.numpy() >= n).all()) if i is None else i >= n

    @property
    def inside(self) -> int | Tensor:
        """Where the network is called next, as an index of the course's tensors: an int, or int64
        [B] on the device of x. The last row for samples that are finished."""
        last = len(self.course.t_in) - 1
        if torch.compiler.is_compiling():
            if isinstance(self.at, int):
                return min(self.at, last)
        elif self.uniform is not None:
            return min(self.uniform, last)
        elif "_inside" in self.__dict__:
            kept: Tensor = self.__dict__["_inside"]
            return kept
        found = sent(self.row.clamp(max=last), self.x.device)
        if not torch.compiler.is_compiling():
            self.__dict__["_inside"] = found
        return found

    @property
    def t_in(self) -> Tensor | None:
        """[B], the time to call the network with; None when the run is over."""
        i = self.inside
        if isinstance(i, Tensor):
            over = not torch.compiler.is_compiling() and self.done
            return None if over else self.course.t_in.index_select(0, i)
        return None if self.at_end(i) else self.course.t_in[i].expand(len(self.x))

    def at_end(self, i: int) -> bool:
        """Whether a state that is at `inside` i is done."""
        at = self.at if isinstance(self.at, int) else self.uniform
        return at is not None and at > i

    @property
    def c_in(self) -> Tensor:
        """Scale of the network's input, a number or [B, 1, ...]."""
        i = self.inside
        return self.course.c_in[i] if isinstance(i, int) else column(self.course.c_in[i], self.x)

    @property
    def x_in(self) -> Tensor | None:
        """What to call the network with, c_in x: memory of its own. None when the run is over."""
        i = self.inside
        if isinstance(i, int) and self.at_end(i):
            return None
        if self.made is not None and self.made.holds(self.x):
            return self.made.x_in
        return network_input(self.x, self.c_in, self.course.dtype)

    # --- other states -------------------------------------------------------------------------

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
        if x is not None and not x.is_floating_point():
            raise InvalidType(f"x must be floating; got {x.dtype}")
        return with_changes(
            self,
            x=self.x if x is None else x.to(self.x.dtype),
            seed=self.seed if seed is None else seed,
            sample_ids=self.sample_ids if sample_ids is None else sample_ids,
        )

    _replace = replace  # as of a named tuple

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __iter__(self) -> Iterator[State]:
        return iter(self.split(1))

    def __getitem__(self, ids: int | slice | Sequence[int] | Tensor) -> State:
        """The samples `ids` as a state: a place or a slice, places, or a mask [B] of booleans.

        Raises IndexError for places that there are not.
        """
        places = _places(ids, len(self))
        there = sent(places, self.x.device)

        def rows(v: Tensor) -> Tensor:
            return v.index_select(0, there)

        return self._of_samples(
            rows,
            at=self.at.index_select(0, places) if isinstance(self.at, Tensor) else self.at,
            seed=self.seed if self.seed.numel() == 1 else rows(self.seed),
        )

    def split(self, sizes: int | Sequence[int] = 1) -> list[State]:
        """The samples in parts: of this size each (the last may be smaller), or of these sizes.

        Raises ValueError for sizes that do not sum to the number of samples.
        """
        if isinstance(sizes, int):
            bounds = list(range(0, len(self), max(sizes, 1)))
            sizes = [min(sizes, len(self) - start) for start in bounds]
        if any(n < 1 for n in sizes) or sum(sizes) != len(self):
            raise InvalidValue(f"sizes must be >= 1 and sum to {len(self)}; got {list(sizes)}")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self[start : start + n] for start, n in zip(starts, sizes, strict=True)]

    def to(self, device: torch.device | str) -> State:
        """The state on another device, for a sampler there. Raises ValueError for what is none."""
        device, course = arguments.device("device", device, meta=True), self.course
        return self._of_samples(
            lambda v: v.to(device),
            seed=self.seed.to(device),
            course=course._replace(t_in=course.t_in.to(device), c_in=course.c_in.to(device)),
        )

    def _of_samples(self, change: Any, **changes: Any) -> State:
        """The state with `change` of every tensor that has samples, and with other fields."""
        x, made = change(self.x), self.made
        if made is not None:
            if made.holds(self.x):
                same = made.components is made.of
                made = Made(x, change(made.x_in), x if same else change(made.components), writes(x))
            else:
                made = None
        return with_changes(
            self,
            x=x,
            states=tuple(map(change, self.states)),
            datas=tuple(map(change, self.datas)),
            sample_ids=change(self.sample_ids),
            made=made,
            **changes,
        )


torch.serialization.add_safe_globals([State, Made, Course])  # torch.load takes them as they are


def join(states: Sequence[State]) -> State:
    """One state of all samples, in their order; they may have done different numbers of rows.

        state = Sampler.join([a, b])     # a[0], a[1], ..., b[0], ...

    Raises ValueError for states of different samplers, shapes, types or devices, TypeError for what
    is no state.
    """
    states = list(states)
    if not states:
        raise InvalidValue("states must be one state or more to join; got none")
    for i, state in enumerate(states):
        if not isinstance(state, State):
            raise InvalidType(f"states[{i}] must be a State; got {type(state).__name__}")
        if state.course.key != states[0].course.key:
            raise InvalidValue(
                f"states[{i}] is of another sampler than states[0]: they can be joined where "
                "solver, grid, model and dtype are the same; ContinuousBatch runs others together"
            )
        kinds = [(s.x.shape[1:], s.x.dtype, s.x.device) for s in (state, states[0])]
        if kinds[0] != kinds[1]:
            mine, other = (f"{tuple(shape)} {dtype} on {d}" for shape, dtype, d in kinds)
            raise InvalidValue(f"states[{i}] has samples of {mine}, states[0] of {other}")
    if len(states) == 1:
        return states[0]

    def cat(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def histories(name: str) -> tuple[Tensor, ...]:
        return tuple(map(cat, zip(*(getattr(s, name) for s in states), strict=True)))

    x, made = cat([s.x for s in states]), None
    kept = [s.made for s in states if s.made is not None and s.made.holds(s.x)]
    if len(kept) == len(states):
        same = all(m.components is m.of for m in kept)
        components = x if same else cat([m.components for m in kept])
        made = Made(x, cat([m.x_in for m in kept]), components, writes(x))
    rows = {s.uniform for s in states}
    alike = len(rows) == 1 and None not in rows
    seeds = [s.seed.expand(len(s)) if s.seed.numel() == 1 else s.seed for s in states]
    return State(
        x=x,
        at=rows.pop() if alike else cat([s.row for s in states]),  # type: ignore[arg-type]
        states=histories("states"),
        datas=histories("datas"),
        seed=cat(seeds),
        sample_ids=cat([s.sample_ids for s in states]),
        course=states[0].course,
        made=made,
    )


def _places(ids: Any, batch: int) -> Tensor:
    """int64 [n] on the host, each in 0 ... batch - 1."""
    if isinstance(ids, slice):
        return (
            torch.arange(batch, device="cpu")[ids]
            if ids.step is None or ids.step > 0
            else (torch.tensor(range(batch)[ids], dtype=torch.int64, device="cpu"))
        )
    if not isinstance(ids, Tensor) and not hasattr(ids, "__len__"):
        try:
            ids = [operator.index(ids)]
        except TypeError:
            raise InvalidType(
                f"samples are named by a place, a slice, places or a mask; got {ids!r}"
            ) from None
    try:
        places = torch.as_tensor(ids, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise InvalidType(
            f"samples are named by a place, a slice, places or a mask; got {ids!r:.80}"
        ) from None
    if places.ndim == 0:
        places = places[None]
    if places.dtype == torch.bool:
        if places.shape != (batch,):
            raise IndexError(f"a mask must have shape ({batch},); got {tuple(places.shape)}")
        return places.nonzero().flatten()
    if places.numel() == 0:
        places = places.to(torch.int64)
    if places.is_floating_point() or places.is_complex() or places.ndim != 1:
        raise InvalidType(f"places must be whole numbers [n]; got {places.dtype} {places.ndim}-D")
    places = places.to(torch.int64)
    if bool(((places < -batch) | (places >= batch)).any()):
        raise IndexError(f"places must lie in 0..{batch - 1}; got {places.tolist()[:8]}")
    return torch.where(places < 0, places + batch, places)


def writes(x: Tensor) -> int:
    """How often x was written to; 0 where torch does not count."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def network_input(x: Tensor, c_in: Tensor, dtype: torch.dtype) -> Tensor:
    """c_in x in the network's type, never x itself: networks may work in place."""
    return (x * c_in).to(dtype)


class StepInfo(NamedTuple):
    """One row of a run, as a callback sees it.

    row: its index; int64 [B] on the host where the samples are at different rows.
    t: where the network was called; float64 [B] on the host there.
    x [B, ...]: the new state.
    heard: the network's output, or the pair of them that guidance weighs in the step.
    before, after: the states around it.
    readout: (skip, scale) of D = skip x + scale out.
    clip: the model's.
    sampler: the `Sampler` that made the step.

    `denoised`, `mean` and `std` are computed when they are asked for.
    """

    row: int | Tensor
    t: float | Tensor
    x: Tensor
    heard: Tensor | Pair
    before: State
    after: State
    readout: tuple[float | Tensor, float | Tensor]
    clip: tuple[float, float] | None
    sampler: Any

    @property
    def mean(self) -> Tensor:
        """Of the law that x was drawn from, [B, ...]; see `Sampler.moments`."""
        mean: Tensor = self.sampler.moments(self.before, self.heard).mean
        return mean

    @property
    def std(self) -> Tensor:
        """Of that law, [B, 1, ...]; 0 where the row draws no noise."""
        std: Tensor = self.sampler.moments(self.before, self.heard).std
        return std

    @property
    def out(self) -> Tensor:
        """The network's output, [B, ...]."""
        return self.heard.combined() if isinstance(self.heard, Pair) else self.heard

    @property
    def denoised(self) -> Tensor:
        """D(x, t) of the state before the row, [B, ...]: the estimate of the sample."""
        skip, scale = self.readout
        d = skip * self.before.x + scale * self.out.to(self.x.dtype)
        return d if self.clip is None else d.clamp(*self.clip)


class Result(NamedTuple):
    """What a run returns where all of it is asked for.

    x: [B, ...], the samples.
    nfe: network calls for each sample, of which guidance makes several at each time; int64 [B] on
        the host where samples were swept in parallel.
    times: float64 [N], where the network was called.
    status: int64 [B], codes of `Status`.
    rounds: times of waiting for the network, one after the other; int64 [B] where samples were
        swept in parallel.
    """

    x: Tensor
    nfe: int | Tensor
    times: Tensor
    status: Tensor
    rounds: int | Tensor

    def _facts(self) -> notebook.Facts:
        return showing.run(self.x, self.nfe, self.status, self.times)

    def __repr__(self) -> str:
        return notebook.lines("Result", self._facts())

    def _repr_html_(self) -> str:
        return notebook.table("Result", (), self._facts())
