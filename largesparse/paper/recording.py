"""The run record of a training of the tables, of ours and of the dense baseline alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.datasets import Dataset
from ..harness.records import RunRecord, new_record
from ..model.network import SparseMLP
from ..training.history import History
from .trainings import Training

KIND = "paper_tables"
ROWS = 1000  # that the gradient flow and the neurons' distributions are taken over

Report = Callable[[int, float | None], None]  # epoch, test accuracy


def make_record(
    training: Training, data: Dataset, network: SparseMLP | None, history: History, **values: Any
) -> RunRecord:
    """Return the record of a training; `network` is None where it is not ours."""
    config = training.training
    if network is not None:
        values |= {
            "parameters": network.parameters,
            "connections": network.connections,
            "backend": config.backend,
        }
    names = ("loss", "train_accuracy", "active_neurons")
    values |= {name: history[name] for name in names}
    values["nnz"] = [sum(nnz) if nnz else None for nnz in history["nnz"]]
    for name in (*names, "nnz", "accuracy", "test_loss"):
        if name in values:  # one that has diverged is shorter
            values[name] = values[name] + [None] * (config.epochs + 1 - len(values[name]))
    return new_record(
        KIND,
        algorithm=training.algorithm,
        neurons=training.network.neurons,
        layers=len(training.network.layer_sizes) - 2,
        epsilon=training.network.epsilon,
        ranks=training.ranks,
        threads=1,
        recipe=training.network.recipe,
        batch_size=config.batch_size,
        train_samples=len(data.y_train),
        test_samples=len(data.y_test),
        seed=config.seed,
        epoch_s=history["epoch_s"][1:],
        evolution_s=history["evolution_s"][1:],
        dataset=training.dataset,
        settings=training.settings,
        **values,
    )


def training_seconds(history: History) -> float:
    """Return the seconds of training, evolution and pruning, without evaluation."""
    names = ("epoch_s", "evolution_s", "pruning_s")
    return sum(seconds or 0.0 for name in names for seconds in history[name])


def some_rows(n: int, most: int = ROWS) -> NDArray[np.int64]:
    """Return up to `most` of n rows, always the same."""
    return np.sort(np.random.default_rng(0).permutation(n)[:most])
