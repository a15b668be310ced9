"""`undiffuse.k_diffusion`: k-diffusion's numbers for the same noise, and its call."""

import inspect
import pickle
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import undiffuse as ud
from undiffuse import k_diffusion as K
from undiffuse.bench.peers import integrators
from undiffuse.bench.problems.plans import Unavailable
from undiffuse.k_run import flow_scale
from undiffuse.models.targets import GaussianMixture

TARGET = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)
EDM = ud.EDM(1e-4, 1e3)
FLOW = ud.Flow(1e-4)
SIGMAS = torch.linspace(10**0.2, 0.03**0.2, 9, dtype=torch.float64) ** 5
DOWN = torch.cat([SIGMAS, SIGMAS.new_zeros(1)])
START = 10 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXACT = 1e-12


def denoise(x, sigma, **extra):
    assert sigma.shape == (len(x),)
    return TARGET.data_prediction(x.double(), sigma.double()[0], EDM).to(x.dtype)


@pytest.fixture(scope="module")
def theirs():
    try:
        return integrators.k_sampling()
    except Unavailable as error:
        pytest.skip(str(error))


def noise(seed=1):
    """A noise_sampler that draws in turn: the order of the calls counts as well."""
    g = torch.Generator().manual_seed(seed)
    return lambda sigma, following: torch.randn(8, 2, generator=g, dtype=torch.float64)


class ByLevel:
    """A noise_sampler that depends on what it is asked for, to six digits of both sigmas."""

    def __call__(self, sigma, following):
        seed = hash((f"{float(sigma):.6g}", f"{float(following):.6g}")) % 2**31
        g = torch.Generator().manual_seed(seed)
        return torch.randn(8, 2, generator=g, dtype=torch.float64)


def differ(a, b):
    return float((a - b).abs().max())


PLAIN = {
    "euler": [{}],
    "heun": [{}],
    "dpm_2": [{}],
    "lms": [{}, {"order": 1}, {"order": 2}, {"order": 3}],
    "dpmpp_2m": [{}],
}


@pytest.mark.parametrize("sigmas", [SIGMAS, DOWN], ids=["stops", "to zero"])
@pytest.mark.parametrize(("name", "options"), [(n, o) for n, many in PLAIN.items() for o in many])
def test_deterministic_functions_are_k_diffusions(theirs, name, options, sigmas):
    call = f"sample_{name}"
    want = getattr(theirs, call)(denoise, START, sigmas, disable=True, **options)
    assert differ(getattr(K, call)(denoise, START, sigmas, **options), want) < EXACT


NOISY = {
    "euler_ancestral": [{}, {"eta": 0.6, "s_noise": 1.1}, {"eta": 0.0}],
    "dpm_2_ancestral": [{}, {"eta": 0.6, "s_noise": 1.1}, {"eta": 0.0}],
    "dpmpp_2s_ancestral": [{}, {"eta": 0.6, "s_noise": 1.1}, {"eta": 0.0}],
    "dpmpp_sde": [{}, {"eta": 0.6, "s_noise": 1.1}, {"r": 0.3}, {"eta": 0.0}],
    "dpmpp_2m_sde": [{}, {"eta": 0.6, "s_noise": 1.1}, {"solver_type": "heun"}, {"eta": 0.0}],
    "dpmpp_3m_sde": [{}, {"eta": 0.6, "s_noise": 1.1}, {"eta": 0.0}],
}


@pytest.mark.parametrize("sampler", [noise, ByLevel])
@pytest.mark.parametrize("sigmas", [SIGMAS, DOWN], ids=["stops", "to zero"])
@pytest.mark.parametrize(("name", "options"), [(n, o) for n, many in NOISY.items() for o in many])
def test_stochastic_functions_are_k_diffusions_with_the_same_noise(
    theirs, name, options, sigmas, sampler
):
    call = f"sample_{name}"
    want = getattr(theirs, call)(
        denoise, START, sigmas, disable=True, noise_sampler=sampler(), **options
    )
    got = getattr(K, call)(denoise, START, sigmas, noise_sampler=sampler(), **options)
    assert differ(got, want) < EXACT


