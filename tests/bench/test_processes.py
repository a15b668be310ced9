"""A run that is killed, shared by workers or started by torchrun has the numbers of one process."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from undiffuse.bench.nfe import run as nfe

from .runs import run

pytest.importorskip("scipy")


def children(pid):
    """The processes that a process started, where the system says so."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(p) for p in file.read_text().split()] if file.exists() else []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_and_resume_gives_the_same_file(tmp_path, workers):
    code = (
        "from undiffuse.bench.nfe import run as nfe\n"
        "if __name__ == '__main__':\n"
        "    nfe.run({out!r}, checkpoint='none', targets=['digits64'], peers=[], batch=64,\n"
        "            solvers=['ddim', 'heun', 'dpmpp-2m'], nfe=[10, 20, 40], progress=False,\n"
        "            workers={workers})\n"
    )

    def start(out, workers=1):
        file = tmp_path / f"{workers}.py"
        file.write_text(code.format(out=str(out), workers=workers))
        return subprocess.Popen([sys.executable, str(file)])

    killed = start(tmp_path / "killed", workers)
    file = tmp_path / "killed" / "results.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= 5):
        assert killed.poll() is None, "finished before it could be killed"
        time.sleep(0.02)
    started = children(killed.pid)
    assert len(started) >= 2 or workers == 1 or not Path("/proc/self").exists()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = file.read_text().count("\n")
    cells_in_all = 3 * 3 * len(nfe.GRIDS)
    assert kept < cells_in_all
    assert start(tmp_path / "killed").wait() == 0
    assert start(tmp_path / "whole").wait() == 0
    lines = [(tmp_path / d / "results.jsonl").read_text().splitlines() for d in ("killed", "whole")]
    assert sorted(lines[0]) == sorted(lines[1]) and len(lines[0]) == cells_in_all
    seconds = (tmp_path / "killed" / "timings.jsonl").read_text().splitlines()
    assert len(seconds) <= cells_in_all + 1  # every cell once, and the one in flight perhaps twice
    assert not any(alive(p) for p in started)  # the workers left with the one that was killed


@pytest.mark.slow
def test_workers_give_the_numbers_of_one_process(tmp_path):
    run(tmp_path / "one", nfe=[4, 6])
    run(tmp_path / "two", nfe=[4, 6], workers=2)
    one, two = (
        sorted((tmp_path / d / "results.jsonl").read_text().splitlines()) for d in ("one", "two")
    )
    assert one == two and len(one) == 2 * 2 * len(nfe.GRIDS)


@pytest.mark.slow
def test_the_processes_of_torchrun_give_the_numbers_of_one(tmp_path):
    """And go on with what one process left: its cells are not measured again."""
    run(tmp_path / "one", nfe=[4, 6])
    run(tmp_path / "two", nfe=[4])
    words = (
        "-m torch.distributed.run --standalone --nproc-per-node 2 -m undiffuse bench --batch 8 "
        "--checkpoint none --targets ring2 --peers '' --solvers ddim,dpmpp-2m --nfe 4,6 --out"
    )
    command = [sys.executable, *shlex.split(words), str(tmp_path / "two")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(3):  # torchrun looks for a port before it binds it, and another may be faster;
        ended = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
        if ended.returncode == 0:  # the same command goes on
            break
    assert ended.returncode == 0, ended.stderr[-4000:]
    one, two = (
        sorted((tmp_path / d / "results.jsonl").read_text().splitlines()) for d in ("one", "two")
    )
    assert one == two
    seconds = (tmp_path / "two" / "timings.jsonl").read_text().splitlines()
    assert len(seconds) == len(one) == 2 * 2 * len(nfe.GRIDS)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="the system does not say who started whom"
)
def test_a_killed_worker_is_replaced(tmp_path):
    def command(out):
        words = (
            "-P -m undiffuse bench --checkpoint none --targets digits64 --peers '' --batch 64 "
            "--solvers ddim,heun,dpmpp-2m --nfe 10,20,40 --workers 2 --out"
        )
        return [sys.executable, *shlex.split(words), str(out)]

    def workers(pid):
        lines = {p: Path(f"/proc/{p}/cmdline") for p in children(pid)}
        return [p for p, f in lines.items() if f.exists() and b"spawn_main" in f.read_bytes()]

    file = tmp_path / "killed" / "results.jsonl"
    run_one = subprocess.Popen(
        command(tmp_path / "killed"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while not (file.exists() and file.read_text().count("\n") >= 5):
        assert run_one.poll() is None, "finished before a worker could be killed"
        time.sleep(0.02)
    os.kill(workers(run_one.pid)[0], signal.SIGKILL)
    said = run_one.communicate(timeout=120)[1]
    assert run_one.returncode == 0 and "Traceback" not in said
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    ended, whole = (
        (tmp_path / d / "results.jsonl").read_text().splitlines() for d in ("killed", "whole")
    )
    assert sorted(ended) == sorted(whole)
