"""How commands end: expected failures in one line and a code, mistakes in code with their
traceback."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from undiffuse.cli import main
from undiffuse.solvers.likelihood import dataset as dataset_likelihood

MODEL = """
import torch
from undiffuse.models import VP, Checkpoint, Denoiser

def broken(x, t):
    return x * float("nan")

def network(x, t):
    raise ValueError("the network's own trouble")

def python(x, t):
    return int("nine")

def of(net):
    return Checkpoint(Denoiser(net, VP()), (2,), (-9.0, 9.0))

nan, theirs, mistake = (lambda: of(broken)), (lambda: of(network)), (lambda: of(python))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(MODEL)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 2)))
    return tmp_path


def line(capsys):
    error = [text for text in capsys.readouterr().err.splitlines() if text.strip()]
    assert len(error) == 1 and error[0].startswith("undiffuse "), error
    return error[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["m.py:nan", "x.npy"],
            "none of the 5 items could be integrated: the network returned NaN",
        ),
        (["m.py", "x.npy"], "m.py is code: name its function"),
        (["m.py:absent", "x.npy"], "m.py has no function 'absent'"),
        (["m.py:nan", "x.npy", "--device", "abacus"], "--device 'abacus' cannot be used here"),
        (["m.py:nan", "x.npy", "--out", "m.py"], "File exists: m.py"),
        (["absent:nan", "x.npy"], "No module named 'absent'"),
        (["digits", "x.npy"], "items of shape (1, 8, 8), .* x.npy holds (2,)"),
    ],
)
def test_likelihood_says_in_one_line_what_is_wrong(here, arguments, words, capsys):
    import re

    assert main(["likelihood", *arguments]) == 2
    pattern = re.escape(words).replace(r"\.\*", ".*")
    assert re.search(pattern, line(capsys))


@pytest.mark.parametrize(
    "command", [["sample", "--solver"], ["bench", "compare"], ["bench", "--solvers"]]
)
def test_a_picture_in_the_place_of_results_or_a_table_is_named(here, command, capsys):
    (here / "p.json").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(128, 256)))
    assert main([*command, "p.json", *["m.py"] * ("compare" in command)]) == 2
    said = line(capsys)
    assert "p.json" in said and ("holds no" in said or "text file" in said)


def test_a_reference_that_fails_is_one_line(here, capsys):
    """SciPy alone would look for a step size for ever where the network returns NaN."""
    pytest.importorskip("scipy")
    words = (
        "bench --targets '' --checkpoint m.py:nan --data x.npy --nfe 5 --solvers ddim --peers '' "
        "--metrics error --quick"
    )
    command = shlex.split(words)
    assert main([*command, "--grid", "karras", "--out", "out"]) == 2
    assert "the reference of nan failed: the network returned NaN or Inf at ratio=" in line(capsys)
    assert main([*command, "--grid", "equidistributed", "--out", "out"]) == 2
    assert "the pilot run failed: the network returned NaN or Inf at step 0 (t=" in line(capsys)


@pytest.mark.parametrize(
    ("command", "made", "picture"),
    [
        (["sample", "--n", "2", "--steps", "2"], "samples.pt", "samples.png"),
        (["likelihood", "digits", "p", "--limit", "2"], "summary.json", "bits.png"),
    ],
)
def test_without_matplotlib_there_is_no_picture_and_all_else(
    here, command, made, picture, capsys, monkeypatch
):
    image = pytest.importorskip("PIL.Image")
    (here / "p").mkdir()
    for i in range(2):
        image.fromarray(np.full((8, 8), 100 * i, dtype=np.uint8)).save(here / "p" / f"{i}.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*command, "--out", "out"]) == 0
    assert f"no {picture}: plots need matplotlib: pip install" in capsys.readouterr().out
    assert (here / "out" / made).is_file() and not (here / "out" / picture).exists()


@pytest.mark.parametrize("make", ["theirs", "mistake"])
def test_what_goes_wrong_in_handed_code_is_a_traceback(here, make):
    """One line would say neither where it was nor that it is not this package's."""
    with pytest.raises(ValueError, match="own trouble|invalid literal"):
        main(["likelihood", f"m.py:{make}", "x.npy"])


def test_a_mistake_of_this_package_is_a_traceback(here, monkeypatch):
    """A wrong call and a bad conversion inside it, of the very types that refusals have."""
    for mistake in (lambda **_: int("nine"), lambda: None):
        monkeypatch.setattr(dataset_likelihood, "run", mistake)
        with pytest.raises((ValueError, TypeError)):
            main(["likelihood", "m.py:nan", "x.npy"])


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the items that are done are in --out"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/items.jsonl"),
            2,
            "No space left on device: out/items.jsonl",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 2, "Permission denied: out"),
        (MemoryError("of 9 TiB"), 2, "out of memory, a smaller --batch needs less: of 9 TiB"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "a smaller --batch needs less"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_the_machine_may_do(here, error, code, words, capsys, monkeypatch):
    def fail(**_):
        raise error

    monkeypatch.setattr(dataset_likelihood, "run", fail)
    assert main(["likelihood", "m.py:nan", "x.npy"]) == code
    assert words in line(capsys)


def test_a_reader_that_went_away_is_no_success_and_no_noise():
    command = [sys.executable, "-P", "-m", "undiffuse", "solvers"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    assert run.stderr.read() == b"" and run.wait(timeout=120) == 141
    run.stderr.close()


def test_interrupted_with_the_keyboard_it_says_so_and_keeps_what_is_done(here):
    """SIGINT once a row is on the disk: exit 130, a last line, and the rows are whole."""
    (here / "m.py").write_text(
        MODEL + "import time\ndef slow(x, t):\n    time.sleep(0.01)\n    return x.tanh()\n"
        "make = lambda: of(slow)\n"
    )
    arguments = ["likelihood", "m.py:make", "x.npy", "--batch", "1", "--out", "out"]
    heard = (
        "import signal, undiffuse.cli as c; "
        "signal.signal(signal.SIGINT, signal.default_int_handler)"
    )
    # a shell starts what it puts into the background with SIGINT ignored, and so would be the child
    command = [sys.executable, "-P", "-c", f"{heard}; raise SystemExit(c.main({arguments}))"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    rows = here / "out" / "items.jsonl"
    for _ in range(2400):
        if rows.exists() and rows.read_text().count("\n") >= 1:
            break
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=120)
    assert run.returncode == 130
    assert error.splitlines()[-1].endswith(
        "the items that are done are in --out, and the same command goes on"
    )
    assert "Traceback" not in error and rows.read_text().endswith("\n")
