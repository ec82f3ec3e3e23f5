"""Gradients against dense float64 NumPy, PyTorch, finite differences and numbers by hand.

Dropout is random, so the references read which neurons were kept from the bits that the forward
pass stores for the backward pass; what they do with them is their own.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import backend_or_skip
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, random_array
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax
from sklearn.metrics import log_loss

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import BACKENDS, get_backend, operands
from largesparse.backends.operands import Connections, Derivative, Dropout
from largesparse.data.label_sets import check_label_sets
from largesparse.model.activations import ACTIVATIONS, TRAINED
from largesparse.model.layer import LayerConfig, SparseLayer
from largesparse.model.losses import softmax, softmax_cross_entropy
from largesparse.model.topology import Topology

ALPHA = 0.6
NAMES = ["all_relu", "leaky_relu", "linear", "relu"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return backend_or_skip(request.param)


def assert_close(actual, expected, tolerance=1e-5):
    """The largest error is at most `tolerance` of the largest number."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected)
    assert actual.shape == expected.shape
    if expected.size:
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max() + 1e-12


def network_of(sizes, *, seed=0, **options) -> SparseMLP:
    """A random network with random biases too, and an output layer that is not near zero."""
    network = SparseMLP(NetworkConfig(sizes, seed=seed, **options), progress=False)
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        layer.bias[:] = 0.3 * rng.standard_normal(layer.n_out)
    output = network.layers[-1]
    output.values *= 1 / max(np.abs(output.values).max(initial=0), 0.1)
    output.refresh()
    return network


def trainer_of(network, backend="scipy", **options) -> Trainer:
    options = {"dropout": 0.4, "batch_size": 64, "threads": 1, "seed": 3} | options
    return Trainer(network, TrainingConfig(backend=backend, **options))


def data_of(network, rows, seed=1):
    rng = np.random.default_rng(seed)
    n_features, *_, n_classes = network.config.layer_sizes
    X = rng.standard_normal((rows, n_features)).astype(np.float32)
    return X, rng.integers(n_classes, size=rows).astype(np.int32)


def kept(workspace, k, batch) -> np.ndarray:
    """Which neurons of hidden layer k dropout kept: bool (n_out, batch)."""
    words = np.ascontiguousarray(workspace.state(k, batch)).astype("<u4")
    either = words[:, 0] | words[:, 1]
    assert not (words[:, 0] & words[:, 1]).any()
    bits = np.unpackbits(either.view(np.uint8), axis=1, bitorder="little")
    assert not bits[:, batch:].any()
    return bits[:, :batch].astype(bool)


def masks_of(trainer, batch, dropout) -> list[np.ndarray]:
    """The factors of inverted dropout of every hidden layer, after a gradient."""
    hidden = range(len(trainer.network.layers) - 1)
    share = 1 - dropout
    # The share kept is a multiple of 2**-16.
    share = round(share * 2**16) / 2**16
    return [kept(trainer.workspace, k, batch) / share for k in hidden]


# The reference: dense and float64


def dense_weights(layer) -> np.ndarray:
    arrays = layer.values.astype(np.float64), layer.topology.indices, layer.topology.indptr
    return csr_matrix(arrays, shape=(layer.n_in, layer.n_out)).toarray()


def negative_slope(activation, number) -> float:
    """The left slope of layer `number`, the input being layer 1 (eq. 3 of the paper)."""
    if activation == "all_relu":
        return -ALPHA if number in (2, 4, 6, 8) else ALPHA
    return {"relu": 0.0, "leaky_relu": ALPHA, "linear": 1.0}[activation]


def dense_loss(weights, biases, X, y, masks, activation) -> float:
    """The mean cross-entropy of a dense network, samples in rows."""
    a = X.astype(np.float64)
    for k, (W, b) in enumerate(zip(weights, biases, strict=True)):
        z = a @ W + b
        if k < len(masks):
            a = np.where(z > 0, z, negative_slope(activation, k + 2) * z) * masks[k].T
    return -log_softmax(z, axis=1)[np.arange(len(y)), y].mean()


