"""Nesterov's momentum, Adam and AdamW next to NumPy in float64, and the way of their moments."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle

import numpy as np
import pytest
from helpers import arrays_of, make_network, normal_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from largesparse import (
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    prune_neurons,
)
from largesparse.backends import operands
from largesparse.backends.kernels import adam_update, sum_of_squares
from largesparse.errors import NumericalError, ParameterError
from largesparse.machine.threads import kernel_threads
from largesparse.model.importance import compact
from largesparse.model.layer import MOMENTS, PARAMETERS
from largesparse.model.optimizer import OPTIMIZERS, AdamW, corrections
from largesparse.model.storage import Storage

SIZES = (12, 30, 20, 3)
ADAMS = ("adam", "adamw")
QUICK = {"backend": "fused", "threads": 1, "batch_size": 16}


def rows(n=64, seed=0):
    X = normal_rows(n, SIZES[0], seed)
    return X, (X @ normal_rows(SIZES[0], SIZES[-1], 9)).argmax(1).astype(np.int32)


def trainer_of(network=None, storage=None, **options) -> Trainer:
    own = NetworkConfig(SIZES, epsilon=3, seed=1, **(network or {}))
    return Trainer(
        SparseMLP(own, progress=False, storage=storage), TrainingConfig(**QUICK | options)
    )


def everything(network: SparseMLP) -> list[np.ndarray]:
    """Return copies of all that is trained, with moments of every kind."""
    found = [array.copy() for array in arrays_of(network)]
    for layer in network.layers:
        for arrays in layer.moments.values():
            found += [array.copy() for array in arrays.values()]
    return found


def assert_same(network: SparseMLP, other: SparseMLP) -> None:
    for one, two in zip(everything(network), everything(other), strict=True):
        np.testing.assert_array_equal(one, two)


# Next to NumPy


class Reference:
    """An optimizer in float64, on a copy of the parameters of a network; one count each number."""

    def __init__(self, network: SparseMLP, config: TrainingConfig) -> None:
        self.config = config
        self.scales = [layer.config.rate_scale for layer in network.layers]
        self.trained = [layer.config.shape_trained for layer in network.layers]
        self.w = [
            {name: array.astype(float) for name, array in layer.parameters.items()}
            for layer in network.layers
        ]
        self.m, self.s, self.t = ([self._zeros(w) for w in self.w] for _ in range(3))
        self.steps = 0

    def _zeros(self, arrays):
        return {name: np.zeros_like(array) for name, array in arrays.items()}

    def update(self, gradients, factor: float) -> None:
        config = self.config
        self.steps += 1
        for k, arrays in enumerate(gradients):
            for name in arrays:  # untrained rows of the activation stay, and count in no norm
                if name == "srelu":
                    arrays[name][~np.array(self.trained[k])] = 0
        if config.clip_norm is not None:
            norm = np.sqrt(sum((g**2).sum() for arrays in gradients for g in arrays.values()))
            for arrays in gradients:
                for g in arrays.values():
                    g *= min(1, config.clip_norm / norm)
        for k, arrays in enumerate(gradients):
            for name, g in arrays.items():
                decay = config.weight_decay * (name != "srelu")
                rate = config.learning_rate * factor * (self.scales[k] if name == "values" else 1)
                self._update(k, name, g, rate, decay, factor)

    def _update(self, k, name, g, rate, decay, factor) -> None:
        config, w, m, s, t = self.config, *(x[k][name] for x in (self.w, self.m, self.s, self.t))
        if config.optimizer in ("sgd", "nesterov"):
            m[...] = config.momentum * m - rate * g
            moved = m if config.optimizer == "sgd" else config.momentum * m - rate * g
            w += moved - decay * factor * w
            return
        t += 1
        count = np.full_like(t, self.steps) if config.step_counts == "global" else t
        if config.optimizer == "adam":
            g = g + decay * w
        else:
            w *= 1 - rate * decay
        m[...] = config.momentum * m + (1 - config.momentum) * g
        s[...] = config.beta2 * s + (1 - config.beta2) * g * g
        mean, square = m / (1 - config.momentum**count), s / (1 - config.beta2**count)
        warm = np.minimum(1, t / max(1, config.connection_warmup))
        if name == "srelu":
            mean[~np.array(self.trained[k])] = 0
        w -= rate * warm * mean / (np.sqrt(square) + config.adam_epsilon)

    def evolve(self, network: SparseMLP, maps) -> None:
        """Take survivors along, and what grew from the network, with moments of 0."""
        for k, slot_map in enumerate(maps):
            values = network.layers[k].values.astype(float)
            for arrays in (self.w, self.m, self.s, self.t):
                old = arrays[k]["values"]
                new = values.copy() if arrays is self.w else np.zeros_like(values)
                new[slot_map[slot_map >= 0]] = old[slot_map >= 0]
                arrays[k]["values"] = new

    def compare(self, network: SparseMLP) -> None:
        for layer, w, t in zip(network.layers, self.w, self.t, strict=True):
            for name, array in layer.parameters.items():
                np.testing.assert_allclose(array, w[name], rtol=1e-5, atol=1e-5, err_msg=name)
            if "updates" in layer.moments:
                np.testing.assert_array_equal(layer.moments["updates"]["values"], t["values"])


def gradients_of(trainer: Trainer, X, y, part):
    trainer.gradient(X, y, part)  # that of the next step: dropout follows from the step
    by_layer = trainer.workspace.by_layer
    return [{name: g.astype(float) for name, g in arrays.items()} for arrays in by_layer]


@pytest.mark.parametrize(
    "name, options, network",
    [
        ("sgd", {}, {}),
        ("nesterov", {}, {}),
        ("nesterov", {"backend": "scipy", "clip_norm": 0.1}, {"activation": "srelu"}),
        ("sgd", {"clip_norm": 0.1}, {}),
        ("adam", {"weight_decay": 0.1}, {}),
        ("adam", {"step_counts": "global"}, {"recipe": "width"}),
        ("adamw", {}, {}),
        ("adamw", {"backend": "scipy", "connection_warmup": 7}, {"activation": "prelu"}),
        ("adamw", {"clip_norm": 0.2, "weight_decay": 1.0}, {"activation": "srelu"}),
        ("adamw", {"micro_batch": 8, "momentum": 0.0}, {"rate_fan_in": 5.0}),
        ("adamw", {"connection_warmup": 30, "beta2": 0.9}, {}),
    ],
)
def test_fifty_steps_and_evolutions_equal_numpy(name, options, network):
    options = {"schedule": "cosine", "epochs": 60, "zeta": 0.3, "seed": 2} | options
    trainer = trainer_of(network, optimizer=name, **options)
    X, y = rows()
    reference = Reference(trainer.network, trainer.config)
    for step in range(50):
        part = np.arange(16) + 16 * (step % 4)
        gradients = gradients_of(trainer, X, y, part)
        trainer.step(X, y, part, progress=step)
        reference.update(gradients, (1 + np.cos(np.pi * step / 60)) / 2)
        if step % 12 == 11:
            reference.compare(trainer.network)
            reference.evolve(trainer.network, trainer.evolve())
            trainer.epoch += 1
    reference.compare(trainer.network)


def test_first_updates_of_new_connections_are_of_the_size_of_the_learning_rate():
    """By the count of the training they are (1 - β1)/√(1 - β2) times that: 3.2 times."""
    rate, moved = 0.01, {}
    for counts in ("connection", "global"):
        layer = make_network(SIZES, epsilon=3).layers[0]
        adam = AdamW(weight_decay=0.0, step_counts=counts)
        layer.keep_moments_(adam.kinds)
        gradient = {name: np.full_like(a, 0.5) for name, a in layer.parameters.items()}
        for _ in range(2000):
            adam.update_(layer, gradient, rate)
        for kind in adam.kinds:  # a connection has grown
            getattr(layer, kind)[:5] = 0
        before = layer.values.copy()
        adam.update_(layer, gradient, rate)
        moved[counts] = before - layer.values
        np.testing.assert_allclose(moved[counts][5:], rate, rtol=1e-3)
    np.testing.assert_allclose(moved["connection"][:5], rate, rtol=1e-3)
    np.testing.assert_allclose(
        moved["global"][:5], rate * 0.1 / np.sqrt(0.001 / (1 - 0.999**2001)), rtol=1e-3
    )


# The kernel


@settings(max_examples=20)
@given(
    st.integers(1, 3000),
    st.integers(0, 1000),
    st.floats(0, 0.99),
    st.floats(0, 0.9999),
    st.integers(0, 500),
)
def test_the_kernel_equals_float64_whatever_the_threads(size, seed, beta1, beta2, warmup):
    rng = np.random.default_rng(seed)
    w, m, s, g = rng.standard_normal((4, size)).astype(np.float32)
    t = rng.choice([0, 1, 5, 400, 30_000, 65_534, 65_535], size).astype(np.uint16)
    numbers = (0.01, 0.02, 0.03, beta1, 1 - beta1, beta2, 1 - beta2, 1e-3)
    found = []
    for threads in (1, 2):
        arrays = [a.copy() for a in (w, m, np.abs(s), t)]
        with kernel_threads(threads):
            adam_update(
                *arrays,
                g,
                operands.Adam(*map(np.float32, numbers)),
                corrections(beta1, beta2, warmup),
            )
        found.append(arrays)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
    w, m, s, g = (a.astype(float) for a in (w, m, np.abs(s), g))
    t = np.minimum(t + 1.0, 65_535)
    g = g + 0.03 * w
    m, s = beta1 * m + (1 - beta1) * g, beta2 * s + (1 - beta2) * g * g
    step = 0.01 * np.minimum(1, t / max(1, warmup)) * m / (1 - beta1**t)
    w = w - 0.02 * w - step / (np.sqrt(s / (1 - beta2**t)) + 1e-3)
    for array, expected in zip(found[0], (w, m, s, t), strict=True):
        np.testing.assert_allclose(array, expected, rtol=3e-5, atol=3e-5)


def test_idle_moments_end_at_zero_and_are_never_subnormal():
    tiny = np.finfo(np.float32).tiny
    w, g = np.ones((2, 20), np.float32)
    g[:] = 0
    m, s, t = (
        np.full(20, 3 * tiny, np.float32),
        np.full(20, 1.01 * tiny, np.float32),
        np.zeros(20, np.uint16),
    )
    numbers = operands.Adam(*map(np.float32, (0.1, 0, 0, 0.5, 0.5, 0.9, 0.1, 1e-8)))
    for _ in range(3):
        adam_update(w, m, s, t, g, numbers, corrections(0.5, 0.9))
    assert not m.any() and not s.any() and np.isfinite(w).all() and (t == 3).all()


def test_corrections_end_where_they_are_one():
    first, second = corrections(0.9, 0.999)
    assert len(first) == len(second) and first[-1] == second[-1] == 1
    assert first[1] == np.float32(1 / (1 - 0.9)) and first[-2] == 1 != second[-2]
    np.testing.assert_allclose(
        second[[1, 10, 1000]], (1 - 0.999 ** np.array([1.0, 10, 1000])) ** -0.5, rtol=1e-6
    )
    assert len(corrections(0.9, 0.99999)[0]) == 65_536  # at the end of what is counted
    assert corrections(0.0, 0.0, 4)[0].tolist() == [0.25, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("size", [1, 4097, 50_001])
def test_threads_do_not_change_a_norm(size):
    g = normal_rows(1, size)[0]
    found = set()
    for threads in (1, 2):
        with kernel_threads(threads):
            found.add(sum_of_squares(g))
    assert len(found) == 1 and found.pop() == pytest.approx((g.astype(float) ** 2).sum(), rel=1e-12)


# Trainings


WHOLE = {"epochs": 4, "zeta": 0.3, "dropout": 0.2, "seed": 3}


@pytest.mark.parametrize("name", ADAMS)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5, "connection_warmup": 5}])
def test_threads_files_and_resuming_do_not_change_a_training(tmp_path, name, options):
    X, y = rows(80)
    options = WHOLE | {"optimizer": name, "pruning_start": 2, "pruning_every": 2} | options
    plain = trainer_of(**options)
    plain.fit(X, y, progress=False)
    for kind, moments in zip(plain.network.layers[1].kinds, plain.config.moments, strict=True):
        assert kind == moments and plain.network.layers[1].moments[kind]["values"].any()
    threads = trainer_of(**options, threads=2)
    threads.fit(X, y, progress=False)
    assert_same(plain.network, threads.network)
    (tmp_path / "arrays").mkdir()
    stored = trainer_of(storage=Storage(tmp_path / "arrays"), **options)
    stored.fit(X, y, progress=False)
    assert_same(plain.network, stored.network)
    trainer_of(**options | {"epochs": 2}).fit(X, y, progress=False, checkpoint=tmp_path / "c")
    resumed = load_checkpoint(tmp_path / "c", epochs=4)
    assert resumed.network.layers[0].moments["updates"]["values"].max() == 10
    resumed.fit(X, y, progress=False)
    assert_same(plain.network, resumed.network)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_sparse_rows_give_what_dense_ones_do(name, clip_norm):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 400)).astype(np.float32) * (rng.random((60, 400)) < 0.01)
    y = (rng.random(60) < 0.5).astype(np.int32)
    networks = []
    for given_ in (csr_array(X), X):
        network = make_network((400, 20, 2), epsilon=2)
        options = QUICK | {"optimizer": name, "clip_norm": clip_norm, "batch_size": 4, "epochs": 3}
        Trainer(network, TrainingConfig(standardize=False, **options)).fit(
            given_, y, progress=False
        )
        networks.append(network)
    for one, two in zip(*(network.layers for network in networks), strict=True):
        np.testing.assert_allclose(one.values, two.values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.bias, two.bias, rtol=1e-4, atol=1e-5)


def cells_of(layer) -> np.ndarray:
    return layer.topology.indices + layer.n_out * layer.topology.rows()


def test_pruned_and_compacted_networks_keep_their_moments():
    X, y = rows()
    trainer = trainer_of(optimizer="adamw", epochs=3, pruning_start=None)
    trainer.fit(X, y, progress=False)
    before = [
        dict(zip(cells_of(layer), layer.square, strict=True)) for layer in trainer.network.layers
    ]
    prune_neurons(trainer.network, 30)
    small = compact(trainer.network)
    for layer, other, squares in zip(trainer.network.layers, small.layers, before, strict=True):
        assert [squares[cell] for cell in cells_of(layer)] == layer.square.tolist()
        np.testing.assert_array_equal(other.square, layer.square)
        np.testing.assert_array_equal(other.updates, layer.updates)
        living = slice(None) if layer.dead is None else ~layer.dead
        np.testing.assert_array_equal(other.bias_square, layer.bias_square[living])
    Trainer(small, trainer.config).step(X, y)


def test_the_weights_of_the_best_epoch_have_moments_that_begin():
    X, y = rows(100)
    trainer = trainer_of(optimizer="adamw", epochs=6, validation_fraction=0.3)
    trainer.fit(X, y, progress=False)
    for layer in trainer.network.layers:
        assert layer.kinds == ("velocity", "square", "updates") and layer.updates.dtype == np.uint16
        assert not any(
            array.any() for arrays in layer.moments.values() for array in arrays.values()
        )


# Another optimizer, and the settings


def test_another_optimizer_begins_anew_and_says_so(tmp_path, caplog):
    X, y = rows()
    first = trainer_of(**WHOLE | {"epochs": 2}, learning_rate=0.05, weight_decay=1e-3)
    first.fit(X, y, progress=False, checkpoint=tmp_path)
    with caplog.at_level(logging.WARNING):
        adam = load_checkpoint(tmp_path, optimizer="adamw", epochs=3)
    assert "used the optimizer 'sgd' and goes on with 'adamw', learning rate 0.001" in caplog.text
    assert (adam.config.learning_rate, adam.config.weight_decay) == (0.001, 0.01)
    for layer in adam.network.layers:
        assert not any(
            array.any() for arrays in layer.moments.values() for array in arrays.values()
        )
    adam.fit(X, y, progress=False, checkpoint=tmp_path)
    assert (
        load_checkpoint(tmp_path, optimizer="adamw", learning_rate=0.5).config.learning_rate == 0.5
    )
    caplog.clear()
    kept = load_checkpoint(tmp_path, optimizer="adam")
    assert "weight decay 0." in caplog.text and "moments begin" not in caplog.text
    assert kept.network.layers[0].updates.any()
    assert (kept.config.learning_rate, kept.config.weight_decay) == (0.001, 0.0)
    back = load_checkpoint(tmp_path, optimizer="nesterov")
    assert (
        back.network.layers[0].kinds == ("velocity",) and not back.network.layers[0].velocity.any()
    )
    with pytest.raises(ParameterError, match="'optimizer' parameter"):
        load_checkpoint(tmp_path, optimizer="adagrad")


def test_velocities_go_on_with_nesterovs_momentum(tmp_path):
    X, y = rows()
    trainer = trainer_of(**WHOLE | {"epochs": 2}, learning_rate=0.05)
    trainer.fit(X, y, progress=False, checkpoint=tmp_path)
    resumed = load_checkpoint(tmp_path, optimizer="nesterov")
    assert resumed.config.learning_rate == 0.05
    assert resumed.network.layers[0].velocity.any()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("sgd", (0.01, 2e-4)),
        ("nesterov", (0.01, 2e-4)),
        ("adam", (0.001, 0)),
        ("adamw", (0.001, 0.01)),
    ],
)
def test_defaults_follow_the_optimizer(name, expected):
    config = TrainingConfig(optimizer=name)
    assert (config.learning_rate, config.weight_decay) == expected
    assert config == dataclasses.replace(TrainingConfig(), optimizer=name)
    assert f"learning_rate={expected[0]}, " in repr(config)
    stored = json.loads(json.dumps(config.as_dict()))
    assert (stored["learning_rate"], stored["weight_decay"]) == expected
    assert TrainingConfig(**stored) == config == pickle.loads(pickle.dumps(config))
    own = dataclasses.replace(TrainingConfig(learning_rate=0.01, weight_decay=0.5), optimizer=name)
    assert (own.learning_rate, own.weight_decay) == (0.01, 0.5)
    again = dataclasses.replace(pickle.loads(pickle.dumps(config)), optimizer="adam")
    assert (again.learning_rate, again.weight_decay) == (0.001, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optimizer": "rmsprop"}, r"'optimizer' .* \['adam', 'adamw', 'nesterov', 'sgd'\]"),
        ({"step_counts": "none"}, "'step_counts'"),
        ({"optimizer": "adam", "beta2": 1.0}, r"'beta2' parameter of Adam .* \[0, 1\)"),
        ({"optimizer": "adamw", "adam_epsilon": 0}, "'adam_epsilon' parameter of AdamW"),
        ({"optimizer": "adamw", "connection_warmup": 70_000}, r"'connection_warmup' .* 65535\]"),
        ({"connection_warmup": 3}, r"'connection_warmup' .* needs optimizer='adam' or 'adamw'"),
        ({"optimizer": "adam", "connection_warmup": 3, "step_counts": "global"}, "count for every"),
        ({"beta2": 1.0}, "'beta2'"),  # whatever the optimizer
        ({"optimizer": "adam", "adam_epsilon": 1e-46}, "'adam_epsilon'"),  # 0 in float32
        ({"optimizer": "adamw", "learning_rate": 0.1, "weight_decay": 11}, "at most 10"),
        ({"clip_norm": 0}, r"'clip_norm' parameter of momentum SGD .* \(0, "),
        ({"optimizer": "adam", "weight_decay": -1}, "'weight_decay' parameter of Adam"),
        ({"weight_decay": 2}, "'weight_decay' parameter of momentum SGD"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        TrainingConfig(**options)


def test_squares_that_overflow_end_the_training_before_a_checkpoint_is_written(tmp_path):
    X, y = rows()
    options = {"standardize": False, "batch_size": len(y), "epochs": 1}
    trainer = trainer_of(optimizer="adam", **options)
    trainer.network.layers[0].values *= np.float32(1e-24)
    with pytest.raises(NumericalError, match="'clip_norm'"):
        trainer.fit(X * np.float32(1e24), y, progress=False, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_the_rate_follows_from_the_connections_a_neuron():
    layers = make_network((100, 16, 40, 2), density=0.4, rate_fan_in=10.0, recipe="width").layers
    # expected: 40, 6.4 and 16
    assert [layer.config.rate_scale for layer in layers] == pytest.approx(
        [10 / 40, 10 / 6.4, 10 / 16]
    )
    with pytest.raises(ParameterError, match="'rate_fan_in' parameter of a network"):
        NetworkConfig(SIZES, rate_fan_in=0)


def test_every_kind_of_moment_is_some_optimizers():
    kinds = {kind for optimizer in OPTIMIZERS.values() for kind in optimizer.kinds}
    assert kinds == set(MOMENTS) - {"average"}
    assert {name for name, of in PARAMETERS.items() if of.is_trained} == {
        *("values", "bias", "srelu", "scale")  # `Reference` updates those of networks without norms
    }
