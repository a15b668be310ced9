"""Memory of a run is written again only where nobody can reach it."""

import pytest
import torch

import undiffuse as ud
from undiffuse.kernels import buffers, warm_up
from undiffuse.kernels.buffers import MOST, WORTH, Spare

SHAPE = (2, 3, WORTH // 4)
HOLDERS = {
    "the tensor": lambda v: v,
    "a view": lambda v: v[0, 1:],
    "an alias without history": lambda v: v.detach(),
    "its data": lambda v: v.data,
    "its storage": lambda v: v.untyped_storage(),
    "a numpy array": lambda v: v.numpy(),
    "a tensor by dlpack": lambda v: torch.from_dlpack(v),
    "a list in a list": lambda v: [[v]],
    "what autograd saves": lambda v: (torch.ones_like(v, requires_grad=True) * v).grad_fn,
}


@pytest.mark.skipif(buffers.ALONE is None, reason="this torch does not count")
@pytest.mark.parametrize("how", HOLDERS)
def test_what_is_held_is_not_handed_out(how):
    spare, x = Spare(), torch.zeros(SHAPE)
    first = spare.like(x)
    address, held = first.data_ptr(), HOLDERS[how](first)
    del first
    second = spare.like(x)
    assert second.data_ptr() != address
    del held
    assert spare.like(x).data_ptr() == address
    assert spare.like(x[:1]).shape == x[:1].shape
    assert spare.like(x.double()).dtype == torch.float64


def test_few_tensors_are_kept():
    spare, x = Spare(), torch.zeros(SHAPE)
    held = [spare.like(x) for _ in range(2 * MOST)]
    assert len({v.data_ptr() for v in held}) == 2 * MOST
    assert len(spare._kept) == MOST


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-3m", "unipc-3", "ddpm", "heun"])
def test_nobody_sees_a_run_use_its_memory_again(solver):
    """A network that keeps and returns what it is shown, and a caller who keeps every state."""
    warm_up()
    kept, copies = [], []

    def net(x, t):
        kept.append(x)
        copies.append(x.clone())
        return x if len(kept) % 2 else 0.5 * x

    model = ud.Denoiser(net, ud.VP(), predicts="v")
    steps = []
    x = ud.sample(model, SHAPE, solver, 8, seed=1, callback=lambda s: steps.append(s))
    states = [(s.x, s.x.clone()) for s in steps]
    kept_run, copied = kept[:], copies[:]
    kept.clear()
    y = ud.sample(model, SHAPE, solver, 8, seed=1)
    assert torch.equal(x, y)
    for a, b in [*zip(kept_run, copied, strict=True), *states]:
        assert torch.equal(a, b)
    sampler = ud.Sampler(model, solver, 8)
    kept.clear()
    state = sampler.init(SHAPE, seed=1)
    while not state.done:
        state = sampler.tell(state, net(state.x_in, state.t_in))
    assert torch.equal(state.x, x)


def test_a_run_allocates_what_its_history_needs(monkeypatch):
    if not warm_up() or buffers.ALONE is None:
        pytest.skip("there is no compiled path here")
    made, own = [], torch.empty_like

    def counting(*args, **options):
        made.append(1)
        return own(*args, **options)

    monkeypatch.setattr(buffers.torch, "empty_like", counting)
    model = ud.Denoiser(lambda x, t: 0.5 * x, ud.VP(), predicts="v")
    sampler = ud.Sampler(model, "dpmpp-2m", 50)
    first = sampler.init(SHAPE)
    made.clear()
    with torch.no_grad():
        sampler.finish(first)
    assert len(made) <= 8  # x', D and x_in, of two rows, and what is in hand meanwhile; not 150
