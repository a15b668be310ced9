"""What a likelihood holds at its peak, in a process of its own."""

import json
import subprocess
import sys

import pytest

GIB = 2**30
SCRIPT = """
import json, resource, sys, torch
import undiffuse as ud

torch.set_num_threads(1)
torch.manual_seed(0)
shape, dtype, how = json.loads(sys.argv[1])
dtype = getattr(torch, dtype)
conv = torch.nn.Conv2d if len(shape) == 3 else torch.nn.Conv1d
net = torch.nn.Sequential(
    conv(shape[0], 32, 3, padding=1), torch.nn.SiLU(), conv(32, shape[0], 3, padding=1)
).to(dtype).eval().requires_grad_(False)
model = ud.Denoiser(lambda x, t: net(x.to(dtype)), ud.VP(), predicts="noise")
x = 0.5 * torch.randn(2, *shape)
options = {"rtol": 1e-2, "atol": 1e-2, "probes": 1, "on_failure": "return"}
if how == "log_prob":
    lp = ud.log_prob(model, x, **options)
    found = lp.log_prob, lp.latent
else:
    r = ud.sample(model, x.shape, "dpmpp-2m", 8, log_prob="flow")
    found = r.log_prob, r.x
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
fine = all(bool(torch.isfinite(v).all()) for v in found)
print(json.dumps([peak, fine, str(found[0].dtype), str(found[1].dtype)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["log_prob", "sample"])
@pytest.mark.parametrize("shape", [[3, 64, 64], [1, 100_000]], ids=["image", "audio"])
def test_images_and_sound_fit_into_four_gibibytes(shape, how, dtype):
    """32 channels of either; the states stay float32 around a network of bfloat16."""
    asked = json.dumps([shape, dtype, how])
    command = [sys.executable, "-P", "-c", SCRIPT, asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    peak, fine, logs, states = json.loads(done.stdout)
    assert peak < 4 * GIB and fine
    assert logs == "torch.float64" and states == "torch.float32"
