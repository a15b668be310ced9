"""Training: reaches the known optimum, resumes to the bit, stops at a loss that is not finite."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from undiffuse.models import VP, Flow, Gaussian, Objective, TrainingError, load_checkpoint, train
from undiffuse.models.data.sets import Data, load, split_indices
from undiffuse.models.processes import LearnedVP, MonotoneOmega
from undiffuse.models.training.learned_schedule import (
    ContinuousVLB,
    LearnedSchedule,
)
from undiffuse.models.variational import Hybrid, data_and_variance

TINY = {"network_config": {"width": 16, "depth": 1}, "batch": 32, "warmup": 5, "every": 20}
X = Gaussian([0.5, -0.2, 0.1], [0.4, 0.1, 0.2]).sample(200, seed=0).float()


def weights(model):
    return torch.cat([p.flatten() for p in model.net.state_dict().values()])


class Interrupted(Exception):
    """What stands for a kill in these tests."""


class Objector:
    """The default loss, but call `at` raises, or gives `value` if that is set."""

    def __init__(self, at=None, value=None, inner=None):
        self.calls, self.at, self.value = 0, at, value
        self.inner = inner or Objective("edm", "log_snr")

    def __call__(self, denoiser, x_0, generator, **cond):
        if not torch.is_grad_enabled():  # an evaluation on held-out data
            return self.inner(denoiser, x_0, generator, **cond)
        self.calls += 1
        loss = self.inner(denoiser, x_0, generator, **cond)
        if self.calls == self.at:
            if self.value is None:
                raise Interrupted
            loss = loss * self.value
        return loss


def test_training_reaches_the_loss_of_the_exact_network():
    target = Gaussian([0.5, -0.2, 0.1], [0.4, 0.1, 0.2])
    x = target.sample(8000, seed=0).float()
    model = train(x, steps=800, batch=256, seed=1, network_config={"width": 32, "depth": 2})
    held = target.sample(20_000, seed=9).float()
    exact = replace(target.denoiser(VP()), sigma_data=model.sigma_data)
    loss = {
        name: float(Objective("edm", "log_snr")(d, held, torch.Generator().manual_seed(2)).mean())
        for name, d in (("trained", model), ("exact", exact))  # at the same noise
    }
    # zero output (the start) has loss 1; the optimum is the posterior variance alone
    assert loss["exact"] < 0.8
    assert loss["trained"] < 1.03 * loss["exact"]


@pytest.mark.parametrize("conditional", [False, True])
def test_resume_after_an_interruption_gives_the_same_bits(tmp_path, conditional):
    data = Data(X, (-3.0, 3.0), 0.25, torch.arange(200) % 3)  # spacing: dequantised as well
    arguments = {**TINY, "steps": 70, "seed": 3, "conditional": conditional}
    whole = train(data, loss=Objector(), out=tmp_path / "whole", **arguments)
    with pytest.raises(Interrupted):
        train(data, loss=Objector(at=53), out=tmp_path / "cut", **arguments)
    assert load_checkpoint(tmp_path / "cut" / "model.safetensors").training["step"] == 40
    resumed = train(data, loss=Objector(), out=tmp_path / "cut", **arguments)
    assert torch.equal(weights(whole), weights(resumed))
    for name in ("model.safetensors", "loss.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert [p.name for p in tmp_path.rglob("*.tmp")] == []


@pytest.mark.parametrize("file", ["model.safetensors", "loss.jsonl", "loss.png", "state.pt"])
def test_resume_after_the_last_files_were_not_all_written(tmp_path, file, monkeypatch):
    """Cut in the middle of the writing after the last step: every file is that of a whole run."""
    train(X, out=tmp_path / "whole", steps=40, **TINY)

    written = []

    def replace_until(part, path, replace=os.replace):
        written.append(path.name)
        if written.count(file) == 2:  # after step 20, and after step 40
            raise Interrupted
        replace(part, path)

    with monkeypatch.context() as m, pytest.raises(Interrupted):
        m.setattr(os, "replace", replace_until)
        train(X, out=tmp_path / "cut", steps=40, **TINY)
    train(X, out=tmp_path / "cut", steps=40, **TINY)
    for name in ("model.safetensors", "loss.jsonl", "loss.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.parametrize(
    ("process", "inner", "outputs"),
    [("learned", LearnedSchedule(), 1), (None, Hybrid(steps=50), 2)],
    ids=["schedule", "variance"],
)
def test_what_is_learned_beside_the_mean_resumes_and_comes_back(tmp_path, process, inner, outputs):
    config = {**TINY["network_config"], "outputs": outputs}
    arguments = {**TINY, "network_config": config, "process": process, "predicts": "noise"}
    whole = train(X, loss=Objector(inner=inner), out=tmp_path / "whole", steps=60, **arguments)
    with pytest.raises(Interrupted):
        train(X, loss=Objector(at=47, inner=inner), out=tmp_path / "cut", steps=60, **arguments)
    train(X, loss=Objector(inner=inner), out=tmp_path / "cut", steps=60, **arguments)
    files = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("whole", "cut")]
    assert files[0] == files[1]
    again = load_checkpoint(tmp_path / "whole" / "model.safetensors").denoiser
    x, t = torch.randn(5, 3), torch.linspace(0.1, 0.9, 5)
    assert torch.equal(whole(x, t), again(x, t))
    assert torch.equal(whole.process.sigma(t), again.process.sigma(t))
    if outputs == 2:
        o, same = (data_and_variance(m, x, t)[1] for m in (whole, again))
        assert torch.equal(o, same) and bool(o.any())


def test_a_schedule_is_learned_on_a_copy_and_the_bound_falls():
    process = LearnedVP(MonotoneOmega(-6.0, 1.0))
    before = process.omega.ends.detach().clone()
    model = train(X, process, predicts="noise", steps=200, ema=0.9, **{**TINY, "every": 200})
    assert torch.equal(process.omega.ends, before)
    for name in ("ends", "shape", "offset"):
        moved = getattr(model.process.omega, name) - getattr(process.omega, name)
        assert moved.abs().max() > 0.02, name
    fixed = replace(model, process=process)
    bounds = [
        float(ContinuousVLB()(m, X, torch.Generator().manual_seed(1)).mean().detach())
        for m in (model, fixed)
    ]
    assert bounds[0] < bounds[1]


def test_bfloat16_is_the_networks_alone(tmp_path):
    seen = []

    def loss(denoiser, x_0, generator):
        def net(x, t):
            out = denoiser.net(x, t)
            seen.append(out.dtype)
            return out

        return Objective("edm", "log_snr")(replace(denoiser, net=net), x_0, generator)

    model = train(X, loss=loss, bfloat16=True, out=tmp_path, steps=60, **TINY)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    moments = [v for s in state["optimizer"]["state"].values() for v in s.values()]
    kept = [*state["net"].values(), *state["average"].values(), *moments]
    assert {v.dtype for v in kept if v.is_floating_point()} == {torch.float32}
    losses = [json.loads(x) for x in (tmp_path / "loss.jsonl").read_text().splitlines()]
    train(X, loss=loss, out=tmp_path / "full", steps=60, **TINY)
    full = json.loads((tmp_path / "full" / "loss.jsonl").read_text().splitlines()[-1])
    assert all(math.isfinite(row["loss"]) for row in losses)
    # rounded to 8 bits on the way: near float32's loss, which is 1 at the start, and not equal
    assert losses[-1]["held_out"] == pytest.approx(full["held_out"], rel=0.03)
    assert losses[-1]["held_out"] != full["held_out"] < 1.0


@pytest.mark.slow
def test_resume_after_a_real_kill(tmp_path):
    script = (
        "import torch; torch.set_num_threads(1); from undiffuse.models import train; "
        "from undiffuse.models.targets import Gaussian; "
        "train(Gaussian([0.5, -0.2], 0.3).sample(500).float(), steps=1500, batch=32, every=20, "
        f"out={str(tmp_path / 'cut')!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    step = load_checkpoint(tmp_path / "cut" / "model.safetensors").training["step"]
    assert 0 < step < 1500
    x = Gaussian([0.5, -0.2], 0.3).sample(500).float()
    arguments = {"steps": 1500, "batch": 32, "every": 20}
    resumed = train(x, out=tmp_path / "cut", **arguments)
    assert torch.equal(weights(resumed), weights(train(x, **arguments)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_good(tmp_path, value):
    with pytest.raises(TrainingError, match=r"at step 47; the last good checkpoint is") as failure:
        train(X, loss=Objector(at=47, value=value), out=tmp_path, steps=70, **TINY)
    assert failure.value.step == 47
    kept = load_checkpoint(tmp_path / "model.safetensors")
    assert kept.training["step"] == 40
    assert torch.isfinite(weights(kept.denoiser)).all()
    with pytest.raises(TrainingError, match="nothing was kept"):
        train(X, loss=Objector(at=3, value=value), steps=10, **TINY)


def test_a_seed_is_a_run():
    first, again, other = (train(X, steps=20, seed=s, **TINY) for s in (1, 1, 2))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    state = torch.get_rng_state()
    train(X, steps=2, **TINY)
    assert torch.equal(state, torch.get_rng_state())  # nobody else's numbers are used up


def test_held_out_events_are_not_trained_on():
    """Whatever they are, the weights are the same bits; with them in the training they are not."""
    made = []
    for value in (0.0, 1e3):
        x = X.clone()
        x[split_indices(200, 0.2)[1]] = value
        made.append(weights(train(Data(x, (-3.0, 3.0)), steps=50, sigma_data=0.5, **TINY)))
    assert torch.equal(*made)
    everything = train(Data(x, (-3.0, 3.0)), steps=50, sigma_data=0.5, held_out=0.0, **TINY)
    assert not torch.allclose(weights(everything), made[0])


def test_the_average_lags_behind_the_weights_and_is_what_is_returned(tmp_path):
    arguments = {**TINY, "steps": 60}
    moving = train(X, ema=0.0, **arguments)
    averaged = train(X, ema=0.999, out=tmp_path, **arguments)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    last = torch.cat([v.flatten() for v in state["net"].values()])
    assert torch.equal(weights(moving), last)  # without averaging: the weights themselves
    assert not torch.allclose(weights(averaged), last, atol=1e-4)
    on_disk = load_checkpoint(tmp_path / "model.safetensors").denoiser
    assert torch.equal(weights(averaged), weights(on_disk))


def test_what_is_written_describes_the_run(tmp_path):
    train(X, Flow(), predicts="flow", loss="flow", out=tmp_path, steps=40, **TINY)
    kept = load_checkpoint(tmp_path / "model.safetensors")
    model = kept.denoiser
    assert (model.process, model.predicts, model.time) == (Flow(), "flow", "continuous")
    assert kept.event_shape == (3,) and kept.data_range == (float(X.min()), float(X.max()))
    assert kept.training["split"] == {"held_out": 0.2, "seed": 0}
    rows = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [20, 40] and rows[1]["held_out"] == kept.training[
        "held_out"
    ]
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    # the end of a flow, where alpha = 0 and log(sigma/alpha) is infinite, is no exception
    assert torch.isfinite(model(torch.randn(4, 3), 1.0)).all()


def test_bad_arguments_are_refused_before_any_work(tmp_path):
    for bad, message in (
        ({"steps": 0}, "steps must be >= 1; got 0"),
        ({"lr": -1.0}, "lr must be > 0; got -1"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
        ({"lrr": 1e-3}, "settings must be among steps, batch, lr"),
        ({"loss": "simpel"}, "loss must be one of simple"),
        ({"process": "vpp"}, "process must be one of .*vp"),
        ({"loss": "learned"}, "'learned' and a learned process belong together; got 'learned'"),
        ({"process": "learned", "loss": "simple"}, "belong together; got 'simple' and LearnedVP"),
        ({"predicts": "eps"}, "predicts must be one of data"),
        ({"network": "unett"}, "network must be one of mlp"),
        ({"conditional": True}, "needs labels; data 'tensor' has none"),
        ({"held_out": 1.5}, "held_out must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            train(X, out=tmp_path, **bad)
    assert list(tmp_path.iterdir()) == []
    train(X, steps=20, out=tmp_path, **TINY)
    with pytest.raises(ValueError, match="with other arguments: settings was .* resume=False"):
        train(X, steps=40, out=tmp_path, **TINY)
    train(X, steps=40, out=tmp_path, resume=False, **TINY)
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be resumed from"):
        train(X, steps=40, out=tmp_path, **TINY)


def test_labels_are_learned():
    # two classes at -1 and +1: told which, the network knows the sign at any noise
    label = torch.arange(400) % 2
    g = torch.Generator().manual_seed(0)
    x = (2.0 * label - 1)[:, None] + 0.05 * torch.randn(400, 1, generator=g)
    data = Data(x, (-2.0, 2.0), labels=label)
    model = train(data, conditional=True, steps=300, network_config={"width": 32})
    noise = torch.randn(500, 1, generator=torch.Generator().manual_seed(1))
    for k in (0, 1):
        d = model(noise, 1.0, label=torch.full((500,), k))
        assert float((d - (2 * k - 1)).abs().mean()) < 0.25  # untold: 1
    assert float(model(noise, 1.0).mean().abs()) < 0.2  # untold, it stays between


def test_digits_on_their_levels_are_dequantised():
    seen = []

    def loss(denoiser, x_0, generator):
        seen.append(x_0)
        return Objective()(denoiser, x_0, generator)

    train(load("digits"), loss=loss, steps=1, batch=64, network_config={"width": 8})
    offsets = (seen[0] + 1) * 8 - ((seen[0] + 1) * 8).round()
    # uniform on +-1/2 of a level: variance 1/12 = 0.0833 to 4096 numbers' 3 %
    assert float(offsets.var()) == pytest.approx(1 / 12, rel=0.1)


def test_the_unet_trains_and_comes_back(tmp_path):
    x = torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    arguments = {"network": "unet", "network_config": {"width": 8}, "batch": 8, "out": tmp_path}
    model = train(x, "flow", predicts="flow", loss="flow", steps=5, **arguments)
    again = load_checkpoint(tmp_path / "model.safetensors")
    assert again.network[0] == "unet" and again.event_shape == (2, 8, 8)
    assert torch.equal(model(x[:2], 0.5), again.denoiser(x[:2], 0.5))


def test_checkpoints_record_the_objective_beside_the_loss(tmp_path):
    train(X, loss="min-snr", out=tmp_path, steps=20, **TINY)
    training = load_checkpoint(tmp_path / "model.safetensors").training
    assert training["objective"]["weighting"] == "min-snr" and training["objective"]["gamma"] == 5.0
    assert isinstance(training["loss"], float)
