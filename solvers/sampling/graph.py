"""A whole run, network and steps, captured in one CUDA graph.

Everything a replay may change sits in buffers on the device: seeds, sample ids and, where given,
the start x_init. The tables are constants of the capture; shapes, conditioning tensors and the
network's weights keep their addresses, so weights updated in place are seen by the next replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.checks import as_sample_ids, as_seed
from ...kernels.errors import InvalidValue

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
