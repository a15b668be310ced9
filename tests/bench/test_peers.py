"""Peers: our tables equal theirs on their own grids, and their calls, starts and ends are known."""

import math
import pickle

import pytest
import torch

from undiffuse.bench.nfe.campaign import integrate
from undiffuse.bench.peers import integrators
from undiffuse.bench.peers import samplers as peers
from undiffuse.bench.peers.published import PRINTED
from undiffuse.bench.peers.samplers import DiffusersPeer, KDiffusionPeer
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import Ours, Unavailable
from undiffuse.bench.problems.problem import from_unit, time_at, to_unit
from undiffuse.models import Flow, GaussianMixture, SubVP
from undiffuse.models.named_targets import get
from undiffuse.solvers import DDIM, DPMSolverPP, Heun
from undiffuse.solvers.portable.published import neural_solver, read_published
from undiffuse.solvers.sampling.sample import sample

RING = problems.exact(get("ring2"), 16, seed=2)


def ours_on(solver, ratios):
    """Our solver through the same ratios, ending where the peer ends; w."""
    process = RING.process
    times = [time_at(process, r) for r in ratios if r > 0]
    ends_clean = ratios[-1] == 0
    grid = torch.tensor([*times, process.t_clean] if ends_clean else times, dtype=torch.float64)
    tableau = solver.tableau(process, grid)
    start = from_unit(process, RING.start, times[0])
    x = sample(RING.model, RING.start.shape, tableau, x_init=start, dtype=torch.float64)
    return x if ends_clean else to_unit(process, x, times[-1])


def k_diffusion_or_skip():
    try:
        return integrators.k_sampling()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("options", "solver"),
    [
        ({"use_karras_sigmas": True}, DPMSolverPP(2)),
        ({"use_exponential_sigmas": True, "solver_order": 1}, DDIM()),
    ],
    ids=["2M-karras", "1M-exponential"],
)
def test_our_multistep_equals_diffusers_on_its_grid(options, solver):
    pytest.importorskip("diffusers")
    peer = DiffusersPeer("x", "DPMSolverMultistepScheduler", options)
    plan = peer.plan(RING, 12)
    made = peer._scheduled(RING.process, 12)
    theirs = plan.run(RING.model, RING.start, 0)
    torch.testing.assert_close(theirs, ours_on(solver, made.sigmas.tolist()), rtol=0, atol=3e-5)
    assert (
        plan.calls == 12 and plan.end == 0.0 and plan.start == pytest.approx(RING.r_max, rel=1e-4)
    )


def test_our_ddim_equals_diffusers_ddim():
    pytest.importorskip("diffusers")
    peer = DiffusersPeer("x", "DDIMScheduler", {"clip_sample": False})
    plan = peer.plan(RING, 10)
    ratios = peers._ratios(peer._scheduled(RING.process, 10))
    theirs = plan.run(RING.model, RING.start, 0)
    torch.testing.assert_close(theirs, ours_on(DDIM(), ratios), rtol=0, atol=3e-5)
    assert plan.start == pytest.approx(60.82, rel=1e-3)  # 'leading' does not start at t_max


@pytest.mark.parametrize(
    ("function", "stages", "solver"),
    [("dpmpp_2m", 1, DPMSolverPP(2)), ("heun", 2, Heun()), ("euler", 1, DDIM())],
)
@pytest.mark.parametrize("stop_short", [True, False])
def test_our_tables_equal_k_diffusion_on_its_grid(function, stages, solver, stop_short):
    module = k_diffusion_or_skip()
    peer = KDiffusionPeer("x", function, stages=stages, stop_short=stop_short)
    plan = peer.plan(RING, 12)
    steps = 12 // stages
    sigmas = module.get_sigmas_karras(steps + stop_short, RING.r_min, RING.r_max).double()
    ratios = (sigmas[:-1] if stop_short else sigmas).tolist()
    theirs = plan.run(RING.model, RING.start, 0)
    torch.testing.assert_close(theirs, ours_on(solver, ratios), rtol=0, atol=1e-9)
    assert plan.end == ratios[-1]


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda p: f"{p.library} {p.name}")
@pytest.mark.parametrize("nfe", [5, 8, 40])
def test_every_peer_makes_the_calls_it_is_planned_to_make(peer, nfe):
    if peer.library == "k-diffusion":
        k_diffusion_or_skip()
    elif peer.library == "diffusers":
        pytest.importorskip("diffusers")
    adaptive = isinstance(peer, integrators.AdaptivePeer)
    if adaptive and nfe < 10:  # none of them gets there in so few
        with pytest.raises(Unavailable, match="calls at its loosest tolerance, 1"):
            peer.plan(RING, nfe)
        return
    if peer.library == "published":
        with pytest.raises(Unavailable, match="starts with signal"):
            peer.plan(RING, nfe)
        return
    if peer.name == "srk" and nfe < 11:
        with pytest.raises(Unavailable, match="one step and its check of the SDE make 11 calls"):
            peer.plan(RING, nfe)
        return
    plan = peer.plan(RING, nfe)
    if peer.name == "srk":
        assert plan.calls == 31
    else:
        assert nfe / 2 < plan.calls <= nfe if adaptive else nfe - 1 <= plan.calls <= nfe
    w = integrate(RING, plan, RING.start)  # raises where the count differs
    assert w.dtype == torch.float64 and bool(torch.isfinite(w).all())


