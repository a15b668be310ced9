"""Guidance: functions Denoiser -> Denoiser, so that every solver takes the result."""

from .combine import autoguidance, cfg, cfgpp, classifier, threshold
from .posterior import inpaint, posterior

__all__ = ["autoguidance", "cfg", "cfgpp", "classifier", "inpaint", "posterior", "threshold"]


def __dir__() -> list[str]:
    return __all__
