"""The loop: invariances, ownership, cost and failures."""

import inspect
import threading
import typing

import numpy as np
import pytest
import torch

import undiffuse as ud

from ..operators import Operators

TARGET = ud.targets.GaussianMixture([1, 2], [[0.0, 1.0], [2.0, -1.0]], [0.05, 0.2])
EVENT = (3, 4, 5)
SOLVERS = ["ddim", "dpmpp-2m", "dpmpp-2m-sde", "heun", "heun-churn", "ddpm", "euler-maruyama"]


def elementwise(process=None):
    """A network that is a function of each element alone: its rounding ignores the batch."""
    process = process or ud.VP()

    def net(x, t):
        return torch.tanh(x) * (0.5 + t.reshape(-1, *[1] * (x.ndim - 1)))

    return ud.Denoiser(net, process, predicts="noise")


@pytest.mark.filterwarnings("ignore:.* diverges on")
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_depends_on_its_seed_and_id_alone_bitwise(solver):
    def run(ids, seed=7):
        return ud.sample(
            elementwise(), (len(ids), *EVENT), solver=solver, steps=6, seed=seed, sample_ids=ids
        )

    whole = run([0, 1, 2, 3, 4])
    assert torch.equal(run([3])[0], whole[3])  # alone
    assert torch.equal(run([4, 2, 0, 1, 3]), whole[[4, 2, 0, 1, 3]])  # in another order
    assert torch.equal(torch.cat([run([0, 1]), run([2, 3, 4])]), whole)  # in two shards
    seeds = torch.tensor([9, 7, 9, 9, 9])
    assert torch.equal(run([0, 1, 2, 3, 4], seeds)[1], whole[1])  # with a seed of its own
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(run([0], seed=8)[0], whole[0])


def test_with_a_matrix_product_inside_the_batch_moves_only_the_last_bits():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 64))
    model = ud.Denoiser(lambda x, t: net(x), ud.VP(), predicts="v")
    whole = ud.sample(model, (33, 64), solver="dpmpp-2m", steps=10)
    alone = ud.sample(model, (1, 64), solver="dpmpp-2m", steps=10, sample_ids=[17])
    # a float32 product of 256 terms rounds to about 256 eps = 3e-5 at worst in another blocking
    assert (alone[0] - whole[17]).abs().max() < 3e-5 * whole[17].abs().max()


def test_the_memory_format_does_not_matter():
    x = ud.kernels.normal((2, 3, 8, 8), seed=1)
    strided = x.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    a, b = (ud.sample(elementwise(), x.shape, "ddpm", 5, x_init=v) for v in (x, strided))
    assert torch.equal(a, b)

    def channels_last(x, t):
        return torch.tanh(x).to(memory_format=torch.channels_last)

    model = ud.Denoiser(channels_last, ud.VP())
    plain = ud.Denoiser(lambda x, t: torch.tanh(x), ud.VP())
    assert torch.equal(ud.sample(model, x.shape, "heun", 4), ud.sample(plain, x.shape, "heun", 4))


@pytest.mark.filterwarnings("ignore:.* diverges on")
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_caller_who_owns_the_loop_gets_the_same_sample(solver):
    model = elementwise(ud.EDM())
    sampler = ud.Sampler(model, solver, steps=5)
    state = sampler.init((4, 6), seed=2)
    calls = 0
    while not state.done:
        assert state.t_in.shape == (4,)
        state = sampler.tell(state, model.net(state.x_in, state.t_in))
        calls += 1
    assert calls == sampler.nfe
    assert torch.equal(state.x, ud.sample(model, (4, 6), solver=solver, steps=5, seed=2))
    with pytest.raises(ValueError, match="run is over"):
        sampler.tell(state, state.x)


