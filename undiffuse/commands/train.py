"""Train a small network; a run that was killed goes on."""

from __future__ import annotations

import argparse

from .common import common, default, draw_picture, listed

KEPT = "the same command goes on from the last checkpoint in --out"


def options(p: argparse.ArgumentParser) -> None:
    from ..models import NETWORKS, PROCESSES
    from ..models.readout import READOUTS
    from ..models.training.train import OBJECTIVES, train
    from ..models.training.trainer import Settings

    own = Settings()
    p.add_argument("data", help="digits, .npz, .npy, idx, tensor file or image folder")
    p.add_argument(
        "--process",
        default="vp",
        help=f"of the noise: {listed(PROCESSES)}; learned: a schedule that is trained "
        "with the network",
    )
    p.add_argument("--predicts", default=default(train, "predicts"), help=listed(READOUTS))
    p.add_argument(
        "--loss", default=None, help=f"{listed(OBJECTIVES)}; default: uniform-snr, or learned"
    )
    p.add_argument("--network", default=default(train, "network"), help=listed(NETWORKS))
    p.add_argument("--width", type=int, default=None, help="of the network; default: its own")
    p.add_argument("--steps", type=int, default=own.steps, help="optimiser steps")
    p.add_argument("--batch", type=int, default=own.batch, help="events a step")
    p.add_argument("--lr", type=float, default=own.lr, help="peak learning rate")
    p.add_argument("--every", type=int, default=own.every, help="steps between checkpoints")
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
