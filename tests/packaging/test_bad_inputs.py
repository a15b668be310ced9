"""Decisions about bad and extreme inputs of the command line, training, checkpoints, networks and
data.

Each row is a call and what was decided: a refusal in one line before any network call, with exit
code 2 on the command line, or acceptance on purpose.
"""

import json
import re
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import undiffuse as ud
from undiffuse.cli import main
from undiffuse.models.checkpoint import load_default

M = ud.models
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
INF, NAN = float("inf"), float("nan")


def changed(path, **entries):
    """The shipped network with other entries in its description."""
    load_default().save(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["undiffuse"])
    for name, value in entries.items():
        if name in header:
            header[name] = value
        else:
            header["training"][name] = value
    save_file(load_file(path), path, metadata={"undiffuse": json.dumps(header)})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8))
    np.save("x.npy", (digits / 8 - 1).astype("float32"))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "file").write_text("")
    (tmp_path / "wrap-idx4-ubyte").write_bytes(
        b"\0\0\x08\x04" + struct.pack(">4I", *[2**31] * 4) + b"\0" * 64
    )
    (tmp_path / "rank-idx255-ubyte").write_bytes(
        b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"\0"
    )
    return tmp_path


@pytest.fixture
def no_calls(monkeypatch):
    """No network of ours may be called."""

    def refuse(*_, **__):
        raise AssertionError("a network was called")

    for kind in M.NETWORKS.values():
        monkeypatch.setattr(kind, "forward", refuse)


def named(value):
    """The id of a row: its arguments."""
    return " ".join(value)[:60] if isinstance(value, list) else ""


BIG = str(2**64)
QUICK = ["bench", "--targets", "ring2", "--checkpoint", "none", "--peers", "", "--quick"]
SHELL = [
    (["sample", "--n", "2", "--device", "meta"], "--device is 'meta', which holds no numbers"),
    (["sample", "--n", "2", "--device", "gpu"], "--device 'gpu' cannot be used here"),
    (["train", "digits", "--device", "meta"], "--device is 'meta', which holds no numbers"),
    (["sample", "--n", "2", "--seed", BIG], "--seed must be a whole number of 64 bits"),
    (["sample", "--n", "2", "--seed", str(-(2**63) - 1)], "--seed must be a whole number"),
    (["train", "digits", "--seed", "9" * 23], "--seed must be a whole number of 64 bits"),
    (["likelihood", "digits", "x.npy", "--seed", BIG], "--seed must be a whole number"),
    ([*QUICK, "--seed", BIG], "--seed must be a whole number of 64 bits"),
    ([*QUICK, "--seeds", f"0,{BIG}"], "--seed must be a whole number of 64 bits"),
    (["tune", "--seed", BIG], "--seed must be a whole number of 64 bits"),
    (["sample", "--batch", "0"], "--n and --batch must be >= 1; got 64 and 0"),
    (["likelihood", "--batch", "0"], "batch must be >= 1; got 0"),
    (["train", "digits", "--batch", "0"], "batch must be >= 1; got 0"),
    (["tune", "--calls", "0"], "calls must be >= 1; got 0"),
    (["bench", "adaptive", "--batch", "0"], "--batch must be >= 1; got 0"),
    (["bench", "likelihood", "--batch", "0"], "--batch must be >= 1; got 0"),
    (["train", "digits", "--lr", "nan"], "lr must be > 0; got nan"),
    (["train", "digits", "--lr", "inf"], "lr must be > 0; got inf"),
    (["train", "digits", "--lr", "1e30"], "lr must be <= 1"),
    (["train", "digits", "--process", "flow", "--predicts", "noise"], "says nothing of the data"),
    (["train", "digits", "--process", "flow", "--predicts", "score"], "says nothing of the data"),
    (["train", "digits", "--network", "unet", "--width", "0"], "width must be a whole number >= 1"),
    (["train", "x.npy", "--conditional"], "needs labels"),
    (["train", "wrap-idx4-ubyte"], "its header declares events of shape"),
    (["train", "rank-idx255-ubyte"], "its header declares events of shape"),
    (["train", "digits", "--out", "file"], "out must be a folder that can be written to"),
    (["sample", "--out", "file/o"], "out must be a folder that can be written to"),
    (["tune", "--out", "file"], "out must be a folder that can be written to"),
    (["likelihood", "--out", "file"], "out must be a folder that can be written to"),
    ([*QUICK, "--out", "file"], "out must be a folder that can be written to"),
    (["statistics", "--out", "file/o"], "out must be a folder that can be written to"),
    (["sample", "--n", str(10**15)], "No space left on device"),
    (["sample", "--grid", "equidistributed", "--solver", "dpmp"], "did you mean"),
    (["sample", "--grid", "equidistributed", "--steps", "0"], "steps must be >= 1"),
    (["sample", "--solver", "deep.json"], "deep.json"),
    (["sample", "--steps", "5", "--nfe", "5"], "steps"),
    ([*QUICK, "--grid", "nope"], "unknown grid 'nope'"),
    ([*QUICK, "--grid", ""], "--grid must name at least one"),
    ([*QUICK, "--metrics", ""], "--metrics must name at least one"),
    ([*QUICK, "--solvers", "", "--nfe", "3"], "nothing to measure: name a solver or a peer"),
    (["tune", "--starts", "4"], "starts must be >= 8; got 4"),
    (["solvers", "ddim", "--process", "vp-beta"], "process must be one of"),
]


