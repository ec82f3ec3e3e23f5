"""Losses and scores, on feature-major outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import MANY, Float32
from ..data.label_sets import LabelSets, check_label_sets
from ..errors import DataError, ParameterError

NO_LABELS = np.empty(0, dtype=np.int32)
NO_TARGETS = np.empty((0, 0), dtype=np.float32)
NO_WEIGHTS = np.empty(0, dtype=np.float32)


def softmax(logits: Float32) -> Float32:
    """Return the softmax over the classes of logits (n_classes, batch); NaN of infinite ones.

    Above `MANY` classes it replaces the logits.
    """
    if len(logits) > MANY:
        from ..backends.label_kernels import exponentials_, scale_columns_

        _, sums = exponentials_(logits)
        scale_columns_(logits, (1 / sums).astype(np.float32))
        return logits
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
    smoothing: float = 0.0,
) -> tuple[float, Float32]:
    """Return the summed softmax cross-entropy of class indices (batch,), and its gradient.

    Logits and gradient are float32 (n_classes, batch). The gradient is that of the mean over the
    `total` samples of the mini-batch that this micro-batch is a part of, by default all of it;
    `weights`, float32 (batch,), are those of the samples in the sum. With label smoothing a label
    counts 1 - `smoothing`, and each of the n classes `smoothing` / n beside (Szegedy et al.,
    "Rethinking the Inception architecture", 2016, section 7). Above `MANY` classes the gradient
    replaces the logits.
    """
    from ..backends import kernels

    labels, weights = check_labels(labels, *logits.shape), check_weights(weights, logits.shape[1])
    total = total or logits.shape[1]
    if len(logits) > MANY:
        return _softmax_cross_entropy_(logits, labels, weights, total, smoothing), logits
    delta = np.empty_like(logits)
    share = np.float32(smoothing)
    loss = kernels.softmax_cross_entropy(logits, labels, weights, total, share, delta)
    return loss, delta


def _softmax_cross_entropy_(
    logits: Float32, labels: NDArray[np.int32], weights: Float32, total: int, smoothing: float
) -> float:
    """Return the summed cross-entropy; its gradient replaces the logits."""
    from ..backends.label_kernels import exponentials_, scale_columns_

    columns = np.arange(len(labels))
    each = weights if len(weights) else np.ones(len(labels), np.float32)
    right = logits[labels, columns].astype(np.float64)
    if smoothing:
        right += smoothing * (logits.mean(axis=0, dtype=np.float64) - right)
    largest, sums = exponentials_(logits)
    scale = each / np.float32(total)
    scale_columns_(logits, (scale / sums).astype(np.float32))
    if smoothing:
        logits -= scale * np.float32(smoothing / len(logits))
        scale *= np.float32(1 - smoothing)
    logits[labels, columns] -= scale
    return float(each @ (np.log(sums) + largest - right))


def binary_cross_entropy(
    logits: Float32, y: LabelSets, total: int | None = None, weights: Float32 | None = None
) -> tuple[float, Float32]:
    """Return the binary cross-entropy summed over labels and samples, and its gradient.

    The gradient replaces the logits, float32 (n_labels, batch), so that there is no second array
    of this size. `y` are the labels of the samples, and perhaps the labels' weights; for the rest
    see `softmax_cross_entropy`.
    """
    from ..backends.label_kernels import sigmoid_cross_entropy_

    y = check_labels_of_rows(y, *logits.shape)
    weights = check_weights(weights, logits.shape[1])
    of_labels = NO_WEIGHTS if y.weights is None else y.weights
    loss = sigmoid_cross_entropy_(
        logits, y.indptr, y.indices, of_labels, weights, total or logits.shape[1]
    )
    return float(loss), logits


def sigmoid(logits: Float32) -> Float32:
    """Replace logits by 1 / (1 + exp(-z)), and return them."""
    from ..backends.label_kernels import sigmoid_

    sigmoid_(logits)
    return logits


def mean_squared_error(
    outputs: Float32, targets: Float32, total: int | None = None, weights: Float32 | None = None
) -> tuple[float, Float32]:
    """Return the sum over samples of the mean over targets of (output - target)², and its gradient.

    `outputs` and the gradient are float32 (n_targets, batch), `targets` (batch, n_targets); for the
    rest see `softmax_cross_entropy`.
    """
    from ..backends import kernels

    targets, weights = check_numbers(targets, *outputs.shape), check_weights(weights, len(targets))
    delta = np.empty_like(outputs)
    total = total or outputs.shape[1]
    return kernels.mean_squared_error(outputs, targets, weights, total, delta), delta


def check_labels(labels: Any, n_classes: int, batch: int) -> NDArray[np.int32]:
    """Return labels as int32 (batch,), if all of them are class indices.

    Kernels write to where a label points, so those of every mini-batch are looked at.
    """
    from ..backends import kernels

    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub" or labels.shape != (batch,):
        raise DataError(
            f"y must be class indices, integers of shape ({batch},) in a mini-batch of {batch} "
            f"rows. Got {labels.dtype} {labels.shape} instead. See `encode_labels`."
        )
    exact = labels if labels.dtype == np.int32 else labels.astype(np.int64)
    if not kernels.are_below(exact, n_classes):
        wrong = labels[(exact < 0) | (exact >= n_classes)][0]
        raise DataError(
            f"y must be class indices in the range [0, {n_classes - 1}], as the network has "
            f"{n_classes} outputs. Got {wrong}. See `encode_labels`."
        )
    return exact.astype(np.int32, copy=False)


def check_labels_of_rows(y: Any, n_labels: int, batch: int) -> LabelSets:
    """Return the labels of a mini-batch's rows, if they are those of so many labels and rows."""
    from ..backends import kernels

    y = check_label_sets(y, n_labels)
    if len(y) != batch:
        raise DataError(f"y has {len(y)} rows in a mini-batch of {batch}. Pass one a sample.")
    if not kernels.are_below(y.indices, n_labels):
        raise DataError(f"y has labels beyond its {n_labels}. Make it by `check_label_sets`.")
    return y