def test_a_process_is_enough_for_an_owned_loop():
    sampler = ud.Sampler(ud.Flow(), "dpmpp-2m", steps=4, predicts="data")
    state = sampler.init((2, 3), seed=0)
    while not state.done:
        state = sampler.tell(state, torch.full((2, 3), 0.25))
    # the data are known to be 0.25: the last jump lands on them
    torch.testing.assert_close(state.x, torch.full((2, 3), 0.25))


def test_states_can_be_kept_forked_and_shared_between_threads():
    model = elementwise()
    sampler = ud.Sampler(model, "dpmpp-2m-sde", steps=6)
    state = sampler.init((2, 5), seed=1)
    for _ in range(3):
        state = sampler.tell(state, model.net(state.x_in, state.t_in))
    kept, results = state, []

    def finish():
        s = kept
        while not s.done:
            s = sampler.tell(s, model.net(s.x_in, s.t_in))
        results.append(s.x)

    threads = [threading.Thread(target=finish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = ud.sample(model, (2, 5), "dpmpp-2m-sde", 6, seed=1)
    assert all(torch.equal(x, expected) for x in results) and len(results) == 4


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddpm", "heun-churn"])
def test_one_step_operator_and_no_host_read_between_two_network_calls(solver):
    sampler = ud.Sampler(elementwise(), solver, steps=8)
    state = sampler.init((2, 6), seed=0)
    with Operators() as counter:
        while not state.done:
            state = sampler.tell(state, state.x_in)
    steps = [name for name in counter.seen if "undiffuse" in name]
    assert len(steps) == sampler.nfe
    reads = [n for n in counter.seen if "_local_scalar_dense" in n or "item" in n]
    assert reads == []
    # all else is a view: picking the row and spreading the time over the batch
    views = ("select", "slice", "expand", "view", "alias", "detach", "undiffuse")
    assert [n for n in counter.seen if not any(v in n for v in views)] == []


def test_network_calls_are_what_the_tableau_says():
    calls = []

    def net(x, t):
        calls.append(float(t[0]))
        return torch.zeros_like(x)

    for solver in SOLVERS:
        calls.clear()
        r = ud.sample(ud.Denoiser(net, ud.VP()), (1, 2), solver=solver, steps=7, return_result=True)
        assert r.nfe == len(calls) == len(r.times)
        assert calls == pytest.approx(r.times.tolist(), rel=1e-6)


def test_states_are_float32_at_least_and_float64_on_request():
    model = elementwise()
    assert ud.sample(model, (1, 2), steps=3).dtype == torch.float32
    assert ud.sample(model, (1, 2), steps=3, dtype=torch.float64).dtype == torch.float64
    seen = []

    def net(x, t):
        seen.append((x.dtype, t.dtype))
        return x

    sampler = ud.Sampler(ud.Denoiser(net, ud.VP()), steps=3, dtype=torch.bfloat16)
    state = sampler.init((1, 2))
    while not state.done:
        state = sampler.tell(state, net(state.x_in, state.t_in))
    assert state.x.dtype == torch.float32
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    told = []
    model = ud.Denoiser(lambda x, t: told.append(float(t[0])) or x, ud.VP(), time="index")
    ud.sample(model, (1, 2), "ddim", 4, "trailing", dtype=torch.bfloat16)
    assert told == pytest.approx([999, 749, 499, 249], abs=1e-3)  # bfloat16 would say 1000, 748


def test_the_result_has_the_type_that_was_asked_for_and_no_latent_is_cut_short():
    model = elementwise()
    assert ud.sample(model, (1, 2), steps=3, dtype=torch.float16).dtype == torch.float16
    start = torch.randn(1, 2, dtype=torch.float64)
    assert ud.sample(model, (1, 2), steps=3, x_init=start).dtype == torch.float64
    net = torch.nn.Linear(2, 2).double()
    wide = ud.Denoiser(type("Net", (torch.nn.Module,), {})(), ud.VP())
    wide.net.inner, wide.net.forward = net, lambda x, t: net(x)
    assert ud.sample(wide, (1, 2), steps=3).dtype == torch.float64


@pytest.mark.parametrize("seed", [np.int64(7), torch.tensor([7, 7], dtype=torch.int32)])
def test_any_integer_is_a_seed(seed):
    assert torch.equal(
        ud.sample(elementwise(), (2, 2), steps=3, seed=seed),
        ud.sample(elementwise(), (2, 2), steps=3, seed=7),
    )


def test_wrong_kinds_of_argument_are_named():
    model = ud.Denoiser(refuse, ud.VP())
    for call, words in (
        (lambda: ud.sample(ud.VP(), (1, 2)), "model must be a Denoiser; got VP"),
        (lambda: ud.sample(model, 4), r"shape must be \(batch, ...\)"),
        (lambda: ud.sample(model, (1, 2), ud.solvers.DDIM), "solver must be a name or an object"),
        (lambda: ud.sample(model, (1, 2), grid=object()), "grid must be a sequence of times"),
        (lambda: ud.solvers.DDIM().tableau(ud.VP(), "karras"), "ud.solvers.times"),
        (lambda: ud.sample(model, (1, 2), seed=1.5), "seed must be an int"),
    ):
        with pytest.raises(TypeError, match=words):
            call()
    with pytest.raises(ValueError, match="x_init must be a tensor"):
        ud.sample(model, (1, 2), x_init=[[0.0, 0.0]])
    with pytest.raises(TypeError, match="net must return one tensor"):
        ud.sample(ud.Denoiser(lambda x, t: None, ud.VP()), (1, 2))
    with pytest.raises(ValueError, match="t_max=80"):
        ud.sample(ud.Denoiser(refuse, ud.EDM()), (1, 2), grid="trailing")


def test_float64_and_float32_runs_agree_to_float32():
    for solver in ("dpmpp-2m", "heun", "ddpm"):
        model = TARGET.denoiser(ud.VP())
        x32 = ud.sample(model, (64, 2), solver, 20, seed=3)
        x64 = ud.sample(model, (64, 2), solver, 20, seed=3, dtype=torch.float64)
        assert (x32 - x64).abs().median() < 1e-5


def test_noise_dialled_up_still_gives_the_target():
    # mean log density of the samples against its exact value under the target, -H
    exact = TARGET.log_prob(TARGET.sample(40_000)).mean()
    for solver, steps in (("heun", 120), ("ddpm", 800), ("dpmpp-2m-sde", 150), ("heun-churn", 150)):
        x = ud.sample(TARGET.denoiser(ud.EDM()), (8_000, 2), solver=solver, steps=steps)
        # standard error of a mean over 8,000 draws of log p, whose deviation is about 1
        assert float(TARGET.log_prob(x).mean()) == pytest.approx(float(exact), abs=4 / 8_000**0.5)


def test_the_three_ways_to_end():
    model = TARGET.denoiser(ud.VP())
    seen = {}
    for final in ("denoise", "zero", "t_min"):
        r = ud.sample(model, (4, 2), "dpmpp-2m", 10, "uniform", final=final, return_result=True)
        seen[final] = r.times[-1].item()
        assert r.nfe == 10
    assert seen["denoise"] == 1e-3  # the last call is at t_min, and jumps
    assert seen["zero"] == pytest.approx(0.1)  # the last node but one of ten equal steps to 0
    assert seen["t_min"] > 1e-3  # x(t_min) itself is returned
    # a grid laid in sigma/alpha reaches zero by the jump alone
    karras = [ud.sample(model, (4, 2), "ddim", 5, final=f) for f in ("denoise", "zero")]
    assert torch.equal(*karras)
    flow = ud.sample(TARGET.denoiser(ud.Flow()), (4, 2), "heun", 10, "uniform", final="zero")
    assert torch.isfinite(flow).all()


def test_gradients_flow_from_the_sample_to_its_start():
    model = TARGET.denoiser(ud.VP())
    x_init = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def run(v):
        return ud.sample(model, (2, 2), "dpmpp-2m", 5, x_init=v, dtype=torch.float64)

    assert torch.autograd.gradcheck(run, (x_init,), atol=1e-6)
    assert not ud.sample(model, (2, 2), steps=3).requires_grad


def test_nan_from_the_network_is_reported_with_step_and_samples():
    def net(x, t):
        out = torch.zeros_like(x)
        if float(t[0]) < 0.5:
            out[1] = float("nan")
        return out

    model = ud.Denoiser(net, ud.VP())
    grid = [1.0, 0.8, 0.6, 0.4, 0.2]
    with pytest.raises(
        ud.SolverError, match=r"NaN or Inf at step 3 \(t=0.4\) for sample 1; 1 of 3"
    ):
        ud.sample(model, (3, 2), "dpmpp-2m", grid=grid)
    r = ud.sample(model, (3, 2), "dpmpp-2m", grid=grid, return_result=True, on_failure="return")
    assert r.status.tolist() == [0, 1, 0]
    assert torch.isfinite(r.x[[0, 2]]).all() and torch.isnan(r.x[1]).all()


def test_infinity_from_the_network_is_not_hidden_by_clipping():
    def net(x, t):
        return torch.where(t[:, None] < 0.5, float("inf"), torch.zeros_like(x))

    model = ud.Denoiser(net, ud.VP(), predicts="data", clip=(-1, 1))
    with pytest.raises(ud.SolverError, match="step 3"):
        ud.sample(model, (2, 2), "ddim", grid=[1.0, 0.8, 0.6, 0.4, 0.2])


def test_an_unstable_scheme_is_told_from_a_bad_network():
    # Euler-Maruyama with a step far beyond g^2 d < sigma^2 blows up on its own
    # here g^2 d/sigma^2 = 2 log(5000)/2 = 8.5 a step, on a prediction close to float32's largest
    model = ud.Denoiser(lambda x, t: torch.full_like(x, 3e38), ud.VE(), predicts="data")
    with pytest.raises(ud.SolverError, match="unstable"):
        ud.sample(model, (1, 2), "euler-maruyama", 2, "uniform", final="t_min")


def test_callbacks_see_every_row():
    seen = []
    x = ud.sample(elementwise(), (2, 3), steps=4, callback=seen.append)
    assert [s.row for s in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1].x, x)


def refuse(x, t):
    raise AssertionError("the network was called")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": (3,)}, r"shape must be \(batch, ...\)"),
        ({"shape": (0, 3)}, r"shape\[0\] must be >= 1; got 0"),
        ({"steps": 0}, "steps must be >= 1; got 0"),
        ({"steps": 2.5}, "steps"),
        ({"solver": "dpmp-2m"}, "did you mean 'dpmpp-2m'"),
        ({"grid": "kerras"}, "did you mean 'karras'"),
        ({"grid": [0.2, 0.8]}, "grid must fall strictly .* got 0.2 -> 0.8"),
        ({"grid": [2.0, 0.5]}, "t_max=1"),
        ({"grid": [1.0, 1e-7]}, "t_min=0.001"),
        ({"grid": [1.0, float("nan"), 0.5]}, "grid must fall"),
        ({"grid": [1.0], "final": "t_min"}, "a step needs two"),
        ({"grid": [1.0, 0.5, 0.0], "final": "t_min"}, "leave that time out"),
        ({"sample_ids": [0, 2**48]}, r"sample_ids must lie in \[0, 2\^48\)"),
        ({"sample_ids": [0, -1]}, "sample_ids must lie"),
        ({"x_init": torch.zeros(2, 3), "sample_ids": [1, 2, 3]}, "sample_ids"),
        ({"final": "end"}, "final must be one of 'denoise'"),
        ({"x_init": torch.zeros(2, 4)}, r"x_init must be a tensor of shape \(2, 3\)"),
        ({"sample_ids": [1, 2, 3]}, "sample_ids"),
        ({"seed": torch.zeros(5, dtype=torch.int64)}, "seed"),
        ({"dtype": torch.int64}, "dtype must be a floating type"),
        ({"on_failure": "ignore"}, "on_failure"),
    ],
)
def test_bad_input_is_named_before_any_network_call(arguments, words):
    model = ud.Denoiser(refuse, ud.VP())
    with pytest.raises(ValueError, match=words):
        ud.sample(model, **{"shape": (2, 3), **arguments})


