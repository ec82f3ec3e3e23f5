"""A network as it predicts: with nothing but weights, biases and activations."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np

from .layer import LayerArrays, SparseLayer
from .network import SparseMLP
from .normalization import gain_and_shift


def fold(network: SparseMLP) -> SparseMLP:
    """Return a network that predicts as this one does, without batch normalisation.

    The running statistics, γ and β of a layer go into its weights and its bias. So the layers'
    `values`, `bias` and `activate` are all that computes its outputs. What is folded is copied,
    in O(connections); all else is shared. A network without normalised layers is returned itself.
    """
    layers = [_fold(layer) for layer in network.layers]
    if all(a is b for a, b in zip(layers, network.layers, strict=True)):
        return network
    folded = copy.copy(network)
    folded.layers, folded.storage = layers, None
    folded.config = dataclasses.replace(network.config, batch_norm=False)
    return folded


def _fold(layer: SparseLayer) -> SparseLayer:
    if not layer.config.normalised:
        return layer
    gain, shift = gain_and_shift(layer)
    parameters: LayerArrays = {
        "values": layer.values * gain[layer.topology.indices],
        "bias": shift,
    }
    folded = SparseLayer(
        layer.number,
        layer.topology,
        parameters,
        dataclasses.replace(layer.config, normalised=False),
        moments={},
        dead=layer.dead,
        values_by_output=np.empty(0, np.float32),
    )
    folded.is_stale = True  # sparse inputs do not need the output order
    return folded