@pytest.mark.parametrize(
    "library, name", [("scipy", "RK45"), ("scipy", "DOP853"), ("torchdiffeq", "dopri5 in t")]
)
def test_an_adaptive_peer_comes_closer_with_the_calls_it_is_given(library, name):
    exact = problems.solve(RING, {RING.r_min}).at(RING.r_min)
    errors = []
    for nfe in (40, 100, 300):
        plan = integrators.AdaptivePeer(library, name).plan(RING, nfe)
        assert (plan.start, plan.end, plan.stochastic) == (RING.r_max, RING.r_min, False)
        errors.append(float((integrate(RING, plan, RING.start) - exact).square().mean().sqrt()))
    assert errors[0] > 2 * errors[1] > 2 * errors[2] and errors[2] < 1e-2


def test_an_adaptive_peer_that_fails_at_every_tolerance_says_so(monkeypatch):
    def breaks(model, x, tol):
        raise AssertionError("underflow in dt 0.0")

    broken = integrators.Method("torchdiffeq", "dopri5 in t", breaks)
    monkeypatch.setitem(integrators.METHODS, ("torchdiffeq", "dopri5 in t"), broken)
    peer = integrators.AdaptivePeer("torchdiffeq", "dopri5 in t")
    with pytest.raises(Unavailable, match="AssertionError: underflow in dt"):
        peer.plan(problems.exact(get("ring2"), 4), 40)


def test_our_midpoint_and_torchdiffeqs_converge_to_the_same_states():
    # theirs steps x in t, ours x/alpha in sigma/alpha: two schemes of order 2 of one flow, so their
    # difference falls about by 16 where the steps are quartered
    gaps = []
    for n in (160, 640):
        theirs = integrators.TorchdiffeqPeer("midpoint").plan(RING, n)
        ours = Ours("midpoint").plan(RING, n)
        a, b = (p.run(RING.model, RING.start, 0) for p in (theirs, ours))
        gaps.append(float((a - b).abs().median()))
    assert gaps[1] < gaps[0] / 5


def test_torchsde_steps_through_the_whole_span():
    plan = integrators.TorchsdePeer().plan(RING, 200)
    w = integrate(RING, plan, RING.start)
    nearest = torch.cdist(problems.signal(w, plan.end), RING.law.means).min(1).values
    assert float(nearest.median()) < 0.15  # it has arrived at the ring's modes


def test_stopping_short_leaves_the_jump_out_and_ends_at_sigma_min():
    pytest.importorskip("diffusers")
    options = {"use_exponential_sigmas": True}
    short = DiffusersPeer("x", "UniPCMultistepScheduler", options, stop_short=True).plan(RING, 9)
    whole = DiffusersPeer("x", "UniPCMultistepScheduler", options).plan(RING, 9)
    assert (short.calls, whole.calls) == (9, 9)
    assert short.end == pytest.approx(RING.r_min, rel=1e-4) and whole.end == 0.0


def test_the_discrete_table_of_a_process_has_its_marginals():
    given = torch.tensor(RING.process.betas, dtype=torch.float64)
    torch.testing.assert_close(peers.betas(RING.process), given)


