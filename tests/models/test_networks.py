"""Networks: rebuilt from their configuration, sensitive to all that they are told."""

import json

import pytest
import torch

from undiffuse.models.networks import MLP, NETWORKS, build, network_for
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
