"""undiffuse inside diffusers' pipelines.

    from undiffuse.diffusers import UndiffuseScheduler

    pipe.scheduler = UndiffuseScheduler.from_scheduler(pipe.scheduler, solver="dpmpp-2m")
    image = pipe(prompt, num_inference_steps=12).images[0]

diffusers is imported here and nowhere else in the library.
"""

from ..kernels.errors import MissingPackage

try:
    from .scheduler import StepOutput, UndiffuseScheduler
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "diffusers":
        raise
    raise MissingPackage(
        "undiffuse.diffusers needs the package diffusers: pip install diffusers"
    ) from error

__all__ = ["StepOutput", "UndiffuseScheduler"]


def __dir__() -> list[str]:
    return __all__