def dense_gradients(weights, biases, X, y, masks, activation):
    """The gradients of `dense_loss`: lists of dL/dW (n_in, n_out) and dL/db."""
    inputs, derivatives = [X.astype(np.float64)], []
    for k, (W, b) in enumerate(zip(weights, biases, strict=True)):
        z = inputs[-1] @ W + b
        if k < len(masks):
            slopes = np.where(z > 0, 1.0, negative_slope(activation, k + 2)) * masks[k].T
            derivatives.append(slopes)
            inputs.append(z * slopes)
    delta = (scipy_softmax(z, axis=1) - np.eye(z.shape[1])[y]) / len(y)
    weight_gradients, bias_gradients = [], []
    for k in reversed(range(len(weights))):
        weight_gradients.insert(0, inputs[k].T @ delta)
        bias_gradients.insert(0, delta.sum(axis=0))
        if k:
            delta = (delta @ weights[k].T) * derivatives[k - 1]
    return weight_gradients, bias_gradients


def last_inputs(weights, biases, X, y, masks, activation) -> np.ndarray:
    """The inputs of the output layer, samples in rows."""
    a = X.astype(np.float64)
    for k, (W, b) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        z = a @ W + b
        a = np.where(z > 0, z, negative_slope(activation, k + 2) * z) * masks[k].T
    return a


def centered(layer, inputs, weight_gradient, bias_gradient):
    """The gradients of z = Wᵀ(x - m) + c, taken back to W and b = c - Wᵀm.

    A step along them changes W by -r·s·G and c by -r·g, so b by -r·(g - s·Gᵀm), where s is the
    factor of the weights' learning rate.
    """
    mean = inputs.mean(axis=0)
    weight_gradient = weight_gradient - np.outer(mean, bias_gradient)
    weight_gradient *= dense_weights(layer) != 0
    return weight_gradient, bias_gradient - layer.config.rate_scale * weight_gradient.T @ mean


def at_connections(layer, gradient) -> np.ndarray:
    """The entries of a dense gradient where the layer has connections, in input order."""
    return gradient[layer.topology.rows(), layer.topology.indices]


def check_against_dense(trainer, X, y, dropout):
    network, rows = trainer.network, np.arange(len(y))
    loss = trainer.gradient(X, y, rows)
    masks = masks_of(trainer, len(y), dropout)
    weights = [dense_weights(layer) for layer in network.layers]
    biases = [layer.bias.astype(np.float64) for layer in network.layers]
    reference = weights, biases, X, y, masks, network.config.activation
    assert loss == pytest.approx(dense_loss(*reference), rel=1e-5)
    expected = zip(*dense_gradients(*reference), strict=True)
    for k, (weight_gradient, bias_gradient) in enumerate(expected):
        layer = network.layers[k]
        if layer.config.centered:
            outputs = last_inputs(*reference)
            weight_gradient, bias_gradient = centered(
                layer, outputs, weight_gradient, bias_gradient
            )
        assert_close(trainer.workspace.gradients[k], at_connections(layer, weight_gradient))
        assert_close(trainer.workspace.bias_gradients[k], bias_gradient)
    return masks


@pytest.mark.parametrize("dropout", [0, 0.4])
@pytest.mark.parametrize("recipe", ["paper", "width"])
@pytest.mark.parametrize("activation", NAMES)
def test_gradients_equal_dense_numpy(backend, activation, recipe, dropout):
    options = {"activation": activation, "alpha": ALPHA, "recipe": recipe}
    network = network_of((30, 40, 25, 35, 4), epsilon=4, **options)
    trainer = trainer_of(network, backend.name, dropout=dropout)
    masks = check_against_dense(trainer, *data_of(network, 45), dropout)
    for mask in masks:
        assert 0.45 < np.mean(mask > 0) < 0.75 if dropout else np.all(mask == 1)


def test_every_activation_is_checked():
    assert sorted(ACTIVATIONS) == sorted([*NAMES, *TRAINED])  # the latter: test_srelu


@pytest.mark.parametrize("sizes", [(20, 3), (20, 15, 3), (1, 1, 1, 1, 1, 1, 2), (3, 200, 2, 5)])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64])
def test_gradients_equal_dense_numpy_for_shapes(backend, sizes, rows):
    network = network_of(sizes, epsilon=2, alpha=ALPHA)
    check_against_dense(trainer_of(network, backend.name), *data_of(network, rows), 0.4)