@pytest.mark.parametrize("sigmas", [SIGMAS, DOWN], ids=["stops", "to zero"])
@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_churn_is_k_diffusions_where_its_noise_is_ours(theirs, monkeypatch, name, sigmas):
    """k-diffusion draws at every step, also where it adds nothing."""
    options = {"s_churn": 3.0, "s_tmin": float(SIGMAS[6]), "s_tmax": 5.0, "s_noise": 1.01}
    drawn, asked = noise(), []
    monkeypatch.setattr(
        theirs.torch, "randn_like", lambda x: asked.append(drawn(0, 0)) or asked[-1]
    )
    want = getattr(theirs, f"sample_{name}")(denoise, START, sigmas, disable=True, **options)
    index = {float(s): i for i, s in enumerate(sigmas)}

    def ours(sigma, hat):
        assert hat > sigma
        return asked[index[float(sigma)]]

    got = getattr(K, f"sample_{name}")(denoise, START, sigmas, noise_sampler=ours, **options)
    assert differ(got, want) < EXACT
    still = getattr(K, f"sample_{name}")(denoise, START, sigmas)
    assert differ(got, still) > 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 8])
def test_dpm_fast_is_k_diffusions(theirs, n, eta):
    """Its grid is of torch's default type."""
    torch.set_default_dtype(torch.float64)
    try:
        want = theirs.sample_dpm_fast(
            denoise, START, 0.03, 10.0, n, disable=True, eta=eta, noise_sampler=noise()
        )
    finally:
        torch.set_default_dtype(torch.float32)
    got = K.sample_dpm_fast(denoise, START, 0.03, 10.0, n, eta=eta, noise_sampler=noise())
    assert differ(got, want) < EXACT


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_is_k_diffusions_to_its_steps(theirs, order, eta):
    """A refused attempt keeps its first call, so that ours makes fewer; one is refused here."""
    options = {"order": order, "eta": eta, "rtol": 0.02, "h_init": 1.5, "return_info": True}
    torch.set_default_dtype(torch.float64)
    try:
        want, told = theirs.sample_dpm_adaptive(
            denoise, START, 0.03, 10.0, disable=True, noise_sampler=noise(), **options
        )
    finally:
        torch.set_default_dtype(torch.float32)
    calls = []
    got, info = K.sample_dpm_adaptive(
        denoise, START, 0.03, 10.0, noise_sampler=noise(), callback=calls.append, **options
    )
    assert differ(got, want) < 1e-10  # its step sizes come of the error, to fewer digits
    same = ("steps", "n_accept", "n_reject")
    assert [info[k] for k in same] == [told[k] for k in same] and info["n_reject"] > 0
    assert info["nfe"] == told["nfe"] - info["n_reject"]
    assert [d["i"] for d in calls] == list(range(info["steps"]))
    seeded = [
        K.sample_dpm_adaptive(denoise, START, 0.03, 10.0, {"seed": s}, eta=0.5) for s in (1, 1)
    ]
    assert torch.equal(*seeded)


BY_RANGE = ("sample_dpm_adaptive", "sample_dpm_fast")
FOR_ALL = [n for n in K.__all__ if n.startswith("sample_") and n not in BY_RANGE]


@pytest.mark.parametrize("call", FOR_ALL)
def test_every_function_runs_with_a_seed_a_noise_sampler_and_a_callback(call):
    function, told = getattr(K, call), []
    x = START.float()

    def seen(d):
        assert d["denoised"].shape == d["x"].shape == x.shape
        assert set(d) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        told.append(d["i"])

    sigmas = K.get_sigmas_karras(20, 0.03, 10.0)  # PFDiff makes a call for every four of them
    a = function(denoise, x, sigmas, extra_args={"seed": 3}, callback=seen)
    assert told == sorted(set(told)) and told[-1] == len(sigmas) - 2
    # a denoiser of a mixture ends near its components; "1" is far above its scale
    spread = (a[:, None] - TARGET.means.float()).norm(dim=-1).amin(1)
    assert float(spread.median()) < 1.0
    parameters = inspect.signature(function).parameters
    if "noise_sampler" in parameters:
        function(denoise, x, sigmas[::5], noise_sampler=lambda s, t: torch.randn_like(x))
    assert torch.equal(pickle.loads(pickle.dumps(function))(denoise, x, sigmas[-1:]), x)
    assert len(inspect.getdoc(function).splitlines()) > 8


