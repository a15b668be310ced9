"""The one place where networks are called: what they are shown, return and are warned of."""

import copy
import math
import pickle
import warnings

import pytest
import torch

import undiffuse as ud
from undiffuse.models.readout import READOUTS

G = ud.guidance


class Net(torch.nn.Module):
    def __init__(self, d=4):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(d, d)

    def forward(self, x, t, y=None):
        return self.layer(x) * (0.5 if y is None else 1) + 0.1 * t.to(x.dtype)[:, None]


WRITES = {
    "relu": lambda x, t: x.relu_(),
    "slice": lambda x, t: x.__setitem__((slice(None), 0), 0.0),
    "view": lambda x, t: x.view(-1).mul_(0.5),
    "data": lambda x, t: x.data.clamp_(-1, 1),
    "time": lambda x, t: t.mul_(3.0),
}


def writing(how, out_of_place):
    net = Net()

    def called(x, t):
        if out_of_place:
            x, t = x.clone(), t.clone()
        WRITES[how](x, t)
        return net(x, t)

    return called


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("predicts", ["data", "edm"])
def test_a_network_that_writes_into_its_input_is_the_same_function(how, predicts):
    """For sampling, D, adaptive steps, latents and bounds; what the caller handed in is as it
    was."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    t, keep = torch.full((5,), 0.4), x.clone()
    plain, inplace = (ud.Denoiser(writing(how, c), ud.VP(), predicts) for c in (True, False))
    calls = {
        "D": lambda m: m(x, t),
        "score": lambda m: m.score(x, 0.4),
        "sample": lambda m: ud.sample(m, x.shape, "dpmpp-2m", 4, x_init=x),
        "encode": lambda m: ud.encode(m, x, rtol=1e-2, atol=1e-2),
        "elbo": lambda m: ud.elbo(m, x, steps=16).log_prob,
    }
    for name, call in calls.items():
        for _ in range(2):
            torch.testing.assert_close(call(inplace), call(plain), rtol=1e-5, atol=1e-5, msg=name)
    assert torch.equal(x, keep) and bool((t == 0.4).all())


def test_the_input_may_need_gradients():
    """An in-place layer on a leaf that needs a gradient is an error in torch itself."""
    x = torch.randn(2, 4, requires_grad=True)
    model = ud.Denoiser(writing("relu", False), ud.VP(), "data")
    (g,) = torch.autograd.grad(model(x, 0.5).sum(), x)
    assert torch.equal(g == 0, x <= 0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x: (x, x), r"a tuple of 2.*\[0\]"),
        (lambda x: {"sample": x}, r"a dict of 'sample'.*\['sample'\]"),
        (lambda x: None, "returned None"),
        (lambda x: x.numpy(), "type ndarray"),
        (lambda x: x[:, :1], r"shape of its input \(2, 4\); got \(2, 1\)"),
        (lambda x: x[:1], "shape of its input"),
        (lambda x: x * (1 + 0j), "floating numbers; got torch.complex64"),
        (lambda x: x.long(), "floating numbers; got torch.int64"),
        (lambda x: x.to("meta"), "device, cpu; got one on meta"),
    ],
)
def test_what_comes_back_is_named_at_every_door(wrong, words):
    model, x = ud.Denoiser(lambda x, t: wrong(x), ud.VP()), torch.ones(2, 4)
    for call in (
        lambda: model(x, 0.5),
        lambda: ud.sample(model, (2, 4)),
        lambda: ud.log_prob(model, x),
        lambda: ud.encode(model, x),
        lambda: ud.elbo(model, x),
        lambda: ud.probability_flow(model)(0.5, x),
        lambda: G.threshold(model)(x, 0.5),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            call()


def test_outputs_of_other_types_are_read_in_the_type_of_x():
    x = torch.ones(2, 4)
    for dtype in (torch.float64, torch.bfloat16):
        model = ud.Denoiser(lambda x, t, dtype=dtype: x.to(dtype), ud.VP())
        assert model(x, 0.5).dtype == model.raw(x, 0.5).dtype == torch.float32


def test_types_of_input_and_parameters_are_named():
    with pytest.raises(TypeError, match=r"x is torch.float64 but .* torch.float32: .*net.double"):
        ud.Denoiser(Net(), ud.VP())(torch.ones(2, 4).double(), 0.5)


def test_training_mode_is_named_once():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.1))
    model = ud.Denoiser(lambda x, t: net(x), ud.VP())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ud.sample(model, (2, 4), steps=2)  # a function hides its layers

    class Shown(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    model = ud.Denoiser(Shown(), ud.VP())
    with pytest.warns(UserWarning, match=r"BatchNorm1d, Dropout layers .* net.eval\(\)"):
        ud.sample(model, (2, 4), steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ud.sample(model, (2, 4), steps=2)
        model.net.eval()
        ud.sample(ud.Denoiser(model.net, ud.VP()), (2, 4), steps=2)


def test_conditions_may_have_any_name():
    process = ud.VP()
    seen = torch.tensor([[1.0, -1.0], [0.0, 2.0]])

    def net(theta, s, x, t, self, cond, net, model):
        assert t == 1 and self == 2 and cond == 3 and net == 4 and model == 5
        a, g = (v.to(theta.dtype)[:, None] for v in (process.alpha(s), process.sigma(s)))
        return g * (theta - a * x) / (a * a * 0.25 + g * g)

    names = {"x": seen, "t": 1, "self": 2, "cond": 3, "net": 4, "model": 5}
    model = ud.Denoiser(net, process)
    told = ud.Denoiser(net, process, cond=names)
    assert torch.equal(model(seen, 0.5, **names), told(seen, 0.5))
    exact = torch.distributions.Normal(seen, 0.5).log_prob(seen).sum(1).double()
    assert (ud.log_prob(model, seen, cond=names).log_prob - exact).abs().max() < 0.05
    with pytest.raises(TypeError, match=r"cond\['x'\] has the name"):
        ud.Denoiser(lambda x, t: x, process)(seen, 0.5, x=seen)


CALLED = [0]


def counted(x, t, y=None):
    CALLED[0] += 1
    return (0.1 if y is None else 0.1 + 0.1 * y.to(x.dtype).reshape(-1, 1)) * x


@pytest.mark.parametrize("case", ["one", "zero", "interval", "ramp", "joined", "apart"])
def test_guidance_calls_what_it_says(case):
    """And nothing for what it does not need; nfe is the number of calls made."""
    model, y = ud.Denoiser(counted, ud.VP()), torch.ones(2)
    null = {"y": torch.zeros(2)}
    guided = {
        "one": G.cfg(model, 1.0),
        "zero": G.cfg(model, 0.0),
        "interval": G.cfg(model, 3.0, interval=(0.3, 3.0)),
        "ramp": G.cfg(model, Ramp()),
        "joined": G.cfg(model, 3.0, uncond=null),
        "apart": G.cfg(model, 3.0, uncond=null, batched=False),
    }[case]
    CALLED[0] = 0
    r = ud.sample(guided, (2, 2), "ddim", 12, "log_snr", cond={"y": y}, return_result=True)
    assert r.nfe == CALLED[0]
    ratio = [math.exp(-float(ud.VP().log_snr(t))) for t in r.times]
    doubled = {
        "interval": sum(0.3 <= s <= 3.0 for s in ratio),
        "ramp": sum(t > 0.5 for t in r.times.tolist()),
        "apart": 12,
    }
    assert r.nfe == 12 + doubled.get(case, 0)
    if case in ("one", "zero"):
        told = {"y": y} if case == "one" else {}
        assert torch.equal(r.x, ud.sample(model, (2, 2), "ddim", 12, "log_snr", cond=told))
    if case == "joined":
        apart = G.cfg(model, 3.0, uncond=null, batched=False)
        other = ud.sample(apart, (2, 2), "ddim", 12, "log_snr", cond={"y": y})
        torch.testing.assert_close(r.x, other, rtol=1e-6, atol=1e-6)


class Ramp:
    """1 up to t = 1/2, then 3."""

    def __call__(self, t):
        return torch.where(t > 0.5, 3.0, 1.0).double()


def minus_square(x, t):
    return -0.1 * x.square().sum(1)


def half(x):
    return x[:, ::2]


KNOWN = torch.linspace(-1, 1, 12).reshape(3, 4)


def made(base):
    return {
        "plain": base,
        "cfg": G.cfg(base, torch.tensor([0.5, 2.0, 3.0]), uncond={"y": torch.zeros(1)}),
        "cfg++": G.cfg(base, G.cfgpp(ud.VP(), [1.0, 0.5, 0.0], 0.6)),
        "auto": G.autoguidance(base, ud.Denoiser(Net(), ud.VP(), "v"), 1.5),
        "classifier": G.classifier(base, minus_square, 0.5),
        "inpaint": G.inpaint(base, KNOWN, (KNOWN > 0).float()),
        "posterior": G.posterior(base, KNOWN[:, ::2], half, 0.3),
        "threshold": G.threshold(G.cfg(base, 2.0)),
        "retimed": ud.models.adapters.retime(base, ud.EDM()),
    }


@pytest.mark.parametrize("name", made(ud.Denoiser(Net(), ud.VP())))
def test_models_pickle_copy_and_move(name):
    """And say the same afterwards; a copy calls networks of its own."""
    model = made(ud.Denoiser(Net(), ud.VP(), "v"))[name]
    x, cond = torch.ones(3, 4), {"y": torch.ones(3)}
    t = 0.5 * model.process.t_max
    want = model(x, t, **cond)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(again(x, t, **cond), want)
        assert again.calls == model.calls
        for net in again.networks:
            net.layer.weight.data.zero_()
        assert torch.equal(model(x, t, **cond), want)
    wide = copy.deepcopy(model).to(torch.float64)
    cond = {"y": cond["y"].double()}
    torch.testing.assert_close(wide(x.double(), t, **cond), want.double(), rtol=1e-5, atol=1e-5)
    counts = []

    def count(net):
        return lambda x, t, **c: counts.append(1) or net(x, t, **c)

    assert torch.equal(model.map(count)(x, t, y=torch.ones(3)), want)
    assert 1 <= len(counts) <= model.calls


@pytest.mark.parametrize("predicts", list(READOUTS))
def test_raw_outputs_reach_cfg_as_they_are(predicts):
    """x_in and t_in of a caller's own loop go through: the line between both raw outputs."""
    model = ud.Denoiser(Net(), ud.VP(), predicts)
    x, t, y = torch.randn(3, 4), torch.full((3,), 0.3), torch.ones(3)
    guided = G.cfg(model, 2.0)
    want = model.net(x, t) + 2 * (model.net(x, t, y) - model.net(x, t))
    torch.testing.assert_close(guided.net(x, t, y=y), want, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"trace": "exact"}, {"trace": "hutchinson", "probes": 3}])
def test_a_compiled_network_is_the_same_function(options):
    torch._dynamo.reset()
    net, x = Net(), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    want = ud.log_prob(ud.Denoiser(net, ud.VP()), x, **options).log_prob
    compiled = torch.compile(net, backend="aot_eager")
    compiled(x.clone().requires_grad_(), torch.ones(3))  # compiled before it was handed over
    got = ud.log_prob(ud.Denoiser(compiled, ud.VP()), x, **options).log_prob
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda x: x, "takes .x.: too many positional"),
        (lambda *, x, t: x, "too many positional"),
        (lambda x, t, y: x, "missing a required argument: 'y'"),
        (lambda x, t: x.to_sparse(), "dense tensor.*sparse_coo"),
        (lambda x, t: x.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
)
def test_what_cannot_be_called_or_used_is_said_in_our_words(net, words):
    model = ud.Denoiser(net, ud.VP())
    for call in (
        lambda: model(torch.zeros(2, 2), 0.5),
        lambda: ud.encode(model, torch.zeros(2, 2)),
    ):
        with pytest.raises(ud.UndiffuseError, match=words):
            call()
