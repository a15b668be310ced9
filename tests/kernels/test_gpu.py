"""What only a device can show: the Triton kernels give the CPU's bits, also on ragged sizes."""

import pytest
import torch

from undiffuse import kernels as K
from undiffuse.bench.kernels.cases import gate

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
                x_,
                out_,
                table_,
                row_,
                data=[old_],
                draws=draws_,
                seed=seed_,
                keep_data=True,
                next_dtype=torch.float32,
                clip=(-1.0, 1.0),
            )
        )
    for host, device in zip(*steps, strict=True):
        assert torch.equal(host, device.cpu())


def test_named_steps_take_numbers_and_device_tensors_mixed():
    x, s = (K.normal((3, 1001), seed=i) for i in (1, 2))
    dt = torch.tensor([0.1, 0.2, 0.3])
    device = [v.cuda() for v in (x, s, dt)]
    pairs = [
        (
            K.euler_maruyama_step(x, s, -0.5, 1.2, dt),
            K.euler_maruyama_step(*device[:2], -0.5, 1.2, device[2]),
        ),
        (K.ddpm_step(x, s, dt, 0.9), K.ddpm_step(*device[:2], device[2], 0.9)),
        (K.langevin_step(x, s, step_size=dt), K.langevin_step(*device[:2], step_size=device[2])),
        (
            K.langevin_step(x, s, snr=0.2, alpha=dt),
            K.langevin_step(*device[:2], snr=0.2, alpha=device[2]),
        ),
    ]
    for host, found in pairs:
        torch.testing.assert_close(found.cpu(), host, rtol=1e-5, atol=1e-5)


def test_named_steps_do_not_make_the_host_wait():
    x, s = (K.normal((3, 1001), seed=i, device="cuda") for i in (1, 2))
    path = K.BrownianPath(x.shape, 3, device="cuda")
    calls = [
        lambda: K.euler_maruyama_step(x, s, -0.5, 1.2, 0.1),
        lambda: K.ddpm_step(x, s, 0.5, 0.9),
        lambda: K.langevin_step(x, s, snr=0.2),
        lambda: K.runge_kutta_step(x, [s, x], [0.5, 0.5], 0.1, error=[0.1, -0.1]),
        lambda: path.increment(0.1, 0.3),
    ]
    for call in calls:
        call()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in calls:
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("size", [1000, 40_000])  # both sizes of program
def test_quantiles_of_small_and_large_samples(size):
    x = 3 * K.normal((3, size), seed=1)
    assert torch.equal(K.dynamic_threshold(x.cuda(), 0.9).cpu(), K.dynamic_threshold(x, 0.9))


def test_the_automatic_choice_is_triton():
    assert K.explain(torch.zeros(1, device="cuda")).startswith("triton")


def test_every_kernel_passes_the_gate_of_the_benchmark():
    # the same sizes and formulas as `undiffuse bench kernels`: no speed is reported unless this
    # holds
    assert gate(torch.device("cuda")) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_as_the_reference_does(dtype):
    x, out = (K.normal((3, 1001), seed=s, dtype=dtype) for s in (1, 2))
    table, row = torch.tensor([[0.2, -1.1, 0.0, 1.0, 0.9, 0.3]]), torch.tensor([0])
    host = K.linear_step(x, out, table, row, keep_data=True)
    device = K.linear_step(*(v.cuda() for v in (x, out, table, row)), keep_data=True)
    for a, b in ((host.x, device.x), (host.data, device.data)):
        assert torch.equal(a, b.cpu())  # float32 inside, one rounding at the end


def test_more_than_2_to_the_31_elements():
    n = 2**31 + 4096 + 3  # offsets that do not fit in int32; 4.3 GB a tensor
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("this needs 20 GB of free memory")
    x = torch.zeros(1, n, dtype=torch.bfloat16, device="cuda")
    table = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]], device="cuda")
    row = torch.zeros(1, dtype=torch.int64, device="cuda")
    x[0, -1] = 3.0
    got = K.linear_step(x, x, table, row, draws=row.view(1, 1), seed=5).x[0, -4099:].cpu()
    tail = K.normal((1, 4099), 5, purpose="predictor", element0=n - 4099)[0]
    tail[-1] += 6.0  # x + D
    assert torch.equal(got, tail.bfloat16())
