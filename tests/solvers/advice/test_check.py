"""`ud.check` names wrong declarations, and leaves right ones alone."""

import dataclasses

import pytest
import torch

import undiffuse as ud

LAW = ud.targets.GaussianMixture([1, 2], [[0.0, 2.0], [2.0, -1.0]], 0.05)
X = LAW.sample(64, seed=3).float()


def network(predicts, process):
    exact = LAW.denoiser(process)
    read = {"data": exact, "noise": exact.noise, "score": exact.score, "flow": exact.velocity}
    return read[predicts]


@pytest.mark.parametrize("process", [ud.VP(), ud.Flow(t_max=0.999)], ids=repr)
@pytest.mark.parametrize("right", ["data", "noise", "score", "flow"])
@pytest.mark.parametrize("declared", ["data", "noise", "score", "v", "flow"])
def test_an_exact_network_is_found_out_whatever_is_declared(process, right, declared):
    found = ud.check(ud.Denoiser(network(right, process), process, predicts=declared), X)
    assert found.holds == (declared == right)
    assert found.fits[0] == right


def test_a_forgotten_index_is_named():
    """A network that is told steps, declared to be of continuous time."""
    process = ud.VP()
    net = network("noise", process)
    indexed = lambda x, i: net(x, ((i.double() + 1) / 1000).clamp(1e-3, 1))
    right = ud.Denoiser(indexed, process, time="index")
    assert ud.check(right, X)
    found = ud.check(dataclasses.replace(right, time="continuous"), X)
    assert not found and found.fits[0] == "noise" and "index" in found.words + str(found.scores[:3])


def test_without_data_gross_mistakes_are_found_and_none_is_named():
    process = ud.VP()
    right = ud.Denoiser(network("noise", process), process)
    assert ud.check(right, (2,)) and ud.check(right, (2,)).fits is None
    assert not ud.check(dataclasses.replace(right, predicts="score"), (2,))


def test_bad_input_is_refused():
    model = ud.Denoiser(network("noise", ud.VP()), ud.VP())
    for x, words in ((None, "got None"), (torch.zeros(3, 2), "16 events or more; got 3")):
        with pytest.raises(ValueError, match=words):
            ud.check(model, x)
