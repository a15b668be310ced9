"""What only a device can show: the Triton kernels give the CPU's bits, also on ragged sizes."""

import pytest
import torch

from undiffuse import kernels as K

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA or HIP device"),
]
SHAPES = [(1, 1), (3, 5), (4, 3, 32, 32), (2, 100_003)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", [K.normal, K.uniform, K.rademacher])
def test_noise_is_the_same_on_every_device_bitwise(shape, draw):
    ids = torch.arange(7, 7 + shape[0])
    host = draw(shape, seed=-5, sample_ids=ids, draw=3, device="cpu")
    assert torch.equal(draw(shape, seed=-5, sample_ids=ids, draw=3, device="cuda").cpu(), host)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fast_normals_are_close_to_exact_ones(shape):
    exact = K.normal(shape, seed=2, device="cuda")
    with K.using(noise="fast"):
        fast = K.normal(shape, seed=2, device="cuda")
    assert (fast - exact).abs().max() < 1e-4  # hardware lg2, sin and cos at their stated bounds
    assert (fast - exact).abs().mean() < 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_is_the_same_on_every_device_bitwise(shape):
    x, out, old = (K.normal(shape, seed=s) for s in (1, 2, 3))
    table = torch.tensor([[0.2, -1.1, 0.0, 0.7, 0.9, 0.3, -0.2, 0.4]])
    row, draws = torch.tensor([0]), torch.tensor([[6]])
    seed = torch.tensor([9])
    steps = []
    for device in ("cpu", "cuda"):
        x_, out_, old_, table_, row_, draws_, seed_ = (
            v.to(device) for v in (x, out, old, table, row, draws, seed)
        )
        steps.append(
            K.linear_step(
                x_, out_, table_, row_, data=[old_], draws=draws_, seed=seed_, keep_data=True,
                next_dtype=torch.float32, clip=(-1.0, 1.0),
            )
        )  # fmt: skip
    for host, device in zip(*steps, strict=True):
        assert torch.equal(host, device.cpu())


def test_the_automatic_choice_is_triton():
    assert K.explain(torch.zeros(1, device="cuda")).startswith("triton")
