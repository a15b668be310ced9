"""The command line, as a newcomer meets it."""

import json
import subprocess
import sys

import pytest
import torch

import undiffuse as ud
from undiffuse.cli import main

COMMANDS = ["sample", "likelihood", "bench nfe", "train", "tune", "solvers", "which"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_with_a_sentence(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: undiffuse {command}")
    assert "default" in text and "default: None" not in text


def test_the_entry_point_and_the_module_are_one_program():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "undiffuse", "--help"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert all(command.split()[0] in done.stdout for command in COMMANDS)


def test_solvers_are_listed_with_what_they_declare(capsys):
    assert main(["solvers", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(ud.solvers.names())
    assert next(iter(listed)) == "relay"  # the default
    assert (listed["heun"]["order"], listed["heun"]["calls"]) == (2, 19)  # for ten steps
    assert (listed["ddpm"]["order"], listed["ddpm"]["law"]) == (1, 1)
    assert listed["ddim"]["law"] is None and "euler" in listed["ddim"]["also"]
    sde = listed["dpmpp-2m-sde"]  # strong and weak, not the 2 of its name
    assert (sde["order"], sde["law"], sde["kind"]) == (1, 2, "SDE")
    assert all(row["good"] for row in listed.values())


def test_samples_do_not_depend_on_the_batch(tmp_path, capsys):
    options = ["sample", "--n", "5", "--steps", "3", "--solver", "ddpm"]
    assert main([*options, "--out", str(tmp_path / "a")]) == 0
    assert main([*options, "--out", str(tmp_path / "b"), "--batch", "2"]) == 0
    a, b = (torch.load(tmp_path / f / "samples.pt", weights_only=True) for f in "ab")
    assert a.shape == (5, 1, 8, 8)
    # the digits network multiplies matrices, which round differently in another batch
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert (tmp_path / "a" / "samples.png").read_bytes()[:4] == b"\x89PNG"
    assert str(tmp_path / "a" / "samples.pt") in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.tmp"))


def test_samples_of_parallel_sweeps_are_those_row_by_row(tmp_path):
    options = ["sample", "--n", "4", "--steps", "20", "--solver", "ddim"]
    swept = ["--parallel", "20", "--tolerance", "1e-4"]
    main([*options, "--out", str(tmp_path / "a")])
    main([*options, *swept, "--out", str(tmp_path / "b")])
    a, b = (torch.load(tmp_path / f / "samples.pt", weights_only=True) for f in "ab")
    assert 0 < float((a - b).square().mean().sqrt()) < 1e-4


def test_a_grid_can_be_measured_on_the_network(tmp_path):
    options = ["sample", "--n", "8", "--steps", "6", "--solver", "ipndm-3"]
    grids = ("equidistributed", "karras")
    for grid in grids:
        assert main([*options, "--grid", grid, "--out", str(tmp_path / grid)]) == 0
    assert (
        main(
            [
                *options[:3],
                "--steps",
                "60",
                "--grid",
                "log_snr",
                "--solver",
                "ipndm-3",
                "--out",
                str(tmp_path / "fine"),
            ]
        )
        == 0
    )
    names = (*grids, "fine")
    x = {g: torch.load(tmp_path / g / "samples.pt", weights_only=True) for g in names}
    errors = {g: float((x[g] - x["fine"]).square().mean().sqrt()) for g in grids}
    assert errors["equidistributed"] < 0.7 * errors["karras"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "nowhere.safetensors"], "no checkpoint at 'nowhere.safetensors'"),
        (["sample", "--solver", "dpmp-2m"], "did you mean 'dpmpp-2m'"),
        (["sample", "--grid", "kerras"], "did you mean 'karras'"),
        (["sample", "--steps", "0"], "steps must be"),
        (["sample", "--parallel", "0"], "parallel must be >= 1; got 0"),
        (["sample", "--tolerance", "0.1"], "tolerance is of parallel sweeps"),
        (["sample", "--n", "0"], "--n and --batch must be >= 1"),
        (["solvers", "unipc-33"], "unknown solver 'unipc-33'"),
        (["train", "nowhere.npz"], "nowhere.npz"),
        (["train", "digits", "--steps", "0"], "steps must be >= 1; got 0"),
        (["train", "digits", "--loss", "learned"], "a learned process belong together"),
        (["sample", "--solver", "ddpm-learned"], "need a VarianceHead"),
        (["likelihood", "nowhere.safetensors"], "no checkpoint"),
        (["bench", "--solvers", "dpmp-2m"], "dpmpp-2m"),
        (["bench", "compare", "one"], "compare two results"),
        (["bench", "orders", "--solvers", "dim"], "did you mean 'ddim'"),
        (["bench", "adaptive", "--batch", "1"], "batch must be at least 2 samples"),
        (["bench", "--grid", "equidistribute"], "unknown grid 'equidistribute'"),
        (["tune", "--nfe", "1"], "nfe must be numbers of calls >= 2"),
        (["sample", "--solver", "nowhere.json"], "nowhere.json"),
        (["sample", "digist"], "did you mean 'digits'"),
        (["train", "digts"], "did you mean 'digits'"),
        (["train", "digits", "--process", "vp-cosin"], "did you mean 'vp-cosine'"),
        (["train", "digits", "--network", "unett"], "did you mean 'unet'"),
        (["train", "digits", "--predicts", "noize"], "did you mean 'noise'"),
        (["bench", "--peers", "difusers"], "did you mean 'diffusers'"),
        (["sample", "--engine", "torchrn"], "did you mean 'torchrun'"),
        (["sample", "--class", "all"], "does not say how many classes it has: name them, 0,1,2"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and len(error.splitlines()) == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("train", "sample"),
    [
        (["--loss", "hybrid"], ["--solver", "ddpm-learned", "--grid", "uniform"]),
        (["--process", "learned"], []),
    ],
    ids=["variance", "schedule"],
)
def test_what_train_wrote_needs_no_further_argument(train, sample, tmp_path, capsys):
    small = ["--predicts", "noise", "--steps", "20", "--width", "16", "--batch", "32"]
    assert main(["train", "digits", *small, *train, "--out", str(tmp_path)]) == 0
    assert "held-out loss: " in capsys.readouterr().out
    for picture in ("loss.png", "samples.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"
    model = str(tmp_path / "model.safetensors")
    command = ["sample", model, "--n", "4", "--steps", "5", *sample]
    assert main([*command, "--out", str(tmp_path / "s")]) == 0
    x = torch.load(tmp_path / "s" / "samples.pt", weights_only=True)
    assert x.shape == (4, 1, 8, 8) and bool(x.isfinite().all())
    assert main(["likelihood", model, "--limit", "2", "--out", str(tmp_path / "l")]) == 0


def test_orders_are_measured_and_kept(tmp_path, capsys):
    assert main(["bench", "orders", "--solvers", "ddim,heun", "--out", str(tmp_path)]) == 0
    assert "2 solvers, 0 further than 0.15" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"orders.json", "orders.md"}


def test_a_truncated_checkpoint_is_refused(tmp_path, capsys):
    whole = (ud.models.checkpoint.load_default(), tmp_path / "digits.safetensors")
    whole[0].save(whole[1])
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(whole[1].read_bytes()[:100_000])
    assert main(["sample", str(broken), "--out", str(tmp_path / "out")]) == 2
    assert "no whole safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tune_keeps_what_it_found_and_says_how_to_load_it(tmp_path, capsys):
    """The second run finds the same network and settings and looks for nothing."""
    command = ["tune", "--nfe", "3", "--calls", "60", "--out", str(tmp_path)]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "3 calls: error" in first and f"(8, 1, 8, 8), '{tmp_path}" in first
    assert main(command) == 0
    assert "3 calls: kept, error" in capsys.readouterr().out
    lines = first[first.index("import undiffuse") :]
    scope: dict[str, object] = {}
    exec(lines, scope)  # noqa: S102
    assert tuple(scope["x"].shape) == (8, 1, 8, 8)  # type: ignore[attr-defined]


def test_pictures_of_17_levels_are_scored_as_the_data_they_hold(tmp_path, capsys):
    """PNGs have bytes: 17 grey values of 256. Told so, every item has the bits of the same digit
    handed over as 17 levels; not told, it pays log2(255/16) = 4 bits for levels that are not there,
    less what the network knows of them."""
    from PIL import Image

    held = ud.models.data.load("digits").split()[1].x[:2]
    (tmp_path / "px").mkdir()
    for i, x in enumerate(((held[:, 0] + 1) * 127.5).round()):
        Image.fromarray(x.numpy().astype("uint8")).save(tmp_path / "px" / f"{i}.png")

    def bits(name, *given):
        command = ["likelihood", "digits", *given, "--limit", "2", "--out", str(tmp_path / name)]
        assert main(command) == 0
        lines = (tmp_path / name / "items.jsonl").read_text().splitlines()
        return {r["item"]: r["bits_per_dim"] for r in map(json.loads, lines)}

    as_levels = bits("levels", str(tmp_path / "px"), "--levels", "17")
    assert as_levels == pytest.approx(bits("own"), abs=1e-6)
    said = capsys.readouterr().out
    assert "17 levels on [-1, 1]" in said and "256 levels" not in said
    as_bytes = bits("bytes", str(tmp_path / "px"))
    assert "256 levels on [-1, 1]" in capsys.readouterr().out
    assert all(1 < as_bytes[i] - as_levels[i] < 5 for i in as_levels)


def test_a_second_run_says_what_is_there_already(tmp_path, capsys):
    command = ["sample", "--n", "3", "--nfe", "4", "--out", str(tmp_path / "s")]
    assert main(command) == 0
    assert "earlier run" not in capsys.readouterr().err
    assert main(command) == 0
    assert "3 of 3 are there from an earlier run, 0 to come" in capsys.readouterr().err
    train = ["train", "digits", "--steps", "2", "--batch", "8", "--out", str(tmp_path / "t")]
    assert main(train) == 0
    assert "goes on" not in capsys.readouterr().err
    assert main(train) == 0
    assert "goes on after step 2 of 2" in capsys.readouterr().err
