"""EDM and k-diffusion: the paper's formulas and k-diffusion's own wrappers give the same D."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import undiffuse as ud
from undiffuse.models import EDM, LOSSES, VP, GaussianMixture, adapters
from undiffuse.models.networks import MLP

F64 = torch.float64
TARGET = GaussianMixture([0.4, 0.6], [[1.0, -0.5], [-0.7, 0.3]], [0.2, 0.5])


def randomised(net, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return net.eval()


class Preconditioned(torch.nn.Module):
    """D(x, sigma, labels) of Karras et al. 2022, equation 7 with the last column of table 1."""

    def __init__(self, f, sigma_data):
        super().__init__()
        self.f, self.sigma_data = f, sigma_data

    def forward(self, x, sigma, labels=None):
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / total.sqrt()
        c_in = 1 / total.sqrt()
        c_noise = sigma.log() / 4
        return c_skip * x + c_out * self.f(c_in * x, c_noise.flatten(), labels)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_networks_by_the_papers_own_formulas(sigma_data):
    f = randomised(MLP(4, width=8, depth=1, classes=3)).double()
    theirs = Preconditioned(f, sigma_data)
    process = EDM(sigma_data=sigma_data)
    sigma = torch.tensor([0.002, 0.03, 0.5, 4.0, 80.0], dtype=F64)
    g = torch.Generator().manual_seed(2)
    x = sigma[:, None] * torch.randn(5, 4, dtype=F64, generator=g)
    labels = torch.tensor([0, 1, 2, 0, -1])
    wanted = theirs(x, sigma, labels)
    # the bare F, preconditioned here; and their whole D, taken as it is, labels by position
    bare = ud.Denoiser(f, process, predicts="edm")
    positional = adapters.Wrapped(theirs, lambda x, t, cond: ((x, t, cond["label"]), {}))
    for model in (bare, adapters.from_edm(positional, process)):
        torch.testing.assert_close(model(x, sigma, label=labels), wanted, rtol=1e-6, atol=1e-9)
    score = (wanted - x) / sigma[:, None] ** 2
    torch.testing.assert_close(bare.score(x, sigma, label=labels), score, rtol=1e-6, atol=1e-6)
    # training weight: lambda(sigma) = 1/c_out^2 on ||D - x_0||^2, their equation 8 and table 1
    x_0, eps = torch.randn(5, 4, dtype=F64, generator=g), torch.randn(5, 4, dtype=F64, generator=g)
    loss = LOSSES["edm"].at(bare, x_0, sigma, eps, label=labels)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    error = (theirs(x_0 + sigma[:, None] * eps, sigma, labels) - x_0).square().mean(1)
    torch.testing.assert_close(loss, weight * error, rtol=1e-6, atol=0)


def k_diffusion(module):
    """One file of k-diffusion alone: its __init__ imports the training code."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k-diffusion is not installed")
    name = "_k_diffusion_for_tests"
    parent = sys.modules.setdefault(name, ModuleType(name))
    parent.__path__ = []
    parent.utils = SimpleNamespace(append_dims=lambda x, n: x[(...,) + (None,) * (n - x.ndim)])
    for part in ("sampling", module):
        path = Path(next(iter(found.submodule_search_locations))) / f"{part}.py"
        spec = importlib.util.spec_from_file_location(f"{name}.{part}", path)
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[f"{name}.{part}"] = loaded
        setattr(parent, part, loaded)
        try:
            spec.loader.exec_module(loaded)
        except ImportError as e:
            pytest.skip(f"k-diffusion cannot be imported: {e}")
    return loaded


def test_k_diffusion_wrappers_are_taken_as_they_are():
    wrapper = k_diffusion("external").VDenoiser(randomised(MLP(4, width=8, depth=1)))
    model = adapters.from_edm(wrapper)
    x, sigma = torch.randn(3, 4), torch.tensor([0.1, 1.0, 30.0])
    torch.testing.assert_close(model(x, sigma.double()), wrapper(x, sigma), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:predicts='noise' at t_max")
def test_a_discrete_network_exported_is_k_diffusions_own_wrapper():
    external = k_diffusion("external")
    net = randomised(MLP(4, width=8, depth=1, time_scale=1e-3))
    process = VP.cosine(steps=50)
    bar = process.alpha(torch.arange(1, 51, dtype=F64) / 50) ** 2
    theirs = external.DiscreteEpsDDPMDenoiser(net, bar.float(), quantize=True)
    ours = adapters.KDiffusionModel(
        ud.Denoiser(net, process, predicts="noise", time="index", steps=50)
    )
    index = torch.tensor([0, 7, 30, 45])
    sigma = ((1 - bar) / bar).sqrt()[index]
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)) * sigma.float()[:, None]
    wanted = theirs(x, sigma.float())
    torch.testing.assert_close(ours(x, sigma), wanted, rtol=1e-5, atol=1e-6 * float(x.abs().max()))


def test_a_denoiser_is_a_k_diffusion_model():
    sampling = k_diffusion("sampling")
    model = TARGET.denoiser(VP())
    exported = adapters.KDiffusionModel(model)
    assert exported.sigma_max == pytest.approx(152, rel=0.01)
    sigmas = sampling.get_sigmas_karras(12, 0.02, 80.0).double()
    x = 80 * torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    theirs = sampling.sample_dpmpp_2m(exported, x, sigmas, disable=True)
    ours = ud.sample(
        TARGET.denoiser(EDM()), x.shape, "dpmpp-2m", steps=None, grid=sigmas, x_init=x, dtype=F64
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
