"""What the host does between two network calls, counted: frames of Python, not seconds."""

import gc
import itertools
import sys

import pytest
import torch

import undiffuse as ud
from undiffuse.kernels import native


@pytest.mark.skipif(native.why() == native.OFF, reason="the compiled path is switched off")
@pytest.mark.parametrize("solver", ["relay", "ddpm", "dpmpp-2m", "dpmpp-2m-sde", "heun", "unipc-3"])
def test_a_step_of_a_whole_run_takes_twelve_frames_at_most(solver):
    """From one call of the network to the next: its frame too. The first two calls of a model find
    out what it does to its inputs."""
    if not native.warm_up():
        pytest.skip(f"there is no compiled path: {native.why()}")
    frames, calls = [], []

    def net(x, t):
        calls.append(len(frames))
        return x

    model = ud.Denoiser(net, ud.VP())
    ud.sample(model, (2, 3, 4), solver, 6)
    calls.clear()

    def count(frame, event, _):
        if event == "call":
            frames.append(frame.f_code.co_name)

    gc.collect()
    gc.disable()  # whose callbacks are frames of others
    sys.setprofile(count)
    try:
        ud.sample(model, (2, 3, 4), solver, 6)
    finally:
        sys.setprofile(None)
        gc.enable()
    each = [frames[a:b] for a, b in itertools.pairwise(calls)]
    assert len(each) >= 5 and max(map(len, each)) <= 12, max(each, key=len)


@pytest.mark.parametrize("solver", ["dpmpp-2m-sde", "heun-churn", "spectral"])
def test_a_whole_run_is_the_checked_loop_bit_for_bit(solver):
    data = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    if solver == "spectral":
        solver = ud.solvers.GaussianPreconditioned(ud.solvers.Statistics.of(data))
    model = ud.Denoiser(lambda x, t: torch.tanh(x) * t[:, None].to(x.dtype), ud.VP())
    for dtype in (None, torch.float64, torch.bfloat16):
        sampler = ud.Sampler(model, solver, 6, dtype=dtype)
        state = first = sampler.init((3, 6), seed=4)
        with torch.no_grad():
            while not state.done:
                state = sampler.tell(state, model.net(state.x_in, state.t_in))
        assert torch.equal(sampler.finish(first), state.x)


def test_a_callback_may_write_into_what_it_sees():
    """The network is asked about what x is by then, in the quick loop as in the checked one."""
    model = ud.Denoiser(lambda x, t: torch.tanh(x), ud.VP())
    sampler = ud.Sampler(model, "dpmpp-2m", 5)
    state = first = sampler.init((2, 3), seed=1)
    with torch.no_grad():
        for step in sampler.steps(first):
            step.x[:, 0] = 0.5
        while not state.done:
            state = sampler.tell(state, model.net(state.x_in, state.t_in))
            state.x[:, 0] = 0.5
    assert torch.equal(step.x, state.x)


def test_a_second_sample_walks_through_few_files():
    """Of the package, from the call to the sample: what the first found out is not found again."""
    if not native.warm_up():
        pytest.skip(f"there is no compiled path: {native.why()}")
    model, entered = ud.Denoiser(lambda x, t: x, ud.VP()), []
    for _ in range(2):
        ud.sample(model, (2, 3, 4), steps=10)
    package = ud.Denoiser.__module__.partition(".")[0]

    def count(frame, event, _):
        if event == "call" and frame.f_globals.get("__name__", "").startswith(package + "."):
            entered.append((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(count)
    try:
        ud.sample(model, (2, 3, 4), steps=10)
    finally:
        sys.setprofile(None)
    files, functions = {file for file, _ in entered}, set(entered)
    assert len(files) <= 24 and len(functions) <= 106 and len(entered) <= 300, (
        len(files),
        len(functions),
        len(entered),
    )
