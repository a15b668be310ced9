"""A whole run as one module, and the loop in graphs: torch.export, torch.compile, ONNX."""

import pytest
import torch
from torch import nn

import undiffuse as ud
from undiffuse.solvers import GaussianPreconditioned, Statistics

DATA = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Element by element but for a label's embedding, so that bits can be asked for."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.e = nn.Embedding(4, 3)

    def forward(self, x, t, label=None):
        out = torch.sin(x) * self.w + 0.1 * t.to(x.dtype)[:, None]
        return out if label is None else out + self.e(label)


torch.manual_seed(0)
NET = Net().eval().requires_grad_(False)
CASES = {
    "multistep": (ud.VP(), "dpmpp-2m", {}),
    "index, clipped": (ud.VP(), "ddpm", {"time": "index", "steps": 1000, "clip": (-1.0, 1.0)}),
    "c_in": (ud.EDM(), "dpmpp-2m-sde", {"predicts": "edm"}),
    "entry": (ud.EDM(), "heun-churn", {"predicts": "edm"}),
    "two noises a row": (ud.VP(t_max=0.99), "seeds-3", {}),
    "default": (ud.VP.cosine(), "relay", {"predicts": "v"}),
    **{
        f"components, {kind}": (ud.VP(), GaussianPreconditioned(Statistics.of(DATA, kind)), {})
        for kind in ("full", "leading", "cosine")
    },
}


def sampler_of(case, dtype=None, net=NET):
    process, solver, options = CASES[case]
    model = ud.Denoiser(net, process, **{"predicts": "noise", **options})
    return ud.Sampler(model, solver, 5, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_module_has_the_bits_of_sample(case, dtype):
    sampler = sampler_of(case, dtype)
    module = sampler.module()
    ids = [4, 0, 7]
    x = module(*module.inputs((3, 3), 5, ids), cond={"label": torch.tensor([0, 3, 1])})
    cond = {"label": torch.tensor([0, 3, 1])}
    ours = ud.sample(
        sampler.model, (3, 3), sampler.tableau, seed=5, sample_ids=ids, cond=cond, dtype=dtype
    )
    assert x.dtype == ours.dtype == dtype and torch.equal(x, ours)


@pytest.mark.parametrize(
    "case",
    [
        "multistep",
        pytest.param("index, clipped", marks=pytest.mark.slow),
        pytest.param("components, leading", marks=pytest.mark.slow),
    ],
)
def test_torch_export_with_any_batch(case):
    """Exported once, for 2 samples, with the batch left open: equal for 5, in operators of aten
    alone, with the network's parameters among its own."""
    sampler = sampler_of(case)
    module = sampler.module()
    inputs, batch = module.inputs((2, 3), 1), torch.export.Dim("batch")
    shapes = ({0: batch}, {1: batch})[: len(inputs)]
    exported = torch.export.export(module, inputs, dynamic_shapes=shapes)
    calls = [n.target for n in exported.graph.nodes if n.op == "call_function"]
    assert not any(str(target).startswith("undiffuse") for target in calls)
    assert {tuple(p.shape) for p in exported.parameters()} == {(3,), (4, 3)}
    x = exported.module()(*module.inputs((5, 3), 9))
    ours = ud.sample(sampler.model, (5, 3), sampler.tableau, seed=9)
    assert torch.allclose(x, ours, rtol=1e-6, atol=1e-6)


def test_guidance_is_part_of_the_module():
    """Two calls at each time, weighed; `sample` weighs them inside its step: equal to rounding."""
    model = ud.Denoiser(NET, ud.VP(), predicts="noise")
    guided = ud.guidance.cfg(model, 2.0, uncond={"label": torch.tensor([3])})
    sampler = ud.Sampler(guided, "dpmpp-2m", 5)
    module, cond = sampler.module(), {"label": torch.tensor([0, 1, 2])}
    ours = ud.sample(guided, (3, 3), "dpmpp-2m", 5, seed=2, cond=cond)
    x = module(*module.inputs((3, 3), 2), cond=cond)
    assert torch.allclose(x, ours, rtol=1e-5, atol=1e-5 * ours.abs().max())
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        module,
        module.inputs((3, 3), 2),
        {"cond": cond},
        dynamic_shapes={"x_init": {0: batch}, "cond": {"label": {0: batch}}},
    )
    given = module.inputs((4, 3), 2), {"label": torch.tensor([0, 1, 2, 2])}
    assert torch.allclose(exported.module()(*given[0], cond=given[1])[:3], x, rtol=1e-5, atol=1e-5)


