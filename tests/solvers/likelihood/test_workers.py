"""Likelihoods of a data set by processes of which one is killed: the rows of one process."""

import json
import os
import subprocess
import sys

import pytest
import torch

from undiffuse.solvers.likelihood import dataset

pytestmark = pytest.mark.slow
MODEL = """
import os, signal
import torch
import undiffuse as ud
from undiffuse.models.checkpoint import Checkpoint

class Net(torch.nn.Module):
    calls = 0

    def forward(self, x, t):
        Net.calls += 1
        if Net.calls == 30 and not os.path.exists({mark!r}):
            open({mark!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return x.tanh()

def make():
    model = ud.Denoiser(Net(), ud.VP(), predicts="noise")
    return Checkpoint(model, (1, 2, 2), (-1.0, 1.0), 2 / 255)
"""


@pytest.fixture
def task(tmp_path):
    """(model, data, mark, rows of one process) with the mark taken away again."""
    mark = tmp_path / "killed"
    mark.touch()
    (tmp_path / "m.py").write_text(MODEL.format(mark=str(mark)))
    torch.save(torch.arange(48, dtype=torch.uint8).reshape(12, 1, 2, 2) * 5, tmp_path / "x.pt")
    model, data = f"{tmp_path / 'm.py'}:make", tmp_path / "x.pt"
    dataset.run(
        tmp_path / "one", model=model, data=data, method="elbo", steps=8, batch=2, progress=False
    )
    mark.unlink()
    yield model, data, rows(tmp_path / "one")
    assert mark.exists()


def rows(folder):
    found = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert len({r["key"] for r in found}) == len(found) == 12
    return {r["key"]: r for r in found}


def line(task, out, *more):
    model, data, _ = task
    how = ["--method", "elbo", "--steps", "8", "--batch", "2", "--out", str(out), *more]
    return ["undiffuse", "likelihood", model, str(data), *how]


def finish(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-P", *command], check=True, env=environment, timeout=300)


def test_a_pool_goes_on(task, tmp_path):
    finish(["-m", *line(task, tmp_path / "two", "--workers", "2")])
    assert rows(tmp_path / "two") == task[2]
    assert not (tmp_path / "two" / ".work").exists()


def test_torchrun_goes_on(task, tmp_path):
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    finish([*launch, "-m", "--", *line(task, tmp_path / "two")])
    assert rows(tmp_path / "two") == task[2]


@pytest.mark.peers
def test_ray_goes_on(task, tmp_path):
    pytest.importorskip("ray")
    finish(["-m", *line(task, tmp_path / "two", "--engine", "ray")])
    assert rows(tmp_path / "two") == task[2]
