"""Feature networks by name, for distances of features.

    torch-fidelity   Inception-v3's 2048 pool features, as FID was first computed (its resizing is
                     TensorFlow 1's)
    torchmetrics     the same weights, resized with antialiasing, as torchmetrics does by default
    clean-fid        the same weights after PIL's bicubic resizing (Parmar et al. 2022)
    hf:NAME          a vision network of `transformers`, by its name or folder: DINOv2's pooled
                     token, CLIP's image embedding at length 1 (which CMMD takes), ...
    components       the samples' own components
    file.py:function, package.module:function    one's own, see `metrics.load_features`

Weights are fetched by those libraries where they are not here yet. Images are [n, 1 or 3, H, W] in
[-1, 1]; they are handed over as bytes, as a file of images would hold them, so what a sample has
beyond the data's range is cut off there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidType, InvalidValue, MissingPackage, did_you_mean, optional
from .metrics import Features, load_features

AT_A_TIME = 32
"""Images in the network at once: each is 299 x 299 there."""


def extractor(features: str | Features | None, device: str | None = None) -> Features | None:
    """What takes the features: a network by name, on the device; None: the components.

    Raises ValueError for an unknown name, ImportError for a library that is not installed, and
    TypeError for what is no callable.
    """
    if features is None or features == "components":
        return None
    if isinstance(features, str):
        if features.startswith("hf:"):
            return _transformers(features[3:], device)
        if features in EXTRACTORS:
            return EXTRACTORS[features](device)
        if ":" not in features:
            raise InvalidValue(
                f"features must be one of components, {', '.join(EXTRACTORS)}, hf:NAME, "
                f"file.py:function or package.module:function; got {features!r}"
                f"{did_you_mean(features, EXTRACTORS)}"
            )
        return load_features(features)
    if not callable(features):
        raise InvalidType(f"features must be a name or a callable; got {type(features).__name__}")
    return features


def as_bytes(x: Tensor) -> Tensor:
    """Images [n, 1 or 3, H, W] in [-1, 1] as uint8 [n, 3, H, W].

    Raises ValueError for other shapes.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InvalidValue(
            "features of a vision network are of images [n, 1 or 3, H, W]; got samples of shape "
            f"{tuple(x.shape)}; name a function of yours instead (file.py:function)"
        )
    levels = ((x + 1) / 2 * 255).round().clamp(0, 255)
    return levels.to(torch.uint8).expand(-1, 3, -1, -1)


def torch_fidelity(device: str | None = None) -> Features:
    """Features [n, 2048] of images in [-1, 1]. Raises ImportError without torch-fidelity."""
    module = "torch_fidelity.feature_extractor_inceptionv3"
    made = optional(module, "pip install torch-fidelity torchvision").FeatureExtractorInceptionV3
    network = made("inception-v3-compat", ["2048"])
    network = network.eval().to(device or "cpu")
    return _in_parts(lambda images: network(images)[0], device)


def torchmetrics(device: str | None = None) -> Features:
    """The same weights as torchmetrics asks them by default, images resized with antialiasing.

    Raises ImportError without it and torch-fidelity.
    """
    module = optional("torchmetrics.image.fid", "pip install torchmetrics torch-fidelity")
    network = module.NoTrainInceptionV3("inception-v3-compat", ["2048"]).eval()
    network = network.to(device or "cpu")
    return _in_parts(network, device)


def clean_fid(device: str | None = None) -> Features:
    """The same of clean-fid. Raises ImportError without it."""
    words = "pip install clean-fid torchvision"
    on = torch.device(device or "cpu")
    features = optional("cleanfid.features", words)
    network = features.build_feature_extractor("clean", on, use_dataparallel=False)
    resize = optional("cleanfid.resize", words).build_resizer("clean")

    def seen(images: Tensor) -> Tensor:
        large = [torch.from_numpy(resize(x.permute(1, 2, 0).cpu().numpy())) for x in images]
        found: Tensor = network(torch.stack(large).permute(0, 3, 1, 2).to(on))
        return found

    return _in_parts(seen, device)


def _transformers(name: str, device: str | None) -> Features:
    """Image embeddings at length 1 where the network has them, else the pooled output."""
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel
    except ImportError as error:
        raise MissingPackage(f"hf:{name} needs transformers: pip install transformers") from error
    contrastive = hasattr(AutoConfig.from_pretrained(name), "vision_config")
    if contrastive:
        from transformers import CLIPVisionModelWithProjection

        network: Any = CLIPVisionModelWithProjection.from_pretrained(name)
    else:
        network = AutoModel.from_pretrained(name)
    network = network.eval().to(device or "cpu")
    processor = AutoImageProcessor.from_pretrained(name)
    told = getattr(processor, "crop_size", None) or processor.size
    side = told.get("height") or told["shortest_edge"]
    mean, std = (
        torch.tensor(v, device=device or "cpu")[:, None, None]
        for v in (processor.image_mean, processor.image_std)
    )

    def seen(images: Tensor) -> Tensor:
        # the whole image at the network's size, not the middle of it: as CMMD's authors do
        x = torch.nn.functional.interpolate(
            images.float() / 255, (side, side), mode="bicubic", antialias=True
        )
        out = network(pixel_values=(x.clamp(0, 1) - mean) / std)
        if contrastive:
            embedded: Tensor = torch.nn.functional.normalize(out.image_embeds, dim=1)
            return embedded
        pooled = getattr(out, "pooler_output", None)
        found: Tensor = out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return found

    return _in_parts(seen, device)


def _in_parts(network: Features, device: str | None) -> Features:
    def features(x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = torch.split(as_bytes(x.to(device or "cpu")), AT_A_TIME)
            return torch.cat([network(part) for part in parts])

    return features


EXTRACTORS: dict[str, Callable[[str | None], Features]] = {
    "torch-fidelity": torch_fidelity,
    "torchmetrics": torchmetrics,
    "clean-fid": clean_fid,
}
"""Networks by name; each takes the device."""
