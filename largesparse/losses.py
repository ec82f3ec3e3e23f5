"""Losses and scores, on feature-major outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

NO_LABELS = np.empty(0, dtype=np.int32)
NO_TARGETS = np.empty((0, 0), dtype=np.float32)
NO_WEIGHTS = np.empty(0, dtype=np.float32)


def softmax(logits: Float32) -> Float32:
    """Return the softmax over the classes of logits (n_classes, batch); NaN of infinite ones."""
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=0)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=0)
    return shifted


def softmax_cross_entropy(
    logits: Float32,
    labels: NDArray[np.integer],
    total: int | None = None,
    weights: Float32 | None = None,
) -> tuple[float, Float32]:
    """Return the summed softmax cross-entropy and its gradient.

    Parameters
    ----------
    logits : float32 (n_classes, batch)
    labels : integers (batch,)
        Class indices.
    total : int, optional
        Samples of the mini-batch that this micro-batch is a part of; the gradient is that of the
        mean over it. By default `batch`.
    weights : float32 (batch,), optional
        Of the samples in the sum.

    Returns
    -------
    loss : float
        Sum over the batch.
    delta : float32 (n_classes, batch)
        Gradient with respect to the logits.
    """
    from .backends import kernels

    delta = np.empty_like(logits)
    total = total or logits.shape[1]
    weights = NO_WEIGHTS if weights is None else weights
    labels = labels.astype(np.int32, copy=False)
    loss = kernels.softmax_cross_entropy(logits, labels, weights, total, delta)
    return loss, delta


def mean_squared_error(
    outputs: Float32, targets: Float32, total: int | None = None, weights: Float32 | None = None
) -> tuple[float, Float32]:
    """Return the sum over samples of the mean over targets of (output - target)², and its gradient.

    Parameters
    ----------
    outputs : float32 (n_targets, batch)
    targets : float32 (batch, n_targets)
    total, weights
        As in `softmax_cross_entropy`.

    Returns
    -------
    loss : float
    delta : float32 (n_targets, batch)
    """
    from .backends import kernels

    delta = np.empty_like(outputs)
    total = total or outputs.shape[1]
    weights = NO_WEIGHTS if weights is None else weights
    return kernels.mean_squared_error(outputs, targets, weights, total, delta), delta


class Loss(NamedTuple):
    """What a network is trained for."""

    function: Callable[..., tuple[float, Float32]]  # of outputs, y, total, weights
    is_classification: bool
    least_outputs: int
    outputs_are: str  # what the last entry of layer_sizes counts


LOSSES = {
    "softmax_cross_entropy": Loss(softmax_cross_entropy, True, 2, "classes"),
    "mean_squared_error": Loss(mean_squared_error, False, 1, "targets"),
}


class ScoreSums:
    """Sums over batches from which the score follows: accuracy, or R² where y is numbers.

    R² is 1 - Σ(y - ŷ)² / Σ(y - mean)², averaged over targets; a constant target that is not met
    scores 0, and one that is met 1.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self.right = 0.0
        self.errors: Any = 0.0
        self.sums: Any = 0.0
        self.squares: Any = 0.0

    def add(self, outputs: Float32, y: NDArray[Any], weights: Float32 | None) -> None:
        """Count a batch: outputs (n, batch), y int32 (batch,) or float32 (batch, n)."""
        each = np.ones(len(y)) if weights is None else weights.astype(np.float64)
        self.weight += float(each.sum())
        if y.ndim == 1:
            self.right += float(each @ (outputs.argmax(axis=0) == y))
            return
        exact = y.astype(np.float64)
        self.errors = self.errors + each @ (outputs.T - exact) ** 2
        self.sums = self.sums + each @ exact
        self.squares = self.squares + each @ exact**2

    def merge(self, other: ScoreSums) -> None:
        """Count what another counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def score(self) -> float:
        """Return accuracy or R² of all that was counted."""
        if self.weight == 0:
            return 0.0
        if np.ndim(self.errors) == 0:
            return self.right / self.weight
        spread = np.maximum(self.squares - self.sums**2 / self.weight, 0)
        constant = spread <= 1e-12 * np.maximum(self.squares, 1e-300)
        r2 = 1 - self.errors / np.where(constant, 1, spread)
        return float(np.mean(np.where(constant, self.errors <= 1e-12, r2)))
