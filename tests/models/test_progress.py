"""Progress is shown where it is asked for, with rich and without it."""

import sys

import pytest

from undiffuse.models import progress


def test_without_rich_a_long_run_says_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)  # importing it raises ImportError
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert list(progress.track("abc", "letters", 3, show=True)) == ["a", "b", "c"]
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line.partition(",")[0] for line in said.err.splitlines()]
    assert lines == [f"[0:00] letters: {i} of 3" for i in (0, 1, 2, 3)]
    assert list(progress.track("abc", "letters", 3, show=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("show", [True, False])
def test_commands_that_show_progress_need_no_rich(monkeypatch, tmp_path, show):
    """`sample` and `train` draw bars; without rich they run all the same."""
    import torch

    import undiffuse as ud
    from undiffuse.models.training.train import train

    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    digits = ud.load_default()
    shape = (2, *digits.event_shape)
    shown = ud.sample(digits.denoiser, shape, steps=3, progress=show)
    assert torch.equal(shown, ud.sample(digits.denoiser, shape, steps=3))
    train(torch.randn(40, 3), steps=3, batch=4, progress=show, out=tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
