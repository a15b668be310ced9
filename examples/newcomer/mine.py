"""A network of one's own, in plain PyTorch: DDPM's betas, noise prediction, whole times.

`python mine.py FOLDER` trains it for some seconds on 8x8 digits, and writes held-out digits to
FOLDER as PNGs.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn

import undiffuse as ud

WEIGHTS = Path("mine.pt")
BETAS = torch.linspace(1e-4, 0.02, 1000)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = nn.Embedding(1000, 128)
        self.enter = nn.Linear(64, 128)
        self.body = nn.Sequential(
            nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()
        )
        self.leave = nn.Linear(128, 64)

    def forward(self, x, t):
        h = self.enter(x.flatten(1)) + self._at(t)
        return x + self.leave(h + self.body(h)).view_as(x)

    def _at(self, t):  # between the whole times of training the embedding is linear
        low = t.floor().clamp(0, 998)
        share = (t - low)[:, None].to(self.time.weight)
        return torch.lerp(self.time(low.long()), self.time(low.long() + 1), share)


def train(digits, steps=1500):
    torch.manual_seed(0)
    net, kept = Net(), torch.cumprod(1 - BETAS, 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        x = digits[torch.randint(len(digits), (128,))]
        t = torch.randint(1000, (128,))
        a, noise = kept[t].view(-1, 1, 1, 1), torch.randn_like(x)
        loss = (net(a.sqrt() * x + (1 - a).sqrt() * noise, t) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(net.state_dict(), WEIGHTS)


def model():
    """What the shell is told: the network, what it is, and what its data are."""
    net = Net()
    net.load_state_dict(torch.load(WEIGHTS))
    denoiser = ud.Denoiser(net, ud.VP.from_betas(BETAS), predicts="noise", time="index")
    return ud.models.Checkpoint(
        denoiser, event_shape=(1, 8, 8), data_range=(-1.0, 1.0), spacing=2 / 255
    )


if __name__ == "__main__":
    seen, held = ud.models.data.load("digits").split()
    train(seen.x)
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for i, x in enumerate(held.x[:24]):
        pixels = ((x[0] + 1) * 127.5).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
