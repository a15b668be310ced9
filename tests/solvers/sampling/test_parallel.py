"""Sweeps over many rows at once: the run row by row, in fewer rounds of larger calls."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import undiffuse as ud
from undiffuse.solvers import times
from undiffuse.solvers.families.registry import SOLVERS

from ..exact import network

PROCESSES = [ud.VP(), ud.EDM(), ud.Flow()]


def sampler_of(name, process=PROCESSES[0], steps=6, net=network, **options):
    table = SOLVERS[name].tableau(process, times("log_snr", process, steps))
    return ud.Sampler(ud.Denoiser(net, process, predicts="data", **options), table)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SOLVERS)),
    process=st.sampled_from(PROCESSES),
    steps=st.integers(1, 7),
    window=st.integers(1, 12),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_without_tolerance_the_bits_are_those_of_the_run_row_by_row(
    name, process, steps, window, batch, seed
):
    sampler = sampler_of(name, process, steps)
    state = sampler.init((batch, 3), seed=seed)
    swept = sampler.sweep(state, window, tolerance=0.0)
    assert torch.equal(swept.x, sampler.finish(state))
    assert int(swept.rounds.max()) <= sampler.nfe
    assert bool((swept.nfe >= sampler.nfe).all())
    assert bool((swept.nfe <= swept.rounds * min(window, sampler.nfe)).all())


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "seeds-2", "relay"])
def test_the_result_is_within_the_tolerance(name, tolerance):
    """The shipped network; root mean squares of samples against the run row by row."""
    model = ud.models.checkpoint.load_default().denoiser
    sampler = ud.Sampler(model, name, steps=25)
    state = sampler.init((2, 1, 8, 8), seed=7)
    with torch.no_grad():
        want = sampler.finish(state)
    swept = sampler.sweep(state, window=20, tolerance=tolerance)
    off = (swept.x - want).square().flatten(1).mean(1).sqrt()
    # float32 of two ways to the same state is another 1e-6
    assert float(off.max()) < tolerance + 2e-6
    assert tolerance < 1e-4 or int(swept.rounds.max()) < 0.7 * sampler.nfe


def test_rounds_are_few_where_steps_are_many():
    """Gaussian mixture, exact: 200 calls one after the other become under a tenth of that."""
    process = ud.VP()
    target = ud.targets.GaussianMixture(
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-1.0, 0.5], [1.0, 0.0]]),
        torch.stack([0.05 * torch.eye(2), 0.1 * torch.eye(2)]),
    )
    asked = []

    def net(x, t):
        asked.append(len(x))
        return target.data_prediction(x, t.double(), process)

    sampler = ud.Sampler(ud.Denoiser(net, process, predicts="data"), "ddim", steps=200)
    state = sampler.init((3, 2), seed=1)
    swept = sampler.sweep(state, window=200, tolerance=1e-4)
    assert len(asked) == int(swept.rounds.max()) < 20
    assert sum(asked) == int(swept.nfe.sum()) and max(asked) <= 200 * 3
    asked.clear()
    want = sampler.finish(state)
    assert float((swept.x - want).square().mean().sqrt()) < 1e-4
    asked.clear()
    few = sampler.sweep(state, window=16, tolerance=1e-4)
    assert max(asked) <= 16 * 3 and len(asked) < 60
    assert float((few.x - want).square().mean().sqrt()) < 2e-4


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m-sde", "sra1"])
def test_a_sample_and_its_rounds_do_not_depend_on_the_batch(name):
    sampler = sampler_of(name, steps=12)
    state = sampler.init((5, 3), seed=3)
    together = sampler.sweep(state, 6, 1e-3)
    for i in range(5):
        alone = sampler.sweep(state[i], 6, 1e-3)
        assert torch.equal(alone.x[0], together.x[i])
        assert int(alone.rounds) == int(together.rounds[i])
        assert int(alone.nfe) == int(together.nfe[i])


def test_samples_at_rows_of_their_own_and_a_finished_one():
    sampler = sampler_of("dpmpp-2m", steps=8)
    states, state = [], sampler.init((1, 3), seed=5)
    while not state.done:
        states.append(state)
        state = sampler.tell(state, network(state.x_in, state.t_in))
    joined = ud.Sampler.join([states[0], states[5], state])
    swept = sampler.sweep(joined, 4, 0.0)
    assert torch.equal(swept.x, state.x.expand(3, -1))
    assert swept.rounds[2] == swept.nfe[2] == 0 and swept.rounds[1] <= 3
    over = sampler.sweep(state, 4)
    assert torch.equal(over.x, state.x) and over.rounds.tolist() == [0]


def test_conditions_and_guidance_follow_their_samples():
    process = ud.VP()

    def net(x, t, label, scale=None):
        return torch.tanh(x + label[:, None]) * (1.0 if scale is None else scale)

    labels = torch.tensor([0.5, -1.0, 2.0])
    cond = {"label": labels, "scale": ud.shared(torch.tensor([1.0, 0.5, 1.0]))}
    model = ud.Denoiser(net, process, predicts="data")
    kw = {"steps": 10, "solver": "ddpm", "seed": 2}
    want = ud.sample(model, (3, 3), cond=cond, **kw)
    r = ud.sample(model, (3, 3), cond=cond, parallel=8, tolerance=0.0, return_result=True, **kw)
    assert torch.equal(r.x, want)
    guided = ud.guidance.cfg(model, 2.0, uncond={"label": torch.zeros(1)})
    cond = {"label": labels}
    want = ud.sample(guided, (3, 3), cond=cond, **kw)
    again = ud.sample(
        guided, (3, 3), cond=cond, parallel=8, tolerance=0.0, return_result=True, **kw
    )
    assert torch.allclose(again.x, want, rtol=0, atol=1e-5)  # the step weighs two outputs itself
    assert bool((again.nfe >= 10).all()) and bool((again.rounds <= 10).all())


def test_what_a_result_says():
    model = ud.Denoiser(network, PROCESSES[0], predicts="data")
    plain = ud.sample(model, (2, 3), steps=12, return_result=True)
    assert plain.rounds == plain.nfe == 12
    r = ud.sample(model, (2, 3), steps=12, parallel=12, return_result=True, progress=False)
    assert r.rounds.shape == r.nfe.shape == (2,) and bool((r.rounds < 12).all())
    assert float((r.x - plain.x).square().mean().sqrt()) < 1e-3  # the default
    assert torch.equal(ud.sample(model, (2, 3), steps=12, parallel=12), r.x)


def test_a_table_over_components_is_swept_too():
    stats = ud.solvers.Statistics(
        torch.tensor([0.1, -0.3]).double(), torch.tensor([0.4, 0.1]).double()
    )
    model = ud.Denoiser(network, PROCESSES[0], predicts="data")
    sampler = ud.Sampler(model, ud.solvers.GaussianPreconditioned(stats), steps=10)
    state = sampler.init((3, 2), seed=1)
    swept = sampler.sweep(state, 10, 1e-6)
    assert torch.allclose(swept.x, sampler.finish(state), atol=1e-5)


def test_a_network_that_fails_is_named_as_in_the_run_row_by_row():
    def net(x, t):
        return torch.where(t[:, None] < 0.5, torch.nan, network(x, t))

    model = ud.Denoiser(net, PROCESSES[0], predicts="data")
    kw = {"steps": 8, "grid": "uniform", "solver": "ddim", "on_failure": "return"}
    want = ud.sample(model, (2, 3), return_result=True, **kw)
    got = ud.sample(model, (2, 3), parallel=4, return_result=True, **kw)
    assert torch.equal(got.status, want.status) and bool((got.status != 0).all())
    assert bool((got.rounds <= 8).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": 0}, "parallel must be >= 1; got 0"),
        ({"parallel": 2.5}, "parallel must be a whole number"),
        ({"parallel": 4, "tolerance": -1.0}, "tolerance must be >= 0; got -1"),
        ({"parallel": 4, "tolerance": float("nan")}, "tolerance must be finite"),
        ({"tolerance": 1e-3}, "tolerance is of parallel sweeps"),
        ({"parallel": 4, "callback": print}, "callback does not go with parallel="),
        ({"parallel": 4, "graph": True}, "graph=True does not go with parallel="),
        ({"parallel": 4, "x_init": torch.zeros(2, 3, requires_grad=True)}, "x_init requires grad"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_call(options, message):
    def net(x, t):
        raise AssertionError("called")

    model = ud.Denoiser(net, PROCESSES[0], predicts="data")
    with pytest.raises(ValueError, match=message):
        ud.sample(model, (2, 3), steps=4, **options)
