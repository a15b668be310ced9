"""README is one page, every block of it runs, and prints what it says. Blocks that install are run
by .ci/run, in a fresh environment."""

import re
from pathlib import Path

import pytest
import torch

import undiffuse as ud

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", TEXT)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language == "bash"]


def first_words(text):
    return next(line for line in text.splitlines() if line and "import" not in line)[:40]


@pytest.mark.parametrize("code", PYTHON, ids=first_words)
def test_a_python_block_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102  # that is the test
    told = [line[2:] for line in code.splitlines() if line.startswith("# ")]
    assert ("print(" in code) == bool(told) and capsys.readouterr().out.splitlines() == told
    made = [v for v in names.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    assert made and all(bool(v.isfinite().all()) for v in made)


def test_every_block_is_run_somewhere():
    assert {language for language, _ in BLOCKS} <= {"python", "bash"}
    # the CI script runs the first two shell blocks by number: one does the main job, one the tests
    assert "undiffuse bench" in SHELL[0] and "pytest" in SHELL[1]
    assert len(SHELL) == 2 and len(PYTHON) >= 3
    script = (ROOT / ".ci/run").read_text()
    assert "readme 1 |" in script and "readme 2 |" in script


def test_it_is_one_page():
    """At most six blocks and 600 words of prose, 1,000 with the tables."""
    prose = re.sub(r"(?ms)^```.*?^```$|<!--.*?-->", "", TEXT)
    prose = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", prose)
    lines = prose.splitlines()
    words = sum(len(line.split()) for line in lines if not line.startswith("|"))
    assert len(BLOCKS) <= 6 and 300 <= words <= 600
    assert sum(len(line.split()) for line in lines) <= 1000


def test_it_counts_the_solvers():
    assert f"| solvers | {len(ud.solvers.names())} |" in TEXT


def test_relative_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
