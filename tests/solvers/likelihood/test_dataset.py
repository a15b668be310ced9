"""Likelihood of a data set: batch and limit change no item, a kill loses and repeats none."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from undiffuse.models.checkpoint import load_default
from undiffuse.models.data.formats import stream
from undiffuse.models.data.sets import split_indices
from undiffuse.solvers.likelihood import dataset as dataset_likelihood
from undiffuse.solvers.likelihood import scores
from undiffuse.solvers.likelihood.items import unseen
from undiffuse.solvers.store import Store

FAST = {"rtol": 1e-3, "atol": 1e-3, "progress": False}


def items(folder):
    return {r["item"]: r["bits_per_dim"] for r in Store(folder, "items.jsonl").records.values()}


def test_batch_and_limit_change_no_item_and_nothing_is_repeated(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    few = dataset_likelihood.run(tmp_path / "a", limit=2, batch=2, **FAST)
    dataset_likelihood.run(tmp_path / "b", limit=3, batch=2, **FAST)
    a, b = items(tmp_path / "a"), items(tmp_path / "b")
    assert len(a) == 2 and len(b) == 3
    for i, value in a.items():  # matrix products of other batches round otherwise
        assert value == pytest.approx(b[i], abs=5e-3)
    assert few["offset"] == 3.0 and few["lo"] < few["bits_per_dim"] < few["hi"]
    assert few["bits_per_dim"] == pytest.approx(sum(a.values()) / 2)
    said = capsys.readouterr().out
    assert "dequantised once: --repeats" in said
    # VP at 0.001: sqrt(e^b - 1), b = 0.1 t + 19.9/2 t^2
    assert few["blur"] == pytest.approx(math.sqrt(math.expm1(1e-4 + 9.95e-6)), rel=1e-6)
    assert "noise 0.0105 at t_min=0.001" in said
    assert (tmp_path / "a" / "bits.png").exists()
    assert json.loads((tmp_path / "a" / "summary.json").read_text()) == few

    asked = []
    real = scores.bits_per_dim

    def spy(model, x, levels, **rest):
        asked.append(rest["sample_ids"].tolist())
        return real(model, x, levels, **rest)

    monkeypatch.setattr(scores, "bits_per_dim", spy)
    dataset_likelihood.run(tmp_path / "a", limit=4, batch=4, **FAST)
    assert asked == [[2, 3]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"probes": 0}, "probes must be >= 1"),
        ({"limit": -1}, "limit must be >= 1"),
        ({"batch": 0}, "batch must be >= 1"),
        ({"repeats": 0}, "repeats must be >= 1"),
        ({"target_error": 0.0}, "target_error must be > 0"),
        ({"method": "elbo", "probes": 2}, "probes is not of method='elbo'"),
        ({"steps": 20}, "steps is not of method='ode'"),
        ({"method": "sde"}, "method must be one of ode, elbo"),
    ],
)
def test_bad_input_is_refused(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        dataset_likelihood.run(tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()


def test_items_of_another_shape_are_refused(tmp_path):
    torch.save(torch.zeros(3, 5), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"items of shape \(1, 8, 8\)"):
        dataset_likelihood.run(tmp_path / "out", data=tmp_path / "x.pt")


def test_data_outside_the_range_of_the_levels_are_refused(tmp_path):
    torch.save(torch.full((3, 1, 8, 8), 16.0), tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"range -1 to 1; x.pt, items 0 to 2 hold 16 to 16: bring them"
    ):
        dataset_likelihood.run(tmp_path / "out", data=tmp_path / "x.pt")
    torch.save(torch.full((3, 1, 8, 8), 0.3), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="on the levels, 0.125 apart"):
        dataset_likelihood.run(tmp_path / "out", data=tmp_path / "x.pt", dequantize="uniform")
    assert not (tmp_path / "out").exists()


MODEL = """
import time, torch
from pathlib import Path
from undiffuse.models import VP, Checkpoint, Denoiser

