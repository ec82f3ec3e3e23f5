"""What a training is given, checked and split into training and validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.batches import StandardizedRows, dense_rows
from ..data.checks import (
    check_lengths,
    check_targets,
    check_X,
    encode_labels,
    first_true,
    narrow_targets,
    refuse_masked,
)
from ..data.frames import align_frame, column_names
from ..data.label_sets import LabelSets, check_label_sets
from ..data.standardizer import Standardizer, refuse_rounding
from ..errors import DataError, ParameterError
from ..machine.threads import kernel_threads, resolve_threads
from ..model.config import TrainingConfig
from ..model.density import Shrinking
from ..model.losses import LOSSES
from ..model.network import SparseMLP
from ..randomness import stream

Rows = NDArray[np.int64]
Augment = Callable[[NDArray[np.floating], Rows, int], NDArray[np.floating]]


class TrainingData(NamedTuple):
    """The rows of a training, checked."""

    X: Any
    y: Any  # int32 (n,) class indices, float32 (n, n_targets) or LabelSets
    weights: NDArray[np.float32] | None  # (n,), with mean 1 over the training rows
    train_rows: NDArray[np.int64]
    loss_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    test: tuple[Any, NDArray[Any]] | None


def check_room(config: TrainingConfig, storage: Any) -> None:
    """Refuse that connections move between layers whose arrays lie in files."""
    if config.redistribute and storage is not None:
        raise ParameterError(
            "The 'redistribute' parameter of a training must be False where arrays lie in files "
            "('storage'), which have no room for layers that become larger. Got True instead."
        )


def prepare_(
    network: SparseMLP,
    config: TrainingConfig,
    X: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    test: tuple[Any, Any] | None = None,
    is_checked: bool = False,
    copy_bytes: int = 0,
) -> TrainingData:
    """Check and split data; give the network its classes, features' names and standardisation.

    Parameters and errors are those of `Trainer.fit`; with `is_checked` X is what `check_X`
    returned. Rows of weight 0 are in no part of the result's rows: the training is the same as if
    they were not there.
    """
    Shrinking.of(network, config)  # refuse what cannot be
    check_room(config, network.storage)
    n_features, n_outputs = network.config.layer_sizes[0], network.config.layer_sizes[-1]
    names = network.feature_names or column_names(X)
    if not is_checked:
        X = check_X(align_frame(X, names), n_features)
    encoded, classes = encode(network, y)
    check_lengths(X, encoded)
    if classes is not None and len(classes) != n_outputs:
        raise DataError(
            f"The labels have {len(classes)} classes, and the network has {n_outputs} "
            "outputs. Make the last entry of 'layer_sizes' the number of classes."
        )
    relative = None if sample_weight is None else relative_weights(sample_weight, len(encoded))
    train_rows, loss_rows, validation_rows = split_rows(config, len(encoded), relative)
    if config.curve_points and test is None and not len(validation_rows):
        raise ParameterError(
            "The 'curve_points' parameter of a training needs held-out rows to evaluate, and there "
            f"are none. Got {config.curve_points}. Pass 'test', set 'validation_fraction' above "
            "0, or set 'curve_points' to 0."
        )
    if test is not None:
        if len(test) != 2:
            raise ParameterError("The 'test' parameter of fit must be a pair (X, y).")
        X_test = check_X(align_frame(test[0], names), n_features)
        test = X_test, encode(network, test[1], classes)[0]
        check_lengths(*test)
    if len(validation_rows):
        check_watched(encoded[validation_rows])
    weights = None if relative is None else mean_one(relative, train_rows)
    network.classes, network.feature_names = classes, names
    standardize_(network, X, train_rows, relative, wanted=config.standardize)
    start_at_frequencies_(network, encoded, train_rows)
    dense = isinstance(X, np.ndarray) and 4 * X.size <= copy_bytes
    if dense and network.preprocessing is not None:
        with kernel_threads(resolve_threads(config.threads, "training")):
            X = StandardizedRows(X, network.preprocessing)
    return TrainingData(X, encoded, weights, train_rows, loss_rows, validation_rows, test)


def split_rows(
    config: TrainingConfig, count: int, relative: NDArray[np.float64] | None
) -> tuple[Rows, Rows, Rows]:
    """Return the rows to train on, those of them that are evaluated, and those to watch.

    They follow from the seed, and from which weights of so many rows are 0.
    """
    counted = count if relative is None else np.flatnonzero(relative)
    order = stream(config.seed, "split").permutation(counted)
    n_validation = math.ceil(config.validation_fraction * len(order))
    validation_rows, train_rows = order[:n_validation], np.sort(order[n_validation:])
    _check_batch(config, len(train_rows), n_validation)
    return train_rows, order[n_validation:][: config.loss_rows], validation_rows


def mean_one(relative: NDArray[np.float64], rows: Rows) -> NDArray[np.float32]:
    """Return weights with mean 1 over some rows."""
    return (relative / relative[rows].mean()).astype(np.float32)


def standardize_(
    network: SparseMLP,
    X: Any,
    rows: Rows,
    weights: NDArray[np.floating] | None,
    *,
    wanted: bool | str,
) -> None:
    """Give the network mean and scale of rows of X, unless it has them.

    Where they are not wanted, and float32 cannot tell the rows apart, raise a `DataError`.
    """
    if wanted and network.preprocessing is None:
        is_centered = wanted == "centered"
        network.preprocessing = Standardizer.fit(X, rows, weights, centered=is_centered)
    if network.preprocessing is None:
        refuse_rounding(X, rows)


def start_at_frequencies_(network: SparseMLP, y: Any, rows: Rows) -> None:
    """Give the outputs for labels the biases that predict how frequent these are in some rows.

    Only where these biases are all zero, as before training. From a probability of one half for
    thousands of labels that a row hardly ever has, training would first have to come down.
    """
    bias = network.layers[-1].bias
    if LOSSES[network.config.loss].is_multilabel and not bias.any():
        counts = y[rows].counts()
        bias[...] = np.log((counts + 0.5) / (len(rows) - counts + 0.5))


def _check_batch(config: TrainingConfig, n_train: int, n_validation: int) -> None:
    """Refuse a mini-batch of more rows than are trained on."""
    if config.batch_size <= n_train:
        return
    if n_validation:
        raise ParameterError(
            f"The 'validation_fraction' parameter of a training, {config.validation_fraction}, "
            f"leaves {n_train} of {n_train + n_validation} rows to train on, and 'batch_size' is "
            f"{config.batch_size}. Lower one of them."
        )
    raise ParameterError(
        f"The 'batch_size' parameter of a training must be at most the number of "
        f"training rows, {n_train}. Got {config.batch_size} instead."
    )


def encode(
    network: SparseMLP, y: Any, classes: NDArray[Any] | None = None
) -> tuple[Any, NDArray[Any] | None]:
    """Return y as the network's loss takes it, and its classes (None for numbers)."""
    loss = LOSSES[network.config.loss]
    if loss.is_multilabel:
        return check_label_sets(y, network.config.layer_sizes[-1]), network.classes
    if loss.is_classification:
        return encode_labels(y, network.classes if classes is None else classes)
    return narrow_targets(check_targets(y, network.config.layer_sizes[-1])), None


