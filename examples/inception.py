"""Inception-v3's 2048 pool features, as FID and KID are defined, through the libraries that have
them.

    undiffuse bench MODEL --metrics frechet,kid --features examples/inception.py:torch_fidelity

`torch_fidelity` is FID as it was first computed (its resizing is TensorFlow 1's); torchmetrics
takes its network from there. `clean_fid` resizes by PIL's bicubic filter (Parmar et al. 2022). Both
fetch the weights when they are first used. An image is [1 or 3, H, W] in [-1, 1]; it is handed over
as bytes, as a file of images would hold it, so what a sample has beyond the data's range is cut off
there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AT_A_TIME = 32
"""Images in the network at once: each is 299 x 299 there."""

Features = Callable[[Tensor], Tensor]


def as_bytes(x: Tensor) -> Tensor:
    """Images [n, 1 or 3, H, W] in [-1, 1] as uint8 [n, 3, H, W].

    Raises ValueError for other shapes.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            "Inception's features are of images [n, 1 or 3, H, W]; got samples of shape "
            f"{tuple(x.shape)}; name a function of yours instead (file.py:function)"
        )
    levels = ((x + 1) / 2 * 255).round().clamp(0, 255)
    return levels.to(torch.uint8).expand(-1, 3, -1, -1)


def torch_fidelity() -> Features:
    """Features [n, 2048] of images in [-1, 1]. Raises ImportError without torch-fidelity."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise ImportError(f"pip install torch-fidelity torchvision ({error})") from error
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()
    return _in_parts(lambda images: network(images)[0])


def clean_fid() -> Features:
    """The same of clean-fid. Raises ImportError without it."""
    try:
        from cleanfid.features import (
            build_feature_extractor,
        )
        from cleanfid.resize import build_resizer
    except ImportError as error:
        raise ImportError(f"pip install clean-fid torchvision ({error})") from error
    network = build_feature_extractor("clean", torch.device("cpu"), use_dataparallel=False)
    resize = build_resizer("clean")

    def seen(images: Tensor) -> Tensor:
        large = [torch.from_numpy(resize(x.permute(1, 2, 0).numpy())) for x in images]
        found: Tensor = network(torch.stack(large).permute(0, 3, 1, 2))
        return found

    return _in_parts(seen)


def _in_parts(network: Features) -> Features:
    def features(x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = torch.split(as_bytes(x.cpu()), AT_A_TIME)
            return torch.cat([network(part) for part in parts])

    return features
