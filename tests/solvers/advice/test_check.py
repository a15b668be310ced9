"""`ud.check` names wrong declarations, and leaves right ones alone."""

import dataclasses
import json
import sys
import warnings

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.cli import main

LAW = ud.targets.GaussianMixture([1, 2], [[0.0, 2.0], [2.0, -1.0]], 0.05)
X = LAW.sample(64, seed=3).float()


def network(predicts, process):
    exact = LAW.denoiser(process)
    read = {"data": exact, "noise": exact.noise, "score": exact.score, "flow": exact.velocity}
    return read[predicts]


@pytest.mark.parametrize("process", [ud.VP(), ud.Flow(t_max=0.999)], ids=repr)
@pytest.mark.parametrize("right", ["data", "noise", "score", "flow"])
@pytest.mark.parametrize("declared", ["data", "noise", "score", "v", "flow"])
def test_an_exact_network_is_found_out_whatever_is_declared(process, right, declared):
    found = ud.check(ud.Denoiser(network(right, process), process, predicts=declared), X)
    assert found.holds == (declared == right)
    assert found.fits[0] == right


USUAL = {
    "ud.VP()": ud.VP(),
    "ud.VP.cosine(steps=1000)": ud.VP.cosine(),
    "ud.Flow()": ud.Flow(),
    "ud.VE()": ud.VE(),
}


@pytest.mark.parametrize("right", USUAL)
@pytest.mark.parametrize("declared", USUAL)
def test_another_process_than_the_networks_is_named(right, declared):
    """A network of a cosine schedule, declared to be of a linear one, and their like."""
    net = network("noise", USUAL[right])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pure noise at the end of some of them
        found = ud.check(ud.Denoiser(net, USUAL[declared], predicts="noise"), X)
    assert found.holds == (declared == right)
    if found.holds:
        assert found.process is None
        return
    process = eval(found.process, {"ud": ud, "torch": torch})
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    torch.testing.assert_close(process.log_snr(t), USUAL[right].log_snr(t), atol=0.05, rtol=0)
    assert found.fits == ("noise", "continuous") and f"declare {found.process}" in found.words
    assert max(map(len, repr(found).splitlines())) <= 80


def test_a_forgotten_index_is_named():
    """A network that is told steps, declared to be of continuous time."""
    process = ud.VP()
    net = network("noise", process)
    indexed = lambda x, i: net(x, ((i.double() + 1) / 1000).clamp(1e-3, 1))
    right = ud.Denoiser(indexed, process, time="index")
    assert ud.check(right, X)
    found = ud.check(dataclasses.replace(right, time="continuous"), X)
    assert not found and found.fits[0] == "noise" and "index" in found.words + str(found.scores[:3])


def test_without_data_gross_mistakes_are_found_and_none_is_named():
    process = ud.VP()
    right = ud.Denoiser(network("noise", process), process)
    assert ud.check(right, (2,)) and ud.check(right, (2,)).fits is None
    assert not ud.check(dataclasses.replace(right, predicts="score"), (2,))


@pytest.mark.parametrize(
    ("factor", "shift", "said"),
    [(0.5, 0.5, "2 * x - 1"), (127.5, 127.5, "x / 127.5 - 1"), (1 / 0.18215, 0.0, "0.1")],
)
def test_data_of_another_scale_are_told_how_to_be_made(factor, shift, said):
    """Bytes, pictures in [0, 1], latents that nobody scaled: what takes it back is named."""
    process = ud.VP()
    found = ud.check(ud.Denoiser(network("noise", process), process), factor * X + shift)
    assert not found and found.fits == ("noise", "continuous")
    assert found.scale.startswith(said) and f"hand in {found.scale}" in found.words
    back = eval(found.scale, {"x": factor * X + shift})
    assert (back - X).abs().max() < 0.15 * X.std()  # the scale of 64 samples stands for the data's