def test_every_registered_solver_has_a_function_and_every_grid():
    for name in ud.solvers.names():
        assert hasattr(K, "sample_" + name.replace("-", "_")), name
    for name in ("karras", "exponential", "polyexponential", "vp", "laplace", "blend", "cosine"):
        assert hasattr(K, f"get_sigmas_{name}")


def test_programs_find_the_options_in_the_signature():
    """A1111 hands eta to every function that names it: only what draws noise may."""
    named = {name: inspect.signature(getattr(K, name)).parameters for name in FOR_ALL}
    first = ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    assert all(list(p)[:6] == first for p in named.values())
    for name in ("euler", "heun", "dpm_2"):
        p = named[f"sample_{name}"]
        assert [p[k].default for k in ("s_churn", "s_tmin", "s_tmax", "s_noise")] == [
            0.0, 0.0, float("inf"), 1.0,
        ]  # fmt: skip
    with_eta = {name for name, p in named.items() if "eta" in p}
    assert {f"sample_{n}" for n in NOISY} <= with_eta
    for name in with_eta:
        assert named[name]["eta"].default > 0 and "noise_sampler" in named[name], name
    assert "eta" not in named["sample_dpmpp_2m"] and "solver_type" in named["sample_dpmpp_2m_sde"]


def test_the_seed_is_the_noise_and_torchs_generator_where_there_is_none():
    run = lambda **extra: K.sample_euler_ancestral(denoise, START, DOWN, extra_args=extra)
    assert torch.equal(run(seed=1), run(seed=1)) and differ(run(seed=1), run(seed=2)) > 1e-3
    assert torch.equal(run(seed=2**64 - 1), run(seed=-1))  # programs have unsigned seeds
    torch.manual_seed(5)
    a = run()
    torch.manual_seed(5)
    assert torch.equal(a, run()) and differ(a, run()) > 1e-3
    # a seed for each sample: the image of one is its own in any batch
    seeds = torch.arange(8) + 100
    whole = run(seed=seeds)
    still = lambda x, sigma, seed: x  # makes no error, so that all batches have the same steps
    for i in (0, 5):
        one = {"seed": [100 + i]}
        alone = K.sample_euler_ancestral(denoise, START[i : i + 1], DOWN, extra_args=one)
        assert differ(whole[i : i + 1], alone) < 1e-12
        far = (0.1, 10.0)
        many = K.sample_dpm_adaptive(still, START, *far, extra_args={"seed": seeds}, eta=1.0)
        alone = K.sample_dpm_adaptive(still, START[i : i + 1], *far, extra_args=one, eta=1.0)
        assert differ(many[i : i + 1], alone) < 1e-12


def test_two_pieces_draw_other_noise_than_each_other():
    """The second piece of a run has the same seed: its normals must not be the first's again."""
    drift = lambda x, sigma, **k: torch.zeros_like(x)
    zero = torch.zeros_like(START)
    a = K.sample_euler_ancestral(drift, zero, SIGMAS[:2], extra_args={"seed": 1})
    b = K.sample_euler_ancestral(drift, zero, SIGMAS[1:3], extra_args={"seed": 1})
    correlation = float((a / a.std() * b / b.std()).mean())
    assert abs(correlation) < 0.75 and not torch.allclose(a / a.std(), b / b.std(), atol=0.1)


def test_repeated_sigmas_are_one_node_and_i_counts_the_callers_steps():
    repeated = torch.cat([DOWN[:3], DOWN[2:5], DOWN[4:5] * (1 - 1e-8), DOWN[5:], DOWN[-1:]])
    told = []
    got = K.sample_dpmpp_2m(denoise, START, repeated, callback=lambda d: told.append(d["i"]))
    assert differ(got, K.sample_dpmpp_2m(denoise, START, DOWN)) < 1e-7
    assert told == [0, 1, 3, 4, 6, 7, 8, 9, 10] and max(told) < len(repeated) - 1


def test_callbacks_are_told_what_k_diffusion_tells(theirs):
    for name, options in (("heun", {}), ("dpmpp_sde", {"noise_sampler": ByLevel()}), ("lms", {})):
        ours, other = [], []
        getattr(K, f"sample_{name}")(denoise, START, DOWN, callback=ours.append, **options)
        getattr(theirs, f"sample_{name}")(
            denoise, START, DOWN, callback=other.append, disable=True, **options
        )
        assert [d["i"] for d in ours] == [d["i"] for d in other] == list(range(9))
        for a, b in zip(ours, other, strict=True):
            for key in ("x", "denoised", "sigma", "sigma_hat"):
                assert differ(a[key], b[key]) < EXACT, (name, key)


