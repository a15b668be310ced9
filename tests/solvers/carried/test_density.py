"""Densities that come with samples, held against closed forms and against the samples' own law."""

import math

import pytest
import torch

import undiffuse as ud

LAW = ud.targets.GaussianMixture([0.3, 0.7], [[1.0, -1.0], [-0.8, 0.6]], [0.09, 0.2])


def coverage(found, truth):
    off = (found.log_prob - truth).abs()
    return [float((off < k * found.total_error).double().mean()) for k in (1, 2)]


@pytest.mark.parametrize("process", [ud.VP(), ud.VE(), ud.EDM(), ud.Flow(), ud.SubVP()], ids=repr)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "unipc-3", "dpm-2", "relay"])
def test_along_the_map_of_a_gaussian_it_is_the_law_of_the_table(process, solver):
    """A table's map of Gaussian data is affine in each component: two runs give its slopes."""
    law = ud.targets.Gaussian([0.5, -1.0, 0.0], [0.5, 1.5, 0.02])
    model = law.denoiser(process)
    found = ud.sample(model, (6, 3), solver, 7, seed=1, log_prob=True)
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 3)
    low, high = ud.sample(model, (2, 3), solver, 7, x_init=ends)
    width = (high - low).abs() * float(process.sigma(process.t_max))
    want = torch.distributions.Normal(low, width).log_prob(found.x.double()).sum(1)
    assert found.along == "map" and found.products == 3 * found.nfe
    assert torch.allclose(found.log_prob, want, atol=2e-3), found.log_prob - want
    assert not bool(found.status.any()) and not bool(found.std_error.any())


def test_the_sample_is_that_of_a_run_without_its_density():
    model = LAW.denoiser(ud.VP())
    for solver in ("dpmpp-2m", "ddpm-large"):
        plain = ud.sample(model, (5, 2), solver, 9, seed=4, final="t_min")
        found = ud.sample(model, (5, 2), solver, 9, seed=4, final="t_min", log_prob=True)
        assert torch.allclose(plain, found.x, atol=1e-6)


def test_along_the_map_the_law_integrates_to_one_however_few_the_steps():
    """E_q[pi/q] = 1 for the true q only: at six calls q is far from the model's law."""
    found = ud.sample(LAW.denoiser(ud.VP()), (4000, 2), "ddim", 5, seed=2, log_prob=True)
    wide = ud.targets.GaussianMixture([0.5, 0.5], [[1.0, -1.0], [-0.8, 0.6]], [0.05, 0.1])
    weights = ud.importance_weights(lambda x: wide.log_prob(x) + 3.0, found)
    assert abs(weights.log_normaliser - 3.0) < 4 * weights.std_error
    assert float((found.log_prob - LAW.log_prob(found.x)).abs().mean()) > 0.1


@pytest.mark.parametrize("process", [ud.VP(), ud.EDM(), ud.Flow()], ids=repr)
def test_along_the_flow_the_error_bar_covers(process):
    """At least 68 and 95 of a hundred: the path's share is a bound rather than a deviation."""
    law = ud.targets.GaussianMixture([0.4, 0.6], [[0.5] * 8, [-0.4] * 8], [0.1, 0.3])
    found = ud.sample(law.denoiser(process), (400, 8), "dpmpp-2m", 24, seed=1, log_prob="flow")
    truth = law.log_prob(found.x)
    one, two = coverage(found, truth)
    assert found.along == "flow" and found.products == 4 * found.nfe
    assert one > 0.63 and two > 0.92
    assert float(found.total_error.mean()) < 0.8


@pytest.mark.parametrize("process", [ud.VP(), ud.Flow(), ud.VE(), ud.EDM()], ids=repr)
def test_probes_of_a_diagonal_jacobian_leave_the_paths_error_alone(process):
    """v^T J v = tr J for a diagonal J and signs v; a second-order run is then within .01 nats."""
    model = ud.targets.Gaussian([0.0] * 5, 1.0).denoiser(process)
    options = {"seed": 1, "log_prob": "flow", "final": "t_min"}
    found = ud.sample(model, (50, 5), "dpmpp-2m", 40, **options)
    width = float(torch.hypot(process.alpha(model.t_min), process.sigma(model.t_min)))
    want = torch.distributions.Normal(0.0, width).log_prob(found.x.double()).sum(1)
    off = (found.log_prob - want).abs()
    assert float(found.std_error.max()) < 1e-5
    assert float(off.max()) < 0.01 and bool((off <= 2 * found.path_error + 1e-3).all())


@pytest.mark.parametrize("process", [ud.VP(), ud.VE(), ud.EDM(), ud.Flow()], ids=repr)
def test_along_the_sde_the_error_bar_covers_at_no_cost(process):
    found = ud.sample(LAW.denoiser(process), (1000, 2), "ddpm-large", 80, seed=5, log_prob=True)
    truth = LAW.log_prob(found.x)
    one, two = coverage(found, truth)
    assert found.along == "sde" and found.products == 0 and found.nfe == len(found.times)
    assert 0.63 < one < 0.75 and two > 0.92
    weights = ud.importance_weights(truth, found)
    assert abs(weights.log_normaliser) < 4 * weights.std_error and weights.ess > 100