def check_numbers(targets: Any, n_targets: int, batch: int) -> Float32:
    """Return the targets of a regression as float32 (batch, n_targets)."""
    return _as_float32(
        "y", targets, (batch, n_targets), f", as the network has {n_targets} outputs"
    )


def check_weights(weights: Any, batch: int) -> Float32:
    """Return the weights of a mini-batch's samples as float32 (batch,); none for None."""
    if weights is None:
        return NO_WEIGHTS
    weights = _as_float32("sample_weight", weights, (batch,))
    if batch and not np.minimum.reduce(weights) >= 0:
        raise DataError(f"sample_weight must be 0 or more. Got {weights[~(weights >= 0)][0]}.")
    return weights


def _as_float32(name: str, values: Any, shape: tuple[int, ...], why: str = "") -> Float32:
    values = np.asarray(values)
    if values.dtype.kind not in "biuf" or values.shape != shape:
        raise DataError(
            f"{name} must be numbers of shape {shape} in a mini-batch of {shape[0]} rows{why}. "
            f"Got {values.dtype} {values.shape} instead."
        )
    return np.ascontiguousarray(values, dtype=np.float32)


def top_outputs(outputs: Float32, k: int) -> tuple[NDArray[np.int32], Float32]:
    """Return the numbers of the k largest outputs of every sample, and these: (batch, k).

    They descend; of equal ones the first come first. Where an output is not finite, all of these
    are NaN.
    """
    from ..backends.label_kernels import rank_columns

    places = np.empty((outputs.shape[1], k), dtype=np.int32)
    values = np.empty((outputs.shape[1], k), dtype=np.float32)
    if not rank_columns(outputs, places, values):
        values.fill(np.nan)
    return places, values


class Loss(NamedTuple):
    """What a network is trained for."""

    function: Callable[..., tuple[float, Float32]]  # of outputs, y, total, weights
    check_y: Callable[[Any, int, int], Any]  # of y, outputs, rows
    to_outputs: Callable[[Float32], Float32]  # of logits, which it may replace, to what they mean
    task: str  # classification | regression | multilabel
    least_outputs: int
    outputs_are: str  # what the last entry of layer_sizes counts

    @property
    def is_classification(self) -> bool:
        """Whether each row has one class."""
        return self.task == "classification"

    @property
    def is_multilabel(self) -> bool:
        """Whether each row has any number of labels."""
        return self.task == "multilabel"


LOSSES = {
    "softmax_cross_entropy": Loss(
        softmax_cross_entropy, check_labels, softmax, "classification", 2, "classes"
    ),
    "binary_cross_entropy": Loss(
        binary_cross_entropy, check_labels_of_rows, sigmoid, "multilabel", 1, "labels"
    ),
    "mean_squared_error": Loss(
        mean_squared_error, check_numbers, np.copy, "regression", 1, "targets"
    ),
}


def smoothed(loss: str, smoothing: float) -> Callable[..., tuple[float, Float32]]:
    """Return the function of a loss that a training minimises, with label smoothing.

    Raises
    ------
    ParameterError
        Where the loss has no labels that exclude each other, and smoothing is not 0.
    """
    function = LOSSES[loss].function
    if smoothing == 0:
        return function
    if function is not softmax_cross_entropy:
        raise ParameterError(
            "The 'label_smoothing' parameter of a training must be 0 unless each row has one "
            f"class (the loss 'softmax_cross_entropy'). Got {smoothing} with {loss!r}."
        )
    return partial(softmax_cross_entropy, smoothing=smoothing)


class ScoreSums:
    """Sums over batches from which the score follows: accuracy, or R² where y is numbers.

    Where rows have any number of labels it is precision at 1: the share of rows whose most
    probable label is one of theirs.

    R² is 1 - Σ(y - ŷ)² / Σ(y - mean)², averaged over targets; a constant target that is not met
    scores 0, and one that is met 1.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self.right = 0.0
        self.errors: Any = 0.0
        self.sums: Any = 0.0
        self.squares: Any = 0.0

    def add(self, outputs: Float32, y: Any, weights: Float32 | None) -> None:
        """Count a batch: outputs (n, batch), y int32 (batch,), float32 (batch, n) or label sets."""
        each = np.ones(len(y)) if weights is None else weights.astype(np.float64)
        self.weight += float(each.sum())
        if isinstance(y, LabelSets):
            rows = np.repeat(np.arange(len(y)), np.diff(y.indptr))
            hits = y.indices == top_outputs(outputs, 1)[0][rows, 0]
            self.right += float(each[rows] @ hits)
            return
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
