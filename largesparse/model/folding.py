"""A network as it predicts: with nothing but weights, biases and activations."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np

from .layer import LayerArrays, SparseLayer
from .network import SparseMLP
from .normalization import gain_and_shift


def fold(network: SparseMLP) -> SparseMLP:
    """Return a network that predicts as this one does, by its layers' weights and biases alone.

    The averages of a training with `average_decay` take the place of the weights, and running
    statistics, γ and β of batch normalisation go into weights and bias. What that changes is
    copied, in O(connections); all else is shared. A network with neither is returned itself.
    """
    layers = [_fold(layer) for layer in network.layers]
    if all(a is b for a, b in zip(layers, network.layers, strict=True)):
        return network
    folded = copy.copy(network)
    folded.layers, folded.storage = layers, None
    folded.config = dataclasses.replace(network.config, batch_norm=False)
    return folded


def _fold(layer: SparseLayer) -> SparseLayer:
    found: LayerArrays = layer.evaluated
    if layer.config.normalised:
        gain, shift = gain_and_shift(found)
        found = {"values": found["values"] * gain[layer.topology.indices], "bias": shift}
    elif "average" not in layer.kinds:
        return layer
    folded = SparseLayer(
        layer.number,
        layer.topology,
        found,
        dataclasses.replace(layer.config, normalised=False),
        moments={},
        dead=layer.dead,
        values_by_output=np.empty(0, np.float32),
    )
    folded.is_stale = True  # sparse inputs do not need the output order
    return folded
