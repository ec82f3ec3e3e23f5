"""Test scores after every epoch, and the accuracy of the epoch that held-out rows choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..training.trainer import Trainer

Evaluate = Callable[[NDArray[np.int64]], tuple[float, float]]  # rows -> loss, accuracy


class TestScores:
    """Scores of the test rows, which are scored by halves.

    Parameters
    ----------
    n : int
        Number of test rows, two at least.

    Attributes
    ----------
    loss, accuracy : list of float
        Over all test rows, in the order in which they were added.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, n: int) -> None:
        order = np.random.default_rng(0).permutation(n)
        self.halves = np.sort(order[: n // 2]), np.sort(order[n // 2 :])
        self.loss: list[float] = []
        self.accuracy: list[float] = []
        self._of_halves: list[tuple[float, float]] = []

    def add(self, evaluate: Evaluate) -> tuple[float, float]:
        """Score with a function of rows; return loss and accuracy over all of them."""
        (loss, accuracy), (other_loss, other_accuracy) = map(evaluate, self.halves)
        self.loss.append(self._mean(loss, other_loss))
        self.accuracy.append(self._mean(accuracy, other_accuracy))
        self._of_halves.append((accuracy, other_accuracy))
        return self.loss[-1], self.accuracy[-1]

    def selected(self, epochs: int, validation: Sequence[float | None] = ()) -> float:
        """Return the test accuracy of the epoch that rows it is not taken over have chosen.

        Parameters
        ----------
        epochs : int
            How many of the last scores are those of epochs.
        validation : sequence of float
            The accuracy of a validation part, where there is one: its best epoch is chosen.
            Otherwise each half of the test rows chooses an epoch for the other, and the result is
            the mean over all test rows. The last entries are those of the epochs.
        """
        watched = [value for value in validation[-epochs:] if value is not None]
        if watched:
            return self.accuracy[-epochs:][int(np.argmax(watched))]
        accuracies = np.array(self._of_halves[-epochs:])
        first, second = accuracies.argmax(axis=0)
        return self._mean(accuracies[second, 0], accuracies[first, 1])

    def _mean(self, first: float, second: float) -> float:
        return float(np.average([first, second], weights=[len(rows) for rows in self.halves]))


class ScoringTrainer(Trainer):
    """A trainer that keeps the scores of its test rows, which are taken before evolution.

    Attributes
    ----------
    scores : TestScores or None
        Made when the test rows are first scored, before training.
    """

    scores: TestScores | None = None

    def evaluate(
        self,
        X: Any,
        y: NDArray[Any],
        rows: NDArray[np.int64] | None = None,
        sample_weight: NDArray[np.float32] | None = None,
    ) -> tuple[float, float]:
        """Return mean loss and accuracy; whole data sets are test rows, and their scores kept."""
        evaluate = super().evaluate
        if rows is not None:
            return evaluate(X, y, rows, sample_weight)
        if self.scores is None:
            self.scores = TestScores(len(y))
        return self.scores.add(lambda half: evaluate(X, y, half))
