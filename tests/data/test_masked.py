"""Masked arrays: a mask is a missing value wherever arrays enter, and is refused."""

from __future__ import annotations

import numpy as np
import pytest

from largesparse import (
    NetworkConfig,
    Predictor,
    SparseFeatureSelector,
    SparseMLP,
    SparseMLPClassifier,
    SparseMLPRegressor,
    Trainer,
    TrainingConfig,
    predict_proba,
)
from largesparse.errors import DataError

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
SMALL = {"max_epochs": 1, "n_jobs": 1, "backend": "scipy", "random_state": 0}


def masked(array):
    return np.ma.array(array, mask=np.arange(array.size).reshape(array.shape) == 4)


def trainer():
    network = SparseMLP(NetworkConfig((3, 4, 2), epsilon=9, seed=0), progress=False)
    return Trainer(network, TrainingConfig(epochs=1, batch_size=20, backend="scipy", threads=1))


CLASSIFIER = SparseMLPClassifier((4,), **SMALL).fit(X, Y)
REGRESSOR = SparseMLPRegressor((4,), **SMALL).fit(X, X[:, 1])
WEIGHTS = np.ones(40)

CALLS = {
    "classifier.fit": (SparseMLPClassifier((4,), **SMALL).fit, ["X", "y", "sample_weight"]),
    "classifier.partial_fit": (CLASSIFIER.partial_fit, ["X", "y"]),
    "classifier.predict": (CLASSIFIER.predict, ["X"]),
    "classifier.score": (CLASSIFIER.score, ["X", "y", "sample_weight"]),
    "regressor.fit": (SparseMLPRegressor((4,), **SMALL).fit, ["X", "y", "sample_weight"]),
    "regressor.predict": (REGRESSOR.predict, ["X"]),
    "regressor.score": (REGRESSOR.score, ["X", "y", "sample_weight"]),
    "selector.fit": (SparseFeatureSelector(SparseMLPClassifier((4,), **SMALL)).fit, ["X", "y"]),
    "trainer.fit": (trainer().fit, ["X", "y", "sample_weight"]),
    "trainer.step": (trainer().step, ["X", "y", "sample_weight"]),
    "trainer.evaluate": (trainer().evaluate, ["X", "y", "sample_weight"]),
    "predict_proba": (lambda X: predict_proba(trainer().network, X), ["X"]),
    "predictor": (Predictor(trainer().network, backend="scipy", threads=1).predict, ["X"]),
}


@pytest.mark.parametrize(
    ("call", "name"), [(call, name) for call, (_, names) in CALLS.items() for name in names]
)
def test_masked_values_are_refused(call, name):
    function, names = CALLS[call]
    given = {"X": X, "y": Y, "sample_weight": WEIGHTS.astype(np.float32)}
    given = {key: given[key] for key in names}
    with pytest.raises(DataError, match=f"{name} has masked values"):
        function(**given | {name: masked(given[name])})
    if not call.startswith("predict"):
        function(**given | {name: np.ma.array(given[name])})  # nothing is masked


def test_masked_rows_of_a_list_are_refused():
    with pytest.raises(DataError, match="X has masked values"):
        CLASSIFIER.predict(list(masked(X)))
