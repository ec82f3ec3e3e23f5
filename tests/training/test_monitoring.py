"""Gradient flow and degrees, beside dense computations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import dense_gradients, pattern

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.errors import ParameterError
from largesparse.training.monitoring import GradientFlow, InputDegrees


def fit(callbacks, recipe="paper", epochs=3, seed=0):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((70, 9)).astype(np.float32)
    y = np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)]
    config = NetworkConfig((9, 12, 8, 2), epsilon=3.0, recipe=recipe, seed=seed)
    network = SparseMLP(config, progress=False)
    settings = {"epochs": epochs, "batch_size": 32, "standardize": False, "dropout": 0.3}
    trainer = Trainer(network, TrainingConfig(**settings, threads=1, backend="scipy"))
    trainer.fit(X, y, callbacks=callbacks(X, y), progress=False)
    return trainer, X, (y == "yes").astype(int)


@pytest.mark.parametrize("recipe", ["paper", "width"])
def test_gradient_flow_is_that_of_dense_backpropagation(recipe):
    flow = None

    def callbacks(X, y):
        nonlocal flow
        flow = GradientFlow(X, y)
        return [flow]

    trainer, X, y = fit(callbacks, recipe)
    table = flow.to_frame()
    assert table.index.tolist() == [1, 2, 3]
    # The last epoch does not evolve, so the network still is what was measured.
    gradients = dense_gradients(trainer.network, X, y)
    kept = [g[pattern(layer)] for g, layer in zip(gradients, trainer.network.layers, strict=True)]
    norms = [np.linalg.norm(g) for g in kept]
    last = table.iloc[-1]
    np.testing.assert_allclose(last[["norm_1", "norm_2", "norm_3"]], norms, rtol=1e-3)
    np.testing.assert_allclose(last["effective_gradient_flow"], np.mean(norms), rtol=1e-3)
    l1 = np.mean([np.abs(g).sum() for g in kept])
    np.testing.assert_allclose(last["effective_gradient_flow_l1"], l1, rtol=1e-3)
    assert last["gradient_flow"] > sum(norm**2 for norm in norms) * 0.999


def test_gradient_flow_finds_the_columns_of_a_frame():
    trainer, X, _ = fit(lambda X, y: [])
    trainer.network.feature_names = list("abcdefghi")
    y = np.where(X[:, 0] > 0, "yes", "no")
    shuffled = pd.DataFrame(X, columns=list("abcdefghi"))[list("ihgfedcba")]
    flows = [GradientFlow(inputs, y) for inputs in (X, shuffled)]
    for flow in flows:
        flow(trainer, trainer.history.epochs[-1])
    pd.testing.assert_frame_equal(*(flow.to_frame() for flow in flows))


def test_gradient_flow_is_the_first_order_decrease_of_the_loss():
    flow = None

    def callbacks(X, y):
        nonlocal flow
        flow = GradientFlow(X, y, every=3)
        return [flow]

    trainer, X, y = fit(callbacks)
    assert flow.to_frame().index.tolist() == [3]
    row = flow.to_frame().iloc[0]
    loss = trainer.evaluate(X, y.astype(np.int32))[0]
    assert row["loss"] == pytest.approx(loss, rel=1e-5)
    rate = 1e-2
    trainer.gradient(X, y.astype(np.int32), np.arange(len(y)), plain=True)
    for k, layer in enumerate(trainer.network.layers):
        layer.values -= rate * trainer.workspace.gradients[k]
        layer.bias -= rate * trainer.workspace.bias_gradients[k]
        layer.refresh()
    decrease = loss - trainer.evaluate(X, y.astype(np.int32))[0]
    assert decrease == pytest.approx(rate * row["gradient_flow"], rel=0.05)


def test_measuring_does_not_change_the_training():
    plain, *_ = fit(lambda X, y: [])
    watched, *_ = fit(lambda X, y: [GradientFlow(X, y), InputDegrees()])
    for one, other in zip(plain.network.layers, watched.network.layers, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    assert plain.history["loss"] == watched.history["loss"]


def test_degrees_are_counted():
    degrees = InputDegrees()
    trainer, *_ = fit(lambda X, y: [degrees])
    table = degrees.to_frame()
    assert table.index.tolist() == [1, 2, 3] and (table.sum(axis=1) == 9).all()
    expected = np.count_nonzero(pattern(trainer.network.layers[0]), axis=1)
    np.testing.assert_array_equal(degrees.degrees, expected)
    for degree, count in table.iloc[-1].items():
        assert count == np.count_nonzero(expected == degree)


def test_empty_tables_and_mistakes():
    assert len(InputDegrees().to_frame()) == 0
    assert len(GradientFlow(np.zeros((1, 2)), [0]).to_frame()) == 0
    for make in (lambda: InputDegrees(every=0), lambda: GradientFlow(None, None, every=0)):
        with pytest.raises(ParameterError, match="every"):
            make()
