"""SparseLinear and AllReLU next to masked dense layers, and what PyTorch does with modules."""

from __future__ import annotations

import copy
import gc
import os
import platform
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse.backends import operands
from largesparse.errors import DataError, ParameterError

torch = pytest.importorskip("torch")

from largesparse.model.topology import Topology  # noqa: E402
from largesparse.torch import AllReLU, SparseLinear, operators, parameter_groups, passes  # noqa: E402
from largesparse.torch import chain as chain_module  # noqa: E402

functional = torch.nn.functional


def dense_weight(layer, dtype=torch.float64):
    """W (out, in) of a layer as a leaf, without `SparseLinear.to_dense`."""
    weight = torch.zeros(layer.out_features, layer.in_features, dtype=dtype)
    indptr, indices = layer.indptr.tolist(), layer.indices.tolist()
    for i in range(layer.in_features):
        for k in range(indptr[i], indptr[i + 1]):
            weight[indices[k], i] = layer.values[k].item()
    return weight.requires_grad_()


def close(found, expected, rtol=1e-5):
    scale = expected.abs().max().item() if expected.numel() else 0
    np.testing.assert_allclose(
        found.detach().double(), expected.detach(), rtol=rtol, atol=rtol * max(scale, 1e-6)
    )


def compare(layer, lead, needed=(True, True, True), seed=0):
    """Compare outputs and gradients with a masked dense layer in float64."""
    torch.manual_seed(seed)
    x = torch.randn(*lead, layer.in_features, requires_grad=needed[0])
    layer.values.requires_grad_(needed[1])
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias).requires_grad_(needed[2])
    y = layer(x)
    weight, wide = dense_weight(layer), x.detach().double().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().double().requires_grad_()
    expected = functional.linear(wide, weight, bias)
    assert y.shape == expected.shape and y.dtype == torch.float32
    close(y, expected)
    if not any(needed):
        return
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    rows = torch.from_numpy(layer.topology.rows()).long()
    if needed[0]:
        close(x.grad, wide.grad)
    if needed[1]:
        close(layer.values.grad, weight.grad[layer.indices.long(), rows])
    if needed[2] and bias is not None:
        close(layer.bias.grad, bias.grad)


@settings(max_examples=30)
@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    lead=st.lists(st.integers(0, 9), max_size=3),
    density=st.floats(0.01, 1),
    needed=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    bias=st.booleans(),
    seed=st.integers(0, 100),
)
def test_gradients_equal_those_of_a_masked_dense_layer(sizes, lead, density, needed, bias, seed):
    layer = SparseLinear(*sizes, density=density, bias=bias, seed=seed)
    needed = (*needed[:2], needed[2] and bias)
    compare(layer, lead, needed, seed)


@pytest.mark.parametrize("lead", [(1,), (133,), ()])
@pytest.mark.parametrize("density", [0.02, 1.0])
def test_gradients_of_edge_shapes(lead, density):
    compare(SparseLinear(40, 90, density=density, seed=3), lead)
    compare(SparseLinear(1, 90, density=density, seed=3), lead)
    compare(SparseLinear(90, 1, density=density, seed=3), lead)


def test_a_layer_without_connections_returns_its_bias():
    layer = SparseLinear(4, 3, topology=torch.zeros(3, 4, dtype=torch.bool))
    compare(layer, (5,))


def test_rows_in_parts_have_the_same_gradients():
    compare(SparseLinear(1500, 3, density=1.0, seed=0), (20,))


def test_a_mask_and_a_topology_are_taken():
    mask = torch.rand(7, 5) < 0.4
    layer = SparseLinear(5, 7, topology=mask)
    assert torch.equal(layer.to_dense().weight != 0, mask)
    again = SparseLinear(5, 7, topology=layer.topology)
    assert torch.equal(again.to_dense().weight != 0, mask)


def test_a_layer_begins_as_that_of_a_network_with_its_seed():
    from helpers import make_network

    network = make_network((30, 20, 3), epsilon=4, seed=5)
    layer, first = SparseLinear(30, 20, epsilon=4, recipe="paper", seed=5), network.layers[0]
    np.testing.assert_array_equal(layer.values.detach(), first.values)
    np.testing.assert_array_equal(layer.topology.indices, first.topology.indices)


