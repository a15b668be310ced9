"""Every scheduler class of diffusers: its network is read exactly as its own code reads it, or
refused.

The classes are found by a walk of the installed package, so that a new one fails here until it is
entered. A made-up network that depends on x and on the time it is told is evaluated by their code
at three noise levels; the same network through `from_diffusers` must give the same data prediction.
"""

import contextlib
import copy
import importlib
import inspect
import math
import pickle
import pkgutil
import warnings

import pytest
import torch

import undiffuse as ud
from undiffuse.models import adapters
from undiffuse.models.adapters.schedulers import KNOWN, REFUSED

diffusers = pytest.importorskip("diffusers")
STEPS = 50
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
FLOW = {"use_flow_sigmas": True, "flow_shift": 2.0}


def classes():
    import diffusers.schedulers as room

    found = {}
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        with contextlib.suppress(ImportError):  # the flax ones, or an optional library is absent
            found |= vars(importlib.import_module(module.name))
    kinds = (k for k in found.values() if inspect.isclass(k))
    ours = (k for k in kinds if issubclass(k, diffusers.SchedulerMixin))
    return {k.__name__: k for k in ours if k is not diffusers.SchedulerMixin}


CLASSES = classes()


class Network(torch.nn.Module):
    """Depends on both of its inputs; remembers what it was told."""

    def __init__(self, rate):
        super().__init__()
        self.rate, self.told = rate, None

    def forward(self, sample, timestep):
        self.told = torch.as_tensor(timestep, dtype=torch.float32).expand(len(sample))
        phase = (self.rate * self.told).reshape(-1, 1, 1, 1)
        return (0.3 * torch.tanh(sample) + 0.2 * torch.sin(phase) * sample + 0.05 * phase.cos(),)


def rate_of(name):
    return 3.0 if name.startswith(("EDM", "Cosine", "MiniMax", "IPNDM")) else 3.0 / STEPS


def test_every_class_is_entered_once():
    assert len(CLASSES) > 45
    assert not set(KNOWN) & set(REFUSED)
    missing = set(CLASSES) - set(KNOWN) - set(REFUSED)
    assert not missing, f"enter {missing} in models/adapters/schedulers.py"


def test_every_key_of_a_known_class_is_read_or_set_aside():
    """Their own defaults never end in 'is not known'."""
    for name in set(KNOWN) & set(CLASSES):
        scheduler = CLASSES[name]()
        adapters.read_scheduler(scheduler)
        adapters.read_scheduler({**scheduler.config, "_class_name": name})
        with pytest.raises(ValueError, match=f"speed='fast' of a {name}"):
            adapters.read_scheduler({**scheduler.config, "_class_name": name, "speed": "fast"})


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_has_no_counterpart_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} cannot be read.*pass process="):
        adapters.from_diffusers(Network(1.0), {"_class_name": name})


# --- their own data prediction ----------------------------------------------------------------


def preconditioned(s, net, x, i):
    sigma = s.sigmas[i]
    out = net(s.precondition_inputs(x, sigma), s.precondition_noise(sigma))[0]
    return s.precondition_outputs(x, out, sigma)


def stepped(s, net, x, i):
    """pred_original_sample, or what it is called, of one call of step."""
    t = s.timesteps[i]
    scaled = s.scale_model_input(x, t) if hasattr(s, "scale_model_input") else x
    out = net(scaled, t)[0]
    name = type(s).__name__
    if name == "CogVideoXDPMScheduler":
        return s.step(out, None, int(t), int(t), x, return_dict=False)[1]
    extra = (torch.zeros_like(x), torch.zeros_like(x)) if name == "RePaintScheduler" else ()
    if name == "DDIMInverseScheduler":  # it takes x to be a step before the time that it tells
        t = t + STEPS // s.num_inference_steps
    result = s.step(out, int(t) if "DDIM" in name or "DDPM" in name else t, x, *extra)
    return result.pred_original_sample if "pred_original_sample" in result else result.denoised


def converted(s, net, x, i):
    s._step_index = i
    t = s.timesteps[i]
    if s.config.get("use_flow_sigmas"):
        told = s.sigmas[i] * STEPS  # theirs is cut to a whole number
        assert told - 1 <= t <= told
        t = told
    found = s.convert_model_output(net(x, t)[0], sample=x)
    if type(s).__name__ == "DEISMultistepScheduler":  # the noise
        alpha, sigma = s._sigma_to_alpha_sigma_t(s.sigmas[i])
        found = (x - sigma * found) / alpha
    return found


def to_clean(s, net, x, i):
    """A step of PNDM to alpha = 1."""
    t = int(s.timesteps[i])
    s.final_alpha_cumprod = torch.tensor(1.0)
    return s._get_prev_sample(x, t, -1, net(x, t)[0])