class Loop(nn.Module):
    """The loop of one who owns it."""

    def __init__(self, solver):
        super().__init__()
        self.net, self.sampler = NET, ud.Sampler(ud.VP(), solver, 4)

    def forward(self, x):
        state = self.sampler.init((2, 3), seed=3, x_init=x)
        while not state.done:
            state = self.sampler.tell(state, self.net(state.x_in, state.t_in))
        return state.x


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddpm"])
def test_the_operators_decompose(solver):
    """The loop exports with our operators in it, and without them after `run_decompositions`: the
    noise is drawn inside the graph, by PyTorch's integer operators."""
    loop = Loop(solver)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(loop, (x,))

    def ours(program):
        return {
            str(n.target)
            for n in program.graph.nodes
            if n.op == "call_function" and str(n.target).startswith("undiffuse")
        }

    assert ours(exported) == {"undiffuse.linear_step.default"}
    plain = exported.run_decompositions(ud.kernels.decompositions())
    assert not ours(plain)
    for program in (exported, plain):
        assert torch.allclose(program.module()(x), loop(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["multistep", "index, clipped", "two noises a row"])
def test_tell_compiles_once_for_all_rows(case):
    """15 rows and more, network and step in one graph, by torch's own counters."""
    process, solver, options = CASES[case]
    model = ud.Denoiser(NET, process, **{"predicts": "noise", **options})
    sampler = ud.Sampler(model, solver, 15)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(
        lambda s: sampler.tell(s, NET(s.x_in, s.t_in)), fullgraph=True, backend="eager"
    )
    state = plain = sampler.init((2, 3), seed=1)
    rows = 0
    with torch.no_grad():
        while not state.done:
            state, rows = step(state), rows + 1
            plain = sampler.tell(plain, NET(plain.x_in, plain.t_in))
    stats = torch._dynamo.utils.counters["stats"]
    assert rows == sampler.nfe >= 15 and stats["unique_graphs"] == 1
    assert torch.allclose(state.x, plain.x, rtol=1e-6, atol=1e-6)
    torch._dynamo.reset()


def test_gradients_flow_through_the_module():
    """d mean(x)/d w by autograd against central differences, float64: error O(h^2)."""
    net = Net().double()
    module = sampler_of("multistep", torch.float64, net).module()
    inputs = module.inputs((4, 3), 2)
    module(*inputs).mean().backward()
    found = net.w.grad[1].item()
    values = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            net.w[1] += h
            values.append(module(*inputs).mean().item())
            net.w[1] -= h
    assert abs(found - (values[0] - values[1]) / 2e-5) < 1e-6 * max(1, abs(found))


def test_what_does_not_fit_is_refused():
    noisy, ode = sampler_of("index, clipped").module(), sampler_of("multistep").module()
    x, noise = noisy.inputs((2, 3))
    for call, message in (
        (lambda: noisy(x), "noise must be given"),
        (lambda: noisy(x, noise[1:]), "noise must have shape"),
        (lambda: ode(x, noise), "noise must be left out"),
        (lambda: sampler_of("components, full").module()(x[:, :2]), "statistics are of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.peers
@pytest.mark.parametrize("case", ["multistep", "index, clipped", "components, cosine"])
def test_onnxruntime_gives_our_samples(case, tmp_path):
    """Another runtime rounds its own way: 1e-5 of the largest number."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    sampler = sampler_of(case)
    module = sampler.module()
    inputs, batch = module.inputs((2, 3), 1), torch.export.Dim("batch")
    labels = torch.tensor([1, 2])
    shapes = {"x_init": {0: batch}}  # in the order of the inputs: the exporter pairs them so
    shapes |= {"noise": {1: batch}} if module.draws else {}
    shapes |= {"cond": {"label": {0: batch}}}
    program = torch.onnx.export(
        module, inputs, kwargs={"cond": {"label": labels}}, dynamic_shapes=shapes, dynamo=True
    )
    program.save(tmp_path / "run.onnx")
    session = ort.InferenceSession(tmp_path / "run.onnx")
    labels = torch.tensor([0, 1, 2, 3, 0])
    given = (*module.inputs((5, 3), 8), labels)
    names = [i.name for i in session.get_inputs()]
    (x,) = session.run(None, {n: v.numpy() for n, v in zip(names, given, strict=True)})
    ours = ud.sample(sampler.model, (5, 3), sampler.tableau, seed=8, cond={"label": labels})
    assert (torch.from_numpy(x) - ours).abs().max() <= 1e-5 * max(1.0, ours.abs().max())


@pytest.mark.peers
def test_an_own_loop_goes_to_onnx(tmp_path):
    """By the decomposition of the step, which torch.onnx finds by itself."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    loop, x = Loop("dpmpp-2m"), torch.randn(2, 3)
    torch.onnx.export(loop, (x,), dynamo=True).save(tmp_path / "loop.onnx")
    session = ort.InferenceSession(tmp_path / "loop.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    ours = loop(x)
    assert (torch.from_numpy(found) - ours).abs().max() <= 1e-5 * max(1.0, ours.abs().max())
