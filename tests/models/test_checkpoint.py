"""Checkpoints: what comes back is what was saved, to the bit, or nothing at all."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from undiffuse.models import VP, Checkpoint, Denoiser
from undiffuse.models import load_checkpoint as load
from undiffuse.models.networks import MLP
from undiffuse.models.processes import LearnedVP, MonotoneOmega
from undiffuse.models.processes.registry import from_dict, to_dict


def checkpoint(process=None, **options):
    torch.manual_seed(0)
    net = MLP(6, width=8, depth=1)
    torch.nn.init.normal_(net.leave.weight)
    denoiser = Denoiser(net.eval(), process or VP(), **options)
    return Checkpoint(denoiser, (2, 3), (-1.0, 1.0), 0.125, ("mlp", net.config), {"seed": 7})


def test_a_learned_schedule_comes_back_with_its_bits():
    omega = MonotoneOmega(-9.0, 4.0, width=7)
    with torch.no_grad():
        omega.shape += torch.linspace(0, 1, 15, dtype=torch.float64) / 3
    process = LearnedVP(omega)
    again = from_dict(json.loads(json.dumps(to_dict(process))))
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    assert isinstance(again, LearnedVP)
    assert torch.equal(again.sigma(t), process.sigma(t))
    with pytest.raises(ValueError, match="LearnedVP has no name"):
        to_dict(LearnedVP(lambda t: 10 * t - 5))


@pytest.mark.parametrize(
    "options",
    [
        {"predicts": "v"},
        {"predicts": "edm", "sigma_data": 0.83},
        {"predicts": "noise", "time": "index", "steps": 50, "clip": (-1.0, 1.0)},
    ],
    ids=lambda o: o["predicts"],
)
def test_round_trip_gives_the_same_bits(tmp_path, options):
    saved = checkpoint(VP.cosine(steps=50), **options)
    again = load(saved.save(tmp_path / "new" / "a.safetensors"))
    x, t = torch.randn(4, 2, 3), torch.linspace(0.1, 0.9, 4)
    assert torch.equal(saved.denoiser(x, t), again.denoiser(x, t))
    for name in ("event_shape", "data_range", "spacing", "network", "training"):
        assert getattr(again, name) == getattr(saved, name), name
    assert not any(p.requires_grad for p in again.denoiser.net.parameters())
    assert not again.denoiser.net.training
    # equal contents are equal files: a shipped network can be compared byte by byte
    saved.save(tmp_path / "b.safetensors")
    first, second = tmp_path / "new" / "a.safetensors", tmp_path / "b.safetensors"
    assert first.read_bytes() == second.read_bytes()


def test_every_truncation_is_refused(tmp_path):
    whole = checkpoint().save(tmp_path / "whole.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for keep in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match="cut.safetensors is no whole safetensors file"):
            load(cut)


def rewrite(path, change_header=None, change_state=None):
    """A checkpoint whose description or tensors were changed by hand."""
    checkpoint().save(path)
    with safe_open(path, "pt") as f:
        header = json.loads(f.metadata()["undiffuse"])
    state = load_file(path)
    for change, what in ((change_header, header), (change_state, state)):
        if change:
            change(what)
    save_file(state, path, metadata={"undiffuse": json.dumps(header)})


def test_missing_foreign_and_mismatched_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*none.safetensors"):
        load(tmp_path / "none.safetensors")
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no 'undiffuse' entry in its metadata"):
        load(path)

    rewrite(path, change_state=lambda s: s.update({"enter.weight": torch.zeros(3, 6)}))
    with pytest.raises(ValueError, match=r"enter.weight: \(3, 6\) in the file, \(8, 6\) in the n"):
        load(path)
    rewrite(path, change_state=lambda s: s.pop("leave.bias"))
    with pytest.raises(ValueError, match="leave.bias: absent in the file"):
        load(path)
    rewrite(path, change_header=lambda h: h.pop("process"))
    with pytest.raises(ValueError, match="description is incomplete: 'process' is absent"):
        load(path)
    rewrite(path, change_header=lambda h: h.update(format=2))
    with pytest.raises(ValueError, match="has format 2; this version reads format 1"):
        load(path)
    rewrite(path, change_header=lambda h: h["network"].update(name="mpl"))
    with pytest.raises(ValueError, match="network must be one of mlp"):
        load(path)


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("data_range", [1, -1], "data_range must be two finite numbers that rise"),
        ("data_range", [1], "data_range must be two"),
        ("data_range", [0, float("inf")], "data_range must be two"),
        ("spacing", -1, "spacing must be a finite number >= 0"),
        ("spacing", "x", "spacing must be a finite number >= 0"),
        ("spacing", 1e-300, "spacing must be 0, or the distance of 2 to 2.32 levels"),
        ("spacing", 3.0, "spacing must be 0, or the distance of 2 to 2.32 levels"),
        ("event_shape", "abc", "event_shape must be whole numbers"),
        ("event_shape", [], "event_shape must be whole numbers"),
        ("event_shape", [6.0], "event_shape must be whole numbers"),
        ("event_shape", [7], r"events of shape \(7,\) need a network of dim=7"),
        ("sigma_data", "x", "sigma_data must be a finite number > 0"),
        ("sigma_data", float("nan"), "sigma_data must be a finite number > 0"),
        ("predicts", 3, "predicts must be a text"),
        ("predicts", "nose", "predicts must be one of"),
        ("time", None, "time must be a text"),
        ("steps", 2.5, "steps must be a whole number"),
        ("clip", [1, 1], "clip must be null or two finite numbers that rise"),
        ("training", [], "training must be a dictionary"),
        ("training", {"split": {"held_out": 0.2, "sed": 0}}, "split {'held_out'"),
        ("training", {"split": {"held_out": 2.0, "seed": 0}}, "split {'held_out'"),
        ("training", {"data": 3}, "data .text"),
        ("network", {"name": "mlp"}, "network must be {'name'"),
        ("network", {"name": "mlp", "config": {"dim": 6, "widht": 8}}, "cannot be built"),
        ("network", {"name": "mlp", "config": {"dim": 6, "width": 10**6}}, "width=1000000 of"),
        ("network", {"name": "mlp", "config": {"dim": 6, "depth": 1.5}}, "depth must be a whole"),
        ("process", {"name": "vp-cosine", "args": {"steps": 10**10}}, "process must be {'name'"),
        ("process", {"name": "vp", "args": {"bet": 1.0}}, "bet"),
        ("process", "vp", "process must be {'name'"),
        ("pickle", "cos\nsystem\n", "unknown entries pickle in the description; known: network"),
    ],
)
def test_a_description_that_cannot_be_right_is_refused_by_name(tmp_path, entry, value, words):
    """Each entry is held to what it must be before anything is built: no memory, no code."""
    path = tmp_path / "a.safetensors"
    rewrite(path, lambda h: h.update({entry: value}))
    with pytest.raises(ValueError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_description_of_any_depth_is_refused(tmp_path):
    path = tmp_path / "deep.safetensors"
    save_file({"w": torch.zeros(2)}, path, metadata={"undiffuse": "[" * 100_000})
    with pytest.raises(ValueError, match="the description cannot be read"):
        load(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"event_shape": (2, "3")},
        {"event_shape": ()},
        {"data_range": (1.0, -1.0)},
        {"data_range": (0.0, float("nan"))},
        {"spacing": -0.1},
        {"spacing": 1e-300},
        {"training": None},
        {"denoiser": torch.nn.Identity()},
    ],
    ids=str,
)
def test_a_checkpoint_of_ones_own_is_held_to_the_same(fields):
    """`digits`-like checkpoints from code never pass through a file."""
    right = {
        "denoiser": Denoiser(lambda x, t: x, VP()),
        "event_shape": (2,),
        "data_range": (-1.0, 1.0),
    }
    (name,) = fields
    with pytest.raises((ValueError, TypeError), match=name):
        Checkpoint(**{**right, **fields})


def test_what_no_file_can_describe_is_refused_before_writing(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(TypeError, match="callable time convention"):
        checkpoint(time=lambda t: t).save(path)
    with pytest.raises(TypeError, match="only a torch module"):
        Checkpoint(Denoiser(lambda x, t: x, VP()), (2,), (-1.0, 1.0)).save(path)
    unnamed = type("Mine", (VP,), {})()
    with pytest.raises(ValueError, match="process Mine has no name"):
        checkpoint(unnamed).save(path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_ones_own_code_is_named_by_file_and_function(tmp_path):
    # the file is the user's, so the function runs; what it returns must be a checkpoint
    code = tmp_path / "mine.py"
    code.write_text(
        "import undiffuse as ud\n"
        "from undiffuse.models.checkpoint import Checkpoint\n"
        "def make():\n"
        "    return Checkpoint(ud.Denoiser(lambda x, t: 0 * x, ud.VP()), (2,), (-1.0, 1.0))\n"
        "def wrong():\n"
        "    return 3\n"
    )
    made = load(f"{code}:make")
    assert made.event_shape == (2,)
    x = torch.ones(3, 2, dtype=torch.float64)
    # eps = 0 everywhere, so D = x / alpha
    assert torch.allclose(made.denoiser(x, 0.5), x / made.denoiser.process.alpha(0.5))
    with pytest.raises(TypeError, match="must return a Checkpoint; got int"):
        load(f"{code}:wrong")
    with pytest.raises(ValueError, match="no function 'absent'"):
        load(f"{code}:absent")
    with pytest.raises(FileNotFoundError, match=r"no Python file"):
        load("nowhere.py:make")