def noised(s, net, x, i):
    """TCD gives sqrt(b) x_0 + sqrt(1 - b) eps where x is sqrt(a) x_0 + sqrt(1 - a) eps."""
    t = int(s.timesteps[i])
    out = s.step(net(x, t)[0], t, x, eta=0.0).pred_noised_sample
    a, b = (s.alphas_cumprod[k].double() for k in (t, int(s.timesteps[i + 1])))
    return (x * (1 - b).sqrt() - out * (1 - a).sqrt()) / (
        (a * (1 - b)).sqrt() - (b * (1 - a)).sqrt()
    )


def extrapolated(s, net, x, i):
    """Euler's step, carried on in a straight line to where sigma is 0 (or 1, inverted)."""
    t = s.timesteps[i]
    s._step_index = i
    here, there = s.sigmas[i], s.sigmas[i + 1]
    end = 1.0 if s.config.get("invert_sigmas") else 0.0
    if type(s).__name__ == "FlowMatchLCMScheduler":  # its noise: none where the next sigma is 0
        s.sigmas[i + 1] = end
        return s.step(net(x, t.expand(3))[0], t, x).prev_sample
    moved = s.step(net(x, t.expand(3))[0], t, x).prev_sample
    return x + (end - here) / (there - here) * (moved - x)


def by_angle(s, net, x, i):
    s._step_index = i
    ets = x * s.betas[i] + net(x, s.timesteps[i])[0] * s.alphas[i]
    return s._get_prev_sample(x, i, -1, ets)  # betas[-1] = 0


def by_score(s, net, x, i):
    """step_pred adds (sigma_i^2 - sigma_{i-1}^2) score: D = x + sigma^2 score."""
    k = len(s.timesteps) - 1 - i
    sigma, below = s.discrete_sigmas[k], s.discrete_sigmas[k - 1]
    t = s.timesteps[i]
    moved = s.step_pred(net(x, sigma)[0], t, x).prev_sample_mean
    return x + sigma**2 / (sigma**2 - below**2) * (moved - x)


def oracle_of(s):
    name = type(s).__name__
    if hasattr(s, "precondition_outputs"):
        return preconditioned
    if name == "TCDScheduler":
        return noised
    if name == "PNDMScheduler":
        return to_clean
    if name.startswith(("FlowMatch", "LTX", "MiniMax")):
        return extrapolated
    if name == "IPNDMScheduler":
        return by_angle
    if name == "ScoreSdeVeScheduler":
        return by_score
    return converted if hasattr(s, "convert_model_output") else stepped


IN_SIGMA = ("Euler", "Heun", "KDPM2", "LMS", "DPMSolverSDE")


def coordinates(s, model, i):
    """(t of ours, factor from their state to ours) at their i-th step."""
    process, name = model.process, type(s).__name__
    if isinstance(process, ud.Flow):
        sigma = float(s.sigmas[i])
        return (1 - sigma if s.config.get("invert_sigmas") else sigma), 1.0
    if name == "IPNDMScheduler":
        return float(s.timesteps[i]), 1.0
    if name == "ScoreSdeVeScheduler":
        k = len(s.timesteps) - 1 - i
        return float(process.inverse_log_snr(-math.log(float(s.discrete_sigmas[k])))), 1.0
    if isinstance(process, ud.EDM):
        return float(s.sigmas[i]), 1.0
    t = (float(s.timesteps[i]) + 1) / STEPS
    return t, float(process.alpha(t)) if name.startswith(IN_SIGMA) else 1.0


