"""What a user asks of a solver before its table: what it is good for, its paper, its other names.

Other names are diffusers' scheduler classes, k-diffusion's functions, and the labels of
AUTOMATIC1111 and ComfyUI. A label may say a grid behind the solver: 'DPM++ 2M Karras'.
"""

from __future__ import annotations

from collections.abc import Container

DIFFUSERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis-2",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "DPMSolverSDEScheduler": "dpmpp-sde",
    "DPMSolverSinglestepScheduler": "dpmpp-2s",
    "EDMDPMSolverMultistepScheduler": "dpmpp-2m",
    "EDMEulerScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "HeunDiscreteScheduler": "heun",
    "IPNDMScheduler": "ipndm-4",
    "KDPM2AncestralDiscreteScheduler": "dpm-2-ancestral",
    "KDPM2DiscreteScheduler": "dpm-2",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms-4",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "sa-solver",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc-2",
}
"""Classes with the orders that they have unless told otherwise."""
LABELS = {
    "DPM++": "dpmpp-2m",
    "DPM++ 2S a": "dpmpp-2s-ancestral",
    "DPM-Solver": "dpm-solver-2",
    "DPM-Solver++": "dpmpp-2m",
    "DPM2": "dpm-2",
    "DPM2 a": "dpm-2-ancestral",
    "dpm_2_a": "dpm-2-ancestral",
    "DEIS": "deis-2",
    "ER-SDE": "er-sde-3",
    "Euler a": "euler-ancestral",
    "iPNDM": "ipndm-4",
    "ipndm_v": "ipndm-v-4",
    "LMS": "lms-4",
    "SEEDS": "seeds-3",
    "UniPC": "unipc-2",
    "uni_pc": "unipc-2",
    "uni_pc_bh2": "unipc-2",
}
"""Labels and families. A family is the member that its own library takes by default."""
ON_GRIDS = {"-karras": "karras", "-exponential": "exponential", "-beta": "beta"}


def key(name: str) -> str:
    """A name as names are compared: 'DPM++ 2M' and 'sample_dpmpp_2m' are 'dpmpp-2m'."""
    found = "-".join(name.lower().replace("++", "pp").replace("_", " ").replace("-", " ").split())
    return found.removeprefix("sample-")


OURS = {key(name): own for name, own in {**DIFFUSERS, **LABELS}.items()}


def ours(name: str, registered: Container[str]) -> tuple[str, str | None] | None:
    """The registered name, and the grid where the name says one; None where it is unknown."""
    known = key(name)
    for end, grid in (("", None), *ON_GRIDS.items()):
        if not known.endswith(end):
            continue
        bare = known.removesuffix(end)
        if bare in registered:
            return bare, grid
        if bare in OURS:
            return OURS[bare], grid
    return None


def names_of(own: str) -> list[str]:
    """What others call a registered solver, classes first."""
    return [name for name, of in {**DIFFUSERS, **LABELS}.items() if of == own]


