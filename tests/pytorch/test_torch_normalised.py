"""Batch normalisation, smoothed labels and averages beside PyTorch's own."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import make_trainer

from largesparse import predict_proba
from largesparse.errors import ParameterError

torch = pytest.importorskip("torch")

from largesparse.torch import to_network, to_torch  # noqa: E402

nn = torch.nn
DECAY, STEPS = 0.9, 20


def twins():
    """A trainer of a dense network, and the same in PyTorch."""
    trainer = make_trainer(
        (7, 16, 12, 4),
        density=1.0,
        batch_norm=True,
        activation="relu",
        batch_size=20,
        dropout=0.0,
        weight_decay=0.0,
        momentum=0.9,
        learning_rate=0.05,
        label_smoothing=0.1,
        average_decay=DECAY,
        backend="fused",
    )
    model = nn.Sequential()
    for layer in trainer.network.layers:
        is_output = layer.scale is None
        linear = nn.Linear(layer.n_in, layer.n_out, bias=is_output)
        linear.weight.data = torch.from_numpy(layer.values.reshape(layer.n_in, -1).T.copy())
        model.append(linear)
        if is_output:
            linear.bias.data.zero_()
        else:
            model.extend([nn.BatchNorm1d(layer.n_out), nn.ReLU()])
    return trainer, model


def assert_close(found, expected, tolerance=1e-5):
    expected = expected.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def test_training_is_that_of_pytorch():
    trainer, model = twins()
    averages = torch.optim.swa_utils.AveragedModel(
        model,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(DECAY),
        use_buffers=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    rng, first = np.random.default_rng(0), {}
    for step in range(STEPS):
        X = rng.standard_normal((20, 7)).astype(np.float32)
        y = rng.integers(4, size=20, dtype=np.int32)
        optimizer.zero_grad()
        loss = loss_function(model(torch.from_numpy(X)), torch.from_numpy(y).long())
        loss.backward()
        optimizer.step()
        averages.update_parameters(model)
        if step == 0:
            first = {name: array.clone() for name, array in model.state_dict().items()}
        assert trainer.step(X, y) == pytest.approx(loss.item(), rel=1e-5)

    # PyTorch's averages begin with the first weights; here that is corrected, and its running
    # variance with 1
    factor, total = DECAY**STEPS, 1 - DECAY**STEPS
    corrected = {
        name: (array - factor * first[name]) / total
        for name, array in averages.module.state_dict().items()
        if array.is_floating_point()
    }
    for k, layer in enumerate(trainer.network.layers):
        own = layer.moments["average"]
        linear, norm = f"{3 * k}.weight", f"{3 * k + 1}"
        assert_close(layer.values.reshape(layer.n_in, -1).T, model[3 * k].weight)
        assert_close(own["values"].reshape(layer.n_in, -1).T, corrected[linear], 1e-6)
        if layer.scale is None:
            assert_close(layer.bias, model[3 * k].bias)
            assert_close(own["bias"], corrected[f"{3 * k}.bias"], 1e-5)
            continue
        batch_norm = model[3 * k + 1]
        assert_close(layer.scale, batch_norm.weight)
        assert_close(layer.bias, batch_norm.bias)
        assert_close(layer.running[0], batch_norm.running_mean)
        assert_close(layer.running[1], batch_norm.running_var - 0.9**STEPS)
        assert_close(own["scale"], corrected[f"{norm}.weight"], 1e-6)
        assert_close(own["running"][0], corrected[f"{norm}.running_mean"])

    X = rng.standard_normal((50, 7)).astype(np.float32)
    reference = nn.Sequential(*model)
    for layer, norm in zip(trainer.network.layers, model[1::3], strict=False):
        norm.running_mean /= 1 - 0.9**STEPS
        norm.running_var.data = torch.from_numpy(layer.running[1] / layer.running[2])
    reference.eval()
    for layer in trainer.network.layers:
        layer.keep_moments_(["velocity"])  # predict by the weights
    expected = torch.softmax(reference(torch.from_numpy(X)), dim=1)
    assert_close(predict_proba(trainer.network, X), expected)


def test_a_module_has_the_folded_weights():
    trainer, _ = twins()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 7)).astype(np.float32)
    trainer.fit(X, rng.integers(4, size=60), progress=False)
    module = to_torch(trainer.network)
    found = torch.softmax(module(torch.from_numpy(X)), dim=1).detach().numpy()
    expected = predict_proba(trainer.network, X)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    back = to_network(module)
    assert not back.config.batch_norm
    np.testing.assert_allclose(predict_proba(back, X), expected, rtol=1e-5)
    with pytest.raises(ParameterError, match=r"'share'.*normalised"):
        to_torch(trainer.network, share=True)
