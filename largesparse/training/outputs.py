"""What the outputs of a network mean, and what is kept of those of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.label_sets import LabelSets, check_label_sets, join_label_sets
from ..errors import NumericalError, ParameterError, check_range
from ..model.losses import LOSSES, top_outputs
from ..model.network import SparseMLP

Digest = Callable[[NDArray[np.float32], str, int], Any]  # of logits, loss, the first row
Top = tuple[NDArray[Any], NDArray[np.float32]]


class Outputs(NamedTuple):
    """What the outputs of a network mean: see `SparseMLP` for the fields."""

    task: str  # of `losses.Loss`
    classes: NDArray[Any] | None
    target_mean: Any
    target_scale: Any

    @classmethod
    def of(cls, network: SparseMLP) -> Outputs:
        task = LOSSES[network.config.loss].task
        return cls(task, network.classes, network.target_mean, network.target_scale)

    @property
    def is_multilabel(self) -> bool:
        """Whether each row has any number of labels."""
        return self.task == "multilabel"

    def check_classes(self) -> None:
        """Raise a ParameterError where the network predicts numbers."""
        if self.task == "regression":
            raise ParameterError("A network for regression has no classes: use predict.")

    def to_top(self, places: NDArray[np.int32], scores: NDArray[np.float32]) -> Top:
        """Return the labels of outputs, with their scores, (n_samples, k)."""
        check_outputs(scores)
        return places if self.classes is None else self.classes[places], scores

    def to_predictions(self, out: NDArray[np.float32]) -> NDArray[Any]:
        """Return labels, or numbers, of outputs, float32 (n_samples, n_outputs)."""
        if self.is_multilabel:
            return check_label_sets(out >= 0.5).to_csr()
        if self.task == "classification":
            best = out.argmax(axis=1)
            return best if self.classes is None else self.classes[best]
        found: NDArray[np.floating] = out
        if self.target_scale is not None:
            found = found * np.asarray(self.target_scale, dtype=np.float64)
        if self.target_mean is not None:
            found = found + np.asarray(self.target_mean, dtype=np.float64)
        return found[:, 0] if found.shape[1] == 1 else found


def check_outputs(out: NDArray[np.float32], start: int = 0) -> NDArray[np.float32]:
    """Return outputs (n_samples, n_outputs) if they are finite, or raise a NumericalError.

    `start` is the number of the first sample.
    """
    if not np.isfinite(out.sum(dtype=np.float64)):
        raise _not_finite(start + int(np.isfinite(out).all(axis=1).argmin()))
    return out


def _not_finite(row: int) -> NumericalError:
    return NumericalError(
        f"What the network computes for row {row} is not finite: either its weights are not, after "
        "a training that diverged, or the row is far from what it was trained on. Train it again "
        "with a lower learning rate, or check the row for extreme values."
    )


def top_labels(logits: NDArray[np.float32], loss: str, start: int, *, k: int) -> Top:
    """Return the k most probable outputs of every sample, and their probabilities: (batch, k)."""
    # by the logits: probabilities of many labels are 1 in float32
    places, scores = top_outputs(logits, k)
    if np.isnan(scores).any():
        return places, scores
    if LOSSES[loss].is_multilabel:
        return places, LOSSES[loss].to_outputs(scores)
    return places, np.take_along_axis(LOSSES[loss].to_outputs(logits), places.T, axis=0).T


def likely_labels(logits: NDArray[np.float32], loss: str, start: int) -> LabelSets | int:
    """Return the labels of a probability of a half or more, of every sample.

    Where not all logits are finite, return the number of the first such sample.
    """
    if not np.isfinite(logits.sum(dtype=np.float64)):
        return start + int(np.isfinite(logits).all(axis=0).argmin())
    rows, labels = np.nonzero((logits >= 0).T)
    counts = np.bincount(rows, minlength=logits.shape[1])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return LabelSets(indptr, labels.astype(np.int32), len(logits))


def join_likely_labels(parts: list[LabelSets | int]) -> Any:
    """Return what `likely_labels` found in all batches, csr_array int64 (n_samples, n_labels)."""
    found = []
    for part in parts:
        if isinstance(part, int):
            raise _not_finite(part)
        found.append(part)
    return join_label_sets(found).to_csr()


def check_top(k: int, n_outputs: int) -> None:
    """Raise a ParameterError where there are not so many labels."""
    check_range("k", k, "predict_top", low=1, high=n_outputs, integer=True)