HERE = Path(__file__).parent


def net(x, t):
    with (HERE / "calls").open("a") as file:
        file.write("1" * len(x))
    if not (HERE / "fast").exists():
        time.sleep(0.02)
    return x.tanh()


def make():
    return Checkpoint(Denoiser(net, VP(), predicts="noise"), (1, 2, 2), (-1.0, 1.0), 2 / 255)


def hook():
    return lambda centres, eps: (eps.sigmoid(), LOGISTIC(eps).flatten(1).sum(1))


def LOGISTIC(eps):  # log density of u = sigmoid(eps): N(eps; 0, 1) over du/deps
    u = eps.sigmoid()
    return -0.5 * eps.square() - 0.9189385332046727 - (u * (1 - u)).log()
"""


def test_a_killed_run_goes_on_without_losing_or_repeating_an_item(tmp_path):
    """SIGKILL once three rows are on the disk: the second run calls the network for the missing
    items alone, and all rows are those of a run that nobody disturbed."""
    (tmp_path / "model.py").write_text(MODEL)
    torch.save(torch.arange(48, dtype=torch.uint8).reshape(12, 1, 2, 2) * 5, tmp_path / "x.pt")
    spec, rows = f"{tmp_path / 'model.py'}:make", tmp_path / "a" / "items.jsonl"
    options = ["--method", "elbo", "--steps", "8", "--batch", "1", "--repeats", "2"]
    command = [
        sys.executable,
        "-P",
        "-m",
        "undiffuse",
        "likelihood",
        spec,
        str(tmp_path / "x.pt"),
        *options,
        "--out",
        str(tmp_path / "a"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(2400):
        if rows.exists() and rows.read_text().count("\n") >= 3:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = rows.read_text()
    done = kept.count("\n")
    assert 3 <= done < 12
    with rows.open("a") as file:
        file.write(kept.splitlines()[0][:40])  # a row cut in its middle, as a kill may leave it
    (tmp_path / "calls").unlink()
    (tmp_path / "fast").touch()
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    each = 2 * (8 + 4)  # two repeats of 8 calls and 4 for the reconstruction
    assert len((tmp_path / "calls").read_text()) == each * (12 - done)
    assert f"goes on after {done} of 12 items" in again.stdout and "12 of 12 items" in again.stdout
    assert rows.read_text().startswith(kept) and (tmp_path / "a" / "bits.png").exists()
    dataset_likelihood.run(
        tmp_path / "b",
        model=spec,
        data=tmp_path / "x.pt",
        method="elbo",
        steps=8,
        repeats=2,
        batch=5,
        progress=False,
    )
    # the control variate's matrix product alone may round otherwise in another batch
    assert items(tmp_path / "a") == pytest.approx(items(tmp_path / "b"), abs=1e-9)
    assert sorted(items(tmp_path / "a")) == list(range(12))


def test_rows_of_a_network_that_code_made_are_not_taken_for_those_of_another(tmp_path):
    """Other weights, or other code, under the same name: every item is scored again."""
    code = (
        MODEL.replace("return x.tanh()", "return x")
        + """

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.load(HERE / "w.pt"))

    def forward(self, x, t):
        return self.scale * x.tanh()


