"""Every bad call of a sampler is refused before the network is called, naming the argument; what is
taken on purpose stands beside it with its reason."""

import math

import pytest
import torch

import undiffuse as ud

S, NAN = ud.solvers, math.nan
CALLS = [0]


def counted(x, t):
    CALLS[0] += 1
    return 0.1 * x


MODEL = ud.Denoiser(counted, ud.VP())


class Net(torch.nn.Module):
    """float32 parameters, which take no other type."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, x, t):
        return self.linear(x) + 0.1 * t[:, None]


WEIGHTS = ud.Denoiser(Net().eval(), ud.VP())
X = torch.zeros(4, 2)


def sample(**given):
    return ud.sample(MODEL, **{"shape": (4, 2), **given})


REFUSED = {
    "shape of floats": (lambda: sample(shape=(4.7, 2)), "shape"),
    "shape of text": (lambda: sample(shape=("4", 2)), "shape"),
    "shape a text": (lambda: sample(shape="42"), "shape"),
    "shape of truth": (lambda: sample(shape=(True, 2)), "shape"),
    "shape too large": (lambda: sample(shape=(10**9, 10**6)), "GiB"),
    "batch too large": (lambda: sample(shape=(10**12, 2)), "GiB"),
    "shape past int64": (lambda: sample(shape=(10**15, 10**15)), "GiB"),
    "steps nan": (lambda: sample(steps=NAN), "steps"),
    "steps text": (lambda: sample(steps="ten"), "steps"),
    "steps truth": (lambda: sample(steps=True), "steps"),
    "steps a half": (lambda: sample(steps=2.5), "steps"),
    "steps 10^7": (lambda: sample(steps=10**7), "steps"),
    "steps and nfe": (lambda: sample(steps=5, nfe=5), "nfe"),
    "nfe 0": (lambda: sample(nfe=0), "nfe"),
    "nfe of a grid of times": (lambda: sample(nfe=5, grid=[1.0, 0.5]), "nfe"),
    "nfe too few": (lambda: sample(nfe=1, solver="rk4", final="t_min"), "nfe"),
    "sample_ids text": (lambda: sample(sample_ids=["a", "b", "c", "d"]), "sample_ids"),
    "sample_ids 2^70": (lambda: sample(sample_ids=[0, 1, 2, 2**70]), "sample_ids"),
    "x_init nan": (lambda: sample(x_init=X + NAN), "x_init"),
    "x_init inf": (lambda: sample(x_init=X + math.inf), "x_init"),
    "x_init integers": (lambda: sample(x_init=X.long()), "x_init"),
    "x_init complex": (lambda: sample(x_init=X + 0j), "complex"),
    "x_init sparse": (lambda: sample(x_init=X.to_sparse()), "x_init"),
    "x_init numpy": (lambda: sample(x_init=X.numpy()), "ndarray"),
    "x_init meta": (lambda: sample(x_init=X.to("meta")), "meta"),
    "dtype float8": (lambda: sample(dtype=torch.float8_e4m3fn), "dtype"),
    "dtype text": (lambda: sample(dtype="float32"), "dtype"),
    "device unknown": (lambda: sample(device="gpu"), "device"),
    "device meta": (lambda: sample(device="meta"), "meta"),
    "callback without argument": (lambda: sample(callback=lambda: None), "callback"),
    "callback no function": (lambda: sample(callback=3), "callback"),
    "cond a list": (lambda: sample(cond=[1, 2]), "cond"),
    "progress text": (lambda: sample(progress="yes"), "progress"),
    "graph a number": (lambda: sample(graph=1), "graph"),
    "misspelt": (lambda: sample(stpes=5), "stpes"),
    "sampler's device": (lambda: ud.Sampler(ud.VP(), "ddim", 5, device="nonsense"), "device"),
    "predictor_corrector snr": (lambda: S.predictor_corrector(MODEL, (4, 2), snr=1e6), "snr"),
    "predictor_corrector norm": (
        lambda: S.predictor_corrector(MODEL, (4, 2), norm="both"),
        "norm",
    ),
    "predictor_corrector x_init": (
        lambda: S.predictor_corrector(MODEL, (4, 2), x_init=X + NAN),
        "x_init",
    ),
    "annealed corrections": (
        lambda: S.annealed_langevin(MODEL, (4, 2), "karras", corrections=0),
        "corrections",
    ),
    "annealed snr": (lambda: S.annealed_langevin(MODEL, (4, 2), "karras", snr=0), "snr"),
    "annealed shape": (lambda: S.annealed_langevin(MODEL, (4.5, 2), "karras"), "shape"),
    "equidistributed order": (lambda: S.equidistributed(MODEL, (4, 2), order="a"), "order"),
    "equidistributed pilot": (lambda: S.equidistributed(MODEL, (4, 2), pilot=8.5), "pilot"),
    "equidistributed even": (lambda: S.equidistributed(MODEL, (4, 2), even=NAN), "even"),
    "initial_states law": (lambda: S.initial_states(ud.VP(), (4, 2), "x"), "law"),
    "initial_states t": (lambda: S.initial_states(ud.VP(), (4, 2), t=NAN), "t must"),
    "initial_states shape": (lambda: S.initial_states(ud.VP(), (4.2, 2)), "shape"),
    "jump_loss t": (lambda: S.likelihood.jump_loss(MODEL, X, t=9.0), "t must"),
    "jump_loss probes": (lambda: S.likelihood.jump_loss(MODEL, X, probes=0), "probes"),
    "learned variance": (lambda: S.sample_learned_variance(MODEL, (4, 2)), "VarianceHead"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_first_call(name):
    call, word = REFUSED[name]
    CALLS[0] = 0
    with pytest.raises((ValueError, TypeError), match=word):
        call()
    assert CALLS[0] == 0


TAKEN = {
    "two samples of one id are equal": lambda: sample(sample_ids=[0, 0, 1, 1], steps=3),
    "one time and the jump": lambda: sample(grid=[1.0]),
    "a half type is the network's": lambda: sample(dtype=torch.float16, steps=3),
    "a half x_init is widened": lambda: sample(x_init=X.half(), steps=3),
    "a list is a shape": lambda: sample(shape=[4, 2], steps=3),
    "float64 starts of float32 networks": lambda: ud.sample(
        WEIGHTS, (4, 2), steps=3, x_init=X.double()
    ),
    "float64 states of float32 networks": lambda: ud.sample(
        WEIGHTS, (4, 2), steps=3, dtype=torch.float64
    ),
    "no correction is the predictor": lambda: (
        S.predictor_corrector(MODEL, (4, 2), steps=5, corrections=0).x
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken_on_purpose(name):
    assert bool(torch.isfinite(TAKEN[name]()).all())


def test_equal_ids_are_equal_samples_and_a_float64_start_keeps_its_digits():
    x = sample(sample_ids=[0, 0, 1, 1], steps=3)
    assert torch.equal(x[0], x[1]) and torch.equal(x[2], x[3]) and not torch.equal(x[0], x[2])
    assert TAKEN["float64 starts of float32 networks"]().dtype == torch.float64


def test_a_state_of_another_sampler_is_refused():
    few, many = ud.Sampler(ud.VP(), "ddim", 2), ud.Sampler(ud.VP(), "ddim", 9)
    state = many.init((4, 2))
    for _ in range(2):
        state = many.tell(state, X)
    with pytest.raises(ValueError, match="another sampler"):
        few.tell(state, X)
    with pytest.raises(ValueError, match="another sampler"):
        ud.Sampler(ud.VP(), "dpmpp-2m", 9).tell(state, X)


def test_outputs_on_another_device_are_refused():
    sampler = ud.Sampler(ud.VP(), "ddim", 2)
    with pytest.raises(ValueError, match="device"):
        sampler.tell(sampler.init((4, 2)), X.to("meta"))