@settings(max_examples=25, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    density=st.sampled_from([0.02, 0.2, 0.7, 1]),
    rows=st.integers(1, 64),
    name=st.sampled_from(BACKENDS),
    initializer=st.sampled_from(["he_uniform", "xavier", "normal"]),
    seed=st.integers(0, 1000),
)
def test_gradients_equal_dense_numpy_for_any_network(sizes, density, rows, name, initializer, seed):
    options = {"density": density, "initializer": initializer, "alpha": ALPHA, "seed": seed}
    network = network_of((*sizes, 3), **options)
    check_against_dense(
        trainer_of(network, backend_or_skip(name).name), *data_of(network, rows, seed), 0.4
    )


def test_gradients_do_not_change_the_network_or_the_data(backend):
    network = network_of((20, 15, 3), epsilon=3)
    X, y = data_of(network, 20)
    arrays = [X, y, *(a for n in network.layers for a in (n.values, n.bias, n.values_by_output))]
    before = [array.copy() for array in arrays]
    trainer_of(network, backend.name).gradient(X, y, np.arange(20))
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_rows_select_the_mini_batch(backend):
    network = network_of((20, 15, 3), epsilon=3)
    X, y = data_of(network, 50)
    rows = np.random.default_rng(0).permutation(50)[:17]
    one, other = (trainer_of(network, backend.name) for _ in range(2))
    one.gradient(X, y, rows)
    other.gradient(X[rows], y[rows], np.arange(17))
    for name in ("gradients", "bias_gradients"):
        pairs = zip(getattr(one.workspace, name), getattr(other.workspace, name), strict=True)
        for actual, expected in pairs:
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("sizes", [(301, 403, 205, 3), (2001, 2)])
@pytest.mark.parametrize("rows", [1, 37, 64])
def test_threads_do_not_change_the_gradients(backend, sizes, rows):
    network = network_of(sizes, epsilon=5)
    X, y = data_of(network, rows)
    results = []
    for threads in (1, 2, 3):
        trainer = trainer_of(network, backend.name, threads=threads)
        with backend.threads(threads):
            loss = trainer.gradient(X, y, np.arange(rows))
        results.append([loss, *trainer.workspace.gradients, *trainer.workspace.bias_gradients])
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


# PyTorch


@pytest.mark.parametrize("dropout", [0, 0.4])
@pytest.mark.parametrize("recipe", ["paper", "width"])
@pytest.mark.parametrize("activation", NAMES)
def test_gradients_equal_pytorch(backend, activation, recipe, dropout):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    options = {"activation": activation, "alpha": ALPHA, "recipe": recipe}
    network = network_of((30, 40, 25, 35, 4), epsilon=4, seed=2, **options)
    trainer = trainer_of(network, backend.name, dropout=dropout)
    X, y = data_of(network, 45)
    loss = trainer.gradient(X, y, np.arange(45))
    masks = [torch.from_numpy(mask.T) for mask in masks_of(trainer, 45, dropout)]

    weights = [torch.tensor(dense_weights(n), requires_grad=True) for n in network.layers]
    biases = [torch.tensor(n.bias.astype(np.float64), requires_grad=True) for n in network.layers]
    a = torch.from_numpy(X.astype(np.float64))
    for k, (W, b) in enumerate(zip(weights, biases, strict=True)):
        z = a @ W + b
        if k == len(masks):
            break
        if activation == "relu":
            a = functional.relu(z)
        elif activation == "leaky_relu":
            a = functional.leaky_relu(z, ALPHA)
        elif activation == "all_relu":
            sign = -1 if k in (0, 2) else 1
            a = functional.relu(z) - sign * ALPHA * functional.relu(-z)
        else:
            a = z
        a = a * masks[k]
    expected = functional.cross_entropy(z, torch.from_numpy(y.astype(np.int64)))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for k, layer in enumerate(network.layers):
        weight_gradient, bias_gradient = weights[k].grad.numpy(), biases[k].grad.numpy()
        if layer.config.centered:
            inputs = a.detach().numpy()
            weight_gradient, bias_gradient = centered(layer, inputs, weight_gradient, bias_gradient)
        assert_close(trainer.workspace.gradients[k], at_connections(layer, weight_gradient))
        assert_close(trainer.workspace.bias_gradients[k], bias_gradient)


# Finite differences


