"""Losses, on feature-major logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def softmax(logits: Float32) -> Float32:
    """Return the softmax over the classes of logits (n_classes, batch)."""
    shifted = logits - logits.max(axis=0)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=0)
    return shifted


def softmax_cross_entropy(
    logits: Float32, labels: NDArray[np.integer], total: int | None = None
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

    Returns
    -------
    loss : float
        Sum over the batch.
    delta : float32 (n_classes, batch)
        Gradient with respect to the logits.
    """
    batch = logits.shape[1]
    columns = np.arange(batch)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller sees what is not finite
        shifted = logits - logits.max(axis=0)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=0)
    loss = float(np.sum(np.log(sums) - shifted[labels, columns], dtype=np.float64))
    delta = exponentials
    delta /= sums
    delta[labels, columns] -= 1
    delta *= np.float32(1 / (total or batch))
    return loss, delta
