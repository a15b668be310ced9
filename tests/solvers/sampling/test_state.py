"""States are values: edited, cut in pieces, pickled and compiled, a run goes on as it would
have."""

import dataclasses
import io
import itertools
import pickle

import pytest
import torch

import undiffuse as ud

LAW = ud.targets.Gaussian([2.0, -1.0], 0.3)
STATS = ud.solvers.Statistics(
    torch.tensor([2.0, -1.0]).double(), torch.tensor([0.3, 0.3]).double(), torch.eye(2).double()
)
SOLVERS = ["ddim", "dpmpp-2m", "dpmpp-2m-sde", "heun-churn", "restart"]


def net(x, t):
    return 0.1 * x + 0.01 * t.to(x.dtype)[:, None]


def walk(sampler, state, rows=None):
    for _, step in zip(range(rows or sampler.nfe), sampler.steps(state), strict=False):
        state = step.after
    return state


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# --- edited
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("process", [ud.VP(), ud.EDM()], ids=str)
def test_an_edited_state_asks_about_its_new_x(process, dtype):
    """x_in is c_in x, to the rounding of the network's type."""
    model = ud.Denoiser(net, process, "edm" if isinstance(process, ud.EDM) else "noise")
    sampler = ud.Sampler(model, "dpmpp-2m", 6, dtype=dtype)
    state = walk(sampler, sampler.init((3, 2), seed=1), 2)
    new = torch.full((3, 2), 2.5)
    t = sampler.tableau.times[state.uniform : state.uniform + 1]
    want = new.double() * model.network_scale(t)
    for edited in (state.replace(x=new), state._replace(x=new)):
        assert edited.x_in.dtype == (dtype or torch.float32)
        assert torch.allclose(
            edited.x_in.double(), want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6
        )
    assert torch.equal(state.replace(seed=state.seed).x_in, state.x_in)
    with pytest.raises(ValueError, match=r"x must be \(3, 2\)"):
        state.replace(x=new[:1])
    with pytest.raises(TypeError, match="x must be floating"):
        state.replace(x=new.long())
    with pytest.raises(TypeError, match="named by a place, a slice, places or a mask; got 'a'"):
        state["a"]
    for place in ("nowhere", torch.float64):  # which torch's own `to` would cast seeds by
        with pytest.raises(ValueError, match="device must be a device"):
            state.to(place)


def test_an_edited_spectral_run_is_the_run_that_starts_there():
    """Components follow from x. One point a step keeps no history."""
    model = LAW.denoiser(ud.VP())
    solver, t = ud.solvers.GaussianPreconditioned(STATS, 1), ud.solvers.times("log_snr", ud.VP(), 6)
    sampler, new = ud.Sampler(model, solver, grid=t, dtype=torch.float64), torch.ones(1, 2).double()
    edited = walk(sampler, sampler.init((1, 2)), 3).replace(x=new)
    want = ud.sample(model, (1, 2), solver, grid=t[3:], x_init=new)
    assert torch.allclose(sampler.finish(edited), want, atol=1e-9)


def test_what_a_network_writes_into_its_input_stays_there():
    sampler = ud.Sampler(ud.VP(), "ddim", 4)
    state = sampler.init((2, 3), seed=1)
    kept = state.x.clone()
    state.x_in.zero_()
    assert torch.equal(state.x, kept)


# --- in pieces
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [*SOLVERS, "spectral"])
def test_a_run_cut_anywhere_is_the_whole_run_bit_for_bit(solver):
    model = LAW.denoiser(ud.VP())
    chosen = ud.solvers.GaussianPreconditioned(STATS) if solver == "spectral" else solver
    sampler = ud.Sampler(model, chosen, 7)
    first = sampler.init((3, 2), seed=5)
    whole = sampler.finish(first)
    for row in range(1, sampler.nfe):
        assert torch.equal(sampler.finish(walk(sampler, first, row)), whole)


@pytest.mark.parametrize("solver", ["ddpm", "euler-maruyama", "euler-ancestral"])
def test_a_run_from_a_row_on_draws_what_the_whole_run_draws_there(solver):
    model = LAW.denoiser(ud.VP())
    sampler = ud.Sampler(model, solver, 8)
    first = sampler.init((3, 2), seed=5)
    whole = sampler.finish(first)
    middle = walk(sampler, first, 5)
    again = sampler.init((3, 2), seed=5, x_init=middle.x, row=5)
    assert torch.equal(sampler.finish(again), whole)


def test_a_row_that_looks_back_cannot_be_started_at():
    sampler = ud.Sampler(ud.VP(), "dpmpp-2m", 6)
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="looks back at what was before row 3"):
        sampler.init((1, 2), x_init=x, row=3)
    with pytest.raises(ValueError, match=r"row must lie in 0\.\.5"):
        sampler.init((1, 2), x_init=x, row=6)
    with pytest.raises(ValueError, match="give the state there as x_init"):
        ud.Sampler(ud.VP(), "ddim", 6).init((1, 2), row=3)


