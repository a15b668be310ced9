"""native.c against the PyTorch reference, bit by bit; and what happens without a compiler."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from undiffuse.kernels import (
    explain,
    linear_step,
    native,
    normal,
    rademacher,
    uniform,
    using,
    warm_up,
)

from .test_linear import operands, step


@pytest.fixture
def built() -> None:
    if not warm_up():
        pytest.skip("there is no C compiler, or UNDIFFUSE_NATIVE=0")


@pytest.mark.parametrize("draw", [normal, uniform, rademacher])
@pytest.mark.parametrize("shape", [(1, 1), (3, 4099), (2, 1024), (300, 2), (2, 3, 5, 7), (7, 513)])
def test_noise(built, draw, shape) -> None:
    ids, seeds = torch.arange(shape[0]) * 2**33 + 5, torch.arange(shape[0]) * 2**40 - 3
    got = draw(shape, seeds, ids, draw=2**31 + 7, subdraw=200)
    with using("reference"):
        assert torch.equal(got, draw(shape, seeds, ids, draw=2**31 + 7, subdraw=200))


@pytest.mark.parametrize("element0", [0, 1, 4, 1023, 1025])
def test_shards(built, element0) -> None:
    with using("reference"):
        whole = normal((3, 5000), 4)
    for n in (1, 3, 300, 1024, 3000):
        shard = normal((3, n), 4, element0=element0)
        assert torch.equal(shard, whole[:, element0 : element0 + n])


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("clip", [None, (-0.6, 0.8)])
@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 1, 0), (1, 3, 2, 2)])
def test_linear_step(built, per_sample, clip, counts) -> None:
    pair, states, data, noises = counts
    for shape in ((3, 5000), (200, 2), (2, 3, 5, 7), (5, 513), (9, 131)):
        o = operands(shape, pair=pair, states=states, data=data, noises=noises)
        o.table[3, 0] = 0.0  # data prediction without x
        row = torch.arange(shape[0]) % 5 if per_sample else torch.tensor([3])
        options = {"seed": 6, "keep_data": True, "next_dtype": torch.float32, "clip": clip}
        got = step(o, row, **options)
        bare = step(o, row, seed=6, clip=clip)
        with using("reference"):
            expected = step(o, row, **options)
        assert all(torch.equal(a, e) for a, e in zip(got, expected, strict=True))
        assert torch.equal(bare.x, expected.x)


def test_nan_and_zero_coefficients(built) -> None:
    o = operands((2, 9), pair=True, states=1, data=1, noises=1)
    o.table[1, [0, 2, 5, 7, 8]] = 0.0
    expected = step(o, torch.tensor([1])).x
    o.states[0][:] = o.data[0][:] = float("nan")
    assert torch.equal(step(o, torch.tensor([1])).x, expected)
    o.out[1][0, 3] = float("nan")
    for clip in (None, (-1.0, 1.0)):
        nan = step(o, torch.tensor([1]), clip=clip).x.isnan()
        assert nan[0, 3] and nan.sum() == 1
    o.out[1][0, 3] = float("inf")
    assert not step(o, torch.tensor([1]), clip=(-1.0, 1.0)).x[0, 3].isfinite()


def test_a_row_that_is_not_there_is_refused(built) -> None:
    # the compiled file would read past the table
    o = operands((2, 8))
    for row in ([5], [-1], [0, 5]):
        with pytest.raises(ValueError, match=r"row must lie in \[0, 5\)"):
            step(o, torch.tensor(row))


def test_threads_and_strides_do_not_matter(built, monkeypatch) -> None:
    o = operands((3, 7, 40, 50), data=1, noises=1)
    expected = step(o, torch.tensor([1])).x
    monkeypatch.setattr(native, "PARALLEL", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    o.x = o.x.to(memory_format=torch.channels_last)
    assert torch.equal(step(o, torch.tensor([1])).x, expected)


def test_it_is_native_code_that_ran(built, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(native, "linear", lambda *a: calls.append("linear"))
    monkeypatch.setattr(native, "noise", lambda *a, **k: calls.append("noise"))
    o = operands((2, 8))
    step(o, torch.tensor([0]))
    normal((2, 8), 0)
    assert calls == ["linear", "noise"]
    with using("reference"):
        step(o, torch.tensor([0]))
    half = linear_step(o.x.bfloat16(), o.out, o.table, torch.tensor([0]))
    assert half.x.dtype == torch.bfloat16
    assert calls == ["linear", "noise"]


SCRIPT = """
import warnings
warnings.simplefilter("always")
import torch, undiffuse.kernels as k
torch.set_num_threads(1)
print(k.warm_up(), k.normal((1, 3), 5)[0].tolist())
print(k.explain(torch.zeros(1)))
"""


def run(code: str = SCRIPT, timeout: float = 120, **change: str | None):
    """(lines printed, what was said) of a process of its own, which must end well."""
    environment = {**os.environ, **{k: v for k, v in change.items() if v is not None}}
    for name in ("UNDIFFUSE_NATIVE", "CC", *(k for k, v in change.items() if v is None)):
        if change.get(name) is None:
            environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-800:]}"
    return done.stdout.splitlines(), done.stderr


def numbers() -> str:
    with using("reference"):
        return str(normal((1, 3), 5)[0].tolist())


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A folder with a library that was built there, to be copied."""
    folder = tmp_path_factory.mktemp("cache")
    if run(UNDIFFUSE_CACHE=str(folder))[0][0].split()[0] != "True":
        pytest.skip("there is no C compiler")
    return folder


