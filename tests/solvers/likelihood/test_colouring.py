"""Flat events are coloured as what they are: lines, or images where the network says so."""

import pytest
import torch

import undiffuse as ud


class Linear(torch.nn.Module):
    """The noise that N(0, cov) data expect, of events of any shape with as many components."""

    def __init__(self, cov, process):
        super().__init__()
        self.process, (self.e, self.q) = process, torch.linalg.eigh(cov)

    def forward(self, x, t):
        alpha, sigma = self.process.alpha(t.double()), self.process.sigma(t.double())
        gain = sigma[:, None] / (alpha[:, None].square() * self.e + sigma[:, None].square())
        flat = x.flatten(1)
        return ((gain * (flat @ self.q)) @ self.q.T).reshape(x.shape)


@pytest.mark.parametrize("kind", ["line", "image"])
def test_a_flat_event_of_a_square_number_is_a_line_or_an_image(kind):
    """Smooth fields of 64 components, exp(-(i - j)^2/2 l^2) along the line, or along rows and along
    columns. A sample's probes follow from its colouring and its numbers alone: log p of each flat
    event is, to the last bits, that in its shape, or in the other where its first probes err.
    These err for few, and the error bars are smaller for it."""
    i, process = torch.arange(64), ud.VP()
    row, col = i // 8, i % 8
    place = {"line": [i], "image": [row, col]}[kind]
    square = sum((p[:, None] - p).square() for p in place).double()
    cov = torch.exp(-square / (2 * {"line": 3.0, "image": 1.0}[kind] ** 2)) + 0.01 * torch.eye(64)
    net = Linear(cov, process)
    model = ud.Denoiser(net, process, predicts="noise")
    root = torch.linalg.cholesky(cov)
    x = torch.randn(8, 64, dtype=torch.float64, generator=torch.manual_seed(0)) @ root.T
    shapes = {"line": (1, 64), "image": (8, 8)}
    flat = ud.log_prob(model, x)
    found = {n: ud.log_prob(model, x.reshape(8, *s)) for n, s in shapes.items()}
    equal = {n: torch.isclose(flat.log_prob, r.log_prob, rtol=1e-9) for n, r in found.items()}
    assert (equal["line"] ^ equal["image"]).all()
    assert equal[kind].sum() >= 6
    (other,) = (r for n, r in found.items() if n != kind)
    assert flat.std_error.square().mean() < other.std_error.square().mean()