def test_a_wrong_sigma_data_is_named():
    """The network's F is that of sigma_data = 1; D read off it with another is no expectation."""
    process, exact = ud.EDM(), LAW.denoiser(ud.EDM())
    right = ud.Denoiser(lambda x, t: x, process, predicts="edm", sigma_data=1.0)

    def net(x_in, t_in):
        sigma = (4 * t_in.double()).exp()
        x = x_in / right.network_scale(sigma).float()[:, None]
        skip, scale = right.coefficients("data", sigma)
        return (exact(x, sigma) - skip.float()[:, None] * x) / scale.float()[:, None]

    right = dataclasses.replace(right, net=net)
    assert ud.check(right, X)
    found = ud.check(dataclasses.replace(right, sigma_data=0.25), X)
    assert not found and "sigma_data=1" in found.words


def test_conditions_follow_their_events():
    """A label that moves the data: D is right with each event's own, and with no other."""
    process = ud.VP()
    exact = LAW.denoiser(process)

    def net(x, t, shift):
        alpha = process.alpha(t).float()[:, None]
        return exact(x - alpha * shift, t) + shift

    model = ud.Denoiser(net, process, predicts="data")
    shift = torch.arange(200.0)[:, None] % 7
    x = LAW.sample(200, seed=4).float()
    assert ud.check(model, x + shift, cond={"shift": shift})
    assert not ud.check(model, x + shift, cond={"shift": shift.flip(0)})


def test_a_network_that_takes_whole_steps_alone_is_checked_by_what_it_takes():
    process = ud.VP()
    exact, table = LAW.denoiser(process), torch.arange(1.0, 1001.0) / 1000

    def net(x, i):
        return exact.noise(x, table[i.round().long()].clamp(1e-3))  # IndexError beyond 999

    right = ud.Denoiser(net, process, time="index")
    assert ud.check(right, X)
    assert ud.check(dataclasses.replace(right, predicts="v"), X).fits == ("noise", "index")


def test_it_shows_itself_in_80_columns_in_notebooks_and_as_json():
    process = ud.VP()
    found = ud.check(ud.Denoiser(network("score", process), process, predicts="v"), X)
    lines = repr(found).splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].startswith("declare predicts='score'")
    assert sum("* predicts='v', time='continuous'" in line for line in lines) == 1
    assert found._repr_html_().count("<tr>") == 1 + len(found.scores)
    told = json.loads(json.dumps(found.record(), allow_nan=False))
    assert told["fits"] == ["score", "continuous"] and told["scores"][0]["score"] < 0


def test_the_shell_ends_with_1_where_a_declaration_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "declared.py").write_text(
        "import undiffuse as ud\n"
        "law = ud.targets.GaussianMixture([1, 2], [[0.0, 2.0], [2.0, -1.0]], 0.05)\n"
        "def made(predicts):\n"
        "    net = law.denoiser(ud.VP()).noise\n"
        "    model = ud.Denoiser(net, ud.VP(), predicts=predicts)\n"
        "    return ud.models.Checkpoint(model, (2,), (-3.0, 3.0))\n"
        "def right(): return made('noise')\n"
        "def wrong(): return made('data')\n"
    )
    np.save(tmp_path / "x.npy", X.numpy())
    file, data = str(tmp_path / "declared.py"), str(tmp_path / "x.npy")
    assert main(["check", f"{file}:right", data]) == 0
    assert "predicts='noise', time='continuous' fits the data" in capsys.readouterr().out
    assert main(["check", f"{file}:wrong", data]) == 1
    said = capsys.readouterr().out
    assert "declare predicts='noise', time='continuous'" in said
    assert len(said.splitlines()) <= 24 and max(map(len, said.splitlines())) <= 80 + len(
        str(tmp_path)
    )
    assert main(["check", f"{file}:wrong"]) == 1  # its own samples are enough here
    assert "hand in data" in " ".join(capsys.readouterr().out.split())


def test_bad_input_is_refused():
    guided = ud.guidance.cfg(ud.Denoiser(lambda x, t, label: x, ud.VP()), 2.0)
    with pytest.raises(TypeError, match="check each of them"):
        ud.check(guided, X)
    model = ud.Denoiser(network("noise", ud.VP()), ud.VP())
    for x, words in ((None, "got None"), (torch.zeros(3, 2), "16 events or more; got 3")):
        with pytest.raises(ValueError, match=words):
            ud.check(model, x)
