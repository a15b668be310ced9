"""Train a small network; a run that was killed goes on."""

from __future__ import annotations

import argparse

from . import words
from .common import common, draw_picture, listed

KEPT = "the same command goes on from the last checkpoint in --out"
EXAMPLES = """\
  undiffuse train digits --steps 3000
  undiffuse train images/ --network unet --predicts v --out out/mine"""


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("data", help="digits, .npz, .npy, idx, tensor file or image folder")
    p.add_argument(
        "--process",
        default="vp",
        help=f"of the noise: {listed(words.PROCESSES)}; learned: a schedule that is trained "
        "with the network",
    )
    p.add_argument(
        "--predicts",
        default=words.TRAIN["predicts"],
        help=f"what the network predicts: {listed(words.READOUTS)}",
    )
    p.add_argument(
        "--loss", default=None, help=f"{listed(words.OBJECTIVES)}; default: uniform-snr, or learned"
    )
    p.add_argument("--network", default=words.TRAIN["network"], help=listed(words.NETWORKS))
    p.add_argument("--width", type=int, default=None, help="of the network; default: its own")
    p.add_argument(
        "--steps", type=int, default=words.TRAINING["steps"], help="steps of the optimiser"
    )
    p.add_argument(
        "--batch", type=int, default=words.TRAINING["batch"], help="samples of the data a step"
    )
    p.add_argument("--lr", type=float, default=words.TRAINING["lr"], help="peak learning rate")
    p.add_argument(
        "--every", type=int, default=words.TRAINING["every"], help="steps between checkpoints"
    )
    p.add_argument("--conditional", action="store_true", help="give the network the labels")
    p.add_argument("--restart", action="store_true", help="do not go on from --out")
    common(p, "out/train")


def run(args: argparse.Namespace) -> None:
    from ..models.checkpoint import load
    from ..models.training.train import train
    from ..solvers.sampling.sample import sample

    train(
        args.data,
        args.process,
        predicts=args.predicts,
        loss=args.loss,
        network=args.network,
        out=args.out,
        device=args.device,
        progress=True,
        resume=not args.restart,
        seed=args.seed,
        conditional=args.conditional,
        steps=args.steps,
        batch=args.batch,
        lr=args.lr,
        every=args.every,
        network_config={} if args.width is None else {"width": args.width},
    )
    loaded = load(args.out / "model.safetensors", args.device)
    if "held_out" in loaded.training:
        print(f"held-out loss: {loaded.training['held_out']:.4f}")
    print(f"network: {args.out / 'model.safetensors'}")
    shape = (32, *loaded.event_shape)
    x = sample(loaded.denoiser, shape, seed=args.seed, device=args.device).cpu()
    draw_picture(args.out / "samples.png", x, loaded, f"after {loaded.training['step']} steps")
