"""kill -9 in the middle of every command that writes, disks that fill up, files that are damaged.

A run that is killed and started again ends with what an undisturbed run has; a full disk and a
damaged file are one line and exit code 2, and what was computed is kept.
"""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
COMMANDS = {
    name: shlex.split(words)
    for name, words in {
        "train": "train digits --steps 240 --width 16 --batch 32 --every 20",
        "likelihood": "likelihood --limit 16 --batch 2",
        "bench": "bench nfe --targets ring2 --checkpoint none --grid log_snr --solvers ddim,heun "
        "--nfe 4,6,8 --peers '' --quick --workers 2",
        "tune": "tune --target ring2 --nfe 3,4 --starts 32 --iterations 40 --calls 300 --learn",
        "sample": "sample --n 256 --steps 40 --shard 32",
    }.items()
}
KILLS = 4  # of each command: 20 in all


def start(arguments, out, limit=None):
    """The command as a process group of its own; limit: bytes that a file may have."""
    code = "import sys, undiffuse.cli as c; raise SystemExit(c.main(sys.argv[1:]))"
    if limit is not None:
        code = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({limit}, {limit})); {code}"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "UNDIFFUSE_NATIVE": "0"},
    )


def finish(arguments, out, **options):
    run = start(arguments, out, **options)
    text, error = run.communicate(timeout=300)
    return run.returncode, text, error


def content(command, out):
    """What a run computed, without what differs by the clock."""
    if command == "train":
        return (out / "model.safetensors").read_bytes(), (out / "loss.jsonl").read_bytes()
    if command == "sample":
        return {p.name: p.read_bytes() for p in out.glob("*.safetensors")}
    if command == "tune":
        return {p.name: p.read_text() for p in out.glob("tuned-*.json")}
    name = "items.jsonl" if command == "likelihood" else "results.jsonl"
    rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
    assert len({r["key"] for r in rows}) == len(rows), "a row was written twice"
    return {r["key"]: r for r in rows}


@pytest.fixture(scope="module", params=COMMANDS)
def undisturbed(request, tmp_path_factory):
    """(command, what a run of it that nothing disturbs computes, the seconds it takes)."""
    out = tmp_path_factory.mktemp(request.param)
    began = time.monotonic()
    code, text, error = finish(COMMANDS[request.param], out)
    assert code == 0, text + error
    return request.param, content(request.param, out), time.monotonic() - began


def test_a_run_that_was_killed_ends_as_one_that_was_not(undisturbed, tmp_path):
    command, whole, seconds = undisturbed
    arguments, cut = COMMANDS[command], tmp_path / "cut"
    moments = random.Random(command)
    for _ in range(KILLS):
        run = start(arguments, cut)
        time.sleep(seconds * moments.uniform(0.5, 0.95))
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=60)
    code, text, error = finish(arguments, cut)
    assert code == 0, text + error
    assert content(command, cut) == whole
    assert not [p for p in cut.rglob(".*") if p.suffix == ".tmp"], "left over"


def test_a_full_disk_is_one_line_and_keeps_what_was_computed(undisturbed, tmp_path):
    """No file may be longer than a few kilobytes: what a full disk does, without root."""
    small = {"train": 20_000, "likelihood": 2_000, "bench": 2_500, "tune": 300, "sample": 4_000}
    command, whole, _ = undisturbed
    arguments, out = COMMANDS[command], tmp_path / "out"
    code, text, error = finish(arguments, out, limit=small[command])
    assert code == 2 and "Traceback" not in error, text + error
    assert "File too large" in error
    assert len([line for line in error.splitlines() if f"undiffuse {arguments[0]}:" in line]) == 1
    assert not [p for p in out.rglob(".*") if p.suffix == ".tmp"]
    code, text, error = finish(arguments, out)  # the disk has room again
    assert code == 0, text + error
    assert content(command, out) == whole