@pytest.mark.parametrize("sigmas", [[], [3.0], [3.0, 3.0], torch.zeros(2)])
def test_nothing_to_do_gives_x_back(sigmas):
    assert K.sample_euler(denoise, START, torch.as_tensor(sigmas)) is START


def test_rising_sigmas_run_backwards(theirs):
    """Euler there and back; k-diffusion's Euler steps up as well."""
    up = SIGMAS.flip(0)
    x = 0.1 * START
    assert (
        differ(K.sample_euler(denoise, x, up), theirs.sample_euler(denoise, x, up, disable=True))
        < 1e-11
    )
    fine = torch.linspace(10**0.2, 0.03**0.2, 200, dtype=torch.float64) ** 5
    back = K.sample_dpmpp_2m(denoise, K.sample_dpmpp_2m(denoise, START, fine), fine.flip(0))
    assert differ(back, START) < 0.05 * float(START.abs().max())


def test_a_function_of_any_solver():
    inner = ((0.1, 1.0, 2),)
    made = K.of(ud.solvers.Restart(intervals=inner))
    got = made(denoise, START, DOWN, {"seed": 1})
    same = K.sample_restart(denoise, START, DOWN, {"seed": 1}, intervals=list(inner))
    assert torch.equal(got, same)
    assert not torch.equal(got, K.sample_restart(denoise, START, DOWN, {"seed": 1}))
    with pytest.raises(TypeError, match="get"):
        K.of("restart")


class CONST:
    pass


def flow_model(scale=None):
    """As ComfyUI hands a flow over: the guider around the model that knows its sampling."""

    class ModelSampling(CONST):
        pass

    sampling = ModelSampling()
    if scale:
        sampling.noise_scale = scale
    inner = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))

    class Guider:
        inner_model = inner

        def __call__(self, x, sigma, **extra):
            return TARGET.data_prediction(x, sigma[0], FLOW)

    return Guider()


FLOW_SIGMAS = torch.linspace(1, 0, 11, dtype=torch.float64)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "heun", "unipc_3", "relay", "rk4_flow"])
def test_flows_are_run_as_flows(name):
    """The same solver on the same grid of a Flow."""
    x = START / 10
    got = getattr(K, f"sample_{name}")(flow_model(), x, FLOW_SIGMAS)
    solver = ud.solvers.get(name)
    process = ud.Flow(0.1)
    table = solver.tableau(process, FLOW_SIGMAS)
    want = ud.sample(TARGET.denoiser(process), x.shape, table, x_init=x)
    assert differ(got, want) < 1e-12


def test_the_euler_of_a_flow_is_a_straight_step():
    x = START / 10
    model = flow_model()
    got = K.sample_euler(model, x, FLOW_SIGMAS)
    for a, b in pairwise(FLOW_SIGMAS):
        x = x + (b - a) * (x - model(x, a.expand(8))) / a
    assert differ(got, x) < 1e-12


@pytest.mark.parametrize("sigmas", [FLOW_SIGMAS, FLOW_SIGMAS[3:-1]], ids=["whole", "part"])
@pytest.mark.parametrize("name", ["euler", "heun", "lms"])
def test_what_steps_in_sigma_is_k_diffusions_on_flows_too(theirs, name, sigmas):
    """In the time of a flow, from pure noise and from a picture."""
    want = getattr(theirs, f"sample_{name}")(flow_model(), START / 10, sigmas, disable=True)
    assert differ(getattr(K, f"sample_{name}")(flow_model(), START / 10, sigmas), want) < EXACT


def test_a_flows_noise_keeps_its_scale():
    """x = (1 - s) x_0 + 2 s eps: the ancestral noise is twice that of scale 1."""
    z = ByLevel()
    still = lambda scale: K.sample_euler_ancestral(
        flow_model(scale), 0 * START, FLOW_SIGMAS[1:3], noise_sampler=z
    )
    silent = K.sample_euler_ancestral(
        flow_model(), 0 * START, FLOW_SIGMAS[1:3], noise_sampler=z, s_noise=0.0
    )
    assert differ(still(2.0) - silent, 2 * (still(1.0) - silent)) < 1e-12


