"""Networks: rebuilt from their configuration, sensitive to all that they are told."""

import json

import pytest
import torch

from undiffuse.models import EDM, VP
from undiffuse.models.networks import MLP, NETWORKS, build, network_for
from undiffuse.models.training.train import train
from undiffuse.models.variational import VarianceHead


def awake(net):
    """The network with its zero last layer replaced, so that its output depends on its input."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return net.eval()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_config_rebuilds_the_network(name):
    net = awake(network_for(name, (1, 8, 8), classes=3))
    again = build(name, json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    x, t = torch.randn(4, 1, 8, 8), torch.linspace(-1, 1, 4)
    label = torch.tensor([0, 1, 2, -1])
    assert torch.equal(net(x, t, label=label), again.eval()(x, t, label=label))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_two_outputs_come_with_a_variance_head(name):
    net = awake(network_for(name, (2, 8, 8), outputs=2))
    assert isinstance(net, VarianceHead) and net.config["outputs"] == 2
    x, t = torch.randn(3, 2, 8, 8), torch.zeros(3)
    prediction, o = net.both(x, t)
    assert torch.equal(net(x, t), prediction) and o.shape == x.shape
    assert not torch.equal(prediction, o)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_output_starts_at_zero_and_has_the_shape_of_x(name):
    net = network_for(name, (2, 8, 8))
    out = net(torch.randn(3, 2, 8, 8), torch.zeros(3))
    assert out.shape == (3, 2, 8, 8)
    assert not out.any()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_time_and_label_are_heard_and_samples_are_independent(name):
    net = awake(network_for(name, (1, 8, 8), classes=2))
    x = torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1)
    t = torch.tensor([0.1, 0.9, 0.1, 0.1])
    out = net(x, t, label=torch.tensor([0, 0, 1, -1]))
    for other in (1, 2, 3):
        assert (out[0] - out[other]).abs().max() > 1e-3
    alone = net(x[1:2], t[1:2], label=torch.tensor([0]))
    torch.testing.assert_close(alone, out[1:2], rtol=1e-4, atol=1e-5)
    # no label and the label -1 are the same: unconditional
    torch.testing.assert_close(net(x[:1], t[:1]), out[3:], rtol=1e-4, atol=1e-5)


def test_time_scale_is_a_change_of_units():
    net, index = awake(MLP(4)), MLP(4, time_scale=1e-3)
    index.load_state_dict(net.state_dict())
    x, t = torch.randn(5, 4), torch.tensor([1.0, 10.0, 100.0, 500.0, 999.0])
    torch.testing.assert_close(index(x, t), net(x, t / 1000), rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="network must be one of mlp.*; got 'mpl'"):
        build("mpl", {})
    with pytest.raises(ValueError, match="cannot be built from"):
        build("mlp", {"dim": 4, "widht": 3})
    with pytest.raises(ValueError, match="width must be a whole number >= 1; got 0"):
        MLP(4, width=0)
    with pytest.raises(ValueError, match=r"4 components per sample; got \(2, 3\)"):
        MLP(4)(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="network without classes"):
        MLP(4)(torch.zeros(2, 4), torch.zeros(2), label=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="label must hold integers of shape"):
        MLP(4, classes=2)(torch.zeros(2, 4), torch.zeros(2), label=torch.zeros(2))


@pytest.mark.parametrize(
    "process, time, scale",
    [
        (VP.from_betas(torch.linspace(1e-4, 0.02, 400, dtype=torch.float64)), "index", 1 / 400),
        (VP(), "index", 1 / 1000),
        (EDM(), "continuous", 1 / 80),
        (VP(), "continuous", 1.0),
        (VP(), "edm", 1.0),
        (EDM(), lambda t: 1000 * t, 1 / 80_000),
    ],
)
def test_training_tells_times_where_the_waves_are_smooth(process, time, scale):
    """Neighbours of a hundred steps are told alike and the two ends are not. Without the scale,
    whole steps are whole periods of the fast waves, which then say nothing, and neighbours differ
    as much as strangers."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    options = {"time": time, "network_config": {"width": 8, "depth": 1}, "steps": 1, "batch": 8}
    model = train(x, process, predicts="noise", progress=False, **options)
    assert model.net.config["time_scale"] == pytest.approx(scale, rel=1e-12)
    t = torch.linspace(process.t_min, process.t_max, 101, dtype=torch.float64)
    phases = model.network_time(t)[:, None] * model.net.time.frequencies.double()
    waves = torch.cat([phases.cos(), phases.sin()], 1)
    steps = (waves[1:] - waves[:-1]).square().mean(1).sqrt()
    apart = (waves[-1] - waves[0]).square().mean().sqrt()
    if time != "edm":  # no scale of it: a logarithm is not even in t
        assert steps.max() < 0.5 * apart
    own = train(x, process, time=time, predicts="noise", steps=1, batch=8, progress=False,
                network_config={"width": 8, "depth": 1, "time_scale": 0.5})  # fmt: skip
    assert own.net.config["time_scale"] == 0.5


def test_a_transformer_takes_sequences_channels_and_images_apart_into_patches():
    """Its tokens are the patches, in order, and what is cut is joined again."""
    for event, patch in (((12,), 3), ((2, 12), 4), ((3, 6, 4), 2)):
        net = network_for("transformer", event, patch=patch, width=8, heads=2, depth=1)
        x = torch.randn(2, *event, generator=torch.Generator().manual_seed(0))
        cut = net._cut(x)
        assert torch.equal(net._join(cut), x)
        one = x[0, ..., :patch] if len(event) < 3 else x[0, :, :patch, :patch]
        assert torch.equal(cut[0, 0], one.flatten())
    with pytest.raises(ValueError, match="patch must divide the sides .*patch=5"):
        network_for("transformer", (12,), patch=5)
    with pytest.raises(ValueError, match=r"events \[L\], \[C, L\] or \[C, H, W\]"):
        network_for("transformer", (1, 2, 3, 4))
