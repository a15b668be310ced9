"""Evidence at scale: 50,000 samples of the shipped network, by every engine and through kills.

    python examples/scale.py out/scale    draws, compares, writes scale.json and scale.md
    python examples/scale.py out/scale/scale.json --workers 1024    simulates more workers

The first part draws the samples by one process, by one that is killed ten times, by two of torchrun
and by two of Ray, and compares the sha256 of every shard. The second part replays the measured
shard times on 1 to 1,024 workers that take the next shard when they are free; some shards take
longer than others, workers are lost at a rate, and each start costs what one was measured to cost.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

STEPS = 3
KILLS = 10


def command(out: Path, n: int, *more: str) -> list[str]:
    """The command line that draws n samples into a folder."""
    how = ["--n", str(n), "--steps", str(STEPS), "--out", str(out), *more]
    return ["undiffuse", "sample", "digits", *how]


def finished(line: list[str]) -> tuple[float, float]:
    """(seconds, most memory of any process in MiB) of a command that must succeed."""
    code = (
        "import resource, subprocess, sys;"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL,"
        "stderr=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    began = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-P", "-c", code, sys.executable, "-P", *line],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return time.monotonic() - began, int(told.stdout) / 1024


def killed(out: Path, n: int, seconds: float) -> int:
    """Start the run and kill it, ten times; returns how many shards the kills left behind."""
    moments = random.Random(0)
    line = [sys.executable, "-P", "-m", *command(out, n)]
    for _ in range(KILLS):
        run = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(out.glob("samples-*")))
        until = time.monotonic() + 60 + seconds
        while len(list(out.glob("samples-*"))) <= before and time.monotonic() < until:
            time.sleep(0.05)  # its start is over when it has written a shard
        time.sleep(moments.uniform(0.0, seconds / 20))
        run.send_signal(signal.SIGKILL)
        run.wait()
    return len(list(out.glob("samples-*")))


def digests(out: Path) -> list[str]:
    """sha256 of every shard, in the order of their ids."""
    lines = (out / "index.jsonl").read_text().splitlines()
    return [json.loads(line)["sha256"] for line in lines]


def shard_seconds(out: Path) -> list[float]:
    """Time from one shard to the next, as their files say."""
    stamps = sorted(p.stat().st_mtime for p in out.glob("samples-*"))
    return [b - a for a, b in pairwise(stamps)]


def measure(out: Path, n: int, engines: list[str]) -> dict:
    """All runs; each in a folder of its own under `out`."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
    rows, small = [], n // 10

    def add(name: str, samples: int, line: list[str], folder: Path, note: str = "") -> float:
        seconds, memory = finished(line)
        row = {"run": name, "samples": samples, "seconds": round(seconds, 1)}
        row |= {"MiB": round(memory), "digests": digests(folder), "note": note}
        rows.append(row)
        print(name, {k: v for k, v in row.items() if k != "digests"}, flush=True)
        (out / "rows.json").write_text(json.dumps(rows))
        return seconds

    add("one process", small, ["-m", *command(out / "small", small)], out / "small")
    seconds = add("one process", n, ["-m", *command(out / "one", n)], out / "one")
    times = shard_seconds(out / "one")
    left = killed(out / "cut", n, seconds)
    note = f"{left} shards after the last kill"
    add(f"killed {KILLS} times", n, ["-m", *command(out / "cut", n)], out / "cut", note)
    if "torchrun" in engines:
        add("torchrun, 2 processes", n, [*torchrun, *command(out / "two", n)], out / "two")
    if "ray" in engines:
        ray = ["--engine", "ray", "--workers", "2"]
        add("Ray, 2 tasks", n, ["-m", *command(out / "ray", n, *ray)], out / "ray")
    whole = rows[1]["digests"]
    for row in rows:
        held = row.pop("digests")
        row["shards"] = len(held)
        row["same"] = held == whole if row["samples"] == n else held[:-1] == whole[: len(held) - 1]
    return {"steps": STEPS, "rows": rows, "shard_seconds": times}


def table(found: dict) -> str:
    """The runs as Markdown."""
    head = "| run | samples | seconds | MiB of a process | shards | bytes are one process's |"
    lines = [head, "| --- " * 6 + "|"]
    for r in found["rows"]:
        note = f" ({r['note']})" if r["note"] else ""
        same = "yes" if r["same"] else "NO"
        lines.append(
            f"| {r['run']}{note} | {r['samples']} | {r['seconds']} | {r['MiB']} | {r['shards']} | "
            f"{same} |"
        )
    return "\n".join(lines) + "\n"


# --- more workers than there are ------------------------------------------------------------------


def simulate(
    times: list[float], shards: int, workers: int, start: float, lost: float, seed: int = 0
) -> float:
    """Seconds until `shards` are done by workers that take the next one when they are free.

    times: measured seconds of shards, drawn from with replacement.
    start: seconds of a process before its first shard.
    lost: workers lost in an hour, each; what one was at is done again, after another start.
    """
    chance, end = random.Random(seed), 0.0
    free = [start] * workers
    heapq.heapify(free)
    for _ in range(shards):
        at = heapq.heappop(free)
        while True:
            takes = chance.choice(times)
            fails = chance.expovariate(lost / 3600) if lost else float("inf")
            if fails > takes:
                break
            at += fails + start
        end = max(end, at + takes)
        heapq.heappush(free, at + takes)
    return end


def scaling(times: list[float], shards: int, most: int, start: float, lost: float) -> str:
    """Workers, hours and efficiency as Markdown."""
    alone = sum(simulate(times, shards, 1, start, 0.0, seed) for seed in range(3)) / 3
    lines = ["| workers | seconds | speed-up | efficiency |", "| --- " * 4 + "|"]
    workers = 1
    while workers <= most:
        took = [simulate(times, shards, workers, start, lost, seed) for seed in range(5)]
        mean = sum(took) / len(took)
        faster = alone / mean
        lines.append(f"| {workers} | {mean:.1f} | {faster:.1f} | {faster / workers:.2f} |")
        workers *= 4
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to draw into, or scale.json")
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--engines", default="torchrun,ray")
    parser.add_argument("--workers", type=int, default=None, help="simulate up to so many")
    parser.add_argument("--shards", type=int, default=None, help="of the simulated job")
    parser.add_argument("--cost", type=float, default=1.0, help="of a shard, times the measured")
    parser.add_argument("--start", type=float, default=10.0, help="seconds of a process's start")
    parser.add_argument("--lost", type=float, default=0.1, help="of each worker, an hour")
    args = parser.parse_args()
    if args.workers is not None:
        found = json.loads(args.out.read_text())
        times = [args.cost * t for t in found["shard_seconds"]]
        shards = args.shards or len(times) + 1
        print(scaling(times, shards, args.workers, args.start, args.lost))
        return
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    found = measure(args.out, args.n, args.engines.split(","))
    (args.out / "scale.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "scale.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
