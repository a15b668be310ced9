"""log p in a fixed number of calls, held against closed forms."""

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers.carried.few_calls import log_prob_in_calls

LAW = ud.targets.GaussianMixture([0.3, 0.7], [[1.0, -1.0], [-0.8, 0.6]], [0.09, 0.2])


@pytest.mark.parametrize("process", [ud.VP(), ud.Flow(), ud.VE(), ud.EDM()], ids=repr)
@pytest.mark.parametrize("nfe", [4, 8, 16, 32])
def test_the_interval_covers_and_the_calls_are_counted(process, nfe):
    calls = []
    exact = LAW.denoiser(process)

    def net(x, t):
        calls.append(len(x))
        return exact.net(x, t)

    x = LAW.sample(400, 1).float()
    found = log_prob_in_calls(ud.Denoiser(net, process, predicts="data"), x, nfe)
    off = (found.log_prob - LAW.log_prob(x)).abs()
    assert sum(calls) == 400 * nfe and found.nfe == nfe and found.products == 4 * nfe
    assert float((off < found.total_error).double().mean()) > (0.63 if nfe > 4 else 0.55)
    assert float((off < 2 * found.total_error).double().mean()) > 0.9


def test_more_calls_tell_more():
    """A Gaussian in float64, where no probe errs: faster than 1/calls^2, down to the .002 nats that
    the prior's mean and the blur are worth here."""
    law = ud.targets.Gaussian([0.3, -0.2, 0.1], 0.6)
    x = law.sample(50, 1)
    model = law.denoiser(ud.VP())
    want = law.log_prob(x)
    off = [
        float((log_prob_in_calls(model, x, n, t_min=1e-3).log_prob - want).abs().mean())
        for n in (8, 16, 32)
    ]
    assert off[1] < off[0] / 4 and off[2] < off[1] and off[2] < 0.003


def test_bad_input():
    model = LAW.denoiser(ud.VP())
    for bad, words in (({"nfe": 3}, "nfe"), ({"probes": 1}, "probes"), ({"t_min": 2.0}, "t_min")):
        with pytest.raises(ValueError, match=words):
            log_prob_in_calls(model, torch.zeros(2, 2), **bad)
