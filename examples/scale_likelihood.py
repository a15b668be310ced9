"""Evidence at scale: log p of a whole data set by two workers, one of which is killed.

    python examples/scale_likelihood.py out/rows digits digits
    python examples/scale_likelihood.py out/rows examples/published.py:hea x.npy

One process scores every item. Then a pool of two does it again and one of its processes is killed
in the middle: its rows must be those of the first, each once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def command(args: argparse.Namespace, out: Path, *more: str) -> list[str]:
    """The command line that scores the data into a folder."""
    how = ["--method", args.method, *args.options.split(), "--batch", "64", "--out", str(out)]
    line = ["undiffuse", "likelihood", args.model, args.data, *how, *more]
    return [sys.executable, "-P", "-m", *line]


def rows(out: Path) -> dict[str, dict]:
    """The rows by key. Raises ValueError where one is there twice."""
    found = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    by_key = {row["key"]: row for row in found}
    if len(by_key) < len(found):
        raise ValueError(f"{len(found) - len(by_key)} rows are there twice")
    return by_key


def workers(pid: int) -> list[int]:
    """The processes of a pool."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = {int(p): Path(f"/proc/{p}/cmdline").read_bytes() for p in found}
    return [p for p, line in lines.items() if b"spawn_main" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--method", default="elbo")
    parser.add_argument("--options", default="--steps 8 --time continuous")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    own = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}
    began = time.monotonic()
    subprocess.run(command(args, args.out / "one"), check=True, **own)
    alone = time.monotonic() - began
    began = time.monotonic()
    run = subprocess.Popen(command(args, args.out / "two", "--workers", "2"), **own)
    file = args.out / "two" / "items.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= 200):
        if run.poll() is not None:
            raise RuntimeError("finished before a worker could be killed")
        time.sleep(0.05)
    os.kill(workers(run.pid)[0], signal.SIGKILL)
    if run.wait():
        raise RuntimeError(f"the run ended with {run.returncode}")
    one, two = rows(args.out / "one"), rows(args.out / "two")
    print(
        f"{args.model}: {len(one)} rows; one process {alone:.1f} s, two with one killed "
        f"{time.monotonic() - began:.1f} s; rows equal: {one == two}"
    )


if __name__ == "__main__":
    main()
