"""Rows whose network calls need none of each other's outputs are asked together."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import undiffuse as ud
from undiffuse.solvers import Tableau, times
from undiffuse.solvers.families.registry import SOLVERS

from ..exact import network

PROCESS = ud.VP()


def ensemble(steps=4, stages=2, noise=0.0):
    """A table of the kind of EPD (Zhu et al. 2025): from x_n and D_n to `stages` times between two
    nodes, then to the next node by the mean of their directions."""
    t = times("log_snr", PROCESS, steps, "t_min")
    alpha, sigma = PROCESS.alpha, PROCESS.sigma
    rows = []  # (time, {lag: state}, {lag: data}, noise)
    for a, b in pairwise(t):
        inner = [a + (b - a) * (k + 1) / (stages + 1) for k in range(stages)]
        for k, (now, then) in enumerate(zip([a, *inner], [*inner, b], strict=True)):
            kept = float(sigma(then) / sigma(a))
            to = float(alpha(then) - kept * alpha(a))
            data = {k: to} if k < stages else {h: to / stages for h in range(stages)}
            rows.append((float(now), {k: kept}, data, noise * float(sigma(then))))
    size, width = len(rows), stages + 1
    table = {what: torch.zeros(size, width, dtype=torch.float64) for what in ("state", "data")}
    for i, (_, state, data, _) in enumerate(rows):
        for what, entries in (("state", state), ("data", data)):
            for lag, c in entries.items():
                table[what][i, lag] = c
    return Tableau(
        torch.tensor([r[0] for r in rows], dtype=torch.float64),
        **table,
        noise=torch.tensor([[r[3]] for r in rows], dtype=torch.float64),
        draws=torch.arange(1, size + 1)[:, None],
        grid=t,
        name="ensemble",
    ).of(PROCESS)


def alone(sampler, state):
    """Row by row, one call each."""
    while not state.done:
        state = sampler.tell(state, sampler.model.net(state.x_in, state.t_in))
    return state.x


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_independent_stages_are_one_call(stages, noise):
    asked = []

    def net(x, t):
        asked.append((len(x), t.unique().numel()))
        return network(x, t)

    table = ensemble(4, stages, noise)
    assert table.blocks == [1, stages] * 4 and table.depth == 8 and table.nfe == 4 * (stages + 1)
    model = ud.Denoiser(net, PROCESS, predicts="data")
    seen = []
    r = ud.sample(model, (3, 2), table, seed=1, return_result=True, callback=seen.append)
    assert asked == [(3, 1), (3 * stages, stages)] * 4
    assert r.nfe == table.nfe and r.rounds == 8
    sampler = ud.Sampler(ud.Denoiser(network, PROCESS, predicts="data"), table)
    state = sampler.init((3, 2), seed=1)
    assert torch.equal(r.x, alone(sampler, state))
    assert [s.row for s in seen] == list(range(table.nfe))
    assert all(torch.equal(s.out, network(s.before.x_in, s.before.t_in)) for s in seen)
    # and in parallel over rows too
    assert torch.equal(sampler.sweep(state, 5, 0.0).x, r.x)


def test_the_caller_s_own_loop_and_a_start_inside_a_block():
    sampler = ud.Sampler(ud.Denoiser(network, PROCESS, predicts="data"), ensemble(3, 3))
    state = first = sampler.init((2, 2), seed=4)
    sizes = []
    while not state.done:
        states = sampler.ahead(state)
        sizes.append(len(states))
        both = ud.Sampler.join(states)
        for out in network(both.x_in, both.t_in).split(2):
            state = sampler.tell(state, out)
    assert sizes == [1, 3] * 3 and torch.equal(state.x, alone(sampler, first))
    with pytest.raises(ValueError, match="the run is over after 12 network calls"):
        sampler.ahead(state)
    inside = first
    for _ in range(2):
        inside = sampler.tell(inside, network(inside.x_in, inside.t_in))
    assert [len(sampler.ahead(s)) for s in (first, inside)] == [1, 2]
    assert torch.equal(sampler.finish(inside), state.x)
    mixed = ud.Sampler.join([first, inside])
    assert len(sampler.ahead(mixed)) == 1
    assert torch.equal(sampler.finish(mixed), torch.cat([state.x, state.x]))


def test_conditions_and_guidance_follow_their_samples():
    def net(x, t, label):
        return torch.tanh(x + label[:, None])

    table, cond = ensemble(3, 2), {"label": torch.tensor([0.5, -1.0, 2.0])}
    model = ud.Denoiser(net, PROCESS, predicts="data")
    guided = ud.guidance.cfg(model, 2.0, uncond={"label": torch.zeros(1)})
    for one in (model, guided):
        sampler = ud.Sampler(one, table)
        state = sampler.init((3, 2), seed=6)
        want = state
        while not want.done:
            t = sampler.plan.times[int(want.row[0])]
            heard = one.hear(want.x_in, want.t_in, one.given(cond, 3), t)
            want = sampler.tell(want, heard)
        got = sampler.finish(state, cond)
        assert torch.allclose(got, want.x, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    zeros=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8),
    seed=st.integers(0, 2**31),
)
def test_blocks_are_what_the_zeros_say(zeros, seed):
    """Against the network itself: a row is in a block where no output of the block moves its x,
    and the next row is not; and the run in blocks has the bits of the run row by row."""
    n = len(zeros)
    some = torch.Generator().manual_seed(seed)
    state, data = (torch.rand(n, 3, dtype=torch.float64, generator=some) + 0.1 for _ in range(2))
    data *= torch.tensor(zeros)
    for m in (state, data):  # there is no history before the first row
        for k in range(1, 3):
            m[:k, k] = 0.0
    t = times("log_snr", PROCESS, n, "t_min")
    empty = torch.zeros(n, 0)
    table = Tableau(t[:-1], state, data, empty.double(), empty.long(), t).of(PROCESS)
    model = ud.Denoiser(network, PROCESS, predicts="data")
    sampler = ud.Sampler(model, table, dtype=torch.float64)
    first = sampler.init((1, 2), seed=0)

    def inputs(moved=None):
        """x of every row, where the output of row `moved` is another."""
        found, now = [], first
        for i in range(n):
            found.append(now.x)
            now = sampler.tell(now, network(now.x, now.t_in) * (2.0 if i == moved else 1.0))
        return found

    plain, start = inputs(), 0
    for length in table.blocks:
        block = range(start, start + length)
        for i in block:
            changed = inputs(i)
            assert all(torch.equal(changed[j], plain[j]) for j in block)
        start += length
        if start < n:
            assert any(not torch.equal(inputs(i)[start], plain[start]) for i in block)
    assert start == n
    assert torch.equal(sampler.finish(first), alone(sampler, first))


def test_no_registered_solver_of_today_waits_less_than_it_calls_by_accident():
    for name, solver in SOLVERS.items():
        table = solver.tableau(PROCESS, times("log_snr", PROCESS, 8))
        if "epd" not in name:
            assert table.depth == table.nfe, name