@pytest.mark.filterwarnings("ignore:predicts='noise' at t_max")
def test_a_noise_network_cannot_start_where_there_is_no_signal():
    with pytest.raises(ValueError, match=r"'data' read-out .* 'noise' does not exist at t=1"):
        ud.sample(ud.Denoiser(refuse, ud.Flow(), predicts="noise"), (1, 2))


def test_out_of_another_shape_is_refused():
    sampler = ud.Sampler(ud.VP(), steps=3)
    state = sampler.init((2, 3))
    with pytest.raises(ValueError, match="out, what the network returned"):
        sampler.tell(state, torch.zeros(2, 4))


@pytest.mark.parametrize("solver", ["unipc-4", "dpmpp-3m-sde", "heun-churn"])
def test_the_triton_kernel_runs_every_table_to_the_same_bits(solver):
    # unipc-4 has five data columns, heun two states, the SDEs a normal a row
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is off where there is a GPU; test_graph.py compares there")
    model = elementwise()
    reference = ud.sample(model, (2, 17), solver, 7, "log_snr", seed=3)
    with ud.kernels.using("triton"):
        assert torch.equal(ud.sample(model, (2, 17), solver, 7, "log_snr", seed=3), reference)


@pytest.mark.filterwarnings("ignore:.* diverges on")
@pytest.mark.parametrize(
    "solver", ["ddim", "heun", "restart", "rk4", "dpmpp-2s", "seeds-3", "dpm-fast"]
)
@pytest.mark.parametrize("nfe", [7, 20])
def test_nfe_buys_as_many_steps_as_it_pays_for(solver, nfe):
    """One step more would cost more calls."""
    model = TARGET.denoiser(ud.VP())
    cost = {n: ud.Sampler(model, solver, n).nfe for n in range(1, nfe + 2)}
    found = ud.sample(model, (2, 2), solver, nfe=nfe, return_result=True)
    assert found.nfe == max(c for c in cost.values() if c <= nfe)