@pytest.mark.parametrize("dropout", [0, 0.4])
@pytest.mark.parametrize("activation", NAMES)
def test_gradients_equal_finite_differences(backend, activation, dropout):
    network = network_of((6, 7, 8, 3), density=0.5, activation=activation, alpha=ALPHA)
    trainer = trainer_of(network, backend.name, dropout=dropout)
    X, y = data_of(network, 11)
    trainer.gradient(X, y, np.arange(11))
    masks = masks_of(trainer, 11, dropout)
    weights = [dense_weights(layer) for layer in network.layers]
    biases = [layer.bias.astype(np.float64) for layer in network.layers]

    def difference(array, place):
        value, step = array[place], 1e-6
        losses = []
        for shifted in (value + step, value - step):
            array[place] = shifted
            losses.append(dense_loss(weights, biases, X, y, masks, activation))
        array[place] = value
        return (losses[0] - losses[1]) / (2 * step)

    for k, layer in enumerate(network.layers):
        cells = zip(layer.topology.rows(), layer.topology.indices, strict=True)
        gradient = np.array([difference(weights[k], cell) for cell in cells])
        assert_close(trainer.workspace.gradients[k], gradient)
        gradient = np.array([difference(biases[k], j) for j in range(layer.n_out)])
        assert_close(trainer.workspace.bias_gradients[k], gradient)


# By hand


def chain_of(weights, alpha=ALPHA, activation="all_relu") -> SparseMLP:
    """A chain of single neurons that ends in two outputs, the second without a connection."""
    config = NetworkConfig((*[1] * len(weights), 2), density=1, alpha=alpha, activation=activation)
    network = SparseMLP(config, progress=False)
    for layer, weight in zip(network.layers, weights, strict=True):
        layer.values[:] = [weight, 0][: layer.nnz]
        layer.refresh()
    return network


def test_all_relu_alternates_by_layer(backend):
    # z2 = -1 -> 0.6 (−α, layer 2);  z3 = -0.6 -> -0.36 (+α, layer 3)
    network = chain_of([1, -1, 1])
    trainer = trainer_of(network, backend.name, dropout=0)
    X, y = np.array([[-1]], dtype=np.float32), np.array([0], dtype=np.int32)
    loss = trainer.gradient(X, y, np.arange(1))
    assert trainer.workspace.activations(0, 1)[0, 0] == pytest.approx(0.6)
    np.testing.assert_allclose(trainer.workspace.activations(2, 1)[:, 0], [-0.36, 0], rtol=1e-6)
    wrong = 1 / (1 + math.exp(-0.36))  # probability of class 1
    assert loss == pytest.approx(-math.log(1 - wrong))

    output, second, first = -wrong, -wrong * 0.6, -wrong * 0.6 * -1 * -0.6  # dL/dz
    gradients, bias_gradients = trainer.workspace.gradients, trainer.workspace.bias_gradients
    np.testing.assert_allclose(gradients[2], [output * -0.36, wrong * -0.36], rtol=1e-6)
    np.testing.assert_allclose(gradients[1], [second * 0.6], rtol=1e-6)
    np.testing.assert_allclose(gradients[0], [first * -1], rtol=1e-6)
    np.testing.assert_allclose(bias_gradients[2], [output, wrong], rtol=1e-6)
    np.testing.assert_allclose(bias_gradients[1], [second], rtol=1e-6)
    np.testing.assert_allclose(bias_gradients[0], [first], rtol=1e-6)


@pytest.mark.parametrize(
    "activation, expected",  # of x = -1 through weights 1, 1, 1, the last of which is an output's
    [("all_relu", 0.6), ("relu", 0.0), ("leaky_relu", -0.36), ("linear", -1.0)],
)
def test_activations_by_hand(backend, activation, expected):
    trainer = trainer_of(chain_of([1, 1, 1], activation=activation), backend.name, dropout=0)
    trainer.workspace.inputs(1)[:] = -1
    for training in (True, False):
        logits = trainer.network.forward(trainer.workspace, 1, backend, training=training)
        assert logits[0, 0] == pytest.approx(expected)


def test_a_positive_input_passes_every_activation(backend):
    for activation in NAMES:
        trainer = trainer_of(chain_of([2, 3, 1], activation=activation), backend.name, dropout=0)
        trainer.workspace.inputs(1)[:] = 5
        assert trainer.network.forward(trainer.workspace, 1, backend)[0, 0] == 30


