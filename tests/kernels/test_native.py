"""native.c against the PyTorch reference, bit by bit; and what happens without a compiler."""

import subprocess
import sys

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
@pytest.mark.parametrize("shape", [(1, 1), (3, 4099), (2, 1024), (300, 2), (2, 3, 5, 7)])
def test_noise(built, draw, shape) -> None:
    ids, seeds = torch.arange(shape[0]) * 2**33 + 5, torch.arange(shape[0]) * 2**40 - 3
    got = draw(shape, seeds, ids, draw=2**31 + 7, subdraw=200)
    with using("reference"):
        assert torch.equal(got, draw(shape, seeds, ids, draw=2**31 + 7, subdraw=200))


@pytest.mark.parametrize("element0", [0, 1, 4, 1023, 1025])
def test_shards(built, element0) -> None:
    with using("reference"):
        whole = normal((3, 5000), 4)
    for n in (1, 3, 1024, 3000):
        shard = normal((3, n), 4, element0=element0)
        assert torch.equal(shard, whole[:, element0 : element0 + n])


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("clip", [None, (-0.6, 0.8)])
@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 1, 0), (1, 3, 2, 2)])
def test_linear_step(built, per_sample, clip, counts) -> None:
    pair, states, data, noises = counts
    for shape in ((3, 5000), (200, 2), (2, 3, 5, 7)):
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
import torch, undiffuse.kernels as k
print(k.warm_up(), k.normal((1, 3), 5)[0].tolist())
"""


@pytest.mark.parametrize("reason", ["switched off", "no compiler", "no cache folder"])
def test_without_it_the_numbers_are_the_same(reason, tmp_path) -> None:
    environment = {
        "PATH": "" if reason == "no compiler" else "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    if reason == "switched off":
        environment["UNDIFFUSE_NATIVE"] = "0"
    if reason == "no cache folder":
        environment["UNDIFFUSE_CACHE"] = "/dev/null/cache"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    with using("reference"):
        assert done.stdout.strip() == f"False {normal((1, 3), 5)[0].tolist()}"


def test_explain_says_native_where_it_is_native(built) -> None:
    x = torch.zeros(1, 4)
    assert explain(x).startswith("native")
    assert explain(x.double()).startswith("reference")
    with using("reference"):
        assert explain(x).startswith("reference: forced")
