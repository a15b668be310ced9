"""A server of samples: every client's request is a run in one `ContinuousBatch`.

    python examples/server.py 8000
    echo '{"shape": [1, 1, 8, 8], "solver": "ddpm", "steps": 50, "seed": 7}' | nc -N localhost 8000

A request is a line of JSON with the arguments of `ContinuousBatch.add`, and so is the answer: the
samples as nested lists, or what was wrong. Connections are answered side by side, the lines of one
of them in order. The network is the small one of the package, of 8 x 8 digits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

import undiffuse as ud


class Server:
    def __init__(self, model: ud.Denoiser, max_batch: int = 64) -> None:
        self.batch = ud.ContinuousBatch(model, max_batch)
        self.ticking: asyncio.Task[None] | None = None

    async def tick(self) -> None:
        """Step in a thread of its own, so that the loop can take requests meanwhile."""
        while len(self.batch):
            await asyncio.to_thread(self.batch.step)

    async def sample(self, request: dict) -> list:
        """The samples of one request, as nested lists."""
        running = asyncio.wrap_future(self.batch.add(**request))
        if self.ticking is None or self.ticking.done():
            self.ticking = asyncio.create_task(self.tick())
        ticking = self.ticking
        await asyncio.wait([running, ticking], return_when=asyncio.FIRST_COMPLETED)
        if ticking.done() and ticking.exception():
            running.cancel()  # the network failed, for all who wait
            await ticking
        return (await running).tolist()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the lines of one connection."""
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                try:
                    said = {"samples": await self.sample(json.loads(line))}
                except (ValueError, TypeError, RuntimeError) as error:
                    said = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(said).encode() + b"\n")
                await writer.drain()
        writer.close()


async def main(port: int) -> None:
    server = Server(ud.load_default().denoiser)
    listening = await asyncio.start_server(server.client, "127.0.0.1", port)
    print(f"listening on port {listening.sockets[0].getsockname()[1]}", flush=True)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000))