net = Net()
"""
    )
    torch.save(torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2) * 5, tmp_path / "x.pt")
    found = []
    for weight, text in ((1.0, code), (0.5, code), (0.5, code.replace("x.tanh()", "x.sin()"))):
        (tmp_path / "model.py").write_text(text)
        torch.save(torch.tensor(weight), tmp_path / "w.pt")
        found.append(
            dataset_likelihood.run(
                tmp_path / "out",
                model=f"{tmp_path / 'model.py'}:make",
                data=tmp_path / "x.pt",
                **FAST,
            )["bits_per_dim"]
        )
    assert len(set(found)) == 3
    assert len(Store(tmp_path / "out", "items.jsonl").records) == 6


def test_repeats_targets_conventions_and_a_hook(tmp_path, capsys):
    """A hook whose q is known is a bound again; a target asked for is met by more calls."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "fast").touch()
    torch.save(torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2) * 10, tmp_path / "x.pt")
    here = {"model": f"{tmp_path / 'model.py'}:make", "data": tmp_path / "x.pt", "progress": False}
    found = {
        name: dataset_likelihood.run(tmp_path / name, **here, **options)
        for name, options in {
            "uniform": {"repeats": 4, "probes": 4},
            "hook": {"repeats": 4, "probes": 4, "dequantize": f"{tmp_path / 'model.py'}:hook"},
            "bins": {"repeats": 4, "probes": 4, "convention": "bins"},
            "bound": {"method": "elbo", "time": "continuous", "target_error": 0.3},
        }.items()
    }
    assert "variational" in found["hook"]["convention"] and found["hook"]["repeats"] == 4
    assert found["bins"]["offset"] == 7.0 and "'bins'" in found["bins"]["convention"]
    # the level is 2/255 wide and p nearly flat in it: the hook loses its E log q, 0.193 nats
    lost = found["hook"]["bits_per_dim"] - found["uniform"]["bits_per_dim"]
    error = found["hook"]["item_std_error"] / math.sqrt(6)
    assert abs(lost - 0.193 / math.log(2)) < 3 * error < 0.2
    assert abs(found["bins"]["bits_per_dim"] - found["uniform"]["bits_per_dim"]) < 0.1
    bound = found["bound"]
    assert bound["target_not_met"] or bound["item_std_error"] <= 0.3
    said = capsys.readouterr().out.splitlines()
    once = ["dequantised once" in line for line in said if line.startswith("one item")]
    assert once == [False, False, False, True]  # the last alone has one repeat
    assert any("missed the target" in line for line in said) or not bound["target_not_met"]
    rows = [
        json.loads(line) for line in (tmp_path / "hook" / "items.jsonl").read_text().splitlines()
    ]
    assert [r["item"] for r in rows] == list(range(6)) and all(len(r["repeats"]) == 4 for r in rows)
    with pytest.raises(TypeError, match="function that returns a hook"):
        dataset_likelihood.run(tmp_path / "no", dequantize="variational", **here)


def test_the_flow_and_the_bound_side_by_side(tmp_path, capsys):
    """On held-out digits the bound lies above for most: paired, the noise in the data is shared.
    Not for all: a trained network's flow and its chain are two laws, and differ on unlikely
    items."""
    pytest.importorskip("sklearn")
    found = dataset_likelihood.compare(tmp_path, limit=60, progress=False)
    ode, elbo, gap = found["ode"], found["elbo"], found["gap"]
    assert gap["bits_per_dim"] == pytest.approx(elbo["bits_per_dim"] - ode["bits_per_dim"])
    bits = [items(tmp_path / method) for method in ("ode", "elbo")]
    gaps = torch.tensor([bits[1][i] - bits[0][i] for i in range(60)])
    assert 0 < gaps.median() < 0.15 and gap["lo"] <= gaps.mean() <= gap["hi"]
    assert (tmp_path / "both.md").read_text().count("\n") >= 5
    assert "elbo - ode" in capsys.readouterr().out and (tmp_path / "elbo" / "bits.png").exists()


CHAIN = """
import torch
import undiffuse as ud
from undiffuse.models.checkpoint import Checkpoint

LAW = ud.targets.Gaussian(torch.zeros(2), 0.003**2)


def make():
    model = LAW.denoiser(ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)))
    return Checkpoint(model, (2,), (-0.1, 0.1))
"""