def test_pytorchs_generator_seeds_layers():
    torch.manual_seed(1)
    one, other = (SparseLinear(30, 20, density=0.2) for _ in range(2))
    torch.manual_seed(1)
    again = SparseLinear(30, 20, density=0.2)
    assert torch.equal(one.indices, again.indices) and torch.equal(one.values, again.values)
    assert one.random_state[0] != other.random_state[0]


def test_a_chain_copies_no_activations():
    first, second = SparseLinear(6, 8, density=0.5), SparseLinear(8, 4, density=0.5)
    hidden = AllReLU()(first(torch.randn(10, 6)))
    assert hidden.t().is_contiguous()
    columns = hidden.reshape(-1, 8).t().contiguous()
    assert columns.data_ptr() == hidden.data_ptr()
    assert second(hidden).view(2, 5, 4).shape == (2, 5, 4)
    assert first(torch.randn(2, 5, 6)).is_contiguous()


def test_weights_are_not_copied():
    layer = SparseLinear(6, 8, density=0.5)
    assert np.shares_memory(layer.record().values, layer.values.detach().numpy())
    layer.values.data.mul_(2)  # which autograd does not see
    compare(layer, (3,))


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("shape", [(50, 33), (4, 5, 7), (9,), (), (0, 4)])
def test_all_relu_is_the_papers(number, shape):
    alpha = -0.6 if number == 2 else 0.6
    z = torch.randn(shape, requires_grad=True)
    gradient = torch.randn(shape)
    a = AllReLU(0.6, number)(z)
    a.backward(gradient)
    assert torch.equal(a, torch.where(z > 0, z, alpha * z))
    assert torch.equal(z.grad, torch.where(z > 0, gradient, alpha * gradient))
    columns = z.detach().mT.contiguous().mT if len(shape) > 1 else z.detach()
    assert torch.equal(AllReLU(0.6, number)(columns), a)


def test_all_relu_drops_and_scales():
    layer = AllReLU(0.6, 2, dropout=0.25)
    z = torch.randn(300, 70, requires_grad=True)
    torch.manual_seed(3)
    a = layer(z)
    a.backward(torch.ones_like(a))
    kept = a != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    expected = torch.where(z > 0, z, -0.6 * z) / 0.75
    torch.testing.assert_close(a[kept], expected[kept])
    slope = torch.where(z > 0, 1.0, -0.6) / 0.75
    torch.testing.assert_close(z.grad, slope * kept)
    torch.manual_seed(3)
    assert torch.equal(layer(z), a)
    assert not torch.equal(layer(z), a)
    torch.testing.assert_close(layer.eval()(z), expected * 0.75)


# Of more axes the module that follows works on rows, so that its dropout draws other numbers.
@pytest.mark.parametrize(
    ("lead", "dropout"), [((40,), 0.0), ((40,), 0.3), ((3, 0), 0.0), ((2, 5), 0.0), ((), 0.0)]
)
def test_an_activation_within_the_layer_is_one_that_follows(lead, dropout):
    activation = AllReLU(0.6, 2, dropout)
    fused = SparseLinear(30, 20, density=0.2, activation=activation, seed=1)
    torch.nn.init.normal_(fused.bias)
    plain = SparseLinear(30, 20, density=0.2, seed=1)
    plain.load_state_dict(fused.state_dict())
    x, gradient = torch.randn(*lead, 30), torch.randn(*lead, 20)
    found = []
    for model in (fused, torch.nn.Sequential(plain, activation)):
        torch.manual_seed(5)
        own = x.clone().requires_grad_()
        y = model(own)
        y.backward(gradient)
        found.append([y, own.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    fused.eval()
    torch.testing.assert_close(fused.to_dense()(x), fused(x))
    with pytest.raises(ParameterError, match=r"'activation'.*must be an AllReLU"):
        SparseLinear(3, 3, density=0.5, activation=torch.nn.ReLU())


def chain(seed=0, dropout=0.0):
    return torch.nn.Sequential(
        SparseLinear(12, 30, epsilon=4, seed=seed),
        AllReLU(0.6, 2, dropout),
        SparseLinear(30, 5, epsilon=4, seed=seed + 1),
    )


def test_autocast_computes_in_bfloat16():
    torch.manual_seed(0)
    model, x = chain(), torch.randn(64, 12, requires_grad=True)
    expected = model(x)
    expected.square().sum().backward()
    gradients = [x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
    x.grad = None
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    y.float().square().sum().backward()
    for found, wanted in zip(
        [x.grad, *(p.grad for p in model.parameters())], gradients, strict=True
    ):
        assert found.dtype == torch.float32
        error = (found - wanted).norm() / wanted.norm()
        assert 0 < error < 0.08


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda layer, x: layer(x.double()), "takes float32. Got torch.float64"),
        (lambda layer, x: layer(x.bfloat16()), "takes float32. Got torch.bfloat16"),
        (lambda layer, x: layer(x.long()), "takes float32. Got torch.int64"),
        (lambda layer, x: layer(x[:, :3]), r"inputs of shape (..., 4). Got (2, 3)"),
        (lambda layer, x: layer(x[0, 0]), r"inputs of shape (..., 4). Got ()"),
        (lambda layer, x: layer(x.to("meta")), "on the CPU. Its inputs are on 'meta'"),
        (lambda layer, x: layer.double()(x), "must be float32. Got torch.float64"),
        (lambda layer, x: layer.to("meta")(x), "on the CPU. Its weights are on 'meta'"),
        (lambda layer, x: AllReLU()(x.double()), "Got torch.float64 on 'cpu'"),
    ],
)
def test_another_dtype_or_device_is_refused(use, message):
    with pytest.raises(DataError, match=re.escape(message)):
        use(SparseLinear(4, 3, density=0.5), torch.ones(2, 4))