def test_input_and_output_layers_have_no_activation(backend):
    trainer = trainer_of(chain_of([1]), backend.name, dropout=0)  # inputs straight to outputs
    trainer.workspace.inputs(1)[:] = -1
    for training in (True, False):
        logits = trainer.network.forward(trainer.workspace, 1, backend, training=training)
        np.testing.assert_array_equal(logits[:, 0], [-1, 0])


def test_dropped_neurons_pass_nothing_either_way(backend):
    network = network_of((20, 30, 25, 3), density=1, activation="linear")
    trainer = trainer_of(network, backend.name, dropout=0.5)
    X, y = data_of(network, 1)
    passed = {}

    def visit(k, X, delta):
        passed[k - 1] = X[:, 0].copy()

    trainer.gradient(X, y, np.arange(1), visit=visit)
    workspace = trainer.workspace
    for k in (0, 1):
        dropped = ~kept(workspace, k, 1)[:, 0]
        assert 0 < dropped.sum() < len(dropped)
        np.testing.assert_array_equal(passed[k] == 0, dropped)
        np.testing.assert_array_equal(workspace.bias_gradients[k][dropped], 0)
        incoming = workspace.gradients[k].reshape(network.layers[k].n_in, -1)
        np.testing.assert_array_equal(incoming[:, dropped], 0)
        outgoing = workspace.gradients[k + 1].reshape(len(dropped), -1)
        np.testing.assert_array_equal(outgoing[dropped], 0)
        assert workspace.bias_gradients[k][~dropped].all()


# Micro-batches


@pytest.mark.parametrize("dropout", [0, 0.4])
@pytest.mark.parametrize("micro_batch", [1, 7, 20, 32, 33, 45, 49, 64, 100])
def test_micro_batches_add_up_to_the_whole(backend, micro_batch, dropout):
    options = {"dropout": dropout, "batch_size": 64}
    network = network_of((30, 40, 25, 4), epsilon=4)
    X, y = data_of(network, 50)
    parts = trainer_of(network, backend.name, micro_batch=micro_batch, **options)
    for step in (0, 3):  # at the second, the buffers of the parts hold another gradient
        rows = np.random.default_rng(step).permutation(50)
        losses = []
        whole = trainer_of(network, backend.name, **options)
        for trainer in (whole, parts):
            trainer.step_count = step
            losses.append(trainer.gradient(X, y, rows))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        for name in ("gradients", "bias_gradients"):
            pairs = zip(getattr(whole.workspace, name), getattr(parts.workspace, name), strict=True)
            for expected, actual in pairs:
                assert np.any(expected)
                assert_close(actual, expected, 2e-6)


def test_micro_batches_train_as_the_whole_does(backend):
    X, y = data_of(network_of((30, 40, 25, 4), epsilon=4), 70)
    values = []
    for micro_batch in (None, 9):
        trainer = trainer_of(
            network_of((30, 40, 25, 4), epsilon=4), backend.name, micro_batch=micro_batch
        )
        losses = [trainer.step(X, y, np.arange(k, k + 64)) for k in range(5)]
        values.append([*losses, *trainer.network.layers[0].values])
    assert_close(values[1], np.array(values[0]), 1e-5)


# Backends


def bound(A, X):
    """The size of the terms that a product sums: what its rounding errors are relative to."""
    return abs(A).astype(np.float64) @ np.abs(X).astype(np.float64)


