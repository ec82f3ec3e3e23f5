"""A network as it predicts, and as SciPy matrices."""

from __future__ import annotations

import copy
import dataclasses

from scipy.sparse import csr_array

from .folding import fold_layers
from .network import SparseMLP


def fold(network: SparseMLP) -> SparseMLP:
    """Return a network that predicts as this one does, by its layers' weights and biases alone.

    The averages of a training with `average_decay` take the place of the weights, and running
    statistics, γ and β of batch normalisation go into weights and bias. What that changes is
    copied, in O(connections); all else is shared. A network with neither is returned itself.
    """
    layers = fold_layers(network.layers)
    if all(a is b for a, b in zip(layers, network.layers, strict=True)):
        return network
    folded = copy.copy(network)
    folded.layers, folded.storage = layers, None
    folded.config = dataclasses.replace(network.config, batch_norm=False)
    return folded


def to_scipy(network: SparseMLP) -> list[csr_array]:
    """Return the weights of every layer as CSR, float32 (n_in, n_out); copies.

    A layer computes f(x W + b), with the bias and the activation of `network.layers`; where these
    are normalised, of the layers of `fold(network)`, whose weights the result has.
    """
    return [
        csr_array(
            (layer.values, layer.topology.indices, layer.topology.indptr),
            shape=(layer.n_in, layer.n_out),
            copy=True,
        )
        for layer in fold(network).layers
    ]
