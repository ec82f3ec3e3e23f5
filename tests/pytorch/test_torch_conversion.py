"""Dense models to sparse ones, and networks to modules and back."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import make_network, make_trainer, normal_rows

from largesparse import predict_proba
from largesparse.errors import ParameterError

torch = pytest.importorskip("torch")

from largesparse.torch import (  # noqa: E402
    AllReLU,
    SparseLinear,
    convert,
    evolve,
    to_dense,
    to_network,
    to_torch,
)

nn = torch.nn


def block():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "attention": nn.Linear(8, 8),
            "mlp": nn.Sequential(nn.Linear(8, 40), nn.GELU(), nn.Linear(40, 8, bias=False)),
        }
    )


def test_the_largest_weights_stay():
    model = block()
    before, bias = model["mlp"][0].weight.detach().clone(), model["mlp"][0].bias
    assert convert(model, density=0.25, include="mlp.*") is model
    assert type(model["attention"]) is nn.Linear
    first, _, last = model["mlp"]
    assert isinstance(first, SparseLinear) and isinstance(last, SparseLinear)
    assert first.bias is bias and last.bias is None
    assert first.connections == round(0.25 * 320)
    weight = to_dense(first).weight
    kept = weight != 0
    assert torch.equal(weight[kept], before[kept])
    assert before[kept].abs().min() >= before[~kept].abs().max()


def test_dense_again_computes_the_same():
    model = convert(block(), epsilon=2, include=["mlp.0", "mlp.2"], keep="random", seed=1)
    x = torch.randn(5, 8)
    y = model["mlp"](x)
    again = convert(block(), epsilon=2, include=["mlp.0", "mlp.2"], keep="random", seed=1)
    assert torch.equal(again["mlp"](x), y)
    assert not torch.equal(model["mlp"][0].random_state, model["mlp"][2].random_state)
    to_dense(model)
    assert all(type(model["mlp"][k]) is nn.Linear for k in (0, 2))
    torch.testing.assert_close(model["mlp"](x), y)


def test_a_layer_by_itself_and_one_used_twice():
    assert isinstance(convert(nn.Linear(5, 4), density=0.5), SparseLinear)
    shared = nn.Linear(5, 5)
    model = convert(nn.Sequential(shared, nn.ReLU(), shared), density=0.5)
    assert model[0] is model[2] and isinstance(model[0], SparseLinear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.5, "include": "head"}, r"\['head'\], which no module is named like"),
        ({"density": 0.5, "keep": "best"}, "'keep'.*Got 'best'"),
        ({}, "Give either 'epsilon' or 'density'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ParameterError, match=message):
        convert(block(), **options)
    with pytest.raises(ParameterError, match="no SparseLinear"):
        to_dense(block())


def test_tied_weights_are_refused():
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embedding"].weight
    with pytest.raises(ParameterError, match="'head' shares its weight"):
        convert(model, density=0.5)


def outputs(model, X):
    with torch.no_grad():
        return torch.softmax(model(torch.from_numpy(X)), 1).numpy()


@pytest.mark.parametrize("activation", ["all_relu", "relu", "leaky_relu", "linear", "srelu"])
def test_networks_go_to_modules_and_back(activation):
    network, X = make_network(epsilon=4, activation=activation), normal_rows(9, 12)
    expected = predict_proba(network, X)
    module = to_torch(network)
    np.testing.assert_allclose(outputs(module, X), expected, rtol=1e-5, atol=1e-6)
    for back in (to_network(module), to_network(module.layers)):
        np.testing.assert_allclose(predict_proba(back, X), expected, rtol=1e-6)
        assert back.config.activation == activation
        assert back.layers[0].topology.indices.ctypes.data == module.layers[0].indices.data_ptr()
        assert not np.shares_memory(back.layers[0].values, module.layers[0].values.detach().numpy())


def test_shared_weights_follow_either_side():
    network, X = make_network(epsilon=4), normal_rows(90, 12)
    y = X[:, :3].argmax(axis=1)
    module = to_torch(network, share=True)
    assert np.shares_memory(network.layers[0].values, module.layers[0].values.detach().numpy())
    back = to_network(module.layers, share=True)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    loss = nn.functional.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(y))
    before = predict_proba(network, X)
    loss.backward()
    optimizer.step()
    after = outputs(module, X)
    assert np.abs(after - before).max() > 1e-3
    for each in (network, back):
        np.testing.assert_allclose(predict_proba(each, X), after, rtol=1e-5, atol=1e-6)
    trainer = make_trainer(backend="fused", dropout=0.0)
    trainer.network = network
    trainer.step(X[:32], y[:32])
    trained = predict_proba(network, X)
    assert np.abs(trained - after).max() > 1e-4
    np.testing.assert_allclose(outputs(module, X), trained, rtol=1e-5, atol=1e-6)
    evolve(module, 0.3)  # the module goes its own way
    np.testing.assert_array_equal(predict_proba(network, X), trained)


def test_names_of_classes_and_features_come_back():
    network = make_network(epsilon=4)
    network.classes = np.array(["cat", "dog", "owl"])
    network.feature_names = [f"feature {k}" for k in range(12)]
    back = to_network(to_torch(network))
    np.testing.assert_array_equal(back.classes, network.classes)
    assert back.classes is not network.classes
    assert back.feature_names == network.feature_names


@pytest.mark.parametrize(
    "modules",
    [
        (nn.Linear(3, 3),),
        (SparseLinear(3, 4, density=0.5), nn.GELU(), SparseLinear(4, 2, density=0.5)),
        (SparseLinear(3, 4, density=0.5), AllReLU(number=3), SparseLinear(4, 2, density=0.5)),
        (SparseLinear(3, 4, density=0.5), SparseLinear(5, 2, density=0.5)),
        (SparseLinear(3, 4, density=0.5), nn.ReLU()),
    ],
)
def test_what_is_no_network_is_refused(modules):
    with pytest.raises(ParameterError, match="Sequential"):
        to_network(nn.Sequential(*modules))
    with pytest.raises(ParameterError, match="Got Linear instead"):
        to_network(nn.Linear(3, 3))