ABOUT = {
    "bosh3-fixed": ("order checks; equal steps of sigma", "Bogacki & Shampine 1989"),
    "cps": ("reinforcement learning: noise, marginals kept", "Wang & Yu 2025"),
    "ddim": ("the baseline; first order, never diverges", "Song, Meng & Ermon 2021"),
    "ddim-afs": ("one call saved at the start of ddim", "Dockhorn et al. 2022"),
    "ddpm": ("many steps, samples of the training chain", "Ho et al. 2020"),
    "deis": ("5 to 10 calls, smooth networks", "Zhang & Chen 2023"),
    "deis-tab": ("as deis, weights by quadrature in t", "Zhang & Chen 2023"),
    "dopri5-fixed": ("references of many calls", "Dormand & Prince 1980"),
    "dpm-2": ("k-diffusion's results again", "Karras et al. 2022"),
    "dpm-fast": ("k-diffusion's results again", "Lu et al. 2022a"),
    "dpm-solver": ("10 to 20 calls, noise prediction", "Lu et al. 2022a"),
    "dpmpp": ("10 to 30 calls, guided networks", "Lu et al. 2022b"),
    "dpmpp-2m-afs": ("one call saved at the start of dpmpp-2m", "Dockhorn et al. 2022"),
    "dpmpp-3m-compat": ("published code's results again", "Lu et al. 2022b"),
    "dpmpp-3m-sde-compat": ("k-diffusion's results again", "Lu et al. 2022b"),
    "dpmpp-2m-sde": ("20 calls or more, noise corrects errors", "Lu et al. 2022b"),
    "dpmpp-sde": ("20 calls or more, noise corrects errors", "Lu et al. 2022b"),
    "edm": ("20 calls or more, EDM networks", "Karras et al. 2022"),
    "epd": ("two calls at once on a parallel device", "Zhu et al. 2025"),
    "er-sde": ("20 calls or more, little noise", "Cui et al. 2023"),
    "euler": ("the baseline; first order, never diverges", "Song, Meng & Ermon 2021"),
    "euler-ancestral": ("20 calls or more, noise corrects errors", "Song, Meng & Ermon 2021"),
    "euler-maruyama": ("the reverse SDE itself, 100 steps or more", "Song et al. 2021"),
    "flow-sde": ("reinforcement learning of flows", "Liu et al. 2025"),
    "heun": ("20 calls or more, EDM networks", "Karras et al. 2022"),
    "heun-churn": ("EDM's own samples, 40 calls or more", "Karras et al. 2022"),
    "ipndm": ("5 to 10 calls", "Liu et al. 2022; Zhang & Chen 2023"),
    "lcm": ("consistency models, 1 to 8 calls", "Luo et al. 2023"),
    "lms": ("k-diffusion's results again", "Karras et al. 2022"),
    "midpoint": ("order checks", "Runge 1895"),
    "pfdiff": ("networks of slowly changing directions", "Wang et al. 2025"),
    "plms": ("Stable Diffusion 1's results again", "Liu et al. 2022"),
    "pndm": ("Stable Diffusion 1's results again", "Liu et al. 2022"),
    "ralston": ("order checks", "Ralston 1962"),
    "relay": ("5 to 20 calls, any network: the default", ""),
    "restart": ("many calls, contracts errors by noise", "Xu et al. 2023"),
    "reverse-diffusion": ("score networks, 100 steps or more", "Song et al. 2021"),
    "rk": ("order checks; equal steps of sigma", "Kutta 1901"),
    "rk3": ("order checks; equal steps of sigma", "Kutta 1901"),
    "rx-ddim": ("ddim extrapolated, no call more", "Choi et al. 2025"),
    "sa-solver": ("20 calls or more, noise of any size", "Xue et al. 2023"),
    "seeds": ("20 calls or more of an SDE", "Gonzalez et al. 2023"),
    "sra1": ("the reverse SDE path by path", "Roessler 2010"),
    "tcd": ("trajectory consistency models, 1 to 8 calls", "Zheng et al. 2024"),
    "unip": ("as unipc, without its corrector", "Zhao et al. 2023"),
    "unipc": ("10 to 30 calls; orders above 2 may diverge", "Zhao et al. 2023"),
    "vab": ("smooth networks; extrapolates, may diverge", "Zhang & Chen 2023"),
    "xeab": ("smooth networks; extrapolates, may diverge", "Zhang & Chen 2023"),
    "zeab": ("5 to 10 calls, smooth networks", "Zhang & Chen 2023"),
}
"""Of a name, or of all that begin with it: what it is good for, and its paper."""


def about(own: str) -> tuple[str, str]:
    """What a registered solver is good for, and its paper: of the longest name it begins with."""
    found = max((k for k in ABOUT if own.startswith(k)), key=len, default="")
    return ABOUT.get(found, ("", ""))
