"""scikit-learn's MLPClassifier, an independent dense baseline, trained as the tables' networks."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from ..data.datasets import Dataset
from ..harness.records import RunRecord
from ..machine.energy import EnergyMeter
from ..machine.usage import cpu_seconds, peak_rss_bytes
from ..training.history import EpochRecord, History
from .recording import Report, make_record, some_rows, training_seconds
from .scores import TestScores
from .trainings import Training


def run_scikit_learn(training: Training, data: Dataset, report: Report) -> RunRecord:
    """Train an MLPClassifier with the sizes, the rate, the batches and the momentum of a training.

    It has ReLU, its own initial values and weight decay, and no dropout.
    """
    config, sizes = training.training, training.network.layer_sizes
    X, X_test = (np.asarray(part, dtype=np.float32) for part in (data.X_train, data.X_test))
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)
    model = MLPClassifier(
        sizes[1:-1],
        solver="sgd",
        batch_size=config.batch_size,
        learning_rate_init=config.learning_rate,
        momentum=config.momentum,
        nesterovs_momentum=False,
        random_state=config.seed,
    )
    classes = np.arange(sizes[-1])
    connections = [a * b for a, b in itertools.pairwise(sizes)]
    scores, loss_rows = TestScores(len(X_test)), some_rows(len(X))
    history = History([EpochRecord(0, None, None, nnz=connections)])
    with EnergyMeter() as meter:
        cpu = cpu_seconds()
        for epoch in range(1, config.epochs + 1):
            started = time.perf_counter()
            model.partial_fit(X, data.y_train, classes=classes)
            record = EpochRecord(epoch, None, None, nnz=connections)
            record.epoch_s = time.perf_counter() - started
            record.loss, record.train_accuracy = evaluate(model, X, data.y_train, loss_rows)
            history.epochs.append(record)
            scores.add(lambda rows: evaluate(model, X_test, data.y_test, rows))
            report(epoch, scores.accuracy[-1])
        cpu = cpu_seconds() - cpu
    return make_record(
        training,
        data,
        None,
        history,
        connections=sum(connections),
        parameters=sum(connections) + sum(sizes[1:]),
        backend="scikit-learn",
        accuracy=[None, *scores.accuracy],
        test_loss=[None, *scores.loss],
        selected_accuracy=scores.selected(config.epochs),
        cpu_s=[cpu],
        energy_j=meter.joules,
        train_s=training_seconds(history),
        peak_rss_bytes=peak_rss_bytes(),
    )


def evaluate(
    model: MLPClassifier, X: Any, y: NDArray[np.int32], rows: NDArray[np.int64]
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy over rows of a data set."""
    probabilities = model.predict_proba(X[rows])
    of_label = np.maximum(probabilities[np.arange(len(rows)), y[rows]], np.finfo(np.float32).tiny)
    return float(-np.log(of_label).mean()), float((probabilities.argmax(axis=1) == y[rows]).mean())