def test_nfe_counts_what_guidance_calls():
    model = ud.Denoiser(lambda x, t, y=None: 0.1 * x, ud.VP(), cond={"y": 1})
    found = ud.sample(ud.guidance.cfg(model, 2.0), (2, 2), "ddim", nfe=9, return_result=True)
    assert found.nfe == 8 and len(found.times) == 4


def test_a_misspelt_argument_fails_the_type_checker():
    """No overload ends in arguments of any name."""
    for one in typing.get_overloads(ud.sample):
        parameters = inspect.signature(one).parameters
        assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
        assert set(parameters) == set(inspect.signature(ud.sample).parameters)


def test_steps_that_contradict_times_or_a_table_are_refused():
    """Times and tables bring their steps; another number beside them is a mistake of somebody's."""
    model = ud.Denoiser(lambda x, t: x, ud.VP())
    times = [1.0, 0.5, 0.1]  # two steps, and the jump to data
    table = ud.Sampler(model, "ddim", 4).tableau
    for how, right in (({"solver": "ddim", "grid": times}, (2, 3)), ({"solver": table}, (4,))):
        for steps in right:
            assert ud.sample(model, (1, 2), steps=steps, **how).shape == (1, 2)
        with pytest.raises(ValueError, match=r"steps=7, but .* of \d steps: leave steps out"):
            ud.sample(model, (1, 2), steps=7, **how)
