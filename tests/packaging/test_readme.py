"""Every block of the README runs. Blocks that install are run by .ci/run, in a fresh
environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text())
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language == "bash"]
HERE = [text for text in SHELL if "pip install" not in text]


def first_words(text):
    return next(line for line in text.splitlines() if line and "import" not in line)[:40]


@pytest.mark.parametrize("code", PYTHON, ids=first_words)
def test_a_python_block_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102  # that is the test
    assert ("print(" in code) == bool(capsys.readouterr().out)
    made = [v for v in names.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    assert made and all(bool(v.isfinite().all()) for v in made)


@pytest.mark.parametrize("text", HERE, ids=first_words)
def test_a_shell_block_runs(text, tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", text],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout


def test_every_block_is_run_somewhere():
    assert {language for language, _ in BLOCKS} <= {"python", "bash"}
    # the CI script runs the first two shell blocks by number: one does the main job, one the tests
    assert "undiffuse bench" in SHELL[0] and "pytest" in SHELL[1]
    assert set(SHELL[2:]) == set(HERE) and len(PYTHON) >= 3
    script = (ROOT / ".ci/run").read_text()
    assert "readme 1 |" in script and "readme 2 |" in script


def test_relative_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