def test_flow_and_bound_are_of_one_model_unless_a_chain_is_asked_for(tmp_path, capsys):
    """Data narrower than the network's least noise, 0.01: in continuous time the bound of an exact
    network is log p of the flow, blurred alike, while the chain's decoder, sqrt(beta~_2) = 0.0074
    wide, is sharper by log2(0.0104/0.0074) bits a component, which the command says."""
    (tmp_path / "model.py").write_text(CHAIN)
    torch.save(
        0.003 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), tmp_path / "x.pt"
    )
    here = {"model": f"{tmp_path / 'model.py'}:make", "data": tmp_path / "x.pt", "progress": False}
    gap = dataset_likelihood.compare(tmp_path / "a", **here)["gap"]
    assert abs(gap["bits_per_dim"]) < 0.05 and "either side" not in capsys.readouterr().out
    gap = dataset_likelihood.compare(tmp_path / "b", time="discrete", **here)["gap"]
    assert -0.6 < gap["bits_per_dim"] < -0.3 and "either side" in capsys.readouterr().out


def test_a_target_is_missed_where_the_dequantisation_alone_spreads_by_more(tmp_path, capsys):
    """Exact traces leave no error but the noise inside a level, which more repeats lower and probes
    do not: six times two repeats a ten-thousandth of a bit apart by chance would be a wonder."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "fast").touch()
    torch.save(torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2) * 10, tmp_path / "x.pt")
    found = dataset_likelihood.run(
        tmp_path / "out",
        model=f"{tmp_path / 'model.py'}:make",
        data=tmp_path / "x.pt",
        repeats=2,
        target_error=1e-4,
        progress=False,
    )
    assert found["target_not_met"] == found["items"] == 6 and found["failed"] == 0
    assert "6 items missed the target" in capsys.readouterr().out
    for row in Store(tmp_path / "out", "items.jsonl").records.values():
        spread = abs(row["repeats"][0] - row["repeats"][1]) / 2  # of their mean
        assert row["std_error"] == pytest.approx(spread) and "repeats spread" in row["why"]


def test_items_that_fail_are_counted_with_their_reason_and_left_out_of_the_mean(tmp_path, capsys):
    """A network that knows no bright picture: the mean is that of the others, and it is said."""
    (tmp_path / "model.py").write_text(
        MODEL.replace(
            "    return x.tanh()", "    return torch.where(BRIGHT(x), torch.nan, x.tanh())"
        )
        + "\n\ndef BRIGHT(x):\n    return x.flatten(1).amin(1)[:, None, None, None] > 0.6\n"
    )
    (tmp_path / "fast").touch()
    x = torch.full((6, 1, 2, 2), 100, dtype=torch.uint8)
    x[[1, 4]] = 255  # 1: above 0.6 at the start, where the others are at -0.2
    torch.save(x, tmp_path / "x.pt")
    found = dataset_likelihood.run(
        tmp_path / "out", model=f"{tmp_path / 'model.py'}:make", data=tmp_path / "x.pt", **FAST
    )
    assert found["failures"] == {"the network returned NaN or Inf": 2} and found["items"] == 4
    kept = [
        r for r in Store(tmp_path / "out", "items.jsonl").records.values() if r["status"] == "ok"
    ]
    assert sorted(r["item"] for r in kept) == [0, 2, 3, 5]
    assert found["bits_per_dim"] == pytest.approx(sum(r["bits_per_dim"] for r in kept) / 4)
    assert "left out  2 items: the network returned NaN" in capsys.readouterr().out


LABELLED = '''
import torch
import undiffuse as ud
from undiffuse.models.checkpoint import Checkpoint

FLOW = ud.Flow()


class Net(torch.nn.Module):
    """D of N(label, 0.3) for the labels 0 and 1, and of N(0, 1) without one."""

    def forward(self, x, t, label=None):
        alpha, sigma = (c(t.double())[:, None].to(x) for c in (FLOW.alpha, FLOW.sigma))
        mean = 0.0 if label is None else label[:, None].to(x)
        c = 1.0 if label is None else 0.3
        return mean + c * alpha / (c * alpha**2 + sigma**2) * (x - alpha * mean)


def make():
    return Checkpoint(ud.Denoiser(Net(), FLOW, predicts="data"), (3,), (-4.0, 4.0))
'''


def test_labels_of_the_data_are_conditions(tmp_path, capsys):
    """log p(x | label) of each item's own label against its closed form; without, log p(x). A label
    that has changed is another item, and data without labels are refused before any work."""
    (tmp_path / "model.py").write_text(LABELLED)
    x, y = torch.linspace(-1, 2, 15).reshape(5, 3), torch.tensor([0, 1, 1, 0, 1])
    torch.save({"x": x, "y": y}, tmp_path / "xy.pt")
    here = {
        "model": f"{tmp_path / 'model.py'}:make",
        "data": tmp_path / "xy.pt",
        "batch": 2,
        "rtol": 1e-5,
        "atol": 1e-5,
    }

    def nats(mean, c):
        square = (x.double() - mean).square().sum(1) / c
        return (0.5 * (square + 3 * math.log(2 * math.pi * c)) / (3 * math.log(2))).tolist()

    dataset_likelihood.run(tmp_path / "a", conditional=True, **here)
    assert list(items(tmp_path / "a").values()) == pytest.approx(nats(y[:, None], 0.3), abs=1e-3)
    dataset_likelihood.run(tmp_path / "b", **here)
    assert list(items(tmp_path / "b").values()) == pytest.approx(nats(0.0, 1.0), abs=1e-3)
    torch.save({"x": x, "y": y.clamp(max=0)}, tmp_path / "xy.pt")
    dataset_likelihood.run(tmp_path / "a", conditional=True, **here)
    assert items(tmp_path / "a")[2] == pytest.approx(nats(0.0, 0.3)[2], abs=1e-3)
    assert len(Store(tmp_path / "a", "items.jsonl").records) == 5 + 3
    torch.save(x, tmp_path / "xy.pt")
    with pytest.raises(ValueError, match=r"needs labels; xy.pt has none: hand in a file with both"):
        dataset_likelihood.run(tmp_path / "no", conditional=True, **here)


def test_rows_of_another_condition_are_not_taken_for_its_own(tmp_path):
    """A network of code whose condition is read from a file beside it."""
    own = 'predicts="data", cond={"label": torch.load(__file__ + ".pt")}'
    (tmp_path / "model.py").write_text(LABELLED.replace('predicts="data"', own))
    torch.save(torch.linspace(-1, 1, 6).reshape(2, 3), tmp_path / "x.pt")
    here = {"model": f"{tmp_path / 'model.py'}:make", "data": tmp_path / "x.pt", **FAST}
    found = []
    for label in (0, 1):
        torch.save(torch.tensor([label]), tmp_path / "model.py.pt")
        found.append(dataset_likelihood.run(tmp_path / "out", **here)["bits_per_dim"])
    assert abs(found[0] - found[1]) > 0.1


def test_labels_of_held_out_items_are_their_own():
    """A part of the data set keeps the labels of its items."""
    pytest.importorskip("sklearn")
    trained = load_default()
    whole, part = stream("digits"), unseen(trained)
    index = split_indices(len(whole), **trained.training["split"])[1]
    assert torch.equal(part.labels(), whole.labels()[index])
    assert torch.equal(part.read([3, 4]), whole.read(index[3:5].tolist()))


def test_one_item_has_no_interval(tmp_path, capsys):
    pytest.importorskip("sklearn")
    dataset_likelihood.run(tmp_path, limit=1, **FAST)
    assert ", of one item" in capsys.readouterr().out


def test_the_summary_of_data_of_a_long_name_stays_within_80_columns(tmp_path, capsys):
    path = tmp_path / f"{'of_a_long_name' * 4}.npy"
    np.save(path, np.zeros((2, 1, 8, 8), np.float32))
    dataset_likelihood.run(
        tmp_path / "out", data=str(path), dequantize="none", **FAST
    )
    said = capsys.readouterr().out
    assert path.name in said or path.stem in said
    told = [line for line in said.splitlines() if str(tmp_path) not in line]
    assert max(map(len, told)) <= 80
