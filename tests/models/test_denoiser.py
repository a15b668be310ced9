"""Read-outs against the definitions they replace, at both ends of time."""

import math
import warnings

import pytest
import torch

import undiffuse as ud
from undiffuse.models import READOUTS, convert

PROCESSES = [make() for make in ud.models.PROCESSES.values()]


def truth(process, t, x0, eps, sigma_data=0.5):
    """Every prediction from its textbook definition, for a known (x_0, eps)."""
    a, s = process.alpha(t), process.sigma(t)
    x = a * x0 + s * eps
    sh = s / a  # EDM works on x/alpha at noise level sigma/alpha
    c_skip = sigma_data**2 / (sh**2 + sigma_data**2)
    c_out = sh * sigma_data / torch.sqrt(sh**2 + sigma_data**2)
    return x, {
        "data": x0,
        "noise": eps,
        "score": -eps / s,
        "v": a * eps - s * x0,
        "flow": process.alpha_dot(t) * x0 + process.sigma_dot(t) * eps,
        "edm": (x0 - c_skip * x / a) / c_out,
    }


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("source", READOUTS)
@pytest.mark.parametrize("target", READOUTS)
def test_every_conversion_is_the_definition(process, source, target):
    t = torch.tensor([0.02, 0.4, 0.97], dtype=torch.float64) * process.t_max
    x0, eps = torch.tensor([0.7]).double(), torch.tensor([-1.3]).double()
    x, known = truth(process, t, x0, eps)
    skip, scale = convert(process, t, source, target)
    got = skip * x + scale * known[source]
    torch.testing.assert_close(got, known[target].expand_as(got), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", READOUTS)
def test_reading_what_is_predicted_costs_nothing(name):
    skip, scale = convert(ud.VP(), 0.3, name, name)
    assert (float(skip), float(scale)) == (0.0, 1.0)


def test_exact_at_both_ends_of_time():
    # alpha = 0: v and flow networks still tell the data; x is pure noise, so v = -x0, u = eps - x0
    assert tuple(map(float, convert(ud.Flow(), 1.0, "flow", "data"))) == (1.0, -1.0)
    assert tuple(map(float, convert(ud.Flow(), 1.0, "v", "data"))) == (0.0, -1.0)
    # sigma = 0: x is the data, whatever the network says
    for source in ("noise", "data", "v", "flow", "edm"):
        skip, scale = convert(ud.Flow(), 0.0, source, "data")
        assert float(skip) * 1.7 + float(scale) * (1.7 if source == "data" else 0.0) == 1.7
    # and the EDM network's own skip connection takes over
    assert tuple(map(float, convert(ud.EDM(), 0.0, "edm", "data"))) == (1.0, 0.0)


@pytest.mark.filterwarnings("ignore:predicts=")
@pytest.mark.parametrize(
    ("process", "t", "source", "target"),
    [
        (ud.Flow(), 1.0, "noise", "data"),
        (ud.Flow(), 1.0, "score", "data"),
        (ud.Flow(), 0.0, "data", "noise"),
        (ud.EDM(), 0.0, "noise", "score"),
    ],
)
def test_a_readout_that_does_not_exist_is_refused_before_the_network_is_called(
    process, t, source, target
):
    def net(x, t):
        raise AssertionError("called")

    model = ud.Denoiser(net, process, predicts=source)
    read = {"data": model, "noise": model.noise, "score": model.score}[target]
    with pytest.raises(ValueError, match=f"{target!r} read-out .* does not exist at t={t:g}"):
        read(torch.zeros(2, 3), t)


def test_all_read_outs_of_one_truth_give_one_denoiser():
    target = ud.targets.GaussianMixture([1, 3], [[0.0, 1.0], [2.0, -1.0]], [0.3, 0.1])
    process, x = ud.VP(), torch.randn(6, 2, dtype=torch.float64)
    exact = target.denoiser(process)
    for name in ("noise", "data", "score", "v", "flow"):
        read = {"noise": exact.noise, "score": exact.score, "flow": exact.velocity}.get(name, exact)
        if name == "v":

            def read(x, t):
                skip, scale = convert(process, t, "data", "v")
                return skip[:, None] * x + scale[:, None] * exact(x, t)

        model = ud.Denoiser(read, process, predicts=name)
        torch.testing.assert_close(model(x, 0.4), exact(x, 0.4), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.score(x, 0.4), exact.score(x, 0.4), rtol=1e-9, atol=1e-9)


def test_the_network_is_told_time_and_scale_by_convention():
    seen = {}

    def net(x, t):
        seen["x"], seen["t"] = x, t
        return torch.zeros_like(x)

    x = torch.ones(2, 3)
    ud.Denoiser(net, ud.VP())(x, 0.25)
    assert seen["t"].tolist() == [0.25, 0.25] and seen["t"].dtype == torch.float32
    ud.Denoiser(net, ud.VP(), time="index", steps=1000)(x, torch.tensor([1.0, 0.001]))
    assert seen["t"].tolist() == pytest.approx([999.0, 0.0], abs=1e-4)
    ud.Denoiser(net, ud.EDM(), predicts="edm")(x, 2.0)
    assert seen["t"][0] == pytest.approx(math.log(2.0) / 4)  # c_noise
    assert seen["x"][0, 0] == pytest.approx(1 / math.sqrt(2.0**2 + 0.25))  # c_in
    ud.Denoiser(net, ud.VE(), time=lambda t: t * 999)(x, 0.5)
    assert seen["t"][0] == 499.5


def test_the_process_decides_what_is_left_open():
    net = torch.nn.Identity()
    assert ud.Denoiser(net, ud.EDM(sigma_data=1.0), predicts="edm").sigma_data == 1.0
    assert ud.Denoiser(net, ud.VP(), predicts="edm").sigma_data == 0.5
    table = ud.VP.from_betas(torch.linspace(1e-3, 0.2, 100))
    assert ud.Denoiser(net, table, time="index").steps == 100
    with pytest.raises(ValueError, match="steps must be the 100"):
        ud.Denoiser(net, table, time="index", steps=1000)
    with pytest.raises(ValueError, match="t_max=80"):
        ud.Denoiser(net, ud.EDM(), time="index")
    with pytest.raises(ValueError, match="infinite at t=1"):
        ud.Denoiser(net, ud.Flow(), predicts="edm")(torch.zeros(1, 2), 1.0)


def test_vector_times_broadcast_over_the_batch():
    model = ud.targets.Gaussian([0.0, 1.0], 0.5).denoiser(ud.Flow())
    x, t = torch.randn(3, 2), torch.tensor([0.1, 0.5, 0.9])
    each = torch.cat([model(x[i : i + 1], float(t[i])) for i in range(3)])
    torch.testing.assert_close(model(x, t), each)


def test_clip_clamps_the_data_prediction_and_what_is_read_from_it():
    model = ud.Denoiser(lambda x, t: 5 * torch.ones_like(x), ud.VP(), predicts="data", clip=(-1, 1))
    x = torch.randn(2, 3, dtype=torch.float64)
    assert bool((model(x, 0.5) == 1).all())
    a, s = ud.VP().alpha(0.5), ud.VP().sigma(0.5)
    torch.testing.assert_close(model.score(x, 0.5), (a * 1 - x) / s**2)
    assert "clip=(-1, 1)" in repr(model)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ud.Denoiser(torch.nn.Identity(), ud.VP(), predicts="eps"), "noise, score, v"),
        (lambda: ud.Denoiser(torch.nn.Identity(), ud.VP(), time="seconds"), "continuous, index"),
        (lambda: ud.Denoiser(torch.nn.Identity(), ud.VP(), steps=0), "steps"),
        (lambda: ud.Denoiser(torch.nn.Identity(), ud.VP(), clip=(1, -1)), "clip"),
        (lambda: ud.Denoiser(lambda x, t: x[:, :1], ud.VP())(torch.zeros(2, 3), 0.5), "net must"),
        (lambda: ud.Denoiser(lambda x, t: x, ud.VP())(torch.zeros(2, 3), torch.ones(3)), "t must"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("predicts", ["noise", "score", "v", "data"])
@pytest.mark.parametrize("process", [ud.Flow(), ud.VP.cosine(), ud.VP(), ud.VE()], ids=repr)
def test_noise_where_alpha_is_next_to_0_is_warned_of(process, predicts):
    """D = (x - sigma eps)/alpha; the remedy is named, and where it is applied nothing is said."""
    told = predicts in ("noise", "score") and process.noisiest_ratio > 999
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ud.Denoiser(lambda x, t: x, process, predicts)
        ud.Denoiser(lambda x, t: x, process, predicts, clip=(-1, 1))
    assert len(said) == told
    if told:
        assert "alpha=" in str(said[0].message) and "predicts 'v'" in str(said[0].message)
        assert said[0].filename == __file__
