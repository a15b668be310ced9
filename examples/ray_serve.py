"""Samples from two replicas with Ray Serve, each with a `ContinuousBatch` of its own.

    pip install "ray[serve]"
    python examples/ray_serve.py

A request gets the same samples from either replica, and whoever else is in its batch: they follow
from its seed alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

import undiffuse as ud


@serve.deployment(num_replicas=2, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Samples:
    def __init__(self, max_batch: int = 64) -> None:
        self.batch = ud.ContinuousBatch(ud.load_default().denoiser, max_batch)
        self.ticking: asyncio.Task[None] | None = None

    async def tick(self) -> None:
        """Step in a thread of its own, so that the replica can take requests meanwhile."""
        while len(self.batch):
            await asyncio.to_thread(self.batch.step)

    async def sample(self, **request: Any) -> tuple[np.ndarray, str]:
        """The samples of one request, and which replica drew them."""
        running = asyncio.wrap_future(self.batch.add(**request))
        if self.ticking is None or self.ticking.done():
            self.ticking = asyncio.create_task(self.tick())
        ticking = self.ticking
        await asyncio.wait([running, ticking], return_when=asyncio.FIRST_COMPLETED)
        if ticking.done() and ticking.exception():
            running.cancel()  # the network failed, for all who wait
            await ticking
        return (await running).numpy(), serve.get_replica_context().replica_id.unique_id


def ask(handle: DeploymentHandle, requests: list[dict[str, Any]]) -> list[tuple[np.ndarray, str]]:
    """All requests at once; their answers in order."""
    waiting = [handle.sample.remote(**request) for request in requests]
    return [response.result() for response in waiting]


if __name__ == "__main__":
    solvers = ("dpmpp-2m", "ddpm", "unipc-3", "heun")
    requests = [
        {"shape": (1, 1, 8, 8), "solver": solvers[k % 4], "steps": 10 + k, "seed": k % 4}
        for k in range(16)
    ]
    handle = serve.run(Samples.bind())
    answers = ask(handle, requests)
    replicas = {replica for _, replica in answers}
    print(f"{len(answers)} requests answered by {len(replicas)} replicas")
    serve.shutdown()
