"""Test scores after every epoch, and the accuracy of the epoch that held-out rows choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..history import EpochRecord
from ..training import Trainer

Evaluate = Callable[[NDArray[np.int64]], tuple[float, float]]  # rows -> loss, accuracy


class TestScores:
    """A callback of `Trainer.fit` that scores two halves of the test rows after every epoch.

    Parameters
    ----------
    X : (n_samples, n_features) dense or CSR
    y : int32 (n_samples,)
        The test rows and their class indices, two at least.

    Attributes
    ----------
    loss, accuracy : list of float or None
        Over all test rows, an entry an epoch; the first, before training, is None.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, X: Any, y: NDArray[np.int32]) -> None:
        self.X, self.y = X, y
        order = np.random.default_rng(0).permutation(len(y))
        middle = len(y) // 2
        self.halves = np.sort(order[:middle]), np.sort(order[middle:])
        self.loss: list[float | None] = [None]
        self.accuracy: list[float | None] = [None]
        self._of_halves: list[tuple[float, float]] = []

    def __call__(self, trainer: Trainer, _: EpochRecord) -> None:
        """Score after an epoch."""
        self.add(lambda rows: trainer.evaluate(self.X, self.y, rows))

    def add(self, evaluate: Evaluate) -> None:
        """Score with a function of rows that returns loss and accuracy."""
        (loss, accuracy), (other_loss, other_accuracy) = map(evaluate, self.halves)
        sizes = [len(rows) for rows in self.halves]
        self.loss.append(float(np.average([loss, other_loss], weights=sizes)))
        self.accuracy.append(float(np.average([accuracy, other_accuracy], weights=sizes)))
        self._of_halves.append((accuracy, other_accuracy))

    def selected(self, validation: Sequence[float | None] = ()) -> float:
        """Return the test accuracy of the epoch that rows it is not taken over have chosen.

        Parameters
        ----------
        validation : sequence of float
            The accuracy of a validation part in every epoch, the first before training, where
            there is one: its best epoch is chosen. Otherwise each half of the test rows chooses
            an epoch for the other, and the result is the mean over all test rows.
        """
        if any(value is not None for value in validation):
            best = int(np.argmax([-1.0 if value is None else value for value in validation[1:]]))
            found = self.accuracy[1 + best]
            assert found is not None
            return found
        accuracies = np.array(self._of_halves)
        first, second = accuracies.argmax(axis=0)
        sizes = [len(rows) for rows in self.halves]
        return float(np.average([accuracies[second, 0], accuracies[first, 1]], weights=sizes))
