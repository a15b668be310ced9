"""Traces and probes by algebra: unbiased, coloured, counter-based."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import undiffuse as ud
from undiffuse.models import jacobian as traces


def linear(matrix, shape=(2, 3), batch=4):
    """x and out = M x for a batch: the Jacobian is M for every sample."""
    x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.manual_seed(0))
    x.requires_grad_()
    return (x.flatten(1) @ matrix.T).reshape(x.shape), x


def test_exact_traces_whatever_the_chunk_and_the_network():
    m = torch.randn(6, 6, dtype=torch.float64, generator=torch.manual_seed(1))
    for chunk in (None, 1, 4, 6):
        out, x = linear(m)
        torch.testing.assert_close(traces.exact(out, x, chunk=chunk), m.trace().expand(4))

    class Square(torch.autograd.Function):  # no vmap rule: walked one product at a time
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    x = torch.rand(3, 5, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(traces.exact(Square.apply(x), x), 2 * x.detach().sum(1))


def test_variances_of_the_two_kinds_of_probe():
    """2 |offdiag(sym M)|^2 and 2 |sym M|^2, to 12 % with 20000 probes (4 deviations)."""
    m = torch.randn(6, 6, dtype=torch.float64, generator=torch.manual_seed(2)) + 2 * torch.eye(6)
    sym = 0.5 * (m + m.T)
    off = sym - torch.diag(sym.diag())
    x = torch.zeros(20000, 6, dtype=torch.float64)
    for kind, variance in (
        ("rademacher", 2 * off.square().sum()),
        ("gaussian", 2 * sym.square().sum()),
    ):
        v = traces.probes(kind, 1, x, seed=0)[0]
        forms = ((v @ m.T) * v).sum(1)
        assert abs(float(forms.mean() - m.trace())) < 5 * float((variance / 20000).sqrt())
        assert abs(float(forms.var() / variance) - 1) < 0.12


def test_probes_belong_to_their_samples():
    x = torch.zeros(3, 5)
    ids = torch.tensor([4, 1, 8])
    whole = traces.probes("rademacher", 3, x, 7, ids)
    assert torch.equal(traces.probes("rademacher", 2, x[[2]], 7, ids[[2]], 1), whole[1:, [2]])
    assert set(whole.unique().tolist()) == {-1.0, 1.0}
    assert traces.probes("gaussian", 1, x.double(), 0).dtype == torch.float64


@pytest.mark.parametrize("shape", [(6, 6), (3, 4, 4), (36,), (10,), (1, 1, 1)])
def test_colours_end_in_single_components(shape):
    labels, bits = traces.colours(shape)
    assert len(labels.unique()) == len(labels) and int(labels.max()) < 1 << bits


def test_colours_of_an_image_are_far_apart():
    """A checkerboard, then 2 x 2, then diagonal 4 x 4, then 4 x 4: squares of distances."""
    labels, _ = traces.colours((16, 16))
    index = torch.arange(256)
    where = torch.stack([index // 16, index % 16], 1)
    for m, distance in enumerate((2, 4, 8, 16), 1):
        same = (labels[:, None] & (1 << m) - 1) == (labels[None] & (1 << m) - 1)
        gaps = (
            (where[:, None] - where[None]).square().sum(2)[same & ~torch.eye(256, dtype=torch.bool)]
        )
        assert int(gaps.min()) == distance
    channels, _ = traces.colours((3, 4, 4))
    pixel = (channels & 15).reshape(3, 16)  # the first 4 bits: checkerboard, rows, channels
    assert all(len(set(pixel[:, i].tolist())) == 3 for i in range(16))


@pytest.mark.parametrize("shape", [(24,), (1, 24), (1, 1, 24)])
def test_colours_of_a_line_part_neighbours_first(shape):
    """Who shares a colour of 2^m is a multiple of 2^m apart: of an autoregressive field with
    correlation rho^|i - j| 2^m probes leave no pair nearer than that."""
    labels, bits = traces.colours(shape)
    apart = (torch.arange(24)[:, None] - torch.arange(24)).abs()
    for m in range(bits):
        same = (labels[:, None] ^ labels) & (1 << m) - 1 == 0
        assert torch.equal(same, apart % (1 << m) == 0)


def test_a_full_block_leaves_pairs_of_one_colour_only():
    """sum_i a_i = tr M + sum over same-coloured pairs, exactly, for every level of the block."""
    m = torch.randn(16, 16, dtype=torch.float64, generator=torch.manual_seed(3))
    labels, bits = traces.colours((4, 4))
    eps = traces.probes("rademacher", 1, torch.zeros(1, 16).double(), 5)[0, 0]
    for level in range(bits + 1):
        size = 1 << level
        v = torch.stack([eps * traces.walsh(k, labels) for k in range(size)])
        found = ((v @ m.T) * v).sum() / size
        same = ((labels[:, None] ^ labels[None]) & (size - 1)) == 0
        torch.testing.assert_close(found, (m * same * eps[:, None] * eps[None]).sum())
    torch.testing.assert_close(found, m.trace())  # the last level is exact


@pytest.mark.parametrize("shape", [(8, 8), (3, 4, 4), (20,)])
def test_what_levels_remove_of_a_field_that_falls(shape):
    """Row by row against the sums over all pairs: those that part at level m are removed there.
    Where nothing falls every level halves what is left, but for pairs that are not there."""
    labels, bits = traces.colours(shape)
    d = len(labels)
    found = traces.removed(shape)
    pair = labels[:, None] ^ labels
    steps = [0.0, *torch.logspace(-3, 1, 15).tolist()]
    side = shape[-1]
    where = torch.stack([(torch.arange(d) // side) % side, torch.arange(d) % side], 1).double()
    r = torch.cdist(where, where)
    for k in (0, 8, 15):
        square = (1 + steps[k] * r).pow(-2).fill_diagonal_(0)
        left = torch.stack([(square * ((pair & (1 << m) - 1) == 0)).sum() for m in range(bits + 1)])
        gone = (left[0] - left) / (left[0] - left[1])
        # 32 components stand for all: exact where all are alike, else to some per cent
        torch.testing.assert_close(found[k], gone, rtol=0.06, atol=0)
    halved = 2 * (1 - 0.5 ** torch.arange(bits + 1.0).double())
    torch.testing.assert_close(found[0, 1:3], halved[1:3], rtol=0.08, atol=0)


@pytest.mark.parametrize(("count", "least"), [(64, 1.0), (4, 1.1), (1, 1.2)])
def test_forward_mode_would_multiply_no_less(count, least):
    """jvp against vjp on the shipped network, one pass for the values and all products vectorised
    in either: the multiplications that torch's own counter finds. They are as many for all 64 unit
    probes and more for one; `exact` and `products` go backward for that reason."""
    model = ud.load_default().denoiser
    x = torch.zeros(2, 1, 8, 8)
    v = torch.eye(64)[:count].reshape(count, 1, 1, 8, 8).expand(-1, 2, -1, -1, -1)

    def net(x):
        return model.raw(x, torch.full((2,), 0.3))

    def counted(products):
        with FlopCounterMode(display=False) as counter:
            w = products()
        return w, counter.get_total_flops()

    def forward():
        with torch.no_grad():
            return torch.vmap(lambda tangent: torch.func.jvp(net, (x,), (tangent,))[1])(v)

    def backward():
        leaf = x.clone().requires_grad_()
        out = net(leaf)
        return torch.autograd.grad(out, leaf, v, is_grads_batched=True)[0]

    (ahead, more), (back, less) = counted(forward), counted(backward)
    i = torch.arange(count)
    torch.testing.assert_close(
        ahead.flatten(2)[i, :, i], back.flatten(2)[i, :, i], rtol=1e-4, atol=1e-5
    )
    assert more >= least * less, more / less


def test_a_network_without_a_gradient_is_named():
    x = torch.zeros(2, 3).requires_grad_()
    for call in (traces.exact, lambda out, x: traces.products(out, x, out[None])):
        with pytest.raises(ValueError, match="net's output has no gradient"):
            call(x.detach() * 2, x)
    with pytest.raises(ValueError, match="probe kind must be one of"):
        traces.probes("normal", 1, x, 0)