def test_a_table_that_rounds_a_calls_noise_to_nothing_is_no_peer():
    """SubVP at its t_min has sigma/alpha = 1e-4: alpha_bar = 1 - 1e-8, which is 1 in float32."""
    pytest.importorskip("diffusers")
    model = GaussianMixture([1.0], [[0.0, 0.0]], 0.1).denoiser(SubVP())
    posed = problems.network("gauss", "", model, torch.eye(2), 4)
    with pytest.raises(Unavailable, match="float32 table rounds the noise of a call to 0"):
        DiffusersPeer("DDIM", "DDIMScheduler").plan(posed, 5)


def test_a_peer_that_is_absent_says_so(monkeypatch):
    gone = DiffusersPeer("x", "NoSuchScheduler")
    with pytest.raises(Unavailable, match="NoSuchScheduler|not installed"):
        gone.plan(RING, 5)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(__import__("sys").modules, "_k_diffusion_alone.sampling", raising=False)
    with pytest.raises(Unavailable, match="not installed"):
        KDiffusionPeer("x", "heun").plan(RING, 5)


def test_peers_are_chosen_by_library_or_name():
    assert {p.library for p in peers.chosen(["k-diffusion"])} == {"k-diffusion"}
    assert [p.name for p in peers.chosen(["DPM++2M karras"])] == ["DPM++2M karras"]
    assert peers.chosen([]) == [] and peers.chosen(["none"]) == []
    assert len(peers.chosen(None)) == len(peers.PEERS)
    with pytest.raises(ValueError, match="unknown 'difusers'"):
        peers.chosen(["difusers"])


@pytest.mark.parametrize(("nfe", "calls"), [(5, 5), (9, 9), (40, 10)])
def test_neural_solver_is_its_table_with_the_most_calls(nfe, calls):
    process = Flow()
    law = GaussianMixture(torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.1)
    flow = problems.network("two", "two", law.denoiser(process), torch.eye(2), 8, 0)
    plan = PRINTED.plan(flow, nfe)
    assert (plan.calls, plan.stochastic) == (calls, False)
    x = sample(
        flow.model,
        flow.start.shape,
        neural_solver(process, calls),
        x_init=from_unit(process, flow.start, process.t_max),
        dtype=torch.float64,
    )
    found = from_unit(process, integrate(flow, plan, flow.start), time_at(process, plan.end))
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
    with pytest.raises(Unavailable, match="5 calls or more, not within 4"):
        PRINTED.plan(flow, 4)


def test_a_published_file_is_a_peer_and_another_file_another_cell(tmp_path):
    settings = {
        "num_steps": 4,
        "hybrid_weights": torch.nn.Parameter(torch.tril(torch.ones(3, 3)) / 3),
        "t_scale": torch.nn.Parameter(torch.ones(3)),
    }
    files = [tmp_path / f"{name}.pkl" for name in ("a", "b")]
    for k, file in enumerate(files):
        settings["t_scale"] = torch.nn.Parameter(torch.full((3,), 1 + k / 10))
        file.write_bytes(pickle.dumps({"model": {"_parameters": settings} | settings}))
    one, two = peers.chosen([*map(str, files)])
    assert (one.name, two.name) == ("a", "b") and one.final != two.final
    plan = one.plan(RING, 3)
    w = integrate(RING, plan, RING.start)
    table = read_published(files[0], RING.process)
    x = sample(
        RING.model,
        RING.start.shape,
        table,
        x_init=from_unit(RING.process, RING.start, float(table.grid[0])),
        dtype=torch.float64,
    )
    torch.testing.assert_close(w, to_unit(RING.process, x, float(table.grid[-1])))
    with pytest.raises(Unavailable, match="makes 3 calls, not within 2"):
        one.plan(RING, 2)
    with pytest.raises(FileNotFoundError, match="nowhere.pkl"):
        peers.chosen(["nowhere.pkl"])


def test_stochastic_peers_repeat_with_their_seed():
    pytest.importorskip("diffusers")
    plan = DiffusersPeer(
        "x", "EulerAncestralDiscreteScheduler", space="ratio", stochastic=True
    ).plan(RING, 6)
    a, b, c = (plan.run(RING.model, RING.start, s) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert math.isfinite(float(a.sum()))
