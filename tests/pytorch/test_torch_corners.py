"""What PyTorch's models do beside the ordinary: as with a dense layer, or refused by a sentence."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest

from largesparse import NetworkConfig, SparseMLP
from largesparse.errors import DataError, ParameterError

torch = pytest.importorskip("torch")

from torch.nn.utils import prune  # noqa: E402

from largesparse.torch import (  # noqa: E402
    AllReLU,
    Evolution,
    SparseLinear,
    convert,
    evolve,
    recording,
    to_dense,
    to_network,
    to_torch,
)

nn = torch.nn


def layer_of(n_in=30, n_out=6, seed=0, **options):
    return SparseLinear(n_in, n_out, density=0.3, seed=seed, **options)


@pytest.mark.parametrize("lead", [(4,), (2, 3)])
def test_an_input_that_is_trained_gets_its_gradient(lead):
    layer = layer_of()
    dense, found = layer.to_dense(), []
    x = torch.randn(*lead, 30)
    for module in (layer, dense):
        trained = nn.Parameter(x.clone())
        module(trained).square().sum().backward()
        found.append(trained.grad)
    torch.testing.assert_close(*found)
    weights = dense.weight.grad[layer.indices.long(), torch.from_numpy(layer.topology.rows())]
    torch.testing.assert_close(layer.values.grad, weights)


def test_memory_that_moves_is_found_again():
    layer = layer_of(300, 300)
    x = torch.randn(4, 300)
    expected = layer(x)
    layer.share_memory()
    assert layer.indices.is_shared()
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_networks_train_where_neither_tbb_nor_openmp_is(growth):
    code = (
        "import torch; from torch import nn; from largesparse.torch import *\n"
        "m = nn.Sequential(SparseLinear(20, 30, density=0.3), nn.ReLU(), SparseLinear(30, 4, "
        "density=0.5))\n"
        f"e = Evolution(m, every=1, growth={growth!r})\n"
        "m(torch.randn(5, 20)).sum().backward(); e.step()"
    )
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_an_activation_within_the_layer_grows_as_one_that_follows():
    inside = nn.Sequential(
        layer_of(60, 60, 1, activation=AllReLU(0.6, 2)), layer_of(60, 4, 2)
    )  # fmt: skip
    outside = nn.Sequential(layer_of(60, 60, 1), AllReLU(0.6, 2), layer_of(60, 4, 2))
    torch.manual_seed(0)
    x = torch.randn(16, 60)
    for model in (inside, outside):
        with recording(model):
            model(x).square().sum().backward()
        evolve(model, 0.3, growth="gradient")
    assert torch.equal(inside[0].indices, outside[0].indices)


def test_a_step_that_overflowed_loses_no_connections():
    layer = layer_of()
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(4, 30)).sum().backward()
    optimizer.step()
    before = layer.connections
    with recording(layer):
        (layer(torch.randn(4, 30)) * float("nan")).sum().backward()
    evolve(layer, 0.3, growth="gradient", optimizer=optimizer)
    assert layer.connections == before == len(optimizer.state[layer.values]["exp_avg"])


@pytest.mark.parametrize("replaced", [{"values": 10}, {"bias": 3}])
def test_parameters_of_another_size_are_refused(replaced):
    layer, (name, size) = layer_of(), *replaced.items()
    with pytest.raises(DataError, match="do not fit"):
        torch.func.functional_call(layer, {name: torch.zeros(size)}, (torch.ones(2, 30),))


def test_states_with_other_integers_are_taken_over():
    one, other = layer_of(seed=1), layer_of(seed=2)
    state = {k: v.long() if k.startswith("ind") else v for k, v in one.state_dict().items()}
    other.load_state_dict(state, assign=True)
    x = torch.randn(3, 30)
    torch.testing.assert_close(other(x), one(x))
    assert other.indices.dtype == torch.int32


def test_only_what_is_trained_evolves_with_all_of_its_state():
    frozen, trained = layer_of(20, 30, 1).requires_grad_(False), layer_of(30, 4, 2)
    model = nn.Sequential(frozen, trained)
    before = frozen.indices.clone()
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    assert set(evolve(model, 0.3, optimizer=optimizer)) == {"1"}
    assert torch.equal(frozen.indices, before)
    frozen.requires_grad_(True)
    with pytest.raises(ParameterError, match=r"values of the layers \['0'\]"):
        evolve(model, 0.3, optimizer=optimizer)
    with pytest.raises(ParameterError, match="none requires a gradient"):
        evolve(model.requires_grad_(False), 0.3)


def test_values_that_cannot_move_alone_are_refused():
    one = layer_of(20, 20)
    other = SparseLinear(20, 20, topology=one.topology)
    other.values = one.values
    with pytest.raises(ParameterError, match="share their values"):
        evolve(nn.Sequential(one, other), 0.3)
    pruned = layer_of()
    prune.l1_unstructured(pruned, "values", 0.2)
    with pytest.raises(ParameterError, match=r"prune\.remove"):
        evolve(pruned, 0.3)
    prune.remove(pruned, "values")
    evolve(pruned, 0.3)
    with torch.no_grad():
        pruned.values[0] = float("nan")
    with pytest.raises(ParameterError, match="not finite"):
        evolve(pruned, 0.3)


def test_copies_made_while_recording_do_not_record():
    from largesparse.torch import evolution

    model = nn.Sequential(layer_of())
    with recording(model):
        twin = copy.deepcopy(model)
    twin(torch.randn(2, 30)).sum().backward()
    assert twin[0] not in evolution._recorded


def test_recording_keeps_what_the_inputs_were():
    layers = [layer_of(), layer_of()]
    x = torch.randn(4, 30)
    for layer in layers:
        with recording(layer):
            layer(input=x).square().sum().backward()
        x = x.clone()
        if layer is layers[0]:
            kept = x.clone()
            x.fill_(0)
            x = kept
    for layer in layers:
        evolve(layer, 0.3, growth="gradient")
    assert torch.equal(layers[0].indices, layers[1].indices)


def test_a_transformer_is_evaluated():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    convert(encoder, density=0.3, include="*linear*")
    x = torch.randn(2, 5, 16)
    encoder.eval()
    with torch.inference_mode():
        found = encoder(x)
    expected = to_dense(encoder)(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("lead", [(4,), (2, 3)])
@pytest.mark.parametrize("last", [nn.ReLU(inplace=True), AllReLU()])
def test_outputs_may_change_in_place(lead, last):
    model = nn.Sequential(layer_of(), last)
    x = torch.randn(*lead, 30)
    y = model(x)
    shift = 0 if isinstance(last, nn.ReLU) else 1
    if shift:
        y += shift
    y.square().sum().backward()
    dense = to_dense(copy.deepcopy(model))
    dense.zero_grad()
    (dense(x) + shift).square().sum().backward()
    torch.testing.assert_close(model[0].bias.grad, dense[0].bias.grad)


def test_computed_weights_are_refused_and_hooks_stay():
    with pytest.raises(ParameterError, match="computes its weight or bias from others"):
        pruned = prune.l1_unstructured(nn.Linear(5, 6), "weight", 0.2)
        convert(nn.Sequential(pruned), density=0.3)
    called = []
    model = nn.Sequential(nn.Linear(5, 6))
    model[0].register_forward_hook(lambda *_: called.append(1))
    for change in (lambda m: convert(m, density=0.3), to_dense):
        change(model)(torch.randn(2, 5))
    assert len(called) == 2


def test_graphs_that_are_traced_compute_the_same():
    from torch.fx.experimental.proxy_tensor import make_fx

    layer, x = layer_of(), torch.randn(4, 30)
    with torch.no_grad():
        graph = make_fx(layer)(x)
        other = torch.randn(4, 30)
        torch.testing.assert_close(graph(other), layer(other))


def test_layers_without_data_are_refused():
    layer, x = layer_of(), torch.randn(4, 30)
    state = copy.deepcopy(layer.state_dict())
    expected = layer(x)
    layer.to("meta").to_empty(device="cpu")
    for name in ("indices", "to_output_order"):
        getattr(layer, name).fill_(2**30)
    with pytest.raises(DataError, match="Load a state by load_state_dict"):
        layer(x)
    layer.load_state_dict(state)
    assert torch.equal(layer(x), expected)


def test_strides_do_not_matter():
    layer = layer_of()
    columns = torch.randn(4, 30).t()
    found = torch.ops.largesparse.linear(columns, layer.values, layer.bias, *layer.pattern)
    torch.testing.assert_close(found.t(), layer(columns.t()))

    def unpack(tensor):
        return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        layer(columns.t()).square().sum().backward()
    kept = layer.values.grad.clone()
    layer.zero_grad()
    layer(columns.t()).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, kept)


def test_the_default_dtype_does_not_matter():
    torch.set_default_dtype(torch.float64)
    try:
        layer = layer_of(activation=AllReLU())
        layer(torch.randn(4, 30, dtype=torch.float32)).sum().backward()
        assert layer.bias.dtype == layer.bias.grad.dtype == torch.float32
        assert layer.to_dense()[0].weight.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_chain_keeps_its_recipe():
    for recipe in ("paper", "width"):
        layers = [layer_of(10, 20, recipe=recipe), nn.ReLU(), layer_of(20, 3, recipe=recipe)]
        assert to_network(nn.Sequential(*layers)).config.recipe == recipe


MISTAKES = {
    "until": lambda m: Evolution(m, until=-3),
    "growth": lambda m: Evolution(m, growth="foo"),
    "sparse": lambda m: Evolution(nn.Linear(2, 2)),
    "optimizer": lambda m: evolve(m, 0.3, optimizer="adam"),
    "drop": lambda m: evolve(m, 0.3, drop="x"),
    "zeta": lambda m: Evolution(m).load_state_dict({"steps": 1, "zeta": 7}),
    "seed": lambda m: convert(nn.Linear(3, 4), density=0.5, seed=-1),
    "typo": lambda m: convert(nn.Sequential(nn.Linear(3, 4)), density=0.5, include=["0", "typo"]),
    "finite": lambda m: convert(nn.Linear(3, 4).apply(fill), density=0.5),
    "dense tensor": lambda m: m([1, 2]),
    "sparse_coo": lambda m: m(torch.eye(30).to_sparse()),
}


def fill(module):
    module.weight.data.fill_(np.nan)


@pytest.mark.parametrize("word", MISTAKES)
def test_mistakes_are_named_before_anything_changes(word):
    with pytest.raises((ParameterError, DataError), match=word):
        MISTAKES[word](layer_of())


def test_layers_are_not_made_on_another_device():
    with torch.device("meta"), pytest.raises(ParameterError, match="default device is 'meta'"):
        layer_of()
    for use in (evolve, recording, to_dense):
        with pytest.raises(ParameterError, match=r"layer '0' is on 'meta'.*\.cpu"):
            found = use(nn.Sequential(layer_of()).to("meta"), *([0.3] if use is evolve else []))
            found.__enter__()


def test_evolving_without_gradients_leaves_what_trains():
    layer = layer_of()
    with torch.inference_mode():
        evolve(layer, 0.3)
    layer(torch.randn(3, 30)).sum().backward()
    assert layer.values.grad.shape == layer.values.shape


def test_a_shared_network_keeps_its_weights_where_another_topology_is_loaded():
    networks = [
        SparseMLP(NetworkConfig((20, 15, 3), density=0.3, seed=seed), progress=False)
        for seed in (0, 5)
    ]
    module, other = to_torch(networks[0], share=True), to_torch(networks[1])
    before = networks[0].layers[0].values.copy()
    module.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(networks[0].layers[0].values, before)
    x = torch.randn(4, 20)
    torch.testing.assert_close(module(x), other(x))
