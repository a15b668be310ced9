"""Requests of strangers in one batch: each ends in the bits that it has alone, whoever comes and
goes beside it. The networks work element by element, so that their rounding ignores the batch."""

import asyncio
import threading
import warnings
from concurrent.futures import CancelledError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import undiffuse as ud
from undiffuse.kernels import dispatch, linear_step
from undiffuse.solvers.batching.merged import Common

from ..operators import Operators

SHAPE = (3, 2)
DATA = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0))
GRIDS = ["log_snr", "uniform", "karras", "blend"]
SPECTRAL = ud.solvers.GaussianPreconditioned(ud.solvers.Statistics.of(DATA, "diagonal"))
SOLVERS = [*ud.solvers.names(), SPECTRAL]


def net(x, t, y=None):
    scale = 0.5 + t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x) * scale * (1 if y is None else y.to(x.dtype).reshape(-1, 1, 1))


MODEL = ud.Denoiser(net, ud.VP())
NULL = {"y": torch.tensor([0.7])}


def alone(request, model=MODEL):
    """The same run by `ud.sample`."""
    request = dict(request)
    shape, w = request.pop("shape"), request.pop("guidance", None)
    if w is not None:
        model = ud.guidance.cfg(model, w, uncond=NULL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # coarse grids diverge, to the same bits
        return ud.sample(model, shape, request.pop("solver"), **request)


@st.composite
def requests(draw):
    size = draw(st.integers(1, 3))
    found = {
        "shape": (size, *SHAPE),
        "solver": draw(st.sampled_from(SOLVERS)),
        "steps": draw(st.integers(2, 6)),
        "grid": draw(st.sampled_from(GRIDS)),
        "seed": draw(st.integers(0, 5)),
        "sample_ids": draw(st.none() | st.just([7, 3, 9][:size])),
    }
    if draw(st.booleans()):
        found["x_init"] = ud.kernels.normal(found["shape"], draw(st.integers(0, 9)))
    if draw(st.booleans()):
        y = torch.linspace(0.5, 1.5, size)
        found["cond"] = {"y": y if draw(st.booleans()) else y[:1]}
        found["guidance"] = draw(st.sampled_from([None, 0.0, 1.0, 1.5, 3.0]))
    return found


@given(st.lists(st.tuples(st.integers(0, 4), requests()), min_size=1, max_size=6), st.data())
@settings(max_examples=20, deadline=None)
def test_each_request_ends_in_the_bits_it_has_alone(arrivals, data):
    """Arriving while others are under way, waiting for room, some cancelled in the middle."""
    batch, running = ud.ContinuousBatch(MODEL, 7, uncond=NULL), []
    for wait, request in arrivals:
        for _ in range(wait):
            batch.step()
        running.append((request, batch.add(**request)))
    if len(running) > 2 and data.draw(st.booleans()):
        running[1][1].cancel()
    batch.run()
    assert len(batch) == 0
    for request, got in running:
        if not got.cancelled():
            assert torch.equal(got.result(), alone(request))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_state_and_network(dtype):
    batch = ud.ContinuousBatch(MODEL, 8, uncond=NULL, dtype=dtype)
    asked = [
        {"shape": (2, *SHAPE), "solver": "dpmpp-2m-sde", "steps": 4},
        {
            "shape": (1, *SHAPE), "solver": "unipc-3", "steps": 5, "guidance": 1.7,
            "cond": {"y": torch.ones(1)},
        },
        {"shape": (1, *SHAPE), "solver": "ddpm", "steps": 6},
    ]  # fmt: skip
    running = [batch.add(**request) for request in asked]
    batch.run()
    for request, got in zip(asked, running, strict=True):
        want = alone({**request, "dtype": dtype})
        assert torch.equal(got.result().to(dtype), want)


@pytest.mark.parametrize(
    ("path", "dtype"),
    [
        ("auto", torch.float32),
        ("reference", torch.float32),
        ("triton", torch.float32),
        ("auto", torch.float64),
    ],
)
def test_columns_of_zeros_change_no_bit(path, dtype):
    """Every table beside the widest of all, with NaN in the memory that only others read."""
    if path == "triton" and not dispatch.interpreted():
        pytest.skip("Triton takes CPU tensors in its interpreter alone")
    # the interpreter takes seconds a launch
    names = ["ddim", "unipc-4", "dpmpp-sde"] if path == "triton" else ud.solvers.names()
    samplers = [ud.Sampler(MODEL, n, 5, "log_snr", dtype=dtype) for n in names]
    common = Common(MODEL)
    common.hold({(s.plan.key, None): s for s in samplers})
    for sampler in samplers:
        plan, offset = sampler.plan, common.offsets[sampler.plan.key, None]
        draw = iter(range(100))

        def made():
            return ud.kernels.normal((2, 5), 1, draw=next(draw), dtype=dtype)  # noqa: B023

        x, out = made(), made()
        states, datas = ([made() for _ in range(n)] for n in (plan.states, plan.datas))
        nan = torch.full_like(x, float("nan"))
        for i in range(sampler.nfe)[:: 4 if path == "triton" else 1]:
            with ud.kernels.using(path):
                narrow = linear_step(
                    x, out, plan.table, torch.tensor([i]), states=states, data=datas,
                    draws=plan.draws, seed=3, next_dtype=dtype, keep_data=True,
                )  # fmt: skip
                wide = linear_step(
                    x, out, common.plan.table, torch.tensor([offset + i]),
                    states=states + [nan] * (common.plan.states - plan.states),
                    data=datas + [nan] * (common.plan.datas - plan.datas),
                    draws=common.plan.draws, seed=3, next_dtype=dtype, keep_data=True,
                )  # fmt: skip
            for a, b in zip(narrow, wide, strict=True):
                assert torch.equal(a, b)


def test_one_network_call_and_one_step_a_tick_and_reads_only_when_a_run_ends():
    calls = []

    def counted(x, t):
        calls.append(len(x))
        return x * 0.5

    batch = ud.ContinuousBatch(ud.Denoiser(counted, ud.VP()), 64)
    for k, solver in enumerate(["ddim", "unipc-3", "dpmpp-2m-sde", "heun", "seeds-3"]):
        batch.add((2, *SHAPE), solver, 6 + k)
    batch.step()  # admits them
    calls.clear()
    with Operators() as counter:
        for _ in range(4):
            assert batch.step() == []
    assert calls == [10] * 4
    assert sum("undiffuse" in name for name in counter.seen) == 4
    assert not [n for n in counter.seen if "_local_scalar_dense" in n or "item" in n]


def test_matrix_products_round_and_no_more():
    """float32 products of 256 terms round to about 256 eps = 3e-5 at worst in another blocking."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 256), torch.nn.SiLU(), torch.nn.Linear(256, 6)
    inner = torch.nn.Sequential(*layers).requires_grad_(False)
    model = ud.Denoiser(lambda x, t: inner(x.flatten(1)).reshape(x.shape), ud.VP(), "v")
    asked = [
        {"shape": (1 + k, *SHAPE), "solver": name, "steps": 6, "seed": k}
        for k, name in enumerate(["dpmpp-2m", "ddpm", "heun"])
    ]
    batch = ud.ContinuousBatch(model, 16)
    running = [batch.add(**request) for request in asked]
    batch.run()
    for request, got in zip(asked, running, strict=True):
        want = alone(request, model)
        assert (got.result() - want).abs().max() < 1e-4 * want.abs().max()


def test_a_request_that_fails_is_alone_with_it():
    def bad(x, t, y):
        return torch.where(y[:, None, None] > 0, torch.tanh(x), float("nan"))

    batch = ud.ContinuousBatch(ud.Denoiser(bad, ud.VP()), 8)
    fine = batch.add((2, *SHAPE), "dpmpp-2m", 5, cond={"y": torch.ones(2)})
    half = batch.add((2, *SHAPE), "ddpm", 4, cond={"y": torch.tensor([1.0, -1.0])})
    batch.run()
    want = alone(
        {"shape": (2, *SHAPE), "solver": "dpmpp-2m", "steps": 5, "cond": {"y": torch.ones(2)}},
        ud.Denoiser(bad, ud.VP()),
    )
    assert torch.equal(fine.result(), want)
    with pytest.raises(ud.SolverError, match="NaN or Inf in sample 1 of the request, 1 of 2") as e:
        half.result()
    assert e.value.status.tolist() == [0, 1]
    assert torch.isfinite(e.value.result[0]).all()


def test_an_error_of_the_network_leaves_all_as_they_were():
    broken = [False]

    def net(x, t):
        if broken[0]:
            raise RuntimeError("out of memory")
        return torch.tanh(x)

    model = ud.Denoiser(net, ud.VP())
    batch = ud.ContinuousBatch(model, 4)
    request = {"shape": (2, *SHAPE), "solver": "dpmpp-2m-sde", "steps": 5}
    got = batch.add(**request)
    batch.step()
    broken[0] = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            batch.step()
    broken[0] = False
    assert torch.equal(got.result(), alone(request, model))


def test_who_comes_first_is_served_first():
    batch = ud.ContinuousBatch(MODEL, 4)
    sizes, ended = [3, 2, 1, 4], []
    running = [batch.add((n, *SHAPE), "ddim", 3) for n in sizes]
    while len(batch):
        for request in batch.step():
            ended.append(running.index(request))
    # 3 alone, since 2 does not fit beside it and 1 does not overtake; then 2 + 1; then 4
    assert ended == [0, 1, 2, 3] and batch.ticks == 9


def test_cancelled_requests_make_room():
    batch = ud.ContinuousBatch(MODEL, 2)
    long, short = batch.add((2, *SHAPE), "ddim", 50), batch.add((2, *SHAPE), "ddim", 3)
    batch.step()
    assert not short.done() and long.rows == 1
    assert long.cancel() and long.cancelled()
    assert short.result().shape == (2, *SHAPE) and batch.ticks == 4
    with pytest.raises(CancelledError):
        long.result()
    assert not short.cancel() and len(batch) == 0


def test_results_come_to_threads_and_to_coroutines():
    batch = ud.ContinuousBatch(MODEL, 8)
    asked = [{"shape": (1, *SHAPE), "solver": "ddpm", "steps": 3 + k, "seed": k} for k in range(8)]
    got = [None] * len(asked)

    def work(k):
        got[k] = batch.add(**asked[k]).result()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(x, alone(r)) for x, r in zip(got, asked, strict=True))

    async def serve():
        futures = [asyncio.wrap_future(batch.add(**request)) for request in asked]
        while len(batch):
            await asyncio.to_thread(batch.step)
        return await asyncio.gather(*futures)

    assert all(torch.equal(x, y) for x, y in zip(asyncio.run(serve()), got, strict=True))


def test_a_result_that_is_late_says_so():
    batch = ud.ContinuousBatch(MODEL, 8)
    request = batch.add((1, *SHAPE), "ddim", 5)
    with pytest.raises(TimeoutError):
        request.result(timeout=0)
    assert request.exception() is None and request.done()


def test_conditions_that_cannot_be_joined_are_called_apart():
    calls = []

    def told(x, t, y=None):
        calls.append((len(x), None if y is None else len(y)))
        return torch.tanh(x) * (1 if y is None else y[:, None, None])

    model = ud.Denoiser(told, ud.VP())
    batch = ud.ContinuousBatch(model, 8)
    asked = [
        {"shape": (1, *SHAPE), "solver": "ddim", "steps": 3, "cond": {"y": torch.tensor([2.0])}},
        {"shape": (2, *SHAPE), "solver": "ddim", "steps": 3},
        {"shape": (2, *SHAPE), "solver": "ddim", "steps": 3, "cond": {"y": torch.tensor([0.5])}},
    ]
    running = [batch.add(**request) for request in asked]
    batch.step()
    assert calls == [(3, 3), (2, None)]
    batch.run()
    assert (batch.ticks, batch.calls) == (3, 6)
    for request, got in zip(asked, running, strict=True):
        assert torch.equal(got.result(), alone(request, model))


@pytest.mark.parametrize("uncond", [{"label": torch.zeros(1)}, {"label": None}])
def test_guided_requests_spend_the_calls_that_samples_spend(uncond):
    """None cannot be joined with a tensor: such guidance makes two calls a step."""

    def net(x, t, label):
        return torch.tanh(x) * (0.5 if label is None else label[:, None])

    model = ud.Denoiser(net, ud.VP(), predicts="noise")
    cond = {"label": torch.ones(2)}
    batch = ud.ContinuousBatch(model, 8, uncond=uncond)
    request = batch.add((2, 3), "ddpm", nfe=6, seed=4, cond=cond, guidance=3.0)
    guided = ud.guidance.cfg(model, 3.0, uncond=uncond)
    want = ud.sample(guided, (2, 3), "ddpm", nfe=6, seed=4, cond=cond, return_result=True)
    assert torch.equal(request.result(), want.x) and batch.calls == want.nfe == 6


def test_models_made_of_models_know_the_time_of_every_row():
    """A guided model for all requests, whose guidance stands aside at some times."""
    model = ud.guidance.cfg(MODEL, 2.0, uncond=NULL, interval=(0.1, 2.0))
    batch = ud.ContinuousBatch(model, 8)
    asked = [
        {"shape": (1, *SHAPE), "solver": s, "steps": n, "cond": {"y": torch.ones(1)}}
        for s, n in (("dpmpp-2m", 5), ("ddpm", 7), (SPECTRAL, 4))
    ]
    running = [batch.add(**request) for request in asked]
    batch.run()
    for request, got in zip(asked, running, strict=True):
        assert torch.equal(got.result(), alone(request, model))


def test_tables_that_nobody_needs_are_dropped(monkeypatch):
    monkeypatch.setattr("undiffuse.solvers.batching.merged.MOST_ROWS", 40)
    batch, running = ud.ContinuousBatch(MODEL, 64), []
    for k in range(12):
        request = {"shape": (1, *SHAPE), "solver": "ddpm", "steps": 6 + k}
        running.append((request, batch.add(**request)))
        for _ in range(5):
            batch.step()
        assert batch._groups[""].loop.nfe <= 80
    batch.run()
    for request, got in running:
        assert torch.equal(got.result(), alone(request))


def test_what_does_not_fit_is_refused_when_it_is_added():
    def refuse(x, t, y=None):
        raise AssertionError("the network was called")

    batch = ud.ContinuousBatch(ud.Denoiser(refuse, ud.VP()), 4)
    batch.add((1, *SHAPE), "ddim", 3)
    y = {"y": torch.ones(3)}
    for arguments, words in (
        ({"shape": (5, *SHAPE)}, "takes 5 rows of a network call and max_batch is 4"),
        ({"shape": (3, *SHAPE), "cond": y, "guidance": 2.0, "uncond": y}, "takes 6 rows"),
        ({"shape": (1, 4)}, r"shape must be \(B, 3, 2\) while requests of it are at work"),
        ({"solver": "dimm"}, "did you mean 'ddim'"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, "seed"),
        ({"cond": {"y": torch.ones(3)}}, r"cond\['y'\] has length 3"),
        ({"guidance": 2.0}, "no condition to guide towards"),
        ({"guidance": float("nan")}, "guidance"),
        ({"uncond": y}, "uncond is for guided requests"),
        ({"x_init": torch.zeros(1, 2)}, "x_init must be a tensor of shape"),
    ):
        with pytest.raises(ValueError, match=words):
            batch.add(**{"shape": (1, *SHAPE), **arguments})
    with pytest.raises(TypeError, match="model must be a Denoiser"):
        ud.ContinuousBatch(ud.VP())
    with pytest.raises(ValueError, match="max_batch must be >= 1"):
        ud.ContinuousBatch(MODEL, 0)
    assert len(batch) == 1


@pytest.mark.gpu
def test_a_device_gives_the_bits_of_the_cpu_and_ticks_never_wait_for_it():
    """The host reads the device only where a run ends."""
    asked = [
        {"shape": (2, *SHAPE), "solver": "dpmpp-2m-sde", "steps": 8, "seed": 1},
        {"shape": (1, *SHAPE), "solver": "unipc-3", "steps": 9, "seed": 2},
        {"shape": (1, *SHAPE), "solver": "heun", "steps": 7, "seed": 3},
    ]

    def simple(x, t):  # sums and products, which round alike everywhere
        return x * t[:, None, None]

    model = ud.Denoiser(simple, ud.VP())
    batch = ud.ContinuousBatch(model, 8, device="cuda")
    running = [batch.add(**request) for request in asked]
    batch.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            assert batch.step() == []
    finally:
        torch.cuda.set_sync_debug_mode("default")
    batch.run()
    for request, got in zip(asked, running, strict=True):
        assert torch.equal(got.result().cpu(), alone(request, model))
