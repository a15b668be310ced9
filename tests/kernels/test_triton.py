"""The Triton kernels in the interpreter, on poisoned memory, bit by bit against the reference.

The interpreter costs per operation, not per element: few programs, odd shapes. On a machine with
a GPU it is off, and test_gpu.py runs the same comparisons there.
"""

import numpy as np
import pytest
import torch

from undiffuse.kernels import (
    BrownianPath,
    langevin_step,
    linear_step,
    normal,
    philox4x32,
    rademacher,
    runge_kutta_step,
    uniform,
    using,
)

from .test_linear import operands, step

interpreter_only = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU"
)
pytestmark = [pytest.mark.triton, interpreter_only]


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an element a mask forgets to write cannot pass by luck."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def poisoned(*args, make=make, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out.fill_(-1)

        monkeypatch.setattr(torch, name, poisoned)


SHAPES = [(1, 4096), (3, 3001), (2, 5, 3, 7), (1000, 2), (5, 1), (7, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("draw", [normal, uniform, rademacher])
def test_noise_is_bitwise_equal(draw, shape) -> None:
    ids = torch.arange(shape[0]) * 2**33 + 5
    seeds = torch.arange(shape[0]) * 2**40 - 3
    for seed, sample_ids in ((2**63 - 1, None), (seeds, ids)):
        expected = draw(shape, seed, sample_ids, draw=2**31 + 7, subdraw=200)
        with using("triton"):
            got = draw(shape, seed, sample_ids, draw=2**31 + 7, subdraw=200)
        assert torch.equal(got, expected)


def test_noise_shards_are_bitwise_equal() -> None:
    whole = normal((2, 1000), 4)
    with using("triton", noise="fast"):  # the interpreter has no hardware approximations
        parts = [normal((2, n), 4, element0=e) for e, n in ((0, 4), (4, 9), (13, 987))]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_device_philox_gives_the_known_answer() -> None:
    from undiffuse.kernels.triton_noise import noise_kernel  # noqa: F401  (loads the module)

    # signs and uniforms read the raw words: one whole counter of the zero key, purpose "initial"
    words = [int(w) for w in philox4x32([torch.tensor(0)] * 4, [torch.tensor(0)] * 2)]
    assert words[0] == 0x6627E8D5
    with using("triton"):
        u = uniform((1, 4), 0, purpose="initial")
    expected = [((w >> 9) + 0.5) * 2.0**-23 for w in words]
    assert u[0].tolist() == expected


CASES = {
    "plain": {},
    "euler-maruyama": {"noises": 1},
    "guided 2m": {"pair": True, "data": 1},
    "everything": {"pair": True, "states": 3, "data": 2, "noises": 2},
}


@pytest.mark.parametrize("shape", [(3, 1024), (3, 57), (200, 2)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("each", [False, True], ids=["scalars", "spectral"])
def test_linear_step_is_bitwise_equal(case, shape, per_sample, each) -> None:
    o = operands(shape, **CASES[case], each=each)
    row = torch.arange(shape[0]) % 5 if per_sample else torch.tensor([3])
    options = {"seed": 6, "keep_data": True, "next_dtype": torch.float16, "clip": (-0.6, 0.8)}
    if per_sample:
        options["sample_ids"] = torch.arange(shape[0]) + 2**40
    expected = step(o, row, **options)
    with using("triton"):
        got = step(o, row, **options)
    for a, e in zip(got, expected, strict=True):
        assert a.dtype == e.dtype and torch.equal(a, e)
    with using("triton"):
        alone = step(o, row, seed=6, sample_ids=options.get("sample_ids"))
    assert alone.data is None and alone.x_in is None
    assert torch.equal(alone.x, step(o, row, seed=6, sample_ids=options.get("sample_ids")).x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_operands(dtype) -> None:
    o = operands((3, 130), pair=True, states=1, data=1, noises=1)
    o.out = tuple(v.to(dtype) for v in o.out)
    expected = step(o, torch.tensor([1]), next_dtype=dtype)
    with using("triton"):
        got = step(o, torch.tensor([1]), next_dtype=dtype)
    assert torch.equal(got.x, expected.x)
    # the interpreter truncates to bfloat16 where hardware rounds: one unit in the last place
    ulp = 0.0 if dtype == torch.float16 else 2.0**-7
    assert torch.allclose(got.x_in.float(), expected.x_in.float(), rtol=ulp, atol=0)
    o.x = o.x.to(dtype)
    with using("triton"):
        got = step(o, torch.tensor([1]))
    assert got.x.dtype == dtype
    assert torch.allclose(got.x.float(), step(o, torch.tensor([1])).x.float(), rtol=ulp, atol=0)


def test_strides_and_an_empty_batch() -> None:
    o = operands((2, 3, 4, 5), states=1, data=1, noises=1)
    expected = step(o, torch.tensor([3])).x
    o.x = o.x.to(memory_format=torch.channels_last)
    o.states = [o.states[0].transpose(1, 3).contiguous().transpose(1, 3)]
    empty = operands((0, 3), noises=1)
    with using("triton"):
        assert torch.equal(step(o, torch.tensor([3])).x, expected)
        assert step(empty, torch.tensor([0])).x.shape == (0, 3)


@pytest.mark.parametrize("rows", [[1], [1, 1]])
def test_zero_coefficients_hide_memory_and_outputs_show_their_nan(rows) -> None:
    o = operands((2, 9), pair=True, states=1, data=1, noises=1)
    o.table[1, [2, 5, 7, 8]] = 0.0
    expected = step(o, torch.tensor(rows)).x
    o.states[0][:] = o.data[0][:] = float("nan")
    with using("triton"):
        assert torch.equal(step(o, torch.tensor(rows)).x, expected)
        o.out[1][0, 3] = float("nan")
        for clip in (None, (-1.0, 1.0)):
            nan = step(o, torch.tensor(rows), clip=clip).x.isnan()
            assert nan[0, 3] and nan.sum() == 1


@pytest.mark.parametrize("block", [4, 64])
def test_values_do_not_depend_on_the_block(block, monkeypatch) -> None:
    from undiffuse.kernels import triton_launch

    o = operands((3, 333), noises=1)
    expected = step(o, torch.tensor([1])).x
    monkeypatch.setattr(triton_launch.triton, "next_power_of_2", lambda n: block)
    with using("triton"):
        assert torch.equal(step(o, torch.tensor([1])).x, expected)


def test_gradients_pass_through_the_triton_forward() -> None:
    x = torch.randn(2, 10, requires_grad=True)
    table, row = torch.tensor([[0.5, 2.0, 0.0, 1.0, 0.25, -1.0]]), torch.tensor([0])
    with using("triton"):
        linear_step(x, 3 * x, table, row).x.sum().backward()
    # x' = 1/4 x - (x/2 + 6 x)
    assert np.allclose(x.grad.numpy(), 0.25 - 6.5)


@pytest.mark.parametrize("path", ["triton", "auto"])
def test_small_operands_may_have_any_strides(path) -> None:
    # the kernels read them through bare pointers: every second seed would be the wrong one
    seeds, ids = torch.arange(8)[::2], torch.arange(12)[::3]
    x, snr = normal((4, 10), 1), torch.tensor([0.1, 9.0, 0.2, 9.0, 0.3, 9.0, 0.4, 9.0])[::2]
    table, draws = normal((7, 3), 2).T, torch.tensor([[1, 2, 3]]).T
    row, dt = torch.tensor([2, 9, 1, 9, 0, 9, 2, 9])[::2], torch.tensor(0.1).expand(4)

    def results() -> list[torch.Tensor]:
        owned = {"seed": seeds, "sample_ids": ids}
        return [
            normal((4, 3), seeds, ids),
            linear_step(x, x, table, row, draws=draws, **owned).x,
            linear_step(x, x, table[:, :6], torch.tensor([1]).expand(4)).x,
            langevin_step(x, x, snr=snr, **owned),
            BrownianPath((4, 5), **owned).increment(0.1, 0.4),
            runge_kutta_step(x, [x], [0.5], dt).x,
        ]

    with using("reference"):
        expected = results()
    with using(path):
        got = results()
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
