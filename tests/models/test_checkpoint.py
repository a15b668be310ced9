"""Checkpoints: what comes back is what was saved, to the bit, or nothing at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from undiffuse.models import EDM, VE, VP, Brownian, Checkpoint, Denoiser, Flow, SubVP
from undiffuse.models import load_checkpoint as load
from undiffuse.models.checkpoint import atomically, process_from_dict, process_to_dict
from undiffuse.models.networks import MLP
from undiffuse.models.processes.learned_schedule import LearnedVP, MonotoneOmega

PROCESSES = [
    VP(0.2, 15.0),
    VP.cosine(steps=20),
    VP.from_betas([0.1, 0.2, 0.7]),
    SubVP(t_min=1e-4),
    VE(0.02, 30.0),
    EDM(sigma_data=0.7),
    Flow(),
    Brownian(2.0, t_max=3.0),
]


def checkpoint(process=None, **options):
    torch.manual_seed(0)
    net = MLP(6, width=8, depth=1)
    torch.nn.init.normal_(net.leave.weight)
    denoiser = Denoiser(net.eval(), process or VP(), **options)
    return Checkpoint(denoiser, (2, 3), (-1.0, 1.0), 0.125, ("mlp", net.config), {"seed": 7})


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_processes_come_back_equal(process):
    again = process_from_dict(json.loads(json.dumps(process_to_dict(process))))
    assert type(again) is type(process) and again == process
    t = torch.linspace(process.t_min, process.t_max, 50, dtype=torch.float64)
    assert torch.equal(again.sigma(t), process.sigma(t))


def test_a_learned_schedule_comes_back_with_its_bits():
    omega = MonotoneOmega(-9.0, 4.0, width=7)
    with torch.no_grad():
        omega.shape += torch.linspace(0, 1, 15, dtype=torch.float64) / 3
    process = LearnedVP(omega)
    again = process_from_dict(json.loads(json.dumps(process_to_dict(process))))
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    assert isinstance(again, LearnedVP)
    assert torch.equal(again.sigma(t), process.sigma(t))
    with pytest.raises(ValueError, match="LearnedVP has no name"):
        process_to_dict(LearnedVP(lambda t: 10 * t - 5))


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


def test_missing_foreign_and_mismatched_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*none.safetensors"):
        load(tmp_path / "none.safetensors")
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no 'undiffuse' entry in its metadata"):
        load(path)

    def rewrite(change_header=None, change_state=None):
        checkpoint().save(path)
        from safetensors import safe_open

        with safe_open(path, "pt") as f:
            header = json.loads(f.metadata()["undiffuse"])
        state = load_file(path)
        for change, what in ((change_header, header), (change_state, state)):
            if change:
                change(what)
        save_file(state, path, metadata={"undiffuse": json.dumps(header)})

    rewrite(change_state=lambda s: s.update({"enter.weight": torch.zeros(3, 6)}))
    with pytest.raises(ValueError, match=r"enter.weight: \(3, 6\) in the file, \(8, 6\) in the n"):
        load(path)
    rewrite(change_state=lambda s: s.pop("leave.bias"))
    with pytest.raises(ValueError, match="leave.bias: absent in the file"):
        load(path)
    rewrite(change_header=lambda h: h.pop("process"))
    with pytest.raises(ValueError, match="description is incomplete or wrong: KeyError"):
        load(path)
    rewrite(change_header=lambda h: h.update(format=2))
    with pytest.raises(ValueError, match="has format 2; this version reads format 1"):
        load(path)
    rewrite(change_header=lambda h: h["network"].update(name="mpl"))
    with pytest.raises(ValueError, match="network must be one of mlp"):
        load(path)


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


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    atomically(path, lambda p: p.write_bytes(b"old"))

    def half(p):
        p.write_bytes(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomically(path, half)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


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
