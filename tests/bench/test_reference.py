"""The reference solution against a closed form, and the coordinates that runs share."""

import math
from dataclasses import replace

import pytest
import torch

from undiffuse.bench.problems import problem as problems
from undiffuse.models import EDM, VP, Denoiser, Flow, Gaussian, SubVP
from undiffuse.models.named_targets import Target, get

pytest.importorskip("scipy")

MEAN = torch.tensor([0.4, -1.0, 0.1], dtype=torch.float64)
VAR = torch.tensor([0.25, 1.0, 0.01], dtype=torch.float64)


def problem(process=None, batch=5):
    target = Target("gaussian", Gaussian(MEAN, VAR), process or VP(), "three dimensions")
    return problems.exact(target, batch, seed=3)


def closed_form(p, ratio):
    """On N(m, c) the flow keeps (x/alpha - m) / sqrt(c + r^2)."""
    r0 = p.r_max
    if math.isinf(r0):  # w = x/sqrt(alpha^2 + sigma^2) is the normalised state itself
        unit = p.start
    else:
        unit = (problems.signal(p.start, r0) - MEAN) / (VAR + r0**2).sqrt()
    return (MEAN + unit * (VAR + ratio**2).sqrt()) / math.hypot(1.0, ratio)


@pytest.mark.parametrize("process", [VP(), SubVP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_reference_is_the_closed_form_and_its_bound_holds(process):
    p = problem(process)
    ratios = [5.0, 1.0, 0.03]
    found = problems.solve(p, ratios)
    for r in ratios:
        error = float((found.at(r) - closed_form(p, r)).square().mean().sqrt()) / p.std
        assert error <= found.error < 1e-4


def test_ratio_zero_is_the_data_itself():
    p = problem()
    found = problems.solve(p, [0.0])
    torch.testing.assert_close(found.at(0.0), closed_form(p, 0.0), rtol=0, atol=1e-6)


def test_a_finer_level_has_a_smaller_error():
    p = problem()
    assert problems.solve(p, [0.1], 1).error < 0.3 * problems.solve(p, [0.1], 0).error
    with pytest.raises(ValueError, match="level must be 0"):
        problems.solve(p, [0.1], 9)


def test_the_cache_is_read_only_for_the_same_starts_and_ratios(tmp_path):
    calls = []

    def ask(p, ratios, level=0):
        before = len(calls)
        found = problems.cached(tmp_path / "r.pt", p, ratios, level, lambda: calls.append(1))
        return found, len(calls) > before

    p = problem()
    first, computed = ask(p, [1.0, 0.1])
    assert computed
    again, computed = ask(p, [0.1])
    assert not computed and torch.equal(again.at(0.1), first.at(0.1))
    assert again.error == first.error
    _, computed = ask(p, [0.5])
    assert computed
    _, computed = ask(p, [1.0, 0.1, 0.5])  # what was known before is kept
    assert not computed
    _, computed = ask(p, [0.5], level=1)
    assert computed
    other = replace(p, model=Gaussian(MEAN, 2 * VAR).denoiser(VP()))  # another network, same starts
    _, computed = ask(other, [0.5])
    assert computed
    _, computed = ask(problem(batch=6), [0.5])
    assert computed


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_states_and_times_of_every_process_meet_in_the_same_coordinates(process):
    p = problem(process)
    for r in (2.0, 0.1):
        t = problems.time_at(process, r)
        assert problems.ratio_at(process, t) == pytest.approx(r, rel=1e-9)
        w = torch.randn(4, 3, dtype=torch.float64)
        x = problems.from_unit(process, w, t)
        torch.testing.assert_close(problems.to_unit(process, x, t), w)
        torch.testing.assert_close(x / float(process.alpha(t)), problems.signal(w, r))
        torch.testing.assert_close(problems.data_prediction(p.model, w, r), p.model(x, t))


def test_starts_are_exact_draws_at_the_noisy_end():
    p = problems.exact(get("ring2"), 4000, seed=1)
    assert p.start.shape == (4000, 2)
    assert p.r_max == pytest.approx(157.407, rel=1e-4) and p.r_min == pytest.approx(0.01, rel=1e-3)
    assert float(p.start.var()) == pytest.approx(1.0, abs=0.05)
    assert not torch.equal(problems.exact(get("ring2"), 8, seed=2).start, p.start[:8])


def test_a_fingerprint_tells_problems_apart_and_is_stable():
    assert problem().fingerprint == problem().fingerprint
    assert problem(EDM()).fingerprint != problem().fingerprint
    other = Target("gaussian", Gaussian(MEAN + 0.1, VAR), VP(), "three dimensions")
    assert problems.exact(other, 5, seed=3).fingerprint != problem().fingerprint


def test_a_network_is_known_by_what_it_says_at_any_noise_level_and_by_its_weights():
    base = problem()
    process, exact = base.process, base.model.net
    for at in (0.02, 1.0, 50.0):  # sigma/alpha: it lies there alone

        def other(x, t, at=at):
            near = torch.exp(-(math.log(at) + process.log_snr(t)[:, None]).square())
            return exact(x, t) + 1e-3 * near.to(x)

        lies = replace(base, model=replace(base.model, net=other))
        assert lies.identity != base.identity
    target = Target("gaussian", Gaussian(MEAN, VAR), VP(), "three dimensions")
    another = problems.exact(target, 5, seed=8)
    assert another.identity == base.identity and another.fingerprint != base.fingerprint

    class Net(torch.nn.Module):
        def __init__(self, unused):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.tensor(unused))

        def forward(self, x, t):
            return exact(x, t)

    nets = [replace(base, model=replace(base.model, net=Net(v))) for v in (1.0, 1.0, 1.0 + 1e-7)]
    assert nets[0].identity == nets[1].identity != nets[2].identity


def test_a_network_is_called_in_the_widest_type_it_takes():
    """A function around a float32 module, a module that makes float32 on its way, and one that
    cannot be called at all."""
    data = torch.randn(20, 3)
    layer = torch.nn.Linear(3, 3)

    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, x, t):
            return self.layer(x.float())

    def posed(net):
        return problems.network("n", "a net", Denoiser(net, VP(), predicts="noise"), data, 4)

    for net in (lambda x, t: layer(x), Narrow()):
        p = posed(net)
        assert p.about == "a net; called in torch.float32" and p.narrow and p.identity
        d = problems.data_prediction(p.model, p.start, 1.0)
        assert d.dtype == torch.float64 and bool(torch.isfinite(d).all())
    wide = posed(lambda x, t: 2 * x)
    assert wide.about == "a net" and not wide.narrow
    with pytest.raises(ValueError, match=r"network of n cannot be called .* shape \(2, 3\)"):
        posed(torch.nn.Linear(5, 3))


def test_too_small_a_batch_is_refused():
    with pytest.raises(ValueError, match="batch must be at least 2"):
        problems.exact(get("ring2"), 1)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "another", "shape"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    """The same reference as without it, and a file that reads."""
    p = problems.exact(get("ring2"), 3)
    file = tmp_path / "reference.pt"
    whole = problems.cached(file, p, [0.5, 0.0])
    content = file.read_bytes()
    if damage == "shape":
        held = torch.load(file, weights_only=True)
        torch.save(held | {"states": {k: v[:1] for k, v in held["states"].items()}}, file)
    elif damage == "another":
        torch.save([1, 2], file)
    else:
        file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"{}"}[damage])
    again = problems.cached(file, p, [0.5, 0.0])
    assert torch.equal(again.at(0.5), whole.at(0.5)) and again.error == whole.error
    assert torch.load(file, weights_only=True)["flow"] == p.flow
