"""`ud.compare`: errors are those of an independent loop, its answers run, its choice is sure."""

import json
import math
from dataclasses import replace

import pytest
import torch

import undiffuse as ud
from undiffuse.cli import main

LAW = ud.targets.GaussianMixture([1, 2], [[0.0, 2.0], [2.0, -1.0]], 0.05)
MODEL = LAW.denoiser(ud.VP())
SHAPE = (4, 2)


@pytest.fixture(scope="module")
def found():
    return ud.compare(MODEL, SHAPE, nfe=(5, 8))


def test_errors_are_those_of_dopri5_on_other_starts(found):
    """rms over the event, mean over starts, over the deviation of the ends: by another integrator.

    Two draws of 64 and 512 starts: their means differ by less than four half widths.
    """
    end = ud.solvers.sample_ode_adaptively(MODEL, (512, 2), rtol=1e-6, atol=1e-6, seed=5)
    end = getattr(end, "x", end)
    for n in found.nfe:
        row = found.row(n, "default")
        x = ud.sample(MODEL, (512, 2), nfe=n, seed=5, final="t_min")
        off = (x - end).square().mean(1).sqrt().mean() / end.var(0).mean().sqrt()
        assert row.error == pytest.approx(float(off), abs=4 * row.half_width, rel=0.3)


def test_best_is_what_sample_takes_and_spends_the_calls(found):
    for n in found.nfe:
        done = ud.sample(MODEL, SHAPE, found.best(n), return_result=True)
        assert done.nfe == n and bool(done.x.isfinite().all())


def test_the_code_draws_the_samples_of_the_table(found):
    for row in found.rows:
        scope = {"ud": ud, "model": MODEL, "shape": SHAPE}
        torch.testing.assert_close(
            eval(row.code, scope), ud.sample(MODEL, SHAPE, row.table), rtol=0, atol=1e-5
        )


def test_the_best_here_errs_least_of_what_was_tried_and_the_default_is_left_only_for_less(found):
    for n in found.nfe:
        default, here = found.row(n, "default"), found.row(n, "best here")
        assert found.tried[n][0][1] == min(error for _, error in found.tried[n])
        advised = found.advised(n)
        assert advised is (here if here.better else default)
        if here.better:
            assert here.error < default.error


def test_a_default_that_nothing_is_shown_to_beat_is_kept():
    """Of a point mass every first-order step is exact in the data prediction: all errors are 0."""
    law = ud.targets.Gaussian([1.0, -1.0], 1e-8)
    found = ud.compare(law.denoiser(ud.VP(t_min=0.05)), (2, 2), nfe=(6,))
    assert found.advised(6).kind in ("default", "best here")
    assert found.advised(6).error <= found.row(6, "default").error


def test_conditions_are_handed_to_every_run():
    """A condition that shifts the data shifts every end: the errors are those without it."""

    def net(x, t, shift):
        alpha = model.process.alpha(t).view(-1, 1).to(x.dtype)
        return model(x - alpha * shift, t) + shift

    model = MODEL
    told = ud.Denoiser(net, MODEL.process, predicts="data")
    cond = {"shift": torch.full((4, 1), 3.0)}
    # of eight calls the default spares none: at a spared one data are taken to be about 0
    mine, plain = ud.compare(told, SHAPE, (8,), cond=cond), ud.compare(MODEL, SHAPE, (8,))
    for kind in ("default", "others"):
        assert mine.row(8, kind).error == pytest.approx(plain.row(8, kind).error, rel=0.5)


def test_it_shows_itself_in_80_columns_in_notebooks_and_as_json(found, tmp_path):
    assert max(map(len, repr(found).splitlines())) <= 80
    tiny = [replace(row, error=5.3e-7, half_width=1.4e-7) for row in found.rows]
    assert repr(replace(found, rows=tuple(tiny))).count("5.3e-07 ±1.4e-07  ") == 4
    page = found._repr_html_()
    assert page.count("<tr>") == 1 + len(found.nfe) and "relay on blend" in page
    record = json.loads(json.dumps(found.record()))
    assert record["rows"][0]["error"] == found.rows[0].error and "table" not in record["rows"][0]
    pytest.importorskip("matplotlib")
    fig = found.plot(str(tmp_path / "errors.png"))
    assert len(fig.axes[0].get_legend_handles_labels()[1]) == 3
    assert (tmp_path / "errors.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"nfe": 10}, "nfe must be numbers of network calls"),
        ({"nfe": ()}, "nfe must be numbers of network calls"),
        ({"nfe": (1,)}, "nfe must be >= 2; got 1"),
        ({"solvers": ("hoin",)}, "unknown solver 'hoin'"),
    ],
)
def test_bad_input_is_refused_before_any_call(how, words):
    calls = []
    model = ud.Denoiser(lambda x, t: (calls.append(1), x)[1], ud.VP())
    with pytest.raises(ValueError, match=words):
        ud.compare(model, SHAPE, **how)
    assert not calls


def test_the_shell_answers_with_the_same_numbers(capsys):
    assert main(["which", "--nfe", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    loaded = ud.load_default()
    found = ud.compare(loaded.denoiser, (8, *loaded.event_shape), nfe=(5,))
    for row, mine in zip(told["rows"], found.rows, strict=True):
        assert row["setting"] == mine.setting and math.isclose(row["error"], mine.error)