@pytest.fixture
def copy(cache, tmp_path) -> Path:
    shutil.copytree(cache, tmp_path / "copy", copy_function=shutil.copy2)
    return tmp_path / "copy"


def lone(folder: Path) -> Path:
    (path,) = folder.glob("*.so")
    return path


WAYS = {  # environment -> what explain and the one warning say
    "switched off": ({"UNDIFFUSE_NATIVE": "0"}, "UNDIFFUSE_NATIVE=0"),
    "no compiler": ({"PATH": "", "UNDIFFUSE_CACHE": "{new}"}, "no C compiler"),
    "a compiler that fails": ({"CC": "false", "UNDIFFUSE_CACHE": "{new}"}, "false failed"),
    "a compiler that is not there": ({"CC": "/no/cc", "UNDIFFUSE_CACHE": "{new}"}, "/no/cc"),
    "no folder": ({"UNDIFFUSE_CACHE": "/dev/null/cache"}, "/dev/null/cache"),
    "a relative folder": ({"UNDIFFUSE_CACHE": "here"}, "absolute path; got 'here'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_without_it_the_numbers_are_the_same_and_the_reason_is_said(way, tmp_path) -> None:
    change, word = WAYS[way]
    change = {k: v.format(new=tmp_path) for k, v in change.items()}
    (drawn, said), warned = run(**change)
    assert drawn == f"False {numbers()}"
    assert said.startswith("reference: ") and word in said
    assert warned.count("noise and steps on the CPU are slower") == (way != "switched off")
    assert way == "switched off" or word in warned
    assert not (Path.cwd() / "here").exists()


@pytest.mark.slow
@pytest.mark.parametrize("named", [None, ""])
def test_without_a_home_it_says_so(named) -> None:
    code = """
import pathlib
def home(*args):
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = classmethod(home)
"""
    (drawn, said), warned = run(code + SCRIPT, UNDIFFUSE_CACHE=named)
    assert drawn == f"False {numbers()}"
    assert "home directory" in said and "UNDIFFUSE_CACHE" in warned


@pytest.mark.slow
def test_an_empty_name_is_no_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (drawn, said), _ = run(UNDIFFUSE_CACHE="", HOME=str(tmp_path / "home"))
    if not drawn.startswith("True"):
        pytest.skip("there is no C compiler")
    assert said.startswith("native") and list(tmp_path.iterdir()) == [tmp_path / "home"]
    assert lone(tmp_path / "home" / ".cache" / "undiffuse")


DAMAGES = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:12000],
    "cut at the start": lambda data: data[:100],
    "garbage": lambda data: bytes(len(data)),
    "overwritten": lambda data: data[:9000] + bytes(4000) + data[13000:],
    "longer": lambda data: data + b"0",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_never_loaded_and_is_made_again(damage, copy) -> None:
    path = lone(copy)
    good = path.read_bytes()
    path.write_bytes(DAMAGES[damage](good))
    small = "import undiffuse.kernels as k\nprint(k.normal((1, 3), 5)[0].tolist())"
    (drawn,), warned = run(small, UNDIFFUSE_CACHE=str(copy))
    assert drawn == numbers() and warned.count("is damaged") == 1
    (drawn, said), _ = run(UNDIFFUSE_CACHE=str(copy))
    assert drawn == f"True {numbers()}" and said.startswith("native")
    assert lone(copy).read_bytes() == good


@pytest.mark.slow
def test_a_library_cut_short_under_a_running_process(copy) -> None:
    """What was loaded is a copy: nobody can take it away."""
    code = (
        SCRIPT
        + f"""
import pathlib
for path in pathlib.Path({str(copy)!r}).glob("*.so"):
    with path.open("r+b") as file:
        file.truncate(0)
with k.using("reference"):
    want = k.normal((64, 5000), 9)
print(torch.equal(k.normal((64, 5000), 9), want))
"""
    )
    assert run(code, UNDIFFUSE_CACHE=str(copy))[0][2] == "True"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["folder", "file", "owner", "link"])
