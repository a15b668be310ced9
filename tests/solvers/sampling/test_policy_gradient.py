"""The example of a policy gradient: its reward rises."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "policy_gradient.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("policy_gradient", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises(example, seed):
    """Half of the points lie on the right before; nearly all do after 20 updates, of samples that
    are drawn without noise. Of seeds 0 to 2 the lowest reward after was 0.999."""
    net = example.pretrained(seed)
    before = example.rewarded(net)
    during = example.improve(net, iterations=20, seed=seed)
    assert 0.4 < before < 0.6
    assert during[-1] > 0.9 and example.rewarded(net) > 0.9