@settings(max_examples=40)
@given(
    n_in=st.sampled_from([1, 2, 7, 40, 300]),
    n_out=st.sampled_from([1, 2, 7, 40, 300]),
    batch=st.sampled_from([1, 2, 31, 32, 33, 64]),
    density=st.sampled_from([0, 0.01, 0.1, 0.5, 1]),
    slope=st.sampled_from([-0.6, 0.0, 0.6, 1.0]),
    keep_below=st.sampled_from([1 << 16, 40_000]),
    seed=st.integers(0, 1000),
)
def test_mkl_equals_scipy(n_in, n_out, batch, density, slope, keep_below, seed):
    rng = np.random.default_rng(seed)
    W = csr_matrix(random_array((n_in, n_out), density=density, random_state=rng), dtype=np.float32)
    W.sort_indices()
    pattern = Topology.from_input_order(
        n_in, n_out, W.indptr.astype(np.int32), W.indices.astype(np.int32)
    )
    parameters = {"values": W.data, "bias": rng.random(n_out, dtype=np.float32) - 0.5}
    layer = SparseLayer(2, pattern, parameters, LayerConfig(slope))
    X = rng.standard_normal((n_in, batch), dtype=np.float32)
    D = rng.standard_normal((n_out, batch), dtype=np.float32)
    words = -(-batch // 32)
    below = (rng.random((n_in, words * 32)) < 0.5) & (np.arange(words * 32) < batch)
    bits = np.packbits(np.stack([below, ~below], axis=1), axis=2, bitorder="little")
    below = bits.view("<u4").astype(np.uint32)

    results = []
    for name in ("mkl", "scipy"):
        out = np.full((n_out, batch), np.nan, dtype=np.float32)
        state = np.full((n_out, 2, words), 0xFFFFFFFF, dtype=np.uint32)
        predicted = np.full_like(out, np.nan)
        gradient = np.full(layer.nnz, np.nan, dtype=np.float32)
        delta = np.full((n_in, batch), np.nan, dtype=np.float32)
        bias_gradient = np.full(n_in, np.nan, dtype=np.float32)
        backend = backend_or_skip(name)
        with backend.threads(1):
            by_output = pattern.indptr_by_output, pattern.indices_by_output, layer.values_by_output
            arguments = Connections(*by_output), layer.bias, X
            backend.forward(*arguments, slope=slope, out=predicted)
            dropout = Dropout(keep_below, seed, 0, 2, 0)
            backend.forward(*arguments, slope=slope, out=out, state=state, dropout=dropout)
            backend.backward(
                Connections(pattern.indptr, pattern.indices, layer.values),
                X,
                D,
                Derivative(np.float32(slope), dropout.keep_share, below),
                out_gradient=gradient,
                out_delta=delta,
                out_bias_gradient=bias_gradient,
                accumulate=False,
            )
        results.append((predicted, out, gradient, delta, bias_gradient))

    scale = 1e-5 * 2**16 / keep_below
    sums = bound(W.T, X) + np.abs(layer.bias[:, None])
    bounds = [
        1e-5 * sums,
        scale * sums,
        1e-5 * (np.abs(X).astype(np.float64) @ np.abs(D).T)[W.nonzero()],
        scale * bound(W, D),
        scale * bound(W, D).sum(axis=1),
    ]
    for mkl, scipy, allowed in zip(*results, bounds, strict=True):
        assert np.all(np.abs(mkl - scipy) <= allowed)


@pytest.mark.parametrize("density", [0.05, 1])
def test_mkl_trains_as_scipy_does(density):
    losses, values = [], []
    for name in ("mkl", "scipy"):
        network = network_of((30, 40, 25, 4), density=density)
        X, y = data_of(network, 64)
        trainer = trainer_of(network, backend_or_skip(name).name)
        losses.append([trainer.step(X, y) for _ in range(5)])
        values.append(np.concatenate([layer.values for layer in network.layers]))
    assert_close(losses[0], np.array(losses[1]))
    assert_close(values[0], values[1])


# The loss


@pytest.mark.parametrize("n_classes, batch", [(2, 1), (2, 50), (10, 33), (1000, 4), (1, 3)])
def test_cross_entropy_equals_scipy_and_sklearn(n_classes, batch):
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((n_classes, batch)).astype(np.float32)
    labels = rng.integers(n_classes, size=batch)
    before = logits.copy()
    loss, delta = softmax_cross_entropy(logits, labels)
    np.testing.assert_array_equal(logits, before)
    expected = -log_softmax(logits.astype(np.float64), axis=0)[labels, np.arange(batch)]
    assert loss == pytest.approx(expected.sum(), rel=1e-5, abs=1e-6)
    probabilities = scipy_softmax(logits.astype(np.float64), axis=0)
    if n_classes > 1:
        mean = log_loss(labels, probabilities.T, labels=np.arange(n_classes))
        assert loss / batch == pytest.approx(mean, rel=1e-5)
    assert delta.dtype == np.float32
    assert_close(delta, (probabilities - np.eye(n_classes)[:, labels]) / batch, 1e-6)
    np.testing.assert_allclose(softmax(logits), probabilities, rtol=1e-5)


def test_gradient_of_a_micro_batch_is_that_of_the_mean_over_the_mini_batch():
    logits = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    labels = np.arange(30) % 4
    loss, delta = softmax_cross_entropy(logits, labels)
    parts = [softmax_cross_entropy(logits[:, s], labels[s], 30) for s in (np.s_[:7], np.s_[7:])]
    assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(np.hstack([part[1] for part in parts]), delta, rtol=1e-6)


@pytest.mark.parametrize("size", [100, 1e4, 1e30])
def test_extreme_logits_stay_finite(size):
    logits = np.array([[size, -size, 0], [-size, size, 0], [0, 0, size]], dtype=np.float32)
    for labels, expected in (([0, 1, 2], 0), ([1, 0, 0], 5 * size), ([2, 2, 2], 2 * size)):
        loss, delta = softmax_cross_entropy(logits, np.array(labels))
        assert loss == pytest.approx(expected, rel=1e-6)
        assert np.isfinite(delta).all()
        expected_delta = (np.eye(3) - np.eye(3)[:, labels]) / 3
        np.testing.assert_allclose(delta, expected_delta, atol=1e-7)
    assert np.isfinite(softmax(logits)).all()


def test_equal_logits_by_hand():
    loss, delta = softmax_cross_entropy(np.full((4, 2), 7, dtype=np.float32), np.array([0, 3]))
    assert loss == pytest.approx(2 * math.log(4))
    quarter, rest = 1 / 8, -3 / 8
    np.testing.assert_allclose(
        delta, [[rest, quarter], [quarter, quarter], [quarter, quarter], [quarter, rest]]
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("n_in", "batch"), [(40, 3), (5, 70), (1, 128)])
def test_many_outputs_go_by_blocks_as_others_by_input(
    n_in, batch, accumulate, threads, monkeypatch
):
    from largesparse.backends import many_outputs

    monkeypatch.setattr(operands, "PREFETCH_BYTES", 0)
    n_out = 5000
    parts = operands.count_parts(n_in, n_out, batch)
    assert parts == 32
    assert operands.count_parts(n_in, n_out // 2, batch) == 0
    rng = np.random.default_rng(0)
    W = random_array((n_in, n_out), density=0.4, format="csr", dtype=np.float32, rng=rng)
    W.sort_indices()
    X, D = (rng.standard_normal((n, batch)).astype(np.float32) for n in (n_in, n_out))
    state = rng.integers(0, 2**32, (n_in, 2, -(-batch // 32)), dtype=np.uint32)
    state[:, 1] &= ~state[:, 0]
    low, high = (
        np.unpackbits(state[:, p].view(np.uint8), axis=1, bitorder="little")[:, :batch]
        for p in range(2)
    )
    gradient = np.ones(W.nnz, np.float32)
    delta, bias_gradient = np.empty_like(X), np.ones(n_in, np.float32)
    with get_backend("fused").threads(threads):
        many_outputs.backward_by_blocks(
            Connections(
                *(a.astype(t) for a, t in zip((W.indptr, W.indices, W.data), "iif", strict=True))
            ),
            X,
            D,
            Derivative(np.float32(0.3), np.float32(0.8), state),
            np.full((parts, n_in, batch), np.nan, np.float32),
            out_gradient=gradient,
            out_delta=delta,
            out_bias_gradient=bias_gradient,
            accumulate=accumulate,
        )
    rows = np.repeat(np.arange(n_in), np.diff(W.indptr))
    exact = D.astype(float)
    assert_close(gradient, (X[rows] * exact[W.indices]).sum(axis=1) + accumulate)
    expected = (W.astype(float) @ exact) * (0.3 * low + high) / 0.8
    assert_close(delta, expected)
    assert_close(bias_gradient, expected.sum(axis=1) + accumulate)


def test_a_network_of_many_labels_takes_the_same_step_by_blocks_and_by_input(monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((48, 10)).astype(np.float32)
    Y = check_label_sets(rng.random((48, 5000)) < 0.001)
    found = []
    for limit in (0, 2**40):
        monkeypatch.setattr(operands, "PREFETCH_BYTES", limit)
        network = network_of((10, 40, 5000), loss="binary_cross_entropy", recipe="width")
        trainer = trainer_of(network, "fused", batch_size=48, micro_batch=20)
        trainer.step(X, Y)
        assert (trainer.workspace.parts(1, 20) is None) == (limit > 0)
        found.append([layer.velocity for layer in network.layers])
    for block, row in zip(*found, strict=True):
        assert_close(block, row)