def test_guidance_and_conditions_are_in_the_density():
    """The map of a guided model is the guided map: against finite differences of the samples."""
    model = LAW.denoiser(ud.VP())
    wide = ud.targets.Gaussian([0.0, 0.0], 1.0).denoiser(ud.VP())
    guided = ud.guidance.autoguidance(model, wide, 2.0)
    start = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    found = ud.sample(guided, (1, 2), "dpmpp-2m", 6, x_init=start, log_prob=True)
    steps = torch.cat([start + 1e-4 * e for e in torch.eye(2, dtype=torch.float64).split(1)])
    moved = ud.sample(guided, (2, 2), "dpmpp-2m", 6, x_init=steps)
    jac = (moved - found.x) / 1e-4
    base = torch.distributions.Normal(0, float(ud.VP().sigma(1.0))).log_prob(start).sum()
    assert abs(float(found.log_prob - base + jac.det().abs().log())) < 1e-2


def test_weights_of_an_exact_target_are_those_of_the_closed_form():
    """pi = N(m, 1) from samples of N(0, 1): log Z = 0, ESS/n -> exp(-m^2)."""
    model = ud.targets.Gaussian([0.0], 1.0).denoiser(ud.VP())
    found = ud.sample(model, (20000, 1), "dpmpp-2m", 20, seed=1, log_prob=True)
    shift = 0.7
    pi = ud.targets.Gaussian([shift], 1.0)
    weights = ud.importance_weights(pi.log_prob, found)
    assert abs(weights.log_normaliser) < 4 * weights.std_error
    assert abs(weights.ess / 20000 - math.exp(-(shift**2))) < 0.05
    mean, error = weights.expectation(found.x)
    assert abs(float(mean - shift)) < 4 * float(error)
    assert abs(float(weights.weights.sum()) - 1) < 1e-12


def test_a_map_that_folds_says_so():
    """A data prediction that turns back beyond 0: other starts reach the same sample."""
    model = ud.Denoiser(lambda x, t: -3.0 * x, ud.VP(), predicts="data")
    found = ud.sample(model, (3, 1), "ddim", 1, log_prob=True)
    assert set(found.status.tolist()) == {int(ud.solvers.Status.FOLDED)}


def test_bad_input_is_refused_before_any_call():
    def net(x, t):
        raise AssertionError("the network was called")

    model = ud.Denoiser(net, ud.VP(), predicts="noise")
    for solver, asked, words in (
        ("ddpm", "map", "draws noise"),
        ("ddim", "sde", "draws no noise"),
        ("ddim", "line", "along must be"),
        ("er-sde-2", True, "forward step"),
        ("dpm-2-ancestral", True, "back in time"),
    ):
        with pytest.raises(ValueError, match=words):
            ud.sample(model, (2, 3), solver, 5, log_prob=asked)
    with pytest.raises(ValueError, match="no noise"):
        ud.sample(model, (2, 3), "ddpm-large", 5, final="denoise", log_prob=True)
    with pytest.raises(ValueError, match="parallel"):
        ud.sample(model, (2, 3), "ddim", 5, parallel=3, log_prob=True)
    with pytest.raises(ValueError, match="probes"):
        ud.solvers.Density(probes=1)
    with pytest.raises(TypeError, match="log_prob must be"):
        ud.sample(model, (2, 3), "ddim", 5, log_prob=3)
    hidden = ud.Denoiser(lambda x, t: x.detach(), ud.VP(), predicts="noise")
    with pytest.raises(TypeError, match="result must be"):
        ud.importance_weights(lambda x: x, torch.zeros(3))
    found = ud.sample(LAW.denoiser(ud.VP()), (3, 2), "ddim", 3, log_prob=True)
    for bad, words in (
        (torch.zeros(2), "one number a sample"),
        (torch.tensor([0.0, math.nan, 0.0]), "samples \\[1\\]"),
        (torch.full((3,), -math.inf), "miss the target"),
    ):
        with pytest.raises(ValueError, match=words):
            ud.importance_weights(bad, found)
    assert hidden is not None


def test_images_and_half_precision_networks_have_the_densities_of_their_states():
    """A network of bfloat16 parameters is handed bfloat16; states and densities stay float32."""
    torch.manual_seed(0)
    net = torch.nn.Conv2d(1, 1, 3, padding=1).to(torch.bfloat16)
    wide = torch.nn.Conv2d(1, 1, 3, padding=1)
    wide.load_state_dict({k: v.float() for k, v in net.state_dict().items()})
    found = [
        ud.sample(
            ud.Denoiser(lambda x, t, n=n: 0.3 * n(x.to(n.weight.dtype)), ud.VP(), predicts="data"),
            (3, 1, 4, 4),
            "dpmpp-2m",
            8,
            log_prob=True,
        )
        for n in (net, wide)
    ]
    assert found[0].x.dtype == torch.float32 and found[0].log_prob.dtype == torch.float64
    assert float((found[0].log_prob - found[1].log_prob).abs().max()) < 0.1


def test_a_preconditioned_table_goes_along_the_flow():
    known = ud.solvers.Statistics(LAW.mean, LAW.cov.diagonal())
    solver = ud.solvers.GaussianPreconditioned(known)
    model = LAW.denoiser(ud.VP())
    found = ud.sample(model, (400, 2), solver, 30, seed=1, log_prob=True)
    assert found.along == "flow"
    one, two = coverage(found, LAW.log_prob(found.x))
    assert one > 0.6 and two > 0.9
