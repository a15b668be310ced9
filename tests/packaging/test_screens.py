"""What the shell shows, word for word, at 80 and 120 columns.

`python -P tests/packaging/test_screens.py` writes the screens anew, to be read before they are
committed. Figures that are measured stand there as zeros of the same length: another processor has
other last digits, and the columns stay.
"""

import contextlib
import io
import itertools
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from undiffuse.cli import main

SCREENS = Path(__file__).parent / "screens"
WIDTHS = (80, 120)
MINE = """\
import torch
import undiffuse as ud

LAW = ud.targets.GaussianMixture([1, 2], [[0.0, 2.0], [2.0, -1.0]], 0.05)


def right():
    return ud.models.Checkpoint(LAW.denoiser(ud.VP()), (2,), (-4.0, 4.0))


def wrong():
    net = LAW.denoiser(ud.VP()).noise
    return ud.models.Checkpoint(ud.Denoiser(net, ud.VP(), predicts="data"), (2,), (-4.0, 4.0))


torch.save(LAW.sample(64, seed=3).float(), "data.pt")
"""
QUICK = (
    "--nfe 5,8 --batch 16 --no-likelihood --checkpoint none --metrics error --grid log_snr,blend"
)
COMMANDS = {
    "help": ["--help"],
    "solvers": ["solvers"],
    "solver": ["solvers", "DPM++ 2M", "--steps", "4"],
    "which": ["which", "mine.py:right", "--nfe", "5,10"],
    "check": ["check", "mine.py:right", "data.pt"],
    "check-wrong": ["check", "mine.py:wrong", "data.pt"],
    "bench": [
        *("bench --targets ring2,stiff --solvers relay,dpmpp-2m " + QUICK).split(),
        *("--peers", "", "--out", "out"),
    ],
}
MEASURED = {
    "which": r"[\d.e-]+(?= ±)|(?<=±)[\d.e-]+|(?<=off by )[\d.e-]+(?=,)",
    "check": r"(?m)^ *-?\d+\.\d\d",
    "check-wrong": r"(?m)^ *-?\d+\.\d\d",
    "bench": r"(?m)(?<=^ )(?: +\d+ .*)$",
}
"""By screen: what a processor may have another digit of."""


def shown(name: str, width: int) -> str:
    """The screen of a command, its measured figures as zeros."""
    said = io.StringIO()
    os.environ["COLUMNS"] = str(width)
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(COMMANDS[name])
    if name not in MEASURED:
        return said.getvalue()

    def zeros(found: re.Match[str]) -> str:
        if name != "bench":
            return re.sub(r"\d", "0", found[0])
        return re.sub(r"\d+\.[\de-]+", lambda m: re.sub(r"\d", "0", m[0]), found[0])

    text = re.sub(MEASURED[name], zeros, said.getvalue())
    return re.sub(r"[\d.]+ s\.$", "0.0 s.", text, flags=re.MULTILINE)


def posed(folder: Path) -> None:
    """A network and its data, in the working directory."""
    (folder / "mine.py").write_text(MINE)
    exec(MINE, {})  # noqa: S102


def golden(name: str, width: int) -> Path:
    return SCREENS / f"{name}-{width}.txt"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")
    posed(tmp_path)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "bench" else ()) for n in COMMANDS]
)
def test_a_screen_is_what_was_read_and_committed(name, width, here):
    said = shown(name, width)
    assert said == golden(name, width).read_text(), (
        f"the screen of {' '.join(COMMANDS[name])!r} changed: look at what "
        "`python -P tests/packaging/test_screens.py` writes, and commit it if it is meant"
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(name, width):
    text = golden(name, width).read_text()
    most = 100 if name == "solver" else width  # which shows a docstring as it was written
    assert max(map(len, text.splitlines())) <= most
    assert "…" not in text and not re.search(r"\d\.\.\.", text)
    assert len(text.splitlines()) <= 50 or name == "solvers"


if __name__ == "__main__":
    SCREENS.mkdir(exist_ok=True)
    for one, columns in itertools.product(COMMANDS, WIDTHS):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            posed(Path(folder))
            golden(one, columns).write_text(shown(one, columns))
            print(golden(one, columns))
