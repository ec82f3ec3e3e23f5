"""Test scores after every epoch, and the accuracy of the epoch that held-out rows choose."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..machine.usage import cpu_seconds
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
    lists : dict of list
        All scores, in the order in which they were added, as JSON can keep them.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, n: int) -> None:
        order = np.random.default_rng(0).permutation(n)
        self.halves = np.sort(order[: n // 2]), np.sort(order[n // 2 :])
        self.lists: dict[str, list[Any]] = {"loss": [], "accuracy": [], "of_halves": []}

    @property
    def loss(self) -> list[float]:
        """Mean loss of each scoring."""
        return self.lists["loss"]

    @property
    def accuracy(self) -> list[float]:
        """Accuracy of each scoring."""
        return self.lists["accuracy"]

    @property
    def _of_halves(self) -> list[tuple[float, float]]:
        return self.lists["of_halves"]

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

    Its checkpoints have them too. They are written once a minute: an epoch may take milliseconds.

    Attributes
    ----------
    scores : TestScores or None
        Made when the test rows are first scored, before training.
    """

    SECONDS = 60.0  # between two checkpoints, at least

    scores: TestScores | None = None
    saved = -math.inf
    cpu_began = 0.0  # of its own process, less what it has used in others before

    def save(self, folder: str | Path) -> bool:
        """Write a checkpoint where one is due."""
        if time.monotonic() - self.saved < self.SECONDS:
            return True
        self.saved = time.monotonic()
        self.notes["cpu_s"] = cpu_seconds() - self.cpu_began
        return super().save(folder)

    def save_stopped(self, folder: str | Path, rows: int) -> str:
        """Save a training that is stopped now, whenever the last checkpoint was written."""
        self.saved = -math.inf
        return super().save_stopped(folder, rows)

    def keep_scores(self, n: int) -> TestScores:
        """Return the scores of n test rows, those of the checkpoint that it goes on from too."""
        if self.scores is None:
            self.scores = TestScores(n)
            known = self.notes.setdefault("scores", self.scores.lists)
            for values in known.values():
                del values[len(self.history.epochs) :]  # of an epoch that was stopped afterwards
            self.scores.lists = known
        return self.scores

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
        return self.keep_scores(len(y)).add(lambda half: evaluate(X, y, half))
