"""Momentum SGD by hand-computed numbers, and the learning-rate schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends.kernels import momentum_update
from largesparse.backends.operands import SGD
from largesparse.errors import ParameterError
from largesparse.machine.threads import kernel_threads
from largesparse.model.layer import LayerConfig, SparseLayer
from largesparse.model.optimizer import SCHEDULES, MomentumSGD, ScheduleConfig
from largesparse.model.topology import Topology

TINY = np.finfo(np.float32).tiny  # smallest normal number


@pytest.fixture
def one_thread():
    with kernel_threads(1):  # so small a layer is quicker without others
        yield


def layer_of(values, bias=0.0, **options) -> SparseLayer:
    """A layer with one weight per neuron; in output order the weights are reversed."""
    n = len(values)
    topology = Topology.from_input_order(
        n, n, np.arange(n + 1, dtype=np.int32), np.arange(n, dtype=np.int32)[::-1].copy()
    )
    parameters = {"values": floats(values), "bias": np.full(n, bias, np.float32)}
    return SparseLayer(2, topology, parameters, LayerConfig(0.0, **options))


def floats(numbers) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def gradients(values, bias) -> dict[str, np.ndarray]:
    return {"values": np.asarray(values, np.float32), "bias": np.asarray(bias, np.float32)}


# The update


def test_update_by_hand(one_thread):
    layer = layer_of([1.0, -2.0, 0.0], bias=3.0)
    layer.velocity[:] = [0.5, 0.0, -1.0]
    layer.bias_velocity[:] = -0.4
    sgd = MomentumSGD(momentum=0.9, weight_decay=0.01)
    gradient, bias_gradient = floats([2.0, 0.0, -1.0]), floats([1.0, 1.0, 1.0])
    sgd.update_(layer, gradients(gradient, bias_gradient), 0.1)
    # v = 0.9·0.5 - 0.1·2 = 0.25;  w = 1 + 0.25 - 0.01·1
    np.testing.assert_allclose(layer.velocity, [0.25, 0.0, -0.8], rtol=1e-6)
    np.testing.assert_allclose(layer.values, [1.24, -1.98, -0.8], rtol=1e-6)
    # v = 0.9·-0.4 - 0.1·1 = -0.46;  b = 3 - 0.46 - 0.01·3
    np.testing.assert_allclose(layer.bias_velocity, -0.46, rtol=1e-6)
    np.testing.assert_allclose(layer.bias, 2.51, rtol=1e-6)

    sgd.update_(layer, gradients([-1.0, 1.0, 0.0], [0, 0, 0]), 0.1)
    # v = 0.225 + 0.1 = 0.325;  w = 1.24 + 0.325 - 0.0124
    np.testing.assert_allclose(layer.velocity, [0.325, -0.1, -0.72], rtol=1e-6)
    np.testing.assert_allclose(layer.values, [1.5526, -2.0602, -1.512], rtol=1e-6)
    np.testing.assert_allclose(layer.bias_velocity, -0.414, rtol=1e-6)
    np.testing.assert_allclose(layer.bias, 2.0709, rtol=1e-6)


@pytest.mark.parametrize("learning_rate", [0.0, 0.1, 10.0])
def test_decay_is_not_scaled_by_the_learning_rate(one_thread, learning_rate):
    layer = layer_of([1.0, -4.0], bias=2.0)
    for _ in range(2):
        MomentumSGD(0.9, 0.25).update_(layer, gradients([0, 0], [0, 0]), learning_rate)
    np.testing.assert_array_equal(layer.values, [0.5625, -2.25])  # (1 - 0.25)²
    np.testing.assert_array_equal(layer.bias, 1.125)
    assert not layer.velocity.any() and not layer.bias_velocity.any()  # decay is no momentum


def test_without_momentum_and_decay_it_is_gradient_descent(one_thread):
    layer = layer_of([1.0, 1.0], bias=1.0)
    for _ in range(3):
        MomentumSGD(0, 0).update_(layer, gradients([1, -2], [4, 4]), 0.125)
    np.testing.assert_array_equal(layer.values, [0.625, 1.75])
    np.testing.assert_array_equal(layer.bias, -0.5)


def test_rate_scale_is_of_the_weights_only(one_thread):
    layer = layer_of([1.0], bias=1.0, rate_scale=0.25)
    MomentumSGD(0.9, 0.5).update_(layer, gradients([2.0], [2.0]), 0.5)
    np.testing.assert_array_equal(layer.velocity, [-0.25])
    np.testing.assert_array_equal(layer.values, [0.25])  # 1 - 0.5·0.25·2 - 0.5·1
    np.testing.assert_array_equal(layer.bias, -0.5)  # 1 - 0.5·2 - 0.5·1


def test_both_orders_are_updated_and_the_gradient_is_not(one_thread):
    layer = layer_of([1.0, 2.0, 3.0])
    gradient, bias_gradient = floats([1, 2, 3]), floats([4, 5, 6])
    MomentumSGD().update_(layer, gradients(gradient, bias_gradient), 0.1)
    np.testing.assert_array_equal(layer.values_by_output, layer.values[::-1])
    np.testing.assert_array_equal(gradient, [1, 2, 3])
    np.testing.assert_array_equal(bias_gradient, [4, 5, 6])


@settings(max_examples=25)
@given(
    size=st.integers(1, 3000),
    rate=st.floats(0, 2),
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 0.1),
    seed=st.integers(0, 1000),
)
def test_update_equals_float64(size, rate, momentum, decay, seed):
    w, v, g = np.random.default_rng(seed).standard_normal((3, size)).astype(np.float32)
    expected_v = momentum * v.astype(np.float64) - rate * g
    expected_w = w.astype(np.float64) + expected_v - decay * w
    sgd = SGD(np.float32(rate), np.float32(momentum), np.float32(decay))
    for threads in (1, 2):
        values, velocity = w.copy(), v.copy()
        with kernel_threads(threads):
            momentum_update(values, velocity, g, sgd)
        np.testing.assert_allclose(velocity, expected_v, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(values, expected_w, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("size", [1, 1000, 4095, 4097, 10_007, 50_001])
def test_threads_do_not_change_the_update(size):
    w, v, g = np.random.default_rng(size).standard_normal((3, size)).astype(np.float32)
    sgd = SGD(np.float32(0.13), np.float32(0.9), np.float32(2e-4))
    results = []
    for threads in (1, 2, 3, 4):
        values, velocity = w.copy(), v.copy()
        with kernel_threads(threads):
            for _ in range(3):
                momentum_update(values, velocity, g, sgd)
        results.append((values, velocity))
    for values, velocity in results[1:]:
        np.testing.assert_array_equal(values, results[0][0])
        np.testing.assert_array_equal(velocity, results[0][1])


@pytest.mark.parametrize("momentum", [-0.1, 1, math.nan, "0.9"])
def test_bad_momentum(momentum):
    with pytest.raises(ParameterError, match=r"'momentum' parameter of momentum SGD .* \[0, 1\)"):
        MomentumSGD(momentum=momentum)


@pytest.mark.parametrize("decay", [-1e-4, 1.1, math.nan, None])
def test_bad_weight_decay(decay):
    with pytest.raises(ParameterError, match=r"'weight_decay' parameter of momentum SGD"):
        MomentumSGD(weight_decay=decay)


# Subnormal velocities


def test_subnormal_velocities_are_flushed(one_thread):
    start = floats([TINY, -TINY, 2 * TINY, -2 * TINY, 1e-45, 0.0, 1.0])
    layer = layer_of(np.zeros(7))
    layer.velocity[:] = start
    layer.bias_velocity[:] = TINY
    MomentumSGD(0.75, 0).update_(layer, gradients(0 * start, 0 * start), 0.1)
    expected = [0, 0, 1.5 * TINY, -1.5 * TINY, 0, 0, 0.75]
    np.testing.assert_array_equal(layer.velocity, floats(expected))
    np.testing.assert_array_equal(layer.values, floats(expected))  # w takes the flushed velocity
    assert not layer.bias_velocity.any()


def test_the_velocity_of_an_idle_connection_ends_at_zero(one_thread):
    layer = layer_of([1.0, 1.0])
    layer.velocity[:] = [1.0, -1.0]
    sgd, idle = MomentumSGD(0.9, 0), floats([0, 0])
    steps = 0
    while layer.velocity.any():
        smallest = np.abs(layer.velocity).min()
        assert smallest >= TINY  # never subnormal on its way
        sgd.update_(layer, gradients(idle, idle), 0.1)
        steps += 1
    assert steps == math.ceil(math.log(TINY) / math.log(0.9))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_flushed(one_thread, value):
    layer = layer_of([1.0, 1.0])
    MomentumSGD().update_(layer, gradients([value, 0], [0, value]), 0.1)
    np.testing.assert_array_equal(np.isfinite(layer.velocity), [False, True])
    np.testing.assert_array_equal(np.isfinite(layer.values), [False, True])
    np.testing.assert_array_equal(np.isfinite(layer.bias), [True, False])


# Recipes


def test_recipe_paper_has_one_rate():
    config = NetworkConfig((1000, 1000, 500, 2), epsilon=20, recipe="paper")
    assert [n.config.rate_scale for n in SparseMLP(config, progress=False).layers] == [1, 1, 1]


def test_recipe_width_lowers_the_rate_by_fan_in():
    config = NetworkConfig((100, 16, 40, 2), density=0.4, recipe="width")
    layers = SparseMLP(config, progress=False).layers
    # connections of a neuron: 40, 6.4, 16; up to 8 the rate is not lowered
    assert [n.config.rate_scale for n in layers] == pytest.approx([0.2, 1, 0.5])


def test_a_step_scales_the_rate_of_the_weights_and_not_of_the_biases():
    config = NetworkConfig((100, 16, 40, 2), density=0.4, recipe="width")
    network = SparseMLP(config, progress=False)
    options = {"learning_rate": 0.5, "momentum": 0, "weight_decay": 0, "dropout": 0}
    trainer = Trainer(network, TrainingConfig(batch_size=8, backend="scipy", **options))
    before = [(layer.values.copy(), layer.bias.copy()) for layer in network.layers]
    X = np.random.default_rng(0).standard_normal((8, 100)).astype(np.float32)
    trainer.step(X, np.arange(8) % 2)
    for k, scale in enumerate([0.2, 1, 0.5]):
        layer, (values, bias) = network.layers[k], before[k]
        expected = values - 0.5 * scale * trainer.workspace.gradients[k]
        np.testing.assert_allclose(layer.values, expected, rtol=1e-5, atol=1e-7)
        expected = bias - 0.5 * trainer.workspace.bias_gradients[k]
        np.testing.assert_allclose(layer.bias, expected, rtol=1e-5, atol=1e-7)
        assert trainer.workspace.gradients[k].any() and trainer.workspace.bias_gradients[k].any()


# Schedules

COSINE_EIGHTH = (1 + math.sqrt(0.5)) / 2  # of 8 epochs, after 2


@pytest.mark.parametrize(
    "options, factors",
    [
        ({}, {0: 1, 0.5: 1, 1000: 1}),
        (
            {"schedule": "step", "decay_every": 10, "decay_factor": 0.5},
            {0: 1, 9.99: 1, 10: 0.5, 19.5: 0.5, 20: 0.25, 35: 0.125},
        ),
        (
            {"schedule": "step", "decay_every": 0.5, "decay_factor": 0.1},
            {0.4: 1, 0.5: 0.1, 1: 0.01},
        ),
        (
            {"schedule": "cosine", "epochs": 8},
            {0: 1, 2: COSINE_EIGHTH, 4: 0.5, 6: 1 - COSINE_EIGHTH, 8: 0, 9: 0},
        ),
        ({"warmup_epochs": 4}, {0: 0, 0.5: 0.125, 1: 0.25, 2: 0.5, 4: 1, 5: 1}),
        (
            {"schedule": "step", "decay_every": 2, "decay_factor": 0.5, "warmup_epochs": 4},
            {1: 0.25, 2: 0.25, 3: 0.375, 4: 0.25, 6: 0.125},
        ),
        ({"schedule": "cosine", "epochs": 8, "warmup_epochs": 8}, {4: 0.25, 8: 0}),
    ],
)
def test_schedules_by_hand(options, factors):
    schedule = ScheduleConfig(**options)
    for progress, factor in factors.items():
        assert schedule.factor(progress) == pytest.approx(factor, abs=1e-12), progress


@pytest.mark.parametrize("name", ["scipy", "fused"])
def test_a_schedule_scales_the_decay_as_the_rate(name):
    X, y = np.ones((4, 6), dtype=np.float32), np.arange(4) % 2
    schedule = {"epochs": 8, "schedule": "cosine", "warmup_epochs": 4}
    settings = {"learning_rate": 0.0, "weight_decay": 0.25, "backend": name, "threads": 1}
    network = SparseMLP(NetworkConfig((6, 5, 2), epsilon=2), progress=False)
    trainer = Trainer(network, TrainingConfig(**schedule, **settings))
    for progress, factor in ((2, 0.5 * COSINE_EIGHTH), (4, 0.5), (8, 0)):
        before = network.layers[0].values.copy()
        trainer.step(X, y, progress=progress)
        kept = 1 - 0.25 * factor
        np.testing.assert_allclose(network.layers[0].values, kept * before, rtol=1e-6)


def test_every_schedule_is_tested():
    assert sorted(SCHEDULES) == ["constant", "cosine", "step"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"schedule": "linear"}, r"'schedule' .* \['constant', 'cosine', 'step'\]\. Got 'linear'"),
        ({"warmup_epochs": -1}, r"'warmup_epochs' parameter of the learning-rate schedule"),
        ({"warmup_epochs": math.nan}, "'warmup_epochs'"),
        ({"decay_every": 0}, "'decay_every'"),
        ({"decay_factor": 0}, "'decay_factor'"),
        ({"decay_factor": 1.5}, "'decay_factor'"),
    ],
)
@pytest.mark.parametrize("owner", [ScheduleConfig, TrainingConfig])
def test_bad_schedules(owner, options, message):
    with pytest.raises(ParameterError, match=message):
        owner(**options)


def rates_of(monkeypatch, rows=8, **options) -> list[float]:
    """The learning rates of the updates of a training with batches of 4 rows."""
    rates = []

    def record(network, workspace, optimizer, learning_rate, **options):
        rates.append(learning_rate)

    monkeypatch.setattr(SparseMLP, "update_", record)
    network = SparseMLP(NetworkConfig((5, 4, 2), epsilon=2), progress=False)
    config = TrainingConfig(batch_size=4, learning_rate=2.0, backend="scipy", **options)
    X = np.random.default_rng(0).standard_normal((rows, 5)).astype(np.float32)
    Trainer(network, config).fit(X, np.arange(rows) % 2, progress=False)
    return rates


def test_a_training_follows_the_schedule_within_epochs(monkeypatch):
    rates = rates_of(monkeypatch, epochs=3, warmup_epochs=2)
    assert rates == pytest.approx([0, 0.5, 1, 1.5, 2, 2])


def test_a_training_ends_the_cosine_with_its_epochs(monkeypatch):
    rates = rates_of(monkeypatch, epochs=4, schedule="cosine")
    assert rates[0] == 2 and rates[4] == pytest.approx(1)
    assert np.all(np.diff(rates) < 0) and 0 < rates[-1] < 0.1


def test_a_training_with_steps(monkeypatch):
    rates = rates_of(monkeypatch, epochs=3, schedule="step", decay_every=1, decay_factor=0.5)
    assert rates == pytest.approx([2, 2, 1, 1, 0.5, 0.5])


def test_the_last_partial_batch_is_part_of_the_epoch(monkeypatch):
    rates = rates_of(monkeypatch, rows=10, epochs=1, warmup_epochs=1)
    assert rates == pytest.approx([0, 0.8, 1.6])


def test_a_step_takes_the_rate_of_its_progress():
    changes = []
    for progress in (1, 3, None):
        network = SparseMLP(NetworkConfig((5, 4, 2), epsilon=2), progress=False)
        options = {"momentum": 0, "weight_decay": 0, "schedule": "step", "decay_every": 2}
        trainer = Trainer(network, TrainingConfig(batch_size=4, backend="scipy", **options))
        trainer.epoch = 5
        before = network.layers[0].values.copy()
        X = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
        trainer.step(X, np.arange(4) % 2, progress=progress)
        changes.append(network.layers[0].values.astype(np.float64) - before)
    assert changes[0].any()
    np.testing.assert_allclose(changes[1], changes[0] / 2, atol=1e-6)
    np.testing.assert_allclose(changes[2], changes[0] / 4, atol=1e-6)  # epochs completed
