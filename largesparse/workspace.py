"""The buffers of a training step or of prediction: allocated once, reused by every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from .layer import Float32, Forward, SparseLayer

CACHE_LINE = 64  # bytes


class Workspace:
    """Buffers for micro-batches of up to `micro_batch` samples.

    A training workspace keeps one float32 and two bits for every neuron and sample, two buffers
    of the widest layer for the backward pass, and the gradients; where the activation's shape is
    trained, a second float32. One for prediction has two activation buffers of the widest layer,
    which the layers use in turn.

    Parameters
    ----------
    layers : sequence of layers
        For training, of SparseLayer.
    micro_batch : int
    training : bool

    Attributes
    ----------
    gradients : list of float32 (nnz,)
    bias_gradients : list of float32 (n_out,)
    srelu_gradients : list of float32 (4, n_out)
        Of the activations whose shape is trained; (4, 0) for the others.
    input_sums : float32 (n_in of the output layer,)
        Sums of the output layer's inputs over the mini-batch; empty if it is not centred.
    """

    def __init__(
        self, layers: Sequence[Forward], micro_batch: int, *, training: bool = True
    ) -> None:
        self.micro_batch = micro_batch
        self._sizes = [layer.n_out for layer in layers]
        self._n_in = layers[0].n_in
        self._inputs = aligned_floats(self._n_in * micro_batch)
        hidden = self._sizes[:-1]
        widest = max(hidden, default=0) * micro_batch
        logits = aligned_floats(self._sizes[-1] * micro_batch)
        self.gradients: list[Float32] = []
        self.bias_gradients: list[Float32] = []
        if training:
            self._activations = [aligned_floats(size * micro_batch) for size in hidden] + [logits]
            self._states = [np.empty(size * 2 * _words(micro_batch), np.uint32) for size in hidden]
            self._deltas = [aligned_floats(widest) for _ in range(min(2, len(hidden)))]
            trained = cast(Sequence[SparseLayer], layers)
            shaped = [0 if layer.srelu is None else layer.n_out for layer in layers]
            self._sums = [aligned_floats(size * micro_batch) for size in shaped]
            self.srelu_gradients = [np.zeros((4, size), np.float32) for size in shaped]
            self.allocate_gradients(trained)
            self.input_sums = aligned_floats(layers[-1].n_in if trained[-1].centered else 0)
        else:
            turns = [aligned_floats(widest) for _ in range(min(2, len(hidden)))]
            self._activations = [turns[k % 2] for k in range(len(hidden))] + [logits]

    def allocate_gradients(self, layers: Sequence[SparseLayer]) -> None:
        """Make the gradient buffers fit the layers; those that fit already are kept."""
        self.bias_gradients = self.bias_gradients or [np.zeros_like(layer.bias) for layer in layers]
        old = self.gradients or [np.empty(0, np.float32)] * len(layers)
        self.gradients = [
            buffer if len(buffer) == layer.nnz else np.zeros(layer.nnz, np.float32)
            for buffer, layer in zip(old, layers, strict=True)
        ]

    def inputs(self, batch: int) -> Float32:
        """Return the inputs, float32 (n_features, batch)."""
        return _columns(self._inputs, self._n_in, batch)

    def activations(self, k: int, batch: int) -> Float32:
        """Return the activations of layer k (0 is the first hidden one), (n_out, batch)."""
        return _columns(self._activations[k], self._sizes[k], batch)

    def state(self, k: int, batch: int) -> NDArray[np.uint32]:
        """Return the state bits of hidden layer k, uint32 (n_out, 2, words)."""
        words = _words(batch)
        size = self._sizes[k]
        return self._states[k][: size * 2 * words].reshape(size, 2, words)

    def sums(self, k: int, batch: int) -> Float32:
        """Return z of layer k, whose activation's shape is trained, float32 (n_out, batch)."""
        return _columns(self._sums[k], self._sizes[k], batch)

    def delta(self, k: int, batch: int) -> Float32:
        """Return the buffer of dL/dz of hidden layer k, float32 (n_out, batch)."""
        return _columns(self._deltas[k % 2], self._sizes[k], batch)


def _words(batch: int) -> int:
    return -(-batch // 32)


def aligned_floats(size: int) -> Float32:
    """Return float32 zeros (size,) that begin with a cache line."""
    line = CACHE_LINE // 4
    buffer = np.zeros(size + line, dtype=np.float32)
    start = -(buffer.ctypes.data // 4) % line
    return buffer[start : start + size]


def _columns(buffer: Float32, rows: int, batch: int) -> Float32:
    """Return the start of a flat buffer as a contiguous (rows, batch) array."""
    return buffer[: rows * batch].reshape(rows, batch)
