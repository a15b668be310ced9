"""Networks are handed what they ask for by the name they ask for it; options of the caller win."""

import pytest
import torch

import undiffuse as ud

adapt = ud.models.adapters.from_diffusers
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


class Transformer(torch.nn.Module):
    """Text second, time later; the exact velocity of N(m, 0.3) where the text says m."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(
        self,
        hidden_states,
        encoder_hidden_states=None,
        pooled_projections=None,
        timestep=None,
        return_dict=True,
    ):
        assert timestep is not None and encoder_hidden_states is not None
        self.told.append(float(timestep[0]))
        x, t = hidden_states, (timestep.to(hidden_states.dtype) / 1000)[:, None]
        m = encoder_hidden_states.mean(1)
        data = m + (1 - t) * 0.3 / ((1 - t) ** 2 * 0.3 + t**2) * (x - (1 - t) * m)
        return ((x - (1 - t) * data) / t - data,)


def test_time_goes_by_name_where_it_is_not_second():
    net = Transformer()
    model = adapt(net, FLOW)
    text = torch.tensor([2.0, -1.0]).expand(2, 3, 2)
    x = ud.sample(model, (2, 2), "dpmpp-2m", 10, cond={"encoder_hidden_states": text})
    assert max(net.told) == pytest.approx(1000)
    one = model(torch.tensor([[0.5, 0.5]]), 0.4, encoder_hidden_states=text[:1])
    want = torch.tensor([[2.0, -1.0]])
    want = want + 0.6 * 0.3 / (0.36 * 0.3 + 0.16) * (0.5 - 0.6 * want)
    assert torch.allclose(one, want, atol=1e-4) and x.shape == (2, 2)


def test_time_goes_second_where_it_is_second():
    """UNets, whose second argument may be called `timestep` or `t`; holds today and must go on
    to."""
    seen = []

    class UNet(torch.nn.Module):
        def forward(self, sample, timestep, class_labels=None):
            seen.append(float(timestep[0]))
            return (0.1 * sample,)

    adapt(UNet(), {})(torch.ones(1, 1, 2, 2), 1.0)
    assert seen == [pytest.approx(999)]


@pytest.mark.parametrize(
    ("option", "value"), [("time", "continuous"), ("predicts", "v"), ("steps", 1000)]
)
def test_options_override(option, value):
    """They are documented as further fields of Denoiser."""
    model = adapt(torch.nn.Identity(), {}, **{option: value})
    assert getattr(model, option) == value


def test_a_time_of_the_callers_own_is_what_the_network_is_told():
    net = Transformer()
    model = adapt(net, FLOW, time=lambda t: 1000 * t.sqrt())
    model(torch.ones(1, 2), 0.25, encoder_hidden_states=torch.ones(1, 3, 2))
    assert net.told == [pytest.approx(500)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, 250.0),
        ({"train_steps": 500}, 125.0),
        ({"time_scale": 1.0}, 0.25),
        ({"time_scale": 500.0}, 125.0),
        ({"process": ud.Flow(), "predicts": "flow", "time_scale": 2.0}, 0.5),
    ],
)
def test_what_a_flow_network_is_told_can_be_said(options, told):
    net = Transformer()
    model = adapt(net, FLOW, **options)
    model(torch.ones(1, 2), 0.25, encoder_hidden_states=torch.ones(1, 3, 2))
    assert net.told == [pytest.approx(told)]


def test_training_steps_of_a_network_of_discrete_time():
    model = adapt(torch.nn.Identity(), process=ud.VP(), predicts="noise", time="index",
                  train_steps=250)  # fmt: skip
    assert model.steps == 250 and float(model.network_time(torch.tensor(1.0).double())) == 249


@pytest.mark.parametrize(
    "options",
    [{"train_steps": 10, "steps": 10}, {"time_scale": 1.0, "time": "sigma"}, {"time_scale": -1.0},
     {"train_steps": 0}],
)  # fmt: skip
def test_choices_that_contradict_are_refused(options):
    with pytest.raises(ValueError, match="train_steps|time_scale"):
        adapt(torch.nn.Identity(), FLOW, **options)
