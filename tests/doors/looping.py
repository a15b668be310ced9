"""The loop of diffusers' pipelines, with a network in closed form, as tests walk it."""

import diffusers
import torch

from undiffuse.diffusers import UndiffuseScheduler

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOLERANCE = 1e-5


def net(x, t):
    """A network that depends on both and is no straight line."""
    t = t.float() if isinstance(t, torch.Tensor) else torch.tensor(float(t))
    told = torch.cos(t / 300).reshape(-1, 1, 1, 1)
    return 0.5 * torch.sin(2 * x) + 0.2 * x + 0.1 * told


def loop(scheduler, steps, x=X, generator=None, edit=None, **laid):
    """What every pipeline of diffusers does."""
    scheduler.set_timesteps(steps, **laid)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    noise = {} if generator is None else {"generator": generator}
    for i, t in enumerate(scheduler.timesteps):
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(net(x_in, t), t, x, **noise, return_dict=False)[0]
        x = x if edit is None else edit(i, x)
    return x


def seeded():
    return torch.Generator().manual_seed(3)


def difference(a, b):
    return float((a - b).abs().max() / a.abs().max())


def both(name, config, solver):
    theirs = getattr(diffusers, name + "Scheduler")(**config)
    return theirs, UndiffuseScheduler.from_scheduler(theirs, solver=solver)
