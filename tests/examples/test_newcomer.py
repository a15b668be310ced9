"""The newcomer's script, but for the installation, which CI runs: every step is one command, and no
step asks for more than the files that the newcomer has."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "newcomer" / "run.sh"


@pytest.mark.slow
def test_a_newcomer_gets_from_a_network_to_a_likelihood(tmp_path):
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
        env={
            **os.environ,
            "INSTALL": "no",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    titles = re.findall(r"(?m)^== (.*)$", done.stdout)
    assert len(titles) == 5
    seconds = [float(s) for s in re.findall(r"(?m)^   ([\d.]+) s$", done.stderr)]
    assert len(seconds) == len(titles)  # told for each step; how long is not tested
    std = [float(s) for s in re.findall(r"standard deviation ([\d.]+)", done.stdout)]
    assert len(std) == 2 and all(0.5 < s < 1.5 for s in std)  # the digits' own is 0.75
    scored = json.loads((tmp_path / "scored" / "summary.json").read_text())
    assert scored["items"] == 16 and scored["failed"] == 0
    assert (tmp_path / "tuned" / "tuned-6.json").exists()
