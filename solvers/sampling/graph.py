"""A whole run, network and steps, captured in one CUDA graph.

Everything a replay may change sits in buffers on the device: seeds, sample ids and, where given,
the start x_init. The tables are constants of the capture; shapes, conditioning tensors and the
network's weights keep their addresses, so weights updated in place are seen by the next replay.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.checks import as_sample_ids, as_seed
from ...kernels.errors import InvalidValue
from ...models import conditions
from ...models.denoiser import Combination

MOST = 4  # graphs that `graph="auto"` keeps for a model
WARM_UP = 3  # runs before capture: kernels compile, libraries allocate their workspaces


class GraphedRun:
    """Replays a captured run: `run(seed, sample_ids)` gives x [B, ...].

    The tensor returned is the graph's own output; the next replay overwrites it: clone to keep.
    """

    def __init__(
        self,
        run: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        batch: int,
        device: torch.device,
        x_init: Tensor | None = None,
    ) -> None:
        """run: (seed [B], sample ids [B], x_init or None) -> x. Raises ValueError off CUDA."""
        if device.type != "cuda":
            raise InvalidValue(
                f"a CUDA graph needs a CUDA device; this run is on {device}: "
                "move the network, or leave graph=False"
            )
        self._seed = torch.zeros(batch, dtype=torch.int64, device=device)
        self._ids = torch.arange(batch, device=device)
        self._x_init = None if x_init is None else x_init.to(device, copy=True)
        self._run = run  # the graph reads the memory that it refers to, which must not be freed

        with torch.no_grad(), torch.cuda.device(device):
            side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._once()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._x = self._once()

    def _once(self) -> Tensor:
        return self._run(self._seed, self._ids, self._x_init)

    def __call__(
        self,
        seed: int | Tensor = 0,
        sample_ids: Tensor | Sequence[int] | None = None,
        x_init: Tensor | None = None,
    ) -> Tensor:
        """Write the buffers, replay, return x; no synchronisation."""
        batch = len(self._ids)
        ids = sample_ids
        if ids is None:
            ids = torch.arange(batch, device=self._ids.device)
        self._seed.copy_(as_seed(seed, self._seed.device).expand(batch))
        given = as_sample_ids(ids, batch, self._ids.device)
        if given is not None:
            self._ids.copy_(given)
        if x_init is not None:
            if self._x_init is None:
                raise InvalidValue("x_init was not given at capture, so a replay cannot take one")
            self._x_init.copy_(x_init)
        self._graph.replay()
        return self._x


# --- graph="auto" -------------------------------------------------------------------------------


class Repeated:
    """The runs of one model that `graph="auto"` has met, the last ones: seen once, captured, or
    found to be such that they cannot be."""

    def __init__(self) -> None:
        self.met: OrderedDict[Hashable, Captured | None] = OrderedDict()
        self.impossible: set[Hashable] = set()

    def run(
        self,
        sampler: Any,
        shape: Sequence[int],
        seed: int | Tensor,
        sample_ids: Tensor | Sequence[int] | None,
        x_init: Tensor | None,
        cond: dict[str, Any] | None,
    ) -> Tensor | None:
        """The sample by a replay, in memory of its own; None where the run is to be made by hand:
        off CUDA, the first time, and where it cannot be captured."""
        key = kind(sampler, shape, x_init, cond)
        if key is None or key in self.impossible:
            return None
        if key not in self.met:
            self.met[key] = None
            while len(self.met) > MOST:
                self.met.popitem(last=False)
            return None
        self.met.move_to_end(key)
        try:
            found = self.met[key] or Captured(sampler, shape, x_init, cond)
        except (RuntimeError, ValueError) as error:
            self.impossible.add(key)
            del self.met[key]
            warnings.warn(
                f"graph='auto' runs this model by hand, for it cannot be captured: {error}",
                UserWarning,
                stacklevel=4,
            )
            return None
        self.met[key] = found
        return found(seed, sample_ids, x_init, cond).clone()


class Captured:
    """A captured run with conditions that may change: they sit in buffers as seeds do."""

    def __init__(
        self,
        sampler: Any,
        shape: Sequence[int],
        x_init: Tensor | None,
        cond: dict[str, Any] | None,
    ) -> None:
        self.cond = conditions.mapped(torch.clone, conditions.named(cond))
        self.graph: GraphedRun = sampler.capture(shape, self.cond, x_init)

    def __call__(
        self,
        seed: int | Tensor,
        sample_ids: Tensor | Sequence[int] | None,
        x_init: Tensor | None,
        cond: dict[str, Any] | None,
    ) -> Tensor:
        """The graph's own output for these."""
        pairs = zip(_tensors(self.cond), _tensors(conditions.named(cond)), strict=True)
        for kept, given in pairs:
            kept.copy_(given)
        return self.graph(seed, sample_ids, x_init)


def kind(
    sampler: Any, shape: Sequence[int], x_init: Tensor | None, cond: dict[str, Any] | None
) -> Hashable | None:
    """What runs of one graph have in common; None where there is none.

    A graph reads weights where they were, so their addresses belong to it, and so does whether the
    network is in training. Of a function, or of guidance, nobody knows what else a run depends on.
    """
    model, net = sampler.model, sampler.model.net
    wanted = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
    if sampler.device.type != "cuda" or wanted or isinstance(net, Combination):
        return None
    if not isinstance(net, nn.Module):
        return None
    weights = [*net.parameters(), *net.buffers()]
    told = [
        (v.shape, v.dtype, v.device, v.stride()) if isinstance(v, Tensor) else repr(v)
        for v in _leaves(conditions.named(cond))
    ]
    return (
        sampler.plan.key,
        tuple(shape),
        x_init is None,
        tuple(conditions.named(cond)),
        tuple(told),
        tuple(v.data_ptr() for v in (*weights, *_tensors(model.cond))),
        net.training,
        torch.is_autocast_enabled("cuda"),
        sampler.dtype,
        sampler.net_dtype,
        sampler.device,
    )


def _leaves(cond: Any) -> list[Any]:
    found: list[Any] = []

    def leaf(value: Any, path: str) -> Any:
        found.append(value)
        return value

    conditions.walk(leaf, conditions.plain(cond))
    return found


def _tensors(cond: Any) -> list[Tensor]:
    return [v for v in _leaves(cond) if isinstance(v, Tensor)]
