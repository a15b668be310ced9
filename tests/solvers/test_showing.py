"""What results say of themselves: the numbers they hold, in few lines; plots draw what is there."""

import re
import sys

import pytest
import torch

import undiffuse as ud
from undiffuse.models.statistics import Statistics
from undiffuse.solvers.carried.few_calls import log_prob_in_calls
from undiffuse.solvers.sampling.pilot import Tuned

LAW = ud.targets.GaussianMixture([1, 2], [[0.0, 2.0], [2.0, -1.0]], 0.05)
MODEL = LAW.denoiser(ud.VP())


def shown():
    sampler = ud.Sampler(MODEL, "dpmpp-2m", 6)
    x, ddpm = LAW.sample(5), ud.VP.from_betas(torch.linspace(1e-4, 0.02, 50))
    known = ud.solvers.GaussianPreconditioned(Statistics.of(LAW.sample(99), "full"))
    return {
        "Sampler": sampler,
        "State": sampler.init((5, 2)),
        "Result": ud.sample(MODEL, (5, 2), nfe=7, return_result=True),
        "Sampled": ud.sample(MODEL, (5, 2), nfe=7, log_prob=True),
        "AdaptiveResult": ud.solvers.sample_ode_adaptively(MODEL, (5, 2)),
        "log_prob": ud.log_prob(MODEL, x, trace="exact"),
        "OdeSolution": ud.solvers.adaptive.integrate(lambda t, y, rows: -y, x, 0.0, 1.0),
        "FewCalls": log_prob_in_calls(MODEL, x, 8),
        "mean bits/dim": ud.elbo(LAW.denoiser(ddpm), x),
        "": ud.solvers.likelihood.bits_per_dim(MODEL, x),
        "6 calls": Tuned(sampler.tableau, "dpmpp-2m", 0.25, 0.03, 0.5, 1e-3, (("ddim", 0.75),), 9),
        "gauss": ud.Sampler(MODEL, known, 6).tableau,
        "dpmpp-2m: 6 network evaluations": sampler.tableau,
    }


def test_no_tensor_is_dumped_and_the_page_says_what_the_lines_say():
    for name, value in shown().items():
        text = repr(value)
        assert text.startswith(name) and "tensor(" not in text and " at 0x" not in text
        assert len(text.splitlines()) <= 8 and max(map(len, text.splitlines())) <= 100
        if name == "State":
            continue
        page = re.sub("<[^>]+>", " ", value._repr_html_())
        for word in re.findall(r"\d+\.\d+(?:e-?\d+)?", text):
            assert word in page, (name, word)


def test_a_result_tells_calls_span_and_who_failed():
    x = torch.tensor([[-1.5, 0.5], [2.0, 1.0]])
    result = ud.solvers.Result(
        x, torch.tensor([9, 14]), torch.tensor([1.0, 0.25]), torch.tensor([0, 8]), 9
    )
    text = repr(result)
    assert "[2, 2] float32 on cpu, -1.5 .. 2, mean 0.5" in text
    assert "9 .. 14 network calls" in text and "1 .. 0.25" in text
    assert f"1 of 2: {ud.solvers.Status(8).meaning}" in text


def test_a_page_takes_nothing_for_markup():
    net = lambda x, t: x
    net.__name__ = "<script>"
    page = ud.Sampler(ud.Denoiser(net, ud.VP()), "ddim", 3)._repr_html_()
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert page.count("<table>") == 2  # what it is, and its rows


def test_a_plot_draws_the_grid_and_every_coefficient_that_is_not_0(tmp_path):
    pytest.importorskip("matplotlib")
    table = ud.Sampler(MODEL, "dpmpp-2m-sde", 5).tableau
    left, right, _ = table.plot(tmp_path / "table.svg").axes
    alpha, sigma = table.levels.unbind(1)
    assert left.lines[0].get_ydata() == pytest.approx((sigma / alpha).tolist())
    cells = torch.cat([table.state, table.data, table.noise], 1)
    image = right.images[0].get_array()
    assert [[j is not None for j in row] for row in image.tolist()] == (cells != 0).tolist()
    told = sorted(float(t.get_text()) for t in right.texts)
    assert told == pytest.approx(sorted(cells[cells != 0].tolist()), rel=5e-3)
    assert (tmp_path / "table.svg").read_text().lstrip().startswith("<?xml")


def test_a_grid_from_pure_noise_is_drawn_but_for_the_point_at_infinity():
    pytest.importorskip("matplotlib")
    table = ud.Sampler(ud.Flow(), "ddim", 4, predicts="flow", grid="uniform").tableau
    y = table.plot().axes[0].lines[0].get_ydata()
    t = table.times[1:]
    assert y[1:] == pytest.approx((t / (1 - t)).tolist()) and y[0] != y[0]


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"undiffuse\[bench\]"):
        ud.Sampler(MODEL, "ddim", 3).tableau.plot()


def test_a_table_over_components_draws_those_of_most_and_least_variance(tmp_path):
    pytest.importorskip("matplotlib")
    stats = Statistics.of(torch.tensor([[4.0, 0.1], [-4.0, 0.1], [0.0, -0.2]]), "full")
    table = ud.Sampler(MODEL, ud.solvers.GaussianPreconditioned(stats), 4).tableau
    most, least = int(stats.variances.argmax()), int(stats.variances.argmin())
    left, right, _ = table.plot(tmp_path / "table.png").axes
    ratio = table.process.sigma(table.times) / table.process.alpha(table.times)
    assert left.lines[0].get_ydata() == pytest.approx(ratio.tolist())
    cells = torch.cat(
        [held[:, :, c] for c in (most, least) for held in (table.state, table.data)], 1
    )
    image = right.images[0].get_array().filled(0)
    assert torch.equal(torch.from_numpy(image), cells)
    assert [t.get_text() for t in right.get_xticklabels()][:1] == ["u_i +"]
