"""The learning curve within epochs: when points are due, what they are, and that they change
nothing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig, load_checkpoint
from largesparse.errors import ParameterError
from largesparse.machine.signals import Stop
from largesparse.training.curve import is_due, samples_of_next
from largesparse.training.history import History
from largesparse.training.prepared import epoch_batches, prepare_
from largesparse.training.trainer import save_checkpoint

RNG = np.random.default_rng(0)
X, X_TEST = (RNG.standard_normal((n, 12)).astype(np.float32) for n in (90, 40))
Y, Y_TEST = ((data[:, 0] > 0).astype(int) for data in (X, X_TEST))


def make_trainer(**settings):
    settings = {"epochs": 2, "batch_size": 20, "curve_points": 3, "threads": 1} | settings
    network = SparseMLP(NetworkConfig((12, 15, 10, 2), epsilon=5, seed=1))
    return Trainer(network, TrainingConfig(backend="fused", **settings))


@given(st.integers(1, 500), st.integers(1, 100), st.integers(0, 12))
def test_points_are_due_at_equal_parts_of_an_epoch(rows, batch_size, points):
    curve, samples = [], 0
    for start in range(0, rows, batch_size):
        pause = samples_of_next(samples, rows, points)
        samples = min(rows, start + batch_size)
        if is_due(curve, samples, rows, points):
            curve.append({"samples": samples})
        assert bool(points and samples >= pause) == any(p["samples"] == samples for p in curve)
    ends = [min(rows, start + batch_size) for start in range(0, rows, batch_size)]
    parts = [Fraction(k * rows, points) for k in range(1, points + 1)]
    expected = sorted({min(end for end in ends if end >= part) for part in parts})
    assert [point["samples"] for point in curve] == expected


def test_a_curve_is_recorded_and_changes_nothing():
    trainer, plain = make_trainer(curve_rows=1000), make_trainer(curve_points=0)
    history = trainer.fit(X, Y, test=(X_TEST, Y_TEST), progress=False)
    without = plain.fit(X, Y, test=(X_TEST, Y_TEST), progress=False)
    for layer, other in zip(trainer.network.layers, plain.network.layers, strict=True):
        np.testing.assert_array_equal(layer.values, other.values)
    assert history["loss"] == without["loss"] and without.curve_frame().empty
    table = history.curve_frame()
    assert table["samples"].tolist() == 2 * [40, 60, 90]
    np.testing.assert_allclose(table["epoch"], [4 / 9, 6 / 9, 1, 13 / 9, 15 / 9, 2])
    assert table["updates"].tolist() == [2, 3, 5, 7, 8, 10]
    # the last point of an epoch has the weights that all test rows are evaluated by
    assert table["accuracy"].tolist()[2::3] == history["test_accuracy"][1:]
    assert history["curve_s"][1] == pytest.approx(sum(table["seconds"][:3]))
    assert "curve" not in history.to_frame()
    assert History.from_list(history.to_list()).curve == history.curve


def test_the_curve_is_of_a_fixed_part_of_the_held_out_rows():
    settings = {"curve_rows": 7, "epochs": 1, "curve_points": 1}
    accuracies = []
    for hidden in (False, True):  # of all other rows the labels are changed
        trainer = make_trainer(**settings)
        order = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence(0, spawn_key=(10, 0)))
        ).permutation(40)[:7]
        y = Y_TEST.copy()
        if hidden:
            y = 1 - y
            y[order] = Y_TEST[order]
        trainer.fit(X, Y, test=(X_TEST, y), progress=False)
        accuracies.append(trainer.history.curve[0]["accuracy"])
        assert accuracies[-1] == trainer.evaluate(X_TEST[order], y[order])[1]
    assert accuracies[0] == accuracies[1]


def test_without_test_rows_the_validation_rows_are_evaluated_or_it_is_refused():
    trainer = make_trainer(validation_fraction=0.3, curve_rows=1000, average_decay=0.9)
    history = trainer.fit(X, Y, progress=False)
    assert history.curve[2]["accuracy"] == history["validation_accuracy"][1]
    with pytest.raises(ParameterError, match=r"'curve_points'.*Got 3"):
        make_trainer().fit(X, Y)
    for name in ("curve_points", "curve_rows"):
        with pytest.raises(ParameterError, match=name):
            make_trainer(**{name: -1})


def test_weights_that_sparse_mini_batches_leave_for_later_are_up_to_date_at_a_point():
    rng = np.random.default_rng(1)
    dense = np.where(rng.random((90, 12)) < 0.05, X, 0)
    trainer = make_trainer(curve_rows=1000, curve_points=2, standardize=False, dropout=0.0)
    history = trainer.fit(csr_array(dense), Y, test=(csr_array(dense), Y), progress=False)
    for epoch in (1, 2):
        assert history.curve[2 * epoch - 1]["accuracy"] == history["test_accuracy"][epoch]


class StopAfter:
    """A request that ends a training after some mini-batches."""

    def __init__(self, count):
        self.count = count

    def check(self):
        self.count -= 1
        if self.count == 0:
            raise Stop


@pytest.mark.parametrize("count", [2, 4])
def test_a_training_that_is_resumed_in_an_epoch_keeps_its_points(tmp_path, count):
    from tqdm import tqdm

    whole, part = make_trainer(epochs=1), make_trainer(epochs=1)
    for trainer in (whole, part):
        data = prepare_(trainer.network, trainer.config, X, Y, test=(X_TEST, Y_TEST))
        batches = epoch_batches(data.train_rows, trainer.config, 0)
        with tqdm(disable=True) as bar:
            if trainer is whole:
                trainer.run_epoch(data, batches, bar)
                continue
            with pytest.raises(Stop):
                trainer.run_epoch(data, batches, bar, None, StopAfter(count))
            save_checkpoint(trainer, tmp_path / "c")
            part = load_checkpoint(tmp_path / "c")
            left = epoch_batches(data.train_rows, trainer.config, 0, part.state.samples)
            assert len(left) == 5 - count
            part.run_epoch(data, left, bar)
    points = [
        [{k: v for k, v in point.items() if k != "seconds"} for point in trainer.state.part.curve]
        for trainer in (whole, part)
    ]
    assert len(points[0]) == 3 and points[0] == points[1]
