"""`undiffuse.a1111` against the contract of the web UI, as its own modules state it."""

import dataclasses
import inspect
import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace

import pytest
import torch

import undiffuse as ud
from undiffuse import a1111 as door
from undiffuse import k_diffusion as K
from undiffuse.models.targets import GaussianMixture

LAW = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)
EDM = ud.EDM(1e-4, 1e3)
SamplerData = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])


@dataclasses.dataclass
class Scheduler:
    name: str
    label: str
    function: object
    default_rho: float = -1
    need_inner_model: bool = False
    aliases: list = None


class KDiffusionSampler:
    """What the UI's class of this name hands to a function: all that its signature names."""

    def __init__(self, funcname, sd_model, options=None):
        self.func = funcname
        self.extra_params = sys.modules["modules.sd_samplers_kdiffusion"].sampler_extra_params.get(
            funcname, []
        )
        self.steps_told = []

    def sample(self, x, sigmas, settings):
        parameters = inspect.signature(self.func).parameters
        given = {k: settings[k] for k in self.extra_params if k in settings and k in parameters}
        if "eta" in parameters:
            given["eta"] = 1.0
        if "n" in parameters:
            given["n"] = len(sigmas) - 1
        if "sigma_min" in parameters:
            given |= {"sigma_min": float(sigmas[-2]), "sigma_max": float(sigmas[0])}
        if "sigmas" in parameters:
            given["sigmas"] = sigmas
        if self.config.options.get("brownian_noise", False):
            given["noise_sampler"] = lambda a, b: torch.randn_like(x)
        return self.func(
            lambda x, sigma, cond: LAW.data_prediction(x.double(), float(sigma[0]), EDM).float(),
            x,
            extra_args={"cond": None},
            disable=True,
            callback=lambda d: self.steps_told.append(d["i"]),
            **given,
        )


@pytest.fixture
def ui(monkeypatch):
    made = {
        "modules": {},
        "modules.sd_samplers_common": {"SamplerData": SamplerData},
        "modules.sd_samplers": {"all_samplers": [], "all_samplers_map": {}},
        "modules.sd_samplers_kdiffusion": {
            "KDiffusionSampler": KDiffusionSampler,
            "sampler_extra_params": {},
        },
        "modules.sd_schedulers": {"Scheduler": Scheduler, "schedulers": [], "schedulers_map": {}},
    }
    for name, parts in made.items():
        module = ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    samplers = sys.modules["modules.sd_samplers"]
    samplers.samplers_map = {}
    samplers.set_samplers = lambda: samplers.samplers_map.update(
        {alias: s.name for s in samplers.all_samplers for alias in [s.name.lower(), *s.aliases]}
    )
    return SimpleNamespace(samplers=samplers, schedulers=sys.modules["modules.sd_schedulers"])


def test_registered_samplers_run_as_the_ui_runs_them(ui):
    labels, _ = door.register()
    assert door.register()[0] == labels == [s.name for s in ui.samplers.all_samplers]
    sigmas = K.get_sigmas_karras(6, 0.03, 14.6)
    x = sigmas[0] * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    settings = {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.0}
    for data in ui.samplers.all_samplers:
        run = data.constructor(None)
        run.config = data
        out = run.sample(x, sigmas, settings)
        near = (out[:, None] - LAW.means.float()).norm(dim=-1).amin(1)
        assert float(near.median()) < 0.5, data.name
        assert max(run.steps_told) == 5, data.name
        assert ui.samplers.samplers_map[data.name.lower()] == data.name


def test_what_the_ui_is_told_of_a_sampler():
    assert door.sampler_options("dpmpp_2m") == {}
    assert door.sampler_options("dpmpp_2m_sde") == {"brownian_noise": True}
    assert door.sampler_options("heun") == {"second_order": True}
    assert door.sampler_options("dpmpp_sde") == {"brownian_noise": True, "second_order": True}


def test_the_ui_lays_our_grids(ui):
    _, labels = door.register([])
    assert len(ui.schedulers.schedulers) == len(labels)
    for entry in ui.schedulers.schedulers:
        sigmas = entry.function(n=10, sigma_min=0.03, sigma_max=14.6, device="cpu")
        assert torch.equal(sigmas, K.grid_sigmas(entry.name[3:].replace("_", "-"), 10, 0.03, 14.6))
        assert ui.schedulers.schedulers_map[entry.label] is entry


def test_outside_the_ui_it_says_so():
    with pytest.raises(ud.UndiffuseError, match="web UI") as caught:
        door.register()
    assert isinstance(caught.value, ImportError)
