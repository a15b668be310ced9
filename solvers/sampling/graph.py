"""A whole run, network and steps, captured in one CUDA graph.

Everything a replay may change sits in buffers on the device: seeds, sample ids and, where given, the
start x_init. The tables are constants of the capture; shapes, conditioning tensors and the network's
weights keep their addresses, so weights updated in place are seen by the next replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels.checks import as_sample_ids, as_seed
from ...kernels.errors import InvalidValue

if TYPE_CHECKING:
    from .sampler import Sampler

WARM_UP = 3  # runs before capture: kernels compile, libraries allocate their workspaces


class GraphedRun:
    """Replays a captured run: `run(seed, sample_ids)` gives x [B, ...].

    The tensor returned is the graph's own output; the next replay overwrites it: clone to keep.
    """

    def __init__(
        self,
        sampler: Sampler,
        net: Callable[..., Tensor],
        shape: Sequence[int],
        cond: dict[str, Any] | None = None,
        x_init: Tensor | None = None,
    ) -> None:
        if sampler.device.type != "cuda":
            raise InvalidValue(
                f"a CUDA graph needs a CUDA device; this run is on {sampler.device}: "
                "move the network, or leave graph=False"
            )
        batch = int(shape[0])
        self._seed = torch.zeros(batch, dtype=torch.int64, device=sampler.device)
        self._ids = torch.arange(batch, device=sampler.device)
        self._x_init = None if x_init is None else x_init.to(sampler.device, copy=True)
        self._kept = sampler, net, cond  # the graph reads their memory: it must not be freed

        def run() -> Tensor:
            state = sampler.init(shape, self._seed, self._ids, self._x_init)
            while not state.done:
                state = sampler.tell(state, net(state.x_in, state.t_in, **(cond or {})))
            return state.x

        with torch.no_grad(), torch.cuda.device(sampler.device):
            side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._x = run()

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