@pytest.mark.parametrize(("arguments", "words"), SHELL, ids=named)
def test_the_command_line_refuses_in_one_line_before_the_work(
    here, no_calls, arguments, words, capsys
):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1
    made = {p.name for p in here.rglob("*") if p.is_file()}
    assert made <= {"x.npy", "deep.json", "file", "wrap-idx4-ubyte", "rank-idx255-ubyte"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--n", "2", "--steps", "2", "--seed", "-1"],  # 64 bits, read as unsigned
        ["sample", "--n", "2", "--steps", "2", "--seed", str(2**64 - 1)],
        ["sample", "--n", "2", "--steps", "2", "--out", ""],  # the current folder
        ["sample", "--n", "2", "--steps", "2", "--out", "TMP[/b] [link=x]"],
        [
            "likelihood",
            "digits",
            "x.npy",
            "--dequantize",
            "uniform",
            "--seed",
            str(2**64 - 1),
            "--out",
            "[/b]",
        ],
        ["solvers", "ddim", "--process", "learned"],  # a schedule before its training
        ["solvers", "ddim", "--process", "vp-betas"],  # DDPM's own table
        ["solvers", "--process", "flow"],
        ["train", "digits", "--width", "3", "--steps", "2"],
        [
            "train",
            "digits",
            "--loss",
            "hybrid",
            "--predicts",
            "noise",
            "--steps",
            "2",
            "--width",
            "8",
        ],
        ["train", "x.npy", "--steps", "2", "--width", "4", "--seed", "-5"],
    ],
    ids=" ".join,
)
def test_the_command_line_accepts_on_purpose(here, arguments, capsys):
    assert main(arguments) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"event_shape": "abc"}, "event_shape must be whole numbers"),
        ({"event_shape": [3]}, "need a network of dim=3"),
        ({"data_range": [1, -1]}, "data_range must be two finite numbers that rise"),
        ({"data_range": [1]}, "data_range must be two finite numbers that rise"),
        ({"spacing": "x"}, "spacing must be a finite number"),
        ({"spacing": -1}, "spacing must be a finite number"),
        ({"spacing": 1e-300}, "spacing must be 0, or the distance"),
        ({"sigma_data": "x"}, "sigma_data must be a finite number > 0"),
        ({"split": {"a": 1}}, "split {'held_out'"),
        ({"data": 5}, "data (text)"),
    ],
    ids=str,
)
def test_a_damaged_description_is_one_line(here, no_calls, entries, words, capsys):
    changed(here / "m.safetensors", **entries)
    for command in ("sample", "likelihood"):
        assert main([command, "m.safetensors"]) == 2
        error = capsys.readouterr().err
        assert words in error and "m.safetensors" in error and len(error.splitlines()) == 1


def test_labels_for_a_network_without_classes(here, capsys):
    """A call is needed to see it: any network may take any condition."""
    assert main(["likelihood", "--limit", "2", "--conditional"]) == 2
    assert "was given to a network without classes" in capsys.readouterr().err