def test_float16_autocast_is_refused():
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(DataError, match=r"bfloat16 under autocast. Got torch.float16"),
    ):
        SparseLinear(4, 3, density=0.5)(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give 'epsilon', 'density' or 'topology'"),
        ({"epsilon": 1, "density": 0.5}, "Give either 'epsilon' or 'density'"),
        ({"density": 0.5, "topology": torch.ones(3, 4, dtype=torch.bool)}, "not several"),
        ({"density": 1.5}, "'density'"),
        ({"topology": torch.ones(4, 3, dtype=torch.bool)}, r"shape \(3, 4\)"),
        ({"topology": Topology.from_cells(3, 4, np.arange(2))}, "from 4 inputs to 3"),
        ({"density": 0.5, "recipe": "deep"}, "'recipe'.*Got 'deep'"),
        ({"density": 0.5, "seed": -1}, "'seed'.*Got -1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ParameterError, match=message):
        SparseLinear(4, 3, **options)
    with pytest.raises(ParameterError, match=r"'in_features'.*Got 0"):
        SparseLinear(0, 3, density=0.5)


def test_second_derivatives_are_refused():
    model, x = chain(), torch.randn(3, 12, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(AllReLU()(x).sum(), x, create_graph=True)
    layer = SparseLinear(12, 4, density=0.5)
    y = operators.linear(x.t().contiguous(), layer.values, layer.bias, *layer.pattern)
    (gradient,) = torch.autograd.grad(y.sum(), layer.values, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()


def test_the_operators_are_whole():
    layer, x = SparseLinear(12, 4, density=0.5), torch.randn(12, 5, requires_grad=True)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(
        operators.linear, (x, layer.values, layer.bias, *layer.pattern), test_utils=tests
    )
    torch.library.opcheck(operators.activation, (x, 0.6, 1 << 16, None), test_utils=tests)
    y = operators.activation(x, 0.6, 1 << 16, None)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.where(x > 0, 1, 0.6))


def test_states_load_into_a_topology_of_another_size(tmp_path):
    model, x = chain(), torch.randn(6, 12)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = chain(seed=7)
    assert other[0].connections != model[0].connections
    parameter, loss = other[0].values, other(x).sum()
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(other(x), model(x)) and other[0].values is parameter
    assert other[0].random_state.tolist() == model[0].random_state.tolist()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # its graph is alive as the next one is made
    compare(other[0], (3,))
    assert set(model.state_dict()) == {
        f"{k}.{name}"
        for k in (0, 2)
        for name in ("values", "bias", "indptr", "indices", "random_state")
    }


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("indices", 0, 99, "an index is outside"),
        ("indptr", 3, 0, "indptr does not ascend"),
        ("indptr", -1, 5, "indptr does not ascend"),
    ],
)
def test_a_damaged_topology_is_not_loaded(name, place, value, message):
    state, model = chain().state_dict(), chain(seed=7)
    state[f"0.{name}"] = state[f"0.{name}"].clone()
    state[f"0.{name}"][place] = value
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)


