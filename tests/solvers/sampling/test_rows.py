"""Samples of one state go their own ways: joined with strangers at other rows, taken apart, moved
or saved, each ends in the bits of its own run. The network works element by element, so that its
rounding ignores the batch."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import undiffuse as ud

SOLVERS = ud.solvers.names()
DATA = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7.0)
MODEL = ud.Denoiser(
    lambda x, t: torch.tanh(x) * (0.5 + t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))), ud.VP()
)


def spectral(kind="diagonal"):
    return ud.solvers.GaussianPreconditioned(ud.solvers.Statistics.of(DATA, kind))


def sampler_of(solver, steps=5, **options):
    return ud.Sampler(MODEL, spectral() if solver == "spectral" else solver, steps, **options)


def ahead(sampler, state, rows):
    with torch.no_grad():
        for _ in range(rows):
            state = sampler.tell(state, MODEL.net(state.x_in, state.t_in))
    return state


def end(sampler, state):
    with torch.no_grad():
        while not state.done:
            state = sampler.tell(state, MODEL.net(state.x_in, state.t_in))
    return state.x


def bits(x):
    return x.contiguous().view(torch.int64 if x.dtype == torch.float64 else torch.int32)


def same(a, b):
    """Equal bits; the two zeros count as one."""
    return a.dtype == b.dtype and torch.equal(bits(a + 0.0), bits(b + 0.0))


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        *((solver, torch.float32) for solver in [*SOLVERS, "spectral"]),
        *((solver, torch.float64) for solver in ("unipc-3", "dpmpp-3m-sde", "restart", "spectral")),
    ],
)
def test_strangers_at_other_rows_do_not_change_a_run(solver, dtype):
    """Histories of all ages side by side: fresh, half filled, full, and a finished run."""
    sampler = sampler_of(solver, dtype=dtype)
    firsts = [sampler.init((1, 6), seed=k, sample_ids=[10 * k]) for k in range(4)]
    wants = [end(sampler, first) for first in firsts]
    rows = [0, 1, sampler.nfe // 2, sampler.nfe]
    joined = ud.Sampler.join([ahead(sampler, f, r) for f, r in zip(firsts, rows, strict=True)])
    assert joined.row.tolist() == rows
    assert joined.finished.tolist() == [False, False, False, True]
    assert same(end(sampler, joined), torch.cat(wants))


@given(
    solver=st.sampled_from([*SOLVERS, "spectral"]),
    rows=st.lists(st.integers(0, 100), min_size=1, max_size=4),
    pieces=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=25, deadline=None)
def test_any_company_in_any_order(solver, rows, pieces, order):
    """Joined, gone on for a while, taken apart in another order, and gone on alone."""
    sampler = sampler_of(solver, 4)
    rows = [r % sampler.nfe for r in rows]
    firsts = [sampler.init((2, 6), seed=k) for k in range(len(rows))]
    states = [ahead(sampler, f, r) for f, r in zip(firsts, rows, strict=True)]
    together = ahead(sampler, sampler.join(states), min(pieces, sampler.nfe - min(rows)))
    places = list(range(2 * len(rows)))
    order.shuffle(places)
    wants = torch.cat([end(sampler, f) for f in firsts])
    assert same(end(sampler, together[places]), wants[places])
    for place in places[:2]:
        alone = together[place]
        assert len(alone) == 1 and same(
            end(sampler, alone) if not alone.done else alone.x, wants[place : place + 1]
        )


@pytest.mark.parametrize("kind", ["full", "leading", "cosine"])
def test_a_basis_of_vectors_rounds_in_company(kind):
    """Products of 6 terms in another blocking: a few float32 rounding errors a step."""
    data = DATA.reshape(-1, 1, 2, 3)
    solver = ud.solvers.GaussianPreconditioned(ud.solvers.Statistics.of(data, kind))
    sampler = ud.Sampler(MODEL, solver, 5)
    firsts = [sampler.init((1, 1, 2, 3), seed=k) for k in range(3)]
    states = [ahead(sampler, f, k) for k, f in enumerate(firsts)]
    got = end(sampler, sampler.join(states))
    want = torch.cat([end(sampler, f) for f in firsts])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_ways_to_name_samples():
    sampler = sampler_of("dpmpp-2m-sde")
    seeds = torch.tensor([3, 1, 4, 1, 5])
    state = ahead(sampler, sampler.init((5, 6), seed=seeds, sample_ids=[9, 8, 7, 6, 5]), 2)
    assert len(state) == 5 and [len(s) for s in state] == [1] * 5
    mask = torch.tensor([True, False, True, False, False])
    for ids, places in (
        (2, [2]),
        (-1, [4]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [4, 2, 0]),
        ([4, 0, 0], [4, 0, 0]),
        (mask, [0, 2]),
        (torch.tensor([3, 2]), [3, 2]),
        ([], []),
    ):
        part = state[ids]
        assert torch.equal(part.x, state.x[places])
        assert torch.equal(part.x_in, state.x_in[places])
        assert part.sample_ids.tolist() == state.sample_ids[places].tolist()
        assert part.seed.tolist() == seeds[places].tolist()
        assert part.row.tolist() == [2] * len(places)
    for ids in (5, [-6], torch.ones(4, dtype=torch.bool)):
        with pytest.raises(IndexError):
            state[ids]
    for ids in (1.0, [0.5], "a", torch.zeros(1, 1, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError)):
            state[ids]


def test_split_and_join_are_inverse():
    sampler = sampler_of("unipc-3")
    state = ahead(sampler, sampler.init((5, 6), seed=2), 3)
    assert [len(s) for s in state.split(2)] == [2, 2, 1]
    assert [len(s) for s in state.split([1, 4])] == [1, 4]
    again = ud.Sampler.join(state.split([1, 3, 1]))
    assert again.uniform == 3
    assert same(end(sampler, again), end(sampler, state))
    for sizes in ([1, 3], [0, 5], [6]):
        with pytest.raises(ValueError, match="sizes must be >= 1 and sum to 5"):
            state.split(sizes)


def test_what_cannot_be_joined_is_named():
    sampler = sampler_of("dpmpp-2m")
    state = sampler.init((1, 6))
    others = {
        "another grid": sampler_of("dpmpp-2m", grid="karras"),
        "other steps": sampler_of("dpmpp-2m", 6),
        "another read-out": ud.Sampler(ud.Denoiser(MODEL.net, ud.VP(), "v"), "dpmpp-2m", 5),
        "another type": sampler_of("dpmpp-2m", dtype=torch.float64),
        "another clip": ud.Sampler(ud.Denoiser(MODEL.net, ud.VP(), clip=(-1, 1)), "dpmpp-2m", 5),
    }
    for other in others.values():
        with pytest.raises(ValueError, match=r"states\[1\] is of another sampler"):
            ud.Sampler.join([state, other.init((1, 6))])
        with pytest.raises(ValueError, match="another sampler"):
            other.tell(state, torch.zeros(1, 6))
    with pytest.raises(ValueError, match=r"states\[1\] has samples of \(4,\)"):
        ud.Sampler.join([state, sampler.init((1, 4))])
    with pytest.raises(ValueError, match="got none"):
        ud.Sampler.join([])
    with pytest.raises(TypeError, match=r"states\[0\] must be a State; got Tensor"):
        ud.Sampler.join([state.x])
    # made anew, the same sampler is the same
    assert len(ud.Sampler.join([state, sampler_of("dpmpp-2m").init((1, 6))])) == 2


@pytest.mark.parametrize("solver", ["dpmpp-2m-sde", "heun-churn", "spectral"])
def test_a_joined_state_is_saved_moved_and_edited(solver):
    sampler, file = sampler_of(solver), io.BytesIO()
    states = [ahead(sampler, sampler.init((2, 6), seed=k), k) for k in range(3)]
    joined = ud.Sampler.join(states)
    want = end(sampler, joined)
    torch.save(joined, file)
    file.seek(0)
    assert same(end(sampler, torch.load(file, weights_only=True)), want)
    assert same(end(sampler, joined.to("cpu")), want)
    moved = joined.to("meta")
    assert {v.device.type for v in (moved.x, moved.x_in, moved.t_in, moved.seed)} == {"meta"}
    assert moved.row.tolist() == joined.row.tolist()
    edited = joined.replace(x=2 * joined.x)
    parts = [s.replace(x=2 * s.x) for s in states]
    assert torch.equal(edited.x_in, torch.cat([s.x_in for s in parts]))
    assert same(end(sampler, edited), torch.cat([end(sampler, s) for s in parts]))


def test_finished_samples_stay_whatever_the_network_says():
    sampler = sampler_of("ddpm")
    over = ahead(sampler, sampler.init((2, 6), seed=1), sampler.nfe)
    young = sampler.init((1, 6), seed=2)
    joined = sampler.join([over, young])
    assert joined.t_in.shape == (3,) and torch.isfinite(joined.x_in).all()
    want = end(sampler, young)
    with torch.no_grad():
        while not joined.done:
            out = MODEL.net(joined.x_in, joined.t_in)
            out[:2] = float("nan")
            joined = sampler.tell(joined, out)
    assert same(joined.x, torch.cat([over.x, want]))
    assert joined.t_in is None and joined.x_in is None
    with pytest.raises(ValueError, match="run is over"):
        sampler.tell(joined, joined.x)


def test_steps_go_on_from_mixed_rows_and_say_where_each_sample_is():
    told = []

    def net(x, t, y):
        told.append((t.tolist(), y.tolist()))
        return torch.tanh(x) * y[:, None]

    model = ud.Denoiser(net, ud.VP())
    sampler = ud.Sampler(model, "dpmpp-2m", 4)
    y = torch.tensor([0.5, 2.0])
    firsts = [sampler.init((1, 6), seed=k) for k in range(2)]
    wants = [sampler.finish(f, {"y": y[k : k + 1]}) for k, f in enumerate(firsts)]
    *_, step = (s for s, _ in zip(sampler.steps(firsts[1], {"y": y[1:]}), range(2), strict=False))
    told.clear()
    seen = list(sampler.steps(sampler.join([firsts[0], step.after]), {"y": y}))
    times = sampler.tableau.times.tolist()
    assert [s.row.tolist() for s in seen] == [[0, 2], [1, 3], [2, 4], [3, 4]]
    assert [s.t.tolist() for s in seen] == [[times[i], times[min(i + 2, 3)]] for i in range(4)]
    assert torch.equal(seen[-1].x, torch.cat(wants))
    alone = [s.denoised for s in sampler.steps(firsts[0], {"y": y[:1]})]
    assert all(torch.equal(s.denoised[:1], d) for s, d in zip(seen, alone, strict=True))


def test_guidance_knows_the_time_of_every_row():
    """An interval of guidance closes for each sample at its own time."""
    model = ud.Denoiser(lambda x, t, y=None: torch.tanh(x) * (0.5 if y is None else 0.9), ud.VP())
    guided = ud.guidance.cfg(model, 3.0)
    sampler = ud.Sampler(guided, "dpmpp-2m", 5)
    y = {"y": torch.ones(2)}
    firsts = [sampler.init((1, 6), seed=k) for k in range(2)]
    wants = torch.cat([sampler.finish(f, {"y": torch.ones(1)}) for f in firsts])
    *_, step = (
        s for s, _ in zip(sampler.steps(firsts[1], {"y": torch.ones(1)}), range(3), strict=False)
    )
    assert torch.equal(sampler.finish(sampler.join([firsts[0], step.after]), y), wants)


# --- the caller's own noise -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver", ["ddpm", "dpmpp-2m-sde", "heun-churn", "dpmpp-sde", "seeds-3", "restart"]
)
def test_own_normals_take_the_place_of_the_formats(solver):
    """Handed the normals that it would draw, a run ends in the same bits, also at mixed rows."""
    sampler = sampler_of(solver)
    table, ids = sampler.tableau, torch.tensor([4, 7])

    def normals(rows):
        """For each noise column, what each sample would draw at its row."""
        draws = table.draws[rows]
        return [
            torch.cat(
                [
                    ud.kernels.normal((1, 6), 3, [i], int(draw), "predictor")
                    for i, draw in zip(ids.tolist(), column, strict=True)
                ]
            )
            for column in draws.T
        ]

    start = sampler.init((2, 6), seed=3, sample_ids=ids)
    want = end(sampler, start)
    other = sampler.init((2, 6), seed=3, sample_ids=ids).replace(seed=torch.tensor([99]))
    parts = [other[0], other[1]]
    for mixed in (False, True):
        if mixed:
            z = [v[:1] for v in normals([0, 0])]
            out = MODEL.net(parts[0].x_in, parts[0].t_in)
            state = sampler.join([sampler.tell(parts[0], out, noise=z), parts[1]])
        else:
            state = other
        while not state.done:
            z = normals(state.row.clamp(max=sampler.nfe - 1).tolist())
            out = MODEL.net(state.x_in, state.t_in)
            state = sampler.tell(state, out, noise=z[0] if len(z) == 1 else z)
        assert same(state.x, want)


def test_own_noise_of_the_entry():
    sampler = ud.Sampler(ud.EDM(), "heun-churn", grid=[40.0, 10.0, 1.0, 0.1], predicts="data")
    x, z = torch.ones(2, 6), ud.kernels.normal((2, 6), 3, purpose="predictor")
    a, c = sampler.tableau.entry
    assert c != 0
    assert torch.equal(sampler.init((2, 6), x_init=x, seed=9, noise=z).x, a * x + c * z)
    with pytest.raises(ValueError, match="ddim adds no noise before its first call"):
        sampler_of("ddim").init((2, 6), x_init=x, noise=z)
    with pytest.raises(ValueError, match=r"noise must be floating, \(2, 6\)"):
        sampler.init((2, 6), x_init=x, noise=z[:1])


def test_own_noise_that_does_not_fit_is_named():
    one, several, none = (sampler_of(n) for n in ("ddpm", "seeds-3", "ddim"))
    x = torch.zeros(2, 6)
    for sampler, noise, words in (
        (one, x[:1], r"noise must be floating, \(2, 6\) on cpu like x; got \(1, 6\)"),
        (one, x.long(), "noise must be floating"),
        (one, [None], r"noise\[0\] is None, but this row of the table draws it"),
        (several, [x], "noise must be . normals, one for each noise column of seeds-3; got 1"),
        (none, x, "noise must be 0 normals"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler.tell(sampler.init((2, 6)), x, noise=noise)


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m-sde", "dpmpp-2m"])
def test_a_callback_sees_the_law_of_the_step(solver):
    """x = mean + std z with the format's z, to the rounding of float32; ODE steps have std 0."""
    sampler, seen = sampler_of(solver), []
    ud.sample(MODEL, (2, 6), solver, 5, seed=3, callback=seen.append)
    table = sampler.tableau
    for info in seen:
        z = torch.zeros(2, 6)
        if table.noise.shape[1]:
            z = ud.kernels.normal((2, 6), 3, None, int(table.draws[info.row, 0]), "predictor")
        torch.testing.assert_close(info.mean + info.std * z, info.x, rtol=1e-5, atol=1e-5)
        assert bool((info.std > 0).all()) == bool((table.noise[info.row] != 0).any())


@pytest.mark.gpu
def test_states_cross_devices_and_step_there_to_the_same_bits():
    model = ud.Denoiser(lambda x, t: x * t[:, None], ud.VP())
    here = ud.Sampler(model, "dpmpp-2m-sde", 6)
    there = ud.Sampler(model, "dpmpp-2m-sde", 6, device="cuda")
    firsts = [here.init((1, 6), seed=k) for k in range(3)]
    states = []
    for k, state in enumerate(firsts):
        for _ in range(k):
            state = here.tell(state, model.net(state.x_in, state.t_in))
        states.append(state)
    want = here.finish(here.join(states))
    moved = here.join(states).to("cuda")
    assert moved.row.device.type == "cpu" and moved.t_in.device.type == "cuda"
    assert torch.equal(there.finish(moved).cpu(), want)
