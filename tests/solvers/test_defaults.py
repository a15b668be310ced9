"""torch's default dtype and device belong to the user: with any of them every entry point gives the
numbers that it gives without; and what runs on a device needs no float64 there."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import undiffuse as ud
from undiffuse.models import guidance

F32 = {"dtype": torch.float32, "device": "cpu"}
X = torch.linspace(-1, 1, 24, **F32).reshape(3, 8)
LABEL = torch.tensor([1.0, 2.0, 3.0], **F32)
LAW = ud.targets.Gaussian(torch.zeros(8, **F32), 0.5)
TIMES = torch.linspace(1, 0.01, 6, dtype=torch.float64, device="cpu")


def net(x, t, label=None):
    return torch.tanh(x) * t.to(x.dtype)[:, None] * (1.0 if label is None else label[:, None])


def model(**options):
    return ud.Denoiser(net, ud.VP(), predicts="v", **options)


def readouts():
    m = model()
    return m, m.score, m.noise, m.velocity


def told():
    state = (sampler := ud.Sampler(model(), "unipc-3", 4)).init((3, 8), seed=[1, 2, 3])
    while not state.done:
        state = sampler.tell(state, net(state.x_in, state.t_in))
    return state.x


def guided():
    return guidance.cfg(model(), 2.0, uncond={"label": torch.zeros(1, **F32)})


def brownian():
    path = ud.kernels.BrownianPath((3, 8), 5, device="cpu")
    return path.increment(0.1, 0.4)


ENTRIES = {
    **{
        f"sample {name}": lambda name=name: ud.sample(model(), (3, 8), name, 4, seed=2)
        for name in (
            "relay",
            "ddpm",
            "dpmpp-2m-sde",
            "heun-churn",
            "unipc-3",
            "sa-solver-3",
            "vab-4",
        )
        if name in ud.solvers.names()
    },
    **{
        f"grid {name}": lambda name=name: ud.sample(model(), (3, 8), "ddim", 4, name)
        for name in ("uniform", "karras", "log_snr", "cosine", "beta", "leading", "trailing")
    },
    "times": lambda: ud.sample(model(), (3, 8), "ddim", grid=TIMES),
    "x_init": lambda: ud.sample(model(), (3, 8), "ddim", 4, x_init=X),
    "tell": told,
    "cfg": lambda: ud.sample(guided(), (3, 8), "dpmpp-2m", 4, cond={"label": LABEL}),
    "threshold": lambda: ud.sample(guidance.threshold(model(), 0.9), (3, 8), "ddim", 4),
    "flow": lambda: ud.sample(ud.Denoiser(net, ud.Flow(), "flow"), (3, 8), "euler-maruyama", 4),
    "betas": lambda: ud.sample(
        ud.Denoiser(net, ud.VP.from_betas(torch.linspace(1e-4, 0.02, 50, **F32)), "v", "index"),
        (3, 8),
        "dpmpp-2m",
        4,
    ),
    "preconditioned": lambda: ud.sample(
        model(),
        (3, 8),
        ud.solvers.GaussianPreconditioned(ud.solvers.Statistics.of(X.repeat(4, 1), "full")),
        4,
        "log_snr",
    ),
    "read-outs": lambda: torch.cat([f(X, 0.3) for f in readouts()]),
    "read-outs of times": lambda: model().score(X, torch.tensor([0.1, 0.5, 0.9], **F32)),
    "log_prob": lambda: ud.log_prob(model(), X, probes=1).log_prob,
    "exact log_prob": lambda: ud.log_prob(model(), X, trace="exact").log_prob,
    "elbo": lambda: ud.elbo(model(), X, steps=20).log_prob,
    "encode": lambda: ud.encode(model(), X),
    "decode": lambda: ud.decode(model(), X),
    "adaptive ode": lambda: ud.solvers.sample_ode_adaptively(model(), (3, 8)).x,
    "adaptive sde": lambda: ud.solvers.sample_sde_adaptively(model(), (3, 8), rtol=0.1, atol=0.1).x,
    "predictor-corrector": lambda: ud.solvers.predictor_corrector(model(), (3, 8), steps=3).x,
    "flow field": lambda: ud.probability_flow(model())(0.5, X),
    "target": lambda: LAW.sample(3, seed=1).float(),
    "target's log_prob": lambda: LAW.log_prob(X),
    "normal": lambda: ud.kernels.normal((3, 8), 1),
    "uniform": lambda: ud.kernels.uniform((3, 8), 1),
    "euler-maruyama step": lambda: ud.kernels.euler_maruyama_step(X, X, -0.5, 1.0, 0.1),
    "ddpm step": lambda: ud.kernels.ddpm_step(X, X, 0.5, 0.9),
    "langevin step": lambda: ud.kernels.langevin_step(X, X, snr=0.2),
    "runge-kutta step": lambda: ud.kernels.runge_kutta_step(X, [X], [1.0], 0.1).x,
    "quantile": lambda: ud.kernels.dynamic_threshold(3 * X, 0.9),
    "Brownian path": brownian,
}


@contextlib.contextmanager
def defaults(dtype, device):
    before = torch.get_default_dtype(), torch.get_default_device()
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_default_device(before[1])


KINDS = [(torch.float64, "cpu"), (torch.bfloat16, "cpu"), (torch.float16, "meta")]


@pytest.mark.parametrize("entry", ENTRIES)
def test_defaults_change_nothing(entry):
    want = ENTRIES[entry]()
    for dtype, device in KINDS:
        with defaults(dtype, device):
            got = ENTRIES[entry]()
        assert got.dtype == want.dtype and got.device == want.device
        assert torch.equal(got, want), (dtype, device)


class Doubles(TorchDispatchMode):
    """What is float64 and not on the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for v in tree_leaves(out):
            if isinstance(v, torch.Tensor) and v.device.type != "cpu" and v.dtype == torch.float64:
                self.found.append(str(function))
        return out


