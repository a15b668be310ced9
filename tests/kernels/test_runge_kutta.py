"""Runge-Kutta steps with their error norms, and dynamic thresholding, on every path."""

import math

import pytest
import torch
from torchdiffeq._impl.dopri5 import _DORMAND_PRINCE_SHAMPINE_TABLEAU as DOPRI5

from undiffuse.kernels import dynamic_threshold, runge_kutta_step, using

PATHS = ["reference", "triton"]


@pytest.fixture(params=PATHS)
def path(request):
    if request.param == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    with using(request.param):
        yield request.param


@pytest.mark.parametrize("shape", [(3, 1024), (2, 57), (20, 2), (2, 3, 5, 7)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_step_and_error_norm(path, shape, per_sample) -> None:
    torch.manual_seed(0)
    x, stages = torch.randn(shape), [torch.randn(shape) for _ in range(7)]
    b, e = DOPRI5.c_sol, DOPRI5.c_error
    dt = torch.rand(shape[0]).double() if per_sample else 0.3
    got = runge_kutta_step(x, stages, b, dt, error=e, rtol=1e-3, atol=1e-2)
    h = torch.as_tensor(dt).double().view(-1, *[1] * (len(shape) - 1))
    wide = torch.stack(stages).double()
    new = x.double() + h * torch.tensordot(b, wide, 1)
    err = h * torch.tensordot(e, wide, 1)
    scaled = err / (1e-2 + 1e-3 * torch.maximum(x.double().abs(), new.abs()))
    norm = scaled.reshape(shape[0], -1).square().mean(1).sqrt()
    assert torch.allclose(got.x.double(), new, atol=3e-6)
    assert torch.allclose(got.error.double(), norm, rtol=1e-5)
    stage = runge_kutta_step(x, stages, b, dt)
    assert stage.error is None and torch.equal(stage.x, got.x)


@pytest.mark.triton
def test_states_are_bitwise_equal_on_both_paths_and_alone() -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    x, stages = torch.randn(4, 1000), [torch.randn(4, 1000) for _ in range(4)]
    weights, dt = [0.1, 0.0, -0.7, 1.6], torch.tensor([0.1, 0.2, 0.3, 0.4])
    stages[1][:] = math.nan  # weight 0: not read
    expected = runge_kutta_step(x, stages, weights, dt, error=weights)
    with using("triton"):
        got = runge_kutta_step(x, stages, weights, dt, error=weights)
    assert torch.equal(got.x, expected.x) and expected.x.isfinite().all()
    alone = runge_kutta_step(x[2:3], [k[2:3] for k in stages], weights, dt[2:3], error=weights)
    assert torch.equal(alone.x[0], expected.x[2]) and torch.equal(alone.error[0], expected.error[2])


def test_double_precision_and_errors() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    step = runge_kutta_step(x, [x, 2 * x], [0.5, 0.25], 0.1)
    assert torch.allclose(step.x, x + 0.1, rtol=1e-15)
    with pytest.raises(ValueError, match="one number per stage"):
        runge_kutta_step(x, [x], [0.5, 0.25], 0.1)
    with pytest.raises(ValueError, match="dt"):
        runge_kutta_step(x, [x], [0.5], torch.ones(3))


@pytest.mark.parametrize("n", [1, 2, 3, 57, 3000])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 0.995, 1.0])
def test_threshold_is_the_quantile_of_the_magnitudes(path, n, ratio) -> None:
    torch.manual_seed(n)
    x = torch.randn(3, n) * torch.tensor([[0.1], [2.0], [30.0]])
    got = dynamic_threshold(x, ratio)
    s = x.abs().quantile(ratio, dim=1, keepdim=True).clamp(min=1)
    assert torch.allclose(got, x.clamp(-s, s) / s, rtol=1e-6)
    limited = dynamic_threshold(x, ratio, maximum=1.5)
    s = s.clamp(max=1.5)
    assert torch.allclose(limited, x.clamp(-s, s) / s, rtol=1e-6)


def test_threshold_with_ties_zeros_and_image_shapes(path) -> None:
    x = torch.tensor([0.0, -0.0, 2.0, -2.0, 2.0, 2.0, 5.0, 0.0]).view(1, 2, 4).repeat(2, 1, 1)
    x[1] *= 10
    for ratio in (0.0, 0.3, 0.5, 0.6, 0.8, 0.9, 1.0):
        s = x.flatten(1).abs().quantile(ratio, dim=1).clamp(min=1).view(2, 1, 1)
        assert torch.allclose(dynamic_threshold(x, ratio), x.clamp(-s, s) / s, rtol=1e-6)


@pytest.mark.triton
def test_threshold_paths_are_bitwise_equal_for_half_and_full_precision() -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    for dtype in (torch.float32, torch.float16):
        x = (3 * torch.randn(2, 1001)).to(dtype)
        with using("triton"):
            got = dynamic_threshold(x, 0.9)
        assert torch.equal(got, dynamic_threshold(x, 0.9))


def test_threshold_errors() -> None:
    with pytest.raises(ValueError, match="ratio"):
        dynamic_threshold(torch.zeros(1, 2), 1.5)
    with pytest.raises(ValueError, match="maximum"):
        dynamic_threshold(torch.zeros(1, 2), maximum=0.5)
    assert dynamic_threshold(torch.zeros(0, 2)).shape == (0, 2)


def test_opcheck() -> None:
    x = torch.randn(2, 6)
    for rows in (1, 2):
        args = (x, [x, x], torch.randn(rows, 2), torch.ones(2), 1e-3, 1e-3)
        torch.library.opcheck(torch.ops.undiffuse.runge_kutta_step.default, args)
    torch.library.opcheck(torch.ops.undiffuse.dynamic_threshold.default, (x, 0.9, 2.0))
