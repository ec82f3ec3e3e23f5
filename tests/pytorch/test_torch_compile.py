"""torch.compile and torch.export keep the operators in their graphs."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")

from largesparse.torch import AllReLU, SparseLinear, evolve  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def chain(dropout=0.0):
    return torch.nn.Sequential(
        SparseLinear(12, 30, epsilon=4, seed=0),
        AllReLU(0.6, 2, dropout),
        torch.nn.LayerNorm(30),
        SparseLinear(30, 5, epsilon=4, seed=1),
    )


def gradients(model, run, x):
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_compiled_model_computes_the_same(dropout):
    torch._dynamo.reset()
    model, x = chain(dropout), torch.randn(2, 7, 12)
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(3):
        torch.manual_seed(0)
        expected = gradients(model, model, x)
        torch.manual_seed(0)
        found = gradients(model, compiled, x)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        evolve(model, 0.3)  # the graph has no topology of its own
    assert counter.frame_count == 1
    names = {str(node.target) for node in counter.graphs[0].graph.nodes}
    assert any("largesparse.linear" in name for name in names)


def test_the_default_compiler_keeps_the_layers():
    torch._dynamo.reset()
    model, x = chain(), torch.randn(7, 12)
    expected = gradients(model, model, x)
    failed = getattr(  # PyTorch 2.6 has the other
        torch._inductor.exc, "InductorError", torch._dynamo.exc.BackendCompilerFailed
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch 2.6 warns of its own settings
            found = gradients(model, torch.compile(model, fullgraph=True), x)
    except failed as error:  # it needs a C++ compiler
        pytest.skip(str(error))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_an_exported_model_has_shapes_and_computes():
    model, x = chain().eval(), torch.randn(7, 12)
    batch = torch.export.Dim("batch", min=2, max=100)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    (linear, *_) = [n for n in program.graph.nodes if "largesparse.linear" in str(n.target)]
    assert linear.meta["val"].shape[0] == 30
    other = torch.randn(20, 12)
    torch.testing.assert_close(program.module()(other), model(other))
