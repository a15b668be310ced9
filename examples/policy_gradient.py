"""Policy gradients on a flow: a reward rises by the log-densities of the sampler's own steps.

    python examples/policy_gradient.py

A small network learns two clusters of points by flow matching. A reward then asks for points on the
right. Each step of the sampler is an action x' ~ N(mean, std^2) of a policy whose mean is the
network's. `Sampler.step_with_log_prob` draws and scores it; stored steps are scored again under the
changed network, and the clipped ratio of PPO (Schulman et al. 2017) with rewards relative to their
batch is followed, as in DDPO (Black et al. 2023) and Flow-GRPO (Liu et al. 2025). Noise is drawn in
the first steps alone (MixGRPO, Li et al. 2025): the others are those of the flow, and so are the
samples of the finished network, drawn without any noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import undiffuse as ud

STEPS, NOISY, BATCH = 8, 5, 256


class Velocity(nn.Module):
    """v(x, t) of points [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        return self.layers(torch.cat([x, t, (3 * t).sin(), (3 * t).cos()], 1))


def reward(x: Tensor) -> Tensor:
    """Between 0 and 1, the higher the further to the right."""
    return torch.sigmoid(4 * x[:, 0])


def pretrained(seed: int) -> Velocity:
    """A network that has learned two clusters, as many points in each."""
    torch.manual_seed(seed)
    net = Velocity()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(600):
        side = torch.randint(2, (BATCH, 1)) * 2.0 - 1.0
        data = torch.cat([side, torch.zeros_like(side)], 1) + 0.25 * torch.randn(BATCH, 2)
        t, noise = torch.rand(BATCH), torch.randn(BATCH, 2)
        x = (1 - t[:, None]) * data + t[:, None] * noise
        loss = (net(x, t) - (noise - data)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net


def improve(net: Velocity, iterations: int = 40, seed: int = 0) -> list[float]:
    """Follow the reward; its mean over the samples of each iteration."""
    model = ud.Denoiser(net, ud.Flow(), predicts="flow")
    inside, outside = ud.solvers.FlowSDE(noise_level=0.7), ud.solvers.DDIM()
    solver = ud.solvers.Within(inside, outside, window=(0, NOISY))
    sampler = ud.Sampler(model, solver, steps=STEPS, grid="uniform")
    optimiser, means = torch.optim.Adam(net.parameters(), 1e-3), []
    for i in range(iterations):
        with torch.no_grad():
            state, before, after = sampler.init((BATCH, 2), seed=1000 * seed + i), [], []
            while not state.done:
                step = sampler.step_with_log_prob(state, net(state.x_in, state.t_in))
                if bool(sampler.noisy[int(state.row[0])]):
                    before.append(state)
                    after.append(step)
                state = step.state
            gained = reward(state.x)
        means.append(float(gained.mean()))
        advantage = ((gained - gained.mean()) / (gained.std() + 1e-6)).repeat(len(before))
        # each step of this table stands alone: all of them are scored in one call
        steps, old = ud.Sampler.join(before), torch.cat([s.log_prob for s in after])
        next_x = torch.cat([s.state.x for s in after])
        for _ in range(4):
            out = net(steps.x_in, steps.t_in)
            new = sampler.step_with_log_prob(steps, out, next_x=next_x).log_prob
            ratio = (new - old).exp()
            clipped = ratio.clamp(0.8, 1.2)
            loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return means


def rewarded(net: Velocity, n: int = 2000) -> float:
    """The mean reward of samples without noise."""
    model = ud.Denoiser(net, ud.Flow(), predicts="flow")
    return float(reward(ud.sample(model, (n, 2), "ddim", steps=20, seed=99)).mean())


def main() -> None:
    """Print the reward before, during and after."""
    net = pretrained(0)
    print(f"reward before {rewarded(net):.3f}")
    for i, mean in enumerate(improve(net)):
        if i % 5 == 0:
            print(f"iteration {i:3d}: {mean:.3f}")
    print(f"reward after {rewarded(net):.3f}")


if __name__ == "__main__":
    main()
