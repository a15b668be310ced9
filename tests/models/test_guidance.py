"""Guidance on targets where the guided law is known."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import undiffuse as ud
from undiffuse.models import EDM, READOUTS, VE, VP, Denoiser, Flow, GaussianMixture, guidance
from undiffuse.models.readout import TIME_CONVENTIONS, convert
from undiffuse.models.readout import true_time as time_of

F64 = torch.float64


def true_time(model, told):
    return time_of(model.process, told.double(), model.time, model.steps)


MEANS = torch.tensor([[1.5, 0.5], [-1.0, 1.0], [0.0, -1.5]], dtype=F64)
COVS = torch.tensor([0.2, 0.4, 0.1], dtype=F64)
TARGET = GaussianMixture([0.5, 0.3, 0.2], MEANS, COVS)
MODES = [GaussianMixture([1.0], MEANS[k : k + 1], COVS[k : k + 1]) for k in range(3)]
PROCESS = VP()


def batch(n=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, dtype=F64, generator=g)
    return x, torch.linspace(0.05, 0.95, n, dtype=F64)


def labelled(predicts="data", time="continuous", process=PROCESS, **options):
    """The exact network told which mode (label k), or none (label None), with any read-out."""
    shell = Denoiser(lambda x, t: x, process, predicts=predicts, time=time, **options)

    def net(x_in, t_in, label=None):
        t = true_time(shell, t_in)
        x = x_in / shell.network_scale(t)[:, None]
        law = TARGET if label is None else MODES[label]
        skip, scale = convert(process, t, "data", predicts, shell.sigma_data)
        return skip[:, None] * x + scale[:, None] * law.data_prediction(x, t, process)

    return replace(shell, net=net)


def mode_log_prob(k, process=PROCESS):
    """log p(mode k | x_t), by Bayes, less a constant."""

    def log_prob(x, t):
        return MODES[k].log_prob(x, t, process) - TARGET.log_prob(x, t, process)

    return log_prob


@pytest.mark.filterwarnings("ignore:predicts='noise' at t_max")
@pytest.mark.parametrize("time", TIME_CONVENTIONS)
@pytest.mark.parametrize("process", [VP(), VE(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_the_true_time_is_found_again(process, time):
    if time == "index" and process.t_max != 1:
        with pytest.raises(ValueError, match="counts steps on t in"):
            Denoiser(lambda x, t: x, process, time=time, steps=77)
        return
    model = Denoiser(lambda x, t: x, process, time=time, steps=77)
    t = torch.linspace(process.t_min, 0.99 * process.t_max, 50, dtype=F64)
    torch.testing.assert_close(true_time(model, model.network_time(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("predicts", list(READOUTS))
@pytest.mark.parametrize("time", ["continuous", "index", "edm"])
def test_cfg_is_the_line_through_both_data_predictions(predicts, time):
    x, t = batch()
    guided = guidance.cfg(labelled(predicts, time), 2.5)
    assert (guided.predicts, guided.time) == (predicts, time)
    d_c, d_u = (law.data_prediction(x, t, PROCESS) for law in (MODES[1], TARGET))
    wanted = d_u + 2.5 * (d_c - d_u)
    torch.testing.assert_close(guided(x, t, label=1), wanted, rtol=1e-8, atol=1e-8)
    # and its score is the sharpened one, s_u + w (s_c - s_u)
    score = (PROCESS.alpha(t)[:, None] * wanted - x) / PROCESS.sigma(t)[:, None] ** 2
    torch.testing.assert_close(guided.score(x, t, label=1), score, rtol=1e-7, atol=1e-7)


def test_cfg_scale_may_depend_on_time_and_sample_and_be_confined():
    x, t = batch()
    model = labelled("v")
    d = {w: guidance.cfg(model, w)(x, t, label=0) for w in (0.0, 1.0, 3.0)}
    torch.testing.assert_close(d[1.0], model(x, t, label=0))
    torch.testing.assert_close(d[0.0], model(x, t))
    noise = torch.exp(-PROCESS.log_snr(t))
    inside = ((noise >= 0.2) & (noise <= 2.0))[:, None]
    assert inside.any() and not inside.all()
    confined = guidance.cfg(model, 3.0, interval=(0.2, 2.0))(x, t, label=0)
    torch.testing.assert_close(confined, torch.where(inside, d[3.0], d[1.0]))
    ramp = guidance.cfg(model, lambda t: 1 + 2 * t)(x, t, label=0)
    line = (d[3.0] - d[1.0]) / 2
    torch.testing.assert_close(ramp, d[1.0] + 2 * t[:, None] * line)
    each = guidance.cfg(model, torch.linspace(0, 3, 32))(x, t, label=0)
    torch.testing.assert_close(each[0], d[0.0][0])
    torch.testing.assert_close(each[-1], d[3.0][-1])


def test_cfg_rescale_brings_back_the_standard_deviation():
    x, t = torch.randn(4, 200, dtype=F64), torch.full((4,), 0.5, dtype=F64)
    model = Denoiser(lambda x, t, label=None: x * (0.3 if label is None else 0.5), PROCESS)
    plain, half, full = (
        guidance.cfg(model, 5.0, rescale=r).raw(x, t, label=0) for r in (0, 0.5, 1)
    )
    torch.testing.assert_close(full.std(1), 0.5 * x.std(1))
    torch.testing.assert_close(half, 0.5 * (plain + full))


def test_cfg_takes_the_unconditional_arguments_it_is_given():
    seen = []

    def net(x, t, label=None, size=None):
        seen.append((label, size))
        return x

    model = Denoiser(net, PROCESS, cond={"size": 3})
    guidance.cfg(model, 2.0, uncond={"label": -1})(torch.zeros(1, 2), 0.5, label=7)
    assert seen == [(7, 3), (-1, 3)]
    with pytest.raises(ValueError, match="no condition to guide towards"):
        guidance.cfg(labelled(), 2.0)(*batch())


@pytest.mark.parametrize("predicts", ["noise", "edm"])
def test_cfgpp_is_ddim_that_adds_back_the_unconditional_noise(predicts):
    process, strength = VP(), 0.7
    grid = torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1, 0.0], dtype=F64)
    model = labelled(predicts)
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    by_hand = x
    for t, s in pairwise(grid):
        d_u = TARGET.data_prediction(by_hand, t, process)
        d = d_u + strength * (MODES[0].data_prediction(by_hand, t, process) - d_u)
        eps_u = (by_hand - process.alpha(t) * d_u) / process.sigma(t)
        by_hand = process.alpha(s) * d + process.sigma(s) * eps_u
    guided = guidance.cfg(model, guidance.cfgpp(process, grid, strength))
    sampled = ud.sample(
        guided, x.shape, "ddim", steps=None, grid=grid, x_init=x, cond={"label": 0}, dtype=F64
    )
    torch.testing.assert_close(sampled, by_hand, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("predicts", list(READOUTS))
def test_the_right_classifier_at_scale_one_gives_the_conditional_law(predicts):
    x, t = batch()
    for k in range(3):
        guided = guidance.classifier(labelled(predicts), mode_log_prob(k))
        wanted = MODES[k].data_prediction(x, t, PROCESS)
        torch.testing.assert_close(guided(x, t), wanted, rtol=1e-7, atol=1e-7)
    doubled = guidance.classifier(labelled(predicts), mode_log_prob(0), scale=2.0).score(x, t)
    s_u, s_c = (m.denoiser(PROCESS).score(x, t) for m in (TARGET, MODES[0]))
    torch.testing.assert_close(doubled, 2 * s_c - s_u, rtol=1e-6, atol=1e-6)


def test_samples_guided_by_a_classifier_have_the_moments_of_the_mode():
    n = 4000
    guided = guidance.classifier(TARGET.denoiser(PROCESS), mode_log_prob(1))
    x = ud.sample(guided, (n, 2), "heun", steps=80, seed=1, dtype=F64)
    # four standard errors of a mean and of a variance of n normals
    assert (x.mean(0) - MEANS[1]).abs().max() < 4 * math.sqrt(0.4 / n)
    assert (x.var(0) - 0.4).abs().max() < 4 * 0.4 * math.sqrt(2 / n)


def test_a_noisy_classifier_that_was_trained_finds_its_class():
    # logistic regression on (x, noise level) features learns p(mode 0 or not | x_t)
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    weights = torch.tensor([0.5, 0.3, 0.2])
    for _ in range(400):
        k = torch.multinomial(weights, 512, replacement=True, generator=g)
        z = torch.randn(512, 2, generator=g)
        x_0 = MEANS.float()[k] + COVS.float().sqrt()[k, None] * z
        t = torch.rand(512, generator=g)
        alpha, sigma = PROCESS.alpha(t).float()[:, None], PROCESS.sigma(t).float()[:, None]
        x_t = alpha * x_0 + sigma * torch.randn(512, 2, generator=g)
        loss = torch.nn.functional.cross_entropy(net(torch.cat([x_t, t[:, None]], 1)), k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def log_prob(x, t):
        return net(torch.cat([x, t[:, None].to(x)], 1)).log_softmax(1)[:, 2]

    shares = {}
    for scale in (0.0, 1.0, 3.0):
        guided = guidance.classifier(TARGET.denoiser(PROCESS), log_prob, scale)
        x = ud.sample(guided, (1000, 2), "dpmpp-2m", steps=15, seed=2)
        logits = torch.stack([m.log_prob(x) for m in MODES], 1) + weights.log()
        shares[scale] = float((logits.argmax(1) == 2).float().mean())
    assert abs(shares[0.0] - 0.2) < 0.06  # the weight of the mode, unguided
    assert shares[1.0] > 0.9 and shares[3.0] > 0.97


def test_autoguidance_extrapolates_from_the_weak_model():
    x, t = batch()
    weak = MODES[1].denoiser(PROCESS)
    guided = guidance.autoguidance(labelled("noise", "edm"), weak, 1.8)
    d, d_weak = (law.data_prediction(x, t, PROCESS) for law in (TARGET, MODES[1]))
    torch.testing.assert_close(guided(x, t), d_weak + 1.8 * (d - d_weak))
    with pytest.raises(ValueError, match=r"weak must be of VP.*; it is of VE"):
        guidance.autoguidance(labelled(), TARGET.denoiser(VE()), 2.0)


def test_dynamic_thresholding_clamps_to_a_quantile_and_rescales():
    d = torch.tensor([[0.1, -0.4, 0.8, 3.0], [0.1, -0.4, 0.8, -0.9]], dtype=F64)
    model = Denoiser(lambda x, t: d, PROCESS, predicts="data")
    out = guidance.threshold(model, ratio=2 / 3)(torch.zeros(2, 4, dtype=F64), 0.5)
    # the 2/3 quantile of the first |D| is 0.8 < 1, of the row with 3.0 at ratio 1 it is 3
    torch.testing.assert_close(out, d.clamp(-1, 1))
    out = guidance.threshold(model, ratio=1.0)(torch.zeros(2, 4, dtype=F64), 0.5)
    torch.testing.assert_close(out, torch.stack([d[0] / 3, d[1]]))


def test_guided_models_print_what_they_do_and_nest():
    model = labelled("noise")
    text = repr(guidance.threshold(guidance.cfg(model, 3.0, interval=(0.2, 5.0))))
    assert "threshold(ratio=0.995, limit=1.0, cfg(scale=3, interval=(0.2, 5.0)" in text
    x, t = batch()
    nested = guidance.classifier(guidance.cfg(model, 2.0), mode_log_prob(0), 0.5)
    d = guidance.cfg(model, 2.0)(x, t, label=1)
    shift = nested(x, t, label=1) - d
    assert shift.abs().max() > 0.01


def test_guided_models_are_differentiable_for_likelihoods():
    x, t = batch(4)
    guided = guidance.classifier(TARGET.denoiser(PROCESS), mode_log_prob(1))
    exact = MODES[1].denoiser(PROCESS)

    def jacobian(model, i):
        return torch.autograd.functional.jacobian(lambda v: model(v[None], t[i])[0], x[i])

    for i in range(4):
        torch.testing.assert_close(jacobian(guided, i), jacobian(exact, i), rtol=1e-6, atol=1e-6)


def test_a_sample_counts_the_calls_that_guidance_makes():
    """cfg asks the network twice an evaluation: 7 steps are 14 calls, counted where they are
    made."""
    model, made = labelled(), []
    counted = replace(model, net=lambda *a, **k: made.append(1) or model.net(*a, **k))
    given = {"cond": {"label": 1}, "dtype": F64, "return_result": True}
    for how, calls in ((counted, 7), (guidance.cfg(counted, 2.0), 14)):
        made.clear()
        found = ud.sample(how, (4, 2), "ddim", 7, "log_snr", final="t_min", **given)
        assert found.nfe == len(made) == calls and len(found.times) == 7


@pytest.mark.parametrize("batched", [True, False])
def test_a_number_of_calls_pays_for_what_guidance_costs(batched):
    """Eight calls are eight steps where one call serves both conditions, and four where two do."""
    called = []

    def net(x, t, label):
        called.append(len(x))
        return x * label[:, None]

    model = Denoiser(net, VP(), predicts="noise")
    guided = guidance.cfg(model, 3.0, uncond={"label": torch.zeros(1)}, batched=batched)
    run = {"nfe": 8, "cond": {"label": torch.ones(2)}, "return_result": True}
    found = ud.sample(guided, (2, 3), "ddim", **run)
    assert found.nfe == len(called) == 8
    assert called == ([4] * 8 if batched else [2] * 8) and len(found.times) == (8 if batched else 4)
    if not batched:
        with pytest.raises(ValueError, match="nfe=1 does not pay for one step: guidance makes 2"):
            ud.sample(guided, (2, 3), "ddim", **run | {"nfe": 1})


def test_a_copy_of_a_guided_model_calls_its_own_networks():
    net = torch.nn.Linear(2, 2)
    inner = Denoiser(lambda x, t, label=None: net(x), PROCESS, predicts="data")
    assert copy.deepcopy(guidance.threshold(inner).net)(torch.ones(1, 2), torch.ones(1)).shape == (
        1,
        2,
    )
    model = Denoiser(Plain(net), PROCESS, predicts="data", cond={"label": 1})
    guided = guidance.cfg(guidance.threshold(model, limit=9.0), 2.0)
    twin = replace(guided, net=copy.deepcopy(guided.net).double())
    x, t = torch.ones(3, 2), torch.full((3,), 0.5)
    before = guided(x, t)
    torch.testing.assert_close(twin(x.double(), t).float(), before)
    assert net.weight.dtype == torch.float32
    with torch.no_grad():
        for p in twin.net.parameters():
            p.zero_()
    assert torch.equal(guided(x, t), before) and not bool(twin(x.double(), t).any())


class Plain(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, t, label=None):
        return self.layer(x)


def test_parameters_of_the_network_belong_to_the_guided_one():
    net = torch.nn.Linear(2, 2)

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x, t):
            return self.inner(x)

    guided = guidance.threshold(Denoiser(Wrapped(), PROCESS))
    assert {id(p) for p in guided.net.parameters()} == {id(p) for p in net.parameters()}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: guidance.cfg(m, 2.0, rescale=1.5), r"rescale must lie in \[0, 1\]; got 1.5"),
        (lambda m: guidance.cfg(m, 2.0, interval=(3.0, 1.0)), "interval must be"),
        (lambda m: guidance.cfgpp(PROCESS, [0.1, 0.5], 0.6), "grid must be times that fall"),
        (lambda m: guidance.threshold(m, ratio=0.0), r"ratio must lie in \(0, 1\]"),
        (lambda m: guidance.threshold(m, limit=-1.0), "limit must be > 0"),
        (
            lambda m: guidance.classifier(m, lambda x, t: x)(*batch(3)),
            r"one number for each of 3 samples; got \(3, 2\)",
        ),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(labelled())


def test_a_process_that_ends_without_signal_is_refused_by_name():
    model = GaussianMixture([1.0], [[0.0]], 1.0).denoiser(Flow())
    with pytest.raises(
        ValueError, match=r"classifier guidance needs alpha > 0 .* Flow\(t_max=0.999\)"
    ):
        guidance.classifier(model, lambda x, t: x[:, 0])
    near = GaussianMixture([1.0], [[0.0]], 1.0).denoiser(Flow(t_max=0.999))
    assert guidance.classifier(near, lambda x, t: x[:, 0]).process == near.process