AWAY = {"dtype": torch.float32, "device": "meta"}


def run(solver, m, grid="log_snr"):
    sampler = ud.Sampler(m, solver, 4, grid, device="meta")
    return sampler.finish(sampler.init((3, 8)), {"label": torch.ones(3, **AWAY)})


def away(name):
    """Steps whose device holds no numbers: what is made there is seen, and nothing can be read."""
    x = torch.empty(3, 8, **AWAY)
    return {
        "euler-maruyama step": lambda: ud.kernels.euler_maruyama_step(x, x, -0.5, 1.0, 0.1),
        "of times": lambda: ud.kernels.euler_maruyama_step(x, x, -0.5, 1.0, x[:, 0]),
        "ddpm step": lambda: ud.kernels.ddpm_step(x, x, 0.5, 0.9),
        "langevin step": lambda: ud.kernels.langevin_step(x, x, snr=0.2),
        "runge-kutta step": lambda: ud.kernels.runge_kutta_step(x, [x], [1.0], 0.1),
        "Brownian path": lambda: ud.kernels.BrownianPath((3, 8), 3, device="meta").increment(
            0.1, 0.3
        ),
        "read-outs": lambda: [f(x, 0.5) for f in readouts()],
        "cfg": lambda: run(
            "dpmpp-2m", guidance.cfg(model(), 2.0, uncond={"label": torch.zeros(1, **AWAY)})
        ),
        "clip": lambda: run("dpmpp-2m", model(clip=(-1.0, 1.0))),
        "flow": lambda: run("euler-maruyama", ud.Denoiser(net, ud.Flow(), "flow"), "uniform"),
        "edm": lambda: run("heun", ud.Denoiser(net, ud.EDM(), "edm"), "karras"),
    }[name]


ON_DEVICE = [
    "euler-maruyama step", "of times", "ddpm step", "langevin step", "runge-kutta step",
    "Brownian path", "read-outs", "cfg", "clip", "flow", "edm",
]  # fmt: skip


@pytest.mark.parametrize("name", [*ON_DEVICE, *ud.solvers.names(aliases=False)])
def test_nothing_is_float64_on_a_device(name):
    call = away(name) if name in ON_DEVICE else lambda: run(name, model())
    with Doubles() as seen, torch.no_grad():
        call()
    assert seen.found == []


def test_it_would_be_seen():
    with Doubles() as seen:
        torch.ones(2, **AWAY).double()
    assert seen.found == ["aten._to_copy.default"]
