"""The servers of examples/: whoever asks gets what `ud.sample` says, from whichever batch."""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import undiffuse as ud

EXAMPLES = Path(__file__).parents[2] / "examples"
REQUESTS = [
    {
        "shape": (1 + k % 2, 1, 8, 8),
        "solver": ("dpmpp-2m", "ddpm", "unipc-3", "heun")[k % 4],
        "steps": 6 + k,
        "seed": k,
    }
    for k in range(8)
]


def want(request):
    return ud.sample(ud.load_default().denoiser, **request).numpy()


def close(got, request):
    """To the fifth digit of numbers near 1: matrix products round otherwise in another batch."""
    np.testing.assert_allclose(got, want(request), atol=1e-4)


@pytest.mark.slow
def test_many_clients_of_the_asyncio_server():
    arguments = [sys.executable, "-P", str(EXAMPLES / "server.py"), "0"]
    server = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        said = server.stdout.readline()
        assert said.startswith("listening on port "), said
        port = int(said.split()[-1])

        async def ask(lines):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
            for line in lines:
                writer.write(line.encode() + b"\n")
            answers = [json.loads(await reader.readline()) for _ in lines]
            writer.close()
            return answers

        async def all_at_once():
            return await asyncio.gather(*(ask([json.dumps(r)]) for r in REQUESTS))

        for request, (answer,) in zip(REQUESTS, asyncio.run(all_at_once()), strict=True):
            close(answer["samples"], request)
        wrong = ['{"shape": [1, 1, 8, 8], "solver": "dimm"}', "no json", '{"shap": 1}']
        answers = asyncio.run(ask([*wrong, json.dumps(REQUESTS[0])]))
        assert "did you mean 'ddim'" in answers[0]["error"]
        assert all("error" in answer for answer in answers[:3])
        close(answers[3]["samples"], REQUESTS[0])
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.slow
@pytest.mark.peers
def test_two_replicas_of_ray_serve(monkeypatch):
    """Both answer, and what one says the other would have said, to the network's rounding."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    spec = importlib.util.spec_from_file_location("ray_serve_example", EXAMPLES / "ray_serve.py")
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ray_serve_example", example)
    spec.loader.exec_module(example)
    ray.cloudpickle.register_pickle_by_value(example)  # the replicas cannot import it
    env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": env})
    try:
        handle = example.serve.run(example.Samples.bind(), route_prefix=None)
        answers = example.ask(handle, REQUESTS * 3)
        assert len({replica for _, replica in answers}) == 2
        for (x, _), request in zip(answers, REQUESTS * 3, strict=True):
            close(x, request)
        with pytest.raises(Exception, match="did you mean 'ddim'"):
            example.ask(handle, [{"shape": (1, 1, 8, 8), "solver": "dimm"}])
    finally:
        example.serve.shutdown()
        ray.shutdown()
