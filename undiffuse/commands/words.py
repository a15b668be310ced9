"""Names and defaults that the help says, so that no help waits for torch.

`tests/packaging/test_shell.py` holds each to the registry or the function that it is of.
"""

from typing import Any

SOLVER, GRID, STEPS = "relay", "blend", 20
LEARNED = "ddpm-learned"
MEASURED = ("equidistributed", "gits")
SHARDS = ["safetensors", "npz", "webdataset", "png"]
SAMPLE: dict[str, Any] = {
    "format": "safetensors",
    "batch": 256,
    "rows": 32,
    "threads": 1,
    "solver": "relay",
}
FORMATS = ("jsonl", "parquet")
FINALS = ("denoise", "zero", "t_min")
GRIDS = [
    "uniform",
    "quadratic",
    "log_snr",
    "exponential",
    "karras",
    "cosine",
    "laplace",
    "laplace-wide",
    "blend",
    "shifted",
    "beta",
    "linspace",
    "leading",
    "trailing",
    "ays-sd15",
    "ays-sdxl",
    "ays-svd",
    "oss-flux",
    "oss-wan",
]
PROCESSES = ["learned", "vp", "vp-cosine", "vp-betas", "subvp", "ve", "edm", "flow", "brownian"]
READOUTS = ["data", "noise", "score", "v", "flow", "edm"]
NETWORKS = ["mlp", "unet", "transformer"]
OBJECTIVES = [
    "simple",
    "likelihood",
    "snr",
    "min-snr",
    "edm",
    "flow",
    "uniform-snr",
    "vlb",
    "hybrid",
    "learned",
]
STATISTICS = ["full", "leading", "cosine", "diagonal", "scalar"]
TARGETS = [
    "digits64",
    "ring2",
    "moons",
    "spiral",
    "checkerboard",
    "images192",
    "images768",
    "stiff",
    "lognormal16",
]
MEASURES = [
    "error",
    "log_density_gap",
    "sw2",
    "w2",
    "w1",
    "energy",
    "mmd2",
    "kl",
    "reverse_kl",
    "js",
    "fisher",
    "modes",
    "frechet",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "weak_error",
]
LIBRARIES = ["diffusers", "k-diffusion", "published", "scipy", "torchdiffeq", "torchsde"]
TRAINING: dict[str, Any] = {"steps": 10_000, "batch": 256, "lr": 0.002, "every": 1000}
TRAIN = {"predicts": "edm", "network": "mlp"}
TUNE: dict[str, Any] = {"nfe": (8,), "starts": None, "iterations": 400, "calls": 6000}
STATISTIC = "leading"
TOLERANCE = 1e-3
BENCH: dict[str, Any] = {
    "nfe": (5, 8, 10, 15, 20, 30),
    "grids": ("log_snr", "laplace-wide", "laplace", "quadratic", "equidistributed"),
    "batch": 256,
    "large_batch": 16,
}
EXTRACTORS = ["torch-fidelity", "torchmetrics", "clean-fid"]
FID: dict[str, Any] = {
    "nfe": (5, 10, 20),
    "n": 5000,
    "protocols": ["edm"],
    "metrics": ["fid", "kid", "cmmd", "precision", "recall", "density", "coverage"],
    "default": ["fid", "kid", "precision", "recall", "density", "coverage"],
    "keep": 10_000,
    "batch": 256,
}