@pytest.mark.parametrize(
    ("solver", "pieces"), [("euler-maruyama", 10), ("ddpm", 2), ("dpmpp-2m-sde", 5)]
)
def test_pieces_on_grids_of_their_own_have_the_law_of_the_whole_run(solver, pieces):
    """A deviation of 2 x 5,000 numbers errs by 0.007; a lost history is worth 0.01 here."""
    model = ud.targets.Gaussian([0.0, 0.0], 1.0).denoiser(ud.VP())
    grid, x, size = ud.solvers.times("log_snr", ud.VP(), 50), None, 50 // pieces
    for k in range(pieces):
        last = k == pieces - 1
        part = grid[k * size :] if last else grid[k * size : (k + 1) * size + 1]
        final = "denoise" if last else "t_min"
        x = ud.sample(model, (5000, 2), solver, grid=part, final=final, seed=3, x_init=x)
    whole = ud.sample(model, (5000, 2), solver, 50, "log_snr", seed=3)
    assert abs(float(x.std() / whole.std()) - 1) < 0.05


def test_draws_of_pieces_never_meet():
    """Of two times of a grid, as many float32 values apart as they are: more than rows between."""
    for process in (ud.VP(), ud.EDM(), ud.Flow(), ud.VE()):
        t = ud.solvers.times("log_snr", process, 1000, "t_min")
        first = [ud.solvers.sampling.plan.first_draw(process, t[i:]) for i in range(len(t))]
        assert first[0] == 0 and all(b - a >= 100 for a, b in itertools.pairwise(first))
        assert first[-1] < 2**31


# --- pickled, compiled, seen
# ------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [*SOLVERS, "spectral"])
def test_a_saved_state_goes_on_to_the_same_bits(solver):
    model = LAW.denoiser(ud.VP())
    sampler = ud.Sampler(
        model, ud.solvers.GaussianPreconditioned(STATS) if solver == "spectral" else solver, 5
    )
    state, file = walk(sampler, sampler.init((2, 2), seed=3), 2), io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    want = sampler.finish(state)
    assert torch.equal(sampler.finish(torch.load(file, weights_only=True)), want)
    assert torch.equal(sampler.finish(pickle.loads(pickle.dumps(state))), want)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun-churn"])
def test_a_sampler_pickles_with_its_table(solver):
    sampler = ud.Sampler(ud.VP(), solver, 5)
    again = pickle.loads(pickle.dumps(sampler))
    ends = [
        [step.x for step in s.steps(s.init((2, 3), seed=1), call=lambda state: state.x_in)][-1]
        for s in (sampler, again)
    ]
    assert torch.equal(*ends)


needs_newer_compiler = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11),
    reason="older compilers trace neither dataclasses.replace nor isinstance of a union",
)


@needs_newer_compiler
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddim", "heun"])
def test_network_and_step_compile_once_for_all_rows(solver):
    """The row is a tensor of the graph, and what a row does not need has a coefficient of 0."""
    graphs = []

    def backend(module, _):
        graphs.append(module)
        return module

    sampler = ud.Sampler(ud.VP(), solver, 14)
    step = torch.compile(
        lambda s: sampler.tell(s, net(s.x_in, s.t_in)), fullgraph=True, backend=backend
    )
    state = plain = sampler.init((2, 3), seed=1)
    with torch.no_grad():
        while not state.done:
            state = step(state)
            plain = sampler.tell(plain, net(plain.x_in, plain.t_in))
    assert torch.allclose(state.x, plain.x, atol=1e-5)
    assert len(graphs) == 1


@needs_newer_compiler
def test_start_and_loop_compile_in_one_graph():
    sampler = ud.Sampler(ud.VP(), "ddim", 3)

    def run(z):
        state = sampler.init((2, 3), x_init=z)
        while not state.done:
            state = sampler.tell(state, net(state.x_in, state.t_in))
        return state.x

    z = ud.kernels.normal((2, 3), 0)
    with torch.no_grad():
        compiled = torch.compile(run, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(z), run(z), atol=1e-5)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun", "spectral"])
def test_a_callback_sees_the_denoised_estimate(solver):
    """D by the denoiser itself, at the state before the row; float32 of numbers up to 3."""
    law = LAW.denoiser(ud.VP())
    model = ud.Denoiser(lambda x, t: law.noise(x, t), ud.VP(), clip=None)
    chosen = ud.solvers.GaussianPreconditioned(STATS) if solver == "spectral" else solver
    seen = []
    ud.sample(model, (2, 2), chosen, 4, callback=seen.append)
    for info in seen:
        assert torch.allclose(info.denoised, law(info.before.x, info.t), atol=5e-3)


def test_a_clipped_estimate_is_clipped_for_the_callback_too():
    model = ud.Denoiser(lambda x, t: torch.full_like(x, 5.0), ud.VP(), "data", clip=(-1, 1))
    seen = []
    ud.sample(model, (1, 2), "ddim", 2, callback=seen.append)
    assert all(torch.equal(info.denoised, torch.ones(1, 2)) for info in seen)


@pytest.mark.parametrize("name", ["ddim", "unipc-3", "dpmpp-2m"])
def test_writing_into_x_is_an_edit(name):
    """The network is asked about what x is now, not what it was."""
    model = ud.targets.Gaussian([0.3, -0.2], 0.5).denoiser(ud.EDM())
    sampler = ud.Sampler(model, name, 5)
    state = next(iter(sampler.steps(sampler.init((3, 2))))).after
    edited = sampler.finish(state.replace(x=state.x * 2))
    state.x.mul_(2)
    assert torch.equal(sampler.finish(state), edited)
    for x in (1.0, state.x.numpy(), state.x[:2]):
        with pytest.raises((TypeError, ValueError), match="x must be"):
            dataclasses.replace(state, x=x)