def relative_weights(sample_weight: Any, n_samples: int) -> NDArray[np.float64]:
    """Return weights relative to the largest, if valid; 0 where float32 has no such number."""
    refuse_masked(sample_weight=sample_weight)
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n_samples,):
        raise DataError(
            f"sample_weight must have shape ({n_samples},), one weight a sample. "
            f"Got shape {weights.shape} instead."
        )
    if (place := first_true(~(np.isfinite(weights) & (weights >= 0)))) is not None:
        raise DataError(
            f"sample_weight must be 0 or more, but row {place[0]} has {weights[place]}."
        )
    if not weights.any():
        raise DataError("sample_weight is 0 for all rows. Give some a positive weight.")
    relative: NDArray[np.float64] = weights / weights.max()
    relative[relative < np.finfo(np.float32).tiny] = 0
    return relative


def check_watched(y: Any) -> None:
    """Refuse a validation part whose score does not tell one epoch from another."""
    remedy = "Set more rows aside, or none ('validation_fraction' 0, early_stopping=False)."
    if len(y) < 2:
        raise ParameterError(
            "The 'validation_fraction' parameter of a training must leave at least 2 rows with a "
            f"weight above 0 to watch. It leaves {len(y)}. {remedy}"
        )
    if isinstance(y, LabelSets):
        if not len(y.indices):
            raise ParameterError(
                f"None of the {len(y)} rows that 'validation_fraction' sets aside has a label. "
                f"{remedy}"
            )
    elif y.ndim == 2 and (y == y[0]).all():
        raise ParameterError(
            f"All {len(y)} rows that 'validation_fraction' sets aside have the same targets, "
            f"so that R² says nothing of the weights. {remedy}"
        )


def epoch_order(rows: Rows, seed: int, epoch: int) -> Rows:
    """Return the rows in the order that is drawn for an epoch."""
    return rows[stream(seed, "shuffle", epoch).permutation(len(rows))]


def epoch_batches(rows: Rows, config: TrainingConfig, epoch: int, done: int = 0) -> list[Rows]:
    """Return the rows of every mini-batch of an epoch, but for the first `done` samples."""
    order = epoch_order(rows, config.seed, epoch)
    return [order[k : k + config.batch_size] for k in range(done, len(rows), config.batch_size)]


def augmented(
    data: TrainingData, batch: Rows, epoch: int, augment: Augment | None
) -> tuple[Any, NDArray[Any], NDArray[np.float32] | None, Rows]:
    """Return X, y, weights and the rows of them that are a mini-batch, changed by `augment`."""
    if augment is None:
        return data.X, data.y, data.weights, batch
    X = augment(dense_rows(data.X, batch), batch, epoch)
    weights = None if data.weights is None else data.weights[batch]
    return X, data.y[batch], weights, np.arange(len(batch))