def test_forge_flows_and_other_models_are_told_apart():
    assert flow_scale(SimpleNamespace(inner_model=SimpleNamespace(
        predictor=SimpleNamespace(prediction_type="const")))) == 1.0  # fmt: skip
    unet = SimpleNamespace(
        model=SimpleNamespace(predictor=SimpleNamespace(prediction_type="const"))
    )
    engine = SimpleNamespace(forge_objects=SimpleNamespace(unet=unet))
    assert flow_scale(SimpleNamespace(inner_model=engine)) == 1.0
    assert flow_scale(SimpleNamespace(model_sampling=object())) is None
    assert flow_scale(denoise) is None


def test_half_precision_comes_back_as_it_went():
    x = START.to(torch.bfloat16)
    kinds = set()

    def model(x, sigma):
        kinds.add((x.dtype, sigma.dtype))
        return denoise(x, sigma)

    assert K.sample_dpmpp_2m(model, x, DOWN).dtype == torch.bfloat16
    assert kinds == {(torch.bfloat16, torch.bfloat16)}  # as k-diffusion calls it


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: K.sample_euler(denoise, START, [3.0, 1.0, 2.0]), ValueError, "must fall"),
        (lambda: K.sample_euler(denoise, START, [3.0, float("nan")]), ValueError, "finite"),
        (lambda: K.sample_euler(denoise, START, [[3.0, 1.0]]), ValueError, "one-dimensional"),
        (lambda: K.sample_euler(denoise, START, "karras"), TypeError, "tensor of numbers"),
        (lambda: K.sample_euler(denoise, START, DOWN, s_chrun=1), TypeError, "s_churn"),
        (lambda: K.sample_euler(denoise, START, DOWN, eta=1.0), TypeError, "eta"),
        (lambda: K.sample_euler_ancestral(denoise, START, DOWN, eta=2.0), ValueError, "eta"),
        (lambda: K.sample_ddpm(denoise, START, SIGMAS.flip(0)), ValueError, "rise"),
        (lambda: K.sample_ddpm(denoise, START, DOWN, noise_sampler=3), TypeError, "noise_sampler"),
        (lambda: K.sample_euler(flow_model(), START, [3.0, 0.0]), ValueError, "flow"),
        (lambda: K.sample_dpm_fast(denoise, START, 10.0, 0.03, 6), ValueError, "below"),
        (lambda: K.sample_dpm_adaptive(denoise, START, 0.1, 10.0, order=4), ValueError, "order"),
        (lambda: K.sample_dpm_adaptive(flow_model(), START, 0.1, 1.0), ValueError, "below 1"),
        (lambda: K.sample_euler(None, START, DOWN), TypeError, "model must be called"),
        (lambda: K.sample_euler(denoise, None, DOWN), TypeError, "x must be a floating tensor"),
        (lambda: K.sample_euler(denoise, START.long(), DOWN), TypeError, "x must be a floating"),
        (lambda: K.sample_euler(denoise, START, DOWN, 3), TypeError, "extra_args must be a dict"),
        (lambda: K.sample_euler(denoise, START, DOWN, callback=3), TypeError, "callback must"),
        (lambda: K.sample_dpm_adaptive(denoise, None, 0.1, 10.0), TypeError, "x must be"),
        (lambda: K.sample_ddpm(denoise, START, DOWN, s_noise=-1), ValueError, "s_noise must be >="),
        (lambda: K.sample_euler(denoise, START, DOWN, s_churn=-1.0), ValueError, "^s_churn must"),
        (lambda: K.sample_lms(denoise, START, DOWN, order=7), ValueError, "^order must be"),
        (lambda: K.get_sigmas_karras(0, 0.1, 10.0), ValueError, "n must"),
        (lambda: K.get_sigmas_karras(5, 10.0, 0.1), ValueError, "sigma_min"),
        (lambda: K.get_sigmas_laplace(5, 0.1, 10.0, rho=3), TypeError, "rho"),
    ],
)
def test_bad_input_is_named_before_any_call(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, ud.UndiffuseError)


