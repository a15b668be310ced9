"""MNIST by one command: it learns, it draws, and a killed run ends with the bits of a whole one.

The images are not part of the project: UNDIFFUSE_DATA names the folder that holds
mnist_test/t10k-images-idx3-ubyte.gz, by default ../shared/data.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from undiffuse.models import load_checkpoint

DATA = Path(os.environ.get("UNDIFFUSE_DATA", Path(__file__).parents[2] / "../shared/data"))
IMAGES = DATA / "mnist_test" / "t10k-images-idx3-ubyte.gz"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not IMAGES.exists(), reason=f"{IMAGES} is absent; set UNDIFFUSE_DATA to the data folder"
    ),
]


def start(out):
    words = "--network unet --width 8 --batch 32 --steps 120 --every 40 --out"
    train = [sys.executable, "-P", "-m", "undiffuse", "train", str(IMAGES)]
    command = [*train, *words.split(), str(out)]
    # one thread: sums of several would round in another order
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_killed_run_ends_like_a_whole_one_and_has_learned(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole).wait() == 0
    child, deadline = start(cut), time.monotonic() + 120
    while not (cut / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert load_checkpoint(cut / "model.safetensors").training["step"] < 120
    assert start(cut).wait() == 0
    for name in ("model.safetensors", "loss.jsonl"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    held = [json.loads(x) for x in (whole / "loss.jsonl").read_text().splitlines()]
    held = [row["held_out"] for row in held if "held_out" in row]
    # the start's loss is 1; measured 0.90, 0.74, 0.69, and 0.184 after 1,500 steps of width 16
    assert held == sorted(held, reverse=True) and held[-1] < 0.75
    kept = load_checkpoint(whole / "model.safetensors")
    assert kept.event_shape == (1, 28, 28) and kept.spacing == 2 / 255
    assert (whole / "samples.png").read_bytes()[:4] == b"\x89PNG"
