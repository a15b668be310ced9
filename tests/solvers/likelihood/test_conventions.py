"""Bits/dim against the formulas of the codes whose conventions are named, written out here."""

import math

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.kernels import uniform
from undiffuse.models import Levels
from undiffuse.solvers import bits_per_dim

F64, D, C = torch.float64, 6, 0.2
TARGET = ud.targets.Gaussian(torch.zeros(D), C)
GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("lo", "offset"), [(-1.0, 7.0), (0.0, 8.0)])
def test_score_sde_s_bits_of_bytes(lo, offset):
    """(255 x + u)/256 for x = k/255 in [0, 1], scaled to [-1, 1] or not; -log2 p/d + 7, or + 8."""
    k = torch.randint(256, (20, D), generator=GENERATOR, dtype=torch.uint8)
    u = uniform(k.shape, 3, torch.arange(20), subdraw=3, dtype=torch.float32).double()
    y = (255 * (k.double() / 255) + u) / 256
    y = 2 * y - 1 if lo else y
    wanted = -TARGET.log_prob(y) / (D * math.log(2)) + offset
    found = bits_per_dim(
        TARGET.denoiser(ud.Flow()),
        k,
        Levels(256, (lo, 1.0), "bins"),
        dequantize="uniform",
        seed=3,
        rtol=1e-6,
        atol=1e-6,
    )
    torch.testing.assert_close(found.bits_per_dim, wanted, rtol=0, atol=1e-4)
    assert found.offset == offset


def vdm(x, count, gamma):
    """Bits/dim of levels x [B, D] by VDM's three terms in continuous time, exact over the noise,
    for the denoiser of N(0, C): f = 2 (x + 1/2)/count - 1, and its softmax over the levels."""
    values = 2 * (torch.arange(count, dtype=F64) + 0.5) / count - 1
    f = values[x.long()]
    z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(60))
    width = math.exp(0.5 * gamma[0])
    noisy = f[..., None] + width * z
    logits = -0.5 * ((noisy[..., None] - values) / width).square()
    own = torch.log_softmax(logits, -1).gather(
        -1, x.long()[..., None, None].expand(*noisy.shape, 1)
    )
    recon = -(own[..., 0] * w).sum(-1).sum(1) / w.sum()
    var1 = 1 / (1 + math.exp(-gamma[1]))
    klz = 0.5 * ((1 - var1) * f.square() + var1 - math.log(var1) - 1).sum(1)
    g = torch.linspace(*gamma, 4001, dtype=F64)
    s2 = torch.sigmoid(g)
    v = C * (1 - s2) + s2
    miss = D * (1 - s2 / v).square() + s2 * (1 - s2) / v.square() * f.square().sum(1)[:, None]
    diffusion = 0.5 * torch.trapezoid(miss, g)
    return (recon + klz + diffusion) / (D * math.log(2))


def test_vdm_s_bits_of_levels():
    """In the mean over 400 data within three errors, of 0.01 bits/dim; a decoder on levels that lie
    on the ends of the range is off by more than five."""
    x = torch.randint(2, 7, (400, D), generator=GENERATOR, dtype=torch.uint8)
    process = ud.VP()
    start = float(process.inverse_log_snr(torch.tensor(2.0, dtype=F64)))
    gamma = (-4.0, -2 * float(process.log_snr(process.t_max)))
    wanted = vdm(x, 9, gamma)
    off = []
    for convention in ("bins", "ends"):
        found = bits_per_dim(
            TARGET.denoiser(process),
            x,
            Levels(9, convention=convention),
            dequantize="none",
            by="elbo",
            decoder="vdm",
            steps=200,
            t_min=start,
            time="continuous",
        )
        error = float(found.std_error.square().sum().sqrt()) / 400
        assert "VDM's softmax" in found.convention and found.offset == 0
        off.append(float((found.bits_per_dim - wanted).mean().abs()) / error)
    assert error < 0.011 and off[0] < 3 and off[1] > 5
