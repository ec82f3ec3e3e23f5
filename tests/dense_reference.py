"""Dense NumPy computations that tests compare with."""

from __future__ import annotations

import numpy as np


def dense(layer):
    W = np.zeros((layer.n_in, layer.n_out))
    W[layer.topology.rows(), layer.topology.indices] = layer.values
    return W


def dense_gradients(network, X, y):
    """dL/dW of every cell of every layer, in float64, for the mean cross-entropy."""
    inputs, derivatives = [X.astype(np.float64)], []
    for layer in network.layers:
        z = inputs[-1] @ dense(layer) + layer.bias
        derivatives.append(np.where(z > 0, 1.0, layer.slope))
        inputs.append(np.where(z > 0, z, layer.slope * z))
    p = np.exp(inputs[-1] - inputs[-1].max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    delta = (p - np.eye(p.shape[1])[y]) / len(y)
    gradients = []
    for k in reversed(range(len(network.layers))):
        gradients.append(inputs[k].T @ delta)
        if k:
            delta = (delta @ dense(network.layers[k]).T) * derivatives[k - 1]
    return gradients[::-1]


def pattern(layer):
    cells = np.zeros((layer.n_in, layer.n_out), dtype=bool)
    cells[layer.topology.rows(), layer.topology.indices] = True
    return cells
