"""Files are whole or not there, whatever happens to their writer or to the disk."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from undiffuse.kernels import files
from undiffuse.kernels.errors import UndiffuseError

TENSOR = torch.arange(200_000)
WRITERS = {
    "text": lambda p: files.write_text(p, "x" * 1_000_000),
    "torch": lambda p: files.write_tensors(p, {"a": TENSOR}),
    "safetensors": lambda p: files.atomically(p, lambda part: save_file({"a": TENSOR}, part)),
    "numpy": lambda p: files.atomically(p, lambda part: _save(part)),
    "figure": lambda p: files.atomically(p, _figure),
}


def _save(part):
    with part.open("wb") as file:
        np.save(file, TENSOR.numpy())


def _figure(part):
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure()
    figure.figimage(np.random.default_rng(0).random((600, 800)))
    figure.savefig(part, format="png")


@pytest.fixture
def little(tmp_path):
    """A limit of 4 kB a file: what a full disk does to a writer, without root."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_named_and_leaves_the_older_file(kind, little):
    """Each library fails in its own words; the error is the disk's and names the file."""
    path = little / "file"
    path.write_text("older")
    with pytest.raises(OSError) as caught:
        WRITERS[kind](path)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert path.read_text() == "older" and os.listdir(little) == ["file"]


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_has_the_rights_of_a_new_file(kind, tmp_path):
    WRITERS[kind](tmp_path / "ours")
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("ours", "plain")}
    assert len(modes) == 1 and sorted(os.listdir(tmp_path)) == ["ours", "plain"]


def test_a_mistake_of_the_writer_is_its_own(tmp_path):
    with pytest.raises(KeyError):
        files.atomically(tmp_path / "a", lambda part: {}["absent"])
    assert not list(tmp_path.iterdir())


def test_equal_tensors_are_equal_files(tmp_path):
    for name in "ab":
        files.write_tensors(tmp_path / name, {"x": TENSOR})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_link_in_the_files_place_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "link").read_text() == "new" and not (tmp_path / "link").is_symlink()


def test_what_a_killed_writer_left_is_swept_and_what_is_being_written_stays(tmp_path):
    """kill -9 in the middle of a write; brackets in a name are no pattern."""
    path = tmp_path / "[b] *.txt"
    code = (
        "import sys, time; from undiffuse.kernels import files\n"
        "files.atomically(sys.argv[1], lambda p: (p.write_text('half'), time.sleep(60)))"
    )
    writer = subprocess.Popen([sys.executable, "-P", "-c", code, str(path)])
    for _ in range(1200):
        if any(p.stat().st_size for p in tmp_path.glob(".*.tmp")):
            break
        time.sleep(0.05)
    (left,) = tmp_path.glob(".*.tmp")
    files.write_text(path, "whole")
    assert left.exists(), "its writer is alive"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    files.write_text(path, "again")
    assert os.listdir(tmp_path) == [path.name] and path.read_text() == "again"


def test_a_folder_taken_up_again_is_swept_of_every_files_remains(tmp_path):
    """Also of files that this run has no need to write again."""
    part, handle = files._open_new(tmp_path / "written by another")
    (tmp_path / ".report.png.0123456789ab.tmp").write_text("its writer was killed")
    (tmp_path / ".mine.tmp").write_text("not written by us")
    files.usable(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {part.name, ".mine.tmp"}
    os.close(handle)
    files.usable(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".mine.tmp"]


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        texts = [str(i) * 50_000 for i in range(8)]
        list(pool.map(lambda t: files.write_text(tmp_path / "file", t), texts * 8))
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() in texts


@pytest.mark.parametrize("place", ["a file", "below a file", "no such place"])
def test_a_folder_that_cannot_be_written_to_is_named_with_its_argument(place, tmp_path):
    (tmp_path / "file").write_text("")
    where = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "o"}
    folder = where.get(place, "/proc/nowhere")
    with pytest.raises(OSError, match=r"out must be a folder") as caught:
        files.usable(folder)
    assert isinstance(caught.value, UndiffuseError) and str(folder) in str(caught.value)


def test_a_disk_that_is_too_small_is_found_out_before_the_work(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: .* bytes are to be written"):
        files.usable(tmp_path, needs=1 << 60)
    assert files.usable(tmp_path / "a" / "b", needs=1000) == tmp_path / "a" / "b"
    assert not list((tmp_path / "a" / "b").iterdir())