def test_what_others_can_write_is_not_loaded(what, copy, tmp_path) -> None:
    path = lone(copy)
    if what == "folder":
        copy.chmod(0o777)
    elif what == "file":
        path.chmod(0o666)
    elif what == "link":
        path.rename(tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
    elif os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        pytest.skip("only root can give a file away")
    (drawn, said), warned = run(UNDIFFUSE_CACHE=str(copy))
    assert drawn == f"False {numbers()}" and said.startswith("reference")
    assert warned.count("noise and steps on the CPU are slower") == 1 and str(copy) in warned


@pytest.mark.slow
def test_four_builds_at_once(tmp_path) -> None:
    environment = {**os.environ, "UNDIFFUSE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-P", "-c", SCRIPT]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    out = [p.communicate(timeout=300)[0].splitlines() for p in running]
    if not out[0][0].startswith("True"):
        pytest.skip("there is no C compiler")
    assert all(lines[0] == f"True {numbers()}" for lines in out)
    assert lone(tmp_path / "cache") and len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.slow
def test_a_compiler_that_hangs_is_ended_with_all_it_started(tmp_path) -> None:
    cc = script(tmp_path / "cc", f"sleep 600 &\necho $! > {tmp_path}/child\nwait")
    code = "import undiffuse.kernels.native as n\nn.TIMEOUT = 0.5\n" + SCRIPT
    (drawn, said), warned = run(code, CC=cc, UNDIFFUSE_CACHE=str(tmp_path / "cache"))
    assert drawn == f"False {numbers()}" and "did not finish in 0.5 seconds" in said
    assert warned.count("did not finish") == 1
    with pytest.raises(ProcessLookupError):
        for _ in range(50):  # a moment until it is reaped
            os.kill(int((tmp_path / "child").read_text()), 0)
            time.sleep(0.1)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_a_fork_during_the_build_and_other_threads_go_on(tmp_path) -> None:
    """Neither waits for the compiler, which sleeps until they are done."""
    cc = script(tmp_path / "cc", f"while [ ! -e {tmp_path}/done ]; do sleep 0.1; done\nexit 1")
    code = f"""
import os, pathlib, threading, time, torch, undiffuse.kernels as k
builder = threading.Thread(target=k.warm_up)
builder.start()
while not list(pathlib.Path({str(tmp_path)!r}).glob("cache/build-*")):
    time.sleep(0.05)
print(k.normal((1, 3), 5)[0].tolist(), flush=True)
child = os.fork()
if child == 0:
    k.native._drawn = 0
    k.native.TIMEOUT = 0.2
    print(k.normal((1, 3), 5)[0].tolist(), k.warm_up(), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
pathlib.Path({str(tmp_path)!r}, "done").touch()
builder.join()
"""
    out, _ = run(code, CC=cc, UNDIFFUSE_CACHE=str(tmp_path / "cache"), timeout=60)
    assert out == [numbers(), f"{numbers()} False", "0"]


@pytest.mark.slow
def test_what_killed_builds_left_is_swept(cache, tmp_path) -> None:
    old, new = tmp_path / "build-old", tmp_path / "build-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    run(UNDIFFUSE_CACHE=str(tmp_path))
    assert not old.exists() and new.exists()


def test_explain_says_native_where_it_is_native(built) -> None:
    x = torch.zeros(1, 4)
    assert explain(x).startswith("native")
    assert explain(x.double()).startswith("reference")
    with using("reference"):
        assert explain(x).startswith("reference: forced")