GRIDS = {
    "karras": [(10, 0.03, 14.6), (10, 0.03, 14.6, 5.0), (1, 0.03, 14.6)],
    "exponential": [(10, 0.03, 14.6)],
    "polyexponential": [(10, 0.03, 14.6), (10, 0.03, 14.6, 2.0)],
    "vp": [(10,), (10, 12.0, 0.2, 1e-2)],
}


@pytest.mark.parametrize(("name", "args"), [(n, a) for n, many in GRIDS.items() for a in many])
def test_grids_are_k_diffusions_to_float32(theirs, name, args):
    """Theirs are computed in float32; of vp the subtraction of 1 costs three digits at the end."""
    got = getattr(K, f"get_sigmas_{name}")(*args)
    want = getattr(theirs, f"get_sigmas_{name}")(*args)
    assert got.dtype == torch.float32 and got.shape == want.shape
    assert torch.allclose(got, want, rtol=1e-3 if name == "vp" else 1e-5)


@pytest.mark.parametrize("name", [n for n in K.__all__ if n.startswith("get_sigmas_")])
def test_every_grid_falls_from_sigma_max_to_sigma_min_and_0(name):
    sigmas = K.get_sigmas_vp(7) if name.endswith("_vp") else getattr(K, name)(7, 0.03, 14.6)
    assert len(sigmas) == 8 and bool((sigmas[1:] < sigmas[:-1]).all()) and sigmas[-1] == 0
    if not name.endswith("_vp"):
        assert torch.allclose(sigmas[[0, 6]], torch.tensor([14.6, 0.03]), rtol=1e-6)


def test_normals_of_another_shape_are_refused_not_spread():
    """One normal for all samples and components would be a sample of no law."""
    with pytest.raises(ValueError, match=r"normals of x's shape .* got \(1,\)"):
        K.sample_ddpm(denoise, START, DOWN, noise_sampler=lambda *_: torch.zeros(1))


# --- parts of loops of one's own ----------------------------------------------------------------


def test_the_parts_are_k_diffusions(theirs):
    x, sigma = START, torch.tensor([2.0] * len(START), dtype=START.dtype)
    assert torch.equal(K.to_d(x, sigma, 0.5 * x), theirs.to_d(x, sigma, 0.5 * x))
    assert torch.equal(K.append_zero(DOWN), theirs.append_zero(DOWN))
    for pair in ((3.0, 1.0), (3.0, 2.9), (1.0, 0.0)):
        for eta in (0.0, 0.5, 1.0, 3.0):
            assert K.get_ancestral_step(*pair, eta) == theirs.get_ancestral_step(*pair, eta)
    torch.manual_seed(0)
    z = K.default_noise_sampler(x)(1.0, 0.5)
    torch.manual_seed(0)
    assert torch.equal(z, theirs.default_noise_sampler(x)(1.0, 0.5))


def test_a_brownian_path_of_sigmas():
    """Increments add up over a split, have unit variance each, and are each sample's own."""
    x = torch.zeros(3, 4000)
    noise = K.BrownianTreeNoiseSampler(x, 0.03, 14.6, seed=[5, 6, 7])
    steps = [(8.0, 2.0), (2.0, 0.5), (8.0, 0.5)]
    first, second, both = (noise(*step) * abs(step[0] - step[1]) ** 0.5 for step in steps)
    assert torch.allclose(first + second, both, atol=1e-4)
    assert torch.equal(noise(8.0, 2.0), -noise(2.0, 8.0))
    for step in (*steps, (0.0301, 0.03), (14.6, 14.59)):
        z = noise(*step)  # 12,000 normals: the deviation of their variance is 0.013
        assert abs(float(z.var()) - 1) < 0.06 and abs(float(z.mean())) < 0.04
    alone = K.BrownianTreeNoiseSampler(x[1:2], 0.03, 14.6, seed=[6])
    assert torch.equal(alone(8.0, 2.0), noise(8.0, 2.0)[1:2])
    assert K.sample_dpmpp_sde(denoise, START, DOWN[:-1], noise_sampler=K.BrownianTreeNoiseSampler(
        START, DOWN[-2], DOWN[0], seed=3)).isfinite().all()  # fmt: skip
    with pytest.raises(ValueError, match="must differ"):
        noise(1.0, 1.0)
    with pytest.raises(TypeError, match="x must be a floating tensor"):
        K.BrownianTreeNoiseSampler([1.0], 0.1, 1.0)