def settings(name):
    """Configurations of a class: prediction kinds, schedules, and what else changes the meaning."""
    accepted = inspect.signature(CLASSES[name].__init__).parameters
    own = {"num_train_timesteps": STEPS} if "num_train_timesteps" in accepted else {}
    for key in ("clip_sample", "clip_denoised"):
        if key in accepted:
            own[key] = False
    if name.startswith("LTX"):
        own["eta"] = 0.0
    if "set_alpha_to_one" in accepted:
        own["set_alpha_to_one"] = True
    if "variance_type" in accepted and name.startswith("DDPM"):
        own["variance_type"] = "fixed_large"
    changes = [{}]
    if "prediction_type" in accepted:
        changes += [
            {"prediction_type": k} for k in ("epsilon", "sample", "v_prediction", "flow_prediction")
        ]
    if "beta_schedule" in accepted and name != "UnCLIPScheduler":
        changes += [
            {"beta_schedule": b}
            for b in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace")
        ]
        changes += [
            {"beta_start": 0.01, "beta_end": 0.2},
            {"trained_betas": torch.linspace(0.01, 0.3, STEPS).tolist()},
        ]
    if "rescale_betas_zero_snr" in accepted:
        changes += [{"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}]
    if "snr_shift_scale" in accepted:
        changes += [
            {"snr_shift_scale": 1.0},
            {"snr_shift_scale": 7.0, "prediction_type": "v_prediction"},
        ]
    if "use_flow_sigmas" in accepted:
        changes += [
            {**FLOW, "prediction_type": k}
            for k in ("flow_prediction", "epsilon", "sample", "v_prediction")
        ]
    if "sigma_data" in accepted:
        changes += [{"sigma_data": 0.8, "sigma_min": 0.01, "sigma_max": 30.0}]
    if "shift" in accepted:
        changes += [{"shift": 3.0}]
    if "invert_sigmas" in accepted:
        changes += [{"invert_sigmas": True}]
    if "timestep_type" in accepted:
        changes += [{"timestep_type": "continuous", "prediction_type": "v_prediction"}]
    return [{**own, **change} for change in changes]


CASES = [(n, c) for n in sorted(set(KNOWN) & set(CLASSES)) for c in settings(n)]


def label(value):
    if isinstance(value, str):
        return value
    keys = {
        k: v
        for k, v in value.items()
        if k not in ("clip_sample", "set_alpha_to_one", "num_train_timesteps", "variance_type")
    }
    return (
        "-".join(f"{k}={v}" if not isinstance(v, list) else k for k, v in keys.items()) or "default"
    )


@pytest.mark.parametrize(("name", "config"), CASES, ids=label)
def test_a_network_is_read_as_its_own_scheduler_reads_it(name, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scheduler = CLASSES[name](**config)
        except (NotImplementedError, ValueError, TypeError):
            return  # no such scheduler can exist
        net = Network(rate_of(name))
        try:
            model = adapters.from_diffusers(net, scheduler)
        except ValueError as error:
            assert any(
                k in str(error) for k in ("prediction_type", "beta_schedule", "invert_sigmas")
            )
            return
        plain = label(config) == "default"
        for part in (0.3, 0.6, 0.9) if plain else (0.6,):
            assert compare(scheduler, model, net, part) or not plain


def compare(scheduler, model, net, part):
    """Whether theirs could be evaluated; fails where ours differs."""
    s = copy.deepcopy(scheduler)
    if type(s).__name__ == "LCMScheduler":
        s.set_timesteps(STEPS, original_inference_steps=STEPS)
    elif type(s).__name__ == "ScoreSdeVeScheduler":
        s.set_timesteps(STEPS)
        s.set_sigmas(STEPS)
    elif type(s).__name__ == "TCDScheduler":
        s.set_timesteps(STEPS, original_inference_steps=STEPS)
    else:  # where there are as many as training steps, this one drops some times but no sigmas
        s.set_timesteps(10 if type(s).__name__ == "DPMSolverMultistepInverseScheduler" else STEPS)
    i = int(part * len(s.timesteps)) // 2 * 2  # of methods of two stages the first
    t, factor = coordinates(s, model, i)
    if hasattr(s, "_begin_index"):
        s._begin_index = i
    scale = (
        1 + float(s.sigmas[i])
        if type(s).__name__.startswith((*IN_SIGMA, "EDM", "Cosine", "Score"))
        else 1
    )
    x = scale * X
    try:
        theirs = oracle_of(s)(s, net, x, i)
    except NotImplementedError:
        return False  # a kind of prediction that this sampler of theirs lacks
    except ValueError as error:
        assert "prediction_type given as" in str(error)
        return False
    told = net.told
    ours = model(factor * x, t)
    # tables in float32: alpha_bar to 1e-5, a step of theirs takes differences of states
    torch.testing.assert_close(net.told, told, rtol=2e-4, atol=2e-4 * STEPS)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3 * float(theirs.abs().max()))
    return True


def test_zero_terminal_snr_ends_where_they_end():
    """2^-24, in the classes that put it for 0."""
    config = {
        "rescale_betas_zero_snr": True,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    for kind in (
        "EulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ):
        theirs = CLASSES[kind](**config).alphas_cumprod.double()
        bar = adapters.process_from_diffusers({**config, "_class_name": kind})[0].alpha(1.0) ** 2
        assert (
            float(bar)
            == pytest.approx(float(theirs[-1]), rel=1e-3)
            == pytest.approx(2**-24, rel=1e-3)
        )


@pytest.mark.parametrize(
    "name",
    [
        "DDPMScheduler",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "CosineDPMSolverMultistepScheduler",
        "IPNDMScheduler",
    ],
)
def test_adapted_networks_pickle_and_copy(name):
    model = adapters.from_diffusers(Network(0.1), CLASSES[name]())
    t = 0.5 * (model.t_min + model.process.t_max)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(again(X, t), model(X, t))


# --- what the caller says -----------------------------------------------------------------------


def test_an_unknown_class_needs_no_scheduler_where_the_caller_says_all():
    model = adapters.from_diffusers(
        Network(0.1), process=ud.Flow(), predicts="flow", time=lambda t: 1000 * t
    )
    assert (model.process, model.predicts) == (ud.Flow(), "flow")
    with pytest.raises(ValueError, match="scheduler is needed"):
        adapters.from_diffusers(Network(0.1))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler is not known; pass process="),
        ({"num_train_timesteps": -5}, "num_train_timesteps must be a whole number >= 1; got -5"),
        ({"num_train_timesteps": "abc"}, "num_train_timesteps must be"),
        ({"beta_start": "low"}, "beta_start must be a finite number; got 'low'"),
        ({"prediction_type": "flow_prediction"}, "needs use_flow_sigmas"),
        (
            {"prediction_type": "v_prediction", "use_flow_sigmas": True},
            "use_flow_sigmas means nothing",
        ),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas must hold num_train_timesteps=1000"),
        ({"sigma_data": 0.5}, "sigma_data=0.5 of a DDPMScheduler is not known"),
        ({"shift": 3.0}, "shift=3.0 of a DDPMScheduler is not known"),
        ({"snr_shift_scale": 3.0}, "snr_shift_scale=3.0 of a DDPMScheduler"),
        ({"timestep_type": "continuous"}, "timestep_type='continuous'"),
        ({"variance_type": "large"}, "variance_type must be one of"),
        (3, "scheduler must be a scheduler"),
        (CLASSES["DDPMScheduler"], "scheduler must be a scheduler"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_named(config, words):
    with pytest.raises((ValueError, TypeError), match=words):
        adapters.from_diffusers(Network(0.1), config)


def test_options_that_are_none_are_named():
    with pytest.raises(TypeError, match="no option bogus; known: .*clip"):
        adapters.from_diffusers(Network(0.1), {}, bogus=3)
    with pytest.raises(TypeError, match="net must be a module or function; got NoneType"):
        adapters.from_diffusers(None, {})


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda x, t: x, 1),
        (lambda t, x: x, 0),
        (lambda x, c: x, 1),
        (lambda x, text, timestep: x, "timestep"),
        (lambda x, text=None, *, sigma: x, "sigma"),
        (lambda *args, **kwargs: args[0], 1),
        (torch.nn.Identity(), 1),
    ],
)
def test_the_place_of_the_time(make, place):
    assert adapters.modules.BySignature(make).time == place


def test_flux_networks_are_told_sigma():
    """Their pipelines divide the scheduler's timestep by 1000."""
    seen = {}
    for name, told in (
        ("FluxTransformer2DModel", 0.25),
        ("ZImageTransformer2DModel", 0.75),
        ("SD3Transformer2DModel", 250.0),
    ):
        net = type(name, (Network,), {})(1.0)
        assert hasattr(diffusers, name)
        model = adapters.from_diffusers(net, CLASSES["FlowMatchEulerDiscreteScheduler"]())
        seen[name] = model.velocity(X, 0.25)
        assert float(net.told[0]) == pytest.approx(told)
    # the velocity of Z-Image's points to the data
    net = Network(1.0)
    torch.testing.assert_close(seen["ZImageTransformer2DModel"], -net(X, 0.75)[0])


def test_dicts_of_outputs_and_nested_conditions():
    class Net(torch.nn.Module):
        def forward(self, sample, timestep, added_cond_kwargs, return_dict=True):
            return {"sample": sample * added_cond_kwargs["scale"]} if return_dict else (sample,)

    model = adapters.from_diffusers(Net(), {})
    assert torch.equal(model.noise(X, 0.5, added_cond_kwargs={"scale": 2.0}), 2 * X)
    assert torch.equal(model.noise(X, 0.5, added_cond_kwargs={"scale": 2.0}, return_dict=False), X)
    with pytest.raises(TypeError, match="must return a tensor.*got dict of pred.*Wrapped"):
        adapters.from_diffusers(lambda x, t: {"pred": x}, {})(X, 0.5)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "IPNDMScheduler"])
def test_a_configuration_that_need_not_be_of_betas_names_its_class(name):
    """`scheduler.config` holds no class: a flow's would be read as linear betas, epsilon."""
    scheduler = CLASSES[name]()
    with pytest.raises(ValueError, match="does not name its class"):
        adapters.read_scheduler(scheduler.config)
    assert adapters.read_scheduler({"prediction_type": "sample"}).predicts == "data"


def test_a_table_that_was_changed_by_hand_is_refused():
    scheduler = CLASSES["DDIMScheduler"]()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod * 0.9
    with pytest.raises(ValueError, match="alphas_cumprod of this DDIMScheduler"):
        adapters.from_diffusers(Network(0.1), scheduler)
