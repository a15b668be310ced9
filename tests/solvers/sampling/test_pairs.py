"""Classifier-free guidance in the step: two outputs, weighed as the kernel reads them."""

import pytest
import torch

import undiffuse as ud
from undiffuse.models import guidance
from undiffuse.models.calling import Pair

from ..operators import Operators

SHAPE, W = (4, 3, 5), 2.5
LABEL = torch.tensor([1.0, 2.0, 3.0, 4.0])
COND = {"label": LABEL}


def net(x, t, label):
    return torch.tanh(x * label[:, None, None]) * t[:, None, None]


def model(batched=True, scale=W, process=None, **options):
    d = ud.Denoiser(net, process or ud.VP(), predicts="v", **options)
    return guidance.cfg(d, scale, uncond={"label": torch.zeros(1)}, batched=batched)


def by_hand(x, t, label):
    """The combination, as a network of its own."""
    return net(x, t, 0 * label) + W * (net(x, t, label) - net(x, t, 0 * label))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("clip", [None, (-0.7, 0.7)])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "ddpm", "unipc-3", "heun", "rk4"])
def test_it_is_the_combination(solver, clip, batched):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        got, want = (
            ud.sample(m, SHAPE, solver, 7, seed=3, cond=COND, dtype=dtype)
            for m in (
                model(batched, clip=clip),
                ud.Denoiser(by_hand, ud.VP(), predicts="v", clip=clip),
            )
        )
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_the_preconditioning_of_edm_and_a_table_over_components():
    data = torch.randn(40, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    spectral = ud.solvers.GaussianPreconditioned(ud.solvers.Statistics.of(data, "full"))
    for process, predicts, solver in ((ud.EDM(), "edm", "dpmpp-2m"), (ud.VP(), "v", spectral)):
        guided, plain = (ud.Denoiser(f, process, predicts=predicts) for f in (net, by_hand))
        guided = guidance.cfg(guided, W, uncond={"label": torch.zeros(1)})
        got, want = (
            ud.sample(m, SHAPE, solver, 6, "log_snr", cond=COND, dtype=torch.float64)
            for m in (guided, plain)
        )
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_every_loop_rounds_alike():
    guided = model()
    want = ud.sample(guided, SHAPE, "dpmpp-2m", 6, seed=3, cond=COND)
    seen = []
    again = ud.sample(guided, SHAPE, "dpmpp-2m", 6, seed=3, cond=COND, callback=seen.append)
    assert torch.equal(again, want)
    sampler = ud.Sampler(guided, "dpmpp-2m", 6)
    state, given = sampler.init(SHAPE, seed=3), guided.given(COND, 4)
    while not state.done:
        out = guided.hear(state.x_in, state.t_in, given, None)
        assert isinstance(out, Pair)
        state = sampler.tell(state, out)
    assert torch.equal(state.x, want)
    for step in seen:
        x, t = step.before.x_in, step.before.t_in
        torch.testing.assert_close(step.out, by_hand(x, t, LABEL), rtol=1e-6, atol=1e-6)
    states = list(sampler.steps(sampler.init(SHAPE, seed=3), COND))
    apart = sampler.join([states[1].after[:2], states[3].after[2:]])  # two rows behind the others
    for step in sampler.steps(apart, COND):
        apart = step.after
    assert torch.equal(apart.x, want)


def test_no_tensor_of_its_own_for_the_combination():
    def silent(x, t, label):  # a network that makes no operator's call
        return KEPT[len(x)]

    KEPT = {n: torch.ones(n, 3, 5) for n in (4, 8)}
    found = {}
    for name, batched in (("one", None), ("two", False), ("both", True)):
        m = ud.Denoiser(silent, ud.VP(), predicts="v")
        if batched is not None:
            m = guidance.cfg(m, W, uncond={"label": torch.zeros(4)}, batched=batched)
        sampler = ud.Sampler(m, "dpmpp-2m", 8)
        with torch.no_grad():
            sampler.finish(sampler.init(SHAPE), COND)  # what is found out once
            first = sampler.init(SHAPE)
            with Operators() as names:
                sampler.finish(first, COND)
        found[name] = names.seen
        assert found[name].count("undiffuse.linear_step.default") == 8
    arithmetic = ("aten.add", "aten.sub", "aten.mul", "aten.lerp")
    for name, seen in found.items():
        assert not [s for s in seen if s.startswith(arithmetic)], name


def test_a_change_of_the_scale_is_heard():
    guided = model()
    sampler = ud.Sampler(guided, "dpmpp-2m", 6)
    for w in (2.5, 4.0, 2.5):
        guided.net.scale = w
        x = sampler.finish(sampler.init(SHAPE), COND)
        assert torch.equal(x, ud.sample(model(scale=w), SHAPE, "dpmpp-2m", 6, cond=COND))


def test_gradients_go_through_both():
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    grads = []
    for m in (model(), ud.Denoiser(by_hand, ud.VP(), predicts="v")):
        end = ud.sample(m, SHAPE, "dpmpp-2m", 5, cond=COND, x_init=x)
        grads.append(torch.autograd.grad(end.square().sum(), x)[0])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{"rescale": 0.5}, {"interval": (0.2, 3.0)}])
def test_the_other_kinds_stay_one_output(options):
    d = ud.Denoiser(net, ud.VP(), predicts="v")
    guided = guidance.cfg(d, W, uncond={"label": torch.zeros(1)}, **options)
    t = torch.full((4,), 0.5)
    assert isinstance(guided.hear(torch.randn(SHAPE), t, COND, 0.5), torch.Tensor)
    per_sample = model(scale=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert isinstance(per_sample.hear(torch.randn(SHAPE), t, COND, 0.5), torch.Tensor)
