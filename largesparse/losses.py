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
    from .backends import kernels

    delta = np.empty_like(logits)
    total = total or logits.shape[1]
    loss = kernels.softmax_cross_entropy(logits, labels.astype(np.int32, copy=False), total, delta)
    return loss, delta
