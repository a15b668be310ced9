"""Whole runs in one CUDA graph."""

import pickle

import pytest
import torch

import undiffuse as ud


def model(device="cpu"):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.SiLU(), torch.nn.Linear(64, 16))
    net = net.to(device).requires_grad_(False)
    return ud.Denoiser(lambda x, t: net(x) * t[:, None], ud.VP(), predicts="v")


def test_a_graph_is_refused_where_there_is_no_gpu():
    with pytest.raises(ValueError, match="CUDA graph needs a CUDA device; this run is on cpu"):
        ud.sample(model(), (2, 16), steps=3, graph=True)
    with pytest.raises(ValueError, match="CUDA device"):
        ud.Sampler(model(), steps=3).capture((2, 16))
    with pytest.raises(ValueError, match="callback"):
        ud.sample(model(), (2, 16), steps=3, graph=True, callback=print)


def test_auto_runs_by_hand_where_there_is_no_gpu():
    m = ud.Denoiser(Told(), ud.VP(), predicts="v")
    plain = ud.sample(m, (2, 16), "ddpm", 4, seed=3, cond={"y": torch.ones(2)})
    for _ in range(3):
        auto = ud.sample(
            m,
            (2, 16),
            "ddpm",
            4,
            seed=3,
            cond={"y": torch.ones(2)},
            graph="auto",
            callback=lambda step: None,
        )
        assert torch.equal(auto, plain)
    for wrong in ("yes", 1, None):
        with pytest.raises(TypeError, match="graph must be True, False or 'auto'"):
            ud.sample(m, (2, 16), steps=3, graph=wrong)
    assert pickle.loads(pickle.dumps(m))._seen.repeated is None


class Told(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(16, 16).requires_grad_(False)
        self.asked = 0

    def forward(self, x, t, y):
        self.asked += 1
        return self.layer(x) * t[:, None] * y[:, None]


@pytest.mark.gpu
def test_auto_captures_what_it_meets_twice_and_hears_every_change():
    net = Told().cuda()
    m = ud.Denoiser(net, ud.VP(), predicts="v")

    def both(seed, y, x_init=None):
        options = {"seed": seed, "cond": {"y": torch.full((2,), y, device="cuda")}}
        want = ud.sample(m, (2, 16), "ddpm", 4, **options, x_init=x_init)
        got = ud.sample(m, (2, 16), "ddpm", 4, **options, x_init=x_init, graph="auto")
        assert torch.equal(got, want)
        return got

    both(1, 1.0)
    first = both(1, 1.0)  # captured here
    kept, asked = first.clone(), net.asked
    for k in range(3):
        both(k, 1.0 + k)
    assert net.asked == asked + 3 * 4  # by hand alone: replays do not enter Python
    assert torch.equal(first, kept)  # nobody else's memory
    net.layer.weight.mul_(0.5)  # in place: the graph reads it
    both(5, 2.0)
    net.layer.weight = torch.nn.Parameter(0.1 * net.layer.weight, requires_grad=False)
    both(5, 2.0)  # another address: another graph
    both(6, 1.0, torch.randn(2, 16, device="cuda"))


@pytest.mark.gpu
def test_auto_runs_by_hand_what_cannot_be_captured():
    class Looks(Told):
        def forward(self, x, t, y):
            return super().forward(x, t, y) * (1.0 if float(t[0]) > 0.5 else 0.9)

    m = ud.Denoiser(Looks().cuda(), ud.VP(), predicts="v")
    cond = {"y": torch.ones(2, device="cuda")}
    want = ud.sample(m, (2, 16), "ddpm", 4, cond=cond)
    ud.sample(m, (2, 16), "ddpm", 4, cond=cond, graph="auto")
    with pytest.warns(UserWarning, match="cannot be captured"):
        assert torch.equal(ud.sample(m, (2, 16), "ddpm", 4, cond=cond, graph="auto"), want)
    assert torch.equal(ud.sample(m, (2, 16), "ddpm", 4, cond=cond, graph="auto"), want)


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddpm", "heun-churn"])
def test_replays_equal_the_eager_loop_for_new_seeds_and_ids(solver):
    sampler = ud.Sampler(model("cuda"), solver, steps=8, device="cuda")
    run = sampler.capture((4, 16))
    for seed, ids in ((0, None), (7, [5, 3, 1, 9])):
        eager = ud.sample(
            model("cuda"), (4, 16), solver, 8, seed=seed, sample_ids=ids, device="cuda"
        )
        assert torch.equal(run(seed, ids), eager)


@pytest.mark.gpu
def test_a_graph_keeps_alive_what_it_reads():
    run = ud.Sampler(model("cuda"), "ddpm", steps=8, device="cuda").capture((4, 16))
    first = run(3).clone()
    junk = [torch.full((64, 1024), -1, dtype=torch.int64, device="cuda") for _ in range(200)]
    assert torch.equal(run(3), first)
    assert int(junk[-1][0, 0]) == -1  # and what others hold by now is not written to


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["full", "leading", "cosine"])
def test_a_table_over_components_is_captured_too(kind):
    data = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    solver = ud.solvers.GaussianPreconditioned(ud.solvers.Statistics.of(data, kind))
    sampler = ud.Sampler(model("cuda"), solver, 8, "log_snr", device="cuda")
    eager = ud.sample(model("cuda"), (4, 16), solver, 8, "log_snr", seed=7, device="cuda")
    assert torch.equal(sampler.capture((4, 16))(7), eager)


@pytest.mark.gpu
def test_the_loop_never_waits_for_the_device():
    sampler = ud.Sampler(model("cuda"), "dpmpp-2m-sde", steps=8, device="cuda")
    state = sampler.init((4, 16), seed=torch.zeros(4, dtype=torch.int64, device="cuda"))
    sampler.tell(state, sampler.model.net(state.x_in, state.t_in))  # compiles the kernel
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        while not state.done:
            state = sampler.tell(state, sampler.model.net(state.x_in, state.t_in))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.isfinite(state.x).all())


@pytest.mark.gpu
def test_the_same_seed_gives_the_same_sample_on_every_device():
    def elementwise(x, t):
        return x * t[:, None, None]

    for solver in ("dpmpp-2m", "ddpm", "heun-churn"):
        run = {
            device: ud.sample(
                ud.Denoiser(elementwise, ud.VP()), (3, 5, 7), solver, 6, seed=4, device=device
            ).cpu()
            for device in ("cpu", "cuda")
        }
        assert torch.equal(run["cpu"], run["cuda"])
