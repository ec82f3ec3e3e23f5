"""The learning curve within epochs: loss and score of a fixed part of the held-out rows.

A large network takes minutes for an epoch. So `curve_points` times an epoch, equally spaced in
samples, `curve_rows` of the test rows are evaluated (of the validation rows, where there are no
others), the same ones every time. This changes nothing of the training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..model.config import TrainingConfig
from ..randomness import stream
from .prepared import Rows, TrainingData

Point = dict[str, Any]  # epoch, samples of it, updates, loss, accuracy, seconds


class HeldOut(NamedTuple):
    """The rows of the curve, of X and y."""

    X: Any
    y: Any
    weights: NDArray[np.float32] | None  # (n_samples,)
    rows: Rows


def held_out(data: TrainingData, config: TrainingConfig) -> HeldOut:
    """Return the fixed part of the held-out rows that a training's curve is of."""
    if data.test is not None:
        X, y, weights, rows = *data.test, None, np.arange(len(data.test[1]))
    else:
        X, y, weights, rows = data.X, data.y, data.weights, data.validation_rows
    chosen = stream(config.seed, "curve").permutation(len(rows))[: config.curve_rows]
    return HeldOut(X, y, weights, rows[np.sort(chosen)])


def is_due(curve: Sequence[Point], samples: int, rows: int, points: int) -> bool:
    """Return whether a point is due after so many samples of an epoch's `rows`.

    `curve` has the points of the epoch so far, `points` is how many it is to have. A mini-batch in
    which several become due has one.
    """
    before = curve[-1]["samples"] if curve else 0
    return min(samples, rows) * points // rows > min(before, rows) * points // rows


def samples_of_next(samples: int, rows: int, points: int) -> int:
    """Return after how many samples of an epoch its next point is due; `rows` at the latest."""
    if not points:
        return rows
    number = samples * points // rows + 1
    return min(rows, -(-number * rows // points))


def measure(evaluate: Callable[[], tuple[float, float]], **place: Any) -> Point:
    """Return a point: `evaluate` returns loss and score, and `place` says when it was."""
    started = time.perf_counter()
    loss, score = evaluate()
    return {
        **place,
        "loss": float(loss),
        "accuracy": float(score),
        "seconds": time.perf_counter() - started,
    }