CALLS = [
    ("train steps=2.5", lambda p: ud.train(X, steps=2.5), "steps must be a whole number"),
    ("train steps=True", lambda p: ud.train(X, steps=True), "steps must be a whole number"),
    ("train batch=0", lambda p: ud.train(X, batch=0), "batch must be >= 1"),
    ("train lr='a'", lambda p: ud.train(X, lr="a"), "lr must be a number"),
    ("train lr=nan", lambda p: ud.train(X, lr=NAN), "lr must be > 0"),
    ("train seed=1.5", lambda p: ud.train(X, seed=1.5), "seed must be a whole number"),
    ("train seed=2**70", lambda p: ud.train(X, seed=2**70), "seed must"),
    ("train warmup=-1", lambda p: ud.train(X, warmup=-1), "warmup must be >= 0"),
    ("train weight_decay", lambda p: ud.train(X, weight_decay=-1), "weight_decay must be >= 0"),
    ("train conditional=1", lambda p: ud.train(X, conditional=1), "conditional must be True or"),
    ("train sigma_data=-1", lambda p: ud.train(X, sigma_data=-1.0), "sigma_data must be"),
    ("train out=file", lambda p: ud.train(X, out=p / "file"), "out must be a folder"),
    ("train out=/proc", lambda p: ud.train(X, out="/proc/nope"), "out must be a folder"),
    ("train device=meta", lambda p: ud.train(X, device="meta"), "device is 'meta'"),
    ("train device=gpu", lambda p: ud.train(X, device="gpu"), "device 'gpu' cannot be used"),
    ("train one event", lambda p: ud.train(X[:1], steps=2, held_out=0.9), "none to train on"),
    ("train unet on vectors", lambda p: ud.train(X, network="unet"), r"unet' needs events \[C"),
    ("train misspelt", lambda p: ud.train(X, stpes=2), "settings must be among steps"),
    ("Levels(2.5)", lambda p: M.Levels(2.5), "count must be a whole number"),
    ("Levels(True)", lambda p: M.Levels(True), "count must be a whole number"),
    ("Levels(1)", lambda p: M.Levels(1), "count must be >= 2"),
    ("Levels range inf", lambda p: M.Levels(16, (-1, INF)), "range must be"),
    ("Levels range nan", lambda p: M.Levels(16, (NAN, 1)), "range must be"),
    ("Levels range of one", lambda p: M.Levels(16, (1,)), "range must be"),
    ("load no module", lambda p: ud.load("nomodule:fn"), "No module named 'nomodule'"),
    ("load with arguments", lambda p: ud.load("os:_exit"), "without arguments"),
    ("load on no device", lambda p: ud.load("digits", device="abacus"), "device 'abacus'"),
    ("save to no place", lambda p: load_default().save("/proc/c8"), "proc"),
    ("MLP(2.5)", lambda p: M.MLP(2.5), "dim must be a whole number"),
    ("MLP(width=0)", lambda p: M.MLP(2, width=0), "width must be a whole number >= 1"),
    ("MLP(classes=-1)", lambda p: M.MLP(2, classes=-1), "classes must be a whole number >= 0"),
    ("UNet(multipliers=())", lambda p: M.UNet(1, multipliers=()), "levels must"),
]


@pytest.mark.parametrize(("call", "words"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_a_call_is_refused_by_name(here, no_calls, call, words):
    kinds = (ValueError, TypeError, OSError, ImportError)
    with pytest.raises(kinds, match=words) as caught:
        call(here)
    assert isinstance(caught.value, (ud.UndiffuseError, OSError, ImportError))


def test_calls_that_are_accepted_on_purpose():
    """One event is trained on where the split leaves it; steps may be numpy's."""
    ud.train(X[:1], steps=np.int64(2), held_out=0.0, network_config={"width": 4})
    assert M.Levels(np.int64(16), (-1, 1)).count == 16


@pytest.mark.parametrize("damage", ["list", "no key", "cut", "empty", "tensors", "folder"])
def test_a_state_that_does_not_read_is_named_with_the_remedy(tmp_path, damage):
    small = {"network_config": {"width": 4, "depth": 1}, "out": tmp_path, "every": 2, "batch": 4}
    ud.train(X, steps=2, **small)
    path = tmp_path / "state.pt"
    state = torch.load(path, weights_only=True)
    if damage == "list":
        torch.save([state], path)
    elif damage == "no key":
        torch.save({k: v for k, v in state.items() if k != "optimizer"}, path)
    elif damage == "tensors":
        torch.save({**state, "net": {"a": torch.zeros(2)}}, path)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(path.read_bytes()[: 500 * (damage == "cut")])
    words = "start over with resume=False, or --restart"
    words = "is to be written" if damage == "folder" else words
    with pytest.raises((ValueError, OSError), match=re.escape(words)):
        ud.train(X, steps=2, **small)
    if damage != "folder":
        ud.train(X, steps=2, resume=False, **small)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_finished_run_mends_its_network(tmp_path, damage):
    """state.pt holds all that the other files are made of."""
    small = {"network_config": {"width": 4, "depth": 1}, "out": tmp_path, "steps": 4, "batch": 4}
    ud.train(X, **small)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(whole[:100])
    ud.train(X, **small)
    assert path.read_bytes() == whole
