"""Data and targets that float32 cannot tell apart: what is subtracted is subtracted in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from helpers import DATA, SMALL
from scipy.sparse import csr_array
from sklearn.metrics import r2_score

import largesparse
from largesparse import (
    NetworkConfig,
    Predictor,
    SparseMLP,
    SparseMLPClassifier,
    SparseMLPRegressor,
    Standardizer,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    load_model,
    save_model,
)
from largesparse.commands.main import main
from largesparse.data.batches import load_batch
from largesparse.data.standardizer import refuse_rounding
from largesparse.errors import DataError

classifier = partial(SparseMLPClassifier, max_epochs=30, **SMALL)
regressor = partial(SparseMLPRegressor, max_epochs=30, **SMALL)


@pytest.fixture(scope="module")
def plain():
    X = np.random.default_rng(0).standard_normal((400, 6))
    return X, (X[:, 0] + X[:, 1] > 0).astype(int), 2 * X[:, 0] + X[:, 1]


MOVED = {
    "offset": lambda X: X + 1e8,
    "timestamps": lambda X: 1.7e9 + 20 * X,
    "nanoseconds": lambda X: (1.7e18 + 1e9 * X).astype(np.int64),
    "large integers": lambda X: (3e9 + 10 * X).astype(np.uint32),
    "far below float32": lambda X: 1e-60 * X,
    "long doubles": lambda X: (X + 1e8).astype(np.longdouble),
    "big-endian": lambda X: (X + 1e8).astype(">f8"),
    "sparse": lambda X: csr_array(X + 1e8),
}


@pytest.mark.parametrize("name", MOVED)
def test_moved_features_are_learnt_as_well(plain, name):
    X, y, _ = plain
    moved = MOVED[name](X)
    model = classifier().fit(moved, y)
    assert model.score(moved, y) >= classifier().fit(X, y).score(X, y) - 0.05 > 0.9
    found = model.predict_proba(moved)
    np.testing.assert_allclose(largesparse.predict_proba(model.network_, moved), found, atol=1e-6)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_trainer_and_a_predictor_take_moved_features(plain, processes):
    X, y, _ = plain
    config = TrainingConfig(epochs=20, batch_size=16, learning_rate=0.1, backend="fused", threads=1)
    network = SparseMLP(NetworkConfig((6, 30, 2), epsilon=20, recipe="width"), progress=False)
    history = Trainer(network, config).fit(X + 1e8, y, test=(X + 1e8, y), progress=False)
    assert history["test_accuracy"][-1] > 0.9
    with Predictor(network, processes=processes, threads=1, backend="fused") as predictor:
        assert (predictor.predict(X + 1e8) == y).mean() > 0.9
        assert (predictor.predict(csr_array(X + 1e8)) == y).mean() > 0.9


def test_partial_fit_takes_moved_features(plain):
    X, y, _ = plain
    model = classifier()
    for _ in range(30):
        model.partial_fit(X + 1e8, y, classes=[0, 1])
    assert model.score(X + 1e8, y) > 0.9


@pytest.mark.parametrize("form", [np.asarray, csr_array])
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_moved_features_are_refused_where_they_are_not_standardised(plain, form, call):
    X, y, _ = plain
    options = {"classes": [0, 1]} if call == "partial_fit" else {}
    with pytest.raises(DataError, match=r"column 0 .*\(1\.?\d*\).*\(1e\+08\).*standardize=True"):
        getattr(classifier(standardize=False), call)(form(X + 1e8), y, **options)
    refuse_rounding(form(np.round(X) + 2.0**20), np.arange(400))  # exact in float32


MOVED_TARGETS = [(1, 1e9), (20, 1e8), (1e39, 0), (1e39, 1e41), (1e300, 0), (1e-200, 0)]


@pytest.mark.parametrize("factor, offset", MOVED_TARGETS)
def test_moved_targets_are_predicted_as_well(plain, factor, offset):
    X, _, y = plain
    moved = factor * y + offset
    model = regressor().fit(X, moved)
    found = model.predict(X)
    assert found.dtype == np.float64
    score = r2_score((moved - offset) / factor, (found - offset) / factor)
    assert score == pytest.approx(regressor().fit(X, y).score(X, y), abs=0.01)
    assert score > 0.95
    again = largesparse.predict(model.network_, X, backend="fused", threads=1)
    np.testing.assert_array_equal(again, found)


def test_moved_targets_are_saved(plain, tmp_path):
    X, _, y = plain
    model = regressor(max_epochs=5).fit(X + 1e8, 1e8 + 20 * y)
    model.save(tmp_path / "model")
    loaded = SparseMLPRegressor.load(tmp_path / "model")
    found = model.set_params(backend=None).predict(X + 1e8)
    np.testing.assert_array_equal(loaded.set_params(backend=None).predict(X + 1e8), found)
    assert np.mean(found % 8 == 0) < 0.1  # a float32 of this size is a multiple of 8


def test_targets_that_a_trainer_cannot_take_are_refused(plain):
    X, _, y = plain
    config = TrainingConfig(epochs=1, batch_size=16, backend="fused", threads=1)
    shape = NetworkConfig((6, 30, 1), epsilon=20, loss="mean_squared_error")
    network = SparseMLP(shape, progress=False)
    for moved, message in ((y + 1e9, "told apart in float32"), (1e39 * y, "too large for float32")):
        with pytest.raises(DataError, match=f"{message}.*SparseMLPRegressor"):
            Trainer(network, config).fit(X, moved, progress=False)
    Trainer(network, config).fit(X, np.full(len(X), 0.1), progress=False)  # constant, not too close


def test_commands_take_moved_tables(plain, tmp_path, capsys):
    X, _, y = plain
    table = np.column_stack([X + 1e8, 1e8 + 20 * y])
    path, out = tmp_path / "table.csv", tmp_path / "found.csv"
    names = ",".join([*"abcdef", "target"])
    np.savetxt(path, table, fmt="%.17g", delimiter=",", header=names, comments="")
    model = str(tmp_path / "model")
    options = ["--target", "target", "--hidden", "30", "--epochs", "30", "--threads", "1"]
    assert main(["train", "--data", str(path), *options, "--out", model, "--backend", "fused"]) == 0
    assert main(["evaluate", model, "--data", str(path), "--target", "target"]) == 0
    shown = capsys.readouterr().out
    scores = [float(line.split()[-1]) for line in shown.splitlines() if line.startswith("R²")]
    assert len(scores) >= 2 and min(scores) > 0.9
    assert main(["predict", model, "--data", str(path), "--out", str(out)]) == 0
    assert r2_score(table[:, -1], np.loadtxt(out, skiprows=1)) > 0.9


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint32])
@pytest.mark.parametrize("sparse", [False, True])
def test_batches_are_standardised_in_float64(dtype, sparse):
    rng = np.random.default_rng(0)
    X = (3e9 + 9 * rng.standard_normal((50, 37))).astype(dtype)
    scaling = Standardizer.fit(csr_array(X) if sparse else X)
    rows = rng.integers(0, 50, 21)
    found = np.empty((37, 21), np.float32)
    load_batch(csr_array(X) if sparse else X, rows, scaling, out=found)
    exact = X.astype(np.float64)
    expected = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    np.testing.assert_allclose(found, expected[rows].T, rtol=1e-6, atol=1e-6)


def test_weights_in_the_statistics_are_as_repeated_rows():
    rng = np.random.default_rng(0)
    X, counts = rng.normal(5, 2, (60, 4)), rng.integers(0, 4, 60)
    X[:, 3] = 0.1
    for kind in (np.asarray, csr_array):
        weighted = Standardizer.fit(kind(X), weights=counts / 7)
        repeated = Standardizer.fit(np.repeat(X, counts, axis=0))
        np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-12)
        np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-9)
        assert weighted.scale[3] == 1


def test_models_and_checkpoints_of_the_first_version_are_read(tmp_path):
    rows = [[3.251460552215576, 2.735790252685547, 4.2808451652526855, 3.2098002433776855]]
    rows += [[1.9286612272262573, 3.7231900691986084, 5.607999801635742, 4.894162178039551]]
    network = load_model(DATA / "model-version-1")
    assert network.target_mean.dtype == network.preprocessing.mean.dtype == np.float64
    found = largesparse.predict(network, np.float32(rows), backend="scipy")
    np.testing.assert_allclose(found, [70.90588, 66.5942], rtol=1e-6)
    loaded = SparseMLPRegressor.load(DATA / "model-version-1")
    np.testing.assert_allclose(loaded.predict(rows), found, rtol=1e-5)
    trainer = load_checkpoint(DATA / "checkpoint-version-1", epochs=3)
    shares = largesparse.predict_proba(trainer.network, np.float32(rows), backend="scipy")
    np.testing.assert_allclose(shares[:, 1], [0.7296429, 0.22191015], rtol=1e-5)
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((40, 4)) * 2 + 3).astype(np.float32)
    assert len(trainer.fit(X, (X[:, 0] > 3).astype(int), progress=False)) == 4
    save_model(network, tmp_path / "again")
    again = load_model(tmp_path / "again")
    np.testing.assert_array_equal(again.target_mean, network.target_mean)
