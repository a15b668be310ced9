"""Densities of table rows: a published diffusion network beside a kernel density and a mixture.

    [UNDIFFUSE_DATA=folder] python examples/tabular_likelihood.py --out bench/results

Rows are high-entropy alloys, 13 features and a phase (P. Kumar's HEA-TabDDPM, MIT), each feature
made normal by its quantiles as its author does. log p(x | phase) comes of `ud.log_prob` with the
exact trace; log p(x) sums the phases with their shares of the training rows. The network's own
training rows are not published, so that it may have seen rows that are held out here; a network of
the same layers is therefore trained on the training rows alone. Anomalies are held-out rows whose
features are shuffled among the rows of their phase. Writes tabular-likelihood.md.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from published import CLASSES, AlloysNet, hea
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import QuantileTransformer
from torch import Tensor

import undiffuse as ud

PHASES = ("Im", "BCC_SS", "FCC_SS", "FCC_PLUS_BCC")
Score = Callable[[np.ndarray], np.ndarray]
"""Rows [n, 13] -> log p(x | phase), nats [n, 4]."""


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Features [n, 13], normal by their quantiles, and phases [n]."""
    folder = Path(os.environ.get("UNDIFFUSE_DATA", Path("..", "shared", "data")))
    with open(folder / "hea_tabddpm" / "Real_HEA_Data.csv") as file:
        table = list(csv.reader(file))[1:]
    x = np.array([[float(v) for v in row[1:]] for row in table])
    count = max(min(len(x) // 30, 1000), 10)
    normal = QuantileTransformer(n_quantiles=count, output_distribution="normal", random_state=0)
    return normal.fit_transform(x), np.array([PHASES.index(row[0]) for row in table])


def by_phase(fit: Callable[[np.ndarray], Callable], x: np.ndarray, y: np.ndarray) -> Score:
    """One estimator a phase."""
    each = [fit(x[y == k]) for k in range(CLASSES)]
    return lambda z: np.stack([score(z) for score in each], 1)


def kernel_density(x: np.ndarray) -> Callable:
    """Bandwidth by five-fold likelihood."""
    widths = {"bandwidth": np.geomspace(0.1, 1.5, 12)}
    return GridSearchCV(KernelDensity(), widths, cv=5).fit(x).best_estimator_.score_samples


def mixture(x: np.ndarray) -> Callable:
    """Full covariances, the number of components by five-fold likelihood."""
    counts = {"n_components": [1, 2, 3, 5, 8, 12, 20]}
    start = GaussianMixture(reg_covar=1e-3, random_state=0, n_init=2)
    return GridSearchCV(start, counts, cv=5).fit(x).best_estimator_.score_samples


def diffusion(model: ud.Denoiser) -> Score:
    """The flow's log p with the exact trace, every row under every phase."""

    def score(z: np.ndarray) -> np.ndarray:
        x = torch.tensor(z, dtype=torch.float32).repeat(CLASSES, 1)
        phase = torch.arange(CLASSES).repeat_interleave(len(z))
        found = ud.log_prob(model, x, trace="exact", cond={"y": phase}, rtol=1e-3, atol=1e-3)
        return found.log_prob.reshape(CLASSES, len(z)).T.numpy()

    return score


def trained(x: np.ndarray, y: np.ndarray, steps: int) -> ud.Denoiser:
    """The published layers on other rows: the average of the weights with the least error on a
    tenth of the rows that is kept out of the training."""
    torch.manual_seed(0)
    process, net = ud.VP.cosine(), AlloysNet()
    data, phase = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(data))
    kept, used = order[: len(data) // 10], order[len(data) // 10 :]
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    average, best = copy.deepcopy(net), (float("inf"), copy.deepcopy(net))

    def error(of: AlloysNet, some: Tensor) -> Tensor:
        index = torch.randint(1000, (len(some),))
        t = (index + 1).double() / 1000
        alpha, sigma = (f(t).float()[:, None] for f in (process.alpha, process.sigma))
        noise = torch.randn(len(some), 13)
        noisy = alpha * data[some] + sigma * noise
        return (of(noisy, index.float(), phase[some]) - noise).square().mean()

    for step in range(steps):
        optimizer.zero_grad()
        error(net, used[torch.randint(len(used), (256,))]).backward()
        optimizer.step()
        with torch.no_grad():
            for mean, new in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(new, 0.005)
            if step % 250 == 249:
                with torch.random.fork_rng():
                    torch.manual_seed(1)
                    now = float(error(average, kept.repeat(40)))
                if now < best[0]:
                    best = now, copy.deepcopy(average)
    net = best[1].eval().requires_grad_(False)
    return bounded(ud.Denoiser(net, process, predicts="noise", time="index", cond={"y": 0}))


def bounded(model: ud.Denoiser) -> ud.Denoiser:
    """With data predictions inside the range that the quantiles leave: rows far from a phase would
    otherwise be carried beyond all numbers, where alpha is 5e-5 and noise is all that is predicted.
    """
    return replace(model, clip=(-5.2, 5.2))


def line(name: str, score: Score, x: np.ndarray, y: np.ndarray, share: np.ndarray) -> str:
    """A row of the table."""
    began = time.perf_counter()
    generator, odd = np.random.default_rng(0), x.copy()
    for k in range(CLASSES):
        for j in range(x.shape[1]):
            odd[y == k, j] = generator.permutation(odd[y == k, j])
    logs = score(np.concatenate([x, odd]))
    given = logs[np.arange(len(logs)), np.concatenate([y, y])]
    marginal = np.logaddexp.reduce(logs + np.log(share), 1)
    anomaly = np.concatenate([np.zeros(len(x)), np.ones(len(x))])
    n = len(x)
    right = ((logs[:n] + np.log(share)).argmax(1) == y).mean()
    cells = [name]
    for log in (given, marginal):
        cells += [
            f"{-log[:n].mean():.2f} ± {log[:n].std() / n**0.5:.2f}",
            f"{-np.median(log[:n]):.2f}",
        ]
        cells += [f"{roc_auc_score(anomaly, -log):.3f}"]
    cells += [f"{right:.2f}", f"{time.perf_counter() - began:.1f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the table")
    parser.add_argument("--steps", type=int, default=6000, help="of training")
    args = parser.parse_args()
    x, y = rows()
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[len(x) // 5 :], order[: len(x) // 5]
    share = np.bincount(y[train], minlength=CLASSES) / len(train)
    scores = {
        "published network (may have seen these rows)": diffusion(bounded(hea().denoiser)),
        "the same layers, trained on the training rows": diffusion(
            trained(x[train], y[train], args.steps)
        ),
        "kernel density a phase": by_phase(kernel_density, x[train], y[train]),
        "Gaussian mixture a phase": by_phase(mixture, x[train], y[train]),
    }
    titles = (
        "density",
        "NLL given the phase, nats",
        "median",
        "anomalies found (AUC)",
        "NLL of the row alone, nats",
        "median",
        "anomalies found (AUC)",
        "phase right",
        "seconds",
    )
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, score in scores.items():
        lines.append(line(name, score, x[test], y[test], share))
        print(lines[-1], flush=True)
    head = (
        f"# Rows of a table: {len(test)} held-out alloys, {len(train)} to fit\n\n"
        "Made by `examples/tabular_likelihood.py`: exact traces, 13 features, tolerance 1e-3. "
        "Anomalies are as many held-out rows with their features shuffled within the phase.\n\n"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tabular-likelihood.md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