def test_values_without_their_topology_are_not_loaded():
    state, model = chain().state_dict(), chain(seed=7)
    del state["0.indices"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.indices"):
        model.load_state_dict(state)
    state = chain().state_dict()
    state["0.values"] = state["0.values"][:-1]
    with pytest.raises(RuntimeError, match="values are not as many"):
        model.load_state_dict(state)


def test_layers_are_copied_and_saved_whole(tmp_path):
    model, x = chain(), torch.randn(6, 12)
    y = model(x)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    copied = copy.deepcopy(model)
    for each in (loaded, copied):
        assert torch.equal(each(x), y)
        with torch.no_grad():
            each[0].values.add_(1)
        assert not torch.equal(each(x), y) and torch.equal(model(x), y)


def test_gradient_checkpointing_and_clipping():
    from torch.utils.checkpoint import checkpoint

    model, x = chain(dropout=0.3), torch.randn(6, 12, requires_grad=True)
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(0)
        model.zero_grad()
        run(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *found))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    total = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert total == pytest.approx(0.1, rel=1e-4)


def test_parameter_groups_have_the_recipes_rates():
    layer = SparseLinear(1000, 10, density=0.1)
    model = torch.nn.Sequential(layer, torch.nn.Linear(10, 3))
    assert layer.rate_scale == pytest.approx(8 / 100)
    optimizer = torch.optim.SGD(parameter_groups(model, 0.5))
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[layer.values] == pytest.approx(0.04)
    assert {rate for p, rate in rates.items() if p is not layer.values} == {0.5}
    assert len(rates) == len(list(model.parameters()))


class Rows(torch.utils.data.Dataset):
    """Rows that a sparse layer computes in the worker."""

    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return 8

    def __getitem__(self, number):
        with torch.no_grad():
            return self.layer(torch.full((4,), float(number)))


def test_data_loaders_workers_compute():
    layer = SparseLinear(4, 3, density=0.5)
    expected = layer(torch.arange(8.0)[:, None].expand(8, 4))
    found = torch.cat(list(torch.utils.data.DataLoader(Rows(layer), 4, num_workers=2)))
    torch.testing.assert_close(found, expected)
    found.sum()
    layer(found @ torch.ones(3, 4)).sum().backward()


def test_threads_follow_pytorch_and_change_nothing():
    import numba

    layer, x = SparseLinear(300, 400, density=0.1), torch.randn(50, 300)
    before, seen = torch.get_num_threads(), []
    original = chain_module.kernel_threads
    try:
        chain_module.kernel_threads = lambda count: seen.append(count) or original(count)
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            layer.zero_grad()
            layer(x).square().sum().backward()
            found.append(layer.values.grad.clone())
    finally:
        chain_module.kernel_threads = original
        torch.set_num_threads(before)
    assert seen == sorted(seen) and set(seen) == {1, 2} and torch.equal(*found)
    assert numba.get_num_threads() == 1  # as tests/conftest.py has set it


def test_workspaces_are_one_a_layer_and_go_with_it():
    gc.collect()
    before = len(passes.workspaces)
    model, x = chain(), torch.randn(6, 12)
    for _ in range(3):
        model(x).sum().backward()
    assert len(passes.workspaces) == before + 2
    del model
    gc.collect()
    assert len(passes.workspaces) == before


KEEPS = """
import resource
import torch
import largesparse.torch.operators

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    three = [torch.zeros(17 * 2**18) for _ in range(3)]  # 51 MiB in all
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min([faults() for _ in range(10)][5:]))  # the heap has grown to its size by then
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has the thresholds")
@pytest.mark.parametrize("is_set", [False, True])
def test_memory_that_is_freed_is_kept_unless_the_environment_says_how(is_set):
    """Given back, the 51 MiB of a pass are 13,056 page faults; the environment asks for that."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "1048576"} if is_set else {}
    run = subprocess.run(
        [sys.executable, "-c", KEEPS], env=environment, capture_output=True, text=True, check=True
    )
    assert (int(run.stdout) > 5000) == is_set


def test_layers_whose_connections_int32_does_not_count_are_refused(monkeypatch):
    monkeypatch.setattr(operands, "MOST_INT32", 100)
    mask = torch.ones(40, 50, dtype=torch.bool)
    for how in ({"density": 0.5}, {"topology": mask}):
        with pytest.raises(ParameterError, match="SparseLinear takes at most 100 a layer"):
            SparseLinear(50, 40, **how)
