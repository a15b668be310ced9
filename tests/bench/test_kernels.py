"""The kernel benchmark: its gate and the ratios it reports."""

import json

import pytest
import torch

from undiffuse import kernels as K
from undiffuse.bench.kernels import run as kernels
from undiffuse.bench.kernels import step_cost
from undiffuse.bench.kernels.cases import gate

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("operator", "named"),
    [
        ("normal", "noise at"),
        ("linear_step", "linear step at"),
        ("runge_kutta_step", "runge-kutta at"),
        ("dynamic_threshold", "threshold at"),
    ],
)
def test_the_gate_is_green_and_names_what_is_wrong(monkeypatch, operator, named):
    assert gate(CPU) == []
    right = getattr(K, operator)

    def off_by_an_ulp(*args, **options):
        made = right(*args, **options)
        if K.explain(torch.zeros(1)).startswith("reference: forced"):
            return made
        nudge = lambda x: torch.nextafter(x, torch.full_like(x, torch.inf))
        return nudge(made) if isinstance(made, torch.Tensor) else made._replace(x=nudge(made.x))

    monkeypatch.setattr(K, operator, off_by_an_ulp)
    assert any(line.startswith(named) for line in gate(CPU))


def test_no_speed_is_reported_on_a_red_gate(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kernels, "gate", lambda device: ["noise at 7 elements"])
    result = kernels.run(tmp_path, "cpu")
    assert result["failures"] == ["noise at 7 elements"] and result["records"] == []
    assert "red gate, no speeds: noise at 7 elements" in capsys.readouterr().out
    assert json.loads((tmp_path / "kernels-cpu.json").read_text()) == result


def test_the_loops_that_are_compared_compute_the_same():
    # the hand-written loops are only worth a comparison if they are the sampler's formula
    shape = (2, 3, 4, 4)
    out = K.normal(shape, seed=1)
    calls = {}

    def keep(run, device):
        calls[len(calls)] = run()
        return 1.0

    torch.manual_seed(0)
    step_cost.ratios(keep)
    assert len(calls) >= 2 * len(step_cost.SIZES)
    sampler = step_cost.Sampler(step_cost.VP(), "dpmpp-2m", 20, predicts="noise")
    torch.manual_seed(0)
    first = torch.randn(shape)
    state = sampler.init(shape, x_init=first)
    while not state.done:
        state = sampler.tell(state, out)
    torch.manual_seed(0)
    assert torch.allclose(step_cost.by_hand(shape, out)(), state.x, atol=1e-4)
