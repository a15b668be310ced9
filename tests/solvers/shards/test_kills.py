"""Processes that are killed in the middle, of every engine: the shards are those of one process.

The network is the shipped one, told to kill its process once: at the third of its calls.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

import undiffuse as ud

pytestmark = pytest.mark.slow
ONCE = """
import os, signal
from dataclasses import replace
import undiffuse as ud

class Dies:
    def __init__(self, net):
        self.net, self.calls = net, 0

    def __call__(self, x, t):
        self.calls += 1
        mark = {mark!r}
        if self.calls == 9 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x, t)

def model():
    found = ud.load_default()
    return replace(found, denoiser=found.denoiser.map(Dies))
"""
N, OPTIONS = 160, ["--steps", "4", "--shard", "32"]


def shards(folder):
    return {
        p.name: p.read_bytes() for p in folder.glob("*") if p.suffix in (".safetensors", ".jsonl")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process, that nobody kills, writes."""
    out = tmp_path_factory.mktemp("whole")
    ud.sample_to(out, "digits", (1, 8, 8), N, steps=4, shard=32)
    return shards(out)


@pytest.fixture
def fatal(tmp_path):
    """A model that kills its process once, and where it notes that."""
    (tmp_path / "m.py").write_text(ONCE.format(mark=str(tmp_path / "killed")))
    yield f"{tmp_path / 'm.py'}:model"
    assert (tmp_path / "killed").exists()


def command(model, out, *more):
    return [
        "-m", "undiffuse", "sample", model, "--n", str(N), *OPTIONS, "--out", str(out), *more,
    ]  # fmt: skip


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "UNDIFFUSE_NATIVE": "0"}


def test_a_pool_whose_worker_is_killed_goes_on(whole, fatal, tmp_path):
    line = [sys.executable, "-P", *command(fatal, tmp_path / "out", "--workers", "2")]
    subprocess.run(line, check=True, env=environment(), timeout=300)
    assert shards(tmp_path / "out") == whole


def test_torchrun_whose_worker_is_killed_starts_it_again(whole, fatal, tmp_path):
    """Without any code for it: torchrun restarts, and what is done is found on the disk."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    # after -- torchrun takes no option for one of its own
    module, *rest = command(fatal, tmp_path / "out")
    line = [sys.executable, "-P", *launch, module, "--", *rest]
    subprocess.run(line, check=True, env=environment(), timeout=300)
    assert shards(tmp_path / "out") == whole


@pytest.mark.peers
def test_a_task_of_ray_whose_process_is_killed_runs_again(whole, fatal, tmp_path):
    pytest.importorskip("ray")
    line = [sys.executable, "-P", *command(fatal, tmp_path / "out", "--engine", "ray")]
    subprocess.run(line, check=True, env=environment(), timeout=300)
    assert shards(tmp_path / "out") == whole


def test_three_runs_at_once_with_one_killed_now_and_then(whole, tmp_path):
    """Processes that know nothing of each other, as an array of jobs starts them."""
    out = tmp_path / "out"
    line = [sys.executable, "-P", *command("digits", out)]
    moments = random.Random(0)

    def start():
        return subprocess.Popen(
            line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    for _ in range(2):
        run = start()
        time.sleep(moments.uniform(2, 8))
        run.send_signal(signal.SIGKILL)
        run.wait(60)
    for run in [start(), start()]:
        assert run.wait(300) == 0
    assert shards(out) == whole


def test_a_disk_that_is_full_keeps_the_shards_that_are_done(whole, tmp_path):
    """24 kB take two shards of 32 samples, with their records, and not five."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        (disk / "filler").write_bytes(bytes(60_000))  # room for 40 kB: less than what is to come
        line = [sys.executable, "-P", *command("digits", disk / "out")]
        run = subprocess.run(line, check=False, capture_output=True, text=True, env=environment())
        said = run.stderr.strip().splitlines()[-1]
        assert run.returncode == 2 and "No space left on device" in said
        done = shards(disk / "out")
        assert all(whole[name] == held for name, held in done.items())
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        subprocess.run(line, check=True, env=environment(), timeout=300)
        assert shards(disk / "out") == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_became_read_only_is_one_line(whole, tmp_path):
    if os.geteuid() == 0:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("mounting needs root")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            line = [sys.executable, "-P", *command("digits", disk / "out")]
            run = subprocess.run(line, check=False, capture_output=True, text=True)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        assert run.returncode == 2
        assert "Read-only file system" in run.stderr.strip().splitlines()[-1]
