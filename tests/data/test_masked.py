"""Masked arrays: a mask is a missing value wherever arrays enter, and is refused."""

from __future__ import annotations

from functools import cache, partial

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


@cache
def classifier():
    return SparseMLPClassifier((4,), **SMALL).fit(X, Y)


@cache
def regressor():
    return SparseMLPRegressor((4,), **SMALL).fit(X, X[:, 1])


WEIGHTS = np.ones(40)

CALLS = {  # each made when it is tested
    "classifier.fit": (lambda: SparseMLPClassifier((4,), **SMALL).fit, ["X", "y", "sample_weight"]),
    "classifier.partial_fit": (lambda: classifier().partial_fit, ["X", "y"]),
    "classifier.predict": (lambda: classifier().predict, ["X"]),
    "classifier.score": (lambda: classifier().score, ["X", "y", "sample_weight"]),
    "regressor.fit": (lambda: SparseMLPRegressor((4,), **SMALL).fit, ["X", "y", "sample_weight"]),
    "regressor.predict": (lambda: regressor().predict, ["X"]),
    "regressor.score": (lambda: regressor().score, ["X", "y", "sample_weight"]),
    "selector.fit": (
        lambda: SparseFeatureSelector(SparseMLPClassifier((4,), **SMALL)).fit,
        ["X", "y"],
    ),
    "trainer.fit": (lambda: trainer().fit, ["X", "y", "sample_weight"]),
    "trainer.step": (lambda: trainer().step, ["X", "y", "sample_weight"]),
    "trainer.evaluate": (lambda: trainer().evaluate, ["X", "y", "sample_weight"]),
    "predict_proba": (lambda: partial(predict_proba, trainer().network), ["X"]),
    "predictor": (
        lambda: Predictor(trainer().network, backend="scipy", threads=1).predict,
        ["X"],
    ),
}


@pytest.mark.parametrize(
    ("call", "name"), [(call, name) for call, (_, names) in CALLS.items() for name in names]
)
def test_masked_values_are_refused(call, name):
    make, names = CALLS[call]
    function = make()
    given = {"X": X, "y": Y, "sample_weight": WEIGHTS.astype(np.float32)}
    given = {key: given[key] for key in names}
    with pytest.raises(DataError, match=f"{name} has masked values"):
        function(**given | {name: masked(given[name])})
    if not call.startswith("predict"):
        function(**given | {name: np.ma.array(given[name])})  # nothing is masked


def test_masked_rows_of_a_list_are_refused():
    with pytest.raises(DataError, match="X has masked values"):
        classifier().predict(list(masked(X)))
