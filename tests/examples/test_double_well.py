"""The double well: weights recover what the network has not seen."""

import importlib.util
from pathlib import Path

import pytest
import torch

import undiffuse as ud

PATH = Path(__file__).parents[2] / "examples" / "double_well.py"


@pytest.mark.slow
def test_normaliser_and_free_energy_are_those_of_quadrature():
    """Within four standard errors along the map and the SDE, and not without weights."""
    spec = importlib.util.spec_from_file_location("double_well", PATH)
    well = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(well)
    model = well.trained(1000)
    log_z, gap = well.exact()
    for solver, steps, along in (("dpmpp-2m", 10, "map"), ("ddpm-large", 200, "sde")):
        found = ud.sample(model, (4000, 2), solver, steps, seed=1, log_prob=along)
        weights = ud.importance_weights(lambda x: -well.energy(x), found)
        assert not found.log_prob.requires_grad
        assert weights.ess > 400
        assert abs(weights.log_normaliser - log_z) < 4 * weights.std_error, along
        got, error = well.difference(weights, found.x)
        assert abs(got - gap) < 4 * error < 0.4, along
        share = (found.x[:, 0] > 0).double().mean()
        assert abs(float(torch.log((1 - share) / share)) - gap) > 0.3
