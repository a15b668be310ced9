"""Posteriors of sbi beside ours of the same estimators: densities, samples, seconds.

    pip install 'undiffuse[peers]'
    python -P examples/sbi_posteriors.py --out bench/results

A posterior of two parameters from two observations, by FMPE and NPSE with the three processes, as
sbi trains them. log p is compared with sbi's own, which integrates with the exact trace; samples by
their mean and spread in units of theirs. Seconds are medians of three calls, in one process of one
thread. Writes sbi.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse.sbi import Posterior

ESTIMATORS = ("fmpe", "npse vp", "npse subvp", "npse ve")


def timed(call: Callable[[], Tensor], rounds: int = 3) -> tuple[Tensor, float]:
    """The first result, and the median of seconds."""
    found, took = None, []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        took.append(time.perf_counter() - start)
        found = result if found is None else found
    assert found is not None
    return found, statistics.median(took)


def trained(name: str, simulations: int, epochs: int) -> Any:
    """A posterior as sbi builds it."""
    from sbi.inference import FMPE, NPSE
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    prior = BoxUniform(-1 * torch.ones(2), 3 * torch.ones(2))
    theta = prior.sample((simulations,))
    x = theta + 0.3 * theta.flip(1).square() + 0.3 * torch.randn_like(theta)
    os.chdir(tempfile.mkdtemp())  # sbi logs to the folder that it stands in
    make = FMPE(prior) if name == "fmpe" else NPSE(prior, sde_type=name.split()[1])
    make.append_simulations(theta, x)
    return make.build_posterior(make.train(max_num_epochs=epochs))


def row(name: str, args: argparse.Namespace) -> str:
    """A line of the table."""
    theirs = trained(name, args.simulations, args.epochs)
    x = torch.tensor([[0.6, -0.4]])
    ours = Posterior(theirs)
    drawn, their_time = timed(lambda: theirs.sample((args.n,), x=x, show_progress_bars=False))
    mine, our_time = timed(lambda: ours.sample((args.n,), x=x))
    theta = drawn[:200]
    want, their_density = timed(lambda: theirs.log_prob(theta, x=x))
    got, our_density = timed(lambda: ours.log_prob(theta, x=x))
    fine = Posterior(theirs, method="augmented", rtol=1e-6, atol=1e-6).log_prob(theta, x=x)
    gap, fine_gap = (got - want).abs(), (fine - want).abs()
    shift = ((mine.mean(0) - drawn.mean(0)) / drawn.std(0)).abs().max()
    width = (mine.std(0) / drawn.std(0)).log().abs().max()
    cells = (
        name,
        f"{gap.mean():.4f} / {gap.max():.4f}",
        f"{fine_gap.mean():.4f} / {fine_gap.max():.4f}",
        f"{our_density:.2f} / {their_density:.2f}",
        f"{shift:.3f} / {width:.3f}",
        f"{our_time:.2f} / {their_time:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of sbi.md")
    parser.add_argument("--n", type=int, default=1000, help="samples")
    parser.add_argument("--simulations", type=int, default=2000, help="to train on")
    parser.add_argument("--epochs", type=int, default=30, help="at most")
    args = parser.parse_args()
    args.out = args.out.resolve()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import sbi

    about = (
        f"sbi {sbi.__version__}, torch {torch.__version__}, one thread; {args.n} samples, 200 "
        "densities; made by `examples/sbi_posteriors.py`. Ours are the defaults of "
        "`undiffuse.sbi.Posterior`; sbi's FMPE samples by its ODE, NPSE by 500 steps of its SDE."
    )
    titles = (
        "estimator",
        "log p by default: mean / max difference, nats",
        "log p at 1e-6",
        "seconds of log p, ours / theirs",
        "samples: shift / log width, in their spreads",
        "seconds of samples, ours / theirs",
    )
    table = "| " + " | ".join(titles) + " |"
    head = ("# sbi's posteriors, by sbi and by undiffuse", "", about, "", table, "|---" * 6 + "|")
    lines = [row(name, args) for name in ESTIMATORS]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "sbi.md").write_text("\n".join([*head, *lines]) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
